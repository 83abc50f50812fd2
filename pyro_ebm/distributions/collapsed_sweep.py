# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Block Gibbs with a Gaussian layer integrated out: a chain of the other layer alone."""

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions.rbm import RBM, CanonicalForm
from pyro_ebm.distributions.units import Unit
from pyro_ebm.ops.linear import RowLayout, apply_weight

__all__ = ["CollapsedSweep"]

#: Random numbers are drawn for as many steps at once as fit into this many entries (1 MB of float64).
_BLOCK_ENTRIES = 2**17


class CollapsedSweep:
    r"""The hidden chain of block Gibbs on a machine with Gaussian visible units.

    Given h the visible units are normal with mean :math:`P^{-1}(b + W h)` and precision P, so that the
    natural parameter :math:`c + W^\top v` of the next hidden state is normal too. One sweep is (with the
    covariance of :class:`~pyro_ebm.distributions.units.LowRankGaussian` units in the place of
    :math:`P^{-1}`)

    .. math::
        \theta = c + W^\top P^{-1} (b + W h) + R^\top \xi, \qquad \xi \sim N(0, I), \qquad
        K = W^\top P^{-1} W = R^\top R, \qquad h' \sim p_{\mathrm{hidden}}(\,\cdot\,; \theta),

    with the biases b and c of the canonical form. It has exactly the law of alternating block Gibbs,
    restricted to h, at :math:`2 H^2` multiply-adds instead of :math:`2 V H`, and with H normal numbers
    instead of V. K and R are made once, at :math:`V H^2`; R is the triangle of a QR decomposition of
    :math:`P^{-1/2} W`, or that matrix itself where it has no more rows than columns, so that a singular
    K does no harm.

    :class:`GibbsSweep` and :class:`~pyro_ebm.infer.BlockGibbs` use it by themselves where it is cheaper.
    For a machine with Gaussian *hidden* units give the transposed one; the chain is then one of its
    visible layer.

    :param RBM rbm: a machine with Gaussian visible units, with any batch shape. Parameters are read
        when the object is made.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :raises ValueError: if the visible units are not Gaussian.

    >>> import torch
    >>> from pyro_ebm.distributions import CollapsedSweep, GaussianBernoulliRBM
    >>> rbm = GaussianBernoulliRBM(torch.ones(784, 16), torch.zeros(784), torch.ones(784), torch.zeros(16))
    >>> CollapsedSweep(rbm).run(torch.zeros(100, 16), num_steps=50).shape
    torch.Size([100, 16])
    """

    def __init__(self, rbm: RBM, generator: Generator | None = None) -> None:
        if not rbm.visible.is_gaussian:
            raise ValueError(
                "CollapsedSweep needs a machine with Gaussian visible units, got "
                f"{type(rbm.visible).__name__} (for Gaussian hidden units give rbm.transpose())"
            )
        with torch.no_grad():
            field = None
            if rbm._hidden_offset is not None:
                field = -apply_weight(rbm._hidden_offset, rbm.weight.mT)
            self._build(rbm.visible, rbm.hidden, rbm.canonical(), generator, field)

    @classmethod
    def from_form(
        cls, gaussian: Unit, unit: Unit, form: CanonicalForm, generator: Generator | None
    ) -> "CollapsedSweep":
        """The same from the parts of a machine.

        :param Unit gaussian: the visible layer, of a Gaussian family, which is integrated out.
        :param Unit unit: the hidden layer, which the chain is of.
        :param CanonicalForm form: the machine's biases and weights without offsets.
        :param torch.Generator generator: the source of random bits; the global one if None.
        """
        new = cls.__new__(cls)
        with torch.no_grad():
            new._build(gaussian, unit, form, generator)
        return new

    def _build(
        self,
        gaussian: Unit,
        unit: Unit,
        form: CanonicalForm,
        generator: Generator | None,
        field: Tensor | None = None,
    ) -> None:
        self.generator = generator
        self._unit = unit.map(torch.Tensor.detach)
        weight = form.weight.detach()
        gaussian = gaussian.map(torch.Tensor.detach)
        scaled = gaussian.covariance_root(weight)
        assert scaled is not None
        rank, size = scaled.shape[-2:]
        #: K, shape ``(..., H, H)``.
        self.coupling = scaled.mT @ scaled
        #: R, shape ``(..., min(V, H), H)`` (V and the rank for correlated visible units).
        self.noise_factor = scaled
        if rank > size:
            self.noise_factor = torch.linalg.qr(scaled, mode="r").R
        # The mean by way of the field of the hidden offset, as Sigma (Sigma^-1 m) cancels.
        if field is None:
            field = form.visible_bias - gaussian.natural_bias
        pull = apply_weight(gaussian.mean(field.detach()), weight)
        self._bias = form.hidden_bias.detach() + pull
        self._batch = torch.broadcast_shapes(
            self.coupling.shape[:-2], self._bias.shape[:-1], unit.batch_shape
        )

    @torch.no_grad()
    def run(self, h: Tensor, num_steps: int) -> Tensor:
        """Hidden states after ``num_steps`` sweeps.

        :param Tensor h: shape ``(..., H)``, with any leading chain axes in front of the batch shape.
        :param int num_steps: sweeps; with 0 the states are returned as they are.
        """
        if num_steps < 1:
            return h
        batch = self.coupling.shape[:-2]
        layout = RowLayout(torch.broadcast_shapes(h.shape[:-1], self._batch), batch)
        unit, bias = self._pack_unit(layout), layout.pack(self._bias)
        coupling = self.coupling.reshape(layout.num_batch, *self.coupling.shape[-2:])
        factor = self.noise_factor.reshape(layout.num_batch, *self.noise_factor.shape[-2:])
        rows = layout.pack(h)
        block = max(1, min(num_steps, _BLOCK_ENTRIES // max(1, rows.numel())))
        for start in range(0, num_steps, block):
            fields = self._noisy_bias(bias, factor, min(block, num_steps - start))
            rows = self._steps(unit, rows, coupling, fields)
        # The rows are a part of a block of noise, which would stay alive with them.
        return layout.unpack(rows.clone())

    def _pack_unit(self, layout: RowLayout) -> Unit:
        """The layer with parameters that broadcast with packed rows."""
        unit = self._unit
        if not unit.batch_shape:
            return unit
        return unit.map_whole(layout.pack)

    def _noisy_bias(self, bias: Tensor, factor: Tensor, num_steps: int) -> Tensor:
        """``bias + R' xi`` of some steps, shape ``(num_steps, num_batch, num_chain, H)``."""
        num_batch, num_chain, size = bias.shape
        noise = bias.new_empty(num_batch, num_steps * num_chain, factor.shape[-2])
        noise.normal_(generator=self.generator)
        fields = torch.bmm(noise, factor).view(num_batch, num_steps, num_chain, size)
        return fields.add_(bias.unsqueeze(1)).transpose(0, 1).contiguous()

    def _steps(self, unit: Unit, rows: Tensor, coupling: Tensor, fields: Tensor) -> Tensor:
        """Hidden states after as many sweeps as there are fields, which are overwritten."""
        generator = self.generator
        numbers = unit.natural_noise(fields.shape, generator)
        if numbers is None:
            for theta in fields:
                rows = unit.natural_sample(theta.baddbmm_(rows, coupling), generator)
        else:
            for theta, noise in zip(fields, numbers, strict=True):
                rows = unit.natural_sample_from(theta.baddbmm_(rows, coupling), noise)
        return rows
