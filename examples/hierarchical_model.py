# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The hierarchical prior over features as a Pyro program, and its posterior by a compound kernel."""

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from hierarchical_laws import SharedGamma, SharedNormal
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_ebm.infer import DiscreteGibbs, Gibbs

__all__ = [
    "NormalGamma",
    "Statistics",
    "Tree",
    "class_law",
    "infer",
    "make_kernel",
    "model",
    "stick_weights",
    "super_classes",
]

#: Shape of the prior of a super-class's typical variance: about 1 (features are whitened), give or take.
VARIANCE_SHAPE = 4.0
#: Gamma priors, by feature: how many images the mean of a super-class counts as, and the precision of
#: the means of super-classes. Wide: along many features no class differs from another, and with a prior that
#: forbids large values every further super-class would cost there what it gains elsewhere.
STRENGTH = SPREAD = (0.5, 0.05)


@dataclass(frozen=True)
class Statistics:
    """What a class's Gaussian needs to know of its images.

    :param Tensor count: number of images, shape ``(K,)``.
    :param Tensor mean: their mean, shape ``(K, D)``.
    :param Tensor scatter: their sum of squares about it, shape ``(K, D)``.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor, labels: Tensor, classes: Any) -> "Statistics":
        """Those of rows, shape ``(N, D)``, by their labels."""
        parts = [rows[labels == k].double() for k in classes]
        if not all(len(part) for part in parts):
            raise ValueError(f"every one of the classes {list(classes)} needs an image")
        mean = torch.stack([part.mean(0) for part in parts])
        scatter = torch.stack([(p - m).square().sum(0) for p, m in zip(parts, mean, strict=True)])
        return cls(torch.tensor([float(len(p)) for p in parts]).to(mean), mean, scatter)


def stick_weights(sticks: Tensor) -> Tensor:
    """Weights of super-classes: each stick is the part that is broken off what is left."""
    left = torch.cat([torch.ones_like(sticks[..., :1]), (1.0 - sticks).cumprod(-1)], -1)
    return left * torch.cat([sticks, torch.ones_like(sticks[..., :1])], -1)


def model(data: Statistics, num_super: int) -> None:
    """Classes in super-classes by a Dirichlet process, truncated at ``num_super`` of them."""
    num_classes, dim = data.mean.shape
    one = data.mean.new_ones(dim)
    strength = pyro.sample("strength", dist.Gamma(STRENGTH[0] * one, STRENGTH[1]).to_event(1))
    spread = pyro.sample("spread", dist.Gamma(SPREAD[0] * one, SPREAD[1]).to_event(1))
    shape = pyro.sample("shape", dist.LogNormal(1.5 * one[0], 0.5))
    groups = torch.zeros(num_classes, dtype=torch.long)
    if num_super > 1:
        concentration = pyro.sample("concentration", dist.Gamma(one[0], 1.0))
        broken = dist.Beta(one[0], concentration.unsqueeze(-1)).expand((num_super - 1,))
        weights = stick_weights(pyro.sample("sticks", broken.to_event(1)))
        # One site a class: with the super-classes summed out, each depends on all others.
        each = [pyro.sample(f"z_{k}", dist.Categorical(weights)) for k in range(num_classes)]
        groups = torch.stack(torch.broadcast_tensors(*each), -1)
    precision = pyro.sample(
        "precision", SharedGamma(groups, num_super, shape, VARIANCE_SHAPE * one)
    )
    mean = pyro.sample("mean", SharedNormal(groups, num_super, strength * precision, spread))
    # Mean and sum of squares are sufficient: the images change their law by a constant only.
    count = data.count.unsqueeze(-1)
    many = count > 1
    scatter = torch.where(many, data.scatter, 1.0)
    half = torch.where(many, count - 1.0, 1.0) / 2
    pyro.sample(
        "sample_mean", dist.Normal(mean, (count * precision).rsqrt()).to_event(2), obs=data.mean
    )
    squares = dist.Gamma(half, precision / 2).mask(many).to_event(2)
    pyro.sample("scatter", squares, obs=scatter)


# --- conditionals in closed form ------------------------------------------------------------------


def groups_of(values: dict[str, Tensor], num_classes: int) -> Tensor:
    """The super-class of every class, shape ``(K,)``; one for all in a model without a tree."""
    if "z_0" not in values:
        return torch.zeros(num_classes, dtype=torch.long)
    return torch.stack([values[f"z_{k}"].long() for k in range(num_classes)], -1)


def _laws(values: dict[str, Tensor], num_super: int) -> tuple[SharedGamma, SharedNormal]:
    precision, strength = values["precision"], values["strength"]
    groups = groups_of(values, len(precision))
    prior = torch.full_like(strength, VARIANCE_SHAPE)
    return (
        SharedGamma(groups, num_super, values["shape"], prior),
        SharedNormal(groups, num_super, strength * precision, values["spread"]),
    )


def super_classes(values: dict[str, Tensor], num_super: int) -> tuple[Tensor, Tensor]:
    """A draw of the super-classes given their classes: means and typical variances, shape
    ``(num_super, D)``."""
    gamma, normal = _laws(values, num_super)
    return (
        normal.group_law(values["mean"]).sample(),
        gamma.group_law(values["precision"]).sample(),
    )


@dataclass(frozen=True)
class NormalGamma:
    """Precisions and means of classes: ``mean ~ N(loc, 1 / (total * precision))``.

    :param precision: the Gamma law of the precision.
    :param Tensor loc: where the mean is.
    :param Tensor total: how many images the law counts as.
    """

    precision: dist.Gamma
    loc: Tensor
    total: Tensor

    def mean_given(self, precision: Tensor) -> dist.Normal:
        """The law of the mean."""
        return dist.Normal(self.loc, (self.total * precision).rsqrt())


def class_law(
    data: Statistics, centre: Tensor, variance: Tensor, shape: Tensor, strength: Tensor
) -> NormalGamma:
    """Classes given their images and super-classes.

    :param Statistics data: of K classes.
    :param Tensor centre: m of each one's super-class, shape ``(K, D)``.
    :param Tensor variance: q of each one's super-class, shape ``(K, D)``.
    """
    count = data.count.unsqueeze(-1)
    total = strength + count
    off = strength * count / total * (data.mean - centre).square()
    precision = dist.Gamma(shape + count / 2, shape * variance + (data.scatter + off) / 2)
    return NormalGamma(precision, (strength * centre + count * data.mean) / total, total)


def scale_laws(
    values: dict[str, Tensor], centre: Tensor, groups: Tensor
) -> tuple[dist.Gamma, dist.Gamma]:
    """ "strength" and "spread" given means of classes and super-classes; only the latter that have classes
    are there to be counted."""
    off = values["precision"] * (values["mean"] - centre[groups]).square()
    used = centre[groups.unique()]
    half_classes, half_used = len(off) / 2, len(used) / 2
    return (
        dist.Gamma(STRENGTH[0] + half_classes, STRENGTH[1] + off.sum(0) / 2),
        dist.Gamma(SPREAD[0] + half_used, SPREAD[1] + used.square().sum(0) / 2),
    )


def make_kernel(data: Statistics, num_super: int) -> Gibbs:
    """Turns: super-class by class, precisions with means, scales, and NUTS for the rest.

    Functions draw the super-classes first, which are in closed form, and then their sites given them:
    a Gibbs step of the larger model, whose super-classes are forgotten again.
    """

    def update_classes(values: dict[str, Tensor]) -> dict[str, Tensor]:
        groups = groups_of(values, len(data.mean))
        centre, variance = super_classes(values, num_super)
        law = class_law(data, centre[groups], variance[groups], values["shape"], values["strength"])
        precision = law.precision.sample()
        return {"precision": precision, "mean": law.mean_given(precision).sample()}

    def update_scales(values: dict[str, Tensor]) -> dict[str, Tensor]:
        groups = groups_of(values, len(data.mean))
        centre, _ = super_classes(values, num_super)
        strength, spread = scale_laws(values, centre, groups)
        return {"strength": strength.sample(), "spread": spread.sample()}

    blocks: list[tuple[Any, list[str] | None]] = [
        (update_classes, ["precision", "mean"]),
        (update_scales, ["strength", "spread"]),
        (NUTS(model, max_tree_depth=4), None),
    ]
    if num_super > 1:
        names = [f"z_{k}" for k in range(len(data.mean))]
        blocks.insert(0, (DiscreteGibbs(model), names))
    return Gibbs(blocks)


# --- the posterior --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """Draws of the posterior.

    :param draws: by site, shape ``(draws, ...)``.
    :param Tensor centre: m of the super-classes, shape ``(draws, num_super, D)``.
    :param Tensor variance: q of the super-classes, of that shape.
    :param Tensor groups: the super-class of each class, shape ``(draws, K)``.
    """

    draws: dict[str, Tensor]
    centre: Tensor
    variance: Tensor
    groups: Tensor

    @property
    def together(self) -> Tensor:
        """How often two classes share a super-class, shape ``(K, K)``."""
        return (self.groups.unsqueeze(-1) == self.groups.unsqueeze(-2)).double().mean(0)

    def thinned(self, number: int) -> "Tree":
        """``number`` draws at even distances, or all that there are."""
        total = len(self.groups)
        keep = torch.linspace(0, total - 1, min(number, total)).long()
        draws = {name: value[keep] for name, value in self.draws.items()}
        return Tree(draws, self.centre[keep], self.variance[keep], self.groups[keep])


def start(data: Statistics, num_super: int) -> dict[str, Tensor]:
    """Every class a super-class of its own where there are enough, and itself as its images are."""
    count = data.count.unsqueeze(-1)
    typical = (data.scatter.sum(0) / (data.count.sum() - len(data.mean)).clamp_min(1.0)).clamp_min(
        0.1
    )
    precision = (count + 2.0) / (data.scatter + 2.0 * typical)
    first = {"mean": data.mean, "precision": precision, "strength": 0 * data.mean[0] + 1.0}
    first["spread"] = first["strength"]
    if num_super > 1:
        first |= {
            f"z_{k}": torch.tensor(k % num_super).to(data.mean) for k in range(len(data.mean))
        }
    return first


def infer(
    data: Statistics, *, num_super: int = 10, draws: int = 100, warmup: int = 100, seed: int = 0
) -> Tree:
    """The posterior of the tree, of its classes and of the hyper-parameters.

    :param Statistics data: of the base classes.
    :param int num_super: truncation of the Dirichlet process; 1 for a flat hierarchy.
    :param int draws: draws that are kept.
    :param int warmup: draws before.
    :param int seed: seed of the global generator.
    """
    pyro.set_rng_seed(seed)
    kernel = make_kernel(data, num_super)
    mcmc = MCMC(kernel, draws, warmup, initial_params=start(data, num_super), disable_progbar=True)
    mcmc.run(data, num_super)
    found = mcmc.get_samples()
    each = [{name: value[n] for name, value in found.items()} for n in range(draws)]
    above = [super_classes(values, num_super) for values in each]
    centre, variance = (torch.stack(parts) for parts in zip(*above, strict=True))
    groups = torch.stack([groups_of(values, len(data.mean)) for values in each])
    return Tree(found, centre, variance, groups)
