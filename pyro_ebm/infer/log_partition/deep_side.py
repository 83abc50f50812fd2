# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Deep machines as the RBMs that estimators of log Z are written for."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.distributions.units import Unit
from pyro_ebm.infer.mcmc.even_layers import as_rbm
from pyro_ebm.infer.paths import base_unit
from pyro_ebm.infer.paths.geometric import even_base

__all__ = ["DEEP_SIDES", "Side", "as_machine", "as_side"]

DEEP_SIDES = ("auto", "even", "odd")


@dataclass(frozen=True)
class Side:
    """The machine whose visible states are drawn and whose hidden layer is summed out.

    :param RBM machine: the RBM itself, or a deep machine between its even and its odd layers.
    :param Unit base: its visible layer at inverse temperature 0.
    :param dict settings: which layers are drawn and summed out, for the settings of an estimate; empty for
        an RBM.
    """

    machine: RBM
    base: Unit
    settings: dict[str, Any] = field(default_factory=dict)


def as_machine(dist: RBM | DBM, side: str = "auto", name: str = "dist") -> RBM:
    """The RBM with the same log Z.

    :param dist: an RBM, which is given back, or a DBM.
    :param str side: the layers of a DBM that are the result's visible one: "even", "odd", or "auto" for the
        even ones.
    :param str name: what the machine is called in a message.
    :raises TypeError: if it is neither.
    :raises ValueError: for an unknown side, or a side of an RBM.
    """
    if side not in DEEP_SIDES:
        raise ValueError(f"side must be one of {DEEP_SIDES}, got {side!r}")
    if isinstance(dist, DBM):
        machine = as_rbm(dist)
        return machine.transpose() if side == "odd" else machine
    if not isinstance(dist, RBM):
        raise TypeError(f"{name} must be an RBM, got {type(dist).__name__}; a DBM will do as well")
    if side != "auto":
        raise ValueError(
            f"side={side!r} is for a DBM; the hidden states of an RBM are those of its transpose()"
        )
    return dist


def as_side(
    dist: RBM | DBM,
    base: Unit | Tensor | str | None = None,
    side: str = "auto",
    name: str = "dist",
) -> Side:
    """A machine with the base that belongs to it.

    :param dist: an RBM or a DBM.
    :param base: None, "uniform", or means of the visible layer, as for
        :func:`~pyro_ebm.infer.estimate_log_partition`; a layer is given back.
    :param str side: as for :func:`as_machine`.
    :raises TypeError: if the machine is neither.
    :raises ValueError: for a base that does not fit, an unknown side, or means of the visible layer where
        the odd layers are drawn.
    """
    machine = as_machine(dist, side, name)
    settings: dict[str, Any] = {}
    if isinstance(dist, DBM):
        drawn = 1 if side == "odd" else 0
        layers = range(dist.depth + 1)
        settings["side"] = "odd" if drawn else "even"
        settings["summed_out"] = list(layers[1 - drawn :: 2])
        if isinstance(base, Tensor):
            if drawn:
                raise ValueError(
                    'base holds means of the visible layer, which side="odd" sums out; use '
                    'side="even", or base=None or "uniform"'
                )
            base = even_base(dist.units[0::2], base, dist.parameter_batch_shape)
    return Side(machine, base_unit(machine, base), settings)
