# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The demo: two models trained, evaluated, sampled and drawn, with a report."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from pyro_ebm import nn, plotting
from pyro_ebm.cli.completion import CompletionOptions, complete, describe_completion, upper_half
from pyro_ebm.cli.data import DataOptions
from pyro_ebm.cli.evaluation import AISOptions, describe_evaluation, evaluate
from pyro_ebm.cli.pictures import draw_completions, draw_energy, draw_filters, draw_samples
from pyro_ebm.cli.report import git_commit, markdown
from pyro_ebm.cli.run_folder import RunFolder, hardware, versions, write_text
from pyro_ebm.cli.sampling import (
    ChainOptions,
    describe_diagnostics,
    diagnose,
    run_chains,
    write_chains,
)
from pyro_ebm.cli.training import describe_training, start_run, train
from pyro_ebm.datasets import Dataset
from pyro_ebm.training import TrainerConfig

__all__ = ["PLANS", "Plan", "run_demo"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of a demo.

    :param int hidden: hidden units of the larger model; the smaller one has 16.
    :param int validation: training images held out.
    :param TrainerConfig training: how the larger model is trained.
    :param TrainerConfig small_training: how the smaller one is.
    :param AISOptions ais: how log Z is estimated.
    :param ChainOptions chains: chains of the larger model.
    :param CompletionOptions completion: completions by the larger model.
    """

    hidden: int
    validation: int
    training: TrainerConfig
    small_training: TrainerConfig
    ais: AISOptions
    chains: ChainOptions
    completion: CompletionOptions

    def quick(self) -> "Plan":
        """The same in seconds, to see that it runs."""
        epochs: dict[str, Any] = {"num_epochs": 3, "checkpoint_every": 1}
        return replace(
            self,
            hidden=min(self.hidden, 32),
            training=replace(self.training, **epochs),
            small_training=replace(self.small_training, **epochs),
            ais=replace(self.ais, num_temperatures=300),
            chains=replace(self.chains, num_draws=40, warmup=10, thin=2),
            completion=replace(self.completion, num_images=50, warmup=10, num_sweeps=10),
        )


_DIGITS = TrainerConfig(
    num_epochs=300,
    batch_size=50,
    learning_rate=1.0,
    learning_rate_schedule="linear",
    persistent=True,
    binarize=True,
    checkpoint_every=50,
)
_MNIST = TrainerConfig(
    num_epochs=15,
    batch_size=100,
    # With 0.1 likelihoods by AIS look better, but the chains of the model all end in zeros.
    learning_rate=0.05,
    learning_rate_schedule="linear",
    persistent=True,
    binarize=True,
)
PLANS = {
    "digits": Plan(
        hidden=100,
        validation=137,
        training=_DIGITS,
        small_training=replace(_DIGITS, num_epochs=200),
        ais=AISOptions(num_temperatures=2000),
        chains=ChainOptions(),
        completion=CompletionOptions(),
    ),
    "mnist": Plan(
        hidden=500,
        validation=5000,
        training=_MNIST,
        small_training=replace(_MNIST, num_epochs=5, learning_rate=0.1),
        ais=AISOptions(num_temperatures=5000, schedule="adaptive"),
        chains=ChainOptions(num_draws=300, thin=20),
        completion=CompletionOptions(num_images=500),
    ),
}
PLANS["fashion-mnist"] = PLANS["mnist"]


def run_demo(
    name: str,
    output: str,
    *,
    seed: int = 0,
    quick: bool = False,
    root: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run the demo into a folder.

    The folder is the run folder of the larger model; that of the 16-unit model is inside.

    :param name: a name of :data:`PLANS`.
    :param output: the folder; files of an earlier run in it are replaced.
    :returns: the report.
    """
    started = time.perf_counter()
    plan = PLANS[name].quick() if quick else PLANS[name]
    run, small = RunFolder(output), RunFolder(Path(output) / "hidden16")
    small.clear()
    run.clear(keep=("hidden16",))
    options = DataOptions(name=name, validation=plan.validation, root=root)
    data = options.load(progress=progress)
    click.secho(f"{name}: {len(data.train_images)} training images, {len(data.test_images)} test")

    large_model = _Model(run, plan.hidden, plan.training, options, data, seed, progress)
    small_model = _Model(small, 16, plan.small_training, options, data, seed, progress)
    models = {
        f"{plan.hidden} hidden units": large_model.train_and_evaluate(plan.ais),
        "16 hidden units": small_model.train_and_evaluate(plan.ais),
    }
    compared = models["16 hidden units"]
    compared["exact_comparison"] = compare_with_exact(compared["evaluation"]["log_partition"])
    click.echo(_describe_comparison(compared["exact_comparison"]))

    module = large_model.module
    _title(f"{plan.chains.num_chains} chains of block Gibbs")
    chains = run_chains(module, replace(plan.chains, seed=seed), progress=progress)
    write_chains(chains, run.file("chains.nc"))
    diagnostics = diagnose(chains)
    models[f"{plan.hidden} hidden units"]["chains"] = diagnostics
    click.echo(describe_diagnostics(diagnostics))

    _title("Lower halves of test images, given the upper halves")
    test = options.rows(data, "test")
    completion = complete(
        module,
        test,
        options.rows(data, "train"),
        upper_half(data.image_shape),
        replace(plan.completion, seed=seed),
    )
    run.write_json("completions.json", completion.result)
    click.echo(describe_completion(completion.result))

    draw_samples(module, chains, options, data, run.file("samples.png"))
    draw_energy(module, chains, options, data, run.file("energy.png"))
    draw_filters(module, data, run.file("filters.png"))
    draw_completions(completion, test, data.labels("test"), data, run.file("completions.png"))
    figure = plotting.history(run.read_json("history.json"))
    plotting.save(figure, run.file("history.png"))

    flags = f" --seed {seed}" * bool(seed) + " --quick" * quick
    report = {
        "data": name,
        "command": f"pyro-ebm demo --data {name} --output {output}{flags}",
        "seed": seed,
        "models": models,
        "completion": completion.result,
        "hardware": hardware(),
        "versions": versions(),
        "commit": git_commit(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    run.write_json("report.json", report)
    write_text(run.file("report.md"), markdown(report))
    _title("Done")
    click.echo(f"{report['seconds']:.0f} s; read {run.file('report.md')}, look at {run}/*.png")
    return report


class _Model:
    """One model of the demo in its run folder."""

    def __init__(
        self,
        run: RunFolder,
        hidden: int,
        training: TrainerConfig,
        options: DataOptions,
        data: Dataset,
        seed: int,
        progress: bool,
    ) -> None:
        self.run, self.hidden, self.options, self.data = run, hidden, options, data
        self.training = replace(training, seed=seed)
        self.seed, self.progress = seed, progress

    def train_and_evaluate(self, ais: AISOptions) -> dict[str, Any]:
        """The entry of the report."""
        _title(f"RBM with {self.hidden} hidden units")
        started = time.perf_counter()
        start_run(self.run, self.options, self._model(), self.training)
        trainer = train(self.run, progress=self.progress)
        seconds = round(time.perf_counter() - started, 3)
        click.echo(describe_training(self.run, trainer, started))
        assert isinstance(trainer.module, nn.RBM)
        self.module = trainer.module
        ais = replace(ais, seed=self.seed)
        evaluation = evaluate(self.module, self.options, self.data, ais, progress=self.progress)
        self.run.write_json("evaluation.json", evaluation)
        click.echo(describe_evaluation(evaluation))
        c = self.training
        return {
            "description": f"A centred Bernoulli RBM of {self.data.num_pixels} visible and "
            f"{self.hidden} hidden units, trained by persistent contrastive divergence on "
            f"{len(self.data.train_images)} images whose bits are drawn anew at every visit.",
            "train_command": self.train_command(),
            "training": {
                "epochs": c.num_epochs,
                "seconds": seconds,
                "last": trainer.history[-1],
            },
            "evaluation": evaluation,
            "ais": asdict(ais),
        }

    def _model(self) -> dict[str, Any]:
        kinds = {"visible": "bernoulli", "hidden": "bernoulli"}
        return {"num_hidden": self.hidden, **kinds, "centered": True, "seed": self.seed}

    def train_command(self) -> str:
        """The command that trains the same model."""
        c = self.training
        return (
            f"pyro-ebm train {self.options.name} --output {self.run} --hidden {self.hidden} "
            f"--epochs {c.num_epochs} --batch-size {c.batch_size} --learning-rate "
            f"{c.learning_rate} --steps {c.num_steps} --weight-decay {c.weight_decay} "
            f"--validation {self.options.validation} --seed {self.seed}"
        )


def compare_with_exact(log_partition: dict[str, Any]) -> dict[str, Any]:
    """How far the two estimates are from the exact log Z."""
    exact, bracket = log_partition["exact"]["value"], log_partition["bracket"]
    result: dict[str, Any] = {"inside_bracket": bracket["lower"] <= exact <= bracket["upper"]}
    for side in ("forward", "reverse"):
        error = bracket[side]["value"] - exact
        deviation = max(bracket[side]["std_error"], 1e-12)
        result |= {f"{side}_error": error, f"{side}_sigmas": error / deviation}
    return result


def _describe_comparison(comparison: dict[str, Any]) -> str:
    where = "inside" if comparison["inside_bracket"] else "outside of"
    return (
        f"the exact log Z is {where} the 95 % interval of the two estimates: AIS is off by\n"
        f"{comparison['forward_error']:+.4f} ({comparison['forward_sigmas']:+.1f} standard errors), "
        f"reverse AIS by {comparison['reverse_error']:+.4f} ({comparison['reverse_sigmas']:+.1f})"
    )


def _title(text: str) -> None:
    click.secho(f"\n{text}\n{'-' * len(text)}", bold=True)
