# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Error of the estimators of a guide's gradient where the latent bits have a machine as their prior.

``python -m benchmarks.gradient_variance``: an RBM of 8 bits, seen through noise, and a guide of independent
bits. All 256 states are enumerated, so that the error of every estimator is known: its bias (0 where chance
explains it), and the standard deviation of one gradient with the same number of particles, both
of a row, over all of its bits.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceGraph_ELBO
from torch import Tensor

from pyro_ebm.distributions import BernoulliRBM, ConcreteBernoulli, relaxed
from pyro_ebm.infer import ContrastiveDivergence, LeaveOneOutELBO, exact_log_partition

__all__ = ["Errors", "Problem", "measure"]

NUM_BITS, NUM_HIDDEN, NUM_SEEN, NUM_ROWS, NOISE = 8, 4, 12, 10, 0.7
#: Gradients in which a decaying average finds its level before it is measured.
_WARM_UP = 50


class Problem:
    """The prior, what the bits are seen through, rows drawn from the model, and the exact gradient."""

    def __init__(self, seed: int) -> None:
        pyro.set_rng_seed(seed)
        self.prior = BernoulliRBM(
            torch.randn(NUM_BITS, NUM_HIDDEN),
            0.5 * torch.randn(NUM_BITS),
            0.5 * torch.randn(NUM_HIDDEN),
        )
        self.loading = torch.randn(NUM_BITS, NUM_SEEN) / NUM_BITS**0.5
        self.x = self.seen(self.prior.sample((NUM_ROWS,))).sample()
        self.states = self.prior.enumerate_support()

    def seen(self, z: Tensor) -> Any:
        return dist.Normal(z @ self.loading, NOISE).to_event(1)

    def objective(self, logits: Tensor) -> Tensor:
        """Minus the bound, summed over rows."""
        states = self.states.unsqueeze(1)
        log_p = self.prior.log_prob(states) - exact_log_partition(self.prior)
        log_q = dist.Bernoulli(logits=logits).to_event(1).log_prob(states)
        return -(log_q.exp() * (log_p + self.seen(states).log_prob(self.x) - log_q)).sum()

    def gradient(self, logits: Tensor) -> Tensor:
        logits = logits.clone().requires_grad_()
        return torch.autograd.grad(self.objective(logits), logits)[0]

    def fitted(self, steps: int) -> Tensor:
        """Logits after some exact steps from 0."""
        logits = torch.zeros(NUM_ROWS, NUM_BITS, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            self.objective(logits).backward()
            optimizer.step()
        return logits.detach()


@dataclass(frozen=True)
class Errors:
    """Roots of the mean, over rows, of the squared length of bias and deviation."""

    bias: float
    deviation: float


@dataclass(frozen=True)
class Estimator:
    """How a gradient is estimated: the ELBO, its draws, whether the value of log Z is known."""

    elbo: Callable[[int], ELBO]
    bits: Callable[[Tensor], Any] = lambda logits: dist.Bernoulli(logits=logits)
    is_relaxed: bool = False
    knows_log_z: bool = False
    baseline: bool = False


def _trace(particles: int) -> ELBO:
    return Trace_ELBO(particles, 2, None, True)


def _graph(particles: int) -> ELBO:
    return TraceGraph_ELBO(particles, 2, None, True)


def _concrete(temperature: float, hard: bool = False) -> Estimator:
    return Estimator(_trace, lambda logits: ConcreteBernoulli(temperature, logits, hard), True)


ESTIMATORS = {
    "Trace_ELBO": Estimator(_trace),
    "Trace_ELBO, log Z known": Estimator(_trace, knows_log_z=True),
    "TraceGraph_ELBO, decaying average": Estimator(_graph, baseline=True),
    "LeaveOneOutELBO": Estimator(lambda particles: LeaveOneOutELBO(particles, 2)),
    "ConcreteBernoulli(1.0)": _concrete(1.0),
    "ConcreteBernoulli(0.3)": _concrete(0.3),
    "ConcreteBernoulli(0.1)": _concrete(0.1),
    "ConcreteBernoulli(1.0, hard)": _concrete(1.0, hard=True),
}


def measure(
    problem: Problem, estimator: Estimator, logits: Tensor, *, particles: int, copies: int
) -> Errors:
    """Bias and standard deviation of a gradient, from copies of every row with parameters of their own."""
    pyro.clear_param_store()
    prior = relaxed(problem.prior) if estimator.is_relaxed else problem.prior
    start = logits.unsqueeze(1).repeat(1, copies, 1)
    infer: Any = {"baseline": {"use_decaying_avg_baseline": True}} if estimator.baseline else {}

    def model() -> None:
        with pyro.plate("copies", copies), pyro.plate("rows", NUM_ROWS, dim=-2):
            z = pyro.sample("z", prior)
            pyro.sample("x", problem.seen(z), obs=problem.x.unsqueeze(1))

    def guide() -> None:
        own = pyro.param("logits", start)
        with pyro.plate("copies", copies), pyro.plate("rows", NUM_ROWS, dim=-2):
            pyro.sample("z", estimator.bits(own).to_event(1), infer=infer)

    log_partition = exact_log_partition if estimator.knows_log_z else None
    loss = ContrastiveDivergence(log_partition=log_partition, elbo=estimator.elbo(particles))
    for _ in range(_WARM_UP if estimator.baseline else 0):
        loss.loss_and_grads(model, guide)
    own = dict(pyro.get_param_store().named_parameters()).get("logits")
    if own is not None:
        own.grad = None
    loss.loss_and_grads(model, guide)
    gradients: Any = dict(pyro.get_param_store().named_parameters())["logits"].grad
    variance = gradients.var(1).sum(-1).mean()
    off = (gradients.mean(1) - problem.gradient(logits)).square().sum(-1).mean()
    by_chance = variance / copies
    bias = (off - by_chance).sqrt().item() if bool(off > 2.0 * by_chance) else 0.0
    return Errors(bias, variance.sqrt().item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--copies", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=300, help="exact steps of the fitted guide")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    problem = Problem(options.seed)
    places = {"at the start": problem.fitted(0), "fitted": problem.fitted(options.steps)}
    for place, logits in places.items():
        length = problem.gradient(logits).square().sum(-1).mean().sqrt().item()
        print(f"{place}: gradient {length:.2f}, {options.particles} particles")
        for name, estimator in ESTIMATORS.items():
            errors = measure(
                problem,
                estimator,
                logits,
                particles=options.particles,
                copies=options.copies,
            )
            print(f"  {name:36s} bias {errors.bias:6.2f}  deviation {errors.deviation:6.2f}")


if __name__ == "__main__":
    main()
