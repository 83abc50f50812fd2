# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The rest of a Pyro model as a function of the value of one of its sites."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro import plate, poutine
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Size, Tensor

from pyro_ebm.distributions import DBM, RBM, EnergyBased
from pyro_ebm.distributions.units import Unit
from pyro_ebm.distributions.wrapped import replace_machine, wrapped_machine
from pyro_ebm.infer.mcmc.even_layers import EvenLayers, EvenLayersMessenger, deep_machine

__all__ = [
    "SiteDensity",
    "initial_trace",
    "is_plate",
    "latent_sites",
    "plate_nesting",
    "refuse_random_subsample",
    "started",
]

#: Random values at which a property of the whole function is checked.
_NUM_PROBES = 8
#: What a model raises if its code cannot take a further batch axis on the left.
_SHAPE_ERRORS = (AssertionError, IndexError, NotImplementedError, RuntimeError, ValueError)


def started(model: Callable[..., Any]) -> Callable[..., Any]:
    """A model in which latent machines start without their weights, which costs no chain."""
    wrapped: Callable[..., Any] = InitMessenger(_start)(model)
    return wrapped


def initial_trace(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> poutine.Trace:
    """One run of a model as :func:`started`, in which nothing is subsampled.

    :raises ValueError: if the model subsamples: its log-density would differ from run to run.
    """
    trace = poutine.trace(started(model)).get_trace(*args, **kwargs)
    refuse_random_subsample(trace, "so that no chain is valid")
    return trace


def refuse_random_subsample(trace: poutine.Trace, why: str) -> None:
    """Refuse plates whose rows differ from run to run.

    :param str why: what that breaks, for the message.
    :raises ValueError: if there are any.
    """
    for name, node in _nodes(trace).items():
        if is_plate(node) and (node["fn"].subsample_size or node["fn"].size) < node["fn"].size:
            raise ValueError(f"plate {name!r} takes a random subsample, {why}")


def _nodes(trace: poutine.Trace) -> dict[str, Any]:
    # Pyro's annotations of a node are narrower than what sample sites hold.
    nodes: dict[str, Any] = trace.nodes
    return nodes


def _start(node: Any) -> Tensor:
    fn = node["fn"]
    machine = wrapped_machine(fn)
    if isinstance(machine, RBM | DBM):
        unit = machine.visible if isinstance(machine, RBM) else machine.units[0]
        theta = unit.natural_bias.detach()
        value = unit.natural_sample(theta.expand(fn.shape()))
    else:
        value = fn.sample().detach()
    # As Pyro's own: reparametrisers may choose another start without a warning.
    value._pyro_custom_init = False  # type: ignore[attr-defined]
    return value


def latent_sites(trace: poutine.Trace) -> list[str]:
    """Names of the sites of a trace that are neither observed nor plates."""
    return [
        name
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and not is_plate(node)
    ]


def _agree(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether two log-densities of the same terms, elementwise, differ by rounding alone."""
    coarse = torch.finfo(dtype).eps > 1e-10
    return torch.isclose(a, b, rtol=1e-5 if coarse else 1e-10, atol=1e-2 if coarse else 1e-7)


class SiteDensity:
    r"""The log-density of the rest of a model as a function of the value x of one site.

    .. math:: \ell(x) = \log p(\text{all sites below} \mid x, \text{all sites above}) + \mathrm{const}

    "Below" are the sites that the model visits after this one, observed or conditioned on; those that it
    visits before cannot depend on x and are left out. Log-densities are summed by row of the site's
    batch shape, of which every element must be independent of the others given the rest. Plates, masks,
    ``poutine.scale``, ``pyro.factor`` and observations count as in Pyro. If the site itself is scaled or
    masked, what that changes of its own log-density belongs to the rest.

    The model is run once for every call, so that it may be conditioned on a dictionary whose values
    change: ``SiteDensity(poutine.condition(model, data=values), "x")``.

    **Deep machines.** The value of a site that is a DBM is the state of all of its even layers, one after
    the other, and its distribution :meth:`~pyro_ebm.distributions.DBM.bipartite`: so the site's own
    log-density is exact. The model goes on with the visible layer.

    **Chains.** Values may have leading chain axes. The model is then run once within a further plate on
    the left, as in :class:`pyro.infer.Trace_ELBO` with ``vectorize_particles``; models that cannot
    be (found out by comparing with single runs) are run once for every chain.

    :param model: the model.
    :param str site: name of the site; if None, the one that is latent.
    :param args: arguments of the model.
    :param kwargs: keyword arguments of the model.
    :raises ValueError: if there is no such site, other sites are latent, the model subsamples, the
        rest mixes rows, or a site below is a machine without log Z whose parameters depend on x.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro_ebm.infer.mcmc.site_density import SiteDensity
    >>> def model():
    ...     x = pyro.sample("x", dist.Bernoulli(0.5))
    ...     pyro.sample("y", dist.Normal(2.0 * x, 1.0), obs=torch.tensor(1.0))
    >>> rest = SiteDensity(model)
    >>> rest.value_and_gradient(torch.tensor([0.0, 1.0, 0.5]))[1]
    tensor([ 2., -2.,  0.])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        site: str | None = None,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        messenger = EvenLayersMessenger()
        self._model = messenger(model)
        self._args, self._kwargs = args, dict(kwargs or {})
        with torch.no_grad():
            trace = initial_trace(self._model, self._args, self._kwargs)
        #: Name of the site.
        self.name = _choose(trace, site)
        node = _nodes(trace)[self.name]
        #: The site's distribution in the latest run without chain axes.
        self.fn: TorchDistribution = node["fn"]
        #: The parts of the site's value: a deep machine's even layers.
        self.layers = EvenLayers.of_site(self.name, messenger.machines.get(self.name))
        #: The deep machine of the first run, None for any other distribution.
        self.deep = deep_machine(node)
        #: Batch shape of the site, whose elements are independent given the rest.
        self.rows: Size = self.fn.batch_shape
        #: The site's value in the first run.
        self.value: Tensor = node["value"].detach()
        self._plate_dim = -1 - max(plate_nesting(n) for n in _nodes(trace).values())
        # Sites below that have other axes than the rows, and were found not to depend on the value.
        self._ignored: frozenset[str] = frozenset()
        self._chains_fit: bool | None = None
        with torch.no_grad():
            self._ignored = self._independent_sites()
            self._check_machines()
            self._check_rows()

    # --- what it computes ---------------------------------------------------------------------

    @torch.no_grad()
    def log_density(self, value: Tensor) -> Tensor:
        """Log-density of the rest, up to a constant.

        :param Tensor value: shape ``chain_shape + rows + event_shape``.
        :returns: float64, shape ``chain_shape + rows``.
        """
        return self._evaluate(value, own=False)

    @torch.no_grad()
    def log_joint(self, value: Tensor) -> Tensor:
        """The same with the site's own log-density: that of the site given the rest, up to a constant."""
        return self._evaluate(value, own=True)

    def value_and_gradient(self, value: Tensor, *, own: bool = False) -> tuple[Tensor, Tensor]:
        """Log-density of the rest, and its gradient by a value of floating-point type.

        The gradient is zero where the rest does not depend on the value, or not differentiably.

        :param bool own: whether to add the site's own log-density, as :meth:`log_joint` does.
        :returns: ``log_density(value)``, and the gradient in the shape and dtype of ``value``.
        """
        with torch.enable_grad():
            leaf = value.detach().requires_grad_()
            total = self._evaluate(leaf, own=own)
            gradient = _gradient(total, leaf, create_graph=False)
        return total.detach(), gradient.detach()

    def second_order(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-density, gradient, and the row sums of the matrix of second derivatives of every row.

        Where the rest is a sum of functions of single entries, the row sums are its second
        derivatives. The model must be twice differentiable by autograd.
        """
        with torch.enable_grad():
            leaf = value.detach().requires_grad_()
            total = self._evaluate(leaf, own=False)
            gradient = _gradient(total, leaf, create_graph=True)
            curvature = _gradient(gradient, leaf, create_graph=False)
        return total.detach(), gradient.detach(), curvature.detach()

    @property
    def seen_units(self) -> Unit:
        """The units of a machine that the rest of the model depends on: its visible layer, of which the first
        entries of a deep machine's value are the states."""
        if self.deep is not None:
            return self.deep.units[0]
        assert isinstance(self.fn, RBM)
        return self.fn.visible

    @property
    def runs_chains(self) -> bool:
        """Whether values with chain axes were found to take one run of the model."""
        return bool(self._chains_fit)

    # --- runs of the model --------------------------------------------------------------------

    def _evaluate(self, value: Tensor, own: bool) -> Tensor:
        event = self.rows + self.fn.event_shape
        chains = value.shape[: value.dim() - len(event)]
        if value.shape != chains + event:
            raise ValueError(
                f"a value of site {self.name!r} must have shape (..., {', '.join(map(str, event))}), "
                f"got {tuple(value.shape)}"
            )
        if not chains:
            return self._run(value, own)
        flat = value.reshape((-1, *event))
        if self._fits_chains(flat, own):
            total = self._run_chains(flat, own)
        else:
            total = torch.stack([self._run(v, own) for v in flat.unbind(0)])
        return total.reshape(chains + self.rows)

    def _fits_chains(self, flat: Tensor, own: bool) -> bool:
        """Whether the model can be run with a further plate on the left; found out once."""
        if self._chains_fit is None and len(flat) > 1:
            with torch.no_grad():
                ends = flat[[0, -1]].detach()
                expected = torch.stack([self._run(v, own) for v in ends])
                try:
                    got = self._run_chains(ends, own)
                except _SHAPE_ERRORS:
                    self._chains_fit = False
                else:
                    self._chains_fit = bool(_agree(got, expected, self._dtype).all())
        return bool(self._chains_fit)

    @property
    def _dtype(self) -> torch.dtype:
        return self.value.dtype if self.value.is_floating_point() else torch.get_default_dtype()

    def _run(self, value: Tensor, own: bool) -> Tensor:
        trace = self._trace(self._model, value)
        self.fn = _nodes(trace)[self.name]["fn"]
        return self._total(trace, self.rows, own)

    def _run_chains(self, flat: Tensor, own: bool) -> Tensor:
        num_chains = len(flat)
        lift = (1,) * (-1 - self._plate_dim - len(self.rows))
        event = self.fn.event_shape
        value = flat.reshape((num_chains, *lift, *self.rows, *event))

        def many(*args: Any, **kwargs: Any) -> Any:
            with plate("_pyro_ebm_chains", num_chains, dim=self._plate_dim):
                return self._model(*args, **kwargs)

        trace = self._trace(many, value)
        total = self._total(trace, Size((num_chains, *lift, *self.rows)), own)
        return total.reshape((num_chains, *self.rows))

    def _trace(self, model: Callable[..., Any], value: Tensor) -> poutine.Trace:
        conditioned = poutine.condition(model, data={self.name: value})
        return poutine.trace(conditioned).get_trace(*self._args, **self._kwargs)

    def _total(self, trace: poutine.Trace, rows: Size, own: bool) -> Tensor:
        total = _own_log_prob(_nodes(trace)[self.name], own)
        for name, log_prob in self._below(trace):
            total = total + _by_row(log_prob.double(), rows, name)
        return total.expand(rows)

    def _below(self, trace: poutine.Trace) -> Iterator[tuple[str, Tensor]]:
        """Log-densities of the sites that the model visits after this one."""
        nodes = _nodes(trace)
        names = list(nodes)
        below = names[names.index(self.name) + 1 :]
        counted = [n for n in below if _is_counted(nodes[n]) and n not in self._ignored]
        trace.compute_log_prob(lambda name, _: name in counted)
        return ((name, nodes[name]["log_prob"]) for name in counted)

    # --- what is refused ----------------------------------------------------------------------

    def _probes(self) -> list[Tensor]:
        """Values at which a dependence would show: all of a finite site, otherwise random ones."""
        if not self.fn.event_shape and self.fn.has_enumerate_support:
            states: Tensor = self.fn.enumerate_support()
            return list(states.unbind(0))
        return [_random_value(self.fn) for _ in range(_NUM_PROBES)]

    def _independent_sites(self) -> frozenset[str]:
        """Sites below whose log-density has not the axes of the rows, as it does not depend on x."""
        reference = dict(self._below(self._trace(self._model, self.value)))
        others = {name for name, p in reference.items() if not _has_rows(p, self.rows)}
        for value in self._probes() if others else ():
            for name, log_prob in self._below(self._trace(self._model, value)):
                if name in others and not torch.equal(log_prob, reference[name]):
                    _refuse_mixing(name, log_prob.shape, self.rows)
        return frozenset(others)

    def _check_machines(self) -> None:
        """A machine below needs its log Z if its parameters depend on x, or which of its rows count."""
        reference = self._unnormalised(self._trace(self._model, self.value))
        for value in self._probes() if reference else ():
            for name, tensors in self._unnormalised(self._trace(self._model, value)).items():
                if not _are_equal(tensors, reference.get(name, [])):
                    raise ValueError(
                        f"the parameters or the mask of the machine at site {name!r} depend on site "
                        f"{self.name!r}, but its log Z is not attached; use .normalize(...)"
                    )

    def _unnormalised(self, trace: poutine.Trace) -> dict[str, list[Tensor]]:
        """What log Z's share in the density depends on: parameters, and the mask and the scale of rows."""
        nodes = _nodes(trace)
        names = list(nodes)
        found: dict[str, list[Tensor]] = {}
        for name in names[names.index(self.name) + 1 :]:
            node = nodes[name]
            if node["type"] != "sample":
                continue

            def note(machine: EnergyBased, rows: Tensor | None, node: Any = node) -> EnergyBased:
                if machine.log_partition is None:
                    others = (rows, node["scale"])
                    found[node["name"]] = [
                        *machine.parameters(),
                        *(x for x in others if isinstance(x, Tensor)),
                    ]
                return machine

            mask = node["mask"] if isinstance(node["mask"], Tensor) else None
            replace_machine(node["fn"], note, mask, site=name)
        return found

    def _check_rows(self) -> None:
        """Changing some rows must not change the log-density of the others."""
        if self.rows.numel() < 2:
            return
        reference = self._run(self.value, own=False)
        for value in self._probes():
            changed = torch.rand(self.rows, device=value.device) < 0.5
            lifted = changed.reshape(self.rows + (1,) * len(self.fn.event_shape))
            mixed = self._run(torch.where(lifted, value, self.value), own=False)
            if not bool((_agree(mixed, reference, self._dtype) | changed).all()):
                raise ValueError(
                    f"the rest of the model mixes rows of site {self.name!r}, whose batch shape is "
                    f"{tuple(self.rows)}: the log-density of one row depends on the value of another"
                )


def _choose(trace: poutine.Trace, site: str | None) -> str:
    latent = latent_sites(trace)
    if site is None:
        if len(latent) != 1:
            raise ValueError(
                f"a model with one latent site is needed; the latent sites are {latent}"
            )
        return latent[0]
    if site not in trace.nodes or trace.nodes[site]["type"] != "sample":
        raise ValueError(f"the model has no site {site!r}; its latent sites are {latent}")
    others = [name for name in latent if name != site]
    if others:
        raise ValueError(
            f"the sites beside {site!r} must be observed or conditioned on, but {others} are latent"
        )
    return site


def _are_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


def is_plate(node: Any) -> bool:
    """Whether a node of a trace is Pyro's own site of a plate, which draws its rows."""
    return node["type"] == "sample" and type(node["fn"]).__name__ == "_Subsample"


def _is_counted(node: Any) -> bool:
    return node["type"] == "sample" and not is_plate(node) and node["mask"] is not False


def plate_nesting(node: Any) -> int:
    """Number of batch axes, counted from the right, that a node of a trace takes."""
    if node["type"] != "sample" or is_plate(node):
        return 0
    dims = [-frame.dim for frame in node["cond_indep_stack"] if frame.vectorized]
    return max([len(node["fn"].batch_shape), *dims])


def _random_value(fn: TorchDistribution) -> Tensor:
    """A value from a law with the site's support; for a machine, without any field."""
    machine = wrapped_machine(fn)
    if isinstance(machine, RBM):
        theta = machine.visible.neutral().natural_bias.detach()
        return machine.visible.natural_sample(theta.expand(fn.batch_shape + fn.event_shape))
    value: Tensor = fn.sample().detach()
    return value


def _detached(machine: EnergyBased, _: Tensor | None) -> EnergyBased:
    """A machine within another distribution, whose log_prob() has no parameters to guard."""
    return machine.detach() if isinstance(machine, RBM | DBM) else machine


def _own_log_prob(node: Any, own: bool) -> Tensor:
    """The site's own log-density if wanted, otherwise what scale and mask change of it."""
    fn, scale, mask = node["fn"], node["scale"], node["mask"]
    scaled = mask is not None or isinstance(scale, Tensor) or scale != 1.0
    if not own and not scaled:
        value: Tensor = node["value"]
        return torch.zeros((), dtype=torch.float64, device=value.device)
    if isinstance(fn, EnergyBased):
        # The guard of log_prob() is about gradients by parameters, which nobody takes here.
        log_prob = fn.normalized_log_prob(node["value"], fn.log_partition)
    else:
        log_prob = replace_machine(fn, _detached, site=node["name"]).log_prob(node["value"])
    result = log_prob.double()
    if scaled:
        kept = result * scale
        if mask is not None:
            kept = torch.where(torch.as_tensor(mask, device=kept.device), kept, 0.0)
        result = kept if own else kept - result
    return result


def _has_rows(log_prob: Tensor, rows: Size) -> bool:
    try:
        return torch.broadcast_shapes(log_prob.shape, rows) == log_prob.shape
    except RuntimeError:
        return False


def _by_row(log_prob: Tensor, rows: Size, name: str) -> Tensor:
    """Sum a log-density over the axes that the site does not have."""
    if not _has_rows(log_prob, rows):
        _refuse_mixing(name, log_prob.shape, rows)
    return log_prob.sum_to_size(rows)


def _refuse_mixing(name: str, shape: Size, rows: Size) -> None:
    raise ValueError(
        f"site {name!r} of shape {tuple(shape)} mixes rows of the latent site, whose batch shape is "
        f"{tuple(rows)}"
    )


def _gradient(total: Tensor, leaf: Tensor, create_graph: bool) -> Tensor:
    """Gradient of a sum, zeros where there is no graph."""
    if not total.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(
        total.sum(), leaf, create_graph=create_graph, allow_unused=True
    )
    return torch.zeros_like(leaf) if gradient is None else gradient
