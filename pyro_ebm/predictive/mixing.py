# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Do chains forget where they started? R-hat of chains from two starts."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm.diagnostics import convergence_of
from pyro_ebm.diagnostics.convergence import MIN_DRAWS
from pyro_ebm.diagnostics.tables import decimals
from pyro_ebm.distributions import RBM
from pyro_ebm.predictive.estimates import finite_or_none
from pyro_ebm.predictive.hidden_chain import HiddenChain

__all__ = ["TwoStartRhat", "two_start_rhat"]

#: Draws of a chain that are kept at most; more say no more about R-hat.
_MAX_DRAWS = 250


@dataclass(frozen=True)
class TwoStartRhat:
    r"""Rank-normalised split :math:`\hat R` of chains from two starts, by element of a batch.

    :param Tensor free_energy: of the free energy of the hidden states, float64 on the CPU, shape
        ``batch_shape``; NaN where it never changed.
    :param Tensor worst_unit: of the hidden unit that has the largest one.
    :param Tensor unit: number of that unit.
    :param dict settings: how the chains were run.
    """

    free_energy: Tensor = field(repr=False)
    worst_unit: Tensor = field(repr=False)
    unit: Tensor = field(repr=False)
    settings: dict[str, Any]

    @property
    def largest(self) -> Tensor:
        """The larger of both, shape ``batch_shape``; below 1.01 nothing speaks against the chains."""
        return torch.fmax(self.free_energy, self.worst_unit)

    def to_dict(self) -> dict[str, Any]:
        """All numbers for a report, by element in the order of the flattened batch; JSON types only."""
        return {
            "free_energy": [finite_or_none(x) for x in self.free_energy.flatten().tolist()],
            "worst_unit": [finite_or_none(x) for x in self.worst_unit.flatten().tolist()],
            "unit": self.unit.flatten().tolist(),
            "settings": dict(self.settings),
        }

    def __str__(self) -> str:
        energy, unit = (x[~x.isnan()].tolist() for x in (self.free_energy, self.worst_unit))
        share = (self.largest > 1.1).double().mean().item()
        return (
            f"two-start R-hat after {self.settings['num_steps']} steps, {self.unit.numel()} machine(s): "
            f"free energy up to {decimals(max(energy, default=None), 3)}, worst unit up to "
            f"{decimals(max(unit, default=None), 3)}; above 1.1 in {share:.0%}"
        )


def two_start_rhat(
    dist: RBM,
    num_steps: int,
    *,
    num_chains: int = 4,
    data: Tensor | None = None,
    generator: Generator | None = None,
) -> TwoStartRhat:
    r"""Rank-normalised :math:`\hat R` of hidden chains that start in two very different ways.

    Half of the chains start from the hidden layer without its weights, the other half from data, or, if
    none are given, from the extreme states: every unit in its last state in one half of them and in its
    first state in the other. The first half of the steps is dropped. Chains that all
    start alike may agree because none has left; chains that started apart and agree have forgotten where
    [1]. It is the free energy and the worst hidden unit that must agree.

    Block Gibbs is the sampler, with a Gaussian visible layer summed out.

    **References**

    [1] *Inference from Iterative Simulation Using Multiple Sequences*, Andrew Gelman, Donald Rubin (1992)

    [2] *Rank-Normalization, Folding, and Localization: An Improved R-hat for Assessing Convergence of
    MCMC*, Aki Vehtari, Andrew Gelman, Daniel Simpson, Bob Carpenter, Paul-Christian Bürkner (2021)

    :param RBM dist: the machine, with any batch shape.
    :param int num_steps: sweeps of every chain, at least 16.
    :param int num_chains: chains of each start, at least 2.
    :param Tensor data: visible rows, shape ``(n, *batch, V)`` with n at least ``num_chains``, of which the
        first ones are taken.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :raises TypeError: if ``dist`` is no RBM.
    :raises ValueError: for impossible numbers, data that do not fit, or hidden units without extreme states
        and no data.

    >>> import torch
    >>> from pyro_ebm.distributions import RBM, units
    >>> visible = units.Gaussian(torch.zeros(2, 1), torch.ones(2, 1))
    >>> weight = torch.tensor([[[0.3, 0.3]], [[3.0, 3.0]]])  # the second machine has two modes
    >>> rbm = RBM(visible, units.Ising(torch.zeros(2)), weight)
    >>> two_start_rhat(rbm, 200).largest < 1.1
    tensor([ True, False])
    """
    if not isinstance(dist, RBM):
        raise TypeError(f"dist must be an RBM, got {type(dist).__name__}")
    if num_steps < 2 * MIN_DRAWS or num_chains < 2:
        raise ValueError(
            f"num_steps must be at least {2 * MIN_DRAWS} and num_chains at least 2, got {num_steps} "
            f"and {num_chains}"
        )
    chain = HiddenChain(dist, generator)
    other = _extremes(chain, num_chains) if data is None else _given(chain, data, num_chains)
    draws = _draws(chain, torch.cat([chain.prior(num_chains), other]), num_steps)
    energies = chain.free_energy(draws).double().reshape(*draws.shape[:2], -1)
    values = draws.double().reshape(*draws.shape[:2], -1, draws.shape[-1])
    unit = _between_over_within(values).argmax(-1)
    # Ranks change nothing for units of two states; the others are compared by their own values first.
    worst = values.gather(-1, unit.expand(*values.shape[:2], -1).unsqueeze(-1)).squeeze(-1)
    batch = chain.side.batch_shape
    settings = {
        "num_steps": num_steps,
        "num_chains": 2 * num_chains,
        "num_draws": draws.shape[1],
        "other_start": "extremes" if data is None else "data",
    }

    def full(x: Tensor) -> Tensor:
        return x.reshape(batch).expand(dist.batch_shape)

    return TwoStartRhat(full(_r_hats(energies)), full(_r_hats(worst)), full(unit.cpu()), settings)


def _extremes(chain: HiddenChain, num_chains: int) -> Tensor:
    """Every unit in its last state in the first half of the chains, in its first state in the rest."""
    shape = (num_chains, *chain.side.batch_shape, chain.side.visible.size)
    try:
        blocks = [
            part.unit_states()[[-1, 0]].repeat(1, part.num_units)
            for _, part in chain.side.visible.parts()
        ]
    except ValueError as error:
        raise ValueError("hidden units without extreme states need data to start from") from error
    index = (torch.arange(num_chains) >= (num_chains + 1) // 2).long()
    rows = torch.cat(blocks, -1)[index.to(chain.side.weight.device)]
    return rows.reshape(num_chains, *(1,) * (len(shape) - 2), -1).expand(shape)


def _given(chain: HiddenChain, data: Tensor, num_chains: int) -> Tensor:
    batch, size = chain.side.batch_shape, chain.side.hidden.size
    shape = (*batch, size)
    if data.dim() != len(shape) + 1 or data.shape[1:] != shape or len(data) < num_chains:
        raise ValueError(
            f"data must have shape (n >= {num_chains}, *{tuple(shape)}), got {tuple(data.shape)}"
        )
    if not bool(chain.side.hidden.support.check(data.to(chain.side.weight)).all()):
        raise ValueError(f"data must be in {chain.side.hidden.support}, got other values or NaN")
    return chain.given(data[:num_chains])


def _draws(chain: HiddenChain, h: Tensor, num_steps: int) -> Tensor:
    """States of the second half of the steps, evenly thinned, shape ``(chains, draws, *batch, H)``."""
    kept = num_steps // 2
    stride = -(-kept // _MAX_DRAWS)
    h = chain.run(h, num_steps - stride * (kept // stride))
    draws = []
    for _ in range(kept // stride):
        h = chain.run(h, stride)
        draws.append(h)
    return torch.stack(draws, 1)


def _between_over_within(x: Tensor) -> Tensor:
    """Variance between half chains over that within, which orders columns as their split R-hat does.

    :param Tensor x: shape ``(chains, draws, ...)``.
    :returns: shape ``(...)``, zero for what is constant everywhere.
    """
    half = x.shape[1] // 2
    halves = torch.cat([x[:, :half], x[:, -half:]])
    within = halves.var(1).mean(0)
    between = halves.mean(1).var(0)
    ratio = between / within
    return torch.where((within == 0.0) & (between == 0.0), torch.zeros_like(ratio), ratio)


def _r_hats(x: Tensor) -> Tensor:
    """R-hat of every column of draws of shape ``(chains, draws, columns)``, on the CPU."""
    columns = x.cpu().unbind(-1)
    return torch.tensor([convergence_of(c.numpy()).r_hat for c in columns], dtype=torch.float64)
