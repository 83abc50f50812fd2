# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Options of a training run."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pyro_ebm.training.config_checks import CHECKS, SCHEDULES, check_combinations
from pyro_ebm.training.schedules import check, tabulate

__all__ = ["TrainerConfig"]

_Rate = float | Sequence[float] | Callable[[int], float]
_Count = int | Sequence[int] | Callable[[int], int]


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    r"""Options of :class:`~pyro_ebm.training.Trainer`.

    Options marked *(schedule)* take a number, a list with one number an epoch (the last one holds on) or
    a function of the epoch, of which the first is 0; a function is tabulated for ``num_epochs`` when the
    configuration is made, so that a file can hold it. Options marked *(RBM)* are refused by
    conditional models, those marked *(shallow)* by deep machines too, and those marked
    *(conditional)* or *(DBM)* by all others.

    **The run**

    :param int num_epochs: passes over the data.
    :param int batch_size: rows per update.
    :param int seed: seed of all random numbers of the run; drawn from the global generator if None.
    :param bool binarize: whether the data are rates in [0, 1] from which new bits (or spins) are drawn
        at each visit.
    :param float noise_std: standard deviation of noise that is added to the data at each visit.
    :param str missing: what entries that ``observed`` leaves out are: "marginal", units that were not seen
        and are summed out; or "absent", units that the row does not have, so that every row is a machine
        of its own units, as in RBM collaborative filtering *(shallow)*, see
        :class:`~pyro_ebm.training.absent_gradient.AbsentGradient`.
    :param metrics: names of the metrics of the history, see :data:`pyro_ebm.training.metrics.METRICS`; None
        for reconstruction error, free energies and the norm of the weights.
    :param int metrics_every: epochs between two evaluations of the metrics.
    :param metrics_options: options by metric, such as ``{"ais_log_likelihood": {"every": 5}}``.
    :param int metrics_rows: rows of training and validation data that metrics are computed on.
    :param str monitor: the key of the history that says which epoch is the best, such as
        "free_energy_gap", or one that a callback adds at every epoch.
    :param str monitor_mode: "min" if small values of it are good, "max" if large ones are.
    :param float min_delta: difference to the best value by which a better one must be better.
    :param int patience: values of it without a better one after which the run ends; None for no end.
    :param str best_checkpoint: file that receives a checkpoint whenever it is better, None for none.
    :param str checkpoint: file that receives a checkpoint, None for none.
    :param int checkpoint_every: epochs between checkpoints; the last epoch always writes one.
    :param bool progress: whether to show a progress bar.

    **The model's side**

    :param int num_steps: Gibbs sweeps per update, the k of CD-k and PCD-k *(schedule)*.
    :param bool persistent: whether chains go on from update to update (PCD) or start anew (CD).
    :param int num_chains: chains of the model's side; ``batch_size`` if None. With CD they start at
        randomly chosen rows of the batch. For a conditional model, chains of every context; if None 20
        where they are persistent, one a row where they start at the data, and where they start at the
        "prior" as many as a context of the batch has rows on average, rounded up; the chains of a
        context have the weight of its rows.
    :param str chain_start: where the chains of CD start: at the "data"; of an RBM at "noise", the visible
        layer without its couplings; of a conditional model at the "prior", the hidden layer without its
        couplings (for Gaussian units the paper's start at the mean). A deep machine's chains have states of
        all even layers: at the "data" those above the visible one are drawn from the mean field.
    :param str persistent_start: the same of persistent chains: at "noise", or at the "data", rows of the
        first batch, without repetition where there are enough *(RBM)*.
    :param str negative_phase: "gibbs"; "tempering" or "trajectory" (of persistent chains), replicas at
        several temperatures, or at several earlier machines of the run *(RBM)*; or "exact", the gradient of
        the exact log Z, for layers that can be enumerated (of a deep machine all even or all odd ones).
    :param str negative_side: whether negatives are "visible" or "hidden" states; "auto" for hidden ones
        where visible units are Gaussian, which has less variance *(conditional)*.
    :param int num_replicas: levels of "tempering" and "trajectory".
    :param float fast_rate: rate of the fast weights of fast PCD [1]; 0 for none *(schedule, shallow)*.
    :param float fast_decay: factor by which fast weights decay at every update.
    :param str positive_hidden: "mean" or "sample": what stands for the hidden layer in the averages over
        data *(shallow)*.
    :param str chain_hidden: what chains give to the visible layer *(shallow)*. Means instead of samples
        make the chain one of another law.
    :param str chain_visible: what chains give to the hidden layer *(shallow)*.
    :param str negative_hidden: what stands for the hidden layer in the averages over chains *(shallow)*.
    :param str objective: of a :class:`~pyro_ebm.nn.ClassificationRBM`: "generative" (log p(x, y)),
        "discriminative" (log p(y | x)) or "hybrid", the sum of the second and ``generative_weight`` times
        the first.
    :param float generative_weight: see ``objective``.
    :param float unlabelled_weight: weight of log p(x) of rows without a label.

    :param int mean_field_updates: largest number of updates of the mean field of a batch *(DBM)*.
    :param float mean_field_tolerance: a row's mean field is done when an update changes no natural parameter
        by more *(DBM)*.

    **The update**

    :param float learning_rate: step size of the optimiser *(schedule)*.
    :param str learning_rate_schedule: "constant"; "linear" or "cosine" to fall to zero over the run; or
        one of :mod:`torch.optim.lr_scheduler` by name, stepped once an epoch; "ReduceLROnPlateau" with the
        metric that ``monitor`` names.
    :param schedule_options: arguments of the latter, such as ``{"gamma": 0.97}``.
    :param str optimizer: one of :mod:`torch.optim` by name, such as "sgd", "adam" or "rmsprop".
    :param optimizer_options: its further arguments, such as ``{"nesterov": True}``.
    :param float momentum: momentum of "sgd" and "rmsprop" *(schedule)*.
    :param float averaging: decay of an exponential moving average of the parameters, such as 0.999,
        which :attr:`Trainer.averaged <pyro_ebm.training.Trainer.averaged>` gives; 0 for none.
    :param float gradient_clip: largest norm of the gradient; None for no limit.
    :param groups: ``learning_rate`` and ``weight_decay`` of single networks, by their names, such as
        ``{"weight": {"weight_decay": 1.0}}``. Without an entry a network has ``learning_rate`` and no decay,
        except "weight", which has ``weight_decay`` *(conditional)*.
    :param float offset_rate: rate at which hidden offsets (and scales) follow the hidden layer.
    :param str preconditioner: "none"; "standardize", the gradient of the parameterisation in which every
        unit has mean 0 and variance 1 [2]; "diagonal", the natural gradient with a diagonal Fisher
        information; or "natural", that with the exact one, for machines that can be enumerated
        *(shallow)*.
    :param float damping: what is added to variances and to the Fisher information before they are divided by.

    **Regularisers**

    :param float weight_decay: decay of the weights (not of the biases): added to the gradient, except
        by "adamw", which decouples it *(schedule)*.
    :param bool decoupled_weight_decay: whether weights shrink by ``learning_rate * weight_decay`` instead,
        whatever the optimiser *(RBM)*.
    :param float l1: cost of the sum of absolute weights *(schedule, RBM)*.
    :param float max_norm: largest norm of the weights into a hidden unit, restored after every update
        *(RBM)*.
    :param float sparsity_cost: cost of hidden units that are on more or less often than ``sparsity_target``,
        see :class:`~pyro_ebm.training.regularizers.Sparsity` *(schedule, RBM)*.
    :param float sparsity_target: the rate at which hidden units should be on.
    :param float sparsity_damping: decay of the moving average of hidden means.
    :param layers: by hidden layer, the lowest first, what is not as for all of them: "max_norm" (of the
        weights into the layer from below), "sparsity_cost" (a number) and "sparsity_target", such as
        ``[{"sparsity_cost": 0.1, "sparsity_target": 0.2}, {}]`` *(DBM)*.
    :param float dropout: probability that a hidden unit is left out, drawn by row and chain at every update
        *(schedule, shallow)* [3].
    :param float dropconnect: probability that a weight is left out, drawn at every update *(schedule,
        shallow)*.
    :raises ValueError: for an impossible value, or options that contradict each other, naming the option.

    **References**

    [1] *Using fast weights to improve persistent contrastive divergence*, Tijmen Tieleman, Geoffrey
    Hinton (2009)

    [2] *Data normalization in the learning of restricted Boltzmann machines*, Yichuan Tang, Ilya
    Sutskever (2011)

    [3] *Dropout: a simple way to prevent neural networks from overfitting*, Nitish Srivastava, Geoffrey
    Hinton, Alex Krizhevsky, Ilya Sutskever, Ruslan Salakhutdinov (2014), section 8
    """

    num_epochs: int = 10
    batch_size: int = 100
    learning_rate: _Rate = 0.05
    num_steps: _Count = 1
    persistent: bool = False
    num_chains: int | None = None
    seed: int | None = None
    optimizer: str = "sgd"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    momentum: _Rate = 0.0
    weight_decay: _Rate = 0.0
    decoupled_weight_decay: bool = False
    learning_rate_schedule: str = "constant"
    schedule_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    averaging: float = 0.0
    gradient_clip: float | None = None
    preconditioner: str = "none"
    damping: float = 0.01
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict, hash=False)
    chain_start: str = "data"
    persistent_start: str = "noise"
    negative_phase: str = "gibbs"
    negative_side: str = "auto"
    num_replicas: int = 10
    fast_rate: _Rate = 0.0
    fast_decay: float = 0.95
    positive_hidden: str = "mean"
    chain_hidden: str = "sample"
    chain_visible: str = "sample"
    negative_hidden: str = "mean"
    l1: _Rate = 0.0
    max_norm: float | None = None
    sparsity_target: float = 0.1
    sparsity_cost: _Rate = 0.0
    sparsity_damping: float = 0.9
    dropout: _Rate = 0.0
    dropconnect: _Rate = 0.0
    objective: str = "generative"
    generative_weight: float = 0.01
    unlabelled_weight: float = 1.0
    binarize: bool = False
    noise_std: float = 0.0
    missing: str = "marginal"
    offset_rate: float = 0.01
    mean_field_updates: int = 50
    mean_field_tolerance: float = 1e-2
    layers: Sequence[Mapping[str, Any]] = field(default=(), hash=False)
    metrics: Sequence[str] | None = None
    metrics_every: int = 1
    metrics_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    metrics_rows: int = 1000
    monitor: str | None = None
    monitor_mode: str = "min"
    patience: int | None = None
    min_delta: float = 0.0
    best_checkpoint: str | os.PathLike[str] | None = None
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: int = 1
    progress: bool = True

    def __post_init__(self) -> None:
        for name, (valid, expected) in CHECKS.items():
            value = getattr(self, name)
            if name in SCHEDULES:
                tabulated = tabulate(name, value, self.num_epochs, valid, expected)
                # Frozen, so that what a run did cannot change under it.
                object.__setattr__(self, name, tabulated)
            else:
                check(name, value, valid, expected)
        object.__setattr__(self, "layers", tuple(dict(options) for options in self.layers))
        if self.metrics is not None:
            object.__setattr__(self, "metrics", tuple(self.metrics))
        check_combinations(self)

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON types."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["layers"] = [dict(options) for options in values["layers"]]
        for name in ("groups", "metrics_options"):
            values[name] = {key: dict(options) for key, options in values[name].items()}
        if self.metrics is not None:
            values["metrics"] = list(self.metrics)
        for name in ("optimizer_options", "schedule_options"):
            values[name] = dict(values[name])
        for name in SCHEDULES:
            if isinstance(values[name], tuple):
                values[name] = list(values[name])
        for name in ("checkpoint", "best_checkpoint"):
            if values[name] is not None:
                values[name] = os.fspath(values[name])
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainerConfig":
        """The options that :meth:`to_dict` wrote.

        :raises ValueError: for unknown names.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown training options {unknown}")
        return cls(**values)
