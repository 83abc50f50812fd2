# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The deep Boltzmann machine of bits as an estimator."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm import distributions, nn
from pyro_ebm.distributions import GibbsSweep
from pyro_ebm.estimators.arrays import by_block, data_tensor
from pyro_ebm.estimators.base import Array
from pyro_ebm.estimators.bit_rows import BitRows
from pyro_ebm.estimators.options import plain
from pyro_ebm.estimators.transformer import RBMTransformer
from pyro_ebm.ops.layers import alternate
from pyro_ebm.training import TrainerConfig, pretrain
from pyro_ebm.training.pretraining import PRETRAINING_METHODS

__all__ = ["DeepBoltzmannMachine"]


class DeepBoltzmannMachine(BitRows, RBMTransformer):
    r"""Deep Boltzmann machine of bits with any number of hidden layers [1].

    :meth:`transform` gives the mean-field means of the top layer, :meth:`score_samples` the variational bound
    of the unnormalised log-probability, both without random numbers; :meth:`inverse_transform` gives the
    mean-field means of the features given states of the top layer. Chains of :meth:`gibbs` start at rows,
    with the layers above drawn from the mean field.

    Data between 0 and 1 are rates, as for :class:`~pyro_ebm.estimators.BernoulliRBM`.

    **References**

    [1] *Deep Boltzmann machines*, Ruslan Salakhutdinov, Geoffrey Hinton (2009)

    [2] *Deep Boltzmann machines and the centering trick*, Grégoire Montavon, Klaus-Robert Müller (2012)

    :param n_components: units of the hidden layers, the lowest one first; a number for one layer.
    :param learning_rate: ``learning_rate`` of :class:`~pyro_ebm.training.TrainerConfig`.
    :param int batch_size: rows of an update, ``batch_size``.
    :param int n_iter: epochs of the joint training, ``num_epochs``.
    :param n_steps: Gibbs sweeps an update, ``num_steps``.
    :param bool persistent: persistent chains (True) or chains from the data, ``persistent``.
    :param int n_chains: chains of the model's side, ``num_chains``; ``batch_size`` if None.
    :param bool centered: whether the module is centred [2], which trains it without pre-training.
    :param str pretraining: a method of :func:`~pyro_ebm.training.pretrain`, or None for a random start. It
        takes the rows of :meth:`fit`, or of the first :meth:`partial_fit`.
    :param pretraining_options: options of :class:`~pyro_ebm.training.TrainerConfig` for every RBM of it, such
        as ``{"num_epochs": 20}``; by default CD-1 with the rate, the batches, the epochs and the momentum of
        the estimator.
    :param str optimizer: ``optimizer``.
    :param momentum: ``momentum``.
    :param weight_decay: ``weight_decay``.
    :param float averaging: decay of the moving average of parameters, ``averaging``.
    :param bool binarize: whether bits are drawn from the data at every visit, ``binarize``.
    :param bool clip: whether values outside of [0, 1] become the nearer end; they are an error if False.
    :param bool warm_start: whether :meth:`fit` starts at the parameters of the last fit.
    :param str scoring: what :meth:`score` is: "ais", the variational bound of the log-likelihood with log Z
        by annealed importance sampling (which is optimistic on average, more so with few temperatures);
        "exact", the log-likelihood by enumeration, for small layers.
    :param scoring_options: options of :func:`~pyro_ebm.infer.estimate_log_partition` ("ais"; by default
        100 chains, 1,000 temperatures, seed 0) or :func:`~pyro_ebm.infer.exact_log_partition` ("exact").
    :param trainer_options: all further options of :class:`~pyro_ebm.training.TrainerConfig`, by name.
    :param device: device of the module.
    :param int verbose: 0 for silence, otherwise a progress bar.
    :param random_state: None, a seed or a RandomState: initial weights, training and chains.

    **Attributes**

    ``module_``: the :class:`pyro_ebm.nn.DBM`, for all else that this package does; ``components_``: weights
    of every layer; ``intercepts_``: biases of every layer, the visible one first; ``history_``: metrics of
    every epoch; ``pretraining_histories_``: those of the RBMs; ``n_iter_``: epochs done;
    ``n_features_in_`` and ``feature_names_in_``.

    >>> import numpy as np
    >>> from pyro_ebm.estimators import DeepBoltzmannMachine
    >>> X = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
    >>> dbm = DeepBoltzmannMachine(n_components=(3, 2), random_state=0).fit(X)
    >>> dbm.transform(X).shape
    (4, 2)
    """

    _output_argument = "n_components[-1]"
    _scorings = ("ais", "exact")

    def __init__(
        self,
        n_components: int | Sequence[int] = (256, 256),
        *,
        learning_rate: Any = 0.05,
        batch_size: int = 20,
        n_iter: int = 10,
        n_steps: Any = 1,
        persistent: bool = True,
        n_chains: int | None = None,
        centered: bool = True,
        pretraining: str | None = None,
        pretraining_options: Mapping[str, Any] | None = None,
        optimizer: str = "sgd",
        momentum: Any = 0.0,
        weight_decay: Any = 0.0,
        averaging: float = 0.0,
        binarize: bool = True,
        clip: bool = False,
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
        self.pretraining = pretraining
        self.pretraining_options = pretraining_options
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

    # --- training -----------------------------------------------------------------------------

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.pretraining is not None and self.pretraining not in PRETRAINING_METHODS:
            raise ValueError(
                f"pretraining must be None or one of {PRETRAINING_METHODS}, got {self.pretraining!r}"
            )
        options = self.pretraining_options
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"pretraining_options must be a dictionary or None, got {options!r}")
        if options and self.pretraining is None:
            raise ValueError("pretraining_options are given, but pretraining is None")

    def _num_hidden(self) -> list[Any]:
        sizes = plain(self.n_components)
        if isinstance(sizes, str) or not hasattr(sizes, "__iter__"):
            sizes = [sizes]
        return [plain(size) for size in sizes]

    def _fitted_num_hidden(self) -> list[int]:
        return list(self.module_.sizes[1:])

    def _make_module(self, X: Any, seed: int) -> nn.DBM:
        data = data_tensor(X)
        module = nn.DBM(**self._module_options(X, seed)).init_from_data(data)
        self.pretraining_histories_: tuple[list[dict[str, Any]], ...] = ()
        if self.pretraining is not None:
            stack = pretrain(module, data, self._pretraining_config(), method=self.pretraining)
            self.pretraining_histories_ = stack.histories
        return module

    def _pretraining_config(self) -> TrainerConfig:
        config = TrainerConfig(
            num_epochs=plain(self.n_iter),
            batch_size=plain(self.batch_size),
            learning_rate=plain(self.learning_rate),
            momentum=plain(self.momentum),
            binarize=self.binarize,
            progress=bool(self.verbose),
            seed=self._draw_seed(),
        )
        try:
            return replace(config, **(self.pretraining_options or {}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"pretraining_options: {error}") from error

    # --- what was learnt ----------------------------------------------------------------------

    @property
    def _weight(self) -> Tensor:
        return self.module_.weights[-1].detach()

    def _by_block(self, function: Any, X: Any) -> Array:
        """Results of a function of states for rows of the data."""
        return by_block(
            lambda rows: function(self._to_states(rows)), X, self._weight, sum(self.module_.sizes)
        )

    @property
    def components_(self) -> list[Array]:  # type: ignore[override]
        """Weights of every layer, shapes ``(units, units of the layer below)``."""
        return [weight.detach().T.cpu().numpy() for weight in self.module_.weights]

    @property
    def intercepts_(self) -> list[Array]:
        """Biases of every layer, the visible one first, those of a centred machine without its offsets."""
        dist = self._distribution()
        form = dist.bipartite().canonical()
        even, odd = dist.split_even(form.visible_bias), dist.split_odd(form.hidden_bias)
        return [bias.cpu().numpy() for bias in alternate(even, odd)]

    @property
    def intercept_visible_(self) -> Array:
        """Biases of the visible layer, shape ``(n_features,)``."""
        return self.intercepts_[0]

    @property
    def intercept_hidden_(self) -> list[Array]:  # type: ignore[override]
        """Biases of the hidden layers, the lowest one first."""
        return self.intercepts_[1:]

    # --- the machine --------------------------------------------------------------------------

    def _features(self, dist: distributions.DBM, v: Tensor) -> Tensor:
        return dist.mean_field(v).means[-1]

    def _visible_mean(self, dist: distributions.DBM, h: Tensor) -> Tensor:
        # The machine upside down, with the top layer in the place of the data.
        reversed_machine = distributions.DBM(
            dist.units[::-1],
            [weight.mT for weight in dist.weights[::-1]],
            offsets=dist.offsets[::-1],
            validate_args=False,
        )
        return reversed_machine.mean_field(h).means[-1]

    def _run_chains(
        self, dist: distributions.DBM, v: Tensor, num_steps: int, generator: Generator
    ) -> Tensor:
        start = dist.draw_even(v, dist.mean_field(v), generator=generator)
        states = GibbsSweep(dist.bipartite(), generator).run(start, num_steps)
        return dist.split_even(states)[0]
