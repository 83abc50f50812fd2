# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""An energy-based site as an improper site and a factor, for Hamiltonian Monte Carlo."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam.reparam import Reparam
from torch import Size, Tensor
from torch.distributions import constraints, transform_to

from pyro_ebm.distributions import RBM, EnergyBased, UnnormalizedGradientError
from pyro_ebm.distributions.concrete import RelaxedBernoulli
from pyro_ebm.distributions.wrapped import replace_machine, wrapped_machine
from pyro_ebm.infer.programs.bounds import hull_of, is_inside, is_inside_hull, is_same

__all__ = ["FactorReparam", "FactorReparamWarning"]

#: Half the width of where unconstrained starts are drawn, as Pyro's ``init_to_uniform`` has it.
_START_RADIUS = 2.0


class FactorReparamWarning(UserWarning):
    """An attached log Z was dropped, since it is not that of the machine on another support."""


class FactorReparam(Reparam):
    r"""Replaces an RBM site by an improper site over a support of your choice and the factor
    :math:`e^{-F(v)}`, so that :class:`pyro.infer.HMC` and :class:`pyro.infer.NUTS` can run.

    .. code-block:: python

        model = poutine.reparam(model, config={"v": FactorReparam(support=constraints.positive)})

    The latent site is then ``"<site>_improper"``; the site itself has the same value, no law of its own, and
    the log-density :math:`-F(v)`, less log Z where that is known. Three uses:

    * **The machine's own support** (None): nothing changes but the names, and an attached log Z is kept.
    * **A part of it.** A Gaussian machine on an ``interval`` is one of *truncated* Gaussian units; on
      ``positive`` it is one of :class:`~pyro_ebm.distributions.units.ReLU` units, which block Gibbs samples.
    * **A relaxation.** Bits on ``unit_interval``, spins on ``interval(-1, 1)``. :math:`F` is defined there,
      but this is **another model**: its density has not the bits as its limit, and its means are not
      theirs. Use it where a continuous machine is what you want, or to look for a start. The support must
      lie between the states: beyond them the density has no integral. The log Z that
      :func:`~pyro_ebm.distributions.relaxed` machines keep is that of bits, hence of another support.

    **Log Z** on another support is another number. An attached one is dropped, with a
    :class:`FactorReparamWarning`: the posterior of the site does not need it, as long as the machine's
    parameters are no latent variables and depend on none. If they do, HMC is refused with an
    :class:`~pyro_ebm.distributions.UnnormalizedGradientError`; give ``log_partition``.

    **Starts.** Pyro initialises a reparametrised site by the support that it had. For discrete units, where
    HMC's default fails, say ``NUTS(model, init_strategy=init_to_sample)``; the start is then random in the
    new support. Drawing from the improper site otherwise gives a start too, in ``Predictive`` an error.

    :param support: support of the units, event dimension 0 or 1; the machine's own if None.
    :param log_partition: a function of the compact machine that gives its log Z **on this support**,
        differentiable if its parameters are latent.
    :raises TypeError: if an argument is of another type; at a site that is no RBM. Of a DBM, sample
        :meth:`~pyro_ebm.distributions.DBM.bipartite`, which has a closed density.
    :raises ValueError: if ``support`` is discrete; at a site that is observed, or whose real units are not
        defined on all of ``support``, or whose discrete units have their states on one side of a part of it.

    >>> import pyro, torch
    >>> from pyro import poutine
    >>> from pyro.infer import MCMC, NUTS
    >>> from torch.distributions import constraints
    >>> from pyro_ebm.distributions import GaussianBernoulliRBM
    >>> from pyro_ebm.infer import FactorReparam
    >>> rbm = GaussianBernoulliRBM(torch.ones(3, 2), torch.zeros(3), torch.ones(3), torch.zeros(2))
    >>> def model():
    ...     return pyro.sample("v", rbm)
    >>> positive = poutine.reparam(model, config={"v": FactorReparam(support=constraints.positive)})
    >>> mcmc = MCMC(NUTS(positive), num_samples=5, warmup_steps=5, disable_progbar=True)
    >>> mcmc.run()
    >>> bool((mcmc.get_samples()["v_improper"] > 0).all())
    True
    """

    def __init__(
        self,
        support: constraints.Constraint | None = None,
        *,
        log_partition: Callable[[RBM], Any] | None = None,
    ) -> None:
        if support is not None and not isinstance(support, constraints.Constraint):
            raise TypeError(f"support must be a constraint, got {support!r}")
        if support is not None and (support.is_discrete or support.event_dim > 1):
            raise ValueError(
                f"support must be continuous and of event dimension 0 or 1, got {support!r} of event "
                f"dimension {support.event_dim}"
            )
        if log_partition is not None and not callable(log_partition):
            raise TypeError(
                f"log_partition must be a function of the machine, got {type(log_partition).__name__}"
            )
        self.support = support
        self.log_partition = log_partition
        self._warned: set[str] = set()
        # By site: comparing bounds on another device waits for it, and supports stay from run to run.
        self._checked: set[str] = set()
        self._same: dict[str, bool] = {}

    def apply(self, msg: Any) -> Any:
        name, fn = msg["name"], msg["fn"]
        machine = self._check(name, fn, msg["is_observed"])
        support = _own_support(machine) if self.support is None else self.support
        support = _whole_event(support, fn.event_dim)
        start = msg["value"]
        if start is not None and self._is_unfit(machine, support, start):
            start = _random_start(support, start.shape, machine.weight)
        value: Tensor = pyro.sample(
            f"{name}_improper",
            _Improper(support, fn.batch_shape, fn.event_shape, machine.weight.detach()),
            obs=start,
            infer={"is_observed": False},
        )
        if poutine.get_mask() is False:
            log_density: Any = 0.0
        else:
            factor = replace_machine(fn, lambda m, _: self._factor(name, m), site=name)
            log_density = factor.log_prob(value)
        new_fn = dist.Delta(value, log_density=log_density, event_dim=fn.event_dim)
        return {"fn": new_fn, "value": value, "is_observed": True}

    def _check(self, name: str, fn: Any, is_observed: bool) -> RBM:
        machine = wrapped_machine(fn)
        if not isinstance(machine, RBM):
            kind = type(fn if machine is None else machine).__name__
            raise TypeError(f"site {name!r}: FactorReparam needs an RBM, got a {kind}")
        if is_observed:
            raise ValueError(
                f"site {name!r} is observed, so there is nothing that HMC could sample"
            )
        if name in self._checked:
            return machine
        own = _own_support(machine)
        if self.support is None and own.is_discrete:
            raise ValueError(
                f"site {name!r} has discrete units; HMC needs a support to relax them to, such as "
                "unit_interval"
            )
        if self.support is not None and not own.is_discrete and not is_inside(self.support, own):
            raise ValueError(
                f"site {name!r}: its units are defined on {own} only, not on {self.support}"
            )
        if self.support is not None and own.is_discrete and not is_inside_hull(self.support, own):
            raise ValueError(
                f"site {name!r}: discrete units need a support between their states, from and to "
                f"{hull_of(own)}, beyond which the density has no integral; got {self.support}"
            )
        self._checked.add(name)
        return machine

    @staticmethod
    def _is_unfit(machine: RBM, support: constraints.Constraint, start: Tensor) -> bool:
        """Whether a start drawn from the old support is outside of the new one, or (a state of discrete
        units) on its bound, which the transform of HMC puts at infinity."""
        if isinstance(machine.visible, RelaxedBernoulli):
            return bool(((start <= 0) | (start >= 1)).any())
        if machine.support.is_discrete and bool(machine.support.check(start).all()):
            return True
        return not bool(support.check(start).all())

    def _has_log_partition_of(self, machine: RBM) -> bool:
        """Whether the machine's own log Z is that on the support; of relaxed units it is that of bits."""
        if isinstance(machine.visible, RelaxedBernoulli):
            return False
        return self.support is None or is_same(self.support, machine.support)

    def _factor(self, name: str, machine: EnergyBased) -> EnergyBased:
        """The machine as a factor at values of the new support."""
        assert isinstance(machine, RBM)
        if name not in self._same:
            self._same[name] = self._has_log_partition_of(machine)
        factor = copy.copy(machine)
        # Its own support is not that of the values.
        factor._validate_args = False
        if self.log_partition is not None:
            return factor.normalize(self.log_partition(machine.compact()))
        if self._same[name]:
            return factor
        support = _own_support(machine) if self.support is None else self.support
        if torch.is_grad_enabled() and any(p.requires_grad for p in machine.parameters()):
            raise UnnormalizedGradientError(
                f"site {name!r}: parameters of the machine require a gradient, but its log Z on "
                f"{support} is not known; give FactorReparam(..., log_partition=a function of it)"
            )
        if machine.log_partition is not None and name not in self._warned:
            self._warned.add(name)
            warnings.warn(
                f"site {name!r}: the attached log Z is dropped, as it is not that of the machine on "
                f"{support}",
                FactorReparamWarning,
                stacklevel=2,
            )
        return factor.normalize(None)


class _Improper(dist.ImproperUniform):
    """An improper site that has starts, so that Pyro can run a program to look at its structure.

    :param Tensor like: of the dtype and on the device of its values.
    """

    def __init__(
        self, support: constraints.Constraint, batch_shape: Size, event_shape: Size, like: Tensor
    ) -> None:
        super().__init__(support, batch_shape, event_shape)
        self._like = like

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_Improper":
        return _Improper(self.support, Size(batch_shape), self.event_shape, self._like)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        if poutine.get_mask() is False:
            raise NotImplementedError(
                "a site over an improper law has no forward samples; give Predictive its posterior samples"
            )
        return _random_start(self.support, self.shape(Size(sample_shape)), self._like)


def _own_support(machine: RBM) -> constraints.Constraint:
    """The machine's own support, that of relaxed units as one that HMC takes."""
    if isinstance(machine.visible, RelaxedBernoulli):
        return constraints.independent(constraints.unit_interval, 1)
    return machine.support


def _whole_event(support: constraints.Constraint, event_dim: int) -> constraints.Constraint:
    """The support of the event from that of its entries."""
    missing = event_dim - support.event_dim
    return constraints.independent(support, missing) if missing else support


def _random_start(support: constraints.Constraint, shape: Size, like: Tensor) -> Tensor:
    transform = transform_to(support)
    unconstrained = like.new_empty(transform.inverse_shape(shape))
    value: Tensor = transform(unconstrained.uniform_(-_START_RADIUS, _START_RADIUS))
    return value
