# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Metrics of rows of data: reconstruction, free energies, classes."""

from typing import Any

from pyro_ebm import nn
from pyro_ebm.training.metrics.snapshot import DeepSnapshot, RBMSnapshot, Snapshot

__all__ = [
    "classification_error",
    "elbo",
    "free_energy",
    "free_energy_gap",
    "reconstruction_error",
]


def reconstruction_error(s: Snapshot) -> dict[str, Any]:
    r"""Mean squared difference of a unit to its mean-field reconstruction,
    :math:`\frac{1}{NV} \sum_n \| v_n - E[v \mid h = E[h \mid v_n]] \|^2`.

    The same formula for training and validation rows. No likelihood: it may fall while the model gets
    worse. Two products a split.
    """
    names = {"train": "reconstruction_error", "validation": "reconstruction_error_validation"}
    return {names[split]: s.reconstruction_error(split) for split in s.rows}


def free_energy(s: Snapshot) -> dict[str, Any]:
    r"""Mean free energy :math:`F(v) = -\log \sum_h e^{-E(v, h)}` of training rows, validation rows and
    persistent chains; of a deep machine its upper bound by mean field.

    Its level means nothing without log Z. Chains whose free energy is far from that of training rows do
    not look like data. A product each.
    """
    splits = [*s.rows] + ["chains"] * (s.chains is not None)
    return {f"free_energy_{split}": s.free_energy(split).mean().item() for split in splits}


def elbo(s: DeepSnapshot) -> dict[str, Any]:
    r"""Mean over rows of the mean-field bound :math:`\mathcal{L}(v) \le \log p^*(v)` without
    :math:`\log Z`, of a deep machine; and the standard error of the mean over validation rows (over training
    rows where there are none).

    Its level means nothing without log Z ("ais_log_likelihood" has it); the difference between training
    and validation rows does. A mean field a split, to a tolerance of 1e-3, whatever that of the updates is.
    """
    record = {f"elbo_{split}": -s.free_energy(split).mean().item() for split in s.rows}
    values = s.free_energy("validation" if "validation" in s.rows else "train")
    return record | {"elbo_std_error": (values.std() / len(values) ** 0.5).item()}


def free_energy_gap(s: Snapshot) -> dict[str, Any]:
    r"""Mean free energy of validation rows minus that of training rows, and the standard error
    :math:`\sqrt{s_v^2 / n_v + s_t^2 / n_t}` of this difference of two independent means.

    Log Z cancels: the gap is how much less likely validation rows are than training rows, in nats (of a deep
    machine as far as the bound of its free energies tells). It grows when the model overfits. A product each.
    """
    train, held_out = s.free_energy("train"), s.free_energy("validation")
    gap = held_out.mean().item() - train.mean().item()
    variance = train.var() / len(train) + held_out.var() / len(held_out)
    return {"free_energy_gap": gap, "free_energy_gap_std_error": variance.sqrt().item()}


def classification_error(s: RBMSnapshot) -> dict[str, Any]:
    """Share of the rows with a label whose most probable class is another one, of a
    :class:`~pyro_ebm.nn.ClassificationRBM`. A pass over the hidden units of all classes."""
    assert isinstance(s.module, nn.ClassificationRBM)
    record = {}
    for split, rows in s.rows.items():
        x, labels = s.module.split(rows)
        known = labels.any(-1)
        if bool(known.any()):
            wrong = s.module.predict(x[known]) != labels[known].argmax(-1)
            record[f"classification_error_{split}"] = wrong.double().mean().item()
    return record
