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
    def init_from_data(self, data: Tensor) -> "RBM":
        """Set the visible layer (and its offset) to the data's statistics: the usual good start.

        :param Tensor data: shape ``(rows, num_visible)``.
        :returns: the module.
        :raises TypeError: if the data is no tensor.
        :raises ValueError: if the shape is wrong or the data holds NaN.
        """
        if not isinstance(data, Tensor):
            raise TypeError(f"data must be a tensor, got {type(data).__name__}")
        num_visible = self.weight.shape[0]
        if data.dim() != 2 or data.shape[1] != num_visible or len(data) == 0:
            raise ValueError(
                f"data must have shape (rows >= 1, {num_visible}), got {tuple(data.shape)}"
            )
        data = data.to(self.weight)
        if not bool(torch.isfinite(data).all()):
            raise ValueError("data holds NaN or infinite values")
        self.visible.init_from_data(data)
        if self.centered:
            self.visible_offset.copy_(data.mean(0))
        return self

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
            self.visible.assign(self.visible().tilt(weight @ hidden_step)[0])
            self.hidden_offset.add_(hidden_step)
        if visible_step is not None:
            self.hidden.assign(self.hidden().tilt(visible_step @ weight)[0])
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
