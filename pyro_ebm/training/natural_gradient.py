# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The natural gradient: exact where visible states can be enumerated, else in the span of samples."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.enumeration import state_chunks
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.training.phase_statistics import Statistics
from pyro_ebm.training.scores import Scores

__all__ = [
    "MAX_PARAMETERS",
    "MAX_STATES",
    "EnumeratedFisher",
    "SampledFisher",
    "is_cheap_to_enumerate",
    "sampled_natural_gradient",
]

#: Largest Fisher matrix: 3,000 parameters are 72 MB, and a third of a second for its Cholesky factor.
MAX_PARAMETERS = 3000
#: Visible states that are summed at most, at every update.
MAX_STATES = 2**20
#: Multiplications of an exact Fisher matrix (states times squared parameters) that an update with
#: chains is worth: about a tenth of a second.
_CHEAP = 2**32


class EnumeratedFisher:
    r"""Replaces the gradient g by the natural gradient with the exact Fisher information of p(v).

    .. math::
        \Delta \theta = -\epsilon\, (F + \lambda I)^{-1} g, \qquad
        F = \mathrm{Cov}_{p(v)}[s(v)], \quad s(v) = -\frac{\partial F(v)}{\partial \theta},

    in float64, over all states of the visible layer. With :math:`\lambda \to 0` the path of the
    *distribution* under small steps does not depend on how it is parameterised: centring, or which
    state of a bit is called 1, makes no difference. Amari, *Natural gradient works efficiently in
    learning* (1998). An update costs (states) times (parameters squared), for machines of up to a
    dozen visible bits.

    :param module: the module.
    :param float damping: :math:`\lambda`. Directions that change the distribution by less are taken as
        by the plain gradient of the rate :math:`\epsilon / \lambda`.
    :raises ValueError: if the visible layer is not finite or has more than :data:`MAX_STATES` states, or
        there are more than :data:`MAX_PARAMETERS` trained parameters.
    """

    def __init__(self, module: nn.RBM, damping: float) -> None:
        with torch.no_grad():
            num_states = module.visible().num_states
        if num_states is None or num_states > MAX_STATES:
            raise ValueError(
                f"preconditioner='natural' with exact gradients needs a visible layer of at most "
                f"{MAX_STATES} states, got {num_states or 'infinitely many'}; with "
                "negative_phase='gibbs' it takes the chains' states instead"
            )
        if _num_trained(module) > MAX_PARAMETERS:
            raise ValueError(
                f"preconditioner='natural' with exact gradients is for at most {MAX_PARAMETERS} "
                f"parameters, got {_num_trained(module)}; with negative_phase='gibbs' it takes the "
                "chains' states instead"
            )
        self.module = module
        self.damping = damping

    @torch.no_grad()
    def __call__(
        self, dist: RBM, data: Statistics | None = None, model: Statistics | None = None
    ) -> None:
        """Change the gradients of the module.

        :param RBM dist: the machine.
        :param Statistics data: not used.
        :param Statistics model: not used.
        """
        gradient = _gradients(self.module)
        matrix, names = self.fisher(dist)
        matrix.diagonal().add_(self.damping)
        flat = torch.cat([gradient[name].double().flatten() for name in names])
        factor = torch.linalg.cholesky(matrix)
        solved = torch.cholesky_solve(flat.unsqueeze(-1), factor).squeeze(-1)
        parts = solved.split([gradient[name].numel() for name in names])
        for name, part in zip(names, parts, strict=True):
            gradient[name].copy_(part.view_as(gradient[name]))

    @torch.no_grad()
    def fisher(self, dist: RBM) -> tuple[Tensor, list[str]]:
        """The Fisher information matrix of the trained parameters, float64, and their order."""
        exact = dist.compact().detach().to(dtype=torch.float64)
        log_z = exact_log_partition(exact)
        size = _num_trained(self.module)
        matrix, mean = log_z.new_zeros(size, size), log_z.new_zeros(size)
        names: list[str] = []
        for v in state_chunks(exact.visible, size):
            theta = exact.hidden.natural_bias + exact.hidden_field(v)
            scores = Scores.of(self.module, exact, v, theta).dense()
            names = list(scores)
            rows = torch.cat([value.flatten(1) for value in scores.values()], 1)
            p = (-exact.free_energy(v) - log_z).exp()
            weighted = rows * p.unsqueeze(-1)
            matrix.addmm_(weighted.T, rows)
            mean += weighted.sum(0)
        return matrix.addr_(mean, mean, alpha=-1.0), names

    def state(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to take back."""


class SampledFisher:
    r"""Replaces the gradient g by the natural gradient with the Fisher information of the chains.

    With the centred scores of C chains as columns of S (P parameters times C),

    .. math::
        F \approx \frac{S S^\top}{C}, \qquad
        \Bigl(\frac{S S^\top}{C} + \lambda I\Bigr)^{-1} g
        = \frac{1}{\lambda} \Bigl(g - S\, (S^\top S + \lambda C I)^{-1} S^\top g\Bigr),

    the identity of Woodbury: a system of C equations in the place of P. No matrix of P times C is formed,
    because the scores of a weight are outer products :math:`v_c m_c^\top` with
    :math:`m_c = \mathrm{E}[h|v_c]` (offsets subtracted): with chains as rows of V and M, before centring,

    .. math::
        S_0^\top S_0 = (V V^\top) \circ (M M^\top) + V V^\top + M M^\top, \quad
        (S_0^\top g)_c = v_c^\top G\, m_c + v_c^\top g_b + m_c^\top g_c, \quad
        (S_0 a)_W = V^\top \mathrm{diag}(a) M,

    where G is the gradient of the weight. Centring over the chains is :math:`S = S_0 (I - 1 1^\top / C)`. An
    update costs two more matrix products of the size of half a sweep, and :math:`C^2 (V + H) + C^3 / 3`
    multiplications. It is the trick of kernel methods, known as minSR in variational Monte Carlo (Chen
    and Heyl, *Empowering deep neural quantum states through efficient optimization*, 2024).

    Directions that the chains do not span count as having no Fisher information: there the step is
    that of the plain gradient with the rate :math:`\epsilon / \lambda`, and along those that the chains do
    span it is shorter. Good rates are therefore about :math:`\lambda` times those of the plain gradient,
    and the more chains the better: ``num_chains`` of a few hundred.

    :param module: the module.
    :param float damping: :math:`\lambda`.
    """

    def __init__(self, module: nn.RBM, damping: float) -> None:
        self.module = module
        self.damping = damping

    @torch.no_grad()
    def __call__(self, dist: RBM, data: Statistics, model: Statistics) -> None:
        """Change the gradients of the module, see
        :class:`~pyro_ebm.training.preconditioning.Preconditioner`."""
        scores = Scores.of(self.module, dist, model.v, model.theta)
        gradients = _gradients(self.module)
        for name, value in sampled_natural_gradient(scores, gradients, self.damping).items():
            gradients[name].copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to take back."""


@torch.no_grad()
def sampled_natural_gradient(
    scores: Scores, gradient: Mapping[str, Tensor], damping: float
) -> dict[str, Tensor]:
    r""":math:`(S S^\top / C + \lambda I)^{-1} g` without the matrix, see :class:`SampledFisher`.

    :param Scores scores: scores of C rows, not centred.
    :param gradient: g by parameter, the names being those of the scores.
    :param float damping: :math:`\lambda`, positive.
    """
    system = scores.gram()
    system -= system.mean(0)
    system -= system.mean(1, keepdim=True)
    system.diagonal().add_(damping * len(system))
    target = scores.dot(gradient)
    target -= target.mean()
    factor = torch.linalg.cholesky(system)
    solved = torch.cholesky_solve(target.unsqueeze(-1), factor).squeeze(-1)
    solved -= solved.mean()
    dtype = next(iter(gradient.values())).dtype
    inside = scores.combine(solved.to(dtype))
    return {name: (gradient[name] - value) / damping for name, value in inside.items()}


def is_cheap_to_enumerate(module: nn.RBM) -> bool:
    """Whether the exact Fisher matrix of a module costs about as little as an update with chains."""
    with torch.no_grad():
        num_states = module.visible().num_states
    size = _num_trained(module)
    return num_states is not None and size <= MAX_PARAMETERS and num_states * size**2 <= _CHEAP


def _num_trained(module: nn.RBM) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _gradients(module: nn.RBM) -> dict[str, Tensor]:
    """The gradients of the trained parameters by name."""
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in trained.items()}
