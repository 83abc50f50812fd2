# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The RBM of features and classes as a classifier."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.estimators.arrays import check_labelled_rows, check_rows, data_tensor
from pyro_ebm.estimators.base import Array, TrainedEstimator
from pyro_ebm.estimators.bit_rows import check_rates
from pyro_ebm.estimators.standardizing import Standardizing
from pyro_ebm.training import Trainer

__all__ = ["ClassificationRBM"]

_FAMILIES = ("bernoulli", "gaussian")


class ClassificationRBM(ClassifierMixin, Standardizing, TrainedEstimator):
    r"""Classifier by an RBM whose visible layer is the features and the one-hot class, see
    :class:`pyro_ebm.nn.ClassificationRBM`.

    The probabilities of classes are exact. With ``visible="bernoulli"`` features are bits or rates in
    [0, 1]; with "gaussian" they are real numbers, standardised with the means and standard deviations of
    the first data. Missing labels and rows of a class are for the module.

    **References**

    [1] *Classification using discriminative restricted Boltzmann machines*, Hugo Larochelle, Yoshua
    Bengio (2008)

    [2] *Learning algorithms for the classification restricted Boltzmann machine*, Hugo Larochelle,
    Michael Mandel, Razvan Pascanu, Yoshua Bengio (2012)

    :param int n_components: hidden units.
    :param str visible: "bernoulli" or "gaussian".
    :param str objective: "discriminative" for :math:`\log p(y | x)`, "generative" for :math:`\log p(x, y)`,
        "hybrid" for the first and ``generative_weight`` times the second; ``objective`` of
        :class:`~pyro_ebm.training.TrainerConfig`.
    :param float generative_weight: ``generative_weight``.
    :param learning_rate: ``learning_rate``.
    :param int batch_size: rows of an update, ``batch_size``.
    :param int n_iter: epochs, ``num_epochs``.
    :param n_steps: Gibbs sweeps an update, ``num_steps``.
    :param bool persistent: PCD (True) or CD (False), ``persistent``.
    :param int n_chains: chains of the model's side, ``num_chains``; ``batch_size`` if None.
    :param bool centered: whether the module is centred, ``centered`` of
        :class:`pyro_ebm.nn.ClassificationRBM`.
    :param str optimizer: ``optimizer``.
    :param momentum: ``momentum``.
    :param weight_decay: ``weight_decay``.
    :param float averaging: decay of the moving average of parameters, ``averaging``; the average is then
        what is learnt.
    :param bool binarize: whether bits are drawn from the features at every visit, ``binarize``. If False,
        rates go in as they are, which the generative objective does not take.
    :param bool clip: whether features outside of [0, 1] become the nearer end; they are an error if False.
    :param bool warm_start: whether :meth:`fit` starts at the parameters (and scales) of the last fit.
    :param trainer_options: all further options of :class:`~pyro_ebm.training.TrainerConfig`, by name.
    :param device: device of the module.
    :param int verbose: 0 for silence, otherwise a progress bar.
    :param random_state: None, a seed or a RandomState: initial weights and training.

    **Attributes**

    ``classes_``: the labels; ``module_``: the :class:`pyro_ebm.nn.ClassificationRBM`, whose class i is
    ``classes_[i]``; ``history_``, ``n_iter_``, ``n_features_in_``, ``feature_names_in_``; ``mean_`` and
    ``scale_`` of Gaussian features.

    >>> import numpy as np
    >>> from pyro_ebm.estimators import ClassificationRBM
    >>> X, y = np.eye(4)[[0, 1, 2, 3] * 20], np.array(["even", "odd"] * 40)
    >>> rbm = ClassificationRBM(n_components=4, learning_rate=0.1, random_state=0).fit(X, y)
    >>> rbm.predict(np.eye(4))
    array(['even', 'odd', 'even', 'odd'], dtype='<U4')
    """

    def __init__(
        self,
        n_components: int = 256,
        *,
        visible: str = "bernoulli",
        objective: str = "hybrid",
        generative_weight: float = 0.01,
        learning_rate: Any = 0.01,
        batch_size: int = 20,
        n_iter: int = 30,
        n_steps: Any = 1,
        persistent: bool = False,
        n_chains: int | None = None,
        centered: bool = False,
        optimizer: str = "adam",
        momentum: Any = 0.0,
        weight_decay: Any = 0.0,
        averaging: float = 0.0,
        binarize: bool = False,
        clip: bool = False,
        warm_start: bool = False,
        trainer_options: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        verbose: int = 0,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.visible = visible
        self.objective = objective
        self.generative_weight = generative_weight
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.n_steps = n_steps
        self.persistent = persistent
        self.n_chains = n_chains
        self.centered = centered
        self.optimizer = optimizer
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.averaging = averaging
        self.binarize = binarize
        self.clip = clip
        self.warm_start = warm_start
        self.trainer_options = trainer_options
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    # --- training -----------------------------------------------------------------------------

    def fit(self, X: Any, y: Any) -> Self:
        """Train on rows and their classes for ``n_iter`` epochs.

        :param X: array, data frame or sparse matrix of shape ``(n_samples, n_features)``.
        :param y: labels of any type that can be sorted, shape ``(n_samples,)``.
        :raises ValueError: for impossible arguments, features that the visible units cannot take, labels
            of one class only, or with ``warm_start`` labels that the last fit did not have.
        :raises ~pyro_ebm.training.TrainingDivergedError: if parameters become NaN or infinite.
        """
        go_on = self.warm_start and hasattr(self, "module_")
        X, y = self._check_data(X, y, first=not go_on)
        if not go_on:
            self._set_classes(y)
        numbers = self._class_numbers(y)
        trainer = self._make_trainer(X, go_on)
        trainer.fit(self._training_rows(trainer, X, numbers))
        return self._show(trainer)

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Train on rows and their classes for one epoch; optimiser, chains and schedules go on from call to
        call.

        The first call decides the dtype and sets the visible layer to the statistics of its rows: let
        them be many enough.

        :param X: array, data frame or sparse matrix of shape ``(n_samples, n_features)``.
        :param y: labels, shape ``(n_samples,)``.
        :param classes: all labels that may come; needed at the first call.
        :raises ValueError: if ``classes`` is missing at the first call, or is another than at the first
            one, or ``y`` has other labels.
        """
        first = not hasattr(self, "module_")
        if first and classes is None:
            raise ValueError("classes must be given at the first call of partial_fit")
        X, y = self._check_data(X, y, first=first)
        if first:
            self._set_classes(classes)
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes must stay {self.classes_.tolist()}, got {list(classes)}")
        numbers = self._class_numbers(y)
        trainer = self._make_trainer(X, go_on=False) if first else self._trainer
        trainer.partial_fit(self._training_rows(trainer, X, numbers))
        return self._show(trainer)

    def _check_data(self, X: Any, y: Any, first: bool) -> tuple[Any, Array]:
        X, y = check_labelled_rows(self, X, y, reset=first)
        check_classification_targets(y)
        return self._check_values(X), y

    def _set_classes(self, labels: Any) -> None:
        classes = np.unique(labels)
        if len(classes) < 2:
            raise ValueError(f"y must have at least 2 classes, got 1 class: {classes.tolist()}")
        self.classes_ = classes

    def _class_numbers(self, y: Array) -> Tensor:
        """Labels as whole numbers from 0."""
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(
                f"y has labels {unknown.tolist()}; the classes are {self.classes_.tolist()}"
            )
        return torch.from_numpy(np.searchsorted(self.classes_, y))

    def _training_rows(self, trainer: Trainer, X: Any, numbers: Tensor) -> Tensor:
        module: Any = trainer.module
        rows = data_tensor(X)
        if self.visible == "gaussian":
            rows = rows.to(module.weight.dtype)
        return module.join(self._to_states(rows), numbers)

    def _make_module(self, X: Any, seed: int) -> nn.RBM:
        self._learn_scales(X, self.visible == "gaussian")
        module = nn.ClassificationRBM(
            **self._module_options(X, seed), num_classes=len(self.classes_), visible=self.visible
        )
        if self.visible == "bernoulli":
            module.visible.inputs.init_from_data(data_tensor(X).to(module.weight))
        return module

    def _check_arguments(self) -> None:
        if self.visible not in _FAMILIES:
            raise ValueError(f"visible must be one of {_FAMILIES}, got {self.visible!r}")

    def _check_values(self, X: Any) -> Any:
        return check_rates(X, clip=self.clip) if self.visible == "bernoulli" else X

    def _to_states(self, rows: Tensor) -> Tensor:
        return super()._to_states(rows) if self.visible == "gaussian" else rows

    # --- predictions --------------------------------------------------------------------------

    def predict(self, X: Any) -> Array:
        """The most probable class of every row.

        :param X: array, data frame or sparse matrix of shape ``(n_samples, n_features)``.
        :returns: labels, shape ``(n_samples,)``.
        """
        numbers = self.predict_log_proba(X).argmax(1)
        return self.classes_[numbers]

    def predict_proba(self, X: Any) -> Array:
        """The exact p(y | x) of every class, in the order of ``classes_``.

        :param X: array, data frame or sparse matrix of shape ``(n_samples, n_features)``.
        :returns: shape ``(n_samples, n_classes)``.
        """
        return np.exp(self.predict_log_proba(X))

    @torch.no_grad()
    def predict_log_proba(self, X: Any) -> Array:
        """The exact log p(y | x) of every class, in the order of ``classes_``.

        :param X: array, data frame or sparse matrix of shape ``(n_samples, n_features)``.
        :returns: shape ``(n_samples, n_classes)``.
        """
        check_is_fitted(self)
        X = self._check_values(check_rows(self, X, reset=False))
        return self._by_block(self.module_.log_class_probabilities, X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = self.visible == "bernoulli" and not self.clip
        return tags
