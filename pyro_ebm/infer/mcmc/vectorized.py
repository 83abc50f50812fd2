# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Many chains in one tensor, with the interface of Pyro's MCMC."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro.infer.mcmc.api import AbstractMCMC
from pyro.infer.mcmc.logger import ProgressBar
from pyro.infer.mcmc.util import select_samples
from pyro.ops.stats import hpdi, split_gelman_rubin
from torch import Size, Tensor

from pyro_ebm.infer.mcmc.kernel import VectorizedKernel
from pyro_ebm.ops.chains import effective_sample_size

__all__ = ["VectorizedMCMC"]


class VectorizedMCMC(AbstractMCMC):
    """Markov chain Monte Carlo with all chains in one tensor and one process.

    A sweep of a thousand chains is two matrix products; a process per chain would load the weights
    a thousand times. Results are read as from :class:`pyro.infer.MCMC`: :meth:`get_samples`,
    :meth:`summary`, :meth:`diagnostics`, the latter two in memory linear in the number of draws.

    :param VectorizedKernel kernel: the kernel, such as :class:`~pyro_ebm.infer.BlockGibbs`.
    :param int num_samples: draws kept of every chain.
    :param int warmup_steps: draws thrown away first.
    :param int num_chains: chains.
    :param dict initial_params: start of the chains, ``{"v": (num_chains, *batch, V)}``; the kernel's
        own if None.
    :param bool disable_progbar: whether to hide the progress bar.
    :raises ValueError: for impossible numbers or a start of the wrong shape.
    """

    def __init__(
        self,
        kernel: VectorizedKernel,
        num_samples: int,
        warmup_steps: int = 0,
        num_chains: int = 1000,
        *,
        initial_params: Mapping[str, Tensor] | None = None,
        disable_progbar: bool = False,
    ) -> None:
        if num_samples < 1 or num_chains < 1 or warmup_steps < 0:
            raise ValueError(
                "num_samples and num_chains must be at least 1 and warmup_steps at least 0, got "
                f"{num_samples}, {num_chains} and {warmup_steps}"
            )
        if not isinstance(kernel, VectorizedKernel):
            raise TypeError(f"{type(kernel).__name__} cannot run chains in one tensor")
        super().__init__(kernel, num_chains, kernel.transforms)
        self.num_samples = num_samples
        self.warmup_steps = warmup_steps
        self.disable_progbar = disable_progbar
        self._initial_params = None if initial_params is None else dict(initial_params)
        self._samples: dict[str, Tensor] = {}
        self._kernel_diagnostics: dict[str, Any] = {}
        #: Wall time of the draws that were kept, without the warm-up; None before :meth:`run`.
        self.seconds: float | None = None

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Run all chains; further calls start anew and replace the samples."""
        kernel = self.kernel
        before = kernel.chain_shape, kernel._initial_params
        start = self._initial_params
        if start is None and kernel._initial_params is not None:
            # The kernel's own start is one chain's: all chains share it.
            chains = (self.num_chains,)
            start = {n: p.expand(chains + p.shape) for n, p in kernel._initial_params.items()}
        kernel._initial_params = None
        kernel.chain_shape = Size((self.num_chains,))
        try:
            if start is not None:
                kernel.initial_params = start
            kernel.setup(self.warmup_steps, *args, **kwargs)
            with ProgressBar(
                self.warmup_steps, self.num_samples, disable=self.disable_progbar
            ) as bar:
                self._run_chains(bar)
            self._kernel_diagnostics = kernel.diagnostics()
        finally:
            kernel.cleanup()
            kernel.chain_shape, kernel._initial_params = before

    def _run_chains(self, bar: ProgressBar) -> None:
        params = self.kernel.initial_params
        for _ in range(self.warmup_steps):
            params = self.kernel.sample(params)
            bar.update()
        bar.set_description("Sample", refresh=False)
        names = getattr(self.kernel, "save_params", sorted(params))
        self._samples = {
            name: params[name].new_empty(
                (self.num_chains, self.num_samples, *params[name].shape[1:])
            )
            for name in names
        }
        self._synchronize()
        started = time.perf_counter()
        for i in range(self.num_samples):
            params = self.kernel.sample(params)
            for name, samples in self._samples.items():
                samples[:, i] = params[name]
            bar.update()
        self._synchronize()
        self.seconds = time.perf_counter() - started

    def _synchronize(self) -> None:
        """Wait for the device, whose work the clock would not see."""
        if any(samples.is_cuda for samples in self._samples.values()):
            torch.cuda.synchronize()

    def _require_run(self) -> None:
        if not self._samples:
            raise RuntimeError("there are no samples yet; call run() first")

    def get_samples(
        self, num_samples: int | None = None, group_by_chain: bool = False
    ) -> dict[str, Tensor]:
        """Draws by site, shape ``(chains * draws, *event)``, or ``(chains, draws, *event)``.

        :param int num_samples: if given, that many draws resampled with replacement.
        :param bool group_by_chain: whether to keep the chain axis.
        """
        self._require_run()
        samples: dict[str, Tensor] = select_samples(self._samples, num_samples, group_by_chain)
        return samples

    def diagnostics(self) -> dict[str, Any]:
        """``n_eff`` and ``r_hat`` of every unit, and what the kernel recorded, by chain."""
        self._require_run()
        result: dict[str, Any] = {
            name: {"n_eff": effective_sample_size(s), "r_hat": split_gelman_rubin(s)}
            for name, s in self._real_samples()
        }
        for name, value in self._kernel_diagnostics.items():
            per_chain = isinstance(value, Tensor) and value.dim() > 1
            result[name] = {
                f"chain {i}": value[:, i] if per_chain else value for i in range(self.num_chains)
            }
        return result

    @property
    def sample_stats(self) -> dict[str, Tensor]:
        """Numbers of every draw, such as the energy, shape ``(chains, draws, *batch)``."""
        self._require_run()
        # Other tensors, such as a ladder of temperatures, are no numbers of a draw.
        shape = (self.num_samples, self.num_chains)
        return {
            name: value.transpose(0, 1)
            for name, value in self._kernel_diagnostics.items()
            if isinstance(value, Tensor) and value.shape[:2] == shape
        }

    def summary(self, prob: float = 0.9) -> None:
        """Print mean, deviation, median, interval, ``n_eff`` and ``r_hat`` of every unit.

        :param float prob: probability mass of the highest-density interval.
        """
        self._require_run()
        names = ("mean", "std", "median", "low", "high", "n_eff", "r_hat")
        low, high = f"{50 * (1 - prob):.1f}%", f"{50 * (1 + prob):.1f}%"
        header = ("mean", "std", "median", low, high, "n_eff", "r_hat")
        print("\n" + " " * 12 + "".join(f"{h:>10}" for h in header))
        for site, samples in self._real_samples():
            columns = self._columns(samples, prob)
            for i in range(len(columns["mean"])):
                label = f"{site}[{i}]"
                print(f"{label:>12}" + "".join(f"{columns[n][i].item():10.2f}" for n in names))
        print(f"\nNumber of chains: {self.num_chains}")

    def _real_samples(self) -> Iterator[tuple[str, Tensor]]:
        """Samples by site; whole numbers, such as the identities of replicas, have no mean of their type."""
        for name, samples in self._samples.items():
            yield name, samples if samples.is_floating_point() else samples.double()

    @staticmethod
    def _columns(samples: Tensor, prob: float) -> dict[str, Tensor]:
        flat = samples.flatten(0, 1).flatten(1)
        interval = hpdi(flat, prob=prob)
        return {
            "mean": flat.mean(0),
            "std": flat.std(0),
            "median": flat.median(0).values,
            "low": interval[0],
            "high": interval[1],
            "n_eff": effective_sample_size(samples).flatten(),
            "r_hat": split_gelman_rubin(samples).flatten(),
        }
