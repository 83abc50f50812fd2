# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The machines of a program whose log Z is missing: which rows they explain, at which parameters."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor

from pyro_ebm.distributions import DBM, RBM, EnergyBased
from pyro_ebm.distributions.normalizable import largest_coupling
from pyro_ebm.distributions.wrapped import is_masked_out, replace_machine

__all__ = ["MachineFactor", "check_attached", "machine_factor", "machine_within"]


@dataclass(frozen=True)
class MachineFactor:
    """A sample site of an unnormalised machine in one run of a program.

    :param str name: the site.
    :param RBM machine: the machine with the batch shape of its parameters.
    :param Tensor value: the states at the site, shape ``(..., V)``, which broadcasts to the rows.
    :param Size rows: batch shape of the states; every row counts log Z of its machine once.
    :param Tensor mask: rows that count, of a shape that broadcasts to the rows; all if None.
    """

    name: str
    machine: RBM
    value: Tensor
    rows: Size
    mask: Tensor | None

    def counted(self, log_prob: Tensor) -> Tensor:
        """Numbers of rows with zeros where a row is masked out."""
        if self.mask is None:
            return log_prob
        return torch.where(self.mask, log_prob, 0.0)

    def has_parameters_of(self, other: "MachineFactor") -> bool:
        """Whether both machines are the same, so that their log Z cancels."""
        pairs = zip(self.machine.parameters(), other.machine.parameters(), strict=True)
        return all(_equal(a, b) for a, b in pairs)

    def counts_rows_of(self, other: "MachineFactor") -> bool:
        """Whether both machines explain the same rows, so that log Z counts as often."""
        return self.rows == other.rows and _equal(self.mask, other.mask)

    def check_rows_of(self, other: "MachineFactor") -> None:
        """Refuse a machine whose rows depend on the parameters.

        :raises ValueError: if another point has other rows or another mask.
        """
        if not self.counts_rows_of(other):
            raise ValueError(
                f"the rows or the mask of site {self.name!r} depend on the latent sites that the kernel "
                "samples, so that log Z of its machine counts for another number of rows at every point; "
                "take these sites into another block of a compound kernel"
            )

    @property
    def is_normalizable(self) -> Tensor | None:
        """Whether log Z is known to be finite, shape of the machine's batch; None if that is certain."""
        machine = self.machine
        largest = largest_coupling(machine.visible, machine.hidden, machine.weight)
        return None if largest is None else largest < 1.0


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a is b or (a.shape == b.shape and torch.equal(a, b))


def machine_factor(name: str, node: Any) -> MachineFactor | None:
    """The unnormalised machine of a node of a trace, None if there is none that counts.

    :raises TypeError: if it is a machine for which nothing exact is known, or is inside of a distribution
        that cannot be looked into.
    :raises ValueError: if its log-density is scaled, since there are no fractions of a row.
    """
    dist, mask = machine_within(name, node)
    if dist is None or dist.log_partition is not None:
        return None
    if isinstance(dist, DBM):
        raise TypeError(
            f"site {name!r} is a DBM, whose log_prob is a bound: the posterior of its parameters would be "
            "that of the bound. Use an RBM, or observe all even layers of dbm.bipartite()"
        )
    if not isinstance(dist, RBM):
        raise TypeError(f"site {name!r}: no exact draws are known of {type(dist).__name__}")
    scale = node["scale"]
    if isinstance(scale, Tensor) or scale != 1.0:
        raise ValueError(
            f"the log-density of site {name!r} is scaled by {scale}, which would need log Z of a part of a "
            "row; take all rows, or attach log Z with .normalize(...)"
        )
    value = node["value"]
    rows = torch.broadcast_shapes(dist.batch_shape, value.shape[:-1])
    return MachineFactor(name, dist.compact(), value, rows, mask)


def check_attached(name: str, node: Any) -> None:
    """Refuse a log Z that is attached but does not depend on the parameters as the machine does.

    :param node: a node of a trace whose latent values require gradients.
    :raises ValueError: if log Z is a constant and the machine is not.
    """
    dist, _ = machine_within(name, node)
    if dist is None or dist.log_partition is None or dist.log_partition.requires_grad:
        return
    if any(p.requires_grad for p in dist.parameters()):
        raise ValueError(
            f"the log Z attached at site {name!r} does not depend on the latent parameters, but the machine "
            "does. Attach exact_log_partition(machine) inside the model, or nothing: the kernel supplies it"
        )


def machine_within(name: str, node: Any) -> tuple[EnergyBased | None, Tensor | None]:
    """The machine inside of masked and independent distributions, and the mask of its rows (None: all).

    None in the place of the machine if there is none, or all of its rows are masked out.
    """
    fn, mask = node["fn"], node["mask"]
    found: list[tuple[EnergyBased, Tensor | None]] = []

    def look(machine: EnergyBased, rows: Tensor | None) -> EnergyBased:
        found.append((machine, rows))
        # Another object, so that what it is wrapped in is made anew, which shows that it is known.
        return machine.expand(machine.batch_shape)

    if not is_masked_out(fn, mask):
        replace_machine(fn, look, mask if isinstance(mask, Tensor) else None, site=name)
    return found[0] if found else (None, None)
