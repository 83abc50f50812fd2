# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Programs whose parameters have a posterior that can be computed, and kernels that are wrong on purpose."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import PseudoMarginal, exact_log_partition
from pyro_ebm.infer.bayesian.auxiliary import bridge_log_weights

PATTERN = torch.tensor([[1.0, 0.5], [-1.0, 0.7], [0.6, -0.8]], dtype=torch.float64)


def machine(coupling: Tensor, bias: Tensor) -> RBM:
    """Three visible and two hidden bits with a coupling along a pattern and one bias, shapes ``(...)``."""
    weight = coupling[..., None, None] * PATTERN
    return BernoulliRBM(weight, bias[..., None].expand(*bias.shape, 3), torch.zeros(2).double())


def priors() -> tuple[Tensor, Tensor]:
    """A real coupling and a positive scale, whose logarithm is the bias."""
    zero, one = torch.zeros(()).double(), torch.ones(()).double()
    return pyro.sample("coupling", dist.Normal(zero, 1.5 * one)), pyro.sample(
        "scale", dist.LogNormal(zero, 0.7 * one)
    )


def program(data: Tensor, exact: bool = False) -> None:
    """Rows of a machine of unknown coupling and bias; data ``(..., N, 3)``."""
    coupling, scale = priors()
    rbm = machine(coupling, scale.log())
    if exact:
        rbm = rbm.normalize(exact_log_partition(rbm))
    with pyro.plate("rows", data.shape[-2]):
        pyro.sample("v", rbm, obs=data)


def joint_draws(num_chains: int, num_rows: int) -> tuple[dict[str, Tensor], Tensor]:
    """Exact draws of parameters and data: the prior, then the machine by enumeration."""
    coupling = 1.5 * torch.randn(num_chains).double()
    scale = (0.7 * torch.randn(num_chains).double()).exp()
    data = machine(coupling, scale.log()).sample((num_rows,)).movedim(0, 1)
    return {"coupling": coupling, "scale": scale}, data


def features(values: dict[str, Tensor], data: Tensor) -> Tensor:
    """Functions of parameters and data whose means a wrong transition changes, shape ``(chains, K)``."""
    theta = torch.stack([values["coupling"], values["scale"].log()], -1)
    rates = data.mean(-2)
    pairs = (data[..., [0, 0, 1]] * data[..., [1, 2, 2]]).mean(-2)
    statistics = torch.cat([torch.ones(len(rates), 1).double(), rates, pairs], -1)
    powers = torch.cat([theta, theta.square(), theta[:, :1] * theta[:, 1:]], -1)
    return (powers[:, :, None] * statistics[:, None, :]).flatten(1)


def worst_change(kernel: Any, num_steps: int, num_chains: int = 1500, num_rows: int = 6) -> float:
    """Largest change of the mean of a feature in standard errors, after transitions from exact joint draws.

    Parameters and data are a draw from their joint law and stay one, whatever the number of transitions,
    if the posterior is invariant; chains are independent, so that the errors are known.
    """
    values, data = joint_draws(num_chains, num_rows)
    kernel.chain_shape = Size((num_chains,))
    kernel.initial_params = values
    kernel.setup(0, data)
    if isinstance(kernel, PseudoMarginal):
        start_in_equilibrium(kernel)
    params = kernel.initial_params
    for _ in range(num_steps):
        params = kernel.sample(params)
    moved = (params["coupling"] != values["coupling"]).double().mean()
    assert moved > 0.5, "most chains must have moved, or the test sees nothing"
    kernel.cleanup()
    change = features(params, data) - features(values, data)
    return float((change.mean(0) / (change.std(0) / math.sqrt(num_chains))).abs().max())


def start_in_equilibrium(kernel: PseudoMarginal) -> None:
    """Draw the estimates of a chain in equilibrium, which are those of the kernel weighted by themselves.

    One annealing run of every row, weighted by its weight, is a run backwards from the reference, whose
    weight is the inverse; further ones are not weighted.
    """
    point, (anchor,) = kernel._point, kernel._anchor.values()
    assert point is not None
    (factor,) = point.factors.values()
    num_bridges, num_particles = kernel.num_bridges, kernel.num_particles
    back = anchor.machine.expand(factor.rows).sample((1,))
    runs = [-bridge_log_weights(anchor.machine, factor.machine, back, num_bridges)]
    if num_particles > 1:
        ahead = factor.machine.expand(factor.rows).sample((num_particles - 1,))
        runs.append(bridge_log_weights(factor.machine, anchor.machine, ahead, num_bridges))
    log_mean = torch.cat(runs).logsumexp(0) - math.log(num_particles)
    kernel._estimate = log_mean.sum(-1)


def quadrature(data: Tensor, with_z: bool = True) -> dict[str, tuple[float, float]]:
    """Mean and variance of the parameters given data ``(N, 3)``, on a grid."""
    coupling = torch.linspace(-9.0, 9.0, 301, dtype=torch.float64)
    log_scale = torch.linspace(-5.0, 4.0, 301, dtype=torch.float64)
    a, b = torch.meshgrid(coupling, log_scale, indexing="ij")
    rbm = machine(a, b)
    log_p = -rbm.free_energy(data[:, None, None]).sum(0) - a.square() / 4.5 - b.square() / 0.98
    if with_z:
        log_p = log_p - len(data) * exact_log_partition(rbm)
    p = torch.softmax(log_p.flatten(), 0).reshape(a.shape)
    result = {}
    for name, value in (("coupling", a), ("scale", b.exp())):
        mean = (p * value).sum()
        result[name] = float(mean), float((p * (value - mean).square()).sum())
    return result


def chain_z(draws: Tensor, expected: float, function: Callable[[Tensor], Tensor]) -> float:
    """Distance of a mean over independent chains (shape ``(chains, draws)``) from its value, in errors."""
    means = function(draws).mean(1)
    return float((means.mean() - expected).abs() / (means.std() / math.sqrt(len(means))))
