# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What the transformers share: features, energies, chains, scores."""

from typing import Any, Self

import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Generator, Tensor

from pyro_ebm.distributions import GibbsSweep
from pyro_ebm.estimators.arrays import FLOATS, by_block, check_rows, data_tensor
from pyro_ebm.estimators.base import Array, TrainedEstimator
from pyro_ebm.estimators.options import plain
from pyro_ebm.estimators.scores import check_scoring, row_scores
from pyro_ebm.training import Trainer

__all__ = ["RBMTransformer"]


class RBMTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, TrainedEstimator):
    """A machine as a transformer of scikit-learn, whose features are the hidden means."""

    #: The argument that says how many columns :meth:`transform` makes.
    _output_argument = "n_components"
    #: Scores that ``scoring`` may name.
    _scorings: tuple[str, ...] = ("pseudo", "ais", "exact")

    # --- what a subclass may say --------------------------------------------------------------

    def _from_states(self, states: Tensor) -> Tensor:
        """The inverse of :meth:`_to_states`."""
        return states

    def _log_jacobian(self) -> float:
        """What the log-density of rows has more than that of their states."""
        return 0.0

    def _states_to_score(self, rows: Tensor) -> Tensor:
        """Rows of the data as states that have a probability."""
        return self._to_states(rows)

    def _training_rows(self, X: Any, dtype: torch.dtype) -> Tensor:
        """Data as the trainer of a module of some dtype takes it."""
        return data_tensor(X)

    def _check_arguments(self) -> None:
        check_scoring(self.scoring, self.scoring_options, self._scorings)

    # --- the machine ---------------------------------------------------------------------------

    def _features(self, dist: Any, v: Tensor) -> Tensor:
        """Means of the hidden layer that is the output."""
        mean: Tensor = dist.hidden.mean(dist.hidden_field(v))
        return mean

    def _visible_mean(self, dist: Any, h: Tensor) -> Tensor:
        """Means of the visible layer given the hidden layer that is the output."""
        mean: Tensor = dist.visible.mean(dist.visible_field(h))
        return mean

    def _run_chains(self, dist: Any, v: Tensor, num_steps: int, generator: Generator) -> Tensor:
        """Visible states of chains of block Gibbs that start at rows."""
        return GibbsSweep(dist, generator).run(v, num_steps)

    # --- fit ----------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on the data for ``n_iter`` epochs.

        :param X: array, data frame or sparse matrix of shape ``(n_samples, n_features)``.
        :param y: not used.
        :raises ValueError: for impossible arguments, or data that the visible units cannot take.
        :raises ~pyro_ebm.training.TrainingDivergedError: if parameters become NaN or infinite.
        """
        go_on = self.warm_start and hasattr(self, "module_")
        X = self._check_values(check_rows(self, X, reset=not go_on))
        trainer = self._make_trainer(X, go_on)
        trainer.fit(self._training_rows(X, _dtype(trainer)))
        return self._show(trainer)

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Train on the data for one epoch; optimiser, chains and schedules go on from call to call.

        The first call decides the dtype and sets the visible layer to the statistics of its rows: let
        them be many enough.

        :param X: array, data frame or sparse matrix of shape ``(n_samples, n_features)``.
        :param y: not used.
        """
        first = not hasattr(self, "module_")
        X = self._check_values(check_rows(self, X, reset=first))
        trainer = self._make_trainer(X, go_on=False) if first else self._trainer
        trainer.partial_fit(self._training_rows(X, _dtype(trainer)))
        return self._show(trainer)

    # --- what was learnt ----------------------------------------------------------------------

    @property
    def components_(self) -> Array:
        """Weights, shape ``(n_components, n_features)``."""
        return self._weight.T.cpu().numpy()

    @property
    def intercept_hidden_(self) -> Array:
        """Hidden biases, shape ``(n_components,)``, those of a centred machine without its offsets."""
        return self._distribution().canonical().hidden_bias.cpu().numpy()

    @property
    def intercept_visible_(self) -> Array:
        """Visible biases b of the energy's term -b'v, shape ``(n_features,)``, without offsets."""
        return self._distribution().canonical().visible_bias.cpu().numpy()

    # --- features -----------------------------------------------------------------------------

    def transform(self, X: Any) -> Array:
        """Means of the hidden units, :math:`E[h | v]`: no random numbers, no chains.

        :param X: array, data frame or sparse matrix of shape ``(n_samples, n_features)``.
        :returns: shape ``(n_samples, n_components)``.
        """
        X, dist = self._checked(X), self._distribution()
        return self._by_block(lambda v: self._features(dist, v), X)

    def inverse_transform(self, X: Any) -> Array:
        """Means of the features given hidden states or means, :math:`E[v | h]`.

        :param X: array of shape ``(n_samples, n_components)``.
        :returns: shape ``(n_samples, n_features)``.
        :raises ValueError: for another number of columns.
        """
        check_is_fitted(self)
        X, dist = check_array(X, dtype=FLOATS), self._distribution()
        num_hidden = self._n_features_out
        if X.shape[1] != num_hidden:
            raise ValueError(
                f"X must have {self._output_argument}={num_hidden} columns, hidden states or their "
                f"means, got {X.shape[1]}"
            )

        def mean(h: Tensor) -> Tensor:
            return self._from_states(self._visible_mean(dist, h))

        return by_block(mean, X, self._weight, self.n_features_in_)

    # --- energies and scores ------------------------------------------------------------------

    def score_samples(self, X: Any) -> Array:
        r"""Unnormalised log-probability :math:`-F(v)` of every row, the log-likelihood but for log Z.

        Differences of it are exact, so that it ranks rows by how likely they are. Nothing random
        enters.

        :param X: array, data frame or sparse matrix of shape ``(n_samples, n_features)``.
        :returns: shape ``(n_samples,)``.
        """
        X, dist = self._checked(X), self._distribution()
        jacobian = self._log_jacobian()
        return self._by_block(lambda v: jacobian - dist.free_energy(v), X)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean over rows of what ``scoring`` names, in nats; larger is better.

        :param X: array, data frame or sparse matrix of shape ``(n_samples, n_features)``.
        :param y: not used.
        """
        X = self._checked(X)
        check_scoring(self.scoring, self.scoring_options, self._scorings)
        rows = self._states_to_score(data_tensor(X).to(self._weight))
        scores = row_scores(self._distribution(), rows, self.scoring, self.scoring_options)
        return scores.double().mean().item() + self._log_jacobian()

    # --- chains -------------------------------------------------------------------------------

    def gibbs(self, X: Any, n_steps: int = 1, *, random_state: Any = None) -> Array:
        """States of chains that start at the rows, after sweeps of block Gibbs.

        :param X: array, data frame or sparse matrix of shape ``(n_samples, n_features)``.
        :param int n_steps: sweeps.
        :param random_state: a seed or RandomState for this call; None goes on with the estimator's.
        :returns: shape ``(n_samples, n_features)``.
        """
        n_steps = _check_count("n_steps", n_steps, least=0)
        X, dist = self._checked(X), self._distribution()
        generator = self._generator(random_state)
        return self._by_block(
            lambda v: self._from_states(self._run_chains(dist, v, n_steps, generator)), X
        )

    def sample(self, n_samples: int = 1, n_steps: int = 1000, *, random_state: Any = None) -> Array:
        """Draws of the model, independent of each other.

        They are exact where one layer has at most 16 units to enumerate; otherwise every draw is the end
        of a Gibbs chain of its own that starts at the visible layer without its weights.

        :param int n_samples: draws.
        :param int n_steps: sweeps of the chains.
        :param random_state: a seed or RandomState for this call; None goes on with the estimator's.
        :returns: shape ``(n_samples, n_features)``.
        """
        check_is_fitted(self)
        n_samples = _check_count("n_samples", n_samples, least=1)
        dist = self._distribution(num_gibbs_steps=_check_count("n_steps", n_steps, least=1))
        states = dist.sample((n_samples,), generator=self._generator(random_state))
        return self._from_states(states).cpu().numpy()

    def _checked(self, X: Any) -> Any:
        check_is_fitted(self)
        return self._check_values(check_rows(self, X, reset=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _check_count(name: str, value: Any, least: int) -> int:
    value = plain(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    return value


def _dtype(trainer: Trainer) -> torch.dtype:
    return next(trainer.module.parameters()).dtype
