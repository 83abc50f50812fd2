# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Replaces the machines of a model by normalised ones while it runs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Size, Tensor

from pyro_ebm.distributions import DBM, RBM, EnergyBased
from pyro_ebm.distributions.rbm import MAX_ENUMERATED_STATES
from pyro_ebm.distributions.wrapped import is_masked_out, replace_machine
from pyro_ebm.infer.contrastive.normalizer import normalizer_of
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
    :param bool is_part: whether the site is that of a few free units of ``dist``, which may be huge.
    """

    name: str
    dist: RBM
    deep: DBM | None
    batch_shape: Size
    key: Tensor | None
    mask: Tensor | None
    enumerated: bool
    is_part: bool = False

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
    :param bool draws: whether a site may be drawn from the model, as in the sleep phase of wake-sleep. An
        ELBO that does it has met a latent site which neither its guide has nor enumeration sums out.
    :param bool enumerates: whether the ELBO sums out the sites that are annotated so; others ignore it.
    """

    def __init__(
        self,
        log_partition: Callable[[MachineSite, Tensor], Tensor],
        persistent: bool,
        *,
        draws: bool = False,
        enumerates: bool = False,
    ) -> None:
        super().__init__()
        self._log_partition = log_partition
        self._persistent = persistent
        self._draws = draws
        self._enumerates = enumerates

    def _pyro_sample(self, msg: Any) -> None:
        mask = msg["mask"]
        msg["fn"] = replace_machine(
            msg["fn"],
            lambda fn, rows: self._normalized(fn, msg, rows),
            mask if isinstance(mask, Tensor) else None,
            site=msg["name"],
        )

    def _normalized(self, fn: EnergyBased, msg: Any, mask: Tensor | None) -> Any:
        if fn.log_partition is None:
            return self._surrogate(fn, msg, mask)
        refusal = self._refusal(msg)
        return fn if refusal is None else SurrogateNormalized(fn, None, refusal)

    def _is_enumerated(self, msg: Any) -> bool:
        infer = msg["infer"]
        counts = self._enumerates or infer.get("_enumerate_dim") is not None
        return not msg["is_observed"] and infer.get("enumerate") is not None and counts

    def _refusal(self, msg: Any) -> str | None:
        """Why a site is not to be drawn from the model; None if it may be."""
        fits = msg["is_observed"] or self._draws or self._is_enumerated(msg)
        # A site that is masked out adds nothing to any ELBO.
        if fits or is_masked_out(msg["fn"], msg["mask"]):
            return None
        return (
            f"latent site {msg['name']!r} is neither in the guide nor enumerated, so the ELBO would be "
            "that of another model; give it a guide. Enumerated are machines of at most "
            f"{MAX_ENUMERATED_STATES} visible states, in a model under config_enumerate with TraceEnum_ELBO"
        )

    def _surrogate(self, fn: EnergyBased, msg: Any, mask: Tensor | None) -> SurrogateNormalized:
        name, key = msg["name"], msg["infer"].get("chain_key")
        other = normalizer_of(fn)
        whole, complete = (fn, _same) if other is None else (other.machine, other.complete)
        deep = whole.compact() if isinstance(whole, DBM) else None
        dist = as_rbm(whole.compact())
        if not isinstance(dist, RBM):
            raise TypeError(f"site {name!r}: no negative phase is known for {type(fn).__name__}")
        if key is not None:
            key = check_key(name, key)
        elif self._persistent:
            self._refuse_row_parameters(dist, msg)

        def log_partition(value: Tensor) -> Tensor:
            # Asked anew: the enumeration of a guide comes to the site when it is replayed, which is after
            # this messenger has seen it.
            enumerated = self._is_enumerated(msg)
            site = MachineSite(
                name, dist, deep, fn.batch_shape, key, mask, enumerated, other is not None
            )
            return self._log_partition(site, complete(value))

        return SurrogateNormalized(fn, log_partition, self._refusal(msg))

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


def _same(value: Tensor) -> Tensor:
    return value
