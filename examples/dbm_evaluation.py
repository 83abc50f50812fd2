# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What deep Boltzmann machines of images are measured by: log Z from both sides, the mean-field bound of test
images and, where the machine is small, their exact likelihood."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.distributions import DBM
from pyro_ebm.infer import bracket_log_partition, exact_log_partition

#: With at most this many units on one of the two sides log Z is summed exactly.
MAX_EXACT_UNITS = 20
#: The same for the hidden layers given an image, of which there is a sum for each.
MAX_EXACT_POSTERIOR = 12
#: Rows of the mean field at a time, and training images that the base of AIS looks at.
CHUNK, BASE_ROWS = 1000, 5000


def evaluate(
    machine: DBM, test: Mapping[str, Tensor], train: Tensor, options: Any
) -> dict[str, Any]:
    """log Z, and bounds of the log-likelihood of test images.

    :param DBM machine: the machine, without gradients.
    :param test: rows by name, among them "binarised".
    :param train: training images.
    """
    bounds = {name: mean_field_bound(machine, rows) for name, rows in test.items()}
    report: dict[str, Any] = {"rows": len(test["binarised"])}
    if min(sum(machine.sizes[0::2]), sum(machine.sizes[1::2])) <= MAX_EXACT_UNITS:
        both: Any = exact_log_partition(machine.bipartite())
        log_z = {"exact": both}
        report["log_partition"] = both.item()
    else:
        both = bracket = bracket_log_partition(
            machine.bipartite(),
            num_chains=options.ais_chains,
            num_temperatures=options.ais_temperatures,
            schedule=options.ais_schedule,
            base=even_means(machine, train[:BASE_ROWS]),
            seed=options.seed,
            progress=options.progress,
        )
        print(bracket)
        report["log_partition"] = bracket.to_dict()
        log_z = {"AIS": bracket.forward.value, "reverse AIS": bracket.reverse.value}
        log_z |= {"upper": bracket.upper, "lower": bracket.lower}
    report["bound"] = {name: summarize(found, log_z) for name, found in bounds.items()}
    for name, values in report["bound"].items():
        _print(name, values)
    if "exact" in log_z and sum(machine.sizes[1:]) <= 2 * MAX_EXACT_POSTERIOR:
        report["log_likelihood"] = exact_likelihood(machine, test["binarised"], log_z["exact"])
    if options.tight:
        rows = test["binarised"][: options.tight]
        report["tight"] = tight_likelihood(machine, rows, both, options)
        # By how much the bound of the same images is below.
        own = report["tight"]["density"] - bounds["binarised"]["bound"][: len(rows)].mean().item()
        report["tight"]["above_bound"] = own
        print(f"  the bound of the same images is {own:.3f} nats lower")
    return report


@torch.no_grad()
def mean_field_bound(machine: DBM, rows: Tensor) -> dict[str, Tensor]:
    """Bounds of the unnormalised log p*(v) of rows in float64, and how mean field went.

    Grey levels in the place of v, as others report them, are no state of the machine. As the energy is linear
    in v, their bound is also one of the mean of log p*(v) over images of bits with those
    rates, and a looser one than the mean of the bounds of the bits, as all of them share one q.
    """
    machine = machine.to(dtype=torch.float64)
    parts = [
        machine.mean_field(part.double(), max_updates=machine.max_mean_field_updates)
        for part in rows.split(CHUNK)
    ]
    return {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("bound", "residual", "converged", "num_updates")
    }


def even_means(machine: DBM, rows: Tensor) -> Tensor:
    """Means of the even layers beside data, where the base of AIS is: nearer than without data."""
    found = machine.mean_field(rows, max_updates=30, tolerance=1e-2)
    return machine.join_even([rows.mean(0), *(mean.mean(0) for mean in found.means[1::2])])


def summarize(found: Mapping[str, Tensor], log_z: Mapping[str, Tensor]) -> dict[str, Any]:
    """Mean bounds by log Z, with the standard error over rows, JSON types."""
    bound = found["bound"]
    values: dict[str, Any] = {
        "row_error": bound.std().item() / len(bound) ** 0.5,
        "updates": found["num_updates"].double().mean().item(),
        "most_updates": found["num_updates"].max().item(),
        "not_converged": int((~found["converged"]).sum()),
        "residual": found["residual"].max().item(),
    }
    values |= {
        side: bound.mean().item() - float(value)
        for side, value in log_z.items()
        if side not in ("upper", "lower")
    }
    if "upper" in log_z:
        values["interval"] = [bound.mean().item() - float(log_z[n]) for n in ("upper", "lower")]
    return values


def _print(name: str, values: Mapping[str, Any]) -> None:
    for side in ("exact", "AIS", "reverse AIS"):
        if side in values:
            print(
                f"bound of the test log-likelihood, {name}, log Z {side}: {values[side]:.3f} +- "
                f"{values['row_error']:.3f} (images) nats per image"
            )
    if "interval" in values:
        print("  interval of log Z: {:.2f} to {:.2f}".format(*values["interval"]))
    if values["not_converged"]:
        print(
            f"  mean field of {values['not_converged']} images still moves by up to "
            f"{values['residual']:.2g}"
        )


def exact_likelihood(machine: DBM, rows: Tensor, log_z: Tensor) -> dict[str, float]:
    """Mean exact log-likelihood of rows, by all states of hidden layers."""
    values = torch.cat(
        [exact_log_partition(machine.posterior(part).bipartite()) for part in rows.split(CHUNK)]
    )
    values = values - log_z
    error = values.std().item() / len(values) ** 0.5
    print(f"test log-likelihood, exact: {values.mean():.3f} +- {error:.3f} (images) nats per image")
    return {"value": values.mean().item(), "row_error": error}


def tight_likelihood(machine: DBM, rows: Tensor, log_z: Any, options: Any) -> dict[str, Any]:
    """Log-likelihood of rows by AIS from the mean field to the posterior of every row: still a bound, in
    expectation, but nearly without the slack of mean field."""
    from pyro_ebm.infer import deep_log_likelihood

    found = deep_log_likelihood(
        machine,
        rows,
        log_z,
        "ais",
        num_samples=options.tight_chains,
        num_temperatures=options.tight_temperatures,
        seed=options.seed,
        progress=options.progress,
    )
    names = ("value", "std_error", "density_error", "log_partition_error", "lower", "upper")
    values = {n: float(getattr(found, n)) for n in (*names, "optimistic", "pessimistic")}
    middle = float(log_z.value if hasattr(log_z, "value") else log_z)
    print(
        f"test log-likelihood by AIS of the hidden layers, {len(rows)} images: log Z from above "
        f"{values['pessimistic']:.3f}, from below {values['optimistic']:.3f} +- "
        f"{values['std_error']:.3f} (images) +- {values['density_error']:.3f} (hidden layers)"
    )
    return {"rows": len(rows), "density": values["value"] + middle, **values}
