# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The report of a demo: every number with its interval and how it was obtained."""

import subprocess
from pathlib import Path
from typing import Any

import pyro_ebm
from pyro_ebm.cli.sampling import unmixed

__all__ = ["git_commit", "markdown"]

#: Pictures by file, with their captions.
_PICTURES = {
    "samples.png": "Test images, and samples of the larger model",
    "completions.png": "Lower halves of test images, completed given their upper halves",
    "filters.png": "Weights of the hidden units of the larger model",
    "energy.png": "Free energies of its chains, and of the test images",
    "history.png": "Its training",
}


def git_commit() -> str | None:
    """The commit of the package's source, if it runs from a checkout."""
    folder = Path(pyro_ebm.__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown.

    :param report: what the demo wrote to ``report.json``.
    """
    parts = [
        f"# RBMs of {report['data']}\n",
        f"`{report['command']}` took {report['seconds']:.0f} s. All numbers are in nats.\n",
        "AIS estimates log Z from below, so that likelihoods computed with it alone are optimistic; "
        "reverse AIS estimates it from above. Both are stochastic bounds: they hold in expectation, "
        "the reverse one if its chains start in equilibrium. Likelihoods below use the exact log Z "
        "where there is one and otherwise the midpoint of the two estimates. Intervals are 95 %; those "
        "of likelihoods join the interval of log Z and the standard error of the mean over images.\n",
    ]
    for name, model in report["models"].items():
        parts.append(_model(name, model))
    parts.append(_completion(report["completion"]))
    parts.append("## Pictures\n")
    parts += [f"![{caption}]({name})\n\n*{caption}.*\n" for name, caption in _PICTURES.items()]
    parts.append(_conditions(report))
    return "\n".join(parts)


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    head = ("quantity", "value", "95 % interval", "how obtained")
    lines = [head, ("---", "---:", "---:", "---"), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _model(name: str, model: dict[str, Any]) -> str:
    evaluation, training = model["evaluation"], model["training"]
    rows = _log_partition_rows(evaluation)
    for split, s in evaluation["log_likelihood"].items():
        from_z = (s["lower_from_log_partition"], s["upper_from_log_partition"])
        rows.append(
            (
                f"log-likelihood per image, {split}",
                f"{s['value']:.3f}",
                _interval(s["lower"], s["upper"]),
                f"mean of {s['rows']} images, bits by seed {evaluation['data']['seed']}, "
                f"{'exact log Z' if s['log_partition'] == 'exact' else 'midpoint log Z'}; "
                f"log Z alone: {_interval(*from_z)}, standard error over images "
                f"{s['std_error_of_rows']:.3f}",
            )
        )
    pseudo = evaluation["pseudo_log_likelihood"]
    margin = 1.96 * pseudo["std_error_of_rows"]
    low, high = pseudo["value"] - margin, pseudo["value"] + margin
    rows.append(
        (
            "pseudo-log-likelihood per image, test",
            f"{pseudo['value']:.3f}",
            _interval(low, high),
            f"mean of {pseudo['rows']} images; needs no log Z",
        )
    )
    text = f"## {name}\n\n{model['description']}\n\n"
    text += (
        f"Trained by `{model['train_command']}` in {training['seconds']:.1f} s, evaluated in "
        f"{evaluation['seconds']:.1f} s.\n\n{_table(rows)}"
    )
    comparison = model.get("exact_comparison")
    if comparison is not None:
        inside = "inside" if comparison["inside_bracket"] else "outside of"
        text += (
            f"\nThe exact log Z lies {inside} the 95 % interval of the two estimates; AIS is off by "
            f"{comparison['forward_error']:+.4f} ({comparison['forward_sigmas']:+.1f} standard "
            f"errors), reverse AIS by {comparison['reverse_error']:+.4f} "
            f"({comparison['reverse_sigmas']:+.1f}).\n"
        )
    for warning in evaluation["warnings"]:
        text += f"\n**Warning:** {warning}.\n"
    if "chains" in model:
        text += _chains(model["chains"])
    return text


def _log_partition_rows(evaluation: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    log_z = evaluation["log_partition"]
    rows = []
    for side, words in (("forward", "from below (AIS)"), ("reverse", "from above (reverse AIS)")):
        s = log_z["bracket"][side]
        how = s["settings"]
        start = f", started from: {how['start']}" if "start" in how else ""
        rows.append(
            (
                f"log Z {words}",
                f"{s['value']:.3f} ± {s['std_error']:.3f}",
                _interval(s["lower"], s["upper"]),
                f"{how['num_chains']} chains x {how['num_temperatures']} temperatures, "
                f"{how['schedule']} schedule, base: {how['base']}, seed {how['seed']}, ESS "
                f"{s['ess']:.0f}{start}; {how['seconds']:.1f} s",
            )
        )
    if log_z["exact"] is not None:
        exact = log_z["exact"]
        how_exact = f"sum over {exact['num_states']} states; {exact['seconds']:.1f} s"
        rows.append(("log Z exact", f"{exact['value']:.4f}", "exact", how_exact))
    return rows


def _chains(chains: dict[str, Any]) -> str:
    text = (
        f"\n{chains['num_chains']} chains of block Gibbs, {chains['num_draws']} draws of "
        f"{chains['thin']} sweeps each after {chains['warmup']} draws of warm-up, seed "
        f"{chains['seed']}, {chains['seconds']:.1f} s (`chains.nc`); ArviZ's rank-normalised "
        "diagnostics:\n\n| | R-hat | ESS bulk | ESS tail |\n| --- | ---: | ---: | ---: |\n"
    )
    for key, name in (("energy", "free energy"), ("v", "pixels, the worst")):
        if key in chains:
            c = chains[key]
            numbers = f"{c['r_hat_max']:.3f} | {c['ess_bulk_min']:.0f} | {c['ess_tail_min']:.0f}"
            text += f"| {name} | {numbers} |\n"
    if unmixed(chains):
        text += (
            "\nR-hat is above 1.01: the chains have not forgotten their starts yet, so that averages "
            "over them, and pictures of samples, depend on where they began.\n"
        )
    if chains["constant_units"]:
        text += f"\n{chains['constant_units']} pixels never changed and are left out.\n"
    return text


def _completion(result: dict[str, Any]) -> str:
    settings = result["settings"]
    text = (
        f"## Completion\n\nThe lower half ({result['num_pixels']} pixels) of "
        f"{settings['num_images']} test images given the upper half, by block Gibbs over the clamped "
        f"larger model: {settings['num_chains']} chains an image, {settings['num_sweeps']} sweeps after "
        f"{settings['warmup']} of warm-up, seed {settings['seed']}, {result['seconds']:.1f} s. The "
        "log-probability is that of every missing bit by itself under its estimated marginal.\n\n"
        "| | log-probability per pixel | squared error per pixel |\n| --- | ---: | ---: |\n"
    )
    names = {"model": "model", "baseline": "training pixel means", "gain": "difference (paired)"}
    for key, name in names.items():
        cells = [
            f"{result[key][metric]['value']:.4f} ± {result[key][metric]['std_error']:.4f}"
            for metric in ("log_prob_per_pixel", "squared_error")
        ]
        text += f"| {name} | {' | '.join(cells)} |\n"
    return text + "\n± is one standard error over images.\n"


def _conditions(report: dict[str, Any]) -> str:
    hardware = report["hardware"]
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    rows = {
        "hardware": f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} torch "
        f"threads, {hardware['device']}",
        "versions": versions,
        "commit": report["commit"] or "not run from a checkout",
        "seed": str(report["seed"]),
    }
    return "## Conditions\n\n" + "".join(f"- {name}: {value}\n" for name, value in rows.items())


def _interval(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}"
