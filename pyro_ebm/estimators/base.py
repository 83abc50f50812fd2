# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What all estimators share: training runs, seeds, copies."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.estimators.arrays import by_block
from pyro_ebm.estimators.options import plain, trainer_config
from pyro_ebm.training import Trainer
from pyro_ebm.training.checkpoints import Checkpoint

__all__ = ["Array", "TrainedEstimator"]

Array = np.ndarray[Any, Any]


class TrainedEstimator(BaseEstimator):
    """A machine that :class:`~pyro_ebm.training.Trainer` trains, as an estimator of scikit-learn.

    Subclasses have the arguments of :class:`~pyro_ebm.estimators.BernoulliRBM` that are used here, and
    say what their visible layer is.
    """

    # --- what a subclass says -----------------------------------------------------------------

    @abstractmethod
    def _make_module(self, X: Any, seed: int) -> nn.RBM | nn.DBM:
        """A module with initial parameters for the first data, of their dtype."""

    @abstractmethod
    def _check_values(self, X: Any) -> Any:
        """Data with values that can be states, after :func:`~pyro_ebm.estimators.arrays.check_rows`."""

    def _check_arguments(self) -> None:
        """Refuse arguments that training would not notice."""

    def _to_states(self, rows: Tensor) -> Tensor:
        """Rows of the data as states of the visible layer."""
        return rows

    # --- training -----------------------------------------------------------------------------

    def _make_trainer(self, X: Any, go_on: bool) -> Trainer:
        """A trainer of a new module, or of that of the last fit."""
        self._check_arguments()
        self.random_state_ = check_random_state(self.random_state)
        config = trainer_config(self.get_params(deep=False), self._draw_seed())
        if not go_on:
            return Trainer(self._make_module(X, self._draw_seed()), config)
        got, expected = self._num_hidden(), self._fitted_num_hidden()
        if got != expected:
            raise ValueError(f"n_components must stay {expected} with warm_start, got {got}")
        return Trainer(self.module_, config)

    def _show(self, trainer: Trainer) -> Self:
        """Keep a trainer, and what it has learnt."""
        self._trainer = trainer
        self.module_ = trainer.averaged
        self.history_ = trainer.history
        self.n_iter_ = trainer.epoch
        self._n_features_out = self._weight.shape[1]
        return self

    def _module_options(self, X: Any, seed: int) -> dict[str, Any]:
        """Arguments that all modules have."""
        return {
            "num_visible": X.shape[1],
            "num_hidden": self._num_hidden(),
            "centered": plain(self.centered),
            "seed": seed,
            "dtype": torch.from_numpy(np.empty(0, X.dtype)).dtype,
            "device": self.device,
        }

    def _num_hidden(self) -> Any:
        """The hidden units that were asked for."""
        return plain(self.n_components)

    def _fitted_num_hidden(self) -> Any:
        """The hidden units that the module has."""
        return self._weight.shape[1]

    def _draw_seed(self) -> int:
        return int(self.random_state_.randint(2**31 - 1))

    def _generator(self, random_state: Any) -> Generator:
        """A source of random bits on the module's device, seeded by what the caller gave."""
        source = self.random_state_ if random_state is None else check_random_state(random_state)
        seed = int(source.randint(2**31 - 1))
        return Generator(device=self._weight.device).manual_seed(seed)

    # --- what was learnt ----------------------------------------------------------------------

    @property
    def _weight(self) -> Tensor:
        return self.module_.get_parameter("weight").detach()

    @torch.no_grad()
    def _distribution(self, **options: Any) -> Any:
        return self.module_(validate_args=False, **options).detach()

    def _by_block(self, function: Callable[[Tensor], Tensor], X: Any) -> Array:
        """Results of a function of states for rows of the data."""
        width = max(self._weight.shape)
        return by_block(lambda rows: function(self._to_states(rows)), X, self._weight, width)

    # --- copies and tags ----------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # A trainer holds functions; its state is tensors and numbers.
        state = dict(super().__getstate__())
        if "_trainer" in state:
            state["_trainer"] = self._trainer.state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        checkpoint = state.get("_trainer")
        if isinstance(checkpoint, Checkpoint):
            trainer = Trainer(checkpoint.module, checkpoint.config)
            trainer.restore(checkpoint)
            self._show(trainer)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
