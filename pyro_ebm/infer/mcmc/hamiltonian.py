# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Hamiltonian Monte Carlo on the free energy, by Pyro's own kernels."""

import pyro
from torch import Size, Tensor

from pyro_ebm.distributions import RBM

__all__ = ["FreeEnergyModel", "free_energy_model"]


class FreeEnergyModel:
    """A Pyro model of one latent site, the visible layer of a machine; see :func:`free_energy_model`.

    :param RBM machine: the machine, without gradients of its parameters.
    :param str site: name of the site.
    """

    def __init__(self, machine: RBM, site: str) -> None:
        self.machine = machine
        self.site = site

    def __call__(self) -> Tensor:
        fn = self.machine.to_event(len(self.machine.batch_shape))
        value: Tensor = pyro.sample(self.site, fn)
        return value


def free_energy_model(dist: RBM, site: str = "v", *, joint: bool = False) -> FreeEnergyModel:
    r"""A machine with continuous visible units as a model for Pyro's HMC and NUTS.

    The potential energy is the free energy F(v): the hidden units are summed out, whatever their family.
    Gaussian units are sampled as they are; rectified units :math:`v \ge 0` through Pyro's transform of the
    support, :math:`v = e^z`, whose Jacobian Pyro takes into account. Give a single machine; draws have the
    shape of its event. The model can be pickled, so chains may run in parallel processes.

    Pyro starts chains near zero (of z). If the visible units are far from that, in units of their
    deviations, pass ``init_strategy=pyro.infer.autoguide.initialization.init_to_sample`` to the kernel;
    the start is then a draw from :meth:`RBM.sample`.

    **When to use it.** With visible units strongly coupled through the hidden ones, where block Gibbs walks
    at random; a trajectory takes many gradients, of two products each. Neither crosses between distant
    modes. For thousands of chains in one tensor see :class:`~pyro_ebm.infer.MALA` and
    :class:`~pyro_ebm.infer.BlockGibbs`.

    :param RBM dist: the machine. Its parameters are detached, and an attached log Z is dropped: it moves
        the potential energy by a constant.
    :param str site: name of the site.
    :param bool joint: whether to take a batch of machines as one state. Then a trajectory is accepted or
        refused for **all elements of the batch together**, with one step size, and the larger the batch
        the shorter the steps; the draws are right. Without it a batch is refused.
    :raises TypeError: if ``dist`` is no RBM.
    :raises ValueError: if the visible units are discrete, the machine is not normalisable, or it has a
        batch shape and ``joint`` is False.

    **References**

    [1] *MCMC using Hamiltonian dynamics*, Radford Neal (2011)

    [2] *The No-U-Turn Sampler: Adaptively Setting Path Lengths in Hamiltonian Monte Carlo*,
    Matthew Hoffman, Andrew Gelman (2014)

    >>> import torch
    >>> from pyro.infer import MCMC, NUTS
    >>> from pyro_ebm.distributions import GaussianBernoulliRBM
    >>> from pyro_ebm.infer import free_energy_model
    >>> rbm = GaussianBernoulliRBM(torch.ones(3, 2), torch.zeros(3), torch.ones(3), torch.zeros(2))
    >>> mcmc = MCMC(NUTS(free_energy_model(rbm)), 20, 10, disable_progbar=True)
    >>> mcmc.run()
    >>> mcmc.get_samples()["v"].shape
    torch.Size([20, 3])
    """
    if not isinstance(dist, RBM):
        raise TypeError(f"dist must be an RBM distribution, got {type(dist).__name__}")
    if dist.support.is_discrete:
        raise ValueError(
            f"HMC and NUTS need continuous visible units, got {type(dist.visible).__name__}; "
            "use BlockGibbs"
        )
    if dist.batch_shape != Size() and not joint:
        raise ValueError(
            "HMC and NUTS accept or refuse all elements of a batch together; dist has batch shape "
            f"{tuple(dist.batch_shape)}: give one machine, use MALA or BlockGibbs, or say joint=True"
        )
    dist.check_normalizable()
    return FreeEnergyModel(dist.normalize(None).detach(), site)
