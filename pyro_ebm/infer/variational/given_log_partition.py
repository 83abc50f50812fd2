# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Machines of a model normalised by estimates of log Z that are given by site."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM, EnergyBased
from pyro_ebm.distributions.wrapped import replace_machine
from pyro_ebm.infer.contrastive.normalizer import normalizer_of
from pyro_ebm.infer.log_partition import LogPartitionEstimate
from pyro_ebm.infer.log_partition.bracket import sides_of

__all__ = ["GivenLogPartition", "MachineCollector", "SiteNormalizer", "site_normalizers"]


@dataclass(frozen=True)
class SiteNormalizer:
    """Log Z of the machine of one site.

    :param str name: the site.
    :param parameters: those of the machine that it belongs to.
    :param sides: estimates of log Z: one, or for a bracket that from below and that from above.
    :param function: gives log Z from the machine, for those that depend on latent variables; None if only
        estimates were given.
    :param Tensor value: log Z that the weights are made with, which takes a gradient.
    """

    name: str
    parameters: list[Tensor]
    sides: list[LogPartitionEstimate]
    function: Callable[[Any], Any] | None
    value: Tensor


class MachineCollector(Messenger):
    """Finds the machines of a model whose log Z is missing, and lets it run without."""

    def __init__(self) -> None:
        super().__init__()
        #: The machines whose log Z belongs to a site, by site.
        self.machines: dict[str, EnergyBased] = {}

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = replace_machine(msg["fn"], lambda fn, _: self._take(fn, msg), site=msg["name"])

    def _take(self, fn: EnergyBased, msg: Any) -> EnergyBased:
        if fn.log_partition is not None:
            return fn
        self.machines[msg["name"]] = normalizing_machine(fn, msg)
        return fn.normalize(0.0)


class GivenLogPartition(Messenger):
    """Attaches given values of log Z to the machines of a model while it runs.

    :param normalizers: log Z by site.
    """

    def __init__(self, normalizers: Mapping[str, SiteNormalizer]) -> None:
        super().__init__()
        self._normalizers = normalizers

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = replace_machine(
            msg["fn"], lambda fn, _: self._normalized(fn, msg), site=msg["name"]
        )

    def _normalized(self, fn: EnergyBased, msg: Any) -> EnergyBased:
        if fn.log_partition is not None:
            return fn
        name = msg["name"]
        given = self._normalizers.get(name)
        if given is None:
            raise ValueError(
                f"site {name!r} is a machine without log Z only in some runs of the model"
            )
        machine = normalizing_machine(fn, msg)
        value = given.value
        if not _same(machine.parameters(), given.parameters):
            value = _value_of_draws(given, machine)
        if isinstance(fn, RBM | DBM):
            # Gradients here are by the given log Z alone; those of parameters would be without log Z's own.
            fn = fn.detach()
        try:
            return fn.normalize(value)
        except ValueError as error:
            raise ValueError(f"log_partition of site {name!r}: {error}") from error


def normalizing_machine(fn: EnergyBased, msg: Any) -> EnergyBased:
    """The machine whose log Z belongs to a site: its own, or the whole one of which units are fixed."""
    other = normalizer_of(fn)
    return fn.compact() if other is None else other.machine.compact()


def site_normalizers(
    log_partition: Any, machines: Mapping[str, EnergyBased]
) -> dict[str, SiteNormalizer]:
    """Log Z by site from what the user gave.

    :param log_partition: by site, or that of the only machine.
    :param machines: the machines without log Z by site.
    :raises ValueError: if one is missing, or given for another site.
    """
    names = list(machines)
    if isinstance(log_partition, Mapping):
        given = dict(log_partition)
    elif log_partition is None:
        given = {}
    elif len(names) == 1:
        given = {names[0]: log_partition}
    else:
        raise ValueError(
            f"log_partition must be a dict by site where the model has {len(names)} machines without "
            f"log Z, here {names}; got {type(log_partition).__name__}"
        )
    unknown, missing = [n for n in given if n not in names], [n for n in names if n not in given]
    if unknown:
        raise ValueError(
            f"log_partition names {unknown}, but the sites with a machine without log Z are {names}"
        )
    if missing:
        raise ValueError(
            f"the machines at the sites {missing} have no log Z, without which no likelihood is known; give "
            'log_partition={"site": ...}, say bracket_log_partition(machine) or exact_log_partition'
        )
    return {name: _normalizer(name, given[name], machine) for name, machine in machines.items()}


def _normalizer(name: str, given: Any, machine: EnergyBased) -> SiteNormalizer:
    function = given if callable(given) else None
    sides = sides_of(given if function is None else function(machine))
    value = torch.stack([side.value.double() for side in sides]).mean(0)
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"log_partition of site {name!r} must be finite")
    value = value.to(machine.parameters()[0].device).requires_grad_()
    return SiteNormalizer(name, machine.parameters(), sides, function, value)


def _value_of_draws(given: SiteNormalizer, machine: EnergyBased) -> Tensor:
    """Log Z of a machine whose parameters are other ones than those that the estimates belong to."""
    if given.function is None:
        raise ValueError(
            f"the parameters of the machine at site {given.name!r} depend on latent variables, and so does "
            "its log Z: give a function, log_partition=exact_log_partition"
        )
    sides = sides_of(given.function(machine))
    if len(sides) > 1 or bool((sides[0].std_error > 0.0).any()):
        raise ValueError(
            f"the parameters of the machine at site {given.name!r} depend on latent variables; its log Z "
            "must then be exact, as the error of an estimate in every weight biases their mean"
        )
    return sides[0].value


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x is y or (x.shape == y.shape and torch.equal(x, y)) for x, y in zip(a, b, strict=True)
    )
