# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Annealed importance sampling as a Pyro kernel whose draws are weighted particles."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.distributions import DBM, RBM, GibbsSweep
from pyro_ebm.distributions.units import Unit
from pyro_ebm.infer.log_partition.deep_side import as_side
from pyro_ebm.infer.log_partition.estimate import LogPartitionEstimate
from pyro_ebm.infer.log_partition.transitions import (
    MakeKernel,
    check_kernel,
    check_path,
    kernel_transition,
)
from pyro_ebm.infer.mcmc.kernel import MachineKernel
from pyro_ebm.infer.paths import GeometricPath, Path, base_unit, inverse_temperatures
from pyro_ebm.ops.linear import chain_axes

__all__ = ["AIS", "WeightedMean"]

#: Chains of the pilot run of an adaptive schedule.
_PILOT_CHAINS = 100


class WeightedMean(NamedTuple):
    """A self-normalised expectation.

    :param Tensor mean: the estimate.
    :param Tensor std_error: its standard error (delta method).
    """

    mean: Tensor
    std_error: Tensor


class AIS(MachineKernel):
    r"""Annealed importance sampling: every draw is an independent particle with a weight.

    A draw anneals a new state from the base to the machine and records the logarithm of its importance
    weight as ``"log_weight"``, a single-chain estimate of log Z. It **does not depend on the state
    before**, so that no warm-up is needed and draws are not correlated. The states alone are **not**
    samples of the machine: expectations need the weights. After a run

    * :meth:`estimate` is the log Z that the weights give, with its error and flags;
    * :meth:`expectation` is the mean of a function, :math:`\sum_i w_i f(v_i) / \sum_i w_i`;
    * :meth:`resample` draws states in proportion to their weights, for whatever knows no weights.

    It has no place where a kernel must leave its target invariant, such as in
    :class:`~pyro_ebm.infer.Gibbs` or in the negative phase of a loss.

    **References**

    [1] *Annealed importance sampling*, Radford Neal (2001)

    :param target: an RBM or a DBM with any batch shape, or a Pyro model with one latent site, as for
        :class:`~pyro_ebm.infer.BlockGibbs`; log Z is then that of the posterior :attr:`target`.
    :param int num_temperatures: steps of every annealing run.
    :param base: the visible layer at the start, as for
        :func:`~pyro_ebm.infer.estimate_log_partition`.
    :param schedule: as for :func:`~pyro_ebm.infer.estimate_log_partition`.
    :param kernel: makes the kernel that moves particles at a temperature, such as
        ``lambda dist: GibbsLangevin(dist, -0.5)``; a block Gibbs sweep if None.
    :param Path path: the path to the machine in the place of the geometric one from ``base``.
    :param torch.Generator generator: the source of random bits; the path's or the global one if None.
    :raises ValueError: for impossible options.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import AIS, VectorizedMCMC, exact_log_partition
    >>> rbm = BernoulliRBM(torch.ones(3, 2), torch.zeros(3), torch.zeros(2))
    >>> kernel = AIS(rbm, num_temperatures=100)
    >>> mcmc = VectorizedMCMC(kernel, num_samples=2, num_chains=500, disable_progbar=True)
    >>> mcmc.run()
    >>> estimate = kernel.estimate(mcmc)
    >>> bool((estimate.value - exact_log_partition(rbm)).abs() < 5 * estimate.std_error)
    True
    >>> kernel.expectation(mcmc, lambda v: v.sum(-1)).mean.shape
    torch.Size([])
    """

    def __init__(
        self,
        target: RBM | DBM | Callable[..., Any],
        num_temperatures: int = 1000,
        *,
        base: Unit | Tensor | str | None = None,
        schedule: str | Tensor = "linear",
        kernel: MakeKernel | None = None,
        path: Path | None = None,
        generator: Generator | None = None,
    ) -> None:
        if num_temperatures < 1:
            raise ValueError(f"num_temperatures must be at least 1, got {num_temperatures}")
        if path is not None and base is not None:
            raise ValueError("give base or path, not both: the path has its own base")
        if isinstance(target, DBM) and isinstance(base, Tensor):
            base = as_side(target, base).base  # the visible layer is not all of the even ones
        self.num_temperatures = num_temperatures
        self.base, self.schedule, self.kernel, self.path = base, schedule, kernel, path
        super().__init__(target, generator=generator)

    def _check_target(self, target: RBM) -> None:
        """The options must go with the machine."""
        path = self._make_path(target)
        if self.kernel is not None:
            check_kernel(self.kernel, path)
        if self.schedule != "adaptive":  # which takes a pilot run
            inverse_temperatures(self.schedule, self.num_temperatures, path, 1)

    def _make_path(self, target: RBM) -> Path:
        if self.path is None:
            return GeometricPath(target, base_unit(target, self.base), self.generator)
        check_path(self.path, target)
        return self.path if self.generator is None else self.path.with_generator(self.generator)

    def _prepare(self) -> None:
        self._path = self._make_path(self.target)
        self._betas = inverse_temperatures(
            self.schedule, self.num_temperatures, self._path, _PILOT_CHAINS
        )
        self._transition_of_path = (
            None if self.kernel is None else kernel_transition(self.kernel, self._path.generator)
        )
        self._sweep = GibbsSweep(self.target, self.generator)

    def refresh(self) -> None:
        raise ValueError("AIS does not leave its machine invariant and cannot be a part of Gibbs")

    def _num_particles(self) -> int:
        """Particles for every setting of the parameters: an expanded batch is more of them."""
        batch = math.prod(self.target.batch_shape) // math.prod(self.target.parameter_batch_shape)
        return math.prod(self.chain_shape) * batch

    def _arrange(self, x: Tensor, event: tuple[int, ...] = ()) -> Tensor:
        """From ``(particles,) + parameter batch`` to ``chain_shape + batch_shape``."""
        full = self.chain_shape + self.target.batch_shape
        parameter, chain = chain_axes((1, *full), (1, *self.target.parameter_batch_shape))
        order = [i - 1 for i in chain + parameter if i > 0]
        x = x.reshape(Size((*(full[i] for i in order), *event)))
        back = sorted(range(len(order)), key=order.__getitem__)
        return x.permute((*back, *range(len(order), x.dim())))

    def _start(self) -> Tensor:
        return self._arrange(
            self._path.sample_base(self._num_particles()), tuple(self.target.event_shape)
        )

    def _transition(self, v: Tensor) -> tuple[Tensor, Tensor]:
        path = self._path
        start = path.sample_base(self._num_particles())
        end, log_ratio = path.anneal(start, self._betas, transition=self._transition_of_path)
        self._record("log_weight", self._arrange(path.log_partition_base + log_ratio))
        states = self._arrange(end, tuple(self.target.event_shape))
        return states, self._sweep.free_energy(states, self._sweep.hidden_theta(states))

    # --- after a run --------------------------------------------------------------------------

    def estimate(self, mcmc: Any) -> LogPartitionEstimate:
        """Log Z from the weights of all draws of a run.

        :param mcmc: the :class:`pyro.infer.MCMC` or :class:`~pyro_ebm.infer.VectorizedMCMC` that ran
            this kernel.
        """
        log_weights = _log_weights(mcmc)
        schedule, base = self.schedule, self.base
        settings: dict[str, Any] = {
            "method": "ais",
            "num_chains": len(log_weights),
            "num_temperatures": (
                schedule.numel() - 1 if isinstance(schedule, Tensor) else self.num_temperatures
            ),
            "schedule": schedule if isinstance(schedule, str) else "given",
            "base": "data means" if isinstance(base, Tensor | Unit) else base or "visible biases",
            "seed": None,
        }
        if self.path is not None:
            settings["base"] = f"start of a {type(self.path).__name__}"
        if self.kernel is not None and self._target is not None:
            settings["kernel"] = type(self.kernel(self.target.compact())).__name__
        return LogPartitionEstimate.from_log_weights(log_weights, settings)

    def expectation(
        self, mcmc: Any, function: Callable[[Tensor], Tensor] | None = None
    ) -> WeightedMean:
        r"""Expectation of a function under the machine, by self-normalised importance sampling.

        :param mcmc: the run.
        :param function: maps states, shape ``(draws,) + batch_shape + (V,)``, to values, shape
            ``(draws,) + batch_shape + (...)``; the states themselves if None.
        """
        states = self._states(mcmc)
        values = states if function is None else function(states)
        share = torch.softmax(_log_weights(mcmc), 0)
        if values.shape[: share.dim()] != share.shape:
            raise ValueError(
                f"function must return values of shape {tuple(share.shape)} + (...), got "
                f"{tuple(values.shape)}"
            )
        share = share.reshape(*share.shape, *(1,) * (values.dim() - share.dim()))
        values = values.double()
        mean = (share * values).sum(0)
        return WeightedMean(mean, (share * (values - mean)).square().sum(0).sqrt())

    def resample(
        self, mcmc: Any, num_samples: int, *, generator: Generator | None = None
    ) -> Tensor:
        """States drawn in proportion to their weights, with replacement, every element of a batch by
        itself: samples of the machine as the number of draws goes to infinity.

        :param mcmc: the run.
        :param int num_samples: samples.
        :param torch.Generator generator: the source of random bits; the global one if None.
        :returns: shape ``(num_samples,) + batch_shape + (V,)``.
        """
        states, log_weights = self._states(mcmc), _log_weights(mcmc)
        share = torch.softmax(log_weights, 0).reshape(len(log_weights), -1)
        index = torch.multinomial(share.T, num_samples, replacement=True, generator=generator)
        index = index.T.reshape(num_samples, *log_weights.shape[1:], 1)
        return states.gather(0, index.expand(*index.shape[:-1], states.shape[-1]))

    def _states(self, mcmc: Any) -> Tensor:
        states: Tensor = mcmc.get_samples(group_by_chain=True)[self.site]
        return states.flatten(0, 1)


def _log_weights(mcmc: Any) -> Tensor:
    """Log-weights of all draws, shape ``(chains * draws,) + batch_shape``."""
    if hasattr(mcmc, "sample_stats"):
        recorded = mcmc.sample_stats.get("log_weight")
    else:
        # MCMC.diagnostics() would also compute Pyro's n_eff, in memory quadratic in the draws.
        chains: list[Any] = getattr(mcmc, "_diagnostics", None) or []
        found = [chain["log_weight"] for chain in chains if chain and "log_weight" in chain]
        recorded = torch.stack(found) if found else None
    if recorded is None:
        raise ValueError("mcmc has no log-weights: it did not run an AIS kernel")
    weights: Tensor = recorded
    return weights.flatten(0, 1)
