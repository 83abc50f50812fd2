# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What every Boltzmann machine shares as a Pyro distribution: the normaliser and its guard."""

import copy
from abc import abstractmethod
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor

__all__ = ["EnergyBased", "UnnormalizedGradientError"]


class UnnormalizedGradientError(RuntimeError):
    """An unnormalised log-probability was about to be differentiated by its own parameters."""


_GUARD_MESSAGE = """\
{name}.log_prob(): parameters require a gradient, but {what}. Training on this value diverges while \
the reported loss looks excellent. Use one of:
  - SVI(model, guide, optim, loss=ContrastiveDivergence(...)), which supplies the gradient of log Z;
  - .normalize(exact_log_partition(dist)), differentiable, for a model that can be enumerated;
  - .free_energy(v) if you build your own objective;
  - torch.no_grad() if you only want the value."""


class EnergyBased(TorchDistribution):
    r"""A distribution known up to a constant, :math:`p(v) = e^{-F(v)} / Z`.

    :meth:`log_prob` is the **unnormalised** :math:`-F(v)` unless a log Z has been attached by
    :meth:`normalize`, and then :math:`-F(v) - \log Z`.

    Subclasses define :meth:`free_energy`, :meth:`parameters`, :attr:`parameter_batch_shape` and
    sampling. Their tensors are kept as they were given: :meth:`expand` only changes the batch shape
    that results are broadcast to, so that a plate of a million rows costs one weight matrix.
    """

    _log_partition: Tensor | None

    @property
    def log_partition(self) -> Tensor | None:
        """The attached log Z, shape broadcastable to ``batch_shape``; None if unnormalised."""
        return self._log_partition

    @property
    def log_partition_function(self) -> Tensor | None:
        """Alias of :attr:`log_partition`, Pyro's name for it in its matching distributions."""
        return self._log_partition

    @property
    @abstractmethod
    def parameter_batch_shape(self) -> Size:
        """Batch shape of the parameters themselves, before any :meth:`expand`."""

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """All tensors that the energy depends on."""

    @abstractmethod
    def free_energy(self, value: Tensor) -> Tensor:
        r"""Free energy :math:`F(v) = -\log \sum_h e^{-E(v, h)}`.

        :param Tensor value: shape ``(..., *event_shape)``.
        :returns: shape ``broadcast(value batch shape, parameter batch shape)``.
        """

    def normalize(self, log_partition: Any) -> Self:
        """A copy with log Z attached, whose :meth:`log_prob` is normalised.

        :param log_partition: log Z as a number, a tensor that broadcasts to ``batch_shape``, an
            estimate with a ``value`` (such as
            :class:`~pyro_ebm.infer.LogPartitionEstimate`), or None to remove it.
        :raises ValueError: if the shape does not broadcast to ``batch_shape`` or the value is NaN.
        """
        new = copy.copy(self)
        new._log_partition = self._check_log_partition(log_partition)
        return new

    def _check_log_partition(self, log_partition: Any) -> Tensor | None:
        if log_partition is None:
            return None
        reference = self.parameters()[0]
        value = torch.as_tensor(getattr(log_partition, "value", log_partition))
        value = value.to(device=reference.device, dtype=reference.dtype)
        try:
            fits = torch.broadcast_shapes(value.shape, self.batch_shape) == self.batch_shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"log_partition of shape {tuple(value.shape)} does not broadcast to the batch "
                f"shape {tuple(self.batch_shape)}"
            )
        if bool(torch.isnan(value).any()):
            raise ValueError("log_partition is NaN")
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        r"""The unnormalised :math:`-F(v)`, or :math:`-F(v) - \log Z` if log Z is attached.

        :param Tensor value: shape broadcastable to ``batch_shape + event_shape``.
        :returns: shape ``broadcast(value batch shape, batch_shape)``.
        :raises UnnormalizedGradientError: where the result would be differentiated by the model's
            own parameters although log Z, or its dependence on them, is missing.
        :raises ValueError: if the value is outside of the support (with ``validate_args``).
        """
        self._guard_gradient()
        return self.normalized_log_prob(value, self._log_partition)

    def normalized_log_prob(self, value: Tensor, log_partition: Tensor | None) -> Tensor:
        r""":math:`-F(v) - \log Z` with a given log Z, without the guard of :meth:`log_prob`.

        For objectives that take the gradient of log Z in their own hands.

        :param Tensor value: shape broadcastable to ``batch_shape + event_shape``.
        :param Tensor log_partition: shape broadcastable to ``batch_shape``; 0 if None.
        """
        if self._validate_args:
            self._validate_sample(value)
        result = -self.free_energy(value)
        if log_partition is not None:
            result = result - log_partition
        return result.expand(torch.broadcast_shapes(result.shape, self.batch_shape))

    def _guard_gradient(self) -> None:
        if not torch.is_grad_enabled():
            return
        log_z = self._log_partition
        if log_z is not None and log_z.requires_grad:
            return
        if any(p.requires_grad for p in self.parameters()):
            what = "log Z is not attached" if log_z is None else "the attached log Z is a constant"
            name = type(self).__name__
            raise UnnormalizedGradientError(_GUARD_MESSAGE.format(name=name, what=what))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """A copy with a larger batch shape that shares the parameters (no memory, no work)."""
        batch_shape = Size(batch_shape)
        if torch.broadcast_shapes(self.batch_shape, batch_shape) != batch_shape:
            raise ValueError(
                f"cannot expand a batch shape {tuple(self.batch_shape)} to {tuple(batch_shape)}"
            )
        new = copy.copy(self)
        new._batch_shape = batch_shape
        return new

    def __copy__(self) -> Self:
        # copy.copy() would go through __getstate__ and lose the gradient of log Z.
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def compact(self) -> Self:
        """A copy without what :meth:`expand` added: its batch shape is that of the parameters."""
        new = copy.copy(self)
        new._batch_shape = self.parameter_batch_shape
        new._log_partition = None
        return new

    def __getstate__(self) -> dict[str, Any]:
        # A log Z computed from parameters is no leaf, and such tensors cannot be pickled.
        state = dict(self.__dict__)
        if state.get("_log_partition") is not None:
            state["_log_partition"] = state["_log_partition"].detach()
        return state
