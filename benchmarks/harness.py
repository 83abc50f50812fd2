# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Timing of several callables in turn, so that their ratios hold when the machine's speed drifts."""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["Timing", "environment", "time_in_turn"]


@dataclass(frozen=True)
class Timing:
    """Seconds of one callable, and its ratio to the reference of the same round.

    :param seconds: per round, divided by ``units``.
    :param ratios: to the reference, round by round.
    """

    seconds: list[float]
    ratios: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Minimum, median and maximum, JSON types."""
        return {
            "milliseconds": _spread([1e3 * s for s in self.seconds]),
            "ratio": _spread(self.ratios),
        }


def _spread(values: list[float]) -> dict[str, float]:
    middle = statistics.median(values)
    return {"min": min(values), "median": middle, "max": max(values)}


def time_in_turn(
    candidates: dict[str, Callable[[], object]],
    reference: str,
    *,
    rounds: int,
    units: dict[str, float] | None = None,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Call every candidate once a round, in turn, and compare within the round.

    :param candidates: callables by name.
    :param str reference: the name that ratios are to.
    :param int rounds: counted rounds.
    :param units: steps that one call of a candidate makes (1 if absent); times are per step.
    :param int warmup: rounds that are not counted.
    :param clock: gives seconds; ``time.process_time`` where neighbours take the processor away.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(warmup + rounds):
        for name, call in candidates.items():
            _synchronize()
            started = clock()
            call()
            _synchronize()
            elapsed = clock() - started
            if i >= warmup:
                seconds[name].append(elapsed / (units or {}).get(name, 1.0))
    base = seconds[reference]
    return {
        name: Timing(values, [v / b for v, b in zip(values, base, strict=True)])
        for name, values in seconds.items()
    }


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def command_line(description: str) -> argparse.Namespace:
    """What the benchmarks are told, with ``rounds`` and ``clock``; sets threads and seed.

    :param str description: the help.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time, for a machine that is shared"
    )
    parser.add_argument("--json", type=Path, default=None, help="file for all numbers")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    arguments.rounds = 3 if arguments.quick else 15
    arguments.clock = time.process_time if arguments.cpu_time else time.perf_counter
    return arguments


def write_json(path: Path | None, device: str, results: Any) -> None:
    """Numbers with what they were measured on; nothing without a path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(device), "results": results}
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"\nwrote {path}")


def environment(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {
        "processor": name,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "device": device,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
