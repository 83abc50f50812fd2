# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The owner of the parameters of an RBM with tied copies of its layers."""

from typing import Any

import torch
from torch import Tensor

from pyro_ebm import distributions
from pyro_ebm.distributions.units import Unit
from pyro_ebm.distributions.units.tied import TiedCopies
from pyro_ebm.nn.rbm import RBM
from pyro_ebm.nn.unit_parameters import is_whole

__all__ = ["TiedRBM"]


class TiedRBM(RBM):
    r"""An RBM with several copies of a layer that share weights and biases [1].

    With two copies v and v' of the visible layer, which are both the data where the machine is trained,

    .. math::
        E = -b^\top (v + v') - c^\top h - (v + v')^\top W h, \qquad
        p(h_j = 1 | v, v' = v) = \sigma(c_j + 2 (W^\top v)_j), \qquad
        p(v_i = 1 | h) = \sigma(b_i + (W h)_i)

    for bits: the input from below counts twice, that from above once, and no bias is doubled. Two copies of
    the hidden layer do the same for the input from above. The distribution is that of **sums** of the
    copies, see :class:`~pyro_ebm.distributions.units.tied.TiedCopies`: of its states, of persistent chains
    and of the offsets of a centred module. :class:`~pyro_ebm.training.pretraining.TiedTrainer` trains it on
    rows v, which it multiplies by the number of copies.

    **References**

    [1] *Deep Boltzmann machines*, Ruslan Salakhutdinov, Geoffrey Hinton (2009), section 3.1

    :param int num_visible: entries of one copy of the visible layer.
    :param int num_hidden: entries of one copy of the hidden layer.
    :param arguments: further arguments of :class:`pyro_ebm.nn.RBM`.
    :param int visible_copies: copies of the visible layer.
    :param int hidden_copies: copies of the hidden layer.
    :param options: options of :class:`pyro_ebm.nn.RBM`.
    :raises ValueError: see there; for impossible numbers of copies; or if a layer of several copies is to
        learn precisions, which do not follow from sums.
    """

    def __init__(
        self,
        num_visible: int,
        num_hidden: int,
        *arguments: Any,
        visible_copies: int = 1,
        hidden_copies: int = 1,
        **options: Any,
    ) -> None:
        for name, copies in (("visible_copies", visible_copies), ("hidden_copies", hidden_copies)):
            if not is_whole(copies):
                raise ValueError(f"{name} must be a whole number >= 1, got {copies!r}")
        super().__init__(num_visible, num_hidden, *arguments, **options)
        for name, layer, copies in (
            ("visible", self.visible, visible_copies),
            ("hidden", self.hidden, hidden_copies),
        ):
            if copies > 1 and layer.options.get("learn_precision"):
                raise ValueError(
                    f"{name}_copies={copies}: precisions cannot be learnt from sums of tied copies; set "
                    "learn_precision=False"
                )
        self.visible_copies = visible_copies
        self.hidden_copies = hidden_copies
        if self.centered:
            self.hidden_offset.mul_(hidden_copies)

    def config(self) -> dict[str, Any]:
        """The arguments that make an equal module, JSON types only."""
        copies = {"visible_copies": self.visible_copies, "hidden_copies": self.hidden_copies}
        return super().config() | copies

    def forward(self, **options: Any) -> distributions.RBM:
        """The distribution of sums of the copies with the current parameters."""
        return distributions.RBM(
            _copies(self.visible(), self.visible_copies),
            _copies(self.hidden(), self.hidden_copies),
            self.weight,
            visible_offset=self.visible_offset if self.centered else None,
            hidden_offset=self.hidden_offset if self.centered else None,
            **options,
        )

    @torch.no_grad()
    def init_from_data(
        self, data: Tensor, hidden_activation: float | Tensor | None = None
    ) -> "TiedRBM":
        """See :meth:`pyro_ebm.nn.RBM.init_from_data`; the data are states of one copy.

        :raises ValueError: also for a ``hidden_activation``.
        """
        if hidden_activation is not None:
            raise ValueError("hidden_activation is an option of a pyro_ebm.nn.RBM without copies")
        super().init_from_data(data)
        if self.centered:
            self.visible_offset.mul_(self.visible_copies)
        return self

    @torch.no_grad()
    def untied(self) -> RBM:
        """An RBM of one copy of each layer, with the same weights and biases (those of the form without
        offsets) and with a copy's share of the offsets. It is another distribution: what remains of a tied
        machine in a deep one."""
        num_visible, num_hidden = self.weight.shape
        module = RBM(
            num_visible,
            num_hidden,
            self.visible.family,
            self.hidden.family,
            visible_options=self.visible.options,
            hidden_options=self.hidden.options,
            centered=self.centered,
            weight_scale=self.weight_scale,
            dtype=self.weight.dtype,
            device=self.weight.device,
        )
        module.weight.copy_(self.weight)
        form = self().canonical()
        visible, hidden = self.visible(), self.hidden()
        visible = visible.tilt(form.visible_bias - visible.natural_bias)[0]
        hidden = hidden.tilt(form.hidden_bias - hidden.natural_bias)[0]
        if self.centered:
            module.visible_offset.copy_(self.visible_offset / self.visible_copies)
            module.hidden_offset.copy_(self.hidden_offset / self.hidden_copies)
            visible = visible.tilt(module.weight @ module.hidden_offset)[0]
            hidden = hidden.tilt(module.visible_offset @ module.weight)[0]
        module.visible.assign(visible)
        module.hidden.assign(hidden)
        return module


def _copies(unit: Unit, count: int) -> Unit:
    return unit if count == 1 else TiedCopies(unit, count)
