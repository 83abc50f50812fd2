# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Annealing runs: several seeds, chunks of chains, and states to resume from."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from pyro_ebm.infer.log_partition.resume import ResumeFile, digest
from pyro_ebm.infer.log_partition.reverse_start import ReverseStart
from pyro_ebm.infer.log_partition.transitions import MakeKernel, describe_kernel, kernel_transition
from pyro_ebm.infer.paths import Path, inverse_temperatures

__all__ = [
    "AnnealingPlan",
    "AnnealingRun",
]


@dataclass(frozen=True)
class AnnealingPlan:
    """What is annealed.

    :param Path path: from the base to the machine.
    :param ReverseStart start: where reverse chains start; None for forward chains.
    :param int num_chains: chains of every seed.
    :param int chunk_size: chains that are annealed at a time.
    :param schedule: as for :func:`inverse_temperatures`.
    :param int num_temperatures: steps of the ladder.
    :param kernel: makes the kernel that moves the chains; the path's own sweep if None.
    """

    path: Path
    start: ReverseStart | None
    num_chains: int
    chunk_size: int
    schedule: str | Tensor
    num_temperatures: int
    kernel: MakeKernel | None = None

    @property
    def num_steps(self) -> int:
        """Steps of the ladder, also where it is given."""
        if isinstance(self.schedule, Tensor):
            return self.schedule.numel() - 1
        return self.num_temperatures

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """First chain and number of chains of every chunk."""
        first = range(0, self.num_chains, self.chunk_size)
        return [(i, min(self.chunk_size, self.num_chains - i)) for i in first]

    @property
    def num_legs(self) -> int:
        """Ways along the path that a chunk goes."""
        return 2 if self.start is not None and self.start.kind == "forward" else 1

    def fingerprint(self) -> dict[str, Any]:
        """All that the result hangs on but for the seeds, by name."""
        path, target = self.path, self.path.target
        machines = [path.machine(beta) for beta in (0.0, 0.25, 0.5, 0.75)]
        machines += getattr(path, "knots", [])
        schedule = self.schedule
        initial = None if self.start is None else self.start.initial
        return {
            "method": "ais" if self.start is None else "reverse-ais",
            "num_chains": self.num_chains,
            "chunk_size": self.chunk_size,
            "num_temperatures": self.num_steps,
            "schedule": schedule if isinstance(schedule, str) else digest([schedule]),
            "start": None if self.start is None else self.start.word,
            "initial": None if initial is None else digest([initial]),
            "kernel": None if self.kernel is None else describe_kernel(self.kernel(target)),
            "parameters": digest(target.parameters()),
            "path": f"{type(path).__name__} "
            + digest(itertools.chain(*(machine.parameters() for machine in machines))),
            "dtype": str(target.weight.dtype),
            "device": target.weight.device.type,
        }


class AnnealingRun:
    """Carries out a plan for several seeds.

    One generator a seed draws for all of its chunks, one after the other: results depend on the size of
    the chunks, and with a single chunk they are those of a run without chunks.

    :param AnnealingPlan plan: what to anneal.
    :param seeds: one generator is seeded with each; None is the path's own generator.
    :param ResumeFile file: where to save the state, and to go on from.
    :param str description: of the progress bar.
    :param bool progress: whether to show one.
    """

    def __init__(
        self,
        plan: AnnealingPlan,
        seeds: Sequence[int | None],
        file: ResumeFile | None = None,
        *,
        description: str = "ais",
        progress: bool = False,
    ) -> None:
        self.plan = plan
        self.seeds = list(seeds)
        self._file = file
        self._description, self._progress = description, progress
        #: Log-weights of the finished chunks of every seed.
        self._done: list[list[Tensor]] = [[] for _ in seeds]
        self._tick: Callable[[int, Tensor], None] | None = None
        self._started = time.perf_counter()
        self._seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """Time spent, that before an interruption included."""
        return self._seconds_before + time.perf_counter() - self._started

    def __call__(self) -> list[Tensor]:
        """Single-chain estimates of log Z for every seed, shape ``(num_chains,) + path.batch_shape``."""
        state = None if self._file is None else self._file.read()
        if state is not None:
            self.seeds = list(state["seeds"])
            device = self.plan.path.target.weight.device
            self._done = [[chunk.to(device) for chunk in chunks] for chunks in state["done"]]
            self._seconds_before = float(state["seconds"])
        with self._bar(state) as bar:
            self._tick = (lambda _, __: bar.update()) if self._progress else None
            for number in range(len(self.seeds)):
                if len(self._done[number]) < len(self.plan.chunks):
                    self._run_seed(number, state)
                    state = None
        return [torch.cat(chunks) for chunks in self._done]

    def _bar(self, state: dict[str, Any] | None) -> Any:
        plan = self.plan
        per_chunk = plan.num_legs * plan.num_steps
        initial = sum(map(len, self._done)) * per_chunk
        if state is not None and state["leg"] is not None:
            initial += state["leg"] * plan.num_steps + state["step"]
        return tqdm(
            total=len(self.seeds) * len(plan.chunks) * per_chunk,
            initial=initial,
            desc=self._description,
            unit="temperature",
            leave=False,
            disable=not self._progress,
        )

    def _run_seed(self, number: int, state: dict[str, Any] | None) -> None:
        plan, seed = self.plan, self.seeds[number]
        path = plan.path
        if seed is not None:
            device = path.target.weight.device
            path = path.with_generator(Generator(device=device).manual_seed(seed))
        done = self._done[number]
        # A state that was saved between two seeds has nothing to say about the next one.
        if state is not None and (state["leg"] is not None or done):
            betas: list[float] = state["betas"].tolist()
            _generator(path).set_state(state["generator"])
        else:
            pilot_chains = min(plan.num_chains, plan.chunk_size)
            betas = inverse_temperatures(plan.schedule, plan.num_temperatures, path, pilot_chains)
            state = None
        for first, size in plan.chunks[len(done) :]:
            chunk = _Chunk(self, path, betas, first, size)
            leg = None if state is None or state["leg"] is None else state
            done.append(chunk.run(leg))
            state = None
            self._save(path, betas)

    def _save(self, path: Path, betas: list[float], **position: Any) -> None:
        """Write the state to the file: between two chunks, or at a position inside of one."""
        if self._file is None:
            return
        nowhere = {"leg": None, "step": 0, "v": None, "log_weights": None}
        self._file.write(
            nowhere
            | position
            | {
                "seeds": self.seeds,
                "done": self._done,
                "seconds": self.seconds,
                "betas": torch.tensor(betas, dtype=torch.float64),
                "generator": _generator(path).get_state(),
            }
        )


class _Chunk:
    """Some chains of one seed on their way along the path."""

    def __init__(
        self, run: AnnealingRun, path: Path, betas: list[float], first: int, size: int
    ) -> None:
        self.run_, self.path, self.betas = run, path, betas
        self.first, self.size = first, size
        kernel = run.plan.kernel
        self.transition = None if kernel is None else kernel_transition(kernel, path.generator)

    def run(self, state: dict[str, Any] | None) -> Tensor:
        """Single-chain estimates of log Z, float64.

        :param state: a position inside of the chunk to go on from.
        """
        start = self.run_.plan.start
        if start is None:
            v = self.path.sample_base(self.size) if state is None else None
            return self.path.log_partition_base + self._leg(0, v, self.betas, state)[1]
        if start.kind != "forward":
            v = start.draw(self.first, self.size, self.path) if state is None else None
            return self.path.log_partition_base - self._leg(0, v, self.betas[::-1], state)[1]
        if state is None or state["leg"] == 0:
            v = self.path.sample_base(self.size) if state is None else None
            end, log_weights = self._leg(0, v, self.betas, state)
            v, state = start.resample(end, log_weights, self.path), None
        else:
            v = None
        return self.path.log_partition_base - self._leg(1, v, self.betas[::-1], state)[1]

    def _leg(
        self, leg: int, v: Tensor | None, betas: list[float], state: dict[str, Any] | None
    ) -> tuple[Tensor, Tensor]:
        """One way along the path, from a start or from a position on it."""
        first, log_weights = 0, None
        if state is not None:
            weight = self.path.target.weight
            v, log_weights = state["v"].to(weight), state["log_weights"].to(weight.device)
            first = int(state["step"])
        assert v is not None
        file = self.run_._file

        def save(step: int, v: Tensor, log_weights: Tensor) -> None:
            if file is not None and file.is_due:
                position = {"leg": leg, "step": step, "v": v, "log_weights": log_weights}
                self.run_._save(self.path, self.betas, **position)

        return self.path.anneal(
            v,
            betas,
            self.run_._tick,
            transition=self.transition,
            first=first,
            log_weights=log_weights,
            on_state=None if file is None else save,
        )


def _generator(path: Path) -> Generator:
    assert path.generator is not None, "runs that are saved have seeds"
    return path.generator
