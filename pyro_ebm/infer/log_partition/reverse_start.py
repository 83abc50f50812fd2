# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Where chains that are annealed from the machine back to the base start."""

import torch
from torch import Size, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.sampling import MAX_EXACT_STATES, exact_side
from pyro_ebm.infer.paths import Path

__all__ = ["STARTS", "ReverseStart"]

STARTS = ("auto", "exact", "forward", "given")


class ReverseStart:
    """Samples of a machine.

    :param RBM dist: the machine.
    :param str start: "exact" draws by enumeration, a resampled "forward" run, "given" ones, or "auto":
        given ones if there are any, else exact ones if they can be had, else a forward run.
    :param Tensor initial: the given ones, shape
        ``(num_chains,) + dist.parameter_batch_shape + (V,)``.
    :param int num_chains: chains of the run.
    :raises ValueError: for an unknown or impossible start, or samples of a wrong shape or outside of the
        support.
    """

    def __init__(self, dist: RBM, start: str, initial: Tensor | None, num_chains: int) -> None:
        if start not in STARTS:
            raise ValueError(f"start must be one of {STARTS}, got {start!r}")
        is_small = exact_side(dist) is not None
        if start == "auto":
            start = "given" if initial is not None else "exact" if is_small else "forward"
        if (start == "given") != (initial is not None):
            raise ValueError(
                f"start={start!r} {'needs' if initial is None else 'does not go with'} initial"
            )
        if start == "exact" and not is_small:
            raise ValueError(
                f'start="exact" needs a layer of at most {MAX_EXACT_STATES} states to enumerate'
            )
        self.kind = start
        self._dist = dist.compact()
        self.initial = None if initial is None else _checked(initial, dist, num_chains)

    @property
    def word(self) -> str:
        """How the samples are made, for the settings of an estimate."""
        if self.kind == "forward":
            return f"forward run, resampled, {self._dist.num_gibbs_steps} sweeps"
        return self.kind

    def draw(self, first: int, num_chains: int, path: Path) -> Tensor:
        """Samples of some of the chains, exact or given."""
        if self.initial is not None:
            return self.initial[first : first + num_chains]
        return self._dist.sample(Size((num_chains,)), generator=path.generator)

    def resample(self, v: Tensor, log_weights: Tensor, path: Path) -> Tensor:
        """Samples from the end of a forward run: chains in proportion to their weights (for every
        element of a batch by itself), moved by ``num_gibbs_steps`` sweeps."""
        num_chains = len(v)
        share = torch.softmax(log_weights, 0).reshape(num_chains, -1).T
        index = torch.multinomial(share, num_chains, replacement=True, generator=path.generator)
        index = index.T.reshape(*log_weights.shape, 1)
        v = v.gather(0, index.expand(v.shape))
        for _ in range(self._dist.num_gibbs_steps):
            v = path.step(v)
        return v


def _checked(initial: Tensor, dist: RBM, num_chains: int) -> Tensor:
    shape = (num_chains, *dist.parameter_batch_shape, dist.event_shape[0])
    if initial.shape != shape:
        raise ValueError(f"initial must have shape {shape}, got {tuple(initial.shape)}")
    if not bool(dist.support.check(initial).all()):
        raise ValueError(f"initial has values outside of {dist.support}")
    return initial.detach().to(dist.weight)
