# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Neural Boltzmann machines: conditional distributions whose parameters come from networks."""

import copy
from abc import ABCMeta
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from pyro.distributions import ConditionalDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_ebm import distributions
from pyro_ebm.distributions.units import Unit
from pyro_ebm.nn.conditional_layer import make_layer
from pyro_ebm.nn.independent_fit import fit_independent
from pyro_ebm.nn.nbm_arguments import check_rows, check_sizes, check_weight
from pyro_ebm.nn.networks import ReLU, Sequential, mlp
from pyro_ebm.nn.param_store import LocalModule, private_parameters
from pyro_ebm.nn.unit_parameters import check_seed_and_dtype
from pyro_ebm.nn.visible_networks import FrozenNetworks, VisibleNetworks
from pyro_ebm.nn.weight_maps import WEIGHT_MAPS
from pyro_ebm.ops.modules import random_sites

__all__ = ["NeuralBoltzmannMachine"]


class _ConditionalModuleMeta(type(PyroModule), ABCMeta):  # type: ignore[misc]
    """Lets a class be a PyroModule and a ConditionalDistribution at once."""


class NeuralBoltzmannMachine(  # type: ignore[metaclass]
    LocalModule, ConditionalDistribution, metaclass=_ConditionalModuleMeta
):
    r"""A conditional RBM all of whose parameters are networks of a context x.

    .. math::
        E(y, h \mid x) = u_{visible}(y; x) + u_{hidden}(h; x) - (y - o(x))^\top W(x)\, h

    With Gaussian visible units :math:`u_{visible} = (y - \mu(x))^\top P(x) (y - \mu(x)) / 2` and
    :math:`o = \mu(x)`, the model of [1], here with a hidden bias c(x), without which p(y | x) is
    symmetric about :math:`\mu(x)`. Ising, Bernoulli and categorical visible units have a bias b(x) and an
    offset that :meth:`init_from_data` puts at an estimate of E[y | x] and that stays there
    (centring); with ``visible_options={"form": "quadratic"}`` spins and bits have the energy of [1].

    :meth:`condition` (or calling the module) gives :class:`pyro_ebm.distributions.RBM` with the batch shape
    of the contexts, so that everything that takes an RBM takes a neural Boltzmann machine.

    Networks are attributes of the module by the name of what they make: ``loc`` and ``log_precision``
    (Gaussian units), ``cov_factor`` (low-rank Gaussian units), ``bias`` (other units), ``hidden_bias``
    and ``weight``, with ``_0``, ``_1``, ... appended for the blocks of mixed units. Without others, those of
    vectors are perceptrons with layers of ``hidden_sizes`` and the weight is affine in the features.

    **References**

    [1] *Neural Boltzmann Machines*, Alex Lang, Anton Loukianov, Charles Fisher (2023), arXiv 2305.08337

    :param int num_context: entries of a context.
    :param int num_visible: entries of the visible layer (one-hot groups flattened).
    :param int num_hidden: entries of the hidden layer.
    :param str visible: family of the visible layer: a name of ``pyro_ebm.nn.conditional_layer.LAYERS``.
    :param str hidden: family of the hidden layer: "ising", "bernoulli" or "categorical".
    :param visible_options: options of the visible family: ``min_precision``, ``max_precision`` and ``bound``
        ("soft" or "hard") of precisions; ``form`` ("natural" or "quadratic") of "ising" and
        "bernoulli", ``bounded_loc`` (whether the mean of that form is bounded by a tanh or sigmoid);
        ``num_states`` of "categorical"; ``total_count`` of "multinomial"; ``rank`` of
        "low-rank-gaussian"; ``blocks`` of "mixed", a list of ``{"family", "size", "options"}``.
    :param hidden_options: options of the hidden family: ``num_states`` of "categorical".
    :param hidden_sizes: sizes of the hidden layers of the networks of vectors.
    :param trunk_sizes: sizes of the layers of a rectified network that all other networks read
        instead of the context; none if empty.
    :param bool hidden_bias: whether hidden units have a bias c(x); False in [1].
    :param str weight: how the weight depends on the features: "full", "constant", "basis" or "factored", see
        :mod:`pyro_ebm.nn.weight_maps`.
    :param weight_options: ``num_bases`` of "basis", ``num_factors`` of "factored".
    :param bool scale_weight: whether W(x) is what its network gives over :math:`\sqrt{V}`.
    :param bool centered: whether visible units without an offset of their own are centred.
    :param networks: networks to use in the place of the default ones, by name, from features
        ``(..., F)`` to ``(..., n)``, or ``(..., V, H)`` for "weight". A module with such networks is
        not written by :func:`pyro_ebm.save`.
    :param trunk: a network from contexts to features in the place of ``trunk_sizes``; gives its number of
        features by ``num_features``.
    :param int num_features: features that ``trunk`` gives.
    :param int seed: seed of the initial parameters; the global generator if None.
    :param dtype: floating-point type.
    :param device: device.
    :raises ValueError: for unknown families, options, networks, or impossible sizes; for given networks
        of a centred visible layer whose weights are random.

    >>> import torch
    >>> from pyro_ebm.nn import NeuralBoltzmannMachine
    >>> nbm = NeuralBoltzmannMachine(num_context=3, num_visible=5, num_hidden=4, seed=0)
    >>> machine = nbm.condition(torch.eye(3))
    >>> machine.batch_shape, machine.event_shape
    (torch.Size([3]), torch.Size([5]))
    """

    def __init__(
        self,
        num_context: int,
        num_visible: int,
        num_hidden: int,
        visible: str = "gaussian",
        hidden: str = "ising",
        *,
        visible_options: Mapping[str, Any] | None = None,
        hidden_options: Mapping[str, Any] | None = None,
        hidden_sizes: Sequence[int] = (32,),
        trunk_sizes: Sequence[int] = (),
        hidden_bias: bool = True,
        weight: str = "full",
        weight_options: Mapping[str, Any] | None = None,
        scale_weight: bool = True,
        centered: bool = True,
        networks: Mapping[str, nn.Module] | None = None,
        trunk: nn.Module | None = None,
        num_features: int | None = None,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_seed_and_dtype(seed, dtype)
        sizes = {"num_context": num_context, "num_visible": num_visible, "num_hidden": num_hidden}
        check_sizes(sizes, hidden_sizes, trunk_sizes, trunk, num_features)
        if hidden not in ("ising", "bernoulli", "categorical"):
            raise ValueError(
                f"hidden must be 'ising', 'bernoulli' or 'categorical', got {hidden!r}"
            )
        self._visible = make_layer(visible, num_visible, visible_options or {})
        self._hidden = make_layer(hidden, num_hidden, hidden_options or {})
        check_weight(weight, weight_options or {})
        for name, value in (
            ("hidden_bias", hidden_bias),
            ("scale_weight", scale_weight),
            ("centered", centered),
        ):
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be a bool, got {value!r}")
        self._config: dict[str, Any] = {
            "num_context": num_context,
            "num_visible": num_visible,
            "num_hidden": num_hidden,
            "visible": visible,
            "hidden": hidden,
            "visible_options": dict(visible_options or {}),
            "hidden_options": dict(hidden_options or {}),
            "hidden_sizes": list(hidden_sizes),
            "trunk_sizes": list(trunk_sizes),
            "hidden_bias": hidden_bias,
            "weight": weight,
            "weight_options": dict(weight_options or {}),
            "scale_weight": scale_weight,
            "centered": centered,
            "seed": seed,
        }
        self._custom = sorted(networks or {}) + (["trunk"] if trunk is not None else [])
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self._make_networks(networks or {}, trunk, num_features)
        self.offset: nn.Module | None = None
        if centered and not self._visible.has_own_offset:
            self.offset = FrozenNetworks(self._fixed_networks("centered=True: give centered=False"))
        # What has a type and a device also when all weights are random; no part of the state.
        like = next(self.parameters(), torch.empty(0))
        self.register_buffer("_reference", like.new_empty(0), persistent=False)
        self.to(dtype=dtype, device=device)

    def _make_networks(
        self, networks: Mapping[str, nn.Module], trunk: nn.Module | None, num_features: int | None
    ) -> None:
        options = self._config
        features, sizes = options["num_context"], options["trunk_sizes"]
        self.trunk = trunk
        if trunk is not None:
            features = num_features
        elif sizes:
            layers = mlp(features, sizes[:-1], sizes[-1])
            self.trunk = Sequential(layers, ReLU())
            features = sizes[-1]
        widths = self._visible.outputs
        if options["hidden_bias"]:
            widths = {**widths, "hidden_bias": options["num_hidden"]}
        unknown = sorted(set(networks) - set(widths) - {"weight"})
        if unknown:
            known = sorted([*widths, "weight"])
            raise ValueError(f"unknown networks {unknown}; this model has {known}")
        for name, network in {"trunk": trunk, **networks}.items():
            if not isinstance(network, nn.Module | None):
                raise TypeError(f"network {name!r} must be a torch.nn.Module, got {network!r}")
        for name, width in widths.items():
            network = networks.get(name)
            if network is None:
                network = mlp(features, options["hidden_sizes"], width)
            setattr(self, name, network)
        make, defaults = WEIGHT_MAPS[options["weight"]]
        weight = networks.get("weight")
        if weight is None:
            extra = {**defaults, **options["weight_options"]}
            weight = make(features, options["num_visible"], options["num_hidden"], **extra)
        self.weight = weight
        #: Names of the networks in the order of their evaluation.
        self.network_names: tuple[str, ...] = (*widths, "weight")
        self._shapes: dict[str, tuple[int, ...]] = {
            **{name: (width,) for name, width in widths.items()},
            "weight": (options["num_visible"], options["num_hidden"]),
        }

    def _visible_networks(self) -> VisibleNetworks:
        """The networks of the visible layer with the trunk, as a module of their own."""
        names = {name: getattr(self, name) for name in self._visible.outputs}
        return VisibleNetworks(self.trunk, names)

    def _fixed_networks(self, purpose: str) -> VisibleNetworks:
        """The networks of the visible layer, refused where their weights are random."""
        networks = self._visible_networks()
        sites = random_sites(networks)
        if sites:
            raise ValueError(
                f"networks of the visible layer have random weights {sites} (PyroSample), which "
                f"have no fixed mean for {purpose}, or make the weights random afterwards"
            )
        return networks

    # --- the distribution ---------------------------------------------------------------------

    @property
    def num_context(self) -> int:
        """Entries of a context."""
        return int(self._config["num_context"])

    @property
    def num_visible(self) -> int:
        """Entries of the visible layer."""
        return int(self._config["num_visible"])

    @property
    def num_hidden(self) -> int:
        """Entries of the hidden layer."""
        return int(self._config["num_hidden"])

    @property
    def visible_family(self) -> str:
        """Name of the family of the visible layer."""
        return str(self._config["visible"])

    def condition(self, context: Tensor, **options: Any) -> distributions.RBM:
        """The distribution of y given contexts.

        :param Tensor context: x, shape ``(..., num_context)``, on the device of the model; of any real
            type, turned into that of the model.
        :param options: keyword arguments of :class:`pyro_ebm.distributions.RBM`.
        :returns: a machine of batch shape ``context.shape[:-1]``.
        :raises ValueError: for a wrong shape, another device, or NaN or infinity in the context (with
            validation on).
        """
        # By way of __call__, which opens Pyro's context: weights that are random are drawn once.
        machine: distributions.RBM = self(context, **options)
        return machine

    def forward(self, context: Tensor, **options: Any) -> distributions.RBM:
        """The same as :meth:`condition`."""
        context = self._check_context(context, options.get("validate_args"))
        features = context if self.trunk is None else self.trunk(context)
        values = {name: getattr(self, name)(features) for name in self.network_names}
        for name, value in values.items():
            shape = self._shapes[name]
            if value.shape[-len(shape) :] != shape:
                raise ValueError(
                    f"network {name!r} must give shape (..., {', '.join(map(str, shape))}), "
                    f"got {tuple(value.shape)}"
                )
        weight = values["weight"]
        if self._config["scale_weight"]:
            weight = weight / self.num_visible**0.5
        bias = values.get("hidden_bias")
        if bias is None:
            bias = weight.new_zeros(self.num_hidden)
        return distributions.RBM(
            self._visible.unit(values),
            self._hidden.unit({"bias": bias}),
            weight,
            visible_offset=self._visible.offset(values, self._centre(context)),
            **options,
        )

    def _centre(self, context: Tensor) -> Tensor | None:
        if self.offset is None:
            return None
        with torch.no_grad():
            mean: Tensor = self._visible.unit(self.offset(context)).mean()
        return mean

    def _check_context(self, context: Tensor, validate: bool | None) -> Tensor:
        if not isinstance(context, Tensor) or context.dim() == 0:
            raise ValueError(f"context must be a tensor of shape (..., n), got {context!r}")
        if context.shape[-1] != self.num_context:
            raise ValueError(
                f"context must have shape (..., {self.num_context}), got {tuple(context.shape)}"
            )
        if context.device != self.device:
            raise ValueError(f"context is on {context.device}, but the model on {self.device}")
        if context.is_complex():
            raise ValueError(f"context must hold real numbers, got {context.dtype}")
        context = context.to(self.dtype)
        if validate is not False and not bool(torch.isfinite(context).all()):
            raise ValueError("context holds NaN or infinite values")
        return context

    @property
    def _like(self) -> Tensor:
        reference: Tensor = self._reference
        return next(self.parameters(), reference)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self._like.device

    # --- before and after training --------------------------------------------------------------

    def init_from_data(
        self,
        data: Tensor,
        context: Tensor,
        *,
        num_steps: int = 500,
        batch_size: int = 1000,
        learning_rate: float = 0.01,
        seed: int | None = None,
    ) -> Self:
        """Fit the visible layer alone, as if W were zero, and centre the couplings there.

        The likelihood of that model of independent units is in closed form; its networks are trained
        by Adam. It is the usual good start.

        :param Tensor data: y, or means of y such as grey levels, shape ``(rows, num_visible)``. Of spins
            they are between -1 and 1, of one-hot groups they sum to 1, of counts to ``total_count``.
        :param Tensor context: x, shape ``(rows, num_context)``.
        :param int num_steps: updates.
        :param int batch_size: random rows an update; all rows where there are no more.
        :param float learning_rate: rate of Adam, which falls to zero.
        :param int seed: seed of the choice of rows; the global generator if None.
        :returns: the module.
        :raises TypeError: if data or context is no tensor.
        :raises ValueError: if shapes are wrong, or values are not finite or no means of states, or
            weights of the visible layer are random.
        """
        check_rows("data", data, self.num_visible)
        check_rows("context", context, self.num_context)
        if len(data) != len(context):
            raise ValueError(f"data has {len(data)} rows, but context has {len(context)}")
        valid = self._visible.in_range(data)
        if not bool(valid.all()):
            raise ValueError(
                f"data has {int((~valid).sum())} of {len(data)} rows that are no states, nor means of "
                f"states, of {self.visible_family!r} units"
            )
        networks = self._fixed_networks("init_from_data(): do without")
        with private_parameters(self):
            fit_independent(
                lambda x: self._visible.unit(networks(x)),
                [p for p in networks.parameters() if p.requires_grad],
                data,
                context.to(self.dtype),
                num_steps=num_steps,
                batch_size=batch_size,
                learning_rate=learning_rate,
                seed=seed,
            )
        if self.offset is not None:
            self.offset = FrozenNetworks(networks)
        return self

    def visible_unit(self, context: Tensor) -> Unit:
        """The visible layer without its couplings.

        :param Tensor context: shape ``(..., num_context)``.
        """
        context = self._check_context(context, None)
        with private_parameters(self):
            return self._visible.unit(self._visible_networks()(context))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the network that owns them ("trunk" included), for optimisers."""
        names = [*self.network_names, "trunk"]
        groups = {n: getattr(self, n) for n in names if getattr(self, n, None) is not None}
        return {n: [p for p in net.parameters() if p.requires_grad] for n, net in groups.items()}

    def config(self) -> dict[str, Any]:
        """The arguments that make an equal module, JSON types only.

        :raises TypeError: if the module has networks that were given to it.
        """
        if self._custom:
            raise TypeError(
                f"networks {self._custom} were given to this module and cannot be described in a "
                "file; save its state_dict() and make the module again by your own code"
            )
        return copy.deepcopy(self._config)
