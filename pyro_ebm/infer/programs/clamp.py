# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A Pyro program with some units of a machine fixed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Size, Tensor

from pyro_ebm.distributions import DBM, RBM, EnergyBased
from pyro_ebm.distributions.wrapped import replace_machine, wrapped_machine
from pyro_ebm.infer.contrastive.normalizer import with_normalizer

__all__ = ["clamped"]

#: A tensor of the visible layer, or tensors by number of the layer.
_ByLayer = Tensor | Mapping[int, Tensor]


def clamped(
    model: Callable[..., Any],
    site: str,
    mask: _ByLayer,
    values: _ByLayer | Callable[..., _ByLayer],
) -> Callable[..., Any]:
    r"""A program with some units of a latent machine fixed.

    The latent site ``"<site>"`` is replaced by ``"<site>_free"``, the machine over the units where ``mask``
    is False. The program goes on with the whole layer, free and fixed units in their places, which is
    recorded as the deterministic site ``"<site>"``.

    **Density.** It is :math:`p(v_\mathrm{free}, v_\mathrm{fixed})`, that of the program itself at the whole
    value: constants are kept. An attached log Z stays attached, since it is the log Z of the whole machine
    that normalises this density; that of the machine over the free units would make it
    :math:`p(v_\mathrm{free} | v_\mathrm{fixed})`, from which nothing is learnt about what is fixed. Under
    :class:`~pyro_ebm.infer.ContrastiveDivergence` an unnormalised site gets the surrogate of the whole
    machine, whose chains move all units.

    **Kernels.** ``BlockGibbs``, ``MetropolisBlockGibbs`` and the informed kernels of a compound sample
    ``"<site>_free"`` as any other machine, also where the parameters are latent (with log Z attached).

    **Predictive.** ``"<site>_free"`` is drawn given the fixed units and what the program has drawn before;
    those sites are not drawn given the fixed units. This is as for an observed site: condition on a
    posterior first.

    **Deep machines.** ``log_prob`` is a mean-field bound there. It is the same at the whole and at the free
    units, if mean field comes to the same optimum from the start that each machine has. Values by row are
    for kernels only, as mean field takes machines without a batch shape.

    :param model: the program.
    :param str site: name of the machine's site, latent.
    :param mask: boolean, shape ``(V,)``; True where a unit is fixed, the same for all rows. For a DBM also
        masks by number of the layer, ``{0: ..., 2: ...}``. At least one visible unit stays free.
    :param values: values of the layer, shape ``(..., V)``, read where the mask is True; its batch shape
        broadcasts to that of the site. For a DBM also by number of the layer. A function is called with
        the program's arguments, to choose the rows of a minibatch.
    :raises TypeError: if an argument is of another type; when the program runs, if the site is no machine.
    :raises ValueError: when the program runs, if the site is missing or observed, or a mask or value does
        not fit.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import clamped
    >>> rbm = BernoulliRBM(torch.ones(4, 2), torch.zeros(4), torch.zeros(2))
    >>> def model():
    ...     v = pyro.sample("v", rbm)
    ...     return pyro.sample("x", dist.Normal(v, 0.1).to_event(1))
    >>> mask = torch.tensor([True, False, False, True])
    >>> program = clamped(model, "v", mask, torch.tensor([1.0, 0.0, 0.0, 0.0]))
    >>> trace = pyro.poutine.trace(program).get_trace()
    >>> trace.nodes["v_free"]["value"].shape, trace.nodes["v"]["value"][mask]
    (torch.Size([2]), tensor([1., 0.]))
    """
    if not callable(model):
        raise TypeError(f"model must be a Pyro model, got {type(model).__name__}")
    if not isinstance(site, str):
        raise TypeError(f"site must be the name of a site, got {site!r}")
    if not isinstance(mask, Tensor | Mapping):
        raise TypeError(f"mask must be a tensor, or tensors by layer, got {type(mask).__name__}")
    if not isinstance(values, Tensor | Mapping) and not callable(values):
        raise TypeError(
            "values must be a tensor, tensors by layer, or a function of the program's arguments, got "
            f"{type(values).__name__}"
        )

    order = _Order.of_mask(mask.get(0) if isinstance(mask, Mapping) else mask)

    def program(*args: Any, **kwargs: Any) -> Any:
        given = values(*args, **kwargs) if callable(values) else values
        messenger = _ClampMessenger(site, mask, given, order)
        with messenger:
            result = model(*args, **kwargs)
        if not messenger.found:
            raise ValueError(
                f"the program has no latent site {site!r} to clamp; it has {messenger.sites}"
            )
        return result

    return program


class _ClampMessenger(Messenger):
    """Replaces one site by the machine over its free units and the whole value."""

    def __init__(self, site: str, mask: _ByLayer, values: _ByLayer, order: "_Order | None") -> None:
        super().__init__()
        self._site, self._mask, self._values, self._order = site, mask, values, order
        self.found = False
        #: Names of the sites that were met.
        self.sites: list[str] = []

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] != self._site:
            self.sites.append(msg["name"])
            return
        machine = wrapped_machine(msg["fn"])
        if not isinstance(machine, RBM | DBM):
            kind = type(msg["fn"]).__name__
            raise TypeError(
                f"site {self._site!r} must be an RBM or a DBM to be clamped, got a {kind}"
            )
        if msg["is_observed"] or msg["value"] is not None:
            raise ValueError(
                f"site {self._site!r} has a value already, observed or conditioned on, so none of its units "
                "can be clamped"
            )
        self.found = True
        complete = _Completion(self._site, machine, self._order, self._values)

        def free_part(fn: EnergyBased, _: Tensor | None) -> EnergyBased:
            return with_normalizer(self._free(fn), fn, complete)

        free_fn = replace_machine(msg["fn"], free_part, site=self._site)
        # The sample statement passes all handlers again, as in a Pyro reparametriser.
        infer: Any = dict(msg["infer"])
        free = pyro.sample(f"{self._site}_free", free_fn, infer=infer)
        value = complete(free)
        # Its log-density is 0 in the value's dtype; that of a masked distribution has the default one.
        msg["fn"] = dist.Delta(value, event_dim=len(free_fn.event_shape))
        msg["value"] = value
        msg["is_observed"] = True
        msg["infer"] = {"_deterministic": True}

    def _free(self, machine: EnergyBased) -> EnergyBased:
        assert isinstance(machine, RBM | DBM)
        _check_values(self._site, machine, self._values)
        free: RBM | DBM
        if isinstance(machine, DBM):
            free = machine.clamp(self._mask, self._values)
        elif isinstance(self._mask, Tensor) and isinstance(self._values, Tensor):
            free = machine.clamp(self._mask, self._values)
        else:
            raise TypeError(
                f"site {self._site!r} is an RBM; masks and values by layer are for a DBM"
            )
        return free.normalize(machine.log_partition)


@dataclass(frozen=True)
class _Order:
    """Where free and fixed units of the visible layer go, found once for all runs.

    :param mask: which units are fixed.
    :param index: places of the units among the free ones followed by the fixed ones.
    :param bool is_full: whether no unit is free.
    """

    mask: Tensor
    index: Tensor
    is_full: bool

    @staticmethod
    def of_mask(mask: Any) -> "_Order | None":
        """None for what is no mask; the machine's own ``clamp`` says what is wrong with it."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() != 1:
            return None
        where = torch.arange(len(mask), device=mask.device)
        index = torch.cat([where[~mask], where[mask]]).argsort()
        return _Order(mask, index, bool(mask.all()))


class _Completion:
    """The whole visible layer from its free units.

    :param str site: name of the site, for messages.
    :param machine: the whole machine.
    :param order: which units are fixed, None if no visible ones.
    :param values: their values.
    """

    def __init__(
        self, site: str, machine: RBM | DBM, order: _Order | None, values: _ByLayer
    ) -> None:
        visible = values.get(0) if isinstance(values, Mapping) else values
        self._order = order
        self._fixed: Tensor | None = None
        # Wrong shapes and kinds are refused where the machine is clamped.
        if order is None or order.mask.shape != machine.event_shape:
            return
        if order.is_full:
            raise ValueError(
                f"mask fixes all visible units of site {site!r}; use poutine.condition instead"
            )
        if isinstance(visible, Tensor) and visible.shape[-1:] == machine.event_shape:
            self._fixed = visible.to(machine.parameters()[0])[..., order.mask]

    def __call__(self, free: Tensor) -> Tensor:
        if self._fixed is None or self._order is None:
            return free
        batch = torch.broadcast_shapes(free.shape[:-1], self._fixed.shape[:-1])
        parts = [free.expand(*batch, -1), self._fixed.to(free.dtype).expand(*batch, -1)]
        # Gathered, not written into a copy: gradients and Pyro's provenance go through.
        return torch.cat(parts, -1)[..., self._order.index]


def _check_values(site: str, machine: RBM | DBM, values: _ByLayer) -> None:
    """Values of more rows than the site has would make more sites of it."""
    tensors = values.values() if isinstance(values, Mapping) else [values]
    for value in tensors:
        if isinstance(value, Tensor) and not _broadcasts(value.shape[:-1], machine.batch_shape):
            raise ValueError(
                f"values of shape {tuple(value.shape)} do not broadcast to the batch shape "
                f"{tuple(machine.batch_shape)} of site {site!r}"
            )


def _broadcasts(shape: Size, batch: Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, batch) == batch
    except RuntimeError:
        return False
