# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""How long must chains be? Statistics of hidden states against the number of steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.diagnostics.tables import significant, text_table
from pyro_ebm.distributions import RBM
from pyro_ebm.predictive.hidden_chain import (
    MAX_STATES,
    HiddenChain,
    HiddenStatistics,
    exact_hidden_statistics,
)

__all__ = ["ChainLengthStatistics", "statistics_against_chain_length"]


@dataclass(frozen=True)
class ChainLengthStatistics:
    """Statistics of independent chains after so many steps, by element of a batch; ``print`` it.

    Tensors have the shape ``(lengths,) + batch_shape``, float64.

    :param lengths: numbers of steps.
    :param Tensor free_energy: mean free energy of the hidden states.
    :param Tensor free_energy_error: its standard error.
    :param moment_error: root mean square error of E[h h'] over pairs of hidden entries; None if the exact
        moments are not known.
    :param Tensor moment_noise: root mean square standard error of E[h h'], which ``moment_error`` cannot fall
        below: where both are equal, chains are long enough for so many of them to tell.
    :param exact: the expectations that were compared with, or None.
    :param int num_chains: independent chains.
    """

    lengths: tuple[int, ...]
    free_energy: Tensor = field(repr=False)
    free_energy_error: Tensor = field(repr=False)
    moment_error: Tensor | None = field(repr=False)
    moment_noise: Tensor = field(repr=False)
    exact: HiddenStatistics | None = field(repr=False)
    num_chains: int

    @property
    def free_energy_z(self) -> Tensor | None:
        """Deviation of the mean free energy from the exact one, in standard errors."""
        if self.exact is None:
            return None
        return (self.free_energy - self.exact.free_energy.double()) / self.free_energy_error

    def to_dict(self) -> dict[str, Any]:
        """All numbers for a report; JSON types only."""
        error, exact = self.moment_error, self.exact
        return {
            "lengths": list(self.lengths),
            "num_chains": self.num_chains,
            "free_energy": self.free_energy.tolist(),
            "free_energy_error": self.free_energy_error.tolist(),
            "moment_error": None if error is None else error.tolist(),
            "moment_noise": self.moment_noise.tolist(),
            "exact_free_energy": None if exact is None else exact.free_energy.tolist(),
        }

    def __str__(self) -> str:
        header = ["steps", "mean F(h)", "SE", "rms error of E[hh']", "worst", "rms noise"]
        rows = []
        for i, length in enumerate(self.lengths):
            count = max(1, self.free_energy[i].numel())
            error = self.free_energy_error[i].square().sum().sqrt().item() / count
            numbers = [self.free_energy[i].mean().item(), error]
            if self.moment_error is None:
                numbers += [math.nan, math.nan]
            else:
                numbers += [_rms(self.moment_error[i]), self.moment_error[i].max().item()]
            numbers.append(_rms(self.moment_noise[i]))
            rows.append([str(length), *(significant(x, 4) for x in numbers)])
        if self.exact is not None:
            mean = self.exact.free_energy.double().mean().item()
            rows.append(["exact", significant(mean, 4), *["-"] * 4])
        return text_table(header, rows)


@torch.no_grad()
def statistics_against_chain_length(
    dist: RBM,
    lengths: Sequence[int],
    exact: HiddenStatistics | None = None,
    *,
    num_chains: int = 256,
    generator: Generator | None = None,
) -> ChainLengthStatistics:
    r"""Mean free energy and errors of :math:`\mathrm{E}[h h^\top]` of chains after given numbers of steps.

    Chains start from the hidden layer without its weights and are block Gibbs, as those that sample from a
    conditional machine; a number of steps is long enough when the mean free energy no longer falls and the
    error is that of exact draws. The means are over independent chains at one time, so that they show the
    bias of the start; the standard errors are exact.

    :param RBM dist: the machine, with any batch shape.
    :param lengths: increasing numbers of steps; 0 is the start.
    :param HiddenStatistics exact: what is right, from long runs, say; by enumeration where the hidden layer
        has at most :math:`2^{16}` states if None.
    :param int num_chains: independent chains of each machine, at least 2.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :raises TypeError: if ``dist`` is no RBM.
    :raises ValueError: for impossible numbers or exact statistics of other shapes.

    >>> import torch
    >>> from pyro_ebm.distributions import RBM, units
    >>> visible = units.Gaussian(torch.zeros(3), torch.ones(3))
    >>> rbm = RBM(visible, units.Ising(torch.zeros(4)), 0.5 * torch.ones(3, 4))
    >>> result = statistics_against_chain_length(rbm, [0, 10, 100])
    >>> bool(result.moment_error[0] > 5 * result.moment_error[2])
    True
    """
    if not isinstance(dist, RBM):
        raise TypeError(f"dist must be an RBM, got {type(dist).__name__}")
    lengths = tuple(int(n) for n in lengths)
    if not lengths or lengths[0] < 0 or any(b <= a for a, b in pairwise(lengths)):
        raise ValueError(f"lengths must be increasing and not negative, got {lengths}")
    if num_chains < 2:
        raise ValueError(f"num_chains must be at least 2, got {num_chains}")
    chain = HiddenChain(dist, generator)
    exact = _exact(dist, exact)
    columns: list[list[Tensor]] = []
    h, steps = chain.prior(num_chains), 0
    for length in lengths:
        h = chain.run(h, length - steps)
        steps = length
        energy = chain.free_energy(h).double()
        mean, noise = _second_moment(h.double())
        columns.append([energy.mean(0), energy.std(0) / math.sqrt(num_chains), noise])
        if exact is not None:
            # Exact moments of an expanded machine are those of its settings, repeated.
            error = mean.expand(exact.second_moment.shape) - exact.second_moment.to(mean)
            columns[-1].append(error.square().mean((-2, -1)).sqrt())
    parts = [torch.stack(c) for c in zip(*columns, strict=True)]
    energy, energy_error, noise = (_expanded(p, dist.batch_shape) for p in parts[:3])
    return ChainLengthStatistics(
        lengths, energy, energy_error, None if exact is None else parts[3], noise, exact, num_chains
    )


def _expanded(x: Tensor, batch: Size) -> Tensor:
    """What was computed without the axes of :meth:`RBM.expand`, with them behind the axis of lengths."""
    missing = len(batch) - (x.dim() - 1)
    return x.reshape(len(x), *(1,) * missing, *x.shape[1:]).expand(len(x), *batch)


def _exact(dist: RBM, exact: HiddenStatistics | None) -> HiddenStatistics | None:
    if exact is None:
        num_states = dist.hidden.num_states
        known = num_states is not None and num_states <= MAX_STATES
        return exact_hidden_statistics(dist) if known else None
    shape = (*dist.batch_shape, dist.hidden.size, dist.hidden.size)
    if exact.free_energy.shape != dist.batch_shape or exact.second_moment.shape != shape:
        raise ValueError(
            f"exact must hold shapes {tuple(dist.batch_shape)} and {shape}, got "
            f"{tuple(exact.free_energy.shape)} and {tuple(exact.second_moment.shape)}"
        )
    return exact


def _second_moment(h: Tensor) -> tuple[Tensor, Tensor]:
    """E[h h'] over the first axis, and the root mean square of the standard errors of its entries."""
    x, n = h.movedim(0, -2), len(h)
    mean = x.mT @ x / n
    square = x.square()
    variance = (square.mT @ square / n - mean.square()).clamp(min=0.0) / (n - 1)
    return mean, variance.mean((-2, -1)).sqrt()


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
