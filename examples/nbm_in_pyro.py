# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A neural Boltzmann machine as the likelihood of a Pyro model: which x made this y?

A machine p(y | x) is trained on a simulator and then used backwards: x is latent with a normal prior. The
machine's log Z(x) depends on x, so that it must be part of the likelihood; with a few hidden units it is
exact, and differentiable. The posterior of x is found

1. by SVI with a normal guide,
2. by NUTS,
3. by NUTS for x and block Gibbs for y_missing in turns, where a part of y was not measured,

and each is compared with quadrature over x, which is exact to many digits here.

    python examples/nbm_in_pyro.py
    python examples/nbm_in_pyro.py --visible bernoulli
    python examples/nbm_in_pyro.py --smoke
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_median
from pyro.optim import ClippedAdam
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.diagnostics import ChainSummary, summarize_chains
from pyro_ebm.distributions import RBM
from pyro_ebm.infer import BlockGibbs, Gibbs, MetropolisBlockGibbs, exact_log_partition
from pyro_ebm.infer.missing import impute, observed_log_likelihood
from pyro_ebm.plotting.figures import COLOURS, new_figure, plain, save
from pyro_ebm.training import Trainer, TrainerConfig

#: Quadrature over x, far beyond the prior's mass.
GRID = torch.linspace(-6.0, 6.0, 2401, dtype=torch.float64)
#: Entries of y that were not measured in the third part.
MISSING = {"gaussian": [1, 3], "bernoulli": [1, 3, 5, 7]}
#: The Kolmogorov-Smirnov statistic of n independent draws exceeds this over the root of n in 5 % of cases.
KS_LIMIT = 1.358


def simulate(x: Tensor, visible: str, generator: Generator) -> Tensor:
    """y given x: four numbers, or eight bits made of them by thresholds. A coin that is not observed
    couples the last two numbers, so that they tell x only together."""
    noise = torch.randn(4, len(x), generator=generator)
    coin = 2.0 * torch.randint(2, (len(x),), generator=generator) - 1.0
    x = x[:, 0]
    y = torch.stack(
        [
            0.5 * x + 0.5 * noise[0],
            0.5 * x.square() - 0.5 + 0.4 * noise[1],
            coin + 0.3 * noise[2],
            0.8 * coin * x + 0.3 * noise[3],
        ],
        -1,
    )
    if visible == "gaussian":
        return y
    return torch.cat([y > -0.4, y > 0.4], -1).to(x)


def train(options: argparse.Namespace) -> nn.NeuralBoltzmannMachine:
    """The machine, by the gradient of its exact log Z; x from a wider law than the prior."""
    generator = Generator().manual_seed(options.seed)
    x = 1.5 * torch.randn(options.rows, 1, generator=generator)
    y = simulate(x, options.visible, generator)
    nbm = nn.NeuralBoltzmannMachine(
        1,
        y.shape[1],
        options.hidden,
        options.visible,
        hidden_sizes=options.sizes,
        seed=options.seed,
    )
    nbm.init_from_data(y, x, seed=options.seed)
    config = TrainerConfig(
        num_epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        learning_rate_schedule="cosine",
        optimizer="adam",
        negative_phase="exact",
        seed=options.seed,
        progress=False,
    )
    Trainer(nbm, config).fit(y, context=x)
    return nbm


def make_model(
    nbm: nn.NeuralBoltzmannMachine, y: Tensor, observed: Tensor | None = None
) -> Callable[[], None]:
    """The Pyro model of rows y, each with an x of its own.

    :param Tensor observed: boolean, shape ``(V,)``; what was measured. None for all.
    """

    def model() -> None:
        with pyro.plate("rows", len(y)):
            x = pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            # The machine is known: its parameters are not SVI's to train.
            with poutine.block(hide_types=["param"]):
                machine = nbm.condition(x, validate_args=False)
            log_z = exact_log_partition(machine)
            if observed is None:
                pyro.sample("y", machine.normalize(log_z), obs=y)
            else:
                # Clamping keeps constants, so that with log Z of all units this is p(y | x).
                pyro.sample("missing", machine.clamp(observed, y).normalize(log_z))

    return model


# --- the reference ------------------------------------------------------------------------------


class Quadrature:
    """The posterior of x by the trapezium rule, row by row.

    :param Tensor observed: boolean, shape ``(V,)``.
    """

    @torch.no_grad()
    def __init__(self, nbm: nn.NeuralBoltzmannMachine, y: Tensor, observed: Tensor) -> None:
        self.machine: RBM = nbm.condition(GRID.to(y.dtype).unsqueeze(-1)).to(dtype=torch.float64)
        self.rows, self.observed = y.double(), observed
        step = (GRID[1] - GRID[0]).item()
        log_joint = dist.Normal(0.0, 1.0).log_prob(GRID) + torch.stack(
            [observed_log_likelihood(self.machine, row, observed).value for row in self.rows]
        )
        #: log p(y_observed), shape ``(rows,)``.
        self.log_evidence = torch.logsumexp(log_joint, -1) + math.log(step)
        #: Density of x on the grid, shape ``(rows, points)``.
        self.density = (log_joint - self.log_evidence.unsqueeze(-1)).exp()
        self._mass = self.density * step
        self.mean = (self._mass * GRID).sum(-1)
        self.std = ((self._mass * GRID.square()).sum(-1) - self.mean.square()).sqrt()
        # At the middle of its cell a point has half of the cell's mass to its left.
        self.cdf = self._mass.cumsum(-1) - 0.5 * self._mass

    def missing_mean(self) -> Tensor:
        """E[y_missing | y_observed], shape ``(rows, missing)``."""
        means = [impute(self.machine, row, self.observed).mean for row in self.rows]
        weighted = torch.stack(means) * self._mass.unsqueeze(-1)
        return weighted.sum(-2)[:, ~self.observed]

    def distance(self, draws: Tensor) -> Tensor:
        """Kolmogorov-Smirnov statistic of draws, shape ``(draws, rows)``, by row."""
        ordered = draws.double().T.contiguous().sort(-1).values
        position = ((ordered - GRID[0]) / (GRID[1] - GRID[0])).clamp(0, len(GRID) - 1.001)
        left, part = position.long(), position.frac()
        low, high = (self.cdf.gather(-1, left + i) for i in (0, 1))
        expected = low + part * (high - low)
        n = ordered.shape[-1]
        after = torch.arange(1, n + 1, dtype=torch.float64) / n
        return torch.maximum((after - expected).abs(), (after - 1 / n - expected).abs()).amax(-1)


# --- the three ways -----------------------------------------------------------------------------


def run_svi(model: Callable[[], None], options: argparse.Namespace) -> dict[str, Any]:
    """A normal guide. The gap between evidence and ELBO is its Kullback-Leibler divergence."""
    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    guide = AutoNormal(model, init_scale=0.3)
    steps = options.svi_steps
    optimizer = ClippedAdam({"lr": 0.05, "lrd": 0.02 ** (1.0 / steps)})
    elbo = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, optimizer, loss=elbo)
    for _ in range(steps):
        svi.step()
    many = Trace_ELBO(num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        value = -many.loss(model, guide)
    low, middle = guide.quantiles([0.158655, 0.5])["x"]
    return {"mean": middle[:, 0].detach(), "std": (middle - low)[:, 0].detach(), "elbo": value}


def hamiltonian(model: Callable[[], None]) -> NUTS:
    """NUTS from the middle of the prior, since far starts may lie near modes of next to no mass."""
    return NUTS(model, max_tree_depth=5, init_strategy=init_to_median)


def run_mcmc(
    make_kernel: Callable[[], Any], options: argparse.Namespace
) -> tuple[dict[str, Tensor], ChainSummary]:
    """Draws by site, shape ``(chains, draws, ...)``, and what ArviZ thinks of them."""
    chains = []
    # One after the other: in processes of their own they would need a model that can be pickled.
    for chain in range(options.chains):
        pyro.set_rng_seed(options.seed + 1000 * chain)
        mcmc = MCMC(make_kernel(), options.draws, options.warmup, disable_progbar=True)
        mcmc.run()
        chains.append(mcmc.get_samples())
    draws = {name: torch.stack([c[name] for c in chains]) for name in chains[0]}
    return draws, summarize_chains(
        {f"x[{k}]": draws["x"][..., k, 0] for k in range(draws["x"].shape[2])}
    )


def compare(
    name: str, mean: Tensor, std: Tensor, exact: Quadrature, distance: Tensor
) -> dict[str, Any]:
    """Print and return the differences to quadrature."""
    result = {
        "mean_error": (mean - exact.mean).abs().max().item(),
        "relative_std_error": (std / exact.std - 1.0).abs().max().item(),
        "ks": distance.tolist(),
    }
    print(
        f"{name}: largest error of a mean {result['mean_error']:.3f}, of a standard deviation "
        f"{100 * result['relative_std_error']:.1f} %, KS {min(result['ks']):.3f} to "
        f"{max(result['ks']):.3f}"
    )
    return result


def compare_draws(name: str, x: Tensor, exact: Quadrature, summary: ChainSummary) -> dict[str, Any]:
    """The same for chains, with their diagnostics."""
    print(f"\n{summary}")
    flat = x.flatten(0, 1)[..., 0].double()
    ess = min(row.ess_bulk for row in summary.rows.values())
    result = compare(name, flat.mean(0), flat.std(0), exact, exact.distance(flat))
    result["ks_limit"] = KS_LIMIT / math.sqrt(ess)
    worst = (flat.mean(0) - exact.mean).abs() / torch.tensor(
        [row.mcse for row in summary.rows.values()]
    )
    result["mean_error_in_mcse"] = worst.max().item()
    print(
        f"{name}: largest error of a mean {result['mean_error_in_mcse']:.1f} of its Monte Carlo standard "
        f"errors; 5 % limit of KS at the smallest ESS {result['ks_limit']:.3f}"
    )
    return result | summary.to_dict()


def picture(panels: list[tuple[str, Quadrature, dict[str, Tensor]]], path: Path) -> None:
    """Posterior densities, a line a panel: quadrature, draws as histograms, densities as lines."""
    count = len(panels[0][1].mean)
    figure = new_figure(2.4 * count, 2.2 * len(panels))
    axes = figure.subplots(len(panels), count, squeeze=False, sharex=True)
    for line, (title, exact, others) in enumerate(panels):
        for row, ax in enumerate(axes[line]):
            for name, values in others.items():
                if values.shape[-1] == len(GRID):
                    ax.plot(GRID, values[row], "--", color=COLOURS[1], linewidth=1.4, label=name)
                else:
                    bins = torch.linspace(-3.5, 3.5, 61).tolist()
                    ax.hist(values[:, row], bins, density=True, color=COLOURS[5], label=name)
            ax.plot(GRID, exact.density[row], color=COLOURS[6], linewidth=1.0, label="quadrature")
            ax.set_xlim(-3.5, 3.5)
            # Room for the legend.
            ax.set_ylim(0.0, 1.4 * ax.get_ylim()[1])
            ax.set_yticks([])
            plain(ax)
            ax.spines["left"].set_visible(False)
        axes[line, 0].set_ylabel(title, fontsize=9)
        axes[line, -1].legend(fontsize=7, frameon=False, loc="upper left")
    for row, ax in enumerate(axes[0]):
        ax.set_title(f"row {row + 1}", fontsize=10)
    for ax in axes[-1]:
        ax.set_xlabel("x", fontsize=9)
    save(figure, path)


def main(options: argparse.Namespace) -> None:
    """Train, infer in three ways, compare."""
    nbm = train(options)
    generator = Generator().manual_seed(options.seed + 1)
    x = torch.linspace(-1.6, 1.6, options.given).unsqueeze(-1)
    y = simulate(x, options.visible, generator)
    everything = torch.ones(y.shape[1], dtype=torch.bool)
    complete = Quadrature(nbm, y, everything)
    results: dict[str, Any] = {
        "settings": {k: v for k, v in vars(options).items() if k != "output"}
    }
    panels: list[tuple[str, Quadrature, dict[str, Tensor]]] = [("all of y", complete, {})]
    print(f"quadrature: means {_text(complete.mean)}, standard deviations {_text(complete.std)}")
    full = make_model(nbm, y)
    if "svi" in options.parts:
        results["svi"] = svi_part(full, complete, panels, options)
    if "nuts" in options.parts:
        draws, summary = run_mcmc(lambda: hamiltonian(full), options)
        results["nuts"] = compare_draws("NUTS", draws["x"], complete, summary)
        panels[0][2]["NUTS"] = draws["x"][..., 0].flatten(0, 1)
    if "compound" in options.parts:
        results["compound"] = compound_part(nbm, y, panels, options)
    picture([panel for panel in panels if panel[2]], options.output / f"{options.visible}.png")
    text = json.dumps(results, indent=1)
    (options.output / f"{options.visible}.json").write_text(text + "\n")
    print(f"\nwrote {options.output}")


def svi_part(
    model: Callable[[], None], exact: Quadrature, panels: list[Any], options: argparse.Namespace
) -> dict[str, Any]:
    """The normal guide against quadrature."""
    svi = run_svi(model, options)
    evidence = exact.log_evidence.sum().item()
    print(f"\nlog evidence {evidence:.3f}, ELBO {svi['elbo']:.3f}")
    normal = dist.Normal(svi["mean"].unsqueeze(-1), svi["std"].unsqueeze(-1))
    panels[0][2]["SVI, normal guide"] = normal.log_prob(GRID).exp()
    off = (normal.cdf(GRID) - exact.cdf).abs().amax(-1)
    gap = {"gap": evidence - svi["elbo"]}
    return gap | compare("SVI", svi["mean"], svi["std"], exact, off)


def compound_part(
    nbm: nn.NeuralBoltzmannMachine, y: Tensor, panels: list[Any], options: argparse.Namespace
) -> dict[str, Any]:
    """NUTS for x and block Gibbs for what was not measured, against quadrature."""
    observed = torch.ones(y.shape[1], dtype=torch.bool)
    observed[MISSING[options.visible]] = False
    partial = Quadrature(nbm, y, observed)
    print(f"\na part of y, quadrature: means {_text(partial.mean)}")
    model = make_model(nbm, y, observed)
    # Real units need the kernel with a Metropolis step, of which nothing is rejected here.
    block = MetropolisBlockGibbs if options.visible == "gaussian" else BlockGibbs

    def compound() -> Gibbs:
        return Gibbs([(block(model, options.sweeps), ["missing"]), (hamiltonian(model), ["x"])])

    draws, summary = run_mcmc(compound, options)
    result = compare_draws("NUTS and block Gibbs", draws["x"], partial, summary)
    error = draws["missing"].flatten(0, 1).mean(0) - partial.missing_mean()
    result["missing_mean_error"] = error.abs().max().item()
    print(f"largest error of a mean of the missing entries: {result['missing_mean_error']:.3f}")
    drawn = {"NUTS and block Gibbs": draws["x"][..., 0].flatten(0, 1)}
    panels.append(("a part of y", partial, drawn))
    return result


def _text(values: Tensor) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in values) + "]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--visible", choices=list(MISSING), default="gaussian", help="units of y")
    parts = ["svi", "nuts", "compound"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--hidden", type=int, default=6, help="hidden spins, at most 16 or so")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32], help="layers of the networks")
    parser.add_argument("--rows", type=int, default=3000, help="of the simulator, for training")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--given", type=int, default=4, help="rows y whose x is asked for")
    parser.add_argument("--svi-steps", type=int, default=500)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=150, help="of every chain")
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--sweeps", type=int, default=3, help="of block Gibbs by draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/nbm_in_pyro"))
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rows, arguments.epochs, arguments.hidden, arguments.given = 600, 5, 3, 2
        arguments.svi_steps, arguments.chains, arguments.draws, arguments.warmup = 30, 2, 15, 15
    main(arguments)
