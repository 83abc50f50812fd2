# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A multilayer perceptron that starts as Boltzmann machines."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor, nn

from pyro_ebm.nn import DBM, RBM
from pyro_ebm.ops.random import bernoulli
from pyro_ebm.training.finetuning.layers import MeanLayer, glorot_
from pyro_ebm.training.finetuning.mean_field import MeanFieldInputs
from pyro_ebm.training.finetuning.stacking import check_layers, seeded_generator, widened

__all__ = ["FeedForwardClassifier"]

#: Rows that are predicted at once.
_CHUNK_ROWS = 8192

ExtraInputs = bool | Callable[[Tensor], Tensor]


class FeedForwardClassifier(nn.Module):
    r"""Layers of hidden means with a softmax on top, to be trained by :class:`FineTuner`.

    Made by :meth:`from_rbms`, :meth:`from_dbm`, :meth:`from_weights` or :meth:`random`. Layer by layer it
    computes the mean of the hidden units given the layer below, :math:`\mathrm{E}[h | v]` of the machine that
    it came from, and at last :math:`\log p(y | v)` up to a constant.

    With *extra inputs* [1] the first layer sees :math:`[v, q(h_2 | v)]` with the weight
    :math:`[W_1; W_2^\top]`, so that at the start it computes the mean-field update of the first hidden layer
    of a deep Boltzmann machine, and not what remains of it without the layer above. So does every layer but
    the last of a deeper network. The extra inputs are data: no gradient goes through them.

    **References**

    [1] *Deep Boltzmann machines*, Ruslan Salakhutdinov, Geoffrey Hinton (2009), section 3.3

    :param layers: the layers from the bottom to the top.
    :param int num_classes: number of classes.
    :param float dropout: probability that an output of a hidden layer is left out in training.
    :param float input_dropout: the same of inputs.
    :param extra_inputs: what maps rows ``(rows, V)`` to extra inputs ``(rows, H2 + ... + HL)``, those of the
        lowest layer first; None for no such. Layers then have the inputs of both.
    :param torch.Generator generator: random numbers of the softmax layer's weights, which are Glorot's.
    :raises ValueError: for impossible options, or layers that do not fit.
    """

    def __init__(
        self,
        layers: Sequence[MeanLayer],
        num_classes: int,
        *,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        extra_inputs: Callable[[Tensor], Tensor] | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        check_layers(layers, extra_inputs=extra_inputs is not None)
        if not isinstance(num_classes, int) or num_classes < 2:
            raise ValueError(f"num_classes must be a whole number >= 2, got {num_classes!r}")
        for name, rate in (("dropout", dropout), ("input_dropout", input_dropout)):
            if not isinstance(rate, int | float) or not 0 <= rate < 1:
                raise ValueError(f"{name} must be a number in [0, 1), got {rate!r}")
        self.layers = nn.ModuleList(layers)
        weight = layers[-1].weight
        self.head = nn.Linear(
            weight.shape[1], num_classes, dtype=weight.dtype, device=weight.device
        )
        glorot_(self.head.weight, generator)
        nn.init.zeros_(self.head.bias)
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.extra_inputs = extra_inputs

    # --- ways to make one ---------------------------------------------------------------------

    @classmethod
    def from_rbms(
        cls,
        modules: RBM | Sequence[RBM],
        num_classes: int,
        *,
        extra_inputs: ExtraInputs = False,
        seed: int | None = None,
        **options: Any,
    ) -> "FeedForwardClassifier":
        """Start from a machine or a stack of them: every one gives a layer that computes E[h|v].

        :param modules: a :class:`pyro_ebm.nn.RBM`, or several from the bottom to the top.
        :param int num_classes: number of classes.
        :param extra_inputs: see :meth:`from_weights`. True takes the two machines for the layers of a deep
            Boltzmann machine, as after a pre-training that halves what is counted twice; two machines that
            were trained one on the other have no such q(h2 | v), see :meth:`from_dbm`.
        :param int seed: seed of the softmax layer; the global generator if None.
        :param options: ``dropout`` and ``input_dropout``.
        :raises TypeError: if something is no RBM.
        :raises ValueError: if layers do not fit, or for impossible options.
        """
        if isinstance(modules, RBM):
            modules = [modules]
        layers = [MeanLayer.from_rbm(module) for module in modules]
        return cls._build(layers, num_classes, extra_inputs, seed, options)

    @classmethod
    def from_dbm(
        cls,
        module: DBM,
        num_classes: int,
        *,
        extra_inputs: ExtraInputs = True,
        max_mean_field_updates: int = 200,
        mean_field_tolerance: float = 1e-4,
        seed: int | None = None,
        **options: Any,
    ) -> "FeedForwardClassifier":
        """Start from a deep Boltzmann machine of any depth.

        With extra inputs every hidden layer starts as its mean-field state given v; without them as what it
        is given the layer below alone. A machine of one hidden layer has nothing above it and no extra
        inputs.

        :param module: a :class:`pyro_ebm.nn.DBM`; its parameters are copied.
        :param int num_classes: number of classes.
        :param extra_inputs: True for :class:`MeanFieldInputs` of the machine; False; or a function from rows
            ``(rows, V)`` to what these give, shape ``(rows, H2 + ... + HL)``.
        :param int max_mean_field_updates: see :class:`MeanFieldInputs`.
        :param float mean_field_tolerance: see :class:`MeanFieldInputs`.
        :param int seed: seed of the softmax layer; the global generator if None.
        :param options: ``dropout`` and ``input_dropout``.
        :raises TypeError: for another module.
        :raises ValueError: for impossible options.

        >>> from pyro_ebm.nn import DBM
        >>> from pyro_ebm.training import FeedForwardClassifier
        >>> classifier = FeedForwardClassifier.from_dbm(DBM(6, [5, 4]), num_classes=3, seed=0)
        >>> [tuple(layer.weight.shape) for layer in classifier.layers]
        [(10, 5), (5, 4)]
        """
        layers = MeanLayer.from_dbm(module)
        if extra_inputs is True:
            extra_inputs = module.depth > 1 and MeanFieldInputs(
                module(), max_updates=max_mean_field_updates, tolerance=mean_field_tolerance
            )
        return cls._build(layers, num_classes, extra_inputs, seed, options)

    @classmethod
    def from_weights(
        cls,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        num_classes: int,
        *,
        hidden: str = "bernoulli",
        hidden_options: Mapping[str, Any] | None = None,
        extra_inputs: ExtraInputs = False,
        seed: int | None = None,
        **options: Any,
    ) -> "FeedForwardClassifier":
        """Start from weights and hidden biases, such as those of a deep Boltzmann machine.

        :param weights: matrices of shapes ``(inputs, outputs)``, from the bottom to the top.
        :param biases: the natural biases of the hidden layers, without offsets.
        :param int num_classes: number of classes.
        :param str hidden: family of the hidden layers.
        :param hidden_options: options of the family.
        :param extra_inputs: whether layers get the mean-field state of the layer above too. True takes that
            of the deep machine with these weights, see :class:`MeanFieldInputs`; or a function from rows
            ``(rows, V)`` to it, shape ``(rows, H2 + ... + HL)``.
        :param int seed: seed of the softmax layer; the global generator if None.
        :param options: ``dropout`` and ``input_dropout``.
        :raises ValueError: for shapes that do not fit or impossible options.
        """
        if len(weights) != len(biases):
            raise ValueError(f"got {len(weights)} weights, but {len(biases)} biases")
        layers = [
            MeanLayer(weight, bias, hidden, hidden_options)
            for weight, bias in zip(weights, biases, strict=True)
        ]
        return cls._build(layers, num_classes, extra_inputs, seed, options)

    @classmethod
    def random(
        cls,
        sizes: Sequence[int],
        num_classes: int,
        *,
        hidden: str = "bernoulli",
        hidden_options: Mapping[str, Any] | None = None,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> "FeedForwardClassifier":
        """The same architecture from Glorot's random weights: the baseline.

        :param sizes: inputs, then the outputs of every hidden layer, such as ``(784, 1024)``.
        :param int num_classes: number of classes.
        :param str hidden: family of the hidden layers.
        :param hidden_options: options of the family.
        :param int seed: seed of all weights; the global generator if None.
        :param options: ``dropout`` and ``input_dropout``.
        :raises ValueError: for impossible sizes or options.
        """
        if len(sizes) < 2 or not all(isinstance(n, int) and n >= 1 for n in sizes):
            raise ValueError(
                f"sizes must be the numbers of inputs and of hidden units, >= 1, got {sizes!r}"
            )
        generator = seeded_generator(seed, device)
        layers = [
            MeanLayer.glorot(
                *pair, hidden, hidden_options, generator=generator, dtype=dtype, device=device
            )
            for pair in pairwise(sizes)
        ]
        return cls(layers, num_classes, generator=generator, **options)

    @classmethod
    def _build(
        cls,
        layers: list[MeanLayer],
        num_classes: int,
        extra_inputs: ExtraInputs,
        seed: int | None,
        options: Mapping[str, Any],
    ) -> "FeedForwardClassifier":
        check_layers(layers)
        generator = seeded_generator(seed, layers[0].weight.device)
        if extra_inputs is False:
            return cls(layers, num_classes, generator=generator, **options)
        check_layers(widened(layers), extra_inputs=True)
        function = MeanFieldInputs.of_layers(layers) if extra_inputs is True else extra_inputs
        if not callable(function):
            raise TypeError(f"extra_inputs must be True, False or a function, got {function!r}")
        layers = widened(layers)
        return cls(layers, num_classes, generator=generator, extra_inputs=function, **options)

    # --- what it computes ---------------------------------------------------------------------

    @property
    def num_visible(self) -> int:
        """Entries of a row, without extra inputs."""
        num_inputs = self.layers[0].get_parameter("weight").shape[0]
        return int(num_inputs) - sum(self._extra_sizes[:1])

    @property
    def _extra_sizes(self) -> list[int]:
        """Extra inputs of every layer but the last; empty without."""
        if self.extra_inputs is None:
            return []
        # Plain tensors stand in for the parameters where averaged weights are evaluated.
        return [int(layer.weight.shape[1]) for layer in self.layers[1:]]  # type: ignore[index]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.head.out_features

    def blocks(self) -> list[nn.Module]:
        """The hidden layers and the softmax layer, from the bottom to the top."""
        return [*self.layers, self.head]

    @torch.no_grad()
    def extra(self, v: Tensor) -> Tensor | None:
        """The extra inputs of rows, None where the network has none.

        :raises ValueError: if the function that was given makes another shape.
        """
        if self.extra_inputs is None:
            return None
        made = self.extra_inputs(v)
        expected = (len(v), sum(self._extra_sizes))
        if not isinstance(made, Tensor) or made.shape != expected:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(f"extra_inputs must give shape {expected}, got {got}")
        return made.to(v)

    def forward(
        self, v: Tensor, extra: Tensor | None = None, *, generator: Generator | None = None
    ) -> Tensor:
        """Logits of the classes, shape ``(rows, num_classes)``.

        :param Tensor v: shape ``(rows, num_visible)``.
        :param Tensor extra: extra inputs, if they are known already.
        :param torch.Generator generator: random numbers of dropout, which is on in training mode.
        """
        if self.extra_inputs is not None and extra is None:
            extra = self.extra(v)
        parts = [] if extra is None else list(extra.split(self._extra_sizes, -1))
        x = v if extra is None else torch.cat([v, parts[0]], -1)
        x = self._drop(x, self.input_dropout, generator)
        for number, layer in enumerate(self.layers):
            if 0 < number < len(parts):
                part = self._drop(parts[number], self.input_dropout, generator)
                x = torch.cat([x, part], -1)
            x = self._drop(layer(x), self.dropout, generator)
        return self.head(x)

    def _drop(self, x: Tensor, rate: float, generator: Generator | None) -> Tensor:
        """Leave entries out and scale the others, so that the mean field of what follows stays."""
        if not self.training or not rate:
            return x
        keep = bernoulli(torch.full_like(x.detach(), 1.0 - rate), generator)
        return x * keep.mul_(1.0 / (1.0 - rate))

    @torch.no_grad()
    def predict_log_proba(self, v: Tensor) -> Tensor:
        """Log-probabilities of the classes, without dropout, shape ``(rows, num_classes)``.

        :param Tensor v: shape ``(rows, num_visible)``, any dtype.
        :raises ValueError: for another shape.
        """
        self._check_rows(v)
        was_training = self.training
        self.eval()
        try:
            weight = self.head.weight
            parts = [self(rows.to(weight)) for rows in v.split(_CHUNK_ROWS)]
        finally:
            self.train(was_training)
        return torch.log_softmax(torch.cat(parts), -1)

    def predict(self, v: Tensor) -> Tensor:
        """The most probable class of every row, shape ``(rows,)``."""
        return self.predict_log_proba(v).argmax(-1)

    def accuracy(self, v: Tensor, y: Tensor) -> float:
        """Share of the rows whose most probable class is right.

        :param Tensor y: classes, shape ``(rows,)``.
        :raises ValueError: if there are not as many labels as rows.
        """
        if y.shape != v.shape[:1]:
            raise ValueError(f"y must have shape {tuple(v.shape[:1])}, got {tuple(y.shape)}")
        predicted = self.predict(v)
        return float((predicted == y.to(predicted.device)).double().mean())

    def _check_rows(self, v: Tensor) -> None:
        if (
            not isinstance(v, Tensor)
            or v.dim() != 2
            or v.shape[1] != self.num_visible
            or not len(v)
        ):
            got = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
            raise ValueError(f"rows must have shape (rows >= 1, {self.num_visible}), got {got}")
