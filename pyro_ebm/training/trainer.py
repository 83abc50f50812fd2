# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The training loop."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.infer.conditional.contexts import refuse_random_weights
from pyro_ebm.nn.serialization import describe
from pyro_ebm.nn.tied_rbm import TiedRBM
from pyro_ebm.training.callbacks import Callback
from pyro_ebm.training.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from pyro_ebm.training.choose_gradient import (
    Gradient,
    check_num_chains,
    check_same_chains,
    make_gradient,
)
from pyro_ebm.training.classification_gradient import ClassificationGradient
from pyro_ebm.training.conditional_gradient import ConditionalGradient
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.masked_gradient import (
    incomplete_record,
    observe,
    restored,
    visible_mean,
)
from pyro_ebm.training.metrics import (
    METRICS,
    EpochMetrics,
    StepWatch,
    base_key,
    keys_of,
    known_keys,
)
from pyro_ebm.training.monitor import Best, best_epoch
from pyro_ebm.training.optimization import Optimization
from pyro_ebm.training.plateau import ReduceLROnPlateau
from pyro_ebm.training.training_data import TrainingData, check_data_options, draw_states

__all__ = ["Trainer", "TrainingDivergedError"]

#: Numbers on the progress line.
_MAX_SHOWN = 6


class TrainingDivergedError(RuntimeError):
    """Parameters became NaN or infinite."""


class Trainer:
    r"""Trains a module by (persistent) contrastive divergence.

    Gradients of an RBM are those of sufficient statistics, without autograd; a step is five matrix
    products (CD-1) and the random numbers between them. Those of a neural Boltzmann machine go
    through its networks, once a distinct context, see
    :class:`~pyro_ebm.training.conditional_gradient.ConditionalGradient`. A run is reproducible from its
    seed, and one that is resumed from a checkpoint ends in the same parameters as one that was never
    interrupted.

    :param module: a :class:`pyro_ebm.nn.RBM`, :class:`~pyro_ebm.nn.DBM` or
        :class:`~pyro_ebm.nn.NeuralBoltzmannMachine`.
        Parameters that require no gradient when the trainer is made stay as they are.
    :param TrainerConfig config: options.
    :raises TypeError: for another module (a ``TiedRBM`` is trained by
        :class:`~pyro_ebm.training.TiedTrainer`), or one that cannot be written where there is to be a
        checkpoint.
    :raises ValueError: for options that the module cannot have, or random weights (``PyroSample``).

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

    def __init__(
        self, module: nn.RBM | nn.DBM | nn.NeuralBoltzmannMachine, config: TrainerConfig
    ) -> None:
        if not isinstance(module, nn.RBM | nn.DBM | nn.NeuralBoltzmannMachine):
            raise TypeError(
                "module must be a pyro_ebm.nn.RBM, DBM or NeuralBoltzmannMachine, got "
                f"{type(module).__name__}"
            )
        if isinstance(module, TiedRBM) and type(self)._states is Trainer._states:
            # Rows have to become sums of copies, which only a trainer with its own states does.
            raise TypeError(
                "module is a TiedRBM, whose states are sums of copies: train it by "
                "pyro_ebm.training.TiedTrainer, which multiplies the rows"
            )
        refuse_random_weights(module)
        check_data_options(module, config)
        if config.checkpoint is not None or config.best_checkpoint is not None:
            # Before the first epoch and not after it: not every module can be written.
            describe(module)
        if config.seed is None:
            config = replace(config, seed=int(torch.randint(2**31, ()).item()))
        self.module = module
        self.config = config
        #: One record an epoch: its number, its metrics and the seconds it took.
        self.history: list[dict[str, Any]] = []
        self.epoch = 0
        #: States of the visible layer that the metrics of :meth:`fit` look at, by split: "train" and, if
        #: there are such rows, "validation". The same at every epoch.
        self.metric_rows: dict[str, Tensor] = {}
        self._stopped = False
        self._metrics = EpochMetrics(module, config)
        parameter = next(module.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._generator = Generator(device=self._device).manual_seed(config.seed or 0)
        self._gradient: Gradient = make_gradient(module, config, self._generator)
        self._optimization = Optimization(module, config)

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
        :raises ValueError: for changes that persistent chains of a conditional model do not survive.
        :raises ~pyro_ebm.nn.ModelFileError: if the file is damaged or no checkpoint.
        """
        state = read_checkpoint(path)
        module = state.module if device is None else state.module.to(device)
        config = replace(state.config, **changes)
        if isinstance(module, nn.NeuralBoltzmannMachine) and "chains" in state.state:
            check_same_chains(state.config, config)
        if not isinstance(module, nn.NeuralBoltzmannMachine):
            check_num_chains(config, state.state.get("chains"))
        trainer = cls(module, config)
        same = {
            name
            for name in ("optimizer", "learning_rate", "learning_rate_schedule", "schedule_options")
            if getattr(config, name) == getattr(state.config, name)
        }
        try:
            trainer.restore(state, same)
        except (IndexError, KeyError, RuntimeError, ValueError) as error:
            message = f"{path}: the state of training does not fit the model or the device"
            raise nn.ModelFileError(f"{message} ({error})") from error
        return trainer

    def restore(self, state: Checkpoint, same: set[str] | None = None) -> None:
        """Take back a state; ``same`` has the options that it still has, of those of the update."""
        self.epoch = state.epoch
        self.history = list(state.history)
        self._generator.set_state(state.generator)
        self._gradient = restored(self._gradient, state.state, self._generator)
        self._gradient.restore(state.state)
        # Another optimiser or schedule starts anew.
        if same is None or "optimizer" in same:
            self._restore_optimizer(state.optimizer)
        if same is None or {"learning_rate", "learning_rate_schedule", "schedule_options"} <= same:
            self._optimization.restore_schedule(state.schedule)
        if self._optimization.averaged is not None and state.average:
            self._optimization.averaged.load_state_dict(state.average)

    def _restore_optimizer(self, states: dict[int, dict[str, Any]]) -> None:
        parameters, optimizer = self._optimization.parameters, self._optimization.optimizer
        for index, values in states.items():
            shape = parameters[index].shape
            if any(value.dim() and value.shape != shape for value in values.values()):
                raise ValueError(f"state of parameter {index}, which has shape {tuple(shape)}")
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})

    @property
    def chains(self) -> Tensor | None:
        """States of the persistent chains; None with CD. Visible ones of shape ``(num_chains, V)``; those of
        all even layers of a deep machine, one after the other, of shape ``(num_chains, V + H_2 + ...)``
        (``module().split_even``); those of a conditional model ``(num_chains, contexts, size)``, in the
        order of ``torch.unique(context, dim=0)``."""
        return self._gradient.chains

    @property
    def averaged(self) -> Any:
        """The module with averaged parameters (``averaging``), the module itself without."""
        averaged = self._optimization.averaged
        return self.module if averaged is None else averaged.module

    @property
    def best_epoch(self) -> int | None:
        """The epoch with the best value of ``config.monitor`` so far; None if there is none."""
        return self._best().epoch

    def fit(
        self,
        data: Tensor,
        validation: Tensor | None = None,
        *,
        context: Tensor | None = None,
        validation_context: Tensor | None = None,
        observed: Tensor | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> list[dict[str, Any]]:
        """Train until ``config.num_epochs`` epochs are done, or ``config.monitor`` no longer improves.

        :param Tensor data: shape ``(rows, V)``, any dtype; kept as it is and converted by batch.
        :param Tensor validation: rows for the metrics only.
        :param Tensor context: the contexts of a conditional model, shape ``(rows, num_context)``.
        :param Tensor validation_context: contexts of the rows for the metrics.
        :param Tensor observed: which entries of the data are observed, boolean of shape ``(rows, V)``; all
            if None. What stands at the others is not read. They are summed out: drawn given the
            observed ones, by ``num_steps`` sweeps at every visit from where the last visit left them; or,
            for an RBM with ``missing="absent"``, no part of the row's machine.
        :param callbacks: objects that are called at the end of every epoch.
        :returns: :attr:`history`.
        :raises TypeError: if data, contexts or ``observed`` are no tensors.
        :raises ValueError: for a wrong shape, NaN, or values outside of the support; if metrics need other
            rows; or if callbacks do not give the metric that is monitored.
        :raises TrainingDivergedError: if parameters become NaN or infinite; the last checkpoint
            stays.
        """
        from tqdm.auto import tqdm

        train = TrainingData.check("data", self.module, self.config, data, context, observed)
        held_out = None
        if validation is not None:
            held_out = TrainingData.check(
                "validation", self.module, self.config, validation, validation_context
            )
        if held_out is not None and self.config.missing == "absent":
            raise ValueError("validation rows of missing='absent' are machines with other log Z")
        self._draw_metric_rows(train, held_out)
        self._metrics.check_rows(self.metric_rows, bool(callbacks))
        self._start(train)
        self._stopped = self._is_out_of_patience()
        for callback in callbacks:
            callback.on_fit_start(self)
        num_batches = -(-len(train.rows) // self.config.batch_size)
        remaining = self.config.num_epochs - self.epoch
        with tqdm(
            total=max(remaining, 0) * num_batches, unit="step", disable=not self.config.progress
        ) as bar:
            while self.epoch < self.config.num_epochs and not self._stopped:
                bar.set_description(f"epoch {self.epoch + 1}/{self.config.num_epochs}")
                self._one_epoch(train, held_out, bar, callbacks)
                if shown := _postfix(self.history[-1], self.config):
                    bar.set_postfix(shown)
        for callback in callbacks:
            callback.on_fit_end(self)
        return self.history

    def partial_fit(
        self,
        data: Tensor,
        *,
        context: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> dict[str, Any]:
        """Train for one pass over some rows, whatever ``config.num_epochs`` says.

        Chains and the optimiser go on from where they are, so that data may come in parts. Schedules count
        every call as an epoch.

        :param Tensor data: see :meth:`fit`.
        :param Tensor context: see :meth:`fit`.
        :param Tensor observed: see :meth:`fit`.
        :returns: the record of the pass, which :attr:`history` receives too.
        :raises TypeError: see :meth:`fit`.
        :raises ValueError: see :meth:`fit`.
        :raises TrainingDivergedError: see :meth:`fit`.
        """
        from tqdm.auto import tqdm

        train = TrainingData.check("data", self.module, self.config, data, context, observed)
        self._draw_metric_rows(train, None)
        self._start(train)
        with tqdm(disable=True) as bar:
            self._one_epoch(train, None, bar, ())
        return self.history[-1]

    def stop(self) -> None:
        """End :meth:`fit` after the present epoch; for callbacks."""
        self._stopped = True

    def _one_epoch(
        self,
        train: TrainingData,
        held_out: TrainingData | None,
        bar: Any,
        callbacks: Sequence[Callback],
    ) -> None:
        started = time.perf_counter()
        try:
            watch = self._run_epoch(train.rows, bar)
        except RuntimeError as error:
            # Some samplers refuse NaN, which products of large parameters make too.
            if not self._is_finite(root=4):
                raise self._diverged() from error
            raise
        self.epoch += 1
        if not self._is_finite():
            raise self._diverged()
        seconds = time.perf_counter() - started
        record = {"epoch": self.epoch, **self._record(train, held_out, watch)}
        record["seconds"] = round(seconds, 3)
        self._finish_epoch(record, callbacks)

    def _start(self, train: TrainingData) -> None:
        """Put the visible offset of a centred RBM at the data's mean; find the contexts."""
        module = self.module
        if isinstance(module, nn.NeuralBoltzmannMachine):
            assert isinstance(self._gradient, ConditionalGradient) and train.context is not None
            self._gradient.start(train.context)
            if train.observed is not None:
                # A generator of its own, or a run that is resumed would draw more than the whole one.
                bits = Generator(device=self._device).manual_seed(0)
                self._gradient.complete_from(self._states(train.rows, bits), train.observed)
            return
        if isinstance(self._gradient, ClassificationGradient):
            self._gradient.start(train.rows)
        self._gradient = observe(self._gradient, train, self._states, self._generator)
        if module.centered and self.epoch == 0:
            spins = module.visible.family == "ising" and self.config.binarize
            mean = visible_mean(train, self._dtype, self.config.missing, spins)
            if isinstance(module, nn.DBM):
                steps = [mean - module.offsets[0], *[None] * module.depth]
                module.shift_offsets(steps)
            else:
                module.shift_offsets(mean - module.visible_offset)

    def _run_epoch(self, data: Tensor, bar: Any) -> StepWatch | None:
        self._gradient.start_epoch(self.epoch)
        self._optimization.start_epoch(self.epoch)
        num_batches = -(-len(data) // self.config.batch_size)
        order = torch.randperm(len(data), device=self._device, generator=self._generator)
        numbers = order.cpu().split(self.config.batch_size)
        watch = self._metrics.watch(self.epoch + 1, num_batches)
        # A partial fit may go on when the run is over.
        total = max(self.config.num_epochs, self.epoch + 1) * num_batches
        for i, rows in enumerate(order.split(self.config.batch_size)):
            self._gradient(self._states(data[rows], self._generator), numbers[i])
            if watch is not None:
                watch.before_update(i)
            self._optimization.step((self.epoch * num_batches + i) / total)
            self._gradient.after_step()
            if watch is not None:
                watch.after_update(i, self.chains)
            self._optimization.average()
            bar.update()
        self._optimization.finish_epoch()
        self._gradient.after_epoch()
        return watch

    def _states(self, rows: Tensor, generator: Generator) -> Tensor:
        """Rows of the data as states of the visible layer."""
        return draw_states(rows.to(self._dtype), self.module, self.config, generator)

    def _finish_epoch(self, record: dict[str, Any], callbacks: Sequence[Callback]) -> None:
        self.history.append(record)
        for callback in callbacks:
            callback.on_epoch_end(self, record)
        if self.config.monitor is not None:
            self._look_at_monitor(self.config.monitor, record, bool(callbacks))
        done = self._stopped or self.epoch == self.config.num_epochs
        due = done or self.epoch % self.config.checkpoint_every == 0
        if self.config.checkpoint is not None and due:
            write_checkpoint(self.config.checkpoint, self.state())

    # --- what is watched ----------------------------------------------------------------------------

    def _draw_metric_rows(self, train: TrainingData, held_out: TrainingData | None) -> None:
        count = self.config.metrics_rows
        # A generator of its own, so that looking at metrics does not change the run.
        bits = Generator(device=self._device).manual_seed(0)
        self.metric_rows = {"train": self._states(train.rows[:count], bits)}
        if held_out is not None:
            self.metric_rows["validation"] = self._states(held_out.rows[:count], bits)

    def _record(
        self, train: TrainingData, held_out: TrainingData | None, watch: StepWatch | None
    ) -> dict[str, Any]:
        """The metrics of the epoch that is done."""
        if not isinstance(self.module, nn.NeuralBoltzmannMachine):
            if train.observed is not None:
                seen = self.metric_rows, train.observed, watch
                return incomplete_record(self._metrics, self._gradient, self.epoch, *seen)
            return self._metrics.record(self.epoch, self.metric_rows, {}, self.chains, watch)
        assert isinstance(self._gradient, ConditionalGradient) and train.context is not None
        count, rows = self.config.metrics_rows, dict(self.metric_rows)
        if train.observed is not None and self._gradient.completed is not None:
            completed = self._gradient.completed[:count]
            rows["train"] = torch.where(train.observed[:count], rows["train"], completed)
        contexts = {"train": train.context[:count]}
        if held_out is not None and held_out.context is not None:
            contexts["validation"] = held_out.context[:count]
        return self._metrics.record(self.epoch, rows, contexts, None, watch)

    def _best(self) -> Best:
        config = self.config
        if config.monitor is None:
            return Best()
        return best_epoch(self.history, config.monitor, config.monitor_mode, config.min_delta)

    def _is_out_of_patience(self) -> bool:
        patience = self.config.patience
        return patience is not None and self._best().waited >= patience

    def _look_at_monitor(self, key: str, record: dict[str, Any], given_by_callbacks: bool) -> None:
        """Keep the best epoch, lower the learning rate or end the run, as the options say."""
        if key not in record:
            if given_by_callbacks and base_key(key) not in known_keys():
                raise ValueError(
                    f"monitor={key!r} is not in the record of epoch {self.epoch}, which has "
                    f"{sorted(record)}; the callback that gives it must do so at every epoch"
                )
            base = base_key(key)
            if any(base in METRICS[name].keys for name in self._metrics.due(self.epoch)):
                raise ValueError(f"monitor={key!r}: its metric has no such value in this run")
            return
        sign = 1.0 if self.config.monitor_mode == "min" else -1.0
        if isinstance(self._optimization.scheduler, ReduceLROnPlateau):
            self._optimization.scheduler.step(sign * record[key])
        if self.best_epoch == self.epoch and self.config.best_checkpoint is not None:
            write_checkpoint(self.config.best_checkpoint, self.state())
        self._stopped = self._stopped or self._is_out_of_patience()

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

    def state(self) -> Checkpoint:
        """The run as it is now; :meth:`restore` takes it back."""
        averaged = self._optimization.averaged
        return Checkpoint(
            self.module,
            self.config,
            self.epoch,
            self.history,
            self._optimization.optimizer.state_dict()["state"],
            self._gradient.state(),
            self._generator.get_state(),
            {} if averaged is None else averaged.state_dict(),
            self._optimization.schedule_state(),
        )


def _postfix(record: dict[str, Any], config: TrainerConfig) -> dict[str, str]:
    """What the progress line shows: the metric that is monitored, and those that were chosen."""
    keys: tuple[str, ...] = ("reconstruction_error", "free_energy_gap")
    if config.metrics is not None:
        keys = keys_of(config.metrics)
    keys = tuple(dict.fromkeys(((config.monitor,) if config.monitor else ()) + keys))
    numbers = {key: record[key] for key in keys if isinstance(record.get(key), int | float)}
    return {key: f"{value:.4g}" for key, value in list(numbers.items())[:_MAX_SHOWN]}
