# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Which layer the chains of the negative phase are states of."""

from typing import Literal, TypeAlias

from torch import Tensor

from pyro_ebm.distributions import RBM, GibbsSweep

__all__ = ["SIDES", "Side", "choose_side", "machine_of_side", "states_of_side"]

Side: TypeAlias = Literal["visible", "hidden"]

SIDES: tuple[Side, Side] = ("visible", "hidden")


def choose_side(dist: RBM, side: str, default_kernel: bool) -> Side:
    """The layer of the chains.

    The gradient of -log Z is an expectation over either layer, with the other one summed out. Where
    the visible layer is Gaussian and the hidden one finite, the hidden layer has fewer units, its chain
    needs no visible states, and the estimate has a lower variance.

    :param RBM dist: the machine.
    :param str side: ``"visible"``, ``"hidden"``, or ``"auto"`` for the rule above, which leaves kernels
        of the user's on the visible side.
    :param bool default_kernel: whether block Gibbs moves the chains.
    """
    if side != "auto":
        return "visible" if side == "visible" else "hidden"
    collapses = dist.visible.is_gaussian and dist.hidden.num_states is not None
    return "hidden" if default_kernel and collapses else "visible"


def machine_of_side(dist: RBM, side: Side) -> RBM:
    """The machine with the layer of the chains as its visible one."""
    return dist if side == "visible" else dist.transpose()


def states_of_side(dist: RBM, v: Tensor, side: Side) -> Tensor:
    """Visible states, or one draw of the hidden states given them.

    :param RBM dist: the machine.
    :param Tensor v: shape ``(...) + dist.batch_shape + (V,)``.
    """
    return v if side == "visible" else GibbsSweep(dist).sample_hidden(v)
