# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Marginals of machines with Gaussian visible units, as mixtures over their hidden states."""

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.predictive.mixture import GaussianMixture

__all__ = ["MAX_STATES", "marginal_mixture"]

#: Default number of hidden states up to which :func:`marginal_mixture` enumerates them: 12 bits.
MAX_STATES = 2**12


@torch.no_grad()
def marginal_mixture(
    dist: RBM,
    hidden: Tensor | None = None,
    *,
    num_samples: int = 1000,
    max_states: int = MAX_STATES,
    generator: Generator | None = None,
) -> GaussianMixture:
    r"""Marginal distributions of the visible units of a machine with Gaussian ones,

    .. math:: p(y_i) = \sum_h p(h)\, N\bigl(y_i;\ \mathrm{E}[y_i | h],\ \mathrm{Var}[y_i | h]\bigr).

    The sum is over all hidden states where there are at most ``max_states``, which is exact. Otherwise
    it is over draws of h, each with equal weight. As the noise of y given h is integrated out, means,
    distribution functions and scores have less variance than those of draws of y (Rao-Blackwell). The CRPS of
    such a mixture is its own, not an unbiased estimate of the machine's: it is larger by half of the
    spread of the conditional means over the number of draws, as for any empirical distribution.

    The mixtures hold ``components x batch x V`` numbers, so give many settings in portions.

    **References**

    [1] *Sampling-Based Approaches to Calculating Marginal Densities*, Alan Gelfand, Adrian Smith (1990)

    :param RBM dist: a machine with Gaussian visible units; a batch shape for one machine a setting, such as
        one that a network computes from contexts.
    :param Tensor hidden: draws of the hidden layer, shape ``(draws,) + dist.batch_shape + (H,)``, such as
        those of a long chain; drawn here if None and there are too many states.
    :param int num_samples: draws that are made here, by ``dist.transpose().sample``: by enumeration up to
        :math:`2^{16}` states, else by ``dist.num_gibbs_steps`` sweeps.
    :param int max_states: hidden states that are enumerated at most.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :returns: mixtures of batch shape ``dist.batch_shape + (V,)``.
    :raises TypeError: if ``dist`` is no RBM.
    :raises ValueError: if the visible units are not Gaussian, or hidden states do not fit.

    >>> import torch
    >>> from pyro_ebm.distributions import RBM, units
    >>> visible = units.Gaussian(torch.zeros(1), torch.ones(1))
    >>> rbm = RBM(visible, units.Ising(torch.zeros(1)), torch.tensor([[2.0]]))
    >>> mixture = marginal_mixture(rbm)  # two modes, at -2 and 2
    >>> mixture.mean, mixture.variance
    (tensor([0.]), tensor([5.]))
    """
    if not isinstance(dist, RBM):
        raise TypeError(f"dist must be an RBM, got {type(dist).__name__}")
    if not dist.visible.is_gaussian:
        raise ValueError(
            f"dist must have Gaussian visible units, got {type(dist.visible).__name__}"
        )
    if num_samples < 1 or max_states < 0:
        raise ValueError(
            f"num_samples must be at least 1 and max_states at least 0, "
            f"got {num_samples} and {max_states}"
        )
    num_states = dist.hidden.num_states
    weights = None
    if hidden is not None:
        hidden = _checked(dist, hidden)
    elif num_states is not None and num_states <= max_states:
        hidden, weights = _enumerated(dist, num_states)
    else:
        hidden = dist.transpose().sample((num_samples,), generator=generator)
    means = dist.visible.mean(dist.visible_field(hidden))
    # The covariance of Gaussian units is the same at every hidden state.
    stds = dist.visible.natural_conditional(dist.visible.natural_bias).variance.sqrt()
    shape = (len(hidden), *dist.batch_shape, dist.event_shape[0])
    means = _lifted(means, len(shape)).expand(shape)
    return GaussianMixture(means, stds, None if weights is None else _lifted(weights, len(shape)))


def _lifted(x: Tensor, dim: int) -> Tensor:
    """With axes for what :meth:`RBM.expand` has added, behind that of the components."""
    return x.reshape(len(x), *(1,) * (dim - x.dim()), *x.shape[1:])


def _enumerated(dist: RBM, num_states: int) -> tuple[Tensor, Tensor]:
    """All hidden states and their probabilities, with an axis for the visible units."""
    batch = dist.parameter_batch_shape
    states = dist.hidden.states(0, num_states)
    states = states.reshape(num_states, *(1,) * len(batch), -1)
    log_p = -dist.transpose().free_energy(states)
    return states, torch.softmax(log_p, 0).unsqueeze(-1)


def _checked(dist: RBM, hidden: Tensor) -> Tensor:
    shape = (*dist.batch_shape, dist.hidden.size)
    if hidden.dim() != len(shape) + 1 or len(hidden) < 1 or hidden.shape[1:] != shape:
        raise ValueError(
            f"hidden must have shape (draws >= 1, *{shape}), got {tuple(hidden.shape)}"
        )
    hidden = hidden.to(dist.weight)
    if not bool(dist.hidden.support.check(hidden).all()):
        raise ValueError(f"hidden must be in {dist.hidden.support}, got other values or NaN")
    return hidden
