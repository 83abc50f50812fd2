# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""One machine a class as a conditional model of one-hot contexts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.units import Unit

__all__ = ["MachinesByClass"]


class MachinesByClass:
    r"""Machines that were trained apart, one a class, as one model p(x | class).

    A context is the one-hot vector of a class; :attr:`contexts` are all of them. With log Z of every
    machine, :class:`~pyro_ebm.infer.BayesClassifier` gives the probabilities of the classes.

    :param machines: one :class:`~pyro_ebm.distributions.RBM` a class, without a batch shape, of equal
        families, options and sizes, of one dtype and device. Parameters are copied, without their gradients;
        an attached log Z is dropped.
    :raises TypeError: if something else than a list of such machines is given.
    :raises ValueError: if there is none, one has a batch shape or has been clamped, or layers, dtypes or
        devices differ.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import BayesClassifier, MachinesByClass, conditional_log_partition
    >>> weight, bias = torch.zeros(4, 3), torch.zeros(3)
    >>> model = MachinesByClass([BernoulliRBM(weight, b * torch.ones(4), bias) for b in (-1.0, 1.0)])
    >>> log_z = conditional_log_partition(model, model.contexts)
    >>> classifier = BayesClassifier(model, model.contexts, log_z)
    >>> classifier.predict(torch.tensor([[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]))
    tensor([0, 1])
    """

    def __init__(self, machines: Sequence[RBM]) -> None:
        if isinstance(machines, RBM) or not isinstance(machines, Sequence):
            raise TypeError(f"machines must be a list of RBMs, got {type(machines).__name__}")
        if not machines:
            raise ValueError("machines must hold at least one RBM, got none")
        for number, machine in enumerate(machines):
            _check_machine(number, machine, machines[0])
        self._dist = _stack([machine.detach() for machine in machines])

    @property
    def num_classes(self) -> int:
        """Number of machines."""
        return int(self._dist.batch_shape[0])

    @property
    def contexts(self) -> Tensor:
        """The one-hot vectors of all classes, shape ``(num_classes, num_classes)``."""
        weight = self._dist.weight
        return torch.eye(self.num_classes, dtype=weight.dtype, device=weight.device)

    def condition(self, context: Tensor) -> RBM:
        """The machines of some classes.

        :param Tensor context: one-hot, shape ``(..., num_classes)``.
        :returns: a machine of batch shape ``context.shape[:-1]``.
        :raises TypeError: if the context is no tensor.
        :raises ValueError: if it has another shape or is not one-hot.
        """
        if not isinstance(context, Tensor):
            raise TypeError(f"context must be a tensor, got {type(context).__name__}")
        if context.dim() == 0 or context.shape[-1] != self.num_classes:
            raise ValueError(
                f"context must have shape (..., {self.num_classes}), got {tuple(context.shape)}"
            )
        valid = ((context == 0) | (context == 1)).all(-1) & (context.sum(-1) == 1)
        if not bool(valid.all()):
            bad = int((~valid).sum())
            raise ValueError(f"context must be one-hot; {bad} of {valid.numel()} are not")
        index = context.argmax(-1).to(self._dist.weight.device)
        return _select(self._dist, index)


def _check_machine(number: int, machine: RBM, first: RBM) -> None:
    if not isinstance(machine, RBM):
        raise TypeError(f"machine {number} must be an RBM, got {type(machine).__name__}")
    if machine.batch_shape or machine._constant is not None:
        what = "has been clamped or tilted" if not machine.batch_shape else "has a batch shape"
        raise ValueError(f"machine {number} {what} ({machine!r})")
    for side in ("visible", "hidden"):
        got, expected = (getattr(m, side).signature() for m in (machine, first))
        if got != expected:
            raise ValueError(
                f"machines must have equal layers; the {side} layer of machine {number} is {got}, "
                f"that of machine 0 {expected}"
            )
    for what in ("dtype", "device"):
        got, expected = (getattr(m.weight, what) for m in (machine, first))
        if got != expected:
            raise ValueError(
                f"machines must have one {what}; machine {number} has {got}, not {expected}"
            )


def _stack(machines: list[RBM]) -> RBM:
    """One machine with a batch axis in front."""

    def layer(side: str) -> Unit:
        # Numbers that all units share in one machine may be one a unit in another.
        units = [getattr(m, side).map_whole(lambda p, event_dim: p) for m in machines]
        names = units[0].parameters
        unit: Unit = units[0].replace(
            **{name: torch.stack([u.parameters[name] for u in units]) for name in names}
        )
        return unit

    # Offsets that one machine lacks are zero.
    return RBM(
        layer("visible"),
        layer("hidden"),
        torch.stack([m.weight for m in machines]),
        visible_offset=torch.stack([m.visible_offset for m in machines]),
        hidden_offset=torch.stack([m.hidden_offset for m in machines]),
        validate_args=False,
    )


def _select(dist: RBM, index: Tensor) -> RBM:
    """The machines of a batch with some numbers, shape ``index.shape``."""
    return RBM(
        dist.visible.map(lambda p: p[index]),
        dist.hidden.map(lambda p: p[index]),
        dist.weight[index],
        visible_offset=dist.visible_offset[index],
        hidden_offset=dist.hidden_offset[index],
        validate_args=False,
    )
