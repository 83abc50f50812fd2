# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A model with a machine as the prior of three bits, its guide, and their bound by enumeration."""

import itertools
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM, BernoulliRBM, units
from pyro_ebm.infer import exact_log_partition

STATES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)
#: Rows of the data, and the noise that the bits are seen through.
X = torch.tensor([[0.5, 1.0], [-1.0, 0.2], [2.1, -0.4]], dtype=torch.float64)
NOISE = 0.7


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 100 * sum(shape))
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


#: Where the parameters are: of the prior, of the likelihood ("loading") and of the guide ("logits").
START = {
    "weight": normal(3, 2),
    "bias": normal(3),
    "top": normal(2, 2, scale=0.7),
    "loading": normal(3, 2),
    "logits": normal(3, 3),
}


def rbm(p: dict[str, Tensor]) -> RBM:
    return BernoulliRBM(p["weight"], p["bias"], torch.zeros(2, dtype=torch.float64))


def dbm(p: dict[str, Tensor]) -> DBM:
    layers = [units.Bernoulli(b) for b in (p["bias"], p["bias"][:2], -p["bias"][1:])]
    return DBM(layers, [p["weight"], p["top"]], mean_field_tolerance=1e-10)


def param(name: str) -> Tensor:
    """The parameter of the store; a copy, since the store makes a leaf of what it is given."""
    return pyro.param(name, START[name].clone())


Machine = Callable[[dict[str, Tensor]], RBM | DBM]


def likelihood(p: dict[str, Tensor], z: Tensor) -> dist.TorchDistribution:
    return dist.Normal(z @ p["loading"], NOISE).to_event(1)


def log_guide(logits: Tensor) -> Tensor:
    """log q of all states, shape ``(8, rows)``."""
    return dist.Bernoulli(logits=logits).log_prob(STATES.unsqueeze(1)).sum(-1)


def exact_gradient(make: Machine, log_q: Callable[..., Tensor] | None = None) -> dict[str, Tensor]:
    """Of minus the bound by all parameters that take part.

    :param log_q: log-probabilities of all states and rows from the parameters; independent bits if None.
    """
    p = {name: value.clone().requires_grad_() for name, value in START.items()}
    machine = make(p)
    log_prior = -machine.free_energy(STATES) - exact_log_partition(machine)
    log_p = log_prior.unsqueeze(1) + likelihood(p, STATES.unsqueeze(1)).log_prob(X)
    guide = log_guide(p["logits"]) if log_q is None else log_q(p)
    objective = -(guide.exp() * (log_p - guide)).sum()
    found = torch.autograd.grad(objective, list(p.values()), allow_unused=True)
    return {name: g for name, g in zip(p, found, strict=True) if g is not None}


def program(
    make: Machine,
    copies: int = 1,
    baseline: dict[str, object] | None = None,
    of_prior: dict[str, object] | None = None,
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Model and guide, with every row of the data as often as is said.

    :param baseline: options of the guide's site for ``TraceGraph_ELBO``.
    :param of_prior: the ``infer`` dictionary of the model's site.
    """
    x = X.repeat(copies, 1)
    infer = {} if baseline is None else {"baseline": baseline}

    def model() -> None:
        p = {name: param(name) for name in START if name != "logits"}
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", make(p), infer=dict(of_prior or {}))
            pyro.sample("x", likelihood(p, z), obs=x)

    def guide() -> None:
        logits = param("logits").repeat(copies, 1)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1), infer=infer)

    return model, guide


def gradient(loss, model, guide) -> dict[str, Tensor]:
    """Of one run of a loss, by the parameters in the store that had one."""
    loss.loss_and_grads(model, guide)
    named = dict(pyro.get_param_store().named_parameters())
    found = {name: value.grad.clone() for name, value in named.items() if value.grad is not None}
    for value in named.values():
        value.grad = None
    return found


def largest_z(draws: list[dict[str, Tensor]], expected: dict[str, Tensor]) -> float:
    """Standard errors between the mean of gradients and what is expected, the largest one."""
    worst = 0.0
    for name, value in expected.items():
        stack = torch.stack([draw[name] for draw in draws])
        error = stack.std(0) / math.sqrt(len(stack))
        z = (stack.mean(0) - value).abs() / error.clamp(min=1e-9)
        worst = max(worst, z.max().item())
    return worst
