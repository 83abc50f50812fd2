# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Where the axis of the chains is, in values and log-densities of a program that runs many at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro import plate
from torch import Size, Tensor, broadcast_shapes

__all__ = ["ChainLayout"]


@dataclass(frozen=True)
class ChainLayout:
    """Chains as one more plate around a program, on the left of all of its own.

    :param Size chain_shape: ``()`` for a single chain, which needs no plate, or ``(num_chains,)``.
    :param int max_plate_nesting: batch axes of the program itself.
    """

    chain_shape: Size
    max_plate_nesting: int

    def wrap(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """The program of all chains."""
        if not self.chain_shape:
            return model

        def chains(*args: Any, **kwargs: Any) -> Any:
            with plate("_pyro_ebm_chains", self.chain_shape[0], dim=-1 - self.max_plate_nesting):
                return model(*args, **kwargs)

        return chains

    def lift(self, value: Tensor, batch: Size) -> Tensor:
        """A value of shape ``chain_shape + batch + event`` in the shape that the program has it in.

        :param Size batch: batch shape of the site in a run of a single chain.
        """
        if not self.chain_shape:
            return value
        ones = (1,) * (self.max_plate_nesting - len(batch))
        return value.reshape(*self.chain_shape, *ones, *value.shape[1:])

    def total(self, log_prob: Tensor) -> Tensor:
        """Sum of a site's log-density over everything but the chains, float64, shape ``chain_shape``.

        :raises ValueError: if the log-density has axes on the left of the chains.
        """
        if not self.chain_shape:
            return log_prob.double().sum()
        depth = self.max_plate_nesting
        if log_prob.dim() > depth + 1:
            raise ValueError(
                f"a log-density of shape {tuple(log_prob.shape)} has more than the {depth} batch axes that "
                "the model has without chains; write .to_event() for parameters that are arrays"
            )
        shape = broadcast_shapes(log_prob.shape, (*self.chain_shape, *(1,) * depth))
        return log_prob.double().expand(shape).reshape(self.chain_shape[0], -1).sum(-1)

    @property
    def num_chains(self) -> int:
        """Chains that run at once."""
        return math.prod(self.chain_shape)
