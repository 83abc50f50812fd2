# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What the kernels for parameters of machines share: a random walk, a Metropolis test, records."""

import warnings
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_sample
from torch import Tensor

from pyro_ebm.infer.bayesian.auxiliary import has_exact_draws
from pyro_ebm.infer.bayesian.program_density import Point, ProgramDensity
from pyro_ebm.infer.bayesian.random_walk import RandomWalk
from pyro_ebm.infer.mcmc.kernel import VectorizedKernel

__all__ = ["ApproximateAuxiliaryWarning", "ParameterKernel"]


class ApproximateAuxiliaryWarning(UserWarning):
    """Auxiliary rows are not exact draws, so that the posterior that is sampled is an approximation."""


class ParameterKernel(VectorizedKernel):
    """Metropolis-Hastings over the continuous latent sites of a program with machines of unknown log Z.

    A subclass says what a Metropolis test compares with, in :meth:`_log_ratio`. The state is in the sites'
    own space, so that there are no transforms; proposals are made in unconstrained space, which is a detail
    of the kernel. Those at which the density is not finite, or a machine has no finite Z, are rejected.

    :param model: the Pyro model.
    :param int num_steps: transitions a draw.
    :param int num_sweeps: block Gibbs sweeps of auxiliary rows where they cannot be drawn exactly.
    :param float target_accept_prob: mean acceptance probability that the warm-up tunes the scale to.
    :param float init_scale: scale of the random walk at the start.
    :param bool adapt_covariance: whether the warm-up learns the covariance of the random walk as well.
    :param init_strategy: where a chain starts, as for :class:`pyro.infer.NUTS`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        num_bridges: int,
        num_steps: int,
        num_sweeps: int,
        target_accept_prob: float,
        init_scale: float,
        adapt_covariance: bool,
        init_strategy: Callable[[Any], Tensor] | None,
    ) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"model must be a Pyro model, got {type(model).__name__}")
        if num_bridges < 0:
            raise ValueError(f"num_bridges must be at least 0, got {num_bridges}")
        for name, number in (("num_steps", num_steps), ("num_sweeps", num_sweeps)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not 0.0 < target_accept_prob < 1.0:
            raise ValueError(f"target_accept_prob must be in (0, 1), got {target_accept_prob}")
        if not init_scale > 0.0:
            raise ValueError(f"init_scale must be positive, got {init_scale}")
        self.model = model
        self.num_bridges = num_bridges
        self.num_steps = num_steps
        self.num_sweeps = num_sweeps
        self._walk_options: dict[str, Any] = {
            "target_accept_prob": target_accept_prob,
            "init_scale": init_scale,
            "adapt_covariance": adapt_covariance,
        }
        self._init_strategy = init_to_sample if init_strategy is None else init_strategy
        self._reset()

    def _reset(self) -> None:
        self._density: ProgramDensity | None = None
        self._walk: RandomWalk | None = None
        self._point: Point | None = None
        # The latest draw as it was handed out, by which the point above is recognised.
        self._values: dict[str, Tensor] = {}
        # Whether what the model is conditioned on has changed since.
        self._is_stale = False
        self._is_exact = True
        self._num_calls = self._warmup_steps = 0
        self._num_accepted: Any = 0
        self._records: dict[str, list[Tensor]] = {}

    # --- what a subclass defines --------------------------------------------------------------

    def _start_run(self, point: Point) -> None:
        """Prepare for chains that start at a point."""

    def _moved(self, point: Point) -> None:
        """Another kernel has changed the state or what the model is conditioned on."""

    def _window_ended(self, mean: Tensor, point: Point) -> None:
        """A window of the warm-up is over, with these means of its draws; the chains are at a point."""

    def _warmup_ended(self, point: Point) -> None:
        """The next draw is the first that is kept."""

    @abstractmethod
    def _log_ratio(self, proposal: Point, point: Point) -> Tensor:
        """Logarithm of the ratio that a proposal is accepted with, shape ``chain_shape``."""

    def _accepted(self, accepted: Tensor) -> None:
        """These chains take the proposal that the latest :meth:`_log_ratio` was of."""

    # --- Pyro's interface ---------------------------------------------------------------------

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        self._reset()
        self._warmup_steps = warmup_steps
        density = ProgramDensity(self.model, args, kwargs, self.chain_shape, self._init_strategy)
        self._density = density
        self.site = density.sites[0].name
        values = self._initial_params
        if values is None:
            values = density.start()
        else:
            self._check_initial_params(values)
        point = density.evaluate(density.unconstrain(values))
        self._check_start(point)
        density.check_chains(point)
        self._walk = RandomWalk(point.z, warmup_steps, **self._walk_options)
        self._start_run(point)
        self._keep(point)

    def _check_start(self, point: Point) -> None:
        if not bool(point.log_density.isfinite().all()):
            raise ValueError(
                "the log-density of the model is not finite at the start; give initial_params or another "
                "init_strategy"
            )
        if not point.factors:
            warnings.warn(
                f"{type(self).__name__}: the model has no machine without log Z, so that this is a plain "
                "random walk; NUTS is better",
                stacklevel=4,
            )
        inexact = [n for n, f in point.factors.items() if not has_exact_draws(f.machine)]
        self._is_exact = not inexact
        if inexact:
            warnings.warn(
                f"no layer of the machines at {inexact} can be enumerated: auxiliary rows are those of "
                f"{self.num_sweeps} sweeps of block Gibbs, and the posterior is approximate",
                ApproximateAuxiliaryWarning,
                stacklevel=4,
            )

    def _keep(self, point: Point) -> None:
        self._point = point
        self._values = self.density.values(point.z)

    @property
    def density(self) -> ProgramDensity:
        """The model's density; known after :meth:`setup`."""
        if self._density is None:
            raise RuntimeError("the density of the model is known only after setup()")
        return self._density

    @property
    def walk(self) -> RandomWalk:
        """The random walk; known after :meth:`setup`."""
        if self._walk is None:
            raise RuntimeError("there is no random walk before setup()")
        return self._walk

    def refresh(self) -> None:
        self._is_stale = True

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """The start, in the sites' own space; known after :meth:`setup`."""
        if self._point is None:
            return dict(self._initial_params or {})
        return dict(self._values)

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        self._initial_params = {name: value.detach() for name, value in params.items()}

    def _check_initial_params(self, params: dict[str, Tensor]) -> None:
        expected = {s.name: tuple(self.chain_shape + s.shape) for s in self.density.sites}
        got = {name: tuple(value.shape) for name, value in params.items()}
        if got != expected:
            raise ValueError(f"initial_params must have the shapes {expected}, got {got}")
        for site in self.density.sites:
            lifted = self.density.layout.lift(params[site.name], site.batch)
            if not bool(site.support.check(lifted).all()):
                raise ValueError(
                    f"initial_params[{site.name!r}] is outside of {site.support}; it is in the site's own "
                    "space, not in unconstrained space"
                )

    @torch.no_grad()
    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        point = self._point_of(params)
        accept_prob = torch.zeros_like(point.log_density)
        for _ in range(self.num_steps):
            point, prob, accepted = self._transition(point)
            accept_prob = accept_prob + prob / self.num_steps
            if not self._in_warmup:
                self._num_accepted = self._num_accepted + accepted.double() / self.num_steps
        mean = self.walk.adapt(point.z, accept_prob)
        if mean is not None:
            self._window_ended(mean, point)
        self._record("accept_prob", accept_prob)
        self._num_calls += 1
        if self._num_calls == self._warmup_steps:
            self._warmup_ended(point)
        self._keep(point)
        return dict(self._values)

    @property
    def _in_warmup(self) -> bool:
        return self._num_calls < self._warmup_steps

    def _point_of(self, params: dict[str, Tensor]) -> Point:
        assert self._point is not None
        if any(params[name] is not value for name, value in self._values.items()):
            z = self.density.unconstrain(params)
        elif self._is_stale:
            z = self._point.z
        else:
            return self._point
        self._is_stale = False
        point = self.density.evaluate(z)
        self._moved(point)
        return point

    def _transition(self, point: Point) -> tuple[Point, Tensor, Tensor]:
        """One transition: the new point, acceptance probabilities, and which chains accepted."""
        proposal = self.density.evaluate(self.walk.propose(point.z))
        possible = proposal.log_density.isfinite()
        if not bool(possible.any()):
            return point, torch.zeros_like(point.log_density), possible
        if not bool(possible.all()):
            # Machines of other chains may have no auxiliary rows: these chains propose to stay, in vain.
            stay = torch.where(possible.unsqueeze(-1), proposal.z, point.z)
            proposal = self.density.evaluate(stay)
        log_ratio = self._log_ratio(proposal, point)
        accept_prob = log_ratio.clamp(max=0.0).exp().nan_to_num(0.0) * possible
        accepted = torch.rand_like(accept_prob) < accept_prob
        self._accepted(accepted)
        return self._choose(accepted, proposal, point), accept_prob, accepted

    def _choose(self, accepted: Tensor, proposal: Point, point: Point) -> Point:
        """The proposal where it is accepted, the present point elsewhere."""
        if not bool(accepted.any()):
            return point
        if bool(accepted.all()):
            return proposal
        # Machines of some chains are new: one run of the model makes those of all.
        return self.density.evaluate(torch.where(accepted.unsqueeze(-1), proposal.z, point.z))

    def _record(self, name: str, value: Tensor) -> None:
        """Keep a number of the present draw after warm-up."""
        if not self._in_warmup:
            self._records.setdefault(name, []).append(value)

    def logging(self) -> OrderedDict[str, str]:
        scale = float(self.walk.scale.mean())
        numbers = [("proposal scale", f"{scale:.2e}")]
        if "accept_prob" in self._records:
            numbers.append(("acc. prob", f"{float(self._records['accept_prob'][-1].mean()):.2f}"))
        return OrderedDict(numbers)

    def diagnostics(self) -> dict[str, Any]:
        """Numbers after warm-up: ``"accept_prob"`` of every draw, the ``"acceptance rate"`` and
        ``"proposal scale"`` of every chain, and as ``"exact auxiliary"`` whether auxiliary rows were exact
        draws."""
        numbers: dict[str, Any] = {n: torch.stack(v) for n, v in self._records.items()}
        num_draws = max(self._num_calls - self._warmup_steps, 1)
        if self._walk is not None:
            numbers["proposal scale"] = self._walk.scale
        return {
            "divergences": [],
            "acceptance rate": torch.as_tensor(self._num_accepted) / num_draws,
            "exact auxiliary": self._is_exact,
        } | numbers

    def cleanup(self) -> None:
        self._reset()
