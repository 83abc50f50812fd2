# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The deep Boltzmann machine as a Pyro distribution."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Size, Tensor
from torch.distributions import constraints

from pyro_ebm.distributions.block_weight import block_weight
from pyro_ebm.distributions.deep_checks import check_layers, check_numbers
from pyro_ebm.distributions.energy_based import EnergyBased
from pyro_ebm.distributions.layer_clamp import clamp_layers
from pyro_ebm.distributions.posterior_field import (
    MeanField,
    MeanFieldWarning,
    check_options,
    solve_mean_field,
)
from pyro_ebm.distributions.rbm import RBM
from pyro_ebm.distributions.units import Unit
from pyro_ebm.distributions.units.joined import join_units
from pyro_ebm.ops.linear import apply_weight
from pyro_ebm.ops.shapes import broadcast_shapes

__all__ = ["DBM"]


class DBM(EnergyBased):
    r"""Nonnormalized deep Boltzmann machine of any depth and any unit families.

    Layers :math:`x_0 = v, x_1, \dots, x_L`, of which neighbours are coupled:

    .. math::
        E(x) = \sum_{l=0}^L u_l(x_l)
            - \sum_{l=1}^L (x_{l-1} - o_{l-1})^\top W_l (x_l - o_l)

    The energies u are those of the families in :mod:`pyro_ebm.distributions.units`. The event is the
    visible layer, so that ``event_shape`` is ``(V,)``.

    **Two sides.** Given the even layers the odd ones are independent of each other, and the other way
    round. A DBM is therefore a restricted machine between all of its even and all of its odd layers, which
    :meth:`bipartite` gives: block Gibbs, tempering, annealing and enumeration are those of an RBM, and
    log Z is the same number. With one hidden layer it is that RBM.

    **log_prob.** :math:`p(v)` needs a sum over the hidden layers that has no closed form above depth 1.
    :meth:`log_prob` is the **mean-field lower bound** of the unnormalised :math:`\log p^*(v)` [1] (less
    log Z, if it is attached), exact for one hidden layer. Its gradient is that of the bound. Without
    approximation are :meth:`even_log_prob`, where the odd layers are summed out given all even ones, and
    for small machines ``exact_log_partition(dbm.posterior(v))``.

    **References**

    [1] *Deep Boltzmann machines*, Ruslan Salakhutdinov, Geoffrey Hinton (2009)

    [2] *Deep Boltzmann machines and the centering trick*, Grégoire Montavon, Klaus-Robert Müller (2012)

    :param units: the layers from the visible one upwards, at least two.
    :param weights: :math:`W_1, \dots, W_L`, shapes ``(..., size of layer l - 1, size of layer l)``.
    :param offsets: :math:`o_0, \dots, o_L`, shapes ``(..., size of layer l)``; zero if None.
    :param log_partition: log Z to attach, see :meth:`normalize`.
    :param int num_gibbs_steps: sweeps of :meth:`sample` where it cannot be exact.
    :param int max_mean_field_updates: largest number of updates of :meth:`log_prob`'s mean field.
    :param float mean_field_tolerance: see :meth:`mean_field`.
    :raises TypeError: if a layer is no unit or a weight no tensor.
    :raises ValueError: if shapes or dtypes do not fit, a value is NaN or outside of its constraint, or an
        option is impossible.

    >>> import torch
    >>> from pyro_ebm.distributions import DBM, units
    >>> layers = [units.Bernoulli(torch.zeros(n)) for n in (4, 3, 2)]
    >>> dbm = DBM(layers, [torch.zeros(4, 3), torch.zeros(3, 2)])
    >>> dbm.log_prob(torch.tensor([0.0, 1.0, 1.0, 0.0]))  # 5 free hidden bits
    tensor(3.4657)
    >>> dbm.depth, dbm.bipartite().visible.size, dbm.sample((7,)).shape
    (2, 6, torch.Size([7, 4]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        units: Sequence[Unit],
        weights: Sequence[Tensor],
        *,
        offsets: Sequence[Tensor] | None = None,
        log_partition: Any = None,
        num_gibbs_steps: int = 1000,
        max_mean_field_updates: int = 1000,
        mean_field_tolerance: float = 1e-5,
        validate_args: bool | None = None,
    ) -> None:
        self.units = tuple(units)
        self.weights = tuple(weights)
        self._offsets = None if offsets is None else tuple(offsets)
        check_layers(self.units, self.weights, self._offsets)
        if num_gibbs_steps < 1:
            raise ValueError(f"num_gibbs_steps must be at least 1, got {num_gibbs_steps}")
        check_options(max_mean_field_updates, mean_field_tolerance, "mean_field_")
        self.num_gibbs_steps = num_gibbs_steps
        self.max_mean_field_updates = max_mean_field_updates
        self.mean_field_tolerance = mean_field_tolerance
        # Energy that does not depend on the free units; only clamp() and tilt() make it non-zero.
        self._constant: Tensor | None = None
        self._log_partition = None
        batch = self._broadcast_batch()
        super().__init__(batch, Size((self.units[0].size,)), validate_args=validate_args)
        if self._validate_args:
            check_numbers(self.weights, self._offsets)
        self._log_partition = self._check_log_partition(log_partition)

    def _broadcast_batch(self) -> Size:
        shapes = [unit.batch_shape for unit in self.units]
        shapes += [weight.shape[:-2] for weight in self.weights]
        shapes += [offset.shape[:-1] for offset in self._offsets or ()]
        if self._constant is not None:
            shapes.append(self._constant.shape)
        try:
            return broadcast_shapes(shapes)
        except RuntimeError as error:
            raise ValueError(
                "batch shapes of units, weights and offsets do not broadcast: "
                f"{[tuple(s) for s in shapes]}"
            ) from error

    # --- what it is made of -------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Number of hidden layers, L."""
        return len(self.units) - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries of every layer, the visible one first."""
        return tuple(unit.size for unit in self.units)

    @property
    def offsets(self) -> tuple[Tensor, ...]:
        """Offsets of every layer, zeros if none were given."""
        if self._offsets is not None:
            return self._offsets
        return tuple(self.weights[0].new_zeros(size) for size in self.sizes)

    @property
    def parameter_batch_shape(self) -> Size:
        return self._broadcast_batch()

    def parameters(self) -> list[Tensor]:
        tensors = list(self.weights)
        tensors += [p for unit in self.units for p in unit.parameters.values()]
        tensors += list(self._offsets or ())
        return tensors if self._constant is None else [*tensors, self._constant]

    @property
    def support(self) -> constraints.Constraint:
        """Support of the visible layer."""
        return self.units[0].support

    def to(self, *args: Any, **kwargs: Any) -> "DBM":
        """The same machine with every tensor moved or cast, see :meth:`torch.Tensor.to`."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def detach(self) -> "DBM":
        """The same machine without gradients of its parameters or of an attached log Z."""
        return self._map(torch.Tensor.detach)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "DBM":
        new = self._like(
            [unit.map(function) for unit in self.units],
            [function(weight) for weight in self.weights],
            None if self._offsets is None else [function(offset) for offset in self._offsets],
            None if self._constant is None else function(self._constant),
        )
        new._batch_shape = self.batch_shape
        if self._log_partition is not None:
            new._log_partition = function(self._log_partition)
        return new

    def _like(
        self,
        units: Sequence[Unit],
        weights: Sequence[Tensor],
        offsets: Sequence[Tensor] | None,
        constant: Tensor | None,
        *,
        validate_args: bool | None = None,
    ) -> "DBM":
        """An unnormalised machine with the options of this one."""
        new = DBM(
            units,
            weights,
            offsets=offsets,
            num_gibbs_steps=self.num_gibbs_steps,
            max_mean_field_updates=self.max_mean_field_updates,
            mean_field_tolerance=self.mean_field_tolerance,
            validate_args=False,
        )
        new._constant = constant
        new._validate_args = self._validate_args if validate_args is None else validate_args
        new._batch_shape = new._broadcast_batch()
        return new

    # --- the two sides ------------------------------------------------------------------------

    def bipartite(self, *, out: Tensor | None = None) -> RBM:
        r"""The same machine as an RBM: its visible layer the even layers one after the other, its hidden
        layer the odd ones.

        ``bipartite().log_prob(x)`` is :meth:`even_log_prob`, and log Z of both is the same; an attached
        one is kept. The weight is dense: with two hidden layers there is no block of zeros in it, with
        three one block in four is, with four one in three.

        :param Tensor out: what receives the weight, without a gradient; zeros where no two layers are
            neighbours. For loops that make the machine anew at every step.
        """
        even, odd = self.units[0::2], self.units[1::2]
        has_offsets = self._offsets is not None
        new = RBM(
            join_units(even),
            join_units(odd),
            block_weight(self.weights, out),
            visible_offset=_joined(self.offsets[0::2]) if has_offsets else None,
            hidden_offset=_joined(self.offsets[1::2]) if has_offsets else None,
            num_gibbs_steps=self.num_gibbs_steps,
            validate_args=False,
        )
        new._constant = self._constant
        new._validate_args = self._validate_args
        new._batch_shape = self.batch_shape
        new._log_partition = self._log_partition
        return new

    def join_even(self, states: Sequence[Tensor]) -> Tensor:
        """States of the even layers, visible ones first, one after the other."""
        return self._join("states", states, self.sizes[0::2])

    def _join(self, name: str, states: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        if len(states) != len(sizes):
            raise ValueError(f"{name} must be those of {len(sizes)} layers, got {len(states)}")
        for number, (x, size) in enumerate(zip(states, sizes, strict=True)):
            if x.shape[-1:] != (size,):
                raise ValueError(
                    f"{name}[{number}] must have shape (..., {size}), got {tuple(x.shape)}"
                )
        return _joined([x.to(self.weights[0].dtype) for x in states])

    def split_even(self, x: Tensor) -> tuple[Tensor, ...]:
        """States of the even layers, from states of :meth:`bipartite`'s visible layer."""
        return x.split(self.sizes[0::2], -1)

    def split_odd(self, x: Tensor) -> tuple[Tensor, ...]:
        """States of the odd layers, from states of :meth:`bipartite`'s hidden layer."""
        return x.split(self.sizes[1::2], -1)

    # --- energies -----------------------------------------------------------------------------

    def energy(self, states: Sequence[Tensor]) -> Tensor:
        """Energy E(x) of a joint state.

        :param states: states of all layers, shapes ``(..., size of layer l)``.
        """
        if len(states) != len(self.units):
            raise ValueError(f"states must be those of {len(self.units)} layers, got {len(states)}")
        return self.bipartite().energy(
            self._join("even states", states[0::2], self.sizes[0::2]),
            self._join("odd states", states[1::2], self.sizes[1::2]),
        )

    def even_log_prob(self, states: Sequence[Tensor]) -> Tensor:
        r"""Log-probability of all even layers, the odd ones summed out: exact, and normalised if log Z is
        attached.

        :param states: states of the even layers :math:`x_0, x_2, \dots`, the visible one first.
        """
        return self.bipartite().log_prob(self.join_even(states))

    def free_energy(self, value: Tensor) -> Tensor:
        r"""Upper bound of the free energy :math:`-\log \sum_h e^{-E(v, h)}` of visible states by mean
        field; exact for one hidden layer. Its gradient is exact for the bound where mean field has converged.

        :param Tensor value: shape ``(..., V)``, of any dtype.
        """
        if self.depth == 1:
            return self.bipartite().free_energy(value)
        found = self.mean_field(value)
        return -found.bound

    def mean_field(
        self,
        v: Tensor,
        *,
        start: Sequence[Tensor] | None = None,
        max_updates: int | None = None,
        tolerance: float | None = None,
        damping: float = 0.0,
        accelerate: bool = True,
    ) -> MeanField:
        r"""The factorised :math:`q(x_1) \cdots q(x_L)` closest to the posterior of the hidden layers, row by
        row, see :class:`~pyro_ebm.distributions.mean_field.MeanFieldSolver`.

        A row that did not converge is reported in the result; unless ``max_updates`` was given, also by a
        :class:`~pyro_ebm.distributions.MeanFieldWarning`. What a row comes to does not depend on the others.

        :param Tensor v: visible states, or their means (grey levels), shape ``(..., V)``.
        :param start: means of the hidden layers to start from, shapes ``(..., size of layer l)``, such as
            those that a recognition network gives; a bottom-up pass with doubled input [1] if None. Read are
            those of :math:`x_2, x_4, \dots`; the others follow from these and from v.
        :param int max_updates: largest number of updates of all layers.
        :param float tolerance: a row has converged when an update, without damping, changes no natural
            parameter of :math:`x_1, x_3, \dots` by more.
        :param float damping: the part of the way that an update does not go.
        :param bool accelerate: whether to extrapolate where that does not lower the bound.
        :raises ValueError: for a wrong shape, parameters with a batch shape, or (with ``validate_args``) NaN.
        """
        found = solve_mean_field(
            self,
            v,
            start,
            self.max_mean_field_updates if max_updates is None else max_updates,
            self.mean_field_tolerance if tolerance is None else tolerance,
            damping=damping,
            accelerate=accelerate,
        )
        if max_updates is None and not bool(found.converged.all()):
            number = int((~found.converged).sum())
            warnings.warn(
                f"mean field: {number} of {found.converged.numel()} rows still move by up to "
                f"{found.residual.max().item():.2g} after {self.max_mean_field_updates} updates; their "
                "bound holds but is not the best one (see max_mean_field_updates, mean_field_tolerance)",
                MeanFieldWarning,
                stacklevel=2,
            )
        return found

    # --- conditionals -------------------------------------------------------------------------

    def layer_given(self, layer: int, neighbours: Sequence[Tensor]) -> TorchDistribution:
        """Pyro distribution of a layer given the one or two beside it, of event dimension 1.

        :param int layer: number of the layer, 0 for the visible one.
        :param neighbours: states of the layer below (unless ``layer`` is 0) and of the one above (unless it
            is the top).
        :raises ValueError: if there is no such layer or neighbours do not fit.
        """
        field = self.field(layer, neighbours)
        return self.units[layer].conditional(field)

    def field(self, layer: int, neighbours: Sequence[Tensor]) -> Tensor:
        """The field that the layers beside a layer exert on it, see :meth:`layer_given`."""
        self._check_layer(layer)
        below = [] if layer == 0 else [layer - 1]
        above = [] if layer == self.depth else [layer + 1]
        beside = below + above
        if len(neighbours) != len(beside):
            raise ValueError(f"layer {layer} has {len(beside)} neighbours, got {len(neighbours)}")
        total: Tensor | None = None
        for other, x in zip(beside, neighbours, strict=True):
            if x.shape[-1:] != (self.sizes[other],):
                raise ValueError(
                    f"the neighbour of layer {layer} must have shape (..., {self.sizes[other]}), that of "
                    f"layer {other}, got {tuple(x.shape)}"
                )
            x = x.to(self.weights[0].dtype)
            if self._offsets is not None:
                x = x - self._offsets[other]
            weight = self.weights[other] if other < layer else self.weights[layer].mT
            part = apply_weight(x, weight)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _check_layer(self, layer: int) -> None:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer <= self.depth:
            raise ValueError(f"layer must be a whole number from 0 to {self.depth}, got {layer!r}")

    # --- sampling -----------------------------------------------------------------------------

    def sample(self, sample_shape: Any = (), *, generator: Generator | None = None) -> Tensor:
        """Independent draws of the visible layer; exact where one side can be enumerated.

        :param sample_shape: shape of the draws, before ``batch_shape``.
        :param torch.Generator generator: the source of random bits; the global one if None.
        """
        return self.sample_even(sample_shape, generator=generator)[0]

    def sample_even(
        self, sample_shape: Any = (), *, generator: Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Independent draws of all even layers, the visible one first, see :meth:`sample`."""
        return self.split_even(self.bipartite().sample(sample_shape, generator=generator))

    @torch.no_grad()
    def draw_even(
        self, v: Tensor, found: MeanField, *, generator: Generator | None = None
    ) -> Tensor:
        """States of all even layers: the visible ones, and a draw of those above from their mean field.

        Where chains start that are to begin at data.

        :param Tensor v: visible states, shape ``(..., V)``.
        :param MeanField found: what :meth:`mean_field` gave for them.
        :param torch.Generator generator: the source of random bits; the global one if None.
        :returns: one layer after the other, see :meth:`join_even`.
        """
        states = [v]
        for unit, theta in zip(self.units[2::2], found.thetas[1::2], strict=True):
            states.append(unit.natural_sample(theta, generator))
        return self.join_even(states)

    # --- parts --------------------------------------------------------------------------------

    def clamp(
        self, mask: Tensor | Mapping[int, Tensor], value: Tensor | Mapping[int, Tensor]
    ) -> "DBM":
        r"""The machine over the units where a mask is False, the others fixed to values.

        Any units of any layer can be fixed: part of the visible layer to complete it, one of several kinds
        of inputs, a group of labels. Constants are kept, so that the difference of the exact log Z of
        both machines is the log-probability of the clamped values. A layer that is fixed as a whole is
        gone; that can be the first or the last one, as a machine without one in between would be two.

        :param mask: boolean, shape ``(size,)``: of the visible layer, or by number of the layer. True where a
            unit is clamped; a one-hot group is clamped as a whole.
        :param value: of the same kind; shapes ``(..., size)``, read only where the mask is True.
        :raises ValueError: if masks or values do not fit, or less than two layers would be left.
        """
        return clamp_layers(self, mask, value)

    def posterior(self, v: Tensor) -> "DBM":
        r"""The hidden layers given visible states, :math:`p(x_1, \dots, x_L | v)`: a machine whose visible
        layer is :math:`x_1`, and whose log Z is :math:`\log p^*(v)`.

        :param Tensor v: shape ``(..., V)``; its batch shape becomes that of the result.
        :raises ValueError: for one hidden layer, of which :meth:`layer_given` is the posterior.
        """
        return clamp_layers(self, {0: None}, {0: v})

    def tilt(self, field: Tensor, layer: int = 0) -> "DBM":
        r"""The machine with energy :math:`E(x) - t^\top x_l`, unnormalised, constants kept.

        :param Tensor field: t, shape ``(..., size of the layer)``.
        :param int layer: number of the layer, 0 for the visible one.
        :raises ValueError: if there is no such layer or the field does not fit.
        """
        self._check_layer(layer)
        if field.shape[-1:] != (self.sizes[layer],):
            raise ValueError(
                f"field must have shape (..., {self.sizes[layer]}), got {tuple(field.shape)}"
            )
        unit, constant = self.units[layer].tilt(field.to(self.weights[0].dtype))
        units = [*self.units[:layer], unit, *self.units[layer + 1 :]]
        if self._constant is not None:
            constant = constant + self._constant
        new = self._like(units, self.weights, self._offsets, constant)
        new._batch_shape = torch.broadcast_shapes(new.batch_shape, self.batch_shape)
        return new

    def check_normalizable(self) -> None:
        """Refuse parameters for which Z may be infinite.

        :raises ValueError: if layers are continuous and the joint energy is not proven to be bounded below.
        """
        self.bipartite().check_normalizable()

    def __repr__(self) -> str:
        state = "unnormalised" if self._log_partition is None else "normalised"
        layers = ", ".join(repr(unit) for unit in self.units)
        return f"DBM(units=[{layers}], batch_shape={tuple(self.batch_shape)}, {state})"


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Vectors one after the other, repeated along the batch axes that only others have."""
    batch = broadcast_shapes([part.shape[:-1] for part in parts])
    return torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1)
