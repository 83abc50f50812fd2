# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The moment-averaged path."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator, Size, Tensor
from tqdm.auto import tqdm

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.sampling import exact_side
from pyro_ebm.distributions.units import Unit
from pyro_ebm.infer.paths.canonical import canonical, with_bias
from pyro_ebm.infer.paths.geometric import base_unit
from pyro_ebm.infer.paths.machines import MachinePath
from pyro_ebm.infer.paths.moment_fit import ChainFit, fit_by_enumeration
from pyro_ebm.infer.paths.moment_statistics import (
    Moments,
    base_moments,
    enumerated_moments,
    sampled_moments,
)

__all__ = ["moment_averaged_path"]

#: Machines with a layer of at most this many states are fitted exactly, in a second or so a knot.
_MAX_FITTED_STATES = 2**12

#: Every segment gets at least this share of the length that an average one has.
_MIN_LENGTH = 0.1


def moment_averaged_path(
    dist: RBM,
    base: Unit | Tensor | str | None = None,
    *,
    num_knots: int = 4,
    samples: Tensor | None = None,
    num_chains: int = 500,
    num_updates: int = 200,
    learning_rate: float = 0.05,
    generator: Generator | None = None,
    progress: bool = False,
) -> MachinePath:
    r"""The path through machines whose **moments**, not parameters, are averages of base and target.

    Knot k has the moments

    .. math:: E_k[s] = (1 - \beta_k)\, E_{base}[s] + \beta_k\, E_{target}[s], \qquad s = (v, h, v h^\top),

    and between knots the path is straight in the parameters (a moment-matching spline [1]). Where the
    geometric path of two separated distributions gives up the probability mass of both, this one stays
    broad, which pays off for a base that is far from the target, ``base="uniform"`` above all.
    Precisions of Gaussian and rectified units, which the moments say nothing about, go straight from
    the base to the target.

    Machines that can be enumerated are fitted exactly. Others are fitted by a stochastic gradient with
    persistent chains, starting from the base; the moments of the target then come from ``samples``.
    Annealing is valid along any path that starts at the base and ends at the target: bad samples or a
    fit that stopped early cost efficiency, not correctness. Temperatures spread evenly over the path
    are close to optimal, as the knots stand at positions proportional to
    :math:`\sqrt{\Delta\eta^\top \Delta E[s]}`, where :math:`\eta` are the natural parameters.

    **References**

    [1] *Annealing between distributions by averaging moments*, Roger Grosse, Chris Maddison,
    Ruslan Salakhutdinov (2013)

    :param RBM dist: the target, with any batch shape, one layer of which is discrete.
    :param base: the visible layer of the base, or what :func:`base_unit` makes one of: None for the
        target's own visible biases, "uniform", or data means.
    :param int num_knots: machines to fit between the base and the target, at least 1.
    :param Tensor samples: samples of the target, shape
        ``(samples,) + dist.parameter_batch_shape + (V,)``, as from long chains or tempering. If None,
        moments are exact where a layer has at most :math:`2^{16}` states, otherwise those of
        ``dist.sample((num_chains,))``.
    :param int num_chains: persistent chains of the stochastic fit.
    :param int num_updates: gradient steps of the stochastic fit, for every knot.
    :param float learning_rate: its first rate; it falls to zero.
    :param torch.Generator generator: the source of random bits of the fit and of the path; the global
        one if None.
    :param bool progress: whether to show a progress bar.
    :raises ValueError: for options out of range, a base that does not fit, samples of a wrong shape or
        outside of the support, or two continuous layers.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer.paths import moment_averaged_path
    >>> rbm = BernoulliRBM(torch.eye(4), torch.zeros(4), torch.zeros(4))
    >>> path = moment_averaged_path(rbm, "uniform", num_knots=1)
    >>> [round(machine.weight[0, 0].item(), 2) for machine in path.knots]
    [0.0, 0.53, 1.0]
    """
    _check_options(dist, num_knots, num_chains, num_updates, learning_rate)
    compact = dist.compact()
    visible = base if isinstance(base, Unit) else base_unit(dist, base)
    end = canonical(compact)
    start = _start(end, visible)
    goal = _target_moments(compact, samples, num_chains, generator)
    origin = base_moments(start)
    fit: ChainFit | None = None
    if exact_side(end, _MAX_FITTED_STATES) is None:
        fit = ChainFit(_draws(start, num_chains, generator), num_updates, learning_rate, generator)
    betas = [k / (num_knots + 1) for k in range(num_knots + 2)]
    knots = [start]
    steps = list(pairwise(betas[:-1]))
    for before, beta in tqdm(steps, desc="moments", disable=not progress):
        # On the straight line to the target: what moments don't determine moves there as well.
        share = (beta - before) / (1.0 - before)
        guess = MachinePath([knots[-1], end]).machine(share)
        wanted = origin.mix(goal, beta)
        knots.append(fit_by_enumeration(guess, wanted) if fit is None else fit.fit(guess, wanted))
    knots.append(compact)
    return MachinePath(knots, generator, positions=_positions(knots, betas, origin, goal))


def _start(end: RBM, visible: Unit) -> RBM:
    """The base: the given visible layer and a neutral hidden one, without weights."""
    batch = end.parameter_batch_shape
    if type(visible) is not type(end.visible) or visible.size != end.visible.size:
        raise ValueError(
            f"base must be a layer of {end.visible.size} {type(end.visible).__name__} entries, "
            f"got {visible!r}"
        )
    layer = with_bias(visible.map(torch.Tensor.detach), visible.natural_bias.detach(), batch)
    return RBM(layer, end.hidden.neutral(), torch.zeros_like(end.weight), validate_args=False)


def _draws(start: RBM, num_chains: int, generator: Generator | None) -> Tensor:
    theta = start.visible.natural_bias
    return start.visible.natural_sample(theta.expand(num_chains, *theta.shape), generator)


def _target_moments(
    dist: RBM, samples: Tensor | None, num_chains: int, generator: Generator | None
) -> Moments:
    if samples is None:
        if exact_side(dist) is not None:
            return enumerated_moments(canonical(dist))[0]
        samples = dist.sample(Size((num_chains,)), generator=generator)
    shape = (*dist.parameter_batch_shape, dist.event_shape[0])
    if samples.shape[1:] != shape or len(samples) < 1:
        raise ValueError(
            f"samples must have shape (samples,) + {shape}, got {tuple(samples.shape)}"
        )
    if not bool(dist.support.check(samples).all()):
        raise ValueError(f"samples has values outside of {dist.support}")
    return sampled_moments(dist, samples.to(dist.weight))


def _positions(
    knots: Sequence[RBM], betas: Sequence[float], origin: Moments, goal: Moments
) -> list[float]:
    """Positions proportional to the length of the segments, as far as noise lets it be known."""
    machines = [canonical(machine) for machine in knots]
    natural = [(m.visible.natural_bias, m.hidden.natural_bias, m.weight) for m in machines]
    # Moments are straight in beta, so that one difference serves all segments.
    slopes = torch.stack([goal.dot(*eta) - origin.dot(*eta) for eta in natural])
    slopes = slopes.reshape(len(knots), -1).double()
    steps = torch.tensor(betas, dtype=torch.float64, device=slopes.device).diff().unsqueeze(-1)
    lengths = (slopes.diff(dim=0) * steps).clamp(min=0.0).sqrt().mean(-1)
    lengths = torch.maximum(lengths, _MIN_LENGTH * lengths.mean() + 1e-12)
    positions = lengths.cumsum(0) / lengths.sum()
    return [0.0, *positions[:-1].tolist(), 1.0]


def _check_options(
    dist: RBM, num_knots: int, num_chains: int, num_updates: int, learning_rate: float
) -> None:
    if not isinstance(dist, RBM):
        raise TypeError(f"dist must be an RBM, got {type(dist).__name__}")
    dist.check_normalizable()
    if not dist.visible.is_discrete and not dist.hidden.is_discrete:
        names = f"{type(dist.visible).__name__}-{type(dist.hidden).__name__}"
        raise ValueError(
            f"moments of a {names} machine do not determine it: one layer must be discrete"
        )
    counts = {"num_knots": num_knots, "num_chains": num_chains, "num_updates": num_updates}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not learning_rate > 0.0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")
