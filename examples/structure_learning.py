# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Which spins are coupled? An RBM as the prior of the graph of an Ising or Potts model.

Edges are bits with a prior, couplings are edges times strengths (a spike and a slab), and spins are observed.
The prior is either independent edges or an RBM that was trained on other graphs of the family, and so knows
what they look like: lattices of unknown width, or stars around hubs. Both have about the same rates of edges.
Data sets are rows of one plate: a program learns all graphs at once, by Gibbs with gradients for the edges
and NUTS for the strengths in turns. L1-penalised neighbourhood selection is the usual alternative.

    python examples/structure_learning.py --output runs/structure
    python examples/structure_learning.py --family hubs --hidden 12
    python examples/structure_learning.py --states 3 --spins 8
    python examples/structure_learning.py --pixels --output runs/structure-pixels
    python examples/structure_learning.py --smoke

With ``--pixels`` the spins are pixels of scikit-learn's digits, the graphs those of neighbours in an image
whose width nobody tells.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from graph_families import FAMILIES, edge_rates, fit_priors, lattice
from potts_models import ExactLikelihood, PseudoLikelihood, can_enumerate, sample
from pyro.infer import MCMC, NUTS
from structure_pictures import picture_of_graphs, picture_of_scores
from structure_scores import edge_scores, neighbourhood_selection, over_sets
from torch import Generator, Tensor

from pyro_ebm import datasets, plotting
from pyro_ebm.diagnostics import ChainSummary, summarize_chains
from pyro_ebm.distributions import RBM
from pyro_ebm.infer import Gibbs, GibbsWithGradients

#: Couplings of an edge, K = 2 J, and the scale of the prior of strengths.
WEAKEST, STRONGEST, SLAB = 0.5, 1.2, 1.0
#: Size of the part of the digits whose pixels are the spins, and its upper left corner.
PATCH, CORNER = (4, 6), (2, 1)
SMOKE = {
    "spins": 8,
    "graphs": 1500,
    "hidden": 5,
    "epochs": 15,
    "sets": 3,
    "sizes": [50],
    "draws": 30,
    "warmup": 20,
    "chains": 1,
    "moves": 8,
}


# --- the program ----------------------------------------------------------------------------------


def model(prior: RBM, likelihood: ExactLikelihood | PseudoLikelihood) -> None:
    """Graphs, strengths and spins of several data sets.

    :param RBM prior: of the bits of all pairs.
    :param likelihood: the log-density of the spins as a function of couplings.
    """
    num_pairs = prior.event_shape[0]
    with pyro.plate("sets", likelihood.num_sets):
        edges = pyro.sample("edges", prior)
        strengths = pyro.sample("strengths", dist.Normal(0.0, SLAB).expand([num_pairs]).to_event(1))
        bias = None
        if likelihood.num_biases:
            scale = dist.Normal(0.0, 2.0).expand([likelihood.num_biases]).to_event(1)
            bias = pyro.sample("bias", scale)
        pyro.factor("spins", likelihood(edges * strengths, bias))


# --- inference ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Posterior:
    """Draws of the graphs.

    :param Tensor probability: of every edge, shape ``(sets, pairs)``.
    :param Tensor coupling: posterior mean of K, shape ``(sets, pairs)``.
    :param bias: posterior mean of biases in the last chain, by the name of the site; empty if there are none.
    :param Tensor log_density: mean over draws of the log-density of graph and spins (up to a constant of the
        prior) of every chain, shape ``(chains, sets)``: of the pattern that the chain is in.
    :param ChainSummary summary: R-hat and effective sample sizes of the number of edges and of the
        log-density by data set.
    """

    probability: Tensor
    coupling: Tensor
    bias: dict[str, Tensor]
    log_density: Tensor
    summary: ChainSummary


def make_kernel(moves: int) -> Gibbs:
    """A change of a few edges, then all strengths. The likelihood couples the edges of a spin, so that block
    Gibbs is not exact; proposals are informed by the gradient, and corrected."""
    return Gibbs(
        [(GibbsWithGradients(model, moves), ["edges"]), (NUTS(model, max_tree_depth=5), None)]
    )


def infer(
    prior: RBM,
    likelihood: ExactLikelihood | PseudoLikelihood,
    options: Any,
    weaker: Posterior | None = None,
) -> Posterior:
    """Posterior of the graphs of all data sets.

    :param weaker: the posterior under another prior, which tells where chains start; None for anywhere.
    """
    edges, coupling, log_density = [], [], []
    bias: dict[str, Tensor] = {}
    started = time.perf_counter()
    for chain in range(options.chains):
        pyro.set_rng_seed(options.seed + 1000 * chain)
        mcmc = MCMC(
            make_kernel(options.moves),
            options.draws,
            options.warmup,
            initial_params=None if weaker is None else starting_point(prior, weaker),
            disable_progbar=True,
        )
        mcmc.run(prior, likelihood)
        draws = mcmc.get_samples()
        edges.append(draws["edges"])
        coupling.append((draws["edges"] * draws["strengths"]).mean(0))
        bias = {"bias": draws["bias"].mean(0)} if likelihood.num_biases else {}
        log_density.append(log_densities(prior, likelihood, draws))
    graphs, density = torch.stack(edges), torch.stack(log_density)
    numbers = {f"edges[{k}]": graphs[:, :, k].sum(-1) for k in range(graphs.shape[2])}
    numbers |= {f"log density[{k}]": density[:, :, k] for k in range(graphs.shape[2])}
    return Posterior(
        graphs.mean((0, 1)),
        torch.stack(coupling).mean(0),
        bias,
        density.mean(1),
        summarize_chains(numbers, seconds=time.perf_counter() - started),
    )


@torch.no_grad()
def log_densities(
    prior: RBM, likelihood: ExactLikelihood | PseudoLikelihood, draws: dict[str, Tensor]
) -> Tensor:
    """Of graph and spins given the strengths, up to a constant of the prior, shape ``(draws, sets)``."""
    couplings = draws["edges"] * draws["strengths"]
    biases = draws.get("bias", [None] * len(couplings))
    # One after the other: of all draws together, the fields of the spins would be large.
    spins = [likelihood(k, bias) for k, bias in zip(couplings, biases, strict=True)]
    return prior.log_prob(draws["edges"]) + torch.stack(spins)


@torch.no_grad()
def starting_point(prior: RBM, weaker: Posterior, num_draws: int = 500) -> dict[str, Tensor]:
    """Of many draws of the prior, the graph of every data set that agrees best with the edges that were found
    without it: between two patterns of the prior there is next to no mass, and a chain from anywhere
    stays in the first pattern that it meets.

    Agreement is the log-odds of the edges, as if what the data say of each were independent.
    """
    graphs = prior.sample((num_draws,))
    # Where an edge was hardly ever there, nothing is known of its strength.
    strengths = weaker.coupling / weaker.probability.clamp(0.1, 0.99)
    edges = graphs[agreements(graphs, weaker.probability).argmax(-1)]
    return {"edges": edges, "strengths": strengths, **weaker.bias}


def agreements(graphs: Tensor, probability: Tensor) -> Tensor:
    """Log-odds of graphs by what the data say of each edge, shape ``(sets, graphs)``.

    :param Tensor graphs: draws of the prior, shape ``(graphs, pairs)``.
    :param Tensor probability: of edges under the weaker prior, shape ``(sets, pairs)``.
    """
    evidence = probability.clamp(0.01, 0.99).logit() - graphs.mean(0).clamp(0.01, 0.99).logit()
    return evidence @ graphs.mT


@torch.no_grad()
def runner_up(prior: RBM, weaker: Posterior, num_draws: int = 500) -> Tensor:
    """By how many nats the best of many draws of the prior agrees better with the edges that were found
    without it than the best one of another pattern (that shares less than half of all their edges).

    All chains start in the best pattern and stay there, so that their agreement says nothing about others:
    where this is small, another one may hold mass that no chain has seen. Infinite if there is no other.

    :returns: shape ``(sets,)``.
    """
    graphs = prior.sample((num_draws,))
    score = agreements(graphs, weaker.probability)
    top, best = score.max(-1)
    shared = graphs[best] @ graphs.mT
    union = graphs[best].sum(-1, keepdim=True) + graphs.sum(-1) - shared
    return top - score.masked_fill(shared >= 0.5 * union, -torch.inf).max(-1).values


# --- the comparison -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Spins whose graph is known.

    :param Tensor graphs: the edges, shape ``(sets, pairs)``.
    :param Tensor spins: states, shape ``(sets, n, p)``.
    :param int num_states: q.
    :param bool biases: whether spins have biases.
    """

    graphs: Tensor
    spins: Tensor
    num_states: int
    biases: bool = False


def simulated(options: Any) -> Problem:
    """Graphs of the family, couplings of either sign, and draws of the spins."""
    generator = Generator().manual_seed(options.seed + 1)
    graphs = FAMILIES[options.family](options.sets, options.spins, generator)
    strength = torch.empty(graphs.shape).uniform_(WEAKEST, STRONGEST, generator=generator)
    if can_enumerate(options.spins, options.states):
        strength = strength * (2.0 * torch.randint(2, graphs.shape, generator=generator) - 1.0)
    spins = [
        sample(k, options.spins, options.states, max(options.sizes), generator)
        for k in graphs * strength
    ]
    return Problem(graphs, torch.stack(spins), options.states)


def pixels(options: Any) -> Problem:
    """Pixels of a part of scikit-learn's digits, every data set of other images. The true edges are those
    between neighbours."""
    data = datasets.load("digits")
    images = torch.cat([data.binarized(split, threshold=0.5) for split in ("train", "test")])
    (height, width), (top, left) = PATCH, CORNER
    patches = images.unflatten(1, (8, 8))[:, top : top + height, left : left + width].flatten(1)
    order = torch.randperm(len(patches), generator=Generator().manual_seed(options.seed + 1))
    count = max(options.sizes)
    if options.sets * count > len(patches):
        raise SystemExit(f"there are {len(patches)} images, not {options.sets} sets of {count}")
    spins = patches[order[: options.sets * count]].long().unflatten(0, (options.sets, count))
    graph = lattice(height * width, width).to(torch.get_default_dtype())
    return Problem(graph.expand(options.sets, -1), spins, 2, biases=True)


def make_likelihood(problem: Problem, size: int, kind: str) -> ExactLikelihood | PseudoLikelihood:
    """The likelihood of the first rows of every data set."""
    spins = problem.spins[:, :size]
    exact = can_enumerate(spins.shape[-1], problem.num_states) and not problem.biases
    if kind == "exact" and not exact:
        raise SystemExit("--likelihood exact needs few spins, and none of biases")
    if exact and kind != "pseudo":
        return ExactLikelihood(spins, problem.num_states)
    return PseudoLikelihood(spins, problem.num_states, problem.biases)


def compare(problem: Problem, priors: dict[str, RBM], size: int, options: Any) -> dict[str, Any]:
    """Edges by all methods from the first rows of every data set. The RBM's chains start where the
    posterior of independent edges tells them to."""
    likelihood = make_likelihood(problem, size, options.likelihood)
    results: dict[str, Any] = {}
    found: Posterior | None = None
    for name, prior in priors.items():
        weaker, found = found, infer(prior, likelihood, options, found)
        scores = [
            edge_scores(p, p > 0.5, g)
            for p, g in zip(found.probability, problem.graphs, strict=True)
        ]
        results[name] = over_sets(scores) | {
            "by_set": scores,
            "chains": found.summary.to_dict(),
            "log_density": found.log_density.tolist(),
            "probability": found.probability.tolist(),
        }
        if weaker is not None:
            nats = runner_up(prior, weaker).tolist()
            results[name]["runner_up"] = [x if math.isfinite(x) else None for x in nats]
    scores = []
    for x, graph in zip(problem.spins[:, :size], problem.graphs, strict=True):
        found_by_l1 = neighbourhood_selection(x, problem.num_states, intercept=problem.biases)
        scores.append(edge_scores(*found_by_l1, graph))
    results["L1"] = over_sets(scores) | {"by_set": scores}
    for name, x in results.items():
        text = f"{size:6} rows, {name:18} AUC {x['auc']:.3f} +- {x['auc_std_error']:.3f}"
        print(f"{text}, F1 {x['f1']:.3f} +- {x['f1_std_error']:.3f}", flush=True)
    return results


def run(options: Any) -> dict[str, Any]:
    """All sizes, a table and pictures."""
    problem = pixels(options) if options.pixels else simulated(options)
    family = "rasters" if options.pixels else options.family
    priors, fits = fit_priors(family, problem.spins.shape[-1], options)
    for name, value in fits.items():
        print(f"prior of {name}: {value:.2f} nats a graph on new graphs of the family")
    report: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "priors": fits,
        "edge_rates": {name: edge_rates(prior).tolist() for name, prior in priors.items()},
        "sizes": {n: compare(problem, priors, n, options) for n in options.sizes},
    }
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "report.json").write_text(json.dumps(report) + "\n")
        for name, figure in figures(report, problem).items():
            plotting.save(figure, options.output / f"{name}.png")
    return report


def figures(report: dict[str, Any], problem: Problem) -> dict[str, Any]:
    """Scores against the number of rows, and the first graph with its posteriors at the fewest rows."""
    few = next(iter(report["sizes"].values()))
    panels = {"truth": problem.graphs[0]}
    for name in report["priors"]:
        panels[name] = torch.tensor(few[name]["probability"][0])
    num_spins = problem.spins.shape[-1]
    return {
        "scores": picture_of_scores(report["sizes"]),
        "graph": picture_of_graphs(panels, num_spins),
    }


def parse(arguments: list[str] | None = None) -> Any:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--family", default="rasters", choices=list(FAMILIES))
    parser.add_argument("--pixels", action="store_true", help="pixels of the digits are the spins")
    parser.add_argument("--spins", type=int, default=12)
    parser.add_argument("--states", type=int, default=2, help="2 for an Ising model")
    parser.add_argument("--likelihood", default="auto", choices=["auto", "exact", "pseudo"])
    parser.add_argument("--sets", type=int, default=10, help="data sets, each of its own graph")
    parser.add_argument("--sizes", type=int, nargs="+", default=[40, 100, 250], help="rows of each")
    parser.add_argument(
        "--graphs", type=int, default=5000, help="graphs that the priors learn from"
    )
    parser.add_argument("--hidden", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--moves", type=int, default=20, help="proposed changes of edges a draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a folder for the report and the pictures")
    parser.add_argument("--smoke", action="store_true", help="seconds, of eight spins")
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(SMOKE)
    return options


if __name__ == "__main__":
    run(parse())
