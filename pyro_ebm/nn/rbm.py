# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The owner of an RBM's parameters."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import Parameter

from pyro_ebm import distributions
from pyro_ebm.nn import components, initialization
from pyro_ebm.nn.param_store import LocalModule
from pyro_ebm.nn.unit_parameters import UnitParameters, check_seed_and_dtype, is_whole

__all__ = ["RBM"]


class RBM(LocalModule):
    r"""A restricted Boltzmann machine with learnable parameters.

    Calling the module gives the distribution :class:`pyro_ebm.distributions.RBM` with the current
    parameters, for use in ``pyro.sample`` and by every kernel and estimator. Parameters are
    ``weight``, ``visible.bias`` (Gaussian layers: ``visible.loc``), ``hidden.bias``, and ``log_precision``
    of Gaussian and rectified layers, which is a buffer unless the option ``learn_precision`` is True.

    With ``centered=True`` the module also keeps the offsets :math:`o_v` and :math:`o_h` (buffers);
    :class:`~pyro_ebm.training.Trainer` moves them with the means, by :meth:`shift_offsets`.

    :param int num_visible: entries of the visible layer (one-hot groups flattened).
    :param int num_hidden: entries of the hidden layer.
    :param str visible: family of the visible layer, a name of
        :data:`~pyro_ebm.nn.unit_parameters.FAMILIES`.
    :param str hidden: family of the hidden layer.
    :param visible_options: options of the visible family, see
        :class:`~pyro_ebm.nn.unit_parameters.UnitParameters`.
    :param hidden_options: options of the hidden family.
    :param bool centered: whether to keep offsets.
    :param float weight_scale: standard deviation of the initial weights.
    :param int seed: seed of the initial weights; the global generator if None.
    :param dtype: floating-point type.
    :param device: device.
    :raises ValueError: for unknown families, options or impossible sizes.

    >>> import pyro, torch
    >>> from pyro_ebm.nn import RBM
    >>> module = RBM(num_visible=6, num_hidden=4, seed=0)
    >>> module().sample((3,)).shape
    torch.Size([3, 6])
    """

    def __init__(
        self,
        num_visible: int,
        num_hidden: int,
        visible: str = "bernoulli",
        hidden: str = "bernoulli",
        *,
        visible_options: Mapping[str, Any] | None = None,
        hidden_options: Mapping[str, Any] | None = None,
        centered: bool = False,
        weight_scale: float = 0.01,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        _check_arguments(num_visible, num_hidden, centered, weight_scale, seed, dtype)
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        self.visible = UnitParameters(visible, num_visible, visible_options, **factory)
        self.hidden = UnitParameters(hidden, num_hidden, hidden_options, **factory)
        self.centered = centered
        self.weight_scale = weight_scale
        self.seed = seed
        self.weight = Parameter(torch.empty(num_visible, num_hidden, **factory))
        if centered:
            self.register_buffer("visible_offset", torch.zeros(num_visible, **factory))
            self.register_buffer("hidden_offset", torch.zeros(num_hidden, **factory))
        self._init_weight()

    @torch.no_grad()
    def _init_weight(self) -> None:
        generator = None
        if self.seed is not None:
            generator = Generator(device=self.weight.device).manual_seed(self.seed)
        self.weight.normal_(0.0, self.weight_scale, generator=generator)
        if self.centered:
            self.hidden_offset.copy_(self.hidden().mean())

    def config(self) -> dict[str, Any]:
        """The arguments that make an equal module, JSON types only."""
        return {
            "num_visible": self.weight.shape[0],
            "num_hidden": self.weight.shape[1],
            "visible": self.visible.family,
            "hidden": self.hidden.family,
            "visible_options": dict(self.visible.options),
            "hidden_options": dict(self.hidden.options),
            "centered": self.centered,
            "weight_scale": self.weight_scale,
            "seed": self.seed,
        }

    def forward(self, **options: Any) -> distributions.RBM:
        """The distribution with the current parameters.

        :param options: keyword arguments of :class:`pyro_ebm.distributions.RBM`, such as
            ``num_gibbs_steps``.
        """
        return distributions.RBM(
            self.visible(),
            self.hidden(),
            self.weight,
            visible_offset=self.visible_offset if self.centered else None,
            hidden_offset=self.hidden_offset if self.centered else None,
            **options,
        )

    @torch.no_grad()
    def init_from_data(
        self, data: Tensor, hidden_activation: float | Tensor | None = None
    ) -> "RBM":
        r"""Set the visible layer (and its offset) to the data's statistics: the usual good start.

        The layer alone, without its couplings, then has the means of the data's columns: bits the bias
        :math:`\log (\bar v / (1 - \bar v))` with the rate :math:`\bar v` moved into
        [0.001, 0.999], as a pixel that never changes has none; spins half of that; one-hot groups and
        counts log-rates; Gaussian units the mean and a precision of one over the variance (at least
        0.001); rectified units the bias of that mean.

        :param Tensor data: shape ``(rows, num_visible)``.
        :param hidden_activation: the mean that hidden units are to have where the visible layer is at
            the mean of the data, a number or shape ``(num_hidden,)``; such as 0.1 for bits, whose bias
            is then logit(0.1) less :math:`W^\top (\bar v - o_v)`. Hidden offsets become this mean.
            None leaves the hidden layer as it is.
        :returns: the module.
        :raises TypeError: if the data is no tensor.
        :raises ValueError: if the shape is wrong, the data holds NaN or the family cannot have the
            activation.
        """
        return initialization.init_from_data(self, data, hidden_activation)

    @torch.no_grad()
    def init_from_arrays(
        self,
        weight: Any = None,
        visible_bias: Any = None,
        hidden_bias: Any = None,
        *,
        visible_precision: Any = None,
        hidden_precision: Any = None,
        about_offsets: bool = False,
    ) -> "RBM":
        r"""Set parameters to given arrays, such as those that another program trained.

        Biases are those of a machine **without offsets**, :math:`-E = b^\top v + c^\top h + v^\top W h`.
        A centred module keeps its offsets and stores :math:`b + W o_h` and :math:`c + W^\top o_v`, so
        that its distribution is that of the arrays. What is not given stays as it is stored.

        :param weight: shape ``(num_visible, num_hidden)``; a numpy array or tensor of real numbers, as
            are the others.
        :param visible_bias: shape ``(num_visible,)``, for one-hot groups also ``(groups, states)``. For
            Gaussian units it is their location, the mean without couplings.
        :param hidden_bias: the same of the hidden layer.
        :param visible_precision: precisions of Gaussian or rectified units, shape ``(num_visible,)``.
        :param hidden_precision: the same of the hidden layer.
        :param bool about_offsets: whether biases are those of the module's own form, with
            :math:`(v - o_v)^\top W (h - o_h)`, and are stored as they are.
        :returns: the module.
        :raises TypeError: if an argument is no array of real numbers.
        :raises ValueError: if a shape is wrong, a value is NaN, infinite or no precision, or there are no
            offsets. Nothing has changed then.
        """
        return initialization.init_from_arrays(
            self,
            weight,
            visible_bias,
            hidden_bias,
            visible_precision=visible_precision,
            hidden_precision=hidden_precision,
            about_offsets=about_offsets,
        )

    @torch.no_grad()
    def init_from_rbm(
        self, other: "RBM", *, extra_scale: float | None = None, seed: int | None = None
    ) -> "RBM":
        r"""Set the parameters to those of another module, of which this one becomes a continuation.

        With as many hidden entries the distribution is that of ``other``, whether or not either is
        centred; offsets are taken over where both are.

        Hidden units that only this module has keep their biases c and get random weights w. Their
        coupling is taken about the visible offset (zero without one) and about their own mean, which
        is compensated in the visible bias: with ``extra_scale=0`` the distribution stays the same and
        log Z grows by their log-partitions :math:`A(c)`; otherwise the free energy of v changes, up
        to a constant, by no more than :math:`\sum_j s_j (w_j^\top (v - o_v))^2 / 2`, where s is the
        largest variance of a unit, 1/4 for bits and 1 for spins.

        :param RBM other: a module of the same families and options (whether precisions are learnt may
            differ), with as many visible and no more hidden entries.
        :param float extra_scale: standard deviation of the weights of further hidden units;
            ``weight_scale`` if None.
        :param int seed: seed of these weights; the global generator if None.
        :returns: the module.
        :raises TypeError: if ``other`` is no module of this kind.
        :raises ValueError: if families, options or sizes do not fit. Nothing has changed then.
        """
        if not isinstance(other, RBM):
            raise TypeError(f"other must be a pyro_ebm.nn.RBM, got {type(other).__name__}")
        return initialization.init_from_rbm(self, other, extra_scale=extra_scale, seed=seed)

    @torch.no_grad()
    def init_from_components(
        self, data: Tensor, *, max_field_std: float | None = None, seed: int | None = None
    ) -> "RBM":
        r"""Set the visible layer to the data's statistics and the weights to principal components.

        See :func:`pyro_ebm.nn.components.init_from_components` for the scale of the weights.

        :param Tensor data: shape ``(rows, num_visible)``, at least 2 rows.
        :param float max_field_std: largest standard deviation, over the data, of what a hidden unit
            receives. If None there is no limit for Gaussian hidden units, and 2 for others.
        :param int seed: seed of the weights of hidden units for which there is no component; the global
            generator if None.
        :returns: the module.
        :raises TypeError: if the data is no tensor.
        :raises ValueError: if the shape is wrong, the data holds NaN or a limit is no positive number.
        """
        return components.init_from_components(self, data, max_field_std=max_field_std, seed=seed)

    @torch.no_grad()
    def shift_offsets(
        self, visible_step: Tensor | None = None, hidden_step: Tensor | None = None
    ) -> None:
        r"""Move the offsets and the biases so that the distribution stays the same.

        :math:`b \leftarrow b + W \Delta o_h` and :math:`c \leftarrow c + W^\top \Delta o_v`; only the
        direction of later gradients changes.

        :param Tensor visible_step: change of the visible offset, shape ``(num_visible,)``.
        :param Tensor hidden_step: change of the hidden offset, shape ``(num_hidden,)``.
        :raises ValueError: if the module is not centred.
        """
        if not self.centered:
            raise ValueError("the module has no offsets; make it with centered=True")
        weight = self.get_parameter("weight")
        if hidden_step is not None:
            self.visible.tilt(weight @ hidden_step)
            self.hidden_offset.add_(hidden_step)
        if visible_step is not None:
            self.hidden.tilt(visible_step @ weight)
            self.visible_offset.add_(visible_step)


def _check_arguments(
    num_visible: Any, num_hidden: Any, centered: Any, weight_scale: Any, seed: Any, dtype: Any
) -> None:
    for name, size in (("num_visible", num_visible), ("num_hidden", num_hidden)):
        if not is_whole(size):
            raise ValueError(f"{name} must be a whole number >= 1, got {size!r}")
    if not isinstance(centered, bool):
        raise ValueError(f"centered must be a bool, got {centered!r}")
    if not isinstance(weight_scale, int | float) or not 0 <= weight_scale < math.inf:
        raise ValueError(f"weight_scale must be a number >= 0, got {weight_scale!r}")
    check_seed_and_dtype(seed, dtype)
