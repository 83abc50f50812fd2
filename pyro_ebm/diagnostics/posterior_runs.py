# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Runs of a sampler on simulated data, and the ranks of the truth among its draws."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_ebm.diagnostics.rank_tests import Ranks
from pyro_ebm.diagnostics.simulated_data import Simulation, Simulator
from pyro_ebm.infer import VectorizedMCMC
from pyro_ebm.infer.bayesian.parameter_kernel import ParameterKernel
from pyro_ebm.ops.chains import effective_sample_size

__all__ = ["PosteriorRuns", "Sampler", "low_effective_size"]

#: Independent draws by site from data by site and a number of draws.
Sampler = Callable[[dict[str, Tensor], int], Mapping[str, Tensor]]
Quantity = Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]

#: Runs of one chain that its length is chosen by, at most.
_MAX_RUNS = 4
#: Transitions of the first of them; shorter chains don't show how dependent they are.
_MIN_PILOT = 100


class PosteriorRuns:
    """Posterior draws of simulated data sets, reduced to ranks.

    :param Simulator simulator: draws parameters and data.
    :param kernel: makes a kernel of a conditioned model; None with a sampler.
    :param sampler: draws from data; None with a kernel.
    :param quantities: what is ranked; every entry of every site if None.
    :param int num_draws: draws that are ranked among.
    :param int warmup_steps: transitions thrown away.
    :param thin: transitions a draw; chosen by effective sample sizes if None.
    :param int max_thin: the largest choice.
    """

    def __init__(
        self,
        simulator: Simulator,
        kernel: Callable[[Callable[..., Any]], Any] | None,
        sampler: Sampler | None,
        quantities: Mapping[str, Quantity] | None,
        *,
        num_draws: int,
        warmup_steps: int,
        thin: int | None,
        max_thin: int,
    ) -> None:
        self._simulator, self._kernel, self._sampler = simulator, kernel, sampler
        self._quantities = quantities
        self._num_draws, self._warmup_steps = num_draws, warmup_steps
        self._thin, self._max_thin = thin, max_thin
        #: Transitions a draw of every run.
        self.thins: list[int] = []
        #: Effective size of the chain of every simulation, the smallest over the quantities.
        self.effective_sizes: list[float] = []

    def one_by_one(self, num_simulations: int) -> dict[str, Ranks]:
        """Ranks of simulations that are run one after the other."""
        rows = []
        for _ in range(num_simulations):
            simulation = self._simulator.draw()
            rows.append(self._ranks(simulation, self._numbers_of(simulation)))
        return _stack(rows)

    def together(self, num_simulations: int) -> dict[str, Ranks]:
        """Ranks of simulations that are chains of one run."""
        simulations, data = self._simulator.draw_together(num_simulations)
        kernel = self._make_kernel(data)
        if not isinstance(kernel, ParameterKernel):
            raise TypeError(
                "vectorized=True is for kernels that run a model once for all chains, Exchange and "
                f"PseudoMarginal, not for {type(kernel).__name__}"
            )

        def run(thin: int) -> list[dict[str, Tensor]]:
            length = thin * self._num_draws
            mcmc = VectorizedMCMC(
                kernel, length, self._warmup_steps, num_simulations, disable_progbar=True
            )
            mcmc.run(*self._simulator.args, **self._simulator.kwargs)
            draws = mcmc.get_samples(group_by_chain=True)
            return [
                self._numbers({n: x[i] for n, x in draws.items()}, simulations[i].data)
                for i in range(num_simulations)
            ]

        numbers = self._long_enough(run)
        return _stack([self._ranks(simulations[i], own) for i, own in enumerate(numbers)])

    # --- one data set -------------------------------------------------------------------------

    def _make_kernel(self, data: Mapping[str, Tensor]) -> Any:
        if self._kernel is None:
            raise TypeError("vectorized=True needs a kernel, not a sampler")
        return self._kernel(self._simulator.conditioned(data))

    def _numbers_of(self, simulation: Simulation) -> dict[str, Tensor]:
        """Quantities of thinned posterior draws."""
        if self._sampler is not None:
            self.thins.append(1)
            self.effective_sizes.append(float(self._num_draws))
            return self._numbers(self._sampler(simulation.data, self._num_draws), simulation.data)

        def run(thin: int) -> list[dict[str, Tensor]]:
            kernel = self._make_kernel(simulation.data)
            length = thin * self._num_draws
            mcmc = MCMC(kernel, length, self._warmup_steps, disable_progbar=True)
            mcmc.run(*self._simulator.args, **self._simulator.kwargs)
            return [self._numbers(mcmc.get_samples(), simulation.data)]

        return self._long_enough(run)[0]

    def _long_enough(
        self, run: Callable[[int], list[dict[str, Tensor]]]
    ) -> list[dict[str, Tensor]]:
        """Draws of chains that are as long as their effective sample sizes ask for.

        The runs that the length is chosen by are thrown away: a chain that is kept because of what it looks
        like is not a draw like all others.
        """
        thin = self._chosen_thin(run) if self._thin is None else self._thin
        chains = run(thin)
        self.thins.append(thin)
        self.effective_sizes += _smallest_sizes(chains)
        return [{n: x[thin - 1 :: thin] for n, x in numbers.items()} for numbers in chains]

    def _chosen_thin(self, run: Callable[[int], list[dict[str, Tensor]]]) -> int:
        thin = min(self._max_thin, math.ceil(_MIN_PILOT / self._num_draws))
        for _ in range(_MAX_RUNS):
            wanted = self._wanted_thin(run(thin), thin)
            if wanted <= thin:
                return wanted
            thin = wanted
        return thin

    def _wanted_thin(self, chains: list[dict[str, Tensor]], thin: int) -> int:
        """Transitions a draw that make draws about independent, in all but a tenth of the chains."""
        size = low_effective_size(_smallest_sizes(chains))
        return min(self._max_thin, math.ceil(thin * self._num_draws / size - 1e-9))

    def _numbers(self, draws: Mapping[str, Tensor], data: dict[str, Tensor]) -> dict[str, Tensor]:
        """Quantities of draws, shape ``(draws,)`` each."""
        values = {name: draws[name] for name in self._simulator.latent}
        if self._quantities is not None:
            return {name: f(values, data).double() for name, f in self._quantities.items()}
        numbers = {}
        for name, value in values.items():
            shape = value.shape[1:]
            for index in np.ndindex(*shape):
                label = name + (f"[{','.join(map(str, index))}]" if index else "")
                numbers[label] = value[(slice(None), *index)].double()
        return numbers

    def _ranks(self, simulation: Simulation, numbers: dict[str, Tensor]) -> dict[str, int]:
        truth = {name: value.unsqueeze(0) for name, value in simulation.parameters.items()}
        ranks = {}
        for name, true in self._numbers(truth, simulation.data).items():
            draws = numbers[name]
            if draws.shape != (self._num_draws,):
                raise ValueError(
                    f"quantity {name!r} must have {self._num_draws} draws, got the shape "
                    f"{tuple(draws.shape)}"
                )
            below, equal = int((draws < true).sum()), int((draws == true).sum())
            ranks[name] = below + int(torch.randint(equal + 1, ()))
        return ranks


def low_effective_size(sizes: Sequence[float]) -> float:
    """The effective size that all but a tenth of the chains have."""
    return float(np.quantile(np.asarray(sizes), 0.1))


def _smallest_sizes(chains: list[dict[str, Tensor]]) -> list[float]:
    """Effective size of every chain, the smallest over its quantities."""
    return [min(_effective_size(x) for x in numbers.values()) for numbers in chains]


def _effective_size(draws: Tensor) -> float:
    """Effective size of one chain."""
    if bool((draws == draws[0]).all()):
        # A whole number may be all but certain; a real one that never changed is a chain that is stuck.
        return float(len(draws)) if bool(draws[0] == draws[0].round()) else 1.0
    return max(1.0, min(float(effective_sample_size(draws[None])), float(len(draws))))


def _stack(rows: list[dict[str, int]]) -> dict[str, Ranks]:
    return {name: np.array([row[name] for row in rows], dtype=np.int64) for name in rows[0]}
