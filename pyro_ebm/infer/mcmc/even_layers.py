# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Deep machines for samplers: all even layers are one vector, whose parts have names of their own."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.distributions.units import Unit
from pyro_ebm.distributions.wrapped import wrapped_machine

__all__ = [
    "EvenLayers",
    "EvenLayersMessenger",
    "as_rbm",
    "deep_machine",
    "join_sites",
    "split_sites",
]

#: Where a site's ``infer`` dictionary holds the deep machine that it was.
_KEY = "_even_layers_of"


def as_rbm(machine: RBM | DBM) -> RBM:
    """A machine as the one between its even and its odd layers."""
    return machine.bipartite() if isinstance(machine, DBM) else machine


class EvenLayers:
    """The parts that the state of a kernel is kept by, and the one tensor that it moves.

    An RBM has a single part, its visible layer, which is that tensor. A deep machine has its visible layer
    and the layers 2, 4, ...; the tensor has them one after the other, as
    :meth:`~pyro_ebm.distributions.DBM.bipartite`.

    :param str site: name of the visible layer.
    :param DBM dbm: the deep machine; None for any other.
    :param str prefix: what the names of the other layers begin with.
    """

    def __init__(self, site: str, dbm: DBM | None = None, prefix: str = "") -> None:
        self.site = site
        #: The even layers, the visible one first; None if there is just the site.
        self.units: tuple[Unit, ...] | None = None if dbm is None else dbm.units[0::2]
        self.names: tuple[str, ...] = (site,)
        if dbm is not None:
            self.names += tuple(f"{prefix}h{number}" for number in range(2, dbm.depth + 1, 2))
            self._sizes = dbm.sizes[0::2]
        # The latest tensor and its parts: what a kernel keeps of its latest draw goes by identity.
        self._last: tuple[Tensor, tuple[Tensor, ...]] | None = None

    @classmethod
    def of_site(cls, site: str, dbm: DBM | None) -> "EvenLayers":
        """Those of a site of a model: the layers beside the visible one are ``"<site>.h2"``, ..."""
        return cls(site, dbm, f"{site}.")

    def join(self, params: Mapping[str, Tensor]) -> Tensor:
        """The tensor of parts by name, among which there may be others."""
        if len(self.names) == 1:
            return params[self.site]
        parts = tuple(params[name] for name in self.names)
        if self._last is not None:
            whole, own = self._last
            if all(a is b for a, b in zip(parts, own, strict=True)):
                return whole
        return torch.cat(parts, -1)

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """The parts of the tensor by name."""
        if len(self.names) == 1:
            return {self.site: x}
        parts = x.split(self._sizes, -1)
        self._last = x, parts
        return dict(zip(self.names, parts, strict=True))


def join_sites(values: Mapping[str, Tensor], layers: Iterable[EvenLayers]) -> dict[str, Tensor]:
    """Values by site, with those of the deep machines as one tensor each.

    :raises ValueError: if some of the layers of a machine are there and others not.
    """
    joined = dict(values)
    for own in layers:
        there = [name for name in own.names if name in joined]
        if not there:
            continue
        if len(there) < len(own.names):
            raise ValueError(
                f"site {own.site!r} is a deep machine, whose state is {list(own.names)}, got {there}"
            )
        whole = own.join(joined)
        for name in there:
            del joined[name]
        joined[own.site] = whole
    return joined


def split_sites(values: Mapping[str, Tensor], layers: Iterable[EvenLayers]) -> dict[str, Tensor]:
    """Values by site, with those of the deep machines by layer: the inverse of :func:`join_sites`."""
    parts = dict(values)
    for own in layers:
        if own.site in parts:
            parts.update(own.split(parts[own.site]))
    return parts


class EvenLayersMessenger(Messenger):
    r"""Lets the value of a latent deep machine in a model be the state of all of its even layers.

    The visible layer alone has no closed-form density, and an update of it alone would have to draw the
    hidden layers from their posterior each time. With the other even layers as part of the state, the
    density is exact: the site's distribution becomes the machine
    :meth:`~pyro_ebm.distributions.DBM.bipartite`, to whatever looks at the model from outside. The model
    itself goes on with the visible layer as the site's value.

    Sites that the model observes are left as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        #: The deep machines of the latest run by site.
        self.machines: dict[str, DBM] = {}

    def __call__(self, model: Callable[..., Any]) -> Callable[..., Any]:
        wrapped: Callable[..., Any] = super().__call__(model)
        return wrapped

    def layers(self) -> dict[str, EvenLayers]:
        """The parts of the state of every deep machine that was met."""
        return {name: EvenLayers.of_site(name, dbm) for name, dbm in self.machines.items()}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            return
        fn = msg["fn"]
        if isinstance(fn, DBM):
            self.machines[msg["name"]] = fn
            msg["fn"] = fn.bipartite()
            msg["infer"][_KEY] = fn
            return
        if isinstance(wrapped_machine(fn), DBM):
            raise ValueError(
                f"site {msg['name']!r}: a latent DBM can't be sampled within a "
                f"{type(fn).__name__} distribution; use plates and poutine.mask"
            )

    def _pyro_post_sample(self, msg: Any) -> None:
        dbm = deep_machine(msg)
        if dbm is not None:
            msg["value"] = msg["value"][..., : dbm.sizes[0]]


def deep_machine(node: Any) -> DBM | None:
    """The deep machine that a site of a trace was in the model, None if it was none."""
    dbm: DBM | None = node["infer"].get(_KEY)
    return dbm
