# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The RBM of bits as an estimator."""

from collections.abc import Mapping
from typing import Any

import torch

from pyro_ebm import nn
from pyro_ebm.estimators.arrays import data_tensor
from pyro_ebm.estimators.bit_rows import BitRows
from pyro_ebm.estimators.transformer import RBMTransformer

__all__ = ["BernoulliRBM"]


class BernoulliRBM(BitRows, RBMTransformer):
    r"""RBM with binary visible and hidden units.

    The arguments, attributes and methods of :class:`sklearn.neural_network.BernoulliRBM`, and those of
    :class:`~pyro_ebm.training.Trainer`. Differences to the former: the visible biases start at the
    log-odds of the data's means; :meth:`score_samples` is :math:`-F(v)`, and :meth:`score` the exact
    pseudo-log-likelihood, neither with noise; data outside of [0, 1] are refused.

    Data between 0 and 1, such as grey levels, are rates. In training they are what bits are drawn from;
    :meth:`transform` and :meth:`score_samples` take them in the place of bits, as they are; :meth:`score`
    is that of bits drawn from them, the same at every call.

    **References**

    [1] *Training restricted Boltzmann machines using approximations to the likelihood gradient*, Tijmen
    Tieleman (2008)

    [2] *A Practical Guide to Training Restricted Boltzmann Machines*, Geoffrey Hinton (2012)

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
    :param bool binarize: whether bits are drawn from the data at every visit, ``binarize``. If False,
        training takes bits only.
    :param bool clip: whether values outside of [0, 1] become the nearer end, as those of test data that
        :class:`sklearn.preprocessing.MinMaxScaler` scaled; they are an error if False.
    :param bool warm_start: whether :meth:`fit` starts at the parameters of the last fit.
    :param str scoring: what :meth:`score` is: "pseudo", the pseudo-log-likelihood; "ais", the
        log-likelihood with log Z by annealed importance sampling (optimistic on average, more so with few
        temperatures); "exact", with log Z by enumeration, for small layers.
    :param scoring_options: options of :func:`~pyro_ebm.infer.estimate_log_partition` ("ais"; by default
        100 chains, 1,000 temperatures, seed 0) or :func:`~pyro_ebm.infer.exact_log_partition` ("exact").
    :param trainer_options: all further options of :class:`~pyro_ebm.training.TrainerConfig`, by name.
    :param device: device of the module.
    :param int verbose: 0 for silence, otherwise a progress bar.
    :param random_state: None, a seed or a RandomState: initial weights, training and chains.

    **Attributes**

    ``module_``: the :class:`pyro_ebm.nn.RBM`, for all else that this package does; ``components_``,
    ``intercept_hidden_``, ``intercept_visible_``: its parameters; ``history_``: metrics of every epoch;
    ``n_iter_``: epochs done; ``n_features_in_`` and ``feature_names_in_``.

    >>> import numpy as np
    >>> from pyro_ebm.estimators import BernoulliRBM
    >>> X = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
    >>> rbm = BernoulliRBM(n_components=2, random_state=0).fit(X)
    >>> rbm.transform(X).shape
    (4, 2)
    """

    def __init__(
        self,
        n_components: int = 256,
        *,
        learning_rate: Any = 0.1,
        batch_size: int = 10,
        n_iter: int = 10,
        n_steps: Any = 1,
        persistent: bool = True,
        n_chains: int | None = None,
        centered: bool = False,
        optimizer: str = "sgd",
        momentum: Any = 0.0,
        weight_decay: Any = 0.0,
        averaging: float = 0.0,
        binarize: bool = True,
        clip: bool = False,
        warm_start: bool = False,
        scoring: str = "pseudo",
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
        self.binarize = binarize
        self.clip = clip
        self.warm_start = warm_start
        self.scoring = scoring
        self.scoring_options = scoring_options
        self.trainer_options = trainer_options
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def _make_module(self, X: Any, seed: int) -> nn.RBM:
        module = nn.RBM(**self._module_options(X, seed))
        return module.init_from_data(data_tensor(X))
