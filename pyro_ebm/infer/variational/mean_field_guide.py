# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A factorised guide for the machines among the latent sites of a model."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from operator import attrgetter
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn import PyroModule, PyroParam
from pyro.ops.tensor_utils import periodic_repeat
from torch import Size, Tensor

from pyro_ebm.distributions.units import Bernoulli, Categorical, Ising, Unit
from pyro_ebm.infer.mcmc.site_density import started
from pyro_ebm.infer.variational.layer_distribution import LayerDistribution
from pyro_ebm.infer.variational.prior_layer import prior_layer, visible_machine

__all__ = ["AutoMeanFieldBoltzmann"]

_STARTS = ("mean-field", "bias")


class AutoMeanFieldBoltzmann(AutoGuide):
    r"""Mean-field guide for the energy-based latent sites of a model.

    A site that is an :class:`~pyro_ebm.distributions.RBM` or a :class:`~pyro_ebm.distributions.DBM` gets

    .. math:: q(v) = \prod_i q_i(v_i), \qquad q_i(v_i) \propto e^{-u_i(v_i)},

    where every unit is of the family that it has in the machine (bits, spins, one-hot groups, counts, real
    numbers, ...), with parameters of its own for every row of the plates that the site is in. They are
    parameters of the guide named ``layers.<site>.<name>`` (``bias``, or ``loc`` and ``precision``, ...), of
    full size where a plate is subsampled. The hidden units are summed out in the model, so that q does not
    factorise over them; of a deep machine q is over the visible layer, and the site's log-probability is
    itself a bound.

    Continuous units with a reparametrised draw (Gaussian ones) have pathwise gradients. Discrete ones have
    score-function gradients: use many particles, :class:`pyro.infer.TraceGraph_ELBO` with baselines or
    :class:`~pyro_ebm.infer.LeaveOneOutELBO`; or, up to 1024 states of a site, ``enumerate="parallel"``
    with :class:`pyro.infer.TraceEnum_ELBO`, which has no variance at all. Where the rest of the model is
    linear in the site, :func:`~pyro_ebm.infer.mean_field_posterior` finds a good start without any gradient:
    ``init`` takes it.

    As with any guide, a machine that is learnt needs :class:`~pyro_ebm.infer.ContrastiveDivergence` as the
    loss, or log Z attached. For other latent sites combine guides:

    .. code-block:: python

        guide = AutoGuideList(model)
        guide.append(AutoMeanFieldBoltzmann(poutine.block(model, expose=["v"])))
        guide.append(AutoNormal(poutine.block(model, hide=["v"])))

    **References**

    [1] *An introduction to variational methods for graphical models*, Michael Jordan, Zoubin Ghahramani,
    Tommi Jaakkola, Lawrence Saul (1999)

    :param model: a Pyro model whose latent sites are machines.
    :param init: where the parameters start: ``"mean-field"``, the mean field of the machine itself, without
        the rest of the model, with the natural parameters of discrete units kept within 2, so that none
        starts where its gradient vanishes; ``"bias"``, its visible biases, with the offsets of the machine in
        them and within 2 as well; or natural parameters by site, taken as they are, whose shape broadcasts to
        the plates at full size and the entries of the layer (other sites: mean field). If Pyro's parameter
        store holds parameters of an earlier guide of the same name, those stay, with a warning: call
        ``pyro.clear_param_store()`` first.
    :param enumerate: ``"parallel"`` to enumerate all sites in an enumerating ELBO; None to draw them.
    :param create_plates: see :class:`pyro.infer.autoguide.AutoGuide`.
    :raises ValueError: for other options; when the model is first run, if a latent site is no machine, there
        is no machine, natural parameters do not fit, or a site has too many states to enumerate.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro.infer import SVI, TraceEnum_ELBO
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import AutoMeanFieldBoltzmann, ContrastiveDivergence, exact_log_partition
    >>> x = torch.randn(5, 2)
    >>> rbm = BernoulliRBM(0.1 * torch.randn(3, 4), torch.zeros(3), torch.zeros(4))
    >>> def model():
    ...     with pyro.plate("rows", 5):
    ...         v = pyro.sample("v", rbm)
    ...         pyro.sample("x", dist.Normal(v[..., :2], 1.0).to_event(1), obs=x)
    >>> guide = AutoMeanFieldBoltzmann(model, enumerate="parallel")
    >>> elbo = TraceEnum_ELBO(max_plate_nesting=1)
    >>> loss = ContrastiveDivergence(elbo=elbo, log_partition=exact_log_partition)
    >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=loss)
    >>> losses = [svi.step() for _ in range(3)]
    >>> guide.mean()["v"].shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        init: str | Mapping[str, Tensor] = "mean-field",
        enumerate: str | None = None,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        if not isinstance(init, Mapping) and init not in _STARTS:
            raise ValueError(
                f"init must be one of {_STARTS} or a dict of tensors by site, got {init!r}"
            )
        if enumerate not in (None, "parallel"):
            raise ValueError(f'enumerate must be "parallel" or None, got {enumerate!r}')
        super().__init__(started(model), create_plates=create_plates)
        self._init = init
        self._enumerate = enumerate
        # The families of the sites, with the parameters that they started from.
        self._units: dict[str, Unit] = {}

    # --- Pyro's interface ---------------------------------------------------------------------

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        sites = self._sites()
        self._check_sites(sites)
        self._units, self.layers = {}, PyroModule()
        kept: list[str] = []
        for name, site in sites.items():
            unit = self._start(name, site)
            self._check_enumeration(name, unit)
            self._units[name] = unit
            deep_setattr(self.layers, name, PyroModule())
            own = attrgetter(name)(self.layers)
            for parameter, value in unit.parameters.items():
                event_dim = unit.parameter_event_dim(parameter) + site["fn"].event_dim - 1
                constraint = _constraint(unit, parameter)
                kept += _kept_parameters(own, parameter, value)
                setattr(own, parameter, PyroParam(value.contiguous(), constraint, event_dim))
        if kept and self._init != "mean-field":
            warnings.warn(
                f"the parameters {kept} are in Pyro's parameter store already, of an earlier guide of the "
                "same name: they stay as they are, and init does not count. Call "
                "pyro.clear_param_store() first, or give the sites unique names",
                UserWarning,
                stacklevel=2,
            )

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every site; as the guide of an inference method it is called, not this method.

        :returns: values by site.
        """
        self._prepare(args, kwargs)
        plates = self._create_plates(*args, **kwargs)
        result = {}
        for name, site in self._sites().items():
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                # Within the plates, where the parameters are those of the subsample.
                fn = LayerDistribution(self.layer(name)).to_event(site["fn"].event_dim - 1)
                infer: Any = {} if self._enumerate is None else {"enumerate": self._enumerate}
                result[name] = pyro.sample(name, fn, infer=infer)
        return result

    def layer(self, site: str) -> Unit:
        """The layer q(v) of a site at the present parameters.

        :param str site: name of the site.
        :raises ValueError: if the guide has no such site, or has not been run yet.
        """
        if site not in self._units:
            known = sorted(self._units) if self._units else "none yet: the guide has not been run"
            raise ValueError(f"the guide has no site {site!r}; its sites are {known}")
        unit, own = self._units[site], attrgetter(site)(self.layers)
        return unit.replace(**{name: getattr(own, name) for name in unit.parameters})

    @torch.no_grad()
    def mean(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Means of q by site, at full size of the plates: probabilities, for bits and one-hot groups.

        :param args: arguments of the model, needed if the guide has not been run yet.
        """
        self._prepare(args, kwargs)
        return {name: self.layer(name).mean() for name in self._units}

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Median state of every unit by site, at full size of the plates; of a one-hot group, whose states
        have no order, the most probable state.

        :raises NotImplementedError: for counts and rectified units.
        """
        self._prepare(args, kwargs)
        return {name: _median(self.layer(name)) for name in self._units}

    def _prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)

    def _sites(self) -> dict[str, Any]:
        assert self.prototype_trace is not None
        return dict(self.prototype_trace.iter_stochastic_nodes())

    # --- the start ----------------------------------------------------------------------------

    def _start(self, name: str, site: Any) -> Unit:
        """The layer of a site to start from, at full size of the plates."""
        fn = site["fn"]
        machine = visible_machine(fn)
        assert machine is not None
        extra = fn.event_dim - 1
        batch = fn.batch_shape + fn.event_shape[:-1]
        given = self._init.get(name) if isinstance(self._init, Mapping) else None
        with torch.no_grad():
            start = self._init if isinstance(self._init, str) else "mean-field"
            unit = prior_layer(machine, start).map_whole(
                lambda p, event_dim: _full_size(p, event_dim, batch, extra, site)
            )
            return unit if given is None else _at(name, unit, given)

    def _check_sites(self, sites: Mapping[str, Any]) -> None:
        machines = [name for name, site in sites.items() if visible_machine(site["fn"]) is not None]
        others = [name for name in sites if name not in machines]
        if others or not machines:
            raise ValueError(
                f"AutoMeanFieldBoltzmann takes a model whose latent sites are RBMs or DBMs; there are "
                f"{machines}, and other sites {others}: use AutoGuideList and "
                f"poutine.block(model, expose={machines}) for this guide"
            )
        if isinstance(self._init, Mapping):
            unknown = sorted(set(self._init) - set(machines))
            if unknown:
                raise ValueError(
                    f"init names the sites {unknown}, but those of the guide are {machines}"
                )

    def _check_enumeration(self, name: str, unit: Unit) -> None:
        if self._enumerate is not None and not LayerDistribution(unit).has_enumerate_support:
            raise ValueError(
                f"site {name!r} cannot be enumerated: its visible layer {unit!r} has "
                f"{unit.num_states or 'infinitely many'} states"
            )


def _kept_parameters(module: PyroModule, name: str, value: Tensor) -> list[str]:
    """The full name of a parameter if Pyro's store holds it with another value, which then stays."""
    full = f"{module._pyro_name}.{name}"
    store = pyro.get_param_store()
    if pyro.settings.get("module_local_params") or full not in store:
        return []
    return [] if torch.equal(store[full].detach(), value) else [full]


def _full_size(p: Tensor, event_dim: int, batch: Size, extra: int, site: Any) -> Tensor:
    """A parameter for every row, those that a subsample leaves out too."""
    full = p.expand(batch + p.shape[p.dim() - event_dim :])
    for frame in site["cond_indep_stack"]:
        if frame.full_size not in (None, frame.size):
            full = periodic_repeat(full, frame.full_size, frame.dim - event_dim - extra)
    return full.clone()


def _at(name: str, unit: Unit, theta: Tensor) -> Unit:
    """The layer at given natural parameters."""
    shape = (*unit.batch_shape, unit.size)
    try:
        fits = torch.broadcast_shapes(theta.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits or not bool(torch.isfinite(theta).all()):
        raise ValueError(
            f"init[{name!r}] must be finite natural parameters of shape {tuple(shape)}, got "
            f"shape {tuple(theta.shape)}{'' if not fits else ' with NaN or infinity'}"
        )
    return unit.tilt(theta.to(unit.natural_bias) - unit.natural_bias)[0]


def _constraint(unit: Unit, parameter: str) -> Any:
    """The values that a parameter may take; those of a mixed layer are its blocks'."""
    if parameter in unit.parameter_constraints:
        return unit.parameter_constraints[parameter]
    number, own = parameter.split("_", 1)
    return unit.parts()[int(number)][1].parameter_constraints[own]


def _median(unit: Unit) -> Tensor:
    return torch.cat([_median_of_family(part) for _, part in unit.parts()], -1)


def _median_of_family(unit: Unit) -> Tensor:
    if unit.is_gaussian:
        return unit.mean()
    bias = unit.natural_bias
    if isinstance(unit, Bernoulli):
        return (bias > 0.0).to(bias)
    if isinstance(unit, Ising):
        return torch.where(bias > 0.0, 1.0, -1.0).to(bias)
    if isinstance(unit, Categorical):
        groups = bias.unflatten(-1, (unit.num_units, -1))
        top = groups.argmax(-1, keepdim=True)
        return torch.zeros_like(groups).scatter(-1, top, 1.0).flatten(-2)
    raise NotImplementedError(f"{type(unit).__name__} units have no median here; use mean()")
