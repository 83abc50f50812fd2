# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The geometric path from a base without weights to an RBM."""

from collections.abc import Sequence

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.units import Unit
from pyro_ebm.distributions.units.joined import join_units
from pyro_ebm.infer.paths.base import Ladder, Path
from pyro_ebm.ops.linear import affine, apply_weight

__all__ = ["GeometricLadder", "GeometricPath", "base_unit", "mean_unit"]


class GeometricPath(Path):
    r"""Geometric means of a base and a machine, with the hidden layer summed out,

    .. math::
        \log p^*_\beta(v) = \bigl((1 - \beta) b_0 + \beta b\bigr)^\top v - r(v)
            + A_h\bigl(\beta (W^\top v + c)\bigr) + \beta K,

    where b, c, W and K are the canonical form of the machine and :math:`b_0` the natural bias of the
    base. The hidden biases are scaled with :math:`\beta`: keeping them in the base costs about a nat
    on a trained MNIST model. The fields are :math:`W^\top v + c` at every :math:`\beta`.

    With the neutral layer as the base (``base="uniform"``) and bits or spins this is a path of
    temperatures, :math:`p_\beta \propto p^\beta` in the joint space.

    :param RBM target: the machine at :math:`\beta = 1`.
    :param Unit base: the visible layer at :math:`\beta = 0`, of the target's family and, if it has
        one, the target's precision.
    :param torch.Generator generator: the source of random bits; the global one if None.
    """

    def __init__(self, target: RBM, base: Unit, generator: Generator | None = None) -> None:
        super().__init__(target.compact(), generator)
        with torch.no_grad():
            form = target.canonical()
        self._visible = target.visible.map(torch.Tensor.detach)
        self._hidden = target.hidden.map(torch.Tensor.detach)
        self._base_bias = base.natural_bias.detach()
        self._visible_bias = form.visible_bias.detach()
        self._hidden_bias = form.hidden_bias.detach()
        self._weight = form.weight.detach()
        self._weight_t = self._weight.mT
        self._constant = form.constant.detach().double()
        self._bias_change = self._visible_bias - self._base_bias

    @property
    def log_partition_base(self) -> Tensor:
        hidden = self._hidden.natural_log_partition(torch.zeros_like(self._hidden_bias).double())
        visible = self._visible.natural_log_partition(self._base_bias.double())
        return (visible + hidden).expand(self.batch_shape)

    @torch.no_grad()
    def sample_base(self, num_chains: int) -> Tensor:
        shape = Size((num_chains, *self.batch_shape, self.num_visible))
        return self._visible.natural_sample(self._base_bias.expand(shape), self.generator)

    @torch.no_grad()
    def machine(self, beta: float) -> RBM:
        bias = torch.lerp(self._base_bias, self._visible_bias, beta)
        visible, _ = self._visible.tilt(bias - self._visible.natural_bias)
        hidden, _ = self._hidden.tilt(beta * self._hidden_bias - self._hidden.natural_bias)
        machine = RBM(visible, hidden, beta * self._weight, validate_args=False)
        machine.num_gibbs_steps = self.target.num_gibbs_steps
        # The path's density has no constants of its own but beta K.
        constant = visible.energy_constant + hidden.energy_constant
        machine._constant = -constant - beta * self._constant.to(self._weight.dtype)
        return machine

    def ladder(self, betas: Sequence[float]) -> "GeometricLadder":
        return GeometricLadder(self, betas)

    @torch.no_grad()
    def fields(self, v: Tensor, beta: float = 1.0) -> Tensor:
        """W'v + c, whatever beta is."""
        return affine(v, self._weight, self._hidden_bias)

    def bias_pull(self, v: Tensor) -> Tensor:
        """What the change of the visible biases along the path adds to the log-density of states."""
        if self._bias_change.dim() == 1:
            return v @ self._bias_change
        return (v * self._bias_change).sum(-1)

    @torch.no_grad()
    def log_ratio(
        self, v: Tensor, fields: Tensor, beta: float, beta_next: float
    ) -> tuple[Tensor, Tensor]:
        change = self._hidden.natural_log_partition_step(fields, beta, beta_next)
        return change + (beta_next - beta) * self.bias_pull(v), fields

    @torch.no_grad()
    def move(self, fields: Tensor, beta: float) -> Tensor:
        h = self._hidden.natural_sample(beta * fields, self.generator)
        bias = torch.lerp(self._base_bias, self._visible_bias, beta)
        if self._weight.dim() == 2 and bias.dim() == 1 and h.dim() == 2:
            theta = torch.addmm(bias, h, self._weight_t, alpha=beta)
        else:
            theta = bias + beta * apply_weight(h, self._weight_t)
        return self._visible.natural_sample(theta, self.generator)

    def constant(self, beta: float) -> Tensor:
        return beta * self._constant


class GeometricLadder(Ladder):
    """Levels of a :class:`GeometricPath`: one weight for all of them, so that a sweep of all levels
    and chains is two matrix products, and fields do not depend on the level.

    :param GeometricPath path: the path.
    :param betas: inverse temperatures of the levels.
    """

    def __init__(self, path: GeometricPath, betas: Sequence[float]) -> None:
        super().__init__(len(betas), path.batch_shape, path.generator)
        self._path = path
        lift = (1,) * len(path.batch_shape)
        self._beta = path._weight.new_tensor(betas).view(-1, *lift, 1)
        # Level by level: the axis of the levels stands before the batch axes of the biases.
        base, visible = (
            bias.expand(*path.batch_shape, path.num_visible)
            for bias in (path._base_bias, path._visible_bias)
        )
        self._bias = torch.lerp(base, visible, self._beta)

    @torch.no_grad()
    def initial(self, chain_shape: Size) -> Tensor:
        theta = self._bias.expand(*chain_shape, *self._bias.shape)
        return self._path._visible.natural_sample(theta, self.generator)

    @torch.no_grad()
    def fields(self, v: Tensor) -> Tensor:
        return self._path.fields(v)

    @torch.no_grad()
    def sweep(self, fields: Tensor) -> tuple[Tensor, Tensor]:
        path = self._path
        h = _draw_(path._hidden, self._beta * fields, self.generator)
        theta = apply_weight(h, path._weight_t)
        torch.addcmul(self._bias, self._beta, theta, out=theta)
        v = _draw_(path._visible, theta, self.generator)
        return v, path.fields(v)

    def _visible_density(self, v: Tensor) -> Tensor:
        """b_0'v - r(v) and the product of v with b - b_0, both float64."""
        path = self._path
        base = -path._visible.energy(v).double() + path._visible.energy_constant
        shift = path._base_bias - path._visible.natural_bias
        return base + (v * shift).sum(-1)

    @torch.no_grad()
    def log_density(self, v: Tensor, fields: Tensor) -> Tensor:
        path, beta = self._path, self._beta
        hidden = path._hidden.natural_log_partition(beta * fields)
        change = path.bias_pull(v) + path._constant
        return self._visible_density(v) + hidden + beta.squeeze(-1) * change

    @torch.no_grad()
    def log_density_table(self, v: Tensor, fields: Tensor) -> Tensor:
        path = self._path
        base, change = self._visible_density(v), path.bias_pull(v) + path._constant
        return torch.stack(
            [
                base + path._hidden.natural_log_partition(beta * fields) + beta * change
                for beta in self._beta.flatten()
            ]
        )

    @torch.no_grad()
    def slope(self, v: Tensor, fields: Tensor) -> Tensor:
        r"""Derivative :math:`\partial_\beta \log p^*_\beta(v)` of states at their own levels, float64, the
        integrand of thermodynamic integration; the shape is that of :meth:`log_density`."""
        path = self._path
        hidden = (fields * path._hidden.natural_mean(self._beta * fields)).sum(-1)
        return path.bias_pull(v).double() + hidden + path._constant

    def _to_level(self, v: Tensor, fields: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Change of the log-density without its constant, and of beta, from the own level to another."""
        path, beta = self._path, self._beta
        beta_level = beta.index_select(0, level)
        hidden = path._hidden.natural_log_partition_step(fields, beta, beta_level)
        step = (beta_level - beta).squeeze(-1)
        return hidden + step * path.bias_pull(v), step

    @torch.no_grad()
    def level_log_ratio(self, v: Tensor, fields: Tensor, level: Tensor) -> Tensor:
        change, step = self._to_level(v, fields, level)
        return change.double() + step * self._path._constant

    @torch.no_grad()
    def swap_log_ratio(
        self, v: Tensor, fields: Tensor, partner: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        to_partner, _ = self._to_level(v, fields, partner)
        return to_partner + to_partner.index_select(self.level_axis, partner), None


def _draw_(unit: Unit, theta: Tensor, generator: Generator | None) -> Tensor:
    """A state drawn at the natural parameter theta, which may be overwritten."""
    noise = unit.natural_noise(theta.shape, generator)
    if noise is None:
        return unit.natural_sample(theta, generator)
    return unit.natural_sample_from(theta, noise)


def base_unit(dist: RBM, base: Unit | Tensor | str | None) -> Unit:
    """The visible layer at beta = 0.

    :param RBM dist: the machine at beta = 1.
    :param base: None for the machine's own visible biases, "uniform" (finite supports only), or data
        means, shape ``(..., V)`` that broadcasts to the machine's; a layer is given back.
    :raises ValueError: for another word, a shape that does not fit, NaN, or "uniform" for an unbounded
        layer.
    """
    visible = dist.visible
    if isinstance(base, Unit):
        return base
    if base is None:
        return visible
    if isinstance(base, str):
        if base != "uniform":
            raise ValueError(f'base must be None, "uniform" or a tensor of means, got {base!r}')
        if visible.num_states is None:
            name = type(visible).__name__
            raise ValueError(f'base="uniform" is impossible for unbounded {name} units')
        return visible.neutral()
    return mean_unit(visible, base, dist.parameter_batch_shape)


def even_base(layers: Sequence[Unit], means: Tensor, batch_shape: Size) -> Unit:
    """The even layers of a deep machine at beta = 0, one after the other.

    :param layers: the layers, the visible one first.
    :param Tensor means: of the visible layer; the hidden ones keep their biases.
    :param batch_shape: that of the machine.
    :raises ValueError: for a shape that does not fit, or NaN.
    """
    return join_units([mean_unit(layers[0], means, batch_shape), *layers[1:]])


def mean_unit(unit: Unit, means: Tensor, batch_shape: Size) -> Unit:
    """A layer of the same family with (almost) the given means, as a base.

    :param Unit unit: the layer.
    :param Tensor means: shape ``(..., size)`` that broadcasts to ``batch_shape + (size,)``.
    :param batch_shape: that of the machine.
    :raises ValueError: for a shape that does not fit, or NaN.
    """
    if means.shape[-1:] != (unit.size,):
        raise ValueError(f"base must have shape (..., {unit.size}), got {tuple(means.shape)}")
    if not _broadcasts_to(means.shape[:-1], batch_shape):
        raise ValueError(
            f"base of shape {tuple(means.shape)} does not broadcast to the batch shape "
            f"{tuple(batch_shape)}"
        )
    if bool(torch.isnan(means).any()):
        raise ValueError("base contains NaN")
    return unit.from_mean(means)


def _broadcasts_to(shape: torch.Size, target: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, target) == target
    except RuntimeError:
        return False
