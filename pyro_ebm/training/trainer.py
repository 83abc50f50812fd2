# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The training loop."""

import os
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.ops.random import bernoulli
from pyro_ebm.training.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.gradient import ContrastiveGradient
from pyro_ebm.training.metrics import epoch_metrics

__all__ = ["Trainer", "TrainingDivergedError"]


class TrainingDivergedError(RuntimeError):
    """Parameters became NaN or infinite."""


class Trainer:
    r"""Trains a module by (persistent) contrastive divergence.

    Gradients are those of sufficient statistics, without autograd; a step is five matrix products
    (CD-1) and the random numbers between them. A run is reproducible from its seed, and one that is
    resumed from a checkpoint ends in the same parameters as one that was never interrupted.

    :param module: a :class:`pyro_ebm.nn.RBM`.
    :param TrainerConfig config: options.

    >>> import torch
    >>> from pyro_ebm.nn import RBM
    >>> from pyro_ebm.training import Trainer, TrainerConfig
    >>> data = torch.bernoulli(torch.full((200, 6), 0.3))
    >>> module = RBM(6, 4, seed=0).init_from_data(data)
    >>> config = TrainerConfig(num_epochs=2, batch_size=50, persistent=True, seed=0, progress=False)
    >>> history = Trainer(module, config).fit(data)
    >>> [record["epoch"] for record in history]
    [1, 2]
    """

    def __init__(self, module: nn.RBM, config: TrainerConfig) -> None:
        if not isinstance(module, nn.RBM):
            raise TypeError(f"module must be a pyro_ebm.nn.RBM, got {type(module).__name__}")
        family = module.visible.family
        if config.binarize and family in ("ising", "categorical", "multinomial"):
            raise ValueError(f"binarize=True draws bits, which are no states of {family!r} units")
        if config.seed is None:
            config = replace(config, seed=int(torch.randint(2**31, ()).item()))
        self.module = module
        self.config = config
        #: One record an epoch: its number, its metrics and the seconds it took.
        self.history: list[dict[str, Any]] = []
        self.epoch = 0
        self._device = module.get_parameter("weight").device
        self._generator = Generator(device=self._device).manual_seed(config.seed or 0)
        self._gradient = ContrastiveGradient(
            module,
            num_steps=config.num_steps,
            persistent=config.persistent,
            num_chains=config.num_chains or (config.batch_size if config.persistent else None),
            generator=self._generator,
        )
        self._optimizer = _make_optimizer(module, config)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        **changes: Any,
    ) -> "Trainer":
        """Continue a run: call :meth:`fit` with the same data.

        :param path: a checkpoint file.
        :param device: the device of the run; the CPU if None. A run goes on exactly only on the kind
            of device that it was started on.
        :param changes: options to change, such as a larger ``num_epochs``.
        :raises FileNotFoundError: if there is no such file.
        :raises ~pyro_ebm.nn.ModelFileError: if the file is damaged or no checkpoint.
        """
        state = read_checkpoint(path)
        module = state.module if device is None else state.module.to(device)
        trainer = cls(module, replace(state.config, **changes))
        try:
            trainer._restore(state)
        except (IndexError, RuntimeError, ValueError) as error:
            message = f"{path}: the state of training does not fit the model or the device"
            raise nn.ModelFileError(f"{message} ({error})") from error
        return trainer

    def _restore(self, state: Checkpoint) -> None:
        self.epoch = state.epoch
        self.history = list(state.history)
        self._generator.set_state(state.generator)
        self._gradient.chains = None if state.chains is None else state.chains.to(self._device)
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        for index, values in state.optimizer.items():
            shape = parameters[index].shape
            if any(value.dim() and value.shape != shape for value in values.values()):
                raise ValueError(f"state of parameter {index}, which has shape {tuple(shape)}")
        optimizer = self._optimizer.state_dict()
        self._optimizer.load_state_dict({**optimizer, "state": state.optimizer})

    @property
    def chains(self) -> Tensor | None:
        """Visible states of the persistent chains, shape ``(num_chains, V)``; None with CD."""
        return self._gradient.chains

    def fit(self, data: Tensor, validation: Tensor | None = None) -> list[dict[str, Any]]:
        """Train until ``config.num_epochs`` epochs are done.

        :param Tensor data: shape ``(rows, V)``, any dtype; kept as it is and converted by batch.
        :param Tensor validation: rows for the metrics only.
        :returns: :attr:`history`.
        :raises ValueError: for a wrong shape, NaN, or values outside of the support.
        :raises TrainingDivergedError: if parameters become NaN or infinite; the last checkpoint
            stays.
        """
        from tqdm.auto import tqdm

        data = self._check_data("data", data)
        if validation is not None:
            validation = self._check_data("validation", validation)
        self._start(data)
        num_batches = -(-len(data) // self.config.batch_size)
        remaining = self.config.num_epochs - self.epoch
        with tqdm(
            total=max(remaining, 0) * num_batches, unit="step", disable=not self.config.progress
        ) as bar:
            for _ in range(remaining):
                bar.set_description(f"epoch {self.epoch + 1}/{self.config.num_epochs}")
                started = time.perf_counter()
                try:
                    self._run_epoch(data, num_batches, bar)
                except RuntimeError as error:
                    # Some samplers refuse NaN, which products of large parameters make too.
                    if not self._is_finite(root=4):
                        raise self._diverged() from error
                    raise
                self.epoch += 1
                self._finish_epoch(data, validation, time.perf_counter() - started)
                bar.set_postfix(_postfix(self.history[-1]))
        return self.history

    def _start(self, data: Tensor) -> None:
        """Put the visible offset of a centred module at the data's mean."""
        if self.module.centered and self.epoch == 0:
            mean = data.to(self.module.get_parameter("weight").dtype).mean(0)
            self.module.shift_offsets(mean - self.module.visible_offset)

    def _run_epoch(self, data: Tensor, num_batches: int, bar: Any) -> None:
        order = torch.randperm(len(data), device=self._device, generator=self._generator)
        total = self.config.num_epochs * num_batches
        for i, rows in enumerate(order.split(self.config.batch_size)):
            self._set_learning_rate((self.epoch * num_batches + i) / total)
            hidden_mean = self._gradient(self._states(data[rows], self._generator))
            self._optimizer.step()
            if self.module.centered and self.config.offset_rate:
                step = (hidden_mean - self.module.hidden_offset) * self.config.offset_rate
                self.module.shift_offsets(hidden_step=step)
            bar.update()

    def _states(self, rows: Tensor, generator: Generator) -> Tensor:
        """Rows of the data as states of the visible layer."""
        rows = rows.to(self.module.get_parameter("weight").dtype)
        return bernoulli(rows, generator) if self.config.binarize else rows

    def _set_learning_rate(self, progress: float) -> None:
        if self.config.learning_rate_schedule == "linear":
            for group in self._optimizer.param_groups:
                group["lr"] = self.config.learning_rate * (1.0 - progress)

    def _finish_epoch(self, data: Tensor, validation: Tensor | None, seconds: float) -> None:
        if not self._is_finite():
            raise self._diverged()
        rows = self.config.metrics_rows
        # A generator of its own, so that looking at metrics does not change the run.
        bits = Generator(device=self._device).manual_seed(0)
        train = self._states(data[:rows], bits)
        held_out = None if validation is None else self._states(validation[:rows], bits)
        metrics = epoch_metrics(self.module(), train, held_out, self.chains)
        record = {"epoch": self.epoch, **metrics, "seconds": round(seconds, 3)}
        self.history.append(record)
        done = self.epoch == self.config.num_epochs
        due = done or self.epoch % self.config.checkpoint_every == 0
        if self.config.checkpoint is not None and due:
            write_checkpoint(self.config.checkpoint, self._state())

    def _is_finite(self, root: int = 1) -> bool:
        """Whether the parameters' powers (of exponent ``root``) are within the floating-point range."""
        parameters = list(self.module.parameters())
        limit = torch.finfo(parameters[0].dtype).max ** (1 / root)
        return all(bool((p.abs() <= limit).all()) for p in parameters)

    def _diverged(self) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"parameters are no longer finite; {self.epoch} epochs were done; lower learning_rate "
            f"(now {self.config.learning_rate})"
        )

    def _state(self) -> Checkpoint:
        return Checkpoint(
            self.module,
            self.config,
            self.epoch,
            self.history,
            self._optimizer.state_dict()["state"],
            self.chains,
            self._generator.get_state(),
        )

    def _check_data(self, name: str, data: Tensor) -> Tensor:
        num_visible = self.module.get_parameter("weight").shape[0]
        if data.dim() != 2 or data.shape[1] != num_visible or len(data) == 0:
            raise ValueError(
                f"{name} must have shape (rows >= 1, {num_visible}), got {tuple(data.shape)}"
            )
        if self.config.binarize:
            valid, what = ((data >= 0) & (data <= 1)).all(-1), "[0, 1], which binarize=True needs"
        else:
            support = self.module.visible().support
            valid = support.check(data) & torch.isfinite(data).all(-1)
            what = f"the support of {self.module.visible.family!r} units or not finite ({support})"
        if not bool(valid.all()):
            bad = int((~valid).sum())
            raise ValueError(f"{name} has {bad} of {len(data)} rows outside of {what}")
        return data.to(self._device)


def _make_optimizer(module: nn.RBM, config: TrainerConfig) -> torch.optim.Optimizer:
    weight = module.get_parameter("weight")
    others = [p for p in module.parameters() if p is not weight and p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [weight], "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.learning_rate)


def _postfix(record: dict[str, Any]) -> dict[str, str]:
    names = ("reconstruction_error", "free_energy_gap")
    return {name: f"{record[name]:.4g}" for name in names if name in record}
