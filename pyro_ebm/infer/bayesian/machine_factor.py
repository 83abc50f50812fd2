# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The machines of a program whose log Z is missing: which rows they explain, at which parameters."""

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Size, Tensor
from torch.distributions import Independent

from pyro_ebm.distributions import DBM, RBM, EnergyBased

__all__ = ["MachineFactor", "check_attached", "machine_factor"]


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
        return all(a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in pairs)


def machine_factor(name: str, node: Any) -> MachineFactor | None:
    """The unnormalised machine of a node of a trace, None if there is none that counts.

    :raises TypeError: if it is a machine for which nothing exact is known, or is inside of a distribution
        that cannot be looked into.
    :raises ValueError: if its log-density is scaled, since there are no fractions of a row.
    """
    dist, mask = _unwrap(name, node["fn"], node["mask"])
    if dist is None or dist.log_partition is not None or mask is False:
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
    kept = mask if isinstance(mask, Tensor) else None
    return MachineFactor(name, dist.compact(), value, rows, kept)


def check_attached(name: str, node: Any) -> None:
    """Refuse a log Z that is attached but does not depend on the parameters as the machine does.

    :param node: a node of a trace whose latent values require gradients.
    :raises ValueError: if log Z is a constant and the machine is not.
    """
    dist, _ = _unwrap(name, node["fn"], node["mask"])
    if dist is None or dist.log_partition is None or dist.log_partition.requires_grad:
        return
    if any(p.requires_grad for p in dist.parameters()):
        raise ValueError(
            f"the log Z attached at site {name!r} does not depend on the latent parameters, but the machine "
            "does. Attach exact_log_partition(machine) inside the model, or nothing: the kernel supplies it"
        )


def _unwrap(name: str, fn: Any, mask: Any) -> tuple[EnergyBased | None, Any]:
    """The machine inside of masked and independent distributions, and the mask of its rows.

    The mask is None or True (all rows), False (none) or a tensor.
    """
    outer = fn
    known = True
    while not isinstance(fn, EnergyBased):
        if isinstance(fn, MaskedDistribution):
            mask = _both(mask, fn._mask)
        elif isinstance(fn, Independent):
            if isinstance(mask, Tensor):
                mask = mask.reshape(mask.shape + (1,) * fn.reinterpreted_batch_ndims)
        else:
            known = False
        fn = getattr(fn, "base_dist", None)
        if fn is None:
            return None, mask
    if not known:
        raise TypeError(
            f"site {name!r}: cannot look inside a {type(outer).__name__} of an energy-based distribution"
        )
    return fn, mask


def _both(mask: Any, other: Any) -> Any:
    """Rows that two masks keep."""
    if mask is None or mask is True:
        return other
    if other is None or other is True:
        return mask
    if mask is False or other is False:
        return False
    return mask & other
