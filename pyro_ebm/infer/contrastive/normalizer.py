# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Sites whose log Z is that of another machine than their own distribution."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from pyro_ebm.distributions import EnergyBased
from pyro_ebm.distributions.wrapped import wrapped_machine

__all__ = ["Normalizer", "normalizer_of", "with_normalizer"]

_Machine = TypeVar("_Machine", bound=EnergyBased)

#: The attribute of a machine that holds its normaliser. On the machine, not in the site's ``infer``
#: dictionary, which ``poutine.replay`` replaces by that of the guide.
_ATTRIBUTE = "_pyro_ebm_normalizer"


@dataclass(frozen=True)
class Normalizer:
    r"""The machine whose log Z belongs to a site.

    A machine of which some units are fixed has the density :math:`p(\text{free}, \text{fixed})`, which is
    normalised by the log Z of the **whole** machine. That of the machine over the free units would make it
    :math:`p(\text{free} | \text{fixed})`, from which the parameters do not learn what is fixed.

    :param EnergyBased machine: the whole machine.
    :param completions: functions that give its states from those of the site, one after the other.
    """

    machine: EnergyBased
    completions: tuple[Callable[[Tensor], Tensor], ...]

    def complete(self, value: Tensor) -> Tensor:
        """States of the whole machine from those of the site."""
        for completion in self.completions:
            value = completion(value)
        return value


def with_normalizer(
    free: _Machine, machine: EnergyBased, complete: Callable[[Tensor], Tensor]
) -> _Machine:
    """A machine over the free units of another one, which may be such a part itself.

    :param free: the machine over the free units.
    :param machine: the machine whose units were fixed.
    :param complete: gives states of ``machine`` from those of ``free``.
    """
    outer = normalizer_of(machine)
    new = copy.copy(free)
    new.__dict__[_ATTRIBUTE] = (
        Normalizer(machine, (complete,))
        if outer is None
        else Normalizer(outer.machine, (complete, *outer.completions))
    )
    return new


def normalizer_of(fn: Any) -> Normalizer | None:
    """That of a distribution's machine; None if its own log Z is meant."""
    machine = wrapped_machine(fn)
    normalizer: Normalizer | None = None if machine is None else machine.__dict__.get(_ATTRIBUTE)
    return normalizer
