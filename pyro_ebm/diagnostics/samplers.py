# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Which sampler mixes best on a machine, at an equal budget?"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor

from pyro_ebm.diagnostics.comparison import SamplerComparison, SamplerRun
from pyro_ebm.diagnostics.convergence import MIN_DRAWS, convergence_of
from pyro_ebm.diagnostics.quantities import Function, check_functions, machine_functions
from pyro_ebm.diagnostics.summary import kernel_sweeps
from pyro_ebm.distributions import RBM
from pyro_ebm.infer.mcmc import VectorizedKernel

__all__ = ["compare_samplers"]

#: Draws that the length of a warm-up is estimated from, and those before them that are not timed.
_PILOT_DRAWS = 10
_PILOT_WARMUP = 3
#: Entries of states that are kept before the functions are evaluated on them.
_BUFFER_ENTRIES = 2**22

#: Makes the kernel of a sampler for a machine.
Sampler = Callable[[RBM], VectorizedKernel]


def compare_samplers(
    dist: RBM,
    samplers: Mapping[str, Sampler],
    *,
    seconds: float | None = None,
    num_sweeps: int | None = None,
    num_chains: int = 16,
    seeds: Sequence[int] = (0, 1, 2),
    warmup: float = 0.5,
    functions: Mapping[str, Function] | None = None,
    initial: Tensor | None = None,
) -> SamplerComparison:
    r"""Run several samplers on one machine at an equal budget and count effective draws.

    The protocol follows the DISCS benchmark [1]: many chains, effective sample sizes of the energy and
    of a random projection of the state, by second and by sweep, with their spread over seeds. It
    differs in two points. The effective sample size is that of **all chains together** (bulk ESS of
    ArviZ), since chains that each sit in a mode of their own would each look excellent; and the
    projection onto the leading singular vector of the weights is added, along which such modes lie.
    The slowest function is what counts.

    Samplers take turns, seed by seed, so that a machine whose speed drifts is fair to all. The clock
    runs within the kernels only. Chains start where the kernels start them, which is apart for those
    of this package, or at ``initial``; R-hat and the comparison of the samplers' means then show
    what an effective sample size cannot.

    **References**

    [1] *DISCS: A Benchmark for Discrete Sampling*, Katayoon Goshvadi, Haoran Sun, Xingchao Liu, Azade Nova,
    Ruqi Zhang, Will Grathwohl, Dale Schuurmans, Hanjun Dai (2023)

    :param RBM dist: the machine, without batch shape.
    :param samplers: for every name a function that makes a kernel for the machine, such as
        ``{"Gibbs": BlockGibbs, "tempering": lambda d: ParallelTempering(d, 10)}``.
    :param float seconds: budget of a run after its warm-up, 1 if no budget is given.
    :param int num_sweeps: budget in sweeps of a chain, those of all replicas counted, in its place.
    :param int num_chains: chains, at least 2. Memory holds a number by draw, chain and function.
    :param seeds: seeds of the runs; of the global generator, which kernels use that have none of
        their own. Its state is restored.
    :param float warmup: length of the warm-up as a share of the budget.
    :param functions: functions of the state, ``(..., V)`` to ``(...)``, by name; see
        :func:`~pyro_ebm.diagnostics.machine_functions` for the default.
    :param Tensor initial: start of the chains, shape ``(num_chains, V)``.
    :raises ValueError: for a machine with a batch shape or impossible numbers.
    :raises TypeError: if a sampler makes no kernel for many chains.

    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import BlockGibbs
    >>> rbm = BernoulliRBM(0.1 * torch.randn(8, 4), torch.zeros(8), torch.zeros(4))
    >>> samplers = {"1 sweep": BlockGibbs, "4 sweeps": lambda d: BlockGibbs(d, 4)}
    >>> result = compare_samplers(rbm, samplers, num_sweeps=400, seeds=[0, 1])
    >>> [run.num_draws for run in result.runs]
    [400, 100, 400, 100]
    """
    if not isinstance(dist, RBM):
        raise TypeError(f"dist must be an RBM, got {type(dist).__name__}")
    if dist.batch_shape:
        raise ValueError(f"dist must have no batch shape, got {tuple(dist.batch_shape)}")
    chosen = machine_functions(dist) if functions is None else check_functions(functions)
    if seconds is None and num_sweeps is None:
        seconds = 1.0
    protocol = _Protocol(dist, chosen, seconds, num_sweeps, warmup, num_chains, initial)
    if not samplers or not len(seeds):
        raise ValueError("samplers and seeds must not be empty")
    pilots = {name: protocol.pilot(make) for name, make in samplers.items()}
    runs = [
        protocol.run(name, make, seed, pilots[name])
        for seed in seeds
        for name, make in samplers.items()
    ]
    settings = {
        "budget": f"{seconds:g} s" if num_sweeps is None else f"{num_sweeps} sweeps",
        "seconds": seconds,
        "num_sweeps": num_sweeps,
        "warmup": warmup,
        "num_chains": num_chains,
        "seeds": list(seeds),
        "device": str(dist.weight.device),
        "num_threads": torch.get_num_threads(),
    }
    return SamplerComparison(tuple(runs), settings)


@dataclass(frozen=True)
class _Pilot:
    """What a draw costs, from a few draws."""

    seconds: float
    sweeps: int | None


@dataclass(frozen=True)
class _Protocol:
    """What all runs share. The budget is ``sweeps``, or ``seconds`` where that is None."""

    dist: RBM
    functions: Mapping[str, Function]
    seconds: float | None
    sweeps: int | None
    warmup: float
    num_chains: int
    initial: Tensor | None

    def __post_init__(self) -> None:
        if not self.functions:
            raise ValueError("functions must not be empty")
        if self.seconds is not None and self.sweeps is not None:
            raise ValueError("seconds and num_sweeps exclude each other: there is one budget")
        if self.seconds is not None and not 0.0 < self.seconds < math.inf:
            raise ValueError(f"seconds must be positive, got {self.seconds}")
        if self.sweeps is not None and self.sweeps < 1:
            raise ValueError(f"num_sweeps must be at least 1, got {self.sweeps}")
        if self.num_chains < 2:
            raise ValueError(f"num_chains must be at least 2, got {self.num_chains}")
        if not 0.0 <= self.warmup < math.inf:
            raise ValueError(f"warmup must be at least 0, got {self.warmup}")

    def pilot(self, make: Sampler) -> _Pilot:
        """Run a few draws."""
        with torch.random.fork_rng():
            running = _Running(make, self, 0)
            for _ in range(_PILOT_WARMUP):
                running.draw()
            running.seconds = 0.0
            for _ in range(_PILOT_DRAWS):
                running.draw()
            sweeps = running.finish()
        return _Pilot(running.seconds / _PILOT_DRAWS, sweeps)

    def run(self, name: str, make: Sampler, seed: int, pilot: _Pilot) -> SamplerRun:
        """One sampler with one seed."""
        recorder = _Recorder(self.functions)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            num_warmup = self._num_warmup(pilot)
            running = _Running(make, self, num_warmup)
            for _ in range(num_warmup):
                running.draw()
            warmup_seconds, running.seconds = running.seconds, 0.0
            while not self._is_spent(recorder.num_draws, running):
                recorder.add(running.draw())
            sweeps = running.finish()
        return SamplerRun(
            name,
            seed,
            running.seconds,
            warmup_seconds,
            recorder.num_draws,
            self.num_chains,
            sweeps,
            {key: convergence_of(values) for key, values in recorder.values().items()},
        )

    def _num_warmup(self, pilot: _Pilot) -> int:
        if self.sweeps is not None:
            return math.ceil(self.warmup * self.sweeps / (pilot.sweeps or 1))
        return math.ceil(self.warmup * (self.seconds or 0.0) / pilot.seconds)

    def _is_spent(self, num_draws: int, running: "_Running") -> bool:
        if num_draws < MIN_DRAWS:
            return False
        if self.sweeps is None:
            return running.seconds >= (self.seconds or 0.0)
        return (num_draws + 1) * (kernel_sweeps(running.kernel) or 1) > self.sweeps


class _Running:
    """A kernel with its chains and a clock that runs within it only."""

    def __init__(self, make: Sampler, protocol: _Protocol, warmup_steps: int) -> None:
        kernel = make(protocol.dist)
        if not isinstance(kernel, VectorizedKernel):
            raise TypeError(f"{type(kernel).__name__} cannot run chains in one tensor")
        self.kernel = kernel
        kernel.chain_shape = Size((protocol.num_chains,))
        if protocol.initial is not None:
            kernel.initial_params = {kernel.site: protocol.initial}
        kernel.setup(warmup_steps)
        self._params = kernel.initial_params
        self._is_cuda = protocol.dist.weight.is_cuda
        self.seconds = 0.0

    def draw(self) -> Tensor:
        """The next state of all chains."""
        self._synchronize()
        started = time.perf_counter()
        self._params = self.kernel.sample(self._params)
        self._synchronize()
        self.seconds += time.perf_counter() - started
        return self._params[self.kernel.site]

    def finish(self) -> int | None:
        """Let the kernel go; returns the sweeps of its draws."""
        sweeps = kernel_sweeps(self.kernel)
        self.kernel.cleanup()
        return sweeps

    def _synchronize(self) -> None:
        if self._is_cuda:
            torch.cuda.synchronize()


class _Recorder:
    """Functions of all draws. States wait in a buffer, so that functions see many at once."""

    def __init__(self, functions: Mapping[str, Function]) -> None:
        self._functions = functions
        self._buffer: list[Tensor] = []
        self._parts: dict[str, list[Tensor]] = {name: [] for name in functions}
        self.num_draws = 0

    def add(self, v: Tensor) -> None:
        # A kernel may go on to write into what it returned.
        self._buffer.append(v.clone())
        self.num_draws += 1
        if len(self._buffer) * v.numel() >= _BUFFER_ENTRIES:
            self._flush()

    def _flush(self) -> None:
        states = torch.stack(self._buffer)
        self._buffer = []
        with torch.no_grad():
            for name, function in self._functions.items():
                self._parts[name].append(function(states).cpu())

    def values(self) -> dict[str, Any]:
        """Numbers by function, arrays of shape ``(chains, draws)``."""
        if self._buffer:
            self._flush()
        return {name: torch.cat(parts).T.numpy() for name, parts in self._parts.items()}
