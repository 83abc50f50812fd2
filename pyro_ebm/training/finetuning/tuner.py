# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Discriminative training of a classifier."""

import os
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from pyro_ebm.nn import ModelFileError
from pyro_ebm.training.config_checks import make_optimizer
from pyro_ebm.training.finetuning.averaging import WeightAverage, copy_of
from pyro_ebm.training.finetuning.classifier import FeedForwardClassifier
from pyro_ebm.training.finetuning.config import FineTuneConfig
from pyro_ebm.training.finetuning.groups import parameter_groups, training_mode
from pyro_ebm.training.finetuning.progress import Progress
from pyro_ebm.training.finetuning.rows import LabelledRows
from pyro_ebm.training.finetuning.state import read_state, write_state
from pyro_ebm.training.trainer import TrainingDivergedError

__all__ = ["FineTuner"]

#: Rows of the validation set that are classified at once.
_CHUNK_ROWS = 8192


class FineTuner:
    r"""Trains a :class:`FeedForwardClassifier` on labelled rows, every layer at a rate of its own.

    The cross-entropy of the labels falls by mini-batches; after every epoch the validation rows, if there are
    any, decide whether the weights are the best so far, and at the end the classifier has **the best
    weights**, not the last ones. A run is reproducible from its seed, and one that is resumed from a
    checkpoint ends in the same weights as one that was never interrupted.

    :param FeedForwardClassifier classifier: is trained in place.
    :param FineTuneConfig config: options.
    :raises TypeError: for another classifier.
    :raises ValueError: if ``rate_factors`` has not one entry for every layer and the softmax layer.

    >>> import torch
    >>> from pyro_ebm.training.finetuning import FeedForwardClassifier, FineTuneConfig, FineTuner
    >>> x = torch.rand(200, 4)
    >>> y = (x[:, 0] > 0.5).long()
    >>> classifier = FeedForwardClassifier.random((4, 8), 2, seed=0)
    >>> config = FineTuneConfig(max_epochs=30, learning_rate=0.05, seed=0, progress=False)
    >>> history = FineTuner(classifier, config).fit(x[:150], y[:150], x[150:], y[150:])
    >>> classifier.accuracy(x[150:], y[150:]) > 0.9
    True
    """

    def __init__(self, classifier: FeedForwardClassifier, config: FineTuneConfig) -> None:
        if not isinstance(classifier, FeedForwardClassifier):
            raise TypeError(
                f"classifier must be a FeedForwardClassifier, got {type(classifier).__name__}"
            )
        if config.seed is None:
            config = replace(config, seed=int(torch.randint(2**31, ()).item()))
        self.classifier = classifier
        self.config = config
        #: One record an epoch.
        self.history: list[dict[str, Any]] = []
        self.progress = Progress()
        weight = classifier.head.weight
        self._device, self._dtype = weight.device, weight.dtype
        self._generator = Generator(device=self._device).manual_seed(config.seed or 0)
        groups = parameter_groups(classifier, config)
        self._rates = [group["lr"] for group in groups]
        self._optimizer = make_optimizer(config, groups)
        self._average = WeightAverage(classifier, config.averaging) if config.averaging else None
        self._best: dict[str, Tensor] = {}

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        classifier: FeedForwardClassifier,
        **changes: Any,
    ) -> "FineTuner":
        """Continue a run: call :meth:`fit` with the same rows.

        :param path: a file that ``FineTuneConfig(checkpoint=...)`` named.
        :param classifier: one of the same architecture; its weights are overwritten.
        :param changes: options to change, such as a larger ``max_epochs``.
        :raises FileNotFoundError: if there is no such file.
        :raises ValueError: for impossible changes, or rates of layers that the classifier does not have.
        :raises ~pyro_ebm.nn.ModelFileError: if the file is damaged or of another architecture.
        """
        state, metadata = read_state(path)
        try:
            config = FineTuneConfig.from_dict(metadata["config"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path}: damaged options ({error!r})") from error
        changed = replace(config, **changes)
        tuner = cls(classifier, changed)
        for name, part in (
            ("optimizer", "optimizer"),
            ("rate_factors", "optimizer"),
            ("averaging", "average"),
        ):
            # What belongs to another optimiser, other layers or another average starts anew.
            if getattr(changed, name) != getattr(config, name):
                state[part] = {}
        try:
            tuner._restore(state, metadata)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path} does not fit the classifier ({error!r})") from error
        return tuner

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        x_validation: Tensor | None = None,
        y_validation: Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """Train until ``max_epochs`` are done or the validation result stays without improvement.

        :param Tensor x: shape ``(rows, V)``, any dtype; kept as it is and converted by batch.
        :param Tensor y: classes from 0, shape ``(rows,)``.
        :param Tensor x_validation: rows that choose the best epoch; without them the last one is kept.
        :param Tensor y_validation: their classes.
        :returns: :attr:`history`: records with epoch, loss, accuracy (both with dropout and noise, over the
            epoch), ``validation_loss``, ``validation_accuracy``, ``rate`` and seconds.
        :raises TypeError: if something is no tensor.
        :raises ValueError: for wrong shapes, NaN, labels out of range, or options that need validation rows.
        :raises TrainingDivergedError: if the loss becomes NaN or infinite.
        """
        from tqdm.auto import tqdm

        train = LabelledRows.check("", self.classifier, self.config, x, y)
        held_out = self._check_validation(x_validation, y_validation)
        if held_out is None and self.progress.best_epoch:
            raise ValueError(
                "the run has chosen its best epoch by validation rows: go on with x_validation and "
                "y_validation"
            )
        config, progress = self.config, self.progress
        with (
            tqdm(total=config.max_epochs, unit="epoch", disable=not config.progress) as bar,
            training_mode(self.classifier, self._optimizer),
        ):
            bar.update(progress.epoch)
            while not progress.is_over(config):
                started = time.perf_counter()
                record = self._run_epoch(train)
                progress.epoch += 1
                self._finish_epoch(record, held_out, started)
                bar.update()
                bar.set_postfix({k: v for k, v in record.items() if k.startswith("validation")})
        self._take_result()
        return self.history

    def _check_validation(self, x: Tensor | None, y: Tensor | None) -> LabelledRows | None:
        if x is None and y is None:
            if self.config.learning_rate_schedule == "plateau":
                raise ValueError("learning_rate_schedule='plateau' needs x_validation")
            return None
        return LabelledRows.check("_validation", self.classifier, self.config, x, y)

    def _run_epoch(self, train: LabelledRows) -> dict[str, Any]:
        config, generator = self.config, self._generator
        order = torch.randperm(len(train.x), device=self._device, generator=generator)
        batches = order.split(config.batch_size)
        total = torch.zeros(2, dtype=torch.float64, device=self._device)
        rate = 0.0
        for i, rows in enumerate(batches):
            rate = self.progress.rate(config, self.progress.epoch + i / len(batches))
            for group, base in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = base * rate
            v, extra, y = train.batch(rows, config, self._dtype, generator)
            logits = self.classifier(v, extra, generator=generator)
            loss = cross_entropy(logits, y, label_smoothing=config.label_smoothing)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            if self._average is not None:
                self._average.update(self.classifier)
            right = (logits.detach().argmax(-1) == y).sum()
            total += torch.stack([loss.detach() * len(y), right]).double()
        loss_sum, num_right = (total / len(train.x)).tolist()
        return {
            "epoch": self.progress.epoch + 1,
            "loss": loss_sum,
            "accuracy": num_right,
            "rate": rate * config.learning_rate,
        }

    def _finish_epoch(
        self, record: dict[str, Any], held_out: LabelledRows | None, started: float
    ) -> None:
        if not abs(record["loss"]) < float("inf"):
            raise TrainingDivergedError(
                f"the loss is no longer finite in epoch {record['epoch']}; lower learning_rate "
                f"(now {self.config.learning_rate})"
            )
        if held_out is not None:
            record |= self._evaluate(held_out)
            if self.progress.update(self.config, record):
                self._best = copy_of(self._current())
        record["seconds"] = round(time.perf_counter() - started, 3)
        self.history.append(record)
        if self.config.checkpoint is not None:
            write_state(self.config.checkpoint, *self._state())

    @torch.no_grad()
    def _evaluate(self, rows: LabelledRows) -> dict[str, float]:
        """Loss and accuracy of the weights that would be kept, without dropout and noise."""
        self.classifier.eval()
        parts = []
        for part in torch.arange(len(rows.x), device=self._device).split(_CHUNK_ROWS):
            extra = None if rows.extra is None else rows.extra[part]
            inputs = (rows.x[part].to(self._dtype), extra)
            parts.append(functional_call(self.classifier, self._current(), inputs))
        self.classifier.train()
        logits = torch.cat(parts).double()
        right = (logits.argmax(-1) == rows.y).double().mean()
        loss, accuracy = torch.stack([cross_entropy(logits, rows.y), right]).tolist()
        return {"validation_loss": loss, "validation_accuracy": accuracy}

    # --- weights ------------------------------------------------------------------------------

    def _current(self) -> dict[str, Tensor]:
        """The average where there is one, the weights themselves without."""
        if self._average is not None:
            return self._average.values
        return dict(self.classifier.named_parameters())

    @torch.no_grad()
    def _take_result(self) -> None:
        result = self._best or self._current()
        for name, parameter in self.classifier.named_parameters():
            parameter.copy_(result[name])

    # --- files --------------------------------------------------------------------------------

    def _state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        optimizer = self._optimizer.state_dict()["state"]
        tensors: dict[str, dict[str, Tensor]] = {
            "weights": dict(self.classifier.named_parameters()),
            "average": {} if self._average is None else self._average.values,
            "best": self._best,
            "optimizer": {
                f"{i}.{name}": value
                for i, values in optimizer.items()
                for name, value in values.items()
                if isinstance(value, Tensor)
            },
            "generator": {"state": self._generator.get_state()},
        }
        metadata = {
            "config": self.config.to_dict(),
            "progress": self.progress.to_dict(),
            "num_averaged": 0 if self._average is None else self._average.num_updates,
            "history": self.history,
        }
        return tensors, metadata

    @torch.no_grad()
    def _restore(self, state: dict[str, dict[str, Tensor]], metadata: dict[str, Any]) -> None:
        parameters = dict(self.classifier.named_parameters())
        for part in ("weights", "average", "best"):
            shapes = {name: value.shape for name, value in state.get(part, {}).items()}
            if shapes and shapes != {name: value.shape for name, value in parameters.items()}:
                raise ValueError(f"{part} have other names or shapes than the classifier")
        for name, parameter in parameters.items():
            parameter.copy_(state["weights"][name])
        here = {part: {n: t.to(self._device) for n, t in state[part].items()} for part in state}
        if self._average is not None and not here.get("average"):
            self._average = WeightAverage(self.classifier, self.config.averaging)
        elif self._average is not None:
            self._average.values = here["average"]
            self._average.num_updates = int(metadata["num_averaged"])
        self._best = here.get("best", {})
        optimizer: dict[int, dict[str, Tensor]] = {}
        for name, value in here.get("optimizer", {}).items():
            index, key = name.split(".", 1)
            optimizer.setdefault(int(index), {})[key] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": optimizer})
        self._generator.set_state(state["generator"]["state"].cpu())
        self.progress = Progress(**metadata["progress"])
        self.history = list(metadata["history"])
