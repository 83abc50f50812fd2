# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The RBM of real numbers as an estimator."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.estimators.arrays import data_tensor
from pyro_ebm.estimators.options import plain
from pyro_ebm.estimators.standardizing import Standardizing
from pyro_ebm.estimators.transformer import RBMTransformer

__all__ = ["GaussianRBM"]


class GaussianRBM(Standardizing, RBMTransformer):
    r"""RBM with Gaussian visible and binary hidden units.

    Features are standardised with the means and standard deviations of the first data, since one learning
    rate cannot serve features of different scales; ``components_``, the intercepts and ``module_`` are
    those of standardised features, while rows that are given or returned, and log-densities, are in the
    units of the data.

    **References**

    [1] *Reducing the dimensionality of data with neural networks*, Geoffrey Hinton, Ruslan Salakhutdinov
    (2006)

    [2] *Gaussian-binary restricted Boltzmann machines for modeling natural image statistics*, Jan
    Melchior, Nan Wang, Laurenz Wiskott (2017)

    :param int n_components: hidden units.
    :param learning_rate: ``learning_rate`` of :class:`~pyro_ebm.training.TrainerConfig`.
    :param int batch_size: rows of an update, ``batch_size``.
    :param int n_iter: epochs, ``num_epochs``.
    :param n_steps: Gibbs sweeps an update, ``num_steps``.
    :param bool persistent: PCD (True) or CD (False), ``persistent``.
    :param int n_chains: chains of the model's side, ``num_chains``; ``batch_size`` if None.
    :param bool centered: whether the module is centred, ``centered`` of :class:`pyro_ebm.nn.RBM`.
    :param str optimizer: ``optimizer``.
    :param momentum: ``momentum``.
    :param weight_decay: ``weight_decay``.
    :param float averaging: decay of the moving average of parameters, ``averaging``; the average is then
        what is learnt.
    :param bool standardize: whether features are standardised. If False, the layer starts at the means and
        variances of the data: whiten or scale them before.
    :param bool learn_precision: whether the precisions of visible units are learnt.
    :param bool warm_start: whether :meth:`fit` starts at the parameters (and scales) of the last fit.
    :param str scoring: what :meth:`score` is: "ais", the log-likelihood with log Z by annealed importance
        sampling (optimistic on average, more so with few temperatures); "exact", with log Z by
        enumeration of up to about 25 hidden units.
    :param scoring_options: options of :func:`~pyro_ebm.infer.estimate_log_partition` ("ais"; by default
        100 chains, 1,000 temperatures, seed 0) or :func:`~pyro_ebm.infer.exact_log_partition` ("exact").
    :param trainer_options: all further options of :class:`~pyro_ebm.training.TrainerConfig`, by name.
    :param device: device of the module.
    :param int verbose: 0 for silence, otherwise a progress bar.
    :param random_state: None, a seed or a RandomState: initial weights, training and chains.

    **Attributes**

    Those of :class:`BernoulliRBM`; ``mean_`` and ``scale_`` of the features, 0 and 1 without
    ``standardize``.

    >>> import numpy as np
    >>> from pyro_ebm.estimators import GaussianRBM
    >>> X = np.random.RandomState(0).normal(5.0, 2.0, size=(100, 3))
    >>> rbm = GaussianRBM(n_components=2, random_state=0).fit(X)
    >>> rbm.sample(10).shape
    (10, 3)
    """

    _scorings = ("ais", "exact")

    def __init__(
        self,
        n_components: int = 256,
        *,
        learning_rate: Any = 0.01,
        batch_size: int = 10,
        n_iter: int = 10,
        n_steps: Any = 1,
        persistent: bool = False,
        n_chains: int | None = None,
        centered: bool = False,
        optimizer: str = "sgd",
        momentum: Any = 0.0,
        weight_decay: Any = 0.0,
        averaging: float = 0.0,
        standardize: bool = True,
        learn_precision: bool = False,
        warm_start: bool = False,
        scoring: str = "ais",
        scoring_options: Mapping[str, Any] | None = None,
        trainer_options: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        verbose: int = 0,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
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
        self.standardize = standardize
        self.learn_precision = learn_precision
        self.warm_start = warm_start
        self.scoring = scoring
        self.scoring_options = scoring_options
        self.trainer_options = trainer_options
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def _make_module(self, X: Any, seed: int) -> nn.RBM:
        self._learn_scales(X, plain(self.standardize))
        options = {"learn_precision": plain(self.learn_precision)}
        module = nn.RBM(
            **self._module_options(X, seed), visible="gaussian", visible_options=options
        )
        # Standardised features have mean 0 and variance 1, where the module starts. The data would give a
        # constant one a huge precision, and with it huge gradients.
        return module if self.standardize else module.init_from_data(data_tensor(X))

    def _check_values(self, X: Any) -> Any:
        return X

    def _training_rows(self, X: Any, dtype: torch.dtype) -> Tensor:
        return self._to_states(data_tensor(X).to(dtype))
