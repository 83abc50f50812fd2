# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The owner of a deep Boltzmann machine's parameters."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Generator, Tensor
from torch.nn import ModuleList, Parameter, ParameterList

from pyro_ebm import distributions
from pyro_ebm.nn import deep_initialization
from pyro_ebm.nn.param_store import LocalModule
from pyro_ebm.nn.rbm import RBM
from pyro_ebm.nn.unit_parameters import UnitParameters, check_seed_and_dtype, is_whole

__all__ = ["DBM"]

#: Rows whose mean field is found at once.
_BLOCK_ROWS = 4096


class DBM(LocalModule):
    r"""A deep Boltzmann machine with learnable parameters.

    Calling the module gives the distribution :class:`pyro_ebm.distributions.DBM` with the current
    parameters. Parameters are ``layers.0.bias`` (of the visible layer; Gaussian ones ``loc``),
    ``layers.1.bias`` and so on, and ``weights.0``, between layers 0 and 1, and so on.

    With ``centered=True`` the module also keeps offsets of every layer (buffers ``offset_0``, ...), as in
    [1], which train deep machines from a random start; :class:`~pyro_ebm.training.Trainer` moves them with
    the means, by :meth:`shift_offsets`.

    **References**

    [1] *Deep Boltzmann machines and the centering trick*, Grégoire Montavon, Klaus-Robert Müller (2012)

    :param int num_visible: entries of the visible layer.
    :param num_hidden: entries of the hidden layers, the lowest one first.
    :param str visible: family of the visible layer, a name of
        :data:`~pyro_ebm.nn.unit_parameters.FAMILIES`.
    :param hidden: family of the hidden layers, one for all or one of each.
    :param visible_options: options of the visible family, see
        :class:`~pyro_ebm.nn.unit_parameters.UnitParameters`.
    :param hidden_options: options of the hidden families, for all or a list with those of each.
    :param bool centered: whether to keep offsets.
    :param float weight_scale: standard deviation of the initial weights.
    :param int seed: seed of the initial weights; the global generator if None.
    :param dtype: floating-point type.
    :param device: device.
    :raises ValueError: for unknown families, options or impossible sizes.

    >>> from pyro_ebm.nn import DBM
    >>> module = DBM(num_visible=6, num_hidden=[4, 3], seed=0)
    >>> module().sample((5,)).shape
    torch.Size([5, 6])
    """

    layers: ModuleList
    weights: ParameterList

    def __init__(
        self,
        num_visible: int,
        num_hidden: Sequence[int],
        visible: str = "bernoulli",
        hidden: str | Sequence[str] = "bernoulli",
        *,
        visible_options: Mapping[str, Any] | None = None,
        hidden_options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        centered: bool = False,
        weight_scale: float = 0.01,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        sizes = [num_visible, *_hidden_sizes(num_hidden)]
        _check_arguments(sizes, centered, weight_scale, seed, dtype)
        families = [visible, *_by_layer("hidden", hidden, str, len(sizes) - 1)]
        options = [
            visible_options,
            *_by_layer("hidden_options", hidden_options or {}, Mapping, len(sizes) - 1),
        ]
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        layers = [
            UnitParameters(family, size, own, **factory)
            for family, size, own in zip(families, sizes, options, strict=True)
        ]
        weights = [Parameter(torch.empty(*pair, **factory)) for pair in pairwise(sizes)]
        self.layers = _pyro_list(ModuleList, layers)
        self.weights = _pyro_list(ParameterList, weights)
        self.centered = centered
        self.weight_scale = weight_scale
        self.seed = seed
        if centered:
            for number, size in enumerate(sizes):
                self.register_buffer(f"offset_{number}", torch.zeros(size, **factory))
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        generator = None
        if self.seed is not None:
            generator = Generator(device=self.weights[0].device).manual_seed(self.seed)
        for weight in self.weights:
            weight.normal_(0.0, self.weight_scale, generator=generator)
        if self.centered:
            for layer, offset in zip(self.layers[1:], self.offsets[1:], strict=True):
                offset.copy_(layer().mean())

    # --- what it is made of -------------------------------------------------------------------

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries of every layer, the visible one first."""
        return (len(self.weights[0]), *(weight.shape[1] for weight in self.weights))

    @property
    def depth(self) -> int:
        """Number of hidden layers."""
        return len(self.weights)

    @property
    def visible(self) -> UnitParameters:
        """The visible layer."""
        return self._unit_parameters()[0]

    def _unit_parameters(self) -> list[UnitParameters]:
        return [layer for layer in self.layers if isinstance(layer, UnitParameters)]

    @property
    def offsets(self) -> tuple[Tensor, ...]:
        """Offsets of every layer of a centred module, the buffers themselves; empty without."""
        if not self.centered:
            return ()
        return tuple(self.get_buffer(f"offset_{number}") for number in range(len(self.layers)))

    def config(self) -> dict[str, Any]:
        """The arguments that make an equal module, JSON types only."""
        visible, *hidden = self._unit_parameters()
        return {
            "num_visible": self.sizes[0],
            "num_hidden": list(self.sizes[1:]),
            "visible": visible.family,
            "hidden": [layer.family for layer in hidden],
            "visible_options": dict(visible.options),
            "hidden_options": [dict(layer.options) for layer in hidden],
            "centered": self.centered,
            "weight_scale": self.weight_scale,
            "seed": self.seed,
        }

    def forward(self, **options: Any) -> distributions.DBM:
        """The distribution with the current parameters.

        :param options: keyword arguments of :class:`pyro_ebm.distributions.DBM`, such as
            ``num_gibbs_steps`` or ``mean_field_tolerance``.
        """
        return distributions.DBM(
            [layer() for layer in self.layers],
            list(self.weights),
            offsets=self.offsets if self.centered else None,
            **options,
        )

    # --- what it says of data -----------------------------------------------------------------

    @torch.no_grad()
    def transform(self, v: Tensor, layer: int = -1, **options: Any) -> Tensor:
        """Mean-field means of a hidden layer given rows: features. Nothing random, no chains.

        :param Tensor v: visible states or their means, shape ``(rows, num_visible)``.
        :param int layer: number of the hidden layer, 1 for the lowest one; or -1 for the top one and so on.
        :param options: of :meth:`pyro_ebm.distributions.DBM.mean_field`.
        :returns: shape ``(rows, size of the layer)``.
        :raises ValueError: for a layer that there is not, or another shape.
        """
        number = layer if layer >= 0 else self.depth + 1 + layer
        if not 1 <= number <= self.depth:
            raise ValueError(
                f"layer must be a hidden one, 1 to {self.depth} or -{self.depth} to -1, got {layer}"
            )
        return self._by_block(
            v, lambda dist, rows: dist.mean_field(rows, **options).means[number - 1]
        )

    @torch.no_grad()
    def reconstruct(self, v: Tensor, **options: Any) -> Tensor:
        """Means of the visible layer given the mean-field means of the lowest hidden layer.

        :param Tensor v: visible states or their means, shape ``(rows, num_visible)``.
        :param options: of :meth:`pyro_ebm.distributions.DBM.mean_field`.
        :returns: the shape of ``v``.
        :raises ValueError: for another shape.
        """

        def mean(dist: distributions.DBM, rows: Tensor) -> Tensor:
            first = dist.mean_field(rows, **options).means[0]
            return dist.units[0].mean(dist.field(0, [first]))

        return self._by_block(v, mean)

    def _by_block(
        self, v: Tensor, function: Callable[[distributions.DBM, Tensor], Tensor]
    ) -> Tensor:
        """Results of a function of rows, computed block by block."""
        if v.dim() != 2 or v.shape[1] != self.sizes[0] or not len(v):
            raise ValueError(
                f"v must have shape (rows >= 1, {self.sizes[0]}), got {tuple(v.shape)}"
            )
        # Inputs may be means: grey levels are no states of bits.
        dist = self(validate_args=False).detach()
        parts = [function(dist, rows.to(self.weights[0])) for rows in v.split(_BLOCK_ROWS)]
        return torch.cat(parts)

    # --- where it starts ----------------------------------------------------------------------

    @torch.no_grad()
    def init_from_data(self, data: Tensor) -> "DBM":
        """Set the visible layer (and its offset) to the data's statistics, see
        :meth:`pyro_ebm.nn.RBM.init_from_data`.

        :param Tensor data: shape ``(rows, num_visible)``.
        :returns: the module.
        :raises ValueError: if the shape is wrong or the data holds NaN.
        """
        return deep_initialization.init_from_data(self, data)

    @torch.no_grad()
    def init_from_rbms(
        self,
        modules: Sequence[RBM],
        *,
        doubled: Sequence[bool] | None = None,
        lower_share: float = 0.5,
    ) -> "DBM":
        r"""Put a stack of machines together, each of which was trained on the hidden layer of the one below.

        Where two machines meet, the layer between them would be pulled by both, as each was trained to
        explain it alone. Machines that were trained with *doubled* input [1] make up for that: the lowest
        one with twice the input from below, the topmost one with twice that from above, are used as they
        are; those in between, which were not, are halved. Biases of a layer are the means of the
        two that the machines have for it (the lowest visible and the topmost hidden ones are whole).
        :func:`pyro_ebm.training.pretrain` trains such machines and calls this.

        **References**

        [1] *Deep Boltzmann machines*, Ruslan Salakhutdinov, Geoffrey Hinton (2009), section 3.1

        :param modules: machines from the bottom to the top; sizes and families must be those of the layers.
        :param doubled: which machines were trained in the doubled form; by default the lowest and the
            topmost one. Others are halved.
        :param float lower_share: the part of a bias between two machines that is the lower machine's.
        :returns: the module.
        :raises TypeError: if one is no RBM.
        :raises ValueError: if layers do not fit, or the share is not in [0, 1]. Nothing has changed then.
        """
        return deep_initialization.init_from_rbms(self, modules, doubled, lower_share)

    @torch.no_grad()
    def init_from_rbm(
        self, module: RBM, *, upper_scale: float = 0.001, seed: int | None = None
    ) -> "DBM":
        r"""Set the two lowest layers to an RBM, the weights above to small random numbers.

        With zeros in their place the distribution of the visible layer would be that of the RBM (the others
        independent of it), and so would be the bound of its likelihood: joint training starts from what the
        RBM has reached.
        Their symmetry has to be broken: ``upper_scale`` is the standard deviation of random weights about
        the offsets of a centred module.

        :param module: a machine of the same visible and first hidden layer.
        :param float upper_scale: standard deviation of the weights above the lowest one.
        :param int seed: seed of these weights; the global generator if None.
        :returns: the module.
        :raises TypeError: if it is no RBM.
        :raises ValueError: if layers do not fit. Nothing has changed then.
        """
        return deep_initialization.init_from_rbm(self, module, upper_scale, seed)

    # --- offsets ------------------------------------------------------------------------------

    @torch.no_grad()
    def shift_offsets(self, steps: Sequence[Tensor | None]) -> None:
        r"""Move the offsets and the biases so that the distribution stays the same.

        A step :math:`\Delta o_l` of layer l moves the bias of the layer below by
        :math:`W_l \Delta o_l` and that of the layer above by :math:`W_{l+1}^\top \Delta o_l`.

        :param steps: changes of the offsets of all layers, None for no change.
        :raises ValueError: if the module is not centred, or steps do not fit. Nothing has changed then.
        """
        if not self.centered:
            raise ValueError("the module has no offsets; make it with centered=True")
        layers, offsets = self._unit_parameters(), self.offsets
        if len(steps) != len(layers):
            raise ValueError(f"steps must be those of {len(layers)} layers, got {len(steps)}")
        for number, (step, offset) in enumerate(zip(steps, offsets, strict=True)):
            if step is not None and step.shape != offset.shape:
                raise ValueError(
                    f"steps[{number}] must have shape {tuple(offset.shape)}, got {tuple(step.shape)}"
                )
        for number, step in enumerate(steps):
            if step is None:
                continue
            if number > 0:
                layers[number - 1].tilt(self.weights[number - 1] @ step)
            if number < self.depth:
                layers[number + 1].tilt(step @ self.weights[number])
            offsets[number].add_(step)


def _pyro_list(kind: Any, items: Sequence[Any]) -> Any:
    """A list of Pyro's kind: the layers in a plain one do not know its name, and all of them would be entered
    in Pyro's store as "bias"."""
    named: Any = PyroModule[kind]
    return named(items)


def _hidden_sizes(num_hidden: Any) -> list[Any]:
    if isinstance(num_hidden, str) or not isinstance(num_hidden, Sequence) or not num_hidden:
        raise ValueError(f"num_hidden must be a list of sizes, at least one, got {num_hidden!r}")
    return list(num_hidden)


def _by_layer(name: str, value: Any, kind: type, number: int) -> list[Any]:
    """One entry for every hidden layer."""
    if isinstance(value, kind):
        return [value] * number
    if not isinstance(value, Sequence) or len(value) != number:
        raise ValueError(f"{name} must be one for all or a list for {number} layers, got {value!r}")
    return list(value)


def _check_arguments(
    sizes: Sequence[Any], centered: Any, weight_scale: Any, seed: Any, dtype: Any
) -> None:
    for number, size in enumerate(sizes):
        if not is_whole(size):
            name = "num_visible" if number == 0 else f"num_hidden[{number - 1}]"
            raise ValueError(f"{name} must be a whole number >= 1, got {size!r}")
    if not isinstance(centered, bool):
        raise ValueError(f"centered must be a bool, got {centered!r}")
    if not isinstance(weight_scale, int | float) or not 0 <= weight_scale < math.inf:
        raise ValueError(f"weight_scale must be a number >= 0, got {weight_scale!r}")
    check_seed_and_dtype(seed, dtype)
