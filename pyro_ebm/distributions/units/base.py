# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The interface of a unit family."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Size, Tensor
from torch.distributions import Distribution, constraints

from pyro_ebm.ops.shapes import broadcast_shapes

__all__ = ["Unit"]


class Unit(ABC):
    r"""A layer of independent units of one family.

    A family is an exponential family with energy

    .. math:: u(x) = -b^\top x + r(x) + C, \qquad
              \Gamma(t) = \log \sum_x \exp(-u(x) + t^\top x) = A(b + t) - C,

    where b is the natural parameter (:attr:`natural_bias`), r(x) the base measure and C a constant of
    the parameters (:attr:`energy_constant`, zero for most). Methods named ``natural_*`` take the total
    natural parameter :math:`\theta = b + t`; the others take the extra field t, with None for 0. A layer
    is always one event dimension of ``size`` entries.

    A new family is one subclass: it sets :attr:`parameter_constraints` and :attr:`is_discrete` and
    defines the abstract methods.

    :param parameters: the tensors that the family is made of, by name.
    :param validate_args: whether to check the parameters; None for torch's global setting.
    :raises ValueError: if a parameter is outside of its constraint (NaN included).
    """

    #: Names of the parameters and the values that they may take, elementwise.
    parameter_constraints: ClassVar[dict[str, Any]]
    #: Whether the support is a countable set (of the layer as a whole).
    is_discrete: bool
    #: Whether the layer is normal at every natural parameter, with one covariance for all of them.
    is_gaussian: bool = False
    #: Number of trailing axes that the layer takes of its parameters' common shape.
    parameter_dim: ClassVar[int] = 1

    def __init__(self, parameters: dict[str, Tensor], validate_args: bool | None = None) -> None:
        self._names = tuple(parameters)
        reference = next((p for p in parameters.values() if isinstance(p, Tensor)), None)
        for name, value in parameters.items():
            if not isinstance(value, Tensor):
                value = torch.as_tensor(
                    value,
                    dtype=torch.get_default_dtype() if reference is None else reference.dtype,
                    device=None if reference is None else reference.device,
                )
            setattr(self, name, value)
        shapes = [getattr(self, name).shape for name in self._names]
        try:
            shape = broadcast_shapes([self._common_shape(name) for name in self._names])
        except RuntimeError as error:
            got = ", ".join(f"{n} {tuple(s)}" for n, s in zip(self._names, shapes, strict=True))
            raise ValueError(f"{type(self).__name__}: shapes do not broadcast: {got}") from error
        if len(shape) < self.parameter_dim:
            raise ValueError(
                f"{type(self).__name__}: {self._names[0]} needs at least {self.parameter_dim} "
                f"axes, got shape {tuple(shape)}"
            )
        self._shape = shape
        validate = Distribution._validate_args if validate_args is None else validate_args
        if validate:
            self._validate()

    def _validate(self) -> None:
        for name in self._names:
            value = getattr(self, name)
            constraint = self.parameter_constraints[name]
            valid = constraint.check(value)
            if not bool(valid.all()):
                bad = value[~valid].flatten()[:3].tolist()
                raise ValueError(
                    f"{type(self).__name__}: {name} must be {constraint}, got values such as {bad}"
                )

    def _common_shape(self, name: str) -> Size:
        """Shape of a parameter without the axes that only this parameter has."""
        shape: Size = getattr(self, name).shape
        own = self.parameter_event_dim(name) - self.parameter_dim
        return shape[: len(shape) - own]

    # --- what it is made of -------------------------------------------------------------------

    def parts(self) -> list[tuple[slice, "Unit"]]:
        """The layers of one family each that this one consists of, with their entries in a state."""
        return [(slice(0, self.size), self)]

    def parameter_event_dim(self, name: str) -> int:
        """Number of trailing axes of a parameter that belong to the layer."""
        return self.parameter_dim

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return {name: getattr(self, name) for name in self._names}

    @property
    def batch_shape(self) -> Size:
        """Shape of the independent layers."""
        return self._shape[: len(self._shape) - self.parameter_dim]

    @property
    def num_units(self) -> int:
        """Number of units (sites; a one-hot group is one)."""
        return self._shape[-self.parameter_dim]

    @property
    def size(self) -> int:
        """Number of entries of a flattened state, the event size."""
        return int(torch.Size(self._shape[-self.parameter_dim :]).numel())

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters and of samples."""
        return self.natural_bias.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters and of samples."""
        return self.natural_bias.device

    def options(self) -> dict[str, Any]:
        """Arguments of the constructor that are no tensors."""
        return {}

    def replace(self, **parameters: Tensor) -> Self:
        """A layer of the same family and options with other parameters."""
        cls: Any = type(self)
        new: Self = cls(**{**self.parameters, **parameters}, **self.options(), validate_args=False)
        return new

    def map(self, function: Any) -> Self:
        """A layer whose parameters are ``function(parameter)``."""
        return self.replace(**{name: function(p) for name, p in self.parameters.items()})

    def map_whole(self, function: Callable[[Tensor, int], Tensor]) -> Self:
        """A layer whose parameters are ``function(parameter, event_dim)``, where the last ``event_dim``
        axes belong to the layer and have its full size: a number that all units share is repeated."""

        def whole(name: str, p: Tensor) -> Tensor:
            event_dim = self.parameter_event_dim(name)
            event = self._shape[len(self._shape) - self.parameter_dim :]
            own = p.shape[p.dim() - (event_dim - self.parameter_dim) :]
            return function(p.expand(torch.broadcast_shapes(p.shape, event + own)), event_dim)

        return self.replace(**{name: whole(name, p) for name, p in self.parameters.items()})

    def signature(self) -> tuple[Any, ...]:
        """What two layers must share, apart from their batch shapes, to be levels of one path."""
        return type(self).__name__, self.size, str(self.options())

    # --- the family ---------------------------------------------------------------------------

    @property
    @abstractmethod
    def natural_bias(self) -> Tensor:
        """Natural parameter b, shape ``batch_shape + (size,)``."""

    @property
    def energy_constant(self) -> Tensor:
        """The constant C of the energy, shape broadcastable to ``batch_shape``."""
        return self.natural_bias.new_zeros(())

    @property
    @abstractmethod
    def support(self) -> constraints.Constraint:
        """Support of the layer, of event dimension 1."""

    @abstractmethod
    def energy(self, x: Tensor) -> Tensor:
        """Energy u(x), summed over units.

        :param Tensor x: states, shape ``(..., size)``.
        :returns: shape ``broadcast(x.shape[:-1], batch_shape)``.
        """

    @abstractmethod
    def natural_log_partition(self, theta: Tensor) -> Tensor:
        """Log-partition A(theta), summed over units; shape ``theta.shape[:-1]``."""

    @abstractmethod
    def natural_mean(self, theta: Tensor) -> Tensor:
        """Mean state at the natural parameter theta, shape of theta."""

    @abstractmethod
    def natural_sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        """A state drawn at the natural parameter theta, shape of theta; no gradient."""

    @abstractmethod
    def natural_conditional(self, theta: Tensor) -> TorchDistribution:
        """The layer at the natural parameter theta as a Pyro distribution of event dimension 1."""

    @abstractmethod
    def from_mean(self, mean: Tensor) -> Self:
        """The layer of the same family whose mean is nearest to ``mean`` (shape ``(..., size)``).

        Means at the border of what the family can express are moved inside (for bits, to
        [1e-3, 1 - 1e-3]), as a base distribution must reach every state.
        """

    @abstractmethod
    def neutral(self) -> Self:
        """The layer without a field: uniform where the support is finite, else centred at zero."""

    @abstractmethod
    def interpolate(self, base: Self, beta: float) -> Self:
        r"""The layer with energy :math:`(1-\beta) u_{base}(x) + \beta u(x)`, up to a constant that is
        zero at both ends.

        :param base: a layer of the same family and size.
        :param float beta: inverse temperature between 0 (the base) and 1 (this layer).
        """

    @abstractmethod
    def tilt(self, field: Tensor) -> tuple[Self, Tensor]:
        r"""Absorb a field: the layer with energy :math:`u(x) - t^\top x - C'`, and the constant C'.
        It follows that :math:`\Gamma(t) = \Gamma'(0) - C'`.

        :param Tensor field: t, shape ``(..., size)``.
        """

    @abstractmethod
    def select(self, mask: Tensor) -> Self:
        """The layer of the units where ``mask`` (shape ``(size,)``, boolean) is True.

        :raises ValueError: if the mask divides a unit that spans several entries.
        """

    def covariance_root(self, weight: Tensor) -> Tensor | None:
        r"""A matrix S with :math:`S^\top S = W^\top Q^{-1} W`, where :math:`x^\top Q x / 2` is the quadratic
        part of the energy; for a Gaussian layer :math:`Q^{-1}` is the covariance.

        Discrete units, of bounded states, have no such part and add no row. Here Q is the diagonal matrix
        of a parameter ``precision``.

        :param Tensor weight: W, shape ``(..., size, m)``.
        :returns: shape ``(..., rows, m)``; None if the family does not say what Q is.
        """
        if self.is_discrete:
            return weight[..., :0, :]
        precision = self.parameters.get("precision")
        if precision is None:
            return None
        return weight * torch.atleast_1d(precision).rsqrt().unsqueeze(-1)

    # --- what follows -------------------------------------------------------------------------

    def theta(self, field: Tensor | None) -> Tensor:
        """Total natural parameter under an extra field."""
        return self.natural_bias if field is None else self.natural_bias + field

    def log_partition(self, field: Tensor | None = None) -> Tensor:
        r"""Log-partition :math:`\Gamma(t)` under a field, summed over units."""
        return self.natural_log_partition(self.theta(field)) - self.energy_constant

    def mean(self, field: Tensor | None = None) -> Tensor:
        """Mean state under a field."""
        return self.natural_mean(self.theta(field))

    def sample(self, field: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """A state drawn under a field; no gradient.

        :param Tensor field: the extra field, shape ``(..., size)``; it sets the number of draws.
        :param torch.Generator generator: the source of random bits; the global one if None.
        """
        with torch.no_grad():
            return self.natural_sample(self.theta(field), generator)

    def conditional(self, field: Tensor | None = None) -> TorchDistribution:
        """The layer under a field as a Pyro distribution of event dimension 1."""
        return self.natural_conditional(self.theta(field))

    def natural_log_partition_step(
        self, a: Tensor, beta: float | Tensor, beta_next: float | Tensor
    ) -> Tensor:
        """``A(beta_next * a) - A(beta * a)``, the increment of an annealing path. Inverse temperatures
        are numbers, or tensors that broadcast with ``a`` and have a last axis of size 1."""
        return self.natural_log_partition(beta_next * a) - self.natural_log_partition(beta * a)

    def mean_parameters_gradient(self, x: Tensor) -> dict[str, Tensor]:
        r"""Gradients of :math:`-u(x)` with respect to the parameters, averaged over rows.

        :param Tensor x: states, shape ``(rows, size)``.
        """
        return self._row_gradient(lambda unit: -unit.energy(x))

    def natural_log_partition_gradient(self, theta: Tensor, mean: Tensor) -> dict[str, Tensor]:
        """:meth:`log_partition_gradient` where theta and its mean state are known already.

        :param Tensor theta: natural parameter of every row, shape ``(rows, size)``.
        :param Tensor mean: ``natural_mean(theta)``.
        """
        return self.log_partition_gradient(theta - self.natural_bias)

    def log_partition_gradient(self, field: Tensor) -> dict[str, Tensor]:
        r"""Gradients of :math:`\Gamma(t)` with respect to the parameters, averaged over rows.

        :param Tensor field: t, shape ``(rows, size)``.
        """
        return self._row_gradient(lambda unit: unit.log_partition(field))

    def _row_gradient(self, function: Any) -> dict[str, Tensor]:
        with torch.enable_grad():
            leaves = {n: p.detach().requires_grad_() for n, p in self.parameters.items()}
            value = function(self.replace(**leaves)).mean()
            grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        return {
            n: torch.zeros_like(leaf) if g is None else g
            for (n, leaf), g in zip(leaves.items(), grads, strict=True)
        }

    # --- draws in a loop ----------------------------------------------------------------------

    def natural_noise(self, shape: Size, generator: Generator | None = None) -> Tensor | None:
        """Random numbers for draws of the given shape, of which :meth:`natural_sample_from` makes
        states; None (the default) where the family draws only by :meth:`natural_sample`.

        A loop that draws small layers thousands of times fetches the numbers of many steps at once.
        """
        return None

    def natural_sample_from(self, theta: Tensor, noise: Tensor) -> Tensor:
        """A state with the law of :meth:`natural_sample`, made of numbers drawn ahead.

        :param Tensor theta: the natural parameter; may be overwritten.
        :param Tensor noise: numbers from :meth:`natural_noise`; may be overwritten.
        """
        raise NotImplementedError(f"{type(self).__name__} units draw no numbers ahead")

    # --- enumeration --------------------------------------------------------------------------

    @property
    def num_states(self) -> int | None:
        """Number of states of the whole layer, None if it is not finite."""
        return None

    def states(self, start: int, stop: int) -> Tensor:
        """States number ``start`` to ``stop - 1`` of the layer, shape ``(stop - start, size)``.

        :raises ValueError: if the support is not finite.
        """
        raise ValueError(f"{type(self).__name__} units cannot be enumerated")

    def unit_states(self) -> Tensor:
        """All states of one unit, shape ``(K, size / num_units)``.

        :raises ValueError: if a unit has no finite support of its own.
        """
        raise ValueError(f"{type(self).__name__} units have no finite set of states per unit")

    def __repr__(self) -> str:
        shape = tuple(self.batch_shape)
        return f"{type(self).__name__}(num_units={self.num_units}, batch_shape={shape})"
