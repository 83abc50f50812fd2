# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What a training step of a neural Boltzmann machine cannot go below: its arithmetic, its random
numbers and the optimiser's memory, at the rates that this machine reaches for each."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyro_ebm.ops.random import uniform

__all__ = ["Counts", "Rates", "count_collapsed", "count_grouped"]

#: Tensors of the size of the parameters that AdamW reads and writes: p, g, m, v and p, m, v.
_ADAM_PASSES = 7


@dataclass(frozen=True)
class Counts:
    """What a step consists of.

    :param float multiply_adds: of matrix products.
    :param float uniforms: uniform random numbers.
    :param float normals: normal random numbers.
    :param float optimizer_bytes: memory that the optimiser reads and writes.
    """

    multiply_adds: float
    uniforms: float
    normals: float
    optimizer_bytes: float


def count_grouped(
    rows: int, num_visible: int, num_hidden: int, num_steps: int, num_parameters: int, chains: int
) -> Counts:
    """Alternating Gibbs steps with one weight a context, gradients by free energies on both sides.

    :param int rows: rows of a batch.
    :param int chains: rows of the model's side.
    """
    product = num_visible * num_hidden
    # A free energy is a product forward, and two backward (to W and to the offset).
    madds = product * (3 * rows + 3 * chains + 2 * num_steps * chains)
    uniforms = num_steps * chains * (num_visible + num_hidden)
    return Counts(madds, uniforms, 0.0, 4.0 * _ADAM_PASSES * num_parameters)


def count_collapsed(
    rows: int, num_visible: int, num_hidden: int, num_steps: int, num_parameters: int, contexts: int
) -> Counts:
    """The chain of hidden states of Gaussian visible units, gradients in hidden states.

    :param int rows: rows of a batch, and chains.
    :param int contexts: distinct contexts, each with a coupling matrix and its triangular factor.
    """
    product = num_visible * num_hidden
    # W'W/P and its QR decomposition have V H^2 each; a hidden free energy has no gradient to its states.
    setup = 2 * contexts * product * num_hidden
    chain = 2 * num_steps * rows * num_hidden**2
    madds = product * (3 * rows + 2 * rows) + setup + chain
    numbers = num_steps * rows * num_hidden
    return Counts(madds, numbers, numbers, 4.0 * _ADAM_PASSES * num_parameters)


class Rates:
    """Seconds that this machine needs for each thing that :class:`Counts` counts.

    :param str device: device.
    :param clock: gives seconds.
    """

    def __init__(self, device: str, clock: Callable[[], float] = time.perf_counter) -> None:
        def seconds(call: Callable[[], object]) -> float:
            return _seconds(call, device, clock)

        a, out = torch.randn(2, 784, 784, device=device)
        self.multiply_add = seconds(lambda: torch.mm(a, a, out=out)) / 784**3
        like = torch.empty(128, 784, device=device)
        self.uniform = seconds(lambda: uniform(like.shape, like)) / like.numel()
        self.normal = seconds(lambda: torch.empty_like(like).normal_()) / like.numel()
        # Four arrays the size of the weights, as the optimiser walks through: no cache holds them.
        source = torch.ones(4 * 600_000, device=device)
        target = torch.empty_like(source)
        self.byte = seconds(lambda: target.copy_(source)) / (2 * 4 * source.numel())

    def parts(self, counts: Counts) -> dict[str, float]:
        """Milliseconds by part."""
        return {
            "matrix products": 1e3 * counts.multiply_adds * self.multiply_add,
            "random numbers": 1e3 * (counts.uniforms * self.uniform + counts.normals * self.normal),
            "optimiser": 1e3 * counts.optimizer_bytes * self.byte,
        }


def _seconds(
    call: Callable[[], object], device: str, clock: Callable[[], float], repeat: int = 15
) -> float:
    """Median time of a call after a few."""
    times = []
    for _ in range(repeat + 3):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        started = clock()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(clock() - started)
    return statistics.median(times[3:])
