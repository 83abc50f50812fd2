# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""An RBM of inputs and their classes, which is a classifier too."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from pyro_ebm.nn.labelled_units import LabelledUnits
from pyro_ebm.nn.rbm import RBM
from pyro_ebm.nn.unit_parameters import is_whole

__all__ = ["ClassificationRBM"]

#: Hidden natural parameters of one chunk of rows under all classes: 8 MiB in float64.
_CHUNK_ENTRIES = 2**20


class ClassificationRBM(RBM):
    r"""A restricted Boltzmann machine whose visible layer is an input x and the one-hot label y of its
    class.

    The probability of a class is exact and cheap, as the field of the input is shared by all classes:

    .. math::
        p(y | x) \propto \exp\bigl(b_y + A(c + W^\top x + U_y)\bigr),

    where A is the log-partition of the hidden layer (for bits a sum of softplus), U holds the rows of
    the weight that belong to the label and offsets are absorbed into the biases: O(num_hidden *
    num_classes) for a row, after one product with W.

    It is a :class:`~pyro_ebm.nn.RBM` of rows :math:`v = (x, y)`, see :meth:`join`: log-probabilities, AIS,
    sampling and clamping work as they do there. Clamp the label for inputs of a class.
    :class:`~pyro_ebm.training.Trainer` trains it on joined rows for :math:`p(x, y)`, for
    :math:`p(y | x)`, or for both, see
    :class:`~pyro_ebm.training.classification_gradient.ClassificationGradient`.

    **References**

    [1] *Classification using discriminative restricted Boltzmann machines*, Hugo Larochelle, Yoshua
    Bengio (2008)

    [2] *Learning algorithms for the classification restricted Boltzmann machine*, Hugo Larochelle,
    Michael Mandel, Razvan Pascanu, Yoshua Bengio (2012)

    :param int num_visible: entries of the input.
    :param int num_hidden: entries of the hidden layer.
    :param int num_classes: number of classes, at least 2.
    :param str visible: family of the input, a name of :data:`~pyro_ebm.nn.unit_parameters.FAMILIES`.
    :param str hidden: family of the hidden layer.
    :param bool centered: whether to keep offsets.
    :param float weight_scale: standard deviation of the initial weights.
    :param int seed: seed of the initial weights; the global generator if None.
    :param dtype: floating-point type.
    :param device: device.
    :param visible_options: options of the family of the input.
    :param hidden_options: options of the hidden family.
    :raises ValueError: for unknown families, options or impossible sizes.

    >>> import torch
    >>> from pyro_ebm.nn import ClassificationRBM
    >>> module = ClassificationRBM(num_visible=6, num_hidden=4, num_classes=3, seed=0)
    >>> x = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0, 1.0]])
    >>> module.join(x, torch.tensor([2]))
    tensor([[0., 1., 1., 0., 0., 1., 0., 0., 1.]])
    >>> module.log_class_probabilities(x).shape, module.predict(x).shape
    (torch.Size([1, 3]), torch.Size([1]))
    """

    visible: LabelledUnits  # type: ignore[assignment]

    def __init__(
        self,
        num_visible: int,
        num_hidden: int,
        num_classes: int,
        *,
        visible: str = "bernoulli",
        hidden: str = "bernoulli",
        centered: bool = False,
        weight_scale: float = 0.01,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        visible_options: Mapping[str, Any] | None = None,
        hidden_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not is_whole(num_classes) or num_classes < 2:
            raise ValueError(f"num_classes must be a whole number >= 2, got {num_classes!r}")
        super().__init__(
            num_visible,
            num_hidden,
            visible,
            hidden,
            visible_options=visible_options,
            hidden_options=hidden_options,
            centered=centered,
            weight_scale=weight_scale,
            seed=seed,
            dtype=dtype,
            device=device,
        )
        self.num_inputs = num_visible
        self.num_classes = num_classes
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        self._add_label(visible, visible_options, factory)

    def _add_label(
        self, family: str, options: Mapping[str, Any] | None, factory: dict[str, Any]
    ) -> None:
        """Put the layer of inputs and label in the place of the one of inputs alone."""
        del self.visible
        self.visible = LabelledUnits(family, self.num_inputs, self.num_classes, options, **factory)
        size = self.num_inputs + self.num_classes
        self.weight = Parameter(torch.empty(size, self.weight.shape[1], **factory))
        if self.centered:
            self.visible_offset = torch.zeros(size, **factory)
        self._init_weight()

    def config(self) -> dict[str, Any]:
        """The arguments that make an equal module, JSON types only."""
        inputs = self.visible.inputs
        return {
            **super().config(),
            "num_visible": self.num_inputs,
            "num_classes": self.num_classes,
            "visible": inputs.family,
            "visible_options": dict(inputs.options),
        }

    # --- rows ---------------------------------------------------------------------------------

    def join(self, x: Tensor, labels: Tensor) -> Tensor:
        """States of the visible layer: inputs and one-hot labels, one after the other.

        :param Tensor x: inputs, shape ``(rows, num_visible)``.
        :param Tensor labels: classes as whole numbers from 0, shape ``(rows,)``, where -1 stands for an
            unknown class and becomes zeros; or one-hot labels (zeros if unknown), shape
            ``(rows, num_classes)``.
        :returns: shape ``(rows, num_visible + num_classes)``, of the dtype of x where that is a
            floating-point type, otherwise of the module's.
        :raises TypeError: if x or the labels are no tensors.
        :raises ValueError: for a wrong shape, or labels that are no classes.
        """
        x = self._check_inputs(x)
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
        return torch.cat([x, self._one_hot(labels, x)], -1)

    def _one_hot(self, labels: Tensor, x: Tensor) -> Tensor:
        classes = torch.arange(self.num_classes, device=x.device)
        if labels.shape == (len(x), self.num_classes):
            labels = labels.to(x)
            valid = ((labels == 0) | (labels == 1)).all(-1) & (labels.sum(-1) <= 1)
            expected = "one-hot"
        elif labels.shape == (len(x),) and not (labels.is_floating_point() or labels.is_complex()):
            if labels.dtype == torch.bool:
                labels = labels.long()
            valid = (labels >= -1) & (labels < self.num_classes)
            expected = f"classes 0 to {self.num_classes - 1}, or -1 for an unknown one"
            labels = (labels.to(x.device).unsqueeze(-1) == classes).to(x.dtype)
        else:
            raise ValueError(
                f"labels must be whole numbers of shape ({len(x)},) or one-hot of shape "
                f"({len(x)}, {self.num_classes}), got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        if not bool(valid.all()):
            raise ValueError(
                f"labels must be {expected}; {int((~valid).sum())} of {len(x)} are not"
            )
        return labels

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and one-hot labels of joined rows.

        :param Tensor rows: shape ``(..., num_visible + num_classes)``.
        :returns: shapes ``(..., num_visible)`` and ``(..., num_classes)``.
        :raises ValueError: for a wrong shape.
        """
        size = self.num_inputs + self.num_classes
        if not isinstance(rows, Tensor) or rows.dim() == 0 or rows.shape[-1] != size:
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(f"rows must be a tensor of shape (..., {size}), got {got}")
        x, labels = rows.split([self.num_inputs, self.num_classes], -1)
        return x, labels

    def _check_inputs(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        if x.dim() != 2 or x.shape[1] != self.num_inputs:
            raise ValueError(f"x must have shape (rows, {self.num_inputs}), got {tuple(x.shape)}")
        return x if x.is_floating_point() else x.to(self.weight.dtype)

    # --- classes ------------------------------------------------------------------------------

    def class_logits(self, x: Tensor) -> Tensor:
        r"""log p(y | x) of every class, up to a constant of the row.

        It is exact for any x, also for grey levels in the place of bits, and differentiable.

        :param Tensor x: inputs, finite, shape ``(rows, num_visible)``.
        :returns: shape ``(rows, num_classes)``.
        :raises TypeError: if x is no tensor.
        :raises ValueError: for a wrong shape, NaN or infinite values.
        """
        x = self._check_inputs(x).to(self.weight)
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).any(-1).sum())
            raise ValueError(f"x must be finite, {bad} of {len(x)} rows are not")
        dist = self(validate_args=False)
        form = dist.canonical()
        weight, label_weight = form.weight.split([self.num_inputs, self.num_classes])
        bias = form.visible_bias[self.num_inputs :]
        theta = torch.addmm(form.hidden_bias, x, weight)
        chunks = theta.split(max(1, _CHUNK_ENTRIES // label_weight.numel()))
        logits = [dist.hidden.natural_log_partition(t.unsqueeze(1) + label_weight) for t in chunks]
        return torch.cat(logits) + bias

    def log_class_probabilities(self, x: Tensor) -> Tensor:
        """log p(y | x) of every class, see :meth:`class_logits`.

        :param Tensor x: inputs, shape ``(rows, num_visible)``.
        :returns: shape ``(rows, num_classes)``.
        """
        return torch.log_softmax(self.class_logits(x), -1)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """The most probable class of every row, as a whole number.

        :param Tensor x: inputs, shape ``(rows, num_visible)``.
        :returns: shape ``(rows,)``.
        """
        return self.class_logits(x).argmax(-1)
