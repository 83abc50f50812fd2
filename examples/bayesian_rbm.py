# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The posterior over all parameters of a small RBM, without ever computing its log Z.

Few images of digits, each reduced to 3 x 3 bits, train an RBM with two hidden spins. Its weights, its biases
and the scale of its weights are latent variables of a Pyro program. The posterior is found by

1. the exchange algorithm, which draws auxiliary images and needs no log Z,
2. NUTS with the exact log Z, by enumeration, as the reference,
3. NUTS on the density without log Z, which is what one gets by forgetting it.

The posterior predictive distribution is compared with point estimates on held-out images: maximum
likelihood, and the mode given the scale.

    python examples/bayesian_rbm.py --output runs/bayesian_rbm
    python examples/bayesian_rbm.py --rows 200 --hidden 3
    python examples/bayesian_rbm.py --smoke
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_median
from torch import Tensor

from pyro_ebm import datasets
from pyro_ebm.diagnostics import summarize_chains
from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer import Exchange, VectorizedMCMC, exact_log_partition

#: Mean and standard deviation of the prior of the logarithm of the weights' scale: 0.26 to 1.9.
SCALE = (-0.35, 0.5)
#: Standard deviation of the prior of a bias.
BIAS_SCALE = 2.0
SMOKE = {
    "rows": 40,
    "held_out": 400,
    "side": 2,
    "hidden": 1,
    "chains": 10,
    "draws": 40,
    "warmup": 100,
    "steps": 5,
    "nuts_draws": 25,
    "nuts_warmup": 10,
    "nuts_chains": 2,
    "optimizer_steps": 200,
}


# --- data and model -------------------------------------------------------------------------------


def small_images(num_rows: int, num_held_out: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Digits averaged over side x side fields, each on where it has more ink than in the mean of the rows to
    learn from.

    :returns: the rows to learn from and the held-out ones, float64, shape ``(rows, side * side)``.
    """
    digits = datasets.load("digits")
    images = torch.cat([digits.train(), digits.test()])
    fields = torch.nn.functional.adaptive_avg_pool2d(images.reshape(-1, 1, 8, 8), side)
    fields = fields.reshape(len(images), -1).double()
    order = torch.randperm(len(fields), generator=torch.Generator().manual_seed(seed))
    fields = fields[order]
    bits = (fields > fields[:num_rows].mean(0)).double()
    return bits[:num_rows], bits[num_rows : num_rows + num_held_out]


def make_machine(weight: Tensor, bias: Tensor) -> RBM:
    """Bits beside spins; a field on the spins would only shift the biases of the bits."""
    hidden = units.Ising(torch.zeros(weight.shape[-1]).to(weight))
    return RBM(units.Bernoulli(bias), hidden, weight)


def prior(data: Tensor, num_hidden: int) -> RBM:
    """A machine for the data whose parameters are draws of their priors."""
    num_visible = data.shape[-1]
    # A prior that keeps away from 0, where a random walk would be stuck among tiny weights.
    scale = pyro.sample("scale", dist.LogNormal(data.new_tensor(SCALE[0]), SCALE[1]))
    weights = dist.Normal(data.new_zeros(num_visible, num_hidden), scale[..., None, None])
    weight = pyro.sample("weight", weights.to_event(2))
    biases = dist.Normal(data.new_zeros(num_visible), BIAS_SCALE)
    bias = pyro.sample("bias", biases.to_event(1))
    return make_machine(weight, bias)


def model(data: Tensor, num_hidden: int, exact: bool = False) -> None:
    """Rows of a machine of unknown parameters; with ``exact``, its log Z is part of the density."""
    machine = prior(data, num_hidden)
    if exact:
        machine = machine.normalize(exact_log_partition(machine))
    with pyro.plate("rows", data.shape[-2]):
        pyro.sample("v", machine, obs=data)


def forgotten(data: Tensor, num_hidden: int) -> None:
    """The same without log Z, as a bare factor: at a sample site the package refuses it under NUTS."""
    pyro.factor("v", -prior(data, num_hidden).free_energy(data).sum())


# --- samplers -------------------------------------------------------------------------------------


def run_exchange(data: Tensor, options: argparse.Namespace) -> tuple[dict[str, Tensor], Any]:
    """Draws of many chains in one tensor, by site, shape ``(chains, draws, ...)``."""
    pyro.set_rng_seed(options.seed)
    kernel = Exchange(
        model, num_bridges=options.bridges, num_steps=options.steps, init_strategy=init_to_median
    )
    mcmc = VectorizedMCMC(
        kernel, options.draws, options.warmup, options.chains, disable_progbar=True
    )
    mcmc.run(data, options.hidden)
    rates = mcmc.diagnostics()["acceptance rate"]["chain 0"]
    print(f"exchange: acceptance rates {float(rates.min()):.2f} to {float(rates.max()):.2f}")
    return mcmc.get_samples(group_by_chain=True), mcmc


def run_nuts(data: Tensor, options: argparse.Namespace, right: bool = True) -> dict[str, Tensor]:
    """Draws of NUTS by site, with the exact log Z or, wrongly, without any."""
    chains = []
    for chain in range(options.nuts_chains):
        pyro.set_rng_seed(options.seed + 1000 * (chain + 1))
        program = model if right else forgotten
        # Without log Z the density is all but flat in scale: deep trees would find nothing more.
        kernel = NUTS(program, max_tree_depth=6, init_strategy=init_to_median)
        mcmc = MCMC(kernel, options.nuts_draws, options.nuts_warmup, disable_progbar=True)
        arguments = (data, options.hidden, True) if right else (data, options.hidden)
        mcmc.run(*arguments)
        chains.append(mcmc.get_samples())
    return {name: torch.stack([c[name] for c in chains]) for name in chains[0]}


# --- what the posterior says ----------------------------------------------------------------------


@torch.no_grad()
def log_probabilities(draws: dict[str, Tensor], rows: Tensor) -> Tensor:
    """Log-probabilities of rows under the machines of draws, shape ``rows + chains and draws``."""
    machine = make_machine(draws["weight"], draws["bias"])
    lifted = rows.reshape(len(rows), *(1,) * len(machine.batch_shape), rows.shape[-1])
    return -machine.free_energy(lifted) - exact_log_partition(machine)


@torch.no_grad()
def functions(draws: dict[str, Tensor]) -> dict[str, Tensor]:
    """Numbers that do not depend on how hidden spins are ordered or signed, shape of the chains and draws.

    The scale, log Z, how often each field is on, and the correlations of the fields.
    """
    machine = make_machine(draws["weight"], draws["bias"])
    states = machine.visible.states(0, 2 ** machine.event_shape[0])
    p = log_probabilities(draws, states).exp()
    numbers = {"scale": draws["scale"], "log Z": exact_log_partition(machine)}
    means = torch.einsum("s...,si->...i", p, states)
    second = torch.einsum("s...,si,sj->...ij", p, states, states)
    covariance = second - means[..., :, None] * means[..., None, :]
    deviation = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    correlation = covariance / (deviation[..., :, None] * deviation[..., None, :])
    size = states.shape[-1]
    numbers |= {f"p[{i}]": means[..., i] for i in range(size)}
    for i in range(size):
        numbers |= {f"r[{i},{j}]": correlation[..., i, j] for j in range(i + 1, size)}
    return numbers


def thinned(draws: dict[str, Tensor], most: int) -> dict[str, Tensor]:
    """Evenly spaced draws, at most so many of every chain."""
    length = next(iter(draws.values())).shape[1]
    keep = torch.linspace(0, length - 1, min(length, most)).long()
    return {name: value[:, keep] for name, value in draws.items()}


def point_estimate(
    data: Tensor, options: argparse.Namespace, prior: bool
) -> tuple[dict[str, Tensor], float]:
    """Maximum likelihood, or with the priors the posterior mode given the scale at its prior median; from one
    start, by exact gradients.

    :returns: the parameters, and the largest element of the last gradient (of a sum over rows): how near they
        are to a stationary point.
    """
    generator = torch.Generator().manual_seed(options.seed)
    shape = (data.shape[1], options.hidden)
    weight = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    parameters = [weight.requires_grad_(), data.new_zeros(shape[0]).requires_grad_()]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(options.optimizer_steps):
        optimizer.zero_grad()
        machine = make_machine(*parameters)
        loss = machine.free_energy(data).sum() + len(data) * exact_log_partition(machine)
        if prior:
            loss = loss + 0.5 * (parameters[0] / math.exp(SCALE[0])).square().sum()
            loss = loss + 0.5 * (parameters[1] / BIAS_SCALE).square().sum()
        loss.backward()
        optimizer.step()
    slope = max(float(p.grad.abs().max()) for p in parameters if p.grad is not None)
    return {"weight": parameters[0].detach(), "bias": parameters[1].detach()}, slope


def score(log_p: Tensor) -> dict[str, float]:
    """Mean log-probability of held-out rows with its standard error over the rows."""
    return {"mean": float(log_p.mean()), "error": float(log_p.std()) / math.sqrt(len(log_p))}


def held_out_scores(
    draws: dict[str, Tensor], data: Tensor, held_out: Tensor, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Held-out log-probabilities of the posterior predictive distribution and of single machines."""
    flat = {name: value.flatten(0, 1) for name, value in draws.items()}
    log_p = log_probabilities(flat, held_out)
    predictive = log_p.logsumexp(1) - math.log(log_p.shape[1])
    results = {"posterior predictive": predictive}
    slopes = {}
    for name, prior in (("mode given the scale", True), ("maximum likelihood", False)):
        machine, slopes[name] = point_estimate(data, options, prior)
        results[name] = log_probabilities(machine, held_out)
    own = {name: score(value) for name, value in results.items()}
    for name, slope in slopes.items():
        own[name]["last_gradient"] = slope
        # The rows are the same, so that their differences are what is uncertain.
        own[name]["difference"] = score(predictive - results[name])["mean"]
        own[name]["difference_error"] = score(predictive - results[name])["error"]
    return own


@torch.no_grad()
def replicated_counts(draws: dict[str, Tensor], num_rows: int) -> Tensor:
    """Posterior predictive check: shares of rows with 0, 1, ... fields on, one data set for every draw."""
    flat = {name: value.flatten(0, 1) for name, value in draws.items()}
    machine = make_machine(flat["weight"], flat["bias"])
    return shares(machine.sample((num_rows,)))


def shares(rows: Tensor) -> Tensor:
    """Shares of rows with 0, 1, ..., V units on, from rows of shape ``(rows, ..., V)``."""
    number = rows.sum(-1)
    values = torch.arange(rows.shape[-1] + 1).to(rows)
    return torch.stack([(number == value).double().mean(0) for value in values], -1)


def compare(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Any]:
    """Largest difference of means of two samplers in Monte Carlo standard errors, and of deviations."""
    rows = [summarize_chains(numbers).rows for numbers in (first, second)]
    errors = {}
    for name, own in rows[0].items():
        other = rows[1][name]
        errors[name] = abs(own.mean - other.mean) / math.hypot(own.mcse, other.mcse)
    worst = max(errors, key=errors.__getitem__)
    ratios = [own.std / rows[1][name].std for name, own in rows[0].items()]
    return {
        "worst": worst,
        "worst_in_mcse": errors[worst],
        "least_ess": [min(row.ess_bulk for row in r.values()) for r in rows],
        "largest_r_hat": [max(row.r_hat for row in r.values()) for r in rows],
        "std_ratio": [min(ratios), max(ratios)],
    }


# --- the program ----------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """All samplers and scores.

    :returns: what goes into the report, and what the pictures are made of.
    """
    data, held_out = small_images(options.rows, options.held_out, options.side, options.seed)
    draws, seconds = {}, {}
    for name, sample in (
        ("exchange", lambda: run_exchange(data, options)[0]),
        ("NUTS, exact log Z", lambda: run_nuts(data, options)),
        ("NUTS without log Z", lambda: run_nuts(data, options, right=False)),
    ):
        started = time.process_time()
        draws[name] = thinned(sample(), options.keep)
        seconds[name] = time.process_time() - started
        print(f"{name}: {seconds[name]:.0f} CPU seconds")
    numbers = {name: functions(own) for name, own in draws.items()}
    shown = {k: v for k, v in numbers["exchange"].items() if k[0] != "r"}
    print(summarize_chains(shown))
    results: dict[str, Any] = {
        "settings": {k: v for k, v in vars(options).items() if k != "output"},
        "cpu_seconds": seconds,
        "exchange_and_nuts": compare(numbers["exchange"], numbers["NUTS, exact log Z"]),
        "held_out": held_out_scores(draws["exchange"], data, held_out, options),
        "scale": {
            name: [float(own["scale"].mean()), float(own["scale"].std())]
            for name, own in numbers.items()
        },
    }
    describe(results)
    return results, {"data": data, "draws": draws, "numbers": numbers}


def describe(results: dict[str, Any]) -> None:
    """The numbers of the report in words."""
    own = results["exchange_and_nuts"]
    print(
        f"exchange against NUTS: largest difference of means {own['worst_in_mcse']:.1f} Monte Carlo "
        f"standard errors ({own['worst']}); smallest ESS {own['least_ess'][0]:.0f} and "
        f"{own['least_ess'][1]:.0f}"
    )
    for name, (mean, std) in results["scale"].items():
        print(f"scale of the weights, {name}: {mean:.2f} +- {std:.2f}")
    for name, values in results["held_out"].items():
        print(
            f"held-out images, {name}: {values['mean']:.3f} +- {values['error']:.3f} nats an image"
        )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=60, help="images to learn from")
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--side", type=int, default=3, help="fields of an image are side x side")
    parser.add_argument("--hidden", type=int, default=2)
    parser.add_argument("--chains", type=int, default=16, help="of exchange, in one tensor")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=400)
    parser.add_argument("--steps", type=int, default=15, help="exchange transitions a draw")
    parser.add_argument("--bridges", type=int, default=0)
    parser.add_argument("--nuts-chains", type=int, default=3)
    parser.add_argument("--nuts-draws", type=int, default=300)
    parser.add_argument("--nuts-warmup", type=int, default=150)
    parser.add_argument("--keep", type=int, default=300, help="draws of a chain that are looked at")
    parser.add_argument("--optimizer-steps", type=int, default=2000, help="of point estimates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/bayesian_rbm"))
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args(arguments)
    if options.smoke:
        for name, value in SMOKE.items():
            setattr(options, name, value)
    return options


def main(options: argparse.Namespace) -> None:
    """Run, report, draw."""
    from bayesian_rbm_pictures import posteriors, predictive_check

    from pyro_ebm import plotting

    results, parts = run(options)
    options.output.mkdir(parents=True, exist_ok=True)
    plotting.save(posteriors(parts["numbers"]), options.output / "posteriors.png")
    counts = replicated_counts(thinned(parts["draws"]["exchange"], 50), options.rows)
    figure = predictive_check(shares(parts["data"]), counts)
    plotting.save(figure, options.output / "predictive.png")
    (options.output / "report.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main(parse())
