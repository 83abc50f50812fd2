# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The metrics of a run: which are due, what they must see, and the record that they make."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.infer.log_partition.exact import finite_side
from pyro_ebm.training.metrics.likelihood import machines_to_enumerate
from pyro_ebm.training.metrics.registry import (
    METRICS,
    base_key,
    keys_of,
    known_keys,
    options_of,
)
from pyro_ebm.training.metrics.snapshot import (
    ConditionalSnapshot,
    DeepSnapshot,
    RBMSnapshot,
    Snapshot,
)
from pyro_ebm.training.metrics.step_watch import StepWatch
from pyro_ebm.training.regularizers import layer_option
from pyro_ebm.training.schedules import value_at
from pyro_ebm.training.weights import weights_of

if TYPE_CHECKING:
    from pyro_ebm.training.config import TrainerConfig

__all__ = ["EpochMetrics"]

_PENALTIES = ("l1", "weight_decay")


class EpochMetrics:
    """Computes the chosen metrics of a run; what it makes depends on the epoch alone.

    :param module: the module.
    :param TrainerConfig config: ``metrics``, ``metrics_every``, ``metrics_options``.
    :raises ValueError: for metrics that the module cannot have.
    """

    def __init__(
        self, module: nn.RBM | nn.DBM | nn.NeuralBoltzmannMachine, config: "TrainerConfig"
    ) -> None:
        self.module = module
        self.config = config
        for name in config.metrics or ():
            _check_module(name, module, config)

    def check_rows(self, rows: dict[str, Tensor], callbacks: bool) -> None:
        """Refuse rows that the metrics cannot be computed of.

        :param rows: states by split.
        :param bool callbacks: whether there are callbacks, which may add to the record.
        :raises ValueError: if there are such, validation rows are missing, or nothing can give the metric
            that is monitored.
        """
        for name in self.config.metrics or ():
            if METRICS[name].validation and "validation" not in rows:
                raise ValueError(f"metrics has {name!r}, which needs validation rows")
            if METRICS[name].states and not isinstance(self.module, nn.NeuralBoltzmannMachine):
                with torch.no_grad():
                    support = self.module().support
                for split, states in rows.items():
                    bad = int((~support.check(states)).sum())
                    if bad:
                        raise ValueError(
                            f"metrics has {name!r}, which needs states of the visible layer; {bad} of "
                            f"{len(states)} {split} rows are none"
                        )
        self._check_monitor("validation" in rows, callbacks)

    def _check_monitor(self, validation: bool, callbacks: bool) -> None:
        key = self.config.monitor
        if key is None:
            return
        if not callbacks and base_key(key) not in known_keys():
            raise ValueError(
                f"monitor={key!r} is no metric, and there are no callbacks to give it; metrics give "
                f"{sorted(keys_of(self.config.metrics))}"
            )
        if not validation and (key.endswith("_validation") or key.startswith("free_energy_gap")):
            raise ValueError(f"monitor={key!r} needs validation rows")

    def due(self, epoch: int) -> tuple[str, ...]:
        """The metrics that are computed after an epoch.

        :param int epoch: its number, from 1.
        """
        config = self.config
        if epoch % config.metrics_every:
            return ()
        return tuple(
            name
            for name in config.metrics or ()
            if epoch % options_of(name, config.metrics_options)[1] == 0
        )

    def watch(self, epoch: int, num_updates: int) -> StepWatch | None:
        """What looks at the updates of an epoch; None if no metric wants to.

        :param int epoch: its number, from 1.
        :param int num_updates: its updates.
        """
        due = self.due(epoch)
        if not {"gradient_norm", "update_ratio", "chain_mixing"} & set(due):
            return None
        window = 0
        if "chain_mixing" in due:
            window = options_of("chain_mixing", self.config.metrics_options)[0]["window"]
        return StepWatch(
            self.module,
            num_updates,
            gradient="gradient_norm" in due,
            update="update_ratio" in due,
            window=window,
        )

    @torch.no_grad()
    def record(
        self,
        epoch: int,
        rows: dict[str, Tensor],
        contexts: dict[str, Tensor],
        chains: Tensor | None,
        watch: StepWatch | None,
    ) -> dict[str, Any]:
        """The metrics after an epoch; empty where none is due.

        :param int epoch: its number, from 1.
        :param rows: states by split.
        :param contexts: their contexts, of a conditional model.
        :param Tensor chains: states of the persistent chains, None for a conditional model.
        :param StepWatch watch: what :meth:`watch` gave for this epoch.
        """
        if self.config.metrics is None:
            if epoch % self.config.metrics_every:
                return {}
            return _default_record(self._snapshot(epoch, rows, contexts, chains, watch))
        due = self.due(epoch)
        snapshot = self._snapshot(epoch, rows, contexts, chains, watch)
        record: dict[str, Any] = {}
        for name in due:
            metric = METRICS[name]
            if metric.validation and "validation" not in rows:
                continue  # of a partial fit
            options, _ = options_of(name, self.config.metrics_options)
            record |= metric.function(snapshot, **options)
        return record

    def _snapshot(
        self,
        epoch: int,
        rows: dict[str, Tensor],
        contexts: dict[str, Tensor],
        chains: Tensor | None,
        watch: StepWatch | None,
    ) -> Snapshot:
        module = self.module
        if isinstance(module, nn.NeuralBoltzmannMachine):
            return ConditionalSnapshot(rows, None, watch, module=module, contexts=contexts)
        config = self.config
        costs = {n: float(value_at(getattr(config, n), epoch - 1)) for n in _PENALTIES}
        sparsity = tuple(
            (
                float(value_at(layer_option(config, "sparsity_cost", number), epoch - 1)),
                float(layer_option(config, "sparsity_target", number)),
            )
            for number in range(1, 1 + len(weights_of(module)))
        )
        if isinstance(module, nn.RBM):
            return RBMSnapshot(rows, chains, watch, costs, sparsity, module=module)
        return DeepSnapshot(
            rows,
            chains,
            watch,
            costs,
            sparsity,
            module=module,
            max_updates=config.mean_field_updates,
            tolerance=config.mean_field_tolerance,
        )


def _default_record(s: Snapshot) -> dict[str, Any]:
    """What is recorded where no metrics are chosen."""
    train = s.free_energy("train").mean().item()
    record = {
        "reconstruction_error": s.reconstruction_error("train"),
        "free_energy_train": train,
        "weight_norm": s.weight_norm(),
    }
    if "validation" in s.rows:
        held_out = s.free_energy("validation").mean().item()
        record["free_energy_validation"] = held_out
        record["free_energy_gap"] = held_out - train
    if s.chains is not None:
        record["free_energy_chains"] = s.free_energy("chains").mean().item()
    return record


def _check_module(
    name: str, module: nn.RBM | nn.DBM | nn.NeuralBoltzmannMachine, config: "TrainerConfig"
) -> None:
    """Refuse a metric that a module cannot have."""
    metric = METRICS[name]
    kind, kinds = "shallow", "RBMs"
    if isinstance(module, nn.DBM):
        kind, kinds = "deep", "deep machines"
    elif isinstance(module, nn.NeuralBoltzmannMachine):
        kind, kinds = "conditional", "conditional models"
    if not getattr(metric, kind):
        known = [n for n, m in METRICS.items() if getattr(m, kind)]
        raise ValueError(f"metrics has {name!r}; those of {kinds} are {known}")
    if isinstance(module, nn.NeuralBoltzmannMachine):
        return
    if name == "classification_error" and not isinstance(module, nn.ClassificationRBM):
        raise ValueError(f"metrics has {name!r}, which needs a nn.ClassificationRBM")
    chains = config.num_chains or config.batch_size
    if metric.chains and chains < 2:
        raise ValueError(f"metrics has {name!r}, which needs at least 2 chains, got {chains}")
    options, _ = options_of(name, config.metrics_options)
    try:
        with torch.no_grad():
            _check_machine(name, module, options)
    except ValueError as error:
        raise ValueError(f"metrics has {name!r}, which the module cannot have: {error}") from error


def _check_machine(name: str, module: nn.RBM | nn.DBM, options: dict[str, Any]) -> None:
    if name == "exact_log_likelihood":
        for machine in machines_to_enumerate(module(validate_args=False)):
            finite_side(machine, options["max_states"], "take 'ais_log_likelihood'")
    if name == "pseudo_log_likelihood" and isinstance(module, nn.RBM):
        for _, part in module.visible().parts():
            part.unit_states()
        if options["num_units"] is not None and module.visible.family not in ("bernoulli", "ising"):
            raise ValueError(
                f"num_units is for visible bits or spins, not for {module.visible.family!r}"
            )
