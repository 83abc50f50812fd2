# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The restricted Boltzmann machine as a Pyro distribution."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Size, Tensor
from torch.distributions import constraints

from pyro_ebm.distributions.energy_based import EnergyBased
from pyro_ebm.distributions.normalizable import check_normalizable
from pyro_ebm.distributions.units import Unit
from pyro_ebm.ops.linear import apply_weight
from pyro_ebm.ops.shapes import broadcast_shapes

__all__ = ["RBM", "CanonicalForm"]

#: Sites of at most this many states are enumerated in parallel by ``TraceEnum_ELBO`` and HMC.
MAX_ENUMERATED_STATES = 1024


@dataclass(frozen=True)
class CanonicalForm:
    r"""An RBM with its offsets absorbed into the biases, the form that sampling loops want.

    .. math:: -E(v, h) = b^\top v + c^\top h + v^\top W h - r_v(v) - r_h(h) + K

    :param visible_bias: b, shape ``(..., V)``.
    :param hidden_bias: c, shape ``(..., H)``.
    :param weight: W, shape ``(..., V, H)``.
    :param constant: K, shape ``(...)``.
    """

    visible_bias: Tensor
    hidden_bias: Tensor
    weight: Tensor
    constant: Tensor


class RBM(EnergyBased):
    r"""Nonnormalized restricted Boltzmann machine of any pair of unit families.

    .. math::
        E(v, h) &= u_v(v) + u_h(h) - (v - o_v)^\top W (h - o_h) \\
        F(v) &= u_v(v) + (v - o_v)^\top W o_h - \Gamma_h\bigl(W^\top (v - o_v)\bigr)

    The energies u and log-partitions :math:`\Gamma` are those of the families in
    :mod:`pyro_ebm.distributions.units`. :meth:`log_prob` is :math:`-F(v)`, which is **not normalised**
    unless log Z is attached (``log_partition`` or :meth:`normalize`).

    Parameters may have batch shapes, which broadcast to ``batch_shape``; ``event_shape`` is ``(V,)``.
    :meth:`sample` draws every element independently: exactly, by enumeration, where one side has at
    most :math:`2^{16}` states, otherwise by ``num_gibbs_steps`` sweeps of block Gibbs from the visible
    layer without its weights, so that samples of a model that mixes slowly are approximate.

    **References**

    [1] *Information processing in dynamical systems: foundations of harmony theory*,
    Paul Smolensky (1986)

    [2] *A Practical Guide to Training Restricted Boltzmann Machines*, Geoffrey Hinton (2012)

    [3] *How to Center Deep Boltzmann Machines*, Jan Melchior, Asja Fischer, Laurenz Wiskott (2016)

    :param Unit visible: the visible layer, V entries.
    :param Unit hidden: the hidden layer, H entries.
    :param Tensor weight: W, shape ``(..., V, H)``.
    :param Tensor visible_offset: :math:`o_v`, shape ``(..., V)``; zero if None.
    :param Tensor hidden_offset: :math:`o_h`, shape ``(..., H)``; zero if None.
    :param log_partition: log Z to attach, see :meth:`normalize`.
    :param int num_gibbs_steps: sweeps of :meth:`sample` where it cannot be exact.
    :raises ValueError: if shapes do not fit or a value is NaN or outside of its constraint.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> rbm = BernoulliRBM(torch.zeros(4, 3), torch.zeros(4), torch.zeros(3))
    >>> rbm.log_prob(torch.tensor([0.0, 1.0, 1.0, 0.0]))  # 3 free hidden bits
    tensor(2.0794)
    >>> rbm.normalize(7 * torch.tensor(2.0).log()).log_prob(torch.ones(4)).exp()
    tensor(0.0625)
    """

    arg_constraints = {"weight": constraints.independent(constraints.real, 2)}

    def __init__(
        self,
        visible: Unit,
        hidden: Unit,
        weight: Tensor,
        *,
        visible_offset: Tensor | None = None,
        hidden_offset: Tensor | None = None,
        log_partition: Any = None,
        num_gibbs_steps: int = 1000,
        validate_args: bool | None = None,
    ) -> None:
        for name, unit in (("visible", visible), ("hidden", hidden)):
            if not isinstance(unit, Unit):
                raise TypeError(f"{name} must be a pyro_ebm.distributions.units.Unit, got {unit!r}")
        if not isinstance(weight, Tensor) or weight.dim() < 2:
            raise ValueError(f"weight must be a tensor of shape (..., V, H), got {weight!r}")
        for name, offset in (("visible_offset", visible_offset), ("hidden_offset", hidden_offset)):
            if offset is not None and (not isinstance(offset, Tensor) or offset.dim() < 1):
                raise ValueError(f"{name} must be a tensor of shape (..., n), got {offset!r}")
        if num_gibbs_steps < 1:
            raise ValueError(f"num_gibbs_steps must be at least 1, got {num_gibbs_steps}")
        self.visible = visible
        self.hidden = hidden
        self.weight = weight
        self.num_gibbs_steps = num_gibbs_steps
        self._visible_offset = visible_offset
        self._hidden_offset = hidden_offset
        # Energy that does not depend on the free units; only clamp() makes it non-zero.
        self._constant: Tensor | None = None
        self._log_partition = None
        self._check_sizes()
        batch = self._broadcast_batch()
        super().__init__(batch, Size((visible.size,)), validate_args=validate_args)
        if self._validate_args:
            self._check_offsets()
        self._log_partition = self._check_log_partition(log_partition)

    def _check_sizes(self) -> None:
        num_visible, num_hidden = self.weight.shape[-2:]
        sizes = (
            ("visible layer", self.visible.size, num_visible),
            ("hidden layer", self.hidden.size, num_hidden),
            ("visible_offset", _last_size(self._visible_offset), num_visible),
            ("hidden_offset", _last_size(self._hidden_offset), num_hidden),
        )
        for name, got, expected in sizes:
            if got is not None and got != expected:
                raise ValueError(
                    f"{name} has {got} entries, but weight {tuple(self.weight.shape)} "
                    f"expects {expected}"
                )

    def _check_offsets(self) -> None:
        offsets = {"visible_offset": self._visible_offset, "hidden_offset": self._hidden_offset}
        for name, offset in offsets.items():
            if offset is not None and bool(torch.isnan(offset).any()):
                raise ValueError(f"{name} must be real, got NaN")

    def _broadcast_batch(self) -> Size:
        shapes = [self.visible.batch_shape, self.hidden.batch_shape, self.weight.shape[:-2]]
        offsets = (self._visible_offset, self._hidden_offset)
        shapes += [o.shape[:-1] for o in offsets if o is not None]
        if self._constant is not None:
            shapes.append(self._constant.shape)
        try:
            return broadcast_shapes(shapes)
        except RuntimeError as error:
            raise ValueError(
                f"batch shapes of visible, hidden, weight and offsets do not broadcast: "
                f"{[tuple(s) for s in shapes]}"
            ) from error

    # --- what it is made of -------------------------------------------------------------------

    @classmethod
    def infer_shapes(cls, **arg_shapes: Any) -> tuple[Size, Size]:
        """Batch and event shape from the shapes of the tensor arguments."""
        weight = Size(arg_shapes["weight"])
        batches = [weight[:-2]]
        batches += [Size(s)[:-1] for n, s in arg_shapes.items() if n != "weight"]
        return torch.broadcast_shapes(*batches), weight[-2:-1]

    @property
    def visible_offset(self) -> Tensor:
        """Visible offset, zeros if none was given."""
        if self._visible_offset is not None:
            return self._visible_offset
        return self.weight.new_zeros(self.weight.shape[-2])

    @property
    def hidden_offset(self) -> Tensor:
        """Hidden offset, zeros if none was given."""
        if self._hidden_offset is not None:
            return self._hidden_offset
        return self.weight.new_zeros(self.weight.shape[-1])

    @property
    def parameter_batch_shape(self) -> Size:
        return self._broadcast_batch()

    def parameters(self) -> list[Tensor]:
        tensors = [self.weight, *self.visible.parameters.values(), *self.hidden.parameters.values()]
        optional = (self._visible_offset, self._hidden_offset, self._constant)
        return tensors + [t for t in optional if t is not None]

    @property
    def support(self) -> constraints.Constraint:
        """Support of the visible layer."""
        return self.visible.support

    def transpose(self) -> "RBM":
        """The same machine with the two layers exchanged: hidden units become the event."""
        new = RBM(
            self.hidden,
            self.visible,
            self.weight.mT,
            visible_offset=self._hidden_offset,
            hidden_offset=self._visible_offset,
            num_gibbs_steps=self.num_gibbs_steps,
            validate_args=False,
        )
        new._constant = self._constant
        new._batch_shape = self.batch_shape
        new._log_partition = self._log_partition
        new._validate_args = self._validate_args
        return new

    def to(self, *args: Any, **kwargs: Any) -> "RBM":
        """The same machine with every tensor moved or cast, see :meth:`torch.Tensor.to`."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def detach(self) -> "RBM":
        """The same machine without gradients of its parameters or of an attached log Z."""
        return self._map(torch.Tensor.detach)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "RBM":
        def optional(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else function(tensor)

        new = RBM(
            self.visible.map(function),
            self.hidden.map(function),
            function(self.weight),
            visible_offset=optional(self._visible_offset),
            hidden_offset=optional(self._hidden_offset),
            num_gibbs_steps=self.num_gibbs_steps,
            validate_args=False,
        )
        new._constant = optional(self._constant)
        new._batch_shape = self.batch_shape
        new._log_partition = optional(self._log_partition)
        new._validate_args = self._validate_args
        return new

    def canonical(self) -> CanonicalForm:
        """Absorb the offsets into the biases."""
        visible_bias, hidden_bias = self.visible.natural_bias, self.hidden.natural_bias
        constant = -(self.visible.energy_constant + self.hidden.energy_constant)
        if self._constant is not None:
            constant = constant - self._constant
        if self._visible_offset is not None:
            pull = apply_weight(self._visible_offset, self.weight)
            hidden_bias = hidden_bias - pull
            if self._hidden_offset is not None:
                constant = constant + (pull * self._hidden_offset).sum(-1)
        if self._hidden_offset is not None:
            visible_bias = visible_bias - apply_weight(self._hidden_offset, self.weight.mT)
        return CanonicalForm(visible_bias, hidden_bias, self.weight, constant)

    # --- energies -----------------------------------------------------------------------------

    def energy(self, v: Tensor, h: Tensor) -> Tensor:
        """Energy E(v, h) of a joint state.

        :param Tensor v: visible states, shape ``(..., V)``.
        :param Tensor h: hidden states, shape ``(..., H)``.
        """
        v = self._states("v", v, self.weight.shape[-2])
        h = self._states("h", h, self.weight.shape[-1])
        centred = self._centred(h, self._hidden_offset)
        energy = self.visible.energy(v) + self.hidden.energy(h)
        energy = energy - (self.hidden_field(v) * centred).sum(-1)
        return energy if self._constant is None else energy + self._constant

    def free_energy(self, value: Tensor) -> Tensor:
        r"""Free energy :math:`F(v) = -\log \sum_h e^{-E(v, h)}` of visible states.

        :param Tensor value: shape ``(..., V)``, of any dtype.
        :returns: shape ``broadcast(value.shape[:-1], parameter batch shape)``.
        """
        value = self._states("value", value, self.weight.shape[-2])
        field = self.hidden_field(value)
        energy = self.visible.energy(value) - self.hidden.log_partition(field)
        if self._hidden_offset is not None:
            energy = energy + (field * self._hidden_offset).sum(-1)
        return energy if self._constant is None else energy + self._constant

    @staticmethod
    def _centred(x: Tensor, offset: Tensor | None) -> Tensor:
        return x if offset is None else x - offset

    def hidden_field(self, v: Tensor) -> Tensor:
        """The field W'(v - o_v) that visible states exert on the hidden layer."""
        v = self._states("v", v, self.weight.shape[-2])
        return apply_weight(self._centred(v, self._visible_offset), self.weight)

    def visible_field(self, h: Tensor) -> Tensor:
        """The field W(h - o_h) that hidden states exert on the visible layer."""
        h = self._states("h", h, self.weight.shape[-1])
        return apply_weight(self._centred(h, self._hidden_offset), self.weight.mT)

    def _states(self, name: str, x: Tensor, size: int) -> Tensor:
        """States in the machine's dtype: bits may come as booleans or integers."""
        if x.dim() == 0 or x.shape[-1] != size:
            raise ValueError(f"{name} must have shape (..., {size}), got {tuple(x.shape)}")
        return x.to(self.weight.dtype)

    def hidden_given(self, v: Tensor) -> TorchDistribution:
        """Pyro distribution of the hidden layer given visible states, of event dimension 1."""
        return self.hidden.conditional(self.hidden_field(v))

    def visible_given(self, h: Tensor) -> TorchDistribution:
        """Pyro distribution of the visible layer given hidden states, of event dimension 1."""
        return self.visible.conditional(self.visible_field(h))

    # --- sampling -----------------------------------------------------------------------------

    def sample(self, sample_shape: Any = (), *, generator: Generator | None = None) -> Tensor:
        """Independent draws, one chain an element; see the class for when they are exact.

        :param sample_shape: shape of the draws, before ``batch_shape``.
        :param torch.Generator generator: the source of random bits; the global one if None.
        :raises ValueError: if the pair of families is not normalisable at these parameters.
        """
        from pyro_ebm.distributions.sampling import sample_rbm

        with torch.no_grad():
            return sample_rbm(self, self._extended_shape(Size(sample_shape)), generator)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """Whether the visible layer is small enough for parallel enumeration."""
        num_states = self.visible.num_states
        return num_states is not None and num_states <= MAX_ENUMERATED_STATES

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All visible states, shape ``(num_states,) + batch_shape (or ones) + (V,)``.

        :raises NotImplementedError: if the layer is continuous or has too many states.
        """
        num_states = self.visible.num_states
        if num_states is None or num_states > MAX_ENUMERATED_STATES:
            raise NotImplementedError(
                f"only visible layers of at most {MAX_ENUMERATED_STATES} states are enumerated, "
                f"this one has {'infinitely many' if num_states is None else num_states}"
            )
        states = self.visible.states(0, num_states)
        states = states.reshape((num_states,) + (1,) * len(self.batch_shape) + (-1,))
        return states.expand((-1, *self.batch_shape, -1)) if expand else states

    # --- parts --------------------------------------------------------------------------------

    def clamp(self, mask: Tensor, value: Tensor) -> "RBM":
        r"""The machine over the units where ``mask`` is False, the others fixed to ``value``.

        Constants are kept: ``clamped.log_prob(free) == log_prob(full)``, and the difference of the
        exact log Z of both is the log-probability of the clamped values. An attached log Z is dropped.

        :param Tensor mask: boolean, shape ``(V,)``; True where a unit is clamped. A one-hot group is
            clamped as a whole.
        :param Tensor value: shape ``(..., V)``, read only where the mask is True; its batch shape
            broadcasts with the machine's.
        :raises ValueError: if the mask is no boolean vector, leaves no unit free, divides a one-hot
            group, or a clamped value is NaN.
        """
        num_visible = self.event_shape[0]
        if mask.dtype != torch.bool or mask.shape != self.event_shape:
            raise ValueError(
                f"mask must be boolean of shape ({num_visible},), got {mask.dtype} {tuple(mask.shape)}"
            )
        if bool(mask.all()):
            raise ValueError("mask clamps every visible unit; use free_energy(value) instead")
        value = self._states("value", value, num_visible)
        if not bool(mask.any()):
            batch = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
            return self.normalize(None).expand(batch)
        fixed = value[..., mask]
        if bool(torch.isnan(fixed).any()):
            raise ValueError("value is NaN at a clamped unit")
        fixed_unit = self.visible.select(mask)
        if self._validate_args and not bool(fixed_unit.support.check(fixed).all()):
            raise ValueError(f"value is outside of {fixed_unit.support} at a clamped unit")
        return self._clamped(mask, fixed_unit, fixed)

    def _clamped(self, mask: Tensor, fixed_unit: Unit, fixed: Tensor) -> "RBM":
        offset = self._visible_offset
        fixed_offset = None if offset is None else offset[..., mask]
        field = apply_weight(self._centred(fixed, fixed_offset), self.weight[..., mask, :])
        hidden, tilt_constant = self.hidden.tilt(field)
        constant = fixed_unit.energy(fixed) + tilt_constant
        if self._hidden_offset is not None:
            constant = constant + (field * self._hidden_offset).sum(-1)
        if self._constant is not None:
            constant = constant + self._constant
        new = RBM(
            self.visible.select(~mask),
            hidden,
            self.weight[..., ~mask, :],
            visible_offset=None if offset is None else offset[..., ~mask],
            hidden_offset=self._hidden_offset,
            num_gibbs_steps=self.num_gibbs_steps,
            validate_args=False,
        )
        new._constant = constant
        new._validate_args = self._validate_args
        new._batch_shape = torch.broadcast_shapes(new._broadcast_batch(), self.batch_shape)
        return new

    def clamp_rows(self, observed: Tensor, value: Tensor) -> "RBM":
        r"""The machine given the observed entries of every row, where rows may miss different ones.

        It has all V entries still, so that one batch holds every mask: observed units are decoupled,
        with the fields that they exert in the hidden biases, and constants are such that the exact
        log Z is that of the missing units, the difference to the machine's own being
        :math:`\log p(v_{\mathrm{observed}})`. Their entries in samples mean nothing; put the values
        back by ``torch.where(observed, value, sample)``. The weight is repeated for every mask;
        :class:`ClampedSweep` samples without that. An attached log Z is dropped.

        :param Tensor observed: boolean, shape ``(..., V)``; True where an entry is observed.
        :param Tensor value: shape ``(..., V)``, read only where ``observed`` is True.
        :returns: a machine of batch shape ``broadcast(rows, batch_shape)``.
        :raises ValueError: if shapes do not fit, the mask is not boolean or divides a one-hot group
            or a layer that is one unit, or an observed value is NaN or outside of the support.
        """
        from pyro_ebm.distributions.observed_rows import ObservedRows
        from pyro_ebm.distributions.row_clamp import clamp_rows

        return clamp_rows(self, ObservedRows(self, value, observed))

    def tilt(self, field: Tensor) -> "RBM":
        r"""The machine with energy :math:`E(v, h) - t^\top v`, unnormalised.

        Constants are kept, so that ``tilted.log_prob(v) == log_prob(v) + (t * v).sum(-1)``. It is the
        posterior of v where the likelihood is log-linear in v.

        :param Tensor field: t, shape ``(..., V)``; its batch shape broadcasts with the machine's.
        """
        field = self._states("field", field, self.event_shape[0])
        visible, constant = self.visible.tilt(field)
        new = RBM(
            visible,
            self.hidden,
            self.weight,
            visible_offset=self._visible_offset,
            hidden_offset=self._hidden_offset,
            num_gibbs_steps=self.num_gibbs_steps,
            validate_args=False,
        )
        new._constant = constant if self._constant is None else constant + self._constant
        new._validate_args = self._validate_args
        new._batch_shape = torch.broadcast_shapes(new._broadcast_batch(), self.batch_shape)
        return new

    def check_normalizable(self) -> None:
        """Refuse parameters for which Z is infinite.

        :raises ValueError: if both layers are continuous and the joint energy is not proven to be
            bounded below.
        """
        check_normalizable(self.visible, self.hidden, self.weight)

    def __repr__(self) -> str:
        state = "unnormalised" if self._log_partition is None else "normalised"
        return (
            f"{type(self).__name__}(visible={self.visible!r}, hidden={self.hidden!r}, "
            f"batch_shape={tuple(self.batch_shape)}, {state})"
        )


def _last_size(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.shape[-1]
