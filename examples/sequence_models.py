# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Models of sequences for ``sequence_machines.py``: regimes, each a law of a frame given its history.

A regime is a conditional restricted Boltzmann machine or a vector autoregression. A sequence has one regime
for ever (a mixture), or a hidden Markov chain chooses the regime of every frame (switching). Both programs
take any regimes.
"""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from sequence_data import history_and_frames
from sequence_start import Autoregressions, weighted
from torch import Tensor
from torch.nn import Parameter

from pyro_ebm import nn
from pyro_ebm.distributions import RBM, reduced_machine
from pyro_ebm.distributions.units import Unit
from pyro_ebm.infer import exact_log_partition

__all__ = [
    "ConditionalMachines",
    "Constant",
    "LinearRegimes",
    "Regimes",
    "expectation_maximization",
    "expected_counts",
    "log_likelihood",
    "mixture_model",
    "regime_posterior",
    "stacked",
    "switching_model",
]

#: How far a hidden spin moves a frame at first, in standard deviations of the noise.
_MOVED = 0.3


class Regimes(PyroModule):
    """K laws of a frame given its history, and the parameters of what chooses among them.

    :param int order: frames of a history.
    :param int num_regimes: K.
    """

    def __init__(self, order: int, num_regimes: int) -> None:
        super().__init__()
        self.order, self.num_regimes = order, num_regimes
        self.initial_logits = Parameter(torch.zeros(num_regimes))
        # Regimes last: 20 frames, to start with.
        self.transition_logits = Parameter(torch.eye(num_regimes) * 3.0)

    def emission(self, history: Tensor) -> Any:
        """Normalised laws of frames, batch shape ``history.shape[:-1] + (K,)``.

        :param Tensor history: shape ``(..., order * channels)``.
        """
        raise NotImplementedError

    def one(self, emission: Any, regime: Tensor) -> Any:
        """The law of one regime each.

        :param emission: of :meth:`emission`, batch shape ``(..., K)``.
        :param Tensor regime: whole numbers, of a shape that broadcasts with ``(...)``.
        """
        raise NotImplementedError


class LinearRegimes(Regimes):
    """Vector autoregressions with a full covariance of the noise each.

    :param Autoregressions start: their first values.
    """

    def __init__(self, start: Autoregressions) -> None:
        super().__init__(start.order, start.num_regimes)
        self.weight = Parameter(start.weight.clone())
        self.bias = Parameter(start.bias.clone())
        root = torch.linalg.cholesky(start.covariance)
        self.log_scale = Parameter(root.diagonal(dim1=-2, dim2=-1).log())
        self.lower = Parameter(root.tril(-1))

    @torch.no_grad()
    def autoregressions(self) -> Autoregressions:
        """The values that the parameters have now."""
        root = self.lower.tril(-1) + self.log_scale.exp().diag_embed()
        return Autoregressions(self.weight.clone(), self.bias.clone(), root @ root.mT)

    def emission(self, history: Tensor) -> dist.MultivariateNormal:
        loc = torch.einsum("kvf,...f->...kv", self.weight, history) + self.bias
        root = self.lower.tril(-1) + self.log_scale.exp().diag_embed()
        return dist.MultivariateNormal(loc, scale_tril=root, validate_args=False)

    def one(self, emission: dist.MultivariateNormal, regime: Tensor) -> dist.MultivariateNormal:
        loc, root = _pick(emission.loc, regime, 1), _pick(emission.scale_tril, regime, 2)
        return dist.MultivariateNormal(loc, scale_tril=root, validate_args=False)


class ConditionalMachines(Regimes):
    """Conditional restricted Boltzmann machines of real frames: means and hidden biases are affine in the
    history, the weight and the covariance of the noise are not functions of it.

    At first each has the mean and the covariance of its autoregression (the latter to a per cent where there
    are more spins than channels): what spins move is taken from the noise. It is not normal, as it could not
    leave a weight of zero, but nearly so.

    :param LinearRegimes linear: regimes to start at.
    :param int num_hidden: hidden spins of every machine, at most 12 or so: log Z is a sum over their states.
    :param int seed: seed of the other parameters.
    """

    def __init__(self, linear: LinearRegimes, num_hidden: int, seed: int = 0) -> None:
        start = linear.autoregressions()
        super().__init__(start.order, start.num_regimes)
        channels = start.bias.shape[-1]
        self.machines = PyroModule[torch.nn.ModuleList](
            nn.ConditionalRBM(
                start.order * channels,
                channels,
                num_hidden,
                visible="low-rank-gaussian",
                # Spins and not bits: without biases they add to the noise, and not to the mean.
                hidden="ising",
                # Bounds so far away that they do not touch the noise at the start.
                visible_options={
                    "rank": channels - 1,
                    "min_precision": 1e-12,
                    "max_precision": 1e12,
                },
                networks=_constants(start.covariance[k], num_hidden, seed * start.num_regimes + k),
                seed=seed * start.num_regimes + k,
            )
            for k in range(start.num_regimes)
        )
        with torch.no_grad():
            self.initial_logits.copy_(linear.initial_logits)
            self.transition_logits.copy_(linear.transition_logits)
            for k, machine in enumerate(self.machines):
                machine.loc.weight.copy_(start.weight[k])
                machine.loc.bias.copy_(start.bias[k])
                machine.hidden_bias.weight.zero_()
                machine.hidden_bias.bias.zero_()

    def emission(self, history: Tensor) -> RBM:
        machine = stacked([m.condition(history, validate_args=False) for m in self.machines])
        # The Gaussian layer in closed form, the hidden one state by state.
        return machine.normalize(exact_log_partition(reduced_machine(machine)))

    def one(self, emission: RBM, regime: Tensor) -> RBM:
        def chosen(unit: Unit) -> Unit:
            own = {
                name: _pick(value, regime, unit.parameter_event_dim(name))
                for name, value in unit.parameters.items()
            }
            return unit.replace(**own)

        assert emission.log_partition is not None
        return RBM(
            chosen(emission.visible),
            chosen(emission.hidden),
            _pick(emission.weight, regime, 2),
            visible_offset=_pick(emission.visible_offset, regime, 1),
            log_partition=_pick(emission.log_partition, regime, 0),
            validate_args=False,
        )


class Constant(PyroModule):
    """A network that does not look at its input.

    :param Tensor value: what it gives at first, shape ``(n,)`` or ``(n, m)``.
    :param Tensor basis: an invertible matrix, shape ``(n, n)``; the parameter is in its coordinates, in which
        steps of an optimiser suit the data. None for the identity.
    :param bool flat: whether it gives the rows of a matrix one after the other.
    """

    def __init__(self, value: Tensor, basis: Tensor | None = None, flat: bool = False) -> None:
        super().__init__()
        self.flat = flat
        basis = torch.eye(len(value)).to(value) if basis is None else basis
        self.register_buffer("basis", basis)
        self.value = Parameter(torch.linalg.solve(basis, value).contiguous())

    def forward(self, features: Tensor) -> Tensor:
        result = self.basis @ self.value
        return result.flatten() if self.flat else result


def _constants(covariance: Tensor, num_hidden: int, seed: int) -> dict[str, torch.nn.Module]:
    """Noise and a weight that have a given covariance together: spins move a frame along random directions,
    which are orthogonal and of equal length where the noise is white."""
    size, root = len(covariance), torch.linalg.cholesky(covariance)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size, num_hidden, generator=generator).to(root)
    left, _, right = torch.linalg.svd(drawn, full_matrices=False)
    directions = left @ right
    moved = _MOVED * root @ directions
    values, vectors = torch.linalg.eigh(covariance - moved @ moved.mT)
    factor = vectors[:, 1:] * (values[1:] - values[0]).sqrt()
    # A state h moves the mean by the covariance of the noise times W h / sqrt(size): here by ``moved`` h.
    inverse = torch.linalg.inv(root).mT.contiguous()
    weight = inverse @ directions * (size**0.5 * _MOVED / (1.0 - _MOVED**2))
    return {
        "log_precision": Constant(-values[:1].log().expand(size).clone()),
        "cov_factor": Constant(factor, root, flat=True),
        "weight": Constant(weight, inverse),
    }


def stacked(machines: list[RBM]) -> RBM:
    """Machines of equal families as one, with an axis for them at the end of the batch shape."""

    def join(tensors: list[Tensor], event_dim: int) -> Tensor:
        return torch.stack(torch.broadcast_tensors(*tensors), -1 - event_dim)

    def layer(units: list[Unit]) -> Unit:
        first = units[0]
        return first.replace(
            **{
                name: join([u.parameters[name] for u in units], first.parameter_event_dim(name))
                for name in first.parameters
            }
        )

    return RBM(
        layer([m.visible for m in machines]),
        layer([m.hidden for m in machines]),
        join([m.weight for m in machines], 2),
        visible_offset=join([m.visible_offset for m in machines], 1),
        validate_args=False,
    )


def _pick(tensor: Tensor, regime: Tensor, event_dim: int) -> Tensor:
    """Entries of the axis of the regimes, the last one in front of ``event_dim`` others.

    A product with indicators: the gradient of an index would be a slow scatter.
    """
    axis, num_regimes = -1 - event_dim, tensor.shape[-1 - event_dim]
    chosen = torch.nn.functional.one_hot(regime.long(), num_regimes).to(tensor)
    return (chosen.reshape(*chosen.shape, *(1,) * event_dim) * tensor).sum(axis)


# --- the programs -----------------------------------------------------------------------------------


@pyro.infer.config_enumerate
def mixture_model(regimes: Regimes, sequences: Tensor) -> None:
    """Every sequence has a regime for ever. Train with ``TraceEnum_ELBO(max_plate_nesting=2)``."""
    pyro.module("regimes", regimes)
    history, frames = history_and_frames(sequences, regimes.order)
    emission = regimes.emission(history)
    with pyro.plate("sequences", len(frames), dim=-2):
        z = pyro.sample("z", dist.Categorical(logits=regimes.initial_logits))
        with pyro.plate("frames", frames.shape[1], dim=-1):
            pyro.sample("y", regimes.one(emission, z), obs=frames)


def switching_model(regimes: Regimes, sequences: Tensor) -> None:
    """A Markov chain chooses the regime of every frame; the sum over its paths is part of the likelihood."""
    pyro.module("regimes", regimes)
    history, frames = history_and_frames(sequences, regimes.order)
    chain = dist.DiscreteHMM(
        regimes.initial_logits, regimes.transition_logits, regimes.emission(history)
    )
    with pyro.plate("sequences", len(frames)):
        pyro.sample("y", chain, obs=frames)


# --- what they say about sequences ------------------------------------------------------------------


def _log_evidence(
    regimes: Regimes,
    history: Tensor,
    frames: Tensor,
    switching: bool,
    bumps: Sequence[Tensor | float] = (0.0, 0.0, 0.0),
) -> Tensor:
    """Log-likelihood by sequence.

    :param bumps: added to every regime's log-density of every frame, to the log-probabilities of the first
        regime, and to those of transitions; for derivatives.
    """
    log_prob = regimes.emission(history).log_prob(frames.unsqueeze(-2)) + bumps[0]
    initial = regimes.initial_logits.log_softmax(-1) + bumps[1]
    if not switching:
        return torch.logsumexp(initial + log_prob.sum(-2), -1)
    transition = regimes.transition_logits.log_softmax(-1) + bumps[2]
    # A step of the chain comes before the first frame, as in Pyro's DiscreteHMM.
    forward = initial
    for step in log_prob.unbind(-2):
        forward = torch.logsumexp(forward.unsqueeze(-1) + transition, -2) + step
    return torch.logsumexp(forward, -1)


@torch.no_grad()
def log_likelihood(regimes: Regimes, sequences: Tensor, switching: bool) -> Tensor:
    """log p(frames | first history), summed over regimes, by sequence: shape ``(sequences,)``."""
    return _log_evidence(regimes, *history_and_frames(sequences, regimes.order), switching)


def expected_counts(
    regimes: Regimes, sequences: Tensor, switching: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What the sequences say about their regimes: the statistics of the EM algorithm.

    The derivative of the log-likelihood by a log-probability is the expected number of its uses: automatic
    differentiation is the backward pass of the forward-backward algorithm.

    :returns: p(regime of a frame | sequence), shape ``(sequences, frames - order, K)``; sums over sequences
        of the probabilities of first regimes, ``(K,)``, and of transitions, ``(K, K)``.
    """
    history, frames = history_and_frames(sequences, regimes.order)
    size = regimes.num_regimes
    shapes = ((*frames.shape[:-1], size), (size,), (size, size))
    bumps = [frames.new_zeros(shape, requires_grad=True) for shape in shapes]
    trainable = [p for p in regimes.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        value = _log_evidence(regimes, history, frames, switching, bumps).sum()
        found = torch.autograd.grad(value, bumps, materialize_grads=True)
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
    return found[0], found[1], found[2]


def regime_posterior(regimes: Regimes, sequences: Tensor, switching: bool) -> Tensor:
    """p(regime of a frame | sequence), shape ``(sequences, frames - order, K)``."""
    return expected_counts(regimes, sequences, switching)[0]


def expectation_maximization(
    start: Autoregressions, sequences: Tensor, switching: bool, rounds: int
) -> LinearRegimes:
    """Maximum likelihood of a mixture or a chain of autoregressions; every round is in closed form."""
    history, frames = history_and_frames(sequences, start.order)
    regimes = LinearRegimes(start)
    for _ in range(rounds):
        shares, first, steps = expected_counts(regimes, sequences, switching)
        regimes = LinearRegimes(
            weighted(history.flatten(0, 1), frames.flatten(0, 1), shares.flatten(0, 1))
        )
        with torch.no_grad():
            # A count of 0.1 more: a transition that was not seen is not impossible.
            regimes.initial_logits.copy_((first + 0.1).log())
            if switching:
                regimes.transition_logits.copy_((steps + 0.1).log())
    return regimes
