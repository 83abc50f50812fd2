# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Sites whose log Z is that of another machine than their own distribution."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_ebm.distributions import EnergyBased

__all__ = ["KEY", "Normalizer", "normalizer_of"]

#: Where a site's ``infer`` dictionary holds its normaliser.
KEY = "_normalizer"


@dataclass(frozen=True)
class Normalizer:
    r"""The machine whose log Z belongs to a site.

    A machine of which some units are fixed has the density :math:`p(\text{free}, \text{fixed})`, which is
    normalised by the log Z of the **whole** machine. That of the machine over the free units would make it
    :math:`p(\text{free} | \text{fixed})`, from which the parameters do not learn what is fixed.

    :param EnergyBased machine: the whole machine.
    :param complete: gives its states from those of the site.
    """

    machine: EnergyBased
    complete: Callable[[Tensor], Tensor]


def normalizer_of(infer: dict[str, Any]) -> Normalizer | None:
    """That of a site by its ``infer`` dictionary; None if the site's own log Z is meant."""
    normalizer: Normalizer | None = infer.get(KEY)
    return normalizer
