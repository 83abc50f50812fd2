# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Replaces the machines of a model by normalised ones while it runs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pyro.distributions.torch_distribution import (
    ExpandedDistribution,
    MaskedDistribution,
    TorchDistributionMixin,
)
from pyro.poutine.messenger import Messenger
from torch import Size, Tensor
from torch.distributions import Independent

from pyro_ebm.distributions import DBM, RBM, EnergyBased
from pyro_ebm.infer.contrastive.rows import (
    SiteRows,
    check_key,
    rows_by_key,
    rows_by_parameters,
)
from pyro_ebm.infer.contrastive.surrogate import SurrogateNormalized
from pyro_ebm.infer.mcmc.even_layers import as_rbm

__all__ = ["MachineSite", "NormalizeMessenger"]


@dataclass(frozen=True)
class MachineSite:
    """What the negative phase needs to know about a sample site.

    :param str name: its name.
    :param RBM dist: the compact machine; of a deep one the machine between its even and odd layers.
    :param deep: the deep machine, None for an RBM.
    :param batch_shape: its batch shape in the plates that have been met.
    :param key: the user's ``infer={"chain_key": ...}``; None if there is none.
    :param mask: which rows are not masked out; all if None.
    :param bool enumerated: whether it is a latent site that the ELBO enumerates.
    """

    name: str
    dist: RBM
    deep: DBM | None
    batch_shape: Size
    key: Tensor | None
    mask: Tensor | None
    enumerated: bool

    def rows(self, value: Tensor) -> SiteRows:
        """The rows of a value by the machine that they belong to."""
        if self.key is None:
            rows = rows_by_parameters(self.dist, value, self.mask)
        else:
            rows = rows_by_key(self.dist, value, self.key, self.batch_shape, self.mask)
        return rows if self.deep is None else replace(rows, deep=self.deep)


class NormalizeMessenger(Messenger):
    """Replaces energy-based distributions of sample sites by surrogate-normalised ones.

    :param log_partition: gives log Z of the rows of a site from the site and its value, in a shape
        that broadcasts with the site's batch shape; called once a run.
    :param bool persistent: whether chains go on from step to step.
    """

    def __init__(
        self, log_partition: Callable[[MachineSite, Tensor], Tensor], persistent: bool
    ) -> None:
        super().__init__()
        self._log_partition = log_partition
        self._persistent = persistent

    def _pyro_sample(self, msg: Any) -> None:
        mask = msg["mask"]
        msg["fn"] = self._replace(msg["fn"], msg, mask if isinstance(mask, Tensor) else None)

    def _replace(self, fn: Any, msg: Any, mask: Tensor | None) -> Any:
        if isinstance(fn, EnergyBased):
            return fn if fn.log_partition is not None else self._surrogate(fn, msg, mask)
        if not isinstance(fn, TorchDistributionMixin):
            return fn
        if isinstance(fn, MaskedDistribution) and isinstance(fn._mask, Tensor):
            mask = fn._mask if mask is None else fn._mask & mask
        elif isinstance(fn, Independent) and mask is not None:
            mask = mask.reshape(mask.shape + (1,) * fn.reinterpreted_batch_ndims)
        base = getattr(fn, "base_dist", None)
        new: Any = None if base is None else self._replace(base, msg, mask)
        if new is base:
            return fn
        if isinstance(fn, MaskedDistribution):
            return new.mask(fn._mask)
        if isinstance(fn, Independent):
            return new.to_event(fn.reinterpreted_batch_ndims)
        if isinstance(fn, ExpandedDistribution):
            return new.expand(fn.batch_shape)
        raise TypeError(
            f"site {msg['name']!r}: ContrastiveDivergence cannot look inside a {type(fn).__name__} "
            "of an energy-based distribution"
        )

    def _surrogate(self, fn: EnergyBased, msg: Any, mask: Tensor | None) -> SurrogateNormalized:
        name, dist, key = msg["name"], fn.compact(), msg["infer"].get("chain_key")
        deep = dist if isinstance(dist, DBM) else None
        dist = as_rbm(dist)
        if not isinstance(dist, RBM):
            raise TypeError(f"site {name!r}: no negative phase is known for {type(fn).__name__}")
        if key is not None:
            key = check_key(name, key)
        elif self._persistent:
            self._refuse_row_parameters(dist, msg)
        enumerated = not msg["is_observed"] and msg["infer"].get("enumerate") is not None
        site = MachineSite(name, dist, deep, fn.batch_shape, key, mask, enumerated)
        return SurrogateNormalized(fn, lambda value: self._log_partition(site, value))

    @staticmethod
    def _refuse_row_parameters(dist: RBM, msg: Any) -> None:
        """Chains of a row's own parameters would meet another row at the next step."""
        batch = dist.batch_shape
        for frame in msg["cond_indep_stack"]:
            if frame.vectorized and len(batch) >= -frame.dim and batch[frame.dim] != 1:
                raise ValueError(
                    f"site {msg['name']!r} has parameters of its own for every row of plate "
                    f"{frame.name!r}; persistent chains cannot tell which row is which. Name the "
                    'rows by infer={"chain_key": key}, or use persistent=False'
                )
