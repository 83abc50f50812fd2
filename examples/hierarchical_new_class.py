# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A class that is known by a few images: which super-class it is of, and what its other images look like.

For every draw of the posterior of the base classes all is in closed form, but for a super-class that does
not exist yet: there a quadrature over the precision of each feature is left.
"""

import math

import pyro.distributions as dist
import torch
from hierarchical_model import (
    VARIANCE_SHAPE,
    NormalGamma,
    Statistics,
    Tree,
    class_law,
    stick_weights,
)
from torch import Tensor

__all__ = ["NewClasses", "base_log_density"]

#: Nodes of the quadrature; rows whose densities are computed at once.
NODES, CHUNK = 8, 100


class NewClasses:
    """New classes given their images, by one draw of the posterior of the base classes.

    :param Tree tree: the posterior.
    :param int draw: which draw.
    :param Statistics support: of the images of the new classes, K of them.
    """

    def __init__(self, tree: Tree, draw: int, support: Statistics) -> None:
        self.support, self._dim = support, support.mean.shape[-1]
        values = {name: value[draw] for name, value in tree.draws.items()}
        self._shape, self._strength = values["shape"], values["strength"]
        #: Numbers of the super-classes that have classes, shape ``(U,)``.
        self.used = tree.groups[draw].unique()
        self._centre, self._variance = tree.centre[draw, self.used], tree.variance[draw, self.used]
        self._fresh = FreshClass(support, self._shape, self._strength, values["spread"])
        evidence = torch.stack([self._evidence(u) for u in range(len(self.used))])
        evidence = torch.cat([evidence, self._fresh.evidence.sum(-1).unsqueeze(0)])
        #: log p(super-class | images), shape ``(U + 1, K)``; the last one is a new super-class.
        self.log_membership = (_log_prior(values, self.used) + evidence).log_softmax(0)
        #: log p(images), shape ``(K,)``.
        self.log_evidence = (_log_prior(values, self.used) + evidence).logsumexp(0)

    def _posterior(self, number: int) -> NormalGamma:
        """The classes' laws within a super-class."""
        centre, variance = self._centre[number], self._variance[number]
        return class_law(self.support, centre, variance, self._shape, self._strength)

    def _evidence(self, number: int) -> Tensor:
        """log p(images | super-class), shape ``(K,)``."""
        after = self._posterior(number)
        shape, rate = after.precision.concentration, after.precision.rate
        prior_rate = self._shape * self._variance[number]
        value = shape.lgamma() - self._shape.lgamma() + self._shape * prior_rate.log()
        value = value - shape * rate.log() + (self._strength / after.total).log() / 2
        half_images = self.support.count.unsqueeze(-1) / 2
        return (value - half_images * math.log(2 * math.pi)).sum(-1)

    def log_density(self, rows: Tensor) -> Tensor:
        """log p(row | images of the class), shape ``(N, K)``."""
        parts = [
            self._student(n).log_prob(rows.unsqueeze(-2)).sum(-1) for n in range(len(self.used))
        ]
        # However improbable it is, a new super-class may explain a row best: its law is the widest. Only a
        # flat hierarchy has none.
        if bool((self.log_membership[-1] > -math.inf).any()):
            parts.append(torch.cat([self._fresh.log_density(r) for r in rows.split(CHUNK)]))
        weights = self.log_membership[: len(parts)].unsqueeze(1)
        return (torch.stack(parts) + weights).logsumexp(0)

    def _student(self, number: int) -> dist.StudentT:
        """The law of a further image within a super-class."""
        after = self._posterior(number)
        shape, rate = after.precision.concentration, after.precision.rate
        scale = (rate * (after.total + 1) / (shape * after.total)).sqrt()
        return dist.StudentT(2 * shape, after.loc, scale)

    def sample(self, number: int) -> Tensor:
        """Features of further images of the classes, shape ``(number, K, D)``: each with a class law of its
        own from the posterior."""
        chosen = dist.Categorical(logits=self.log_membership.T).sample((number,))
        result = self._fresh.sample(number)
        for u in range(len(self.used)):
            drawn = self._student(u).sample((number,))
            result = torch.where((chosen == u).unsqueeze(-1), drawn, result)
        return result


class FreshClass:
    r"""The first class of a super-class: its precision is :math:`\tau = (a / \alpha)\, y / (1 - y)` with
    y of a Beta law, by Gauss-Jacobi quadrature; given that, all is normal.

    :param Statistics support: of the images, K classes.
    :param Tensor shape: :math:`\alpha`.
    :param Tensor strength: of the means of super-classes, shape ``(D,)``.
    :param Tensor spread: precision of the means of super-classes, shape ``(D,)``.
    :param int nodes: of the quadrature.
    """

    def __init__(
        self,
        support: Statistics,
        shape: Tensor,
        strength: Tensor,
        spread: Tensor,
        nodes: int = NODES,
    ) -> None:
        tau, weight = _nodes(float(shape), nodes)
        tau = tau.to(strength).reshape(-1, 1, 1)
        count = support.count.unsqueeze(-1)
        prior = 1.0 / (1.0 / (strength * tau) + 1.0 / spread)
        within = count * tau
        total = prior + within
        log_p = (tau / (2 * math.pi)).log() * count / 2 + (prior / total).log() / 2
        pull = prior * within / total * support.mean.square()
        log_p = log_p - (tau * support.scatter + pull) / 2 + weight.log().reshape(-1, 1, 1)
        #: log p(images) by feature, shape ``(K, D)``.
        self.evidence = log_p.logsumexp(0)
        self._log_weight = log_p - self.evidence
        self._law = dist.Normal(within * support.mean / total, (1.0 / total + 1.0 / tau).sqrt())

    def log_density(self, rows: Tensor) -> Tensor:
        """log p(row | images), shape ``(N, K)``."""
        log_p = self._law.log_prob(rows[:, None, None, :]) + self._log_weight
        return log_p.logsumexp(1).sum(-1)

    def sample(self, number: int) -> Tensor:
        """Features of further images, shape ``(number, K, D)``."""
        node = dist.Categorical(logits=self._log_weight.movedim(0, -1)).sample((number,))
        return self._law.sample((number,)).gather(1, node.unsqueeze(1)).squeeze(1)


def _nodes(shape: float, number: int) -> tuple[Tensor, Tensor]:
    """Precisions and their weights under the prior of a class whose super-class has no other."""
    from scipy.special import roots_jacobi

    points, weights = roots_jacobi(number, VARIANCE_SHAPE - 1.0, shape - 1.0)
    y = torch.as_tensor((1.0 + points) / 2.0)
    return VARIANCE_SHAPE / shape * y / (1.0 - y), torch.as_tensor(weights / weights.sum())


def _log_prior(values: dict[str, Tensor], used: Tensor) -> Tensor:
    """log of the weights of super-classes that have classes, and of all others together, shape
    ``(U + 1, 1)``."""
    if "sticks" not in values:
        return torch.tensor([[0.0], [-math.inf]]).to(values["strength"])
    weights = stick_weights(values["sticks"])
    known = weights[used]
    unused = torch.ones_like(weights, dtype=torch.bool)
    unused[used] = False
    return torch.cat([known, weights[unused].sum().unsqueeze(0)]).log().unsqueeze(-1)


def base_log_density(tree: Tree, draw: int, rows: Tensor) -> Tensor:
    """log p(row | base class) by one draw, shape ``(N, K)``."""
    mean, precision = tree.draws["mean"][draw], tree.draws["precision"][draw]
    constant = (precision / (2 * math.pi)).log().sum(-1) / 2 - (precision * mean.square()).sum(
        -1
    ) / 2
    return constant + rows @ (precision * mean).T - rows.square() @ precision.T / 2
