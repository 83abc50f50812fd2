# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The machines of a Pyro program, found by running it once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from pyro import poutine
from pyro.infer.inspect import is_sample_site
from pyro.ops.provenance import ProvenanceTensor, detach_provenance, get_provenance
from pyro.poutine.messenger import Messenger
from torch import Size, Tensor

from pyro_ebm.distributions import DBM, RBM, EnergyBased
from pyro_ebm.distributions.wrapped import is_masked_out, replace_machine, wrapped_machine
from pyro_ebm.infer.contrastive.normalizer import normalizer_of
from pyro_ebm.infer.mcmc.site_density import started

__all__ = ["ProgramSite", "check_log_partitions", "machine_sites"]


@dataclass(frozen=True, eq=False)
class ProgramSite:
    """A machine in a Pyro program, as the handlers around the site leave it.

    :param str name: name of the site.
    :param machine: the compact machine (:meth:`~pyro_ebm.distributions.EnergyBased.compact`), without what
        plates, ``.mask()`` and ``.to_event()`` put around it.
    :param batch_shape: batch shape of the site's distribution, plates included.
    :param event_shape: its event shape; longer than the machine's after ``.to_event()``.
    :param plates: names of the plates around it, from the outermost dimension to the innermost.
    :param scale: what the log-probability is multiplied with: subsampling and ``poutine.scale``.
    :param mask: which rows count, from ``poutine.mask`` and ``.mask()`` together: None for all of them, False
        for none, otherwise a tensor that broadcasts to the batch shape.
    :param bool is_observed: whether the site has a value from outside.
    :param log_partition: the attached log Z; None if there is none.
    :param depends_on: the latent sites that its parameters are computed from, directly.
    :param bool requires_grad: whether a parameter of the machine requires a gradient.
    :param normalizer: the machine whose log Z the site needs. It is ``machine``, unless that is a part of it
        which :func:`~pyro_ebm.infer.clamped` has left free.
    :param bool is_constant: whether the attached log Z is not computed from all of
        ``depends_on``, as a number is not.
    """

    name: str
    machine: EnergyBased
    batch_shape: Size
    event_shape: Size
    plates: tuple[str, ...]
    scale: float | Tensor
    mask: Tensor | bool | None
    is_observed: bool
    log_partition: Tensor | None
    depends_on: tuple[str, ...]
    requires_grad: bool
    normalizer: EnergyBased
    is_constant: bool = False

    @property
    def is_normalized(self) -> bool:
        """Whether log Z is attached."""
        return self.log_partition is not None

    @property
    def needs_log_partition(self) -> bool:
        """Whether the density of the program is wrong without a log Z that is not attached, or attached as a
        constant: it is another number at every value of the latent sites that the parameters depend on."""
        unknown = not self.is_normalized or self.is_constant
        return bool(self.depends_on) and unknown and self.mask is not False

    def __str__(self) -> str:
        kind = type(self.machine).__name__
        layers = self.machine.units if isinstance(self.machine, DBM) else ()
        if isinstance(self.machine, RBM):
            layers = (self.machine.visible, self.machine.hidden)
        sizes = " x ".join(f"{unit.size} {type(unit).__name__}" for unit in layers)
        notes = ["observed" if self.is_observed else "latent"]
        notes.append("normalised" if self.is_normalized else "unnormalised")
        notes += [f"plates {', '.join(self.plates)}"] if self.plates else []
        scaled = isinstance(self.scale, Tensor) or self.scale != 1.0
        notes += [f"scale {_number(self.scale)}"] if scaled else []
        if self.mask is not None:
            notes.append("masked" if self.mask is False else "rows masked")
        notes += [f"depends on {', '.join(self.depends_on)}"] if self.depends_on else []
        notes += ["clamped"] if self.normalizer is not self.machine else []
        notes += ["learnable"] if self.requires_grad else []
        shape = tuple(self.batch_shape)
        return f"{self.name}: {kind}({sizes}), batch shape {shape}, {', '.join(notes)}"


def machine_sites(model: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, ProgramSite]:
    """The energy-based sites of a Pyro model or guide.

    The program is run once, with the handlers that it is wrapped in: plates, subsampling, ``poutine.mask``,
    ``scale``, ``condition``, ``do``, ``replay``, ``reparam``. Sites that ``poutine.block`` hides are not
    found; neither are those whose distribution is no machine any more, as after
    :class:`~pyro_ebm.infer.FactorReparam`. Latent machines start without their weights, so that the run
    costs no Markov chain; the state of the random number generator is put back.

    What the parameters depend on is followed through the program's tensors
    (:mod:`pyro.ops.provenance`). A value that is taken out of them, as by ``.item()``, is lost.

    :param model: the model or guide.
    :param args: its arguments.
    :param kwargs: its keyword arguments.
    :returns: the sites by name, in the order of the program.
    :raises TypeError: if ``model`` is not callable, or a machine is within a distribution that cannot be
        looked into.

    >>> import pyro, torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import machine_sites
    >>> def model(rows):
    ...     field = pyro.sample("field", pyro.distributions.Normal(0.0, 1.0))
    ...     machine = BernoulliRBM(torch.zeros(4, 2), field * torch.ones(4), torch.zeros(2))
    ...     with pyro.plate("rows", 100, subsample_size=len(rows)):
    ...         pyro.sample("v", machine, obs=rows)
    >>> print(machine_sites(model, torch.ones(5, 4))["v"])  # doctest: +NORMALIZE_WHITESPACE
    v: RBM(4 Bernoulli x 2 Bernoulli), batch shape (5,), observed, unnormalised, plates rows, scale 20,
        depends on field
    """
    if not callable(model):
        raise TypeError(f"model must be a Pyro model or guide, got {type(model).__name__}")
    with torch.random.fork_rng(), torch.enable_grad(), _Sources():
        trace = poutine.trace(started(model)).get_trace(*args, **kwargs)
    nodes = cast(dict[str, Any], trace.nodes)
    latent = [name for name, node in nodes.items() if _is_latent(node)]
    return {
        name: _site(node, latent)
        for name, node in nodes.items()
        if node["type"] == "sample" and wrapped_machine(node["fn"]) is not None
    }


def check_log_partitions(
    model: Callable[..., Any], *args: Any, **kwargs: Any
) -> dict[str, ProgramSite]:
    r"""Refuse a program whose density is not that of its machines up to a constant.

    Where the parameters of a machine depend on a latent site :math:`\theta`, its log Z is a function of
    :math:`\theta`, and no inference about :math:`\theta` is right without it. HMC and NUTS say so by
    themselves, as gradients are enabled while they run the model; so does
    :class:`pyro.infer.mcmc.RandomWalkKernel`. Methods that draw the parameters cannot notice:
    :class:`pyro.infer.Importance`, :class:`pyro.infer.SMCFilter`. Call this before them. An attached log Z
    must be computed from the same latent sites; a constant is refused.

    A site under :class:`~pyro_ebm.infer.FactorReparam` is not found, as it is no machine any more, and so not
    checked: call this on the program without it.

    :param model: the model.
    :param args: its arguments.
    :param kwargs: its keyword arguments.
    :returns: what :func:`machine_sites` does.
    :raises ValueError: if such a machine has no log Z, naming all of them.
    """
    sites = machine_sites(model, *args, **kwargs)
    wrong = [site for site in sites.values() if site.needs_log_partition]
    if wrong:
        named = "; ".join(
            f"{site.name!r} depends on {', '.join(site.depends_on)}" for site in wrong
        )
        raise ValueError(
            f"machines without log Z have parameters that depend on latent sites: {named}. Their log Z is a "
            "function of these, without which (as with a constant) every posterior is wrong: attach it by "
            ".normalize(exact_log_partition(dist)), or use ContrastiveDivergence under SVI"
        )
    return sites


class _Sources(Messenger):
    """Marks the values of latent sites, so that tensors that are computed from them can be told."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if _is_latent(msg) and isinstance(msg["value"], Tensor):
            # Direct dependences only: what the value itself was drawn from is not repeated.
            value = detach_provenance(msg["value"])
            msg["value"] = ProvenanceTensor(value, frozenset({msg["name"]}))


def _is_latent(node: Any) -> bool:
    return is_sample_site(node) and not node["is_observed"]


def _site(node: Any, latent: list[str]) -> ProgramSite:
    fn, found = node["fn"], []

    def keep(machine: EnergyBased, mask: Tensor | None) -> EnergyBased:
        found.append((machine, mask))
        return machine

    outer = node["mask"]
    replace_machine(fn, keep, outer if isinstance(outer, Tensor) else None, site=node["name"])
    machine, mask = found[0]
    parameters = machine.parameters()
    sources = get_provenance(parameters)
    compact = _plain(machine)
    other = normalizer_of(machine)
    has_log_z = machine.log_partition is not None
    known = get_provenance(machine.log_partition) if has_log_z else frozenset()
    depends_on = tuple(name for name in latent if name in sources)
    frames = sorted((f for f in node["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim)
    return ProgramSite(
        name=node["name"],
        machine=compact,
        batch_shape=fn.batch_shape,
        event_shape=fn.event_shape,
        plates=tuple(frame.name for frame in frames),
        scale=node["scale"],
        mask=False if is_masked_out(fn, outer) else _untracked(mask),
        is_observed=node["is_observed"],
        log_partition=_untracked(machine.log_partition),
        depends_on=depends_on,
        is_constant=has_log_z and not known.issuperset(depends_on),
        requires_grad=any(p.requires_grad for p in parameters),
        normalizer=compact if other is None else _plain(other.machine),
    )


def _plain(machine: EnergyBased) -> EnergyBased:
    """The compact machine, whose tensors do not carry where they come from."""
    compact = machine.compact()
    return compact._map(detach_provenance) if isinstance(compact, RBM | DBM) else compact


def _untracked(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else detach_provenance(tensor)


def _number(scale: float | Tensor) -> str:
    """A scale for people."""
    if isinstance(scale, Tensor) and scale.numel() > 1:
        return f"of shape {tuple(scale.shape)}"
    return f"{float(scale):g}"
