# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Metrics of the mean field of a deep machine's updates."""

from typing import Any

from pyro_ebm.training.metrics.snapshot import DeepSnapshot

__all__ = ["mean_field_updates"]


def mean_field_updates(s: DeepSnapshot) -> dict[str, Any]:
    """Updates that the mean field of training rows takes on average and at most, as the gradient asks for it
    (``mean_field_updates``, ``mean_field_tolerance``), and the share of the rows that have converged.

    Where many have not, the gradient is not that of the bound's maximum: allow more updates. A mean field of
    the training rows.
    """
    found = s.field_of_updates()
    updates = found.num_updates.double()
    return {
        "mean_field_updates": updates.mean().item(),
        "mean_field_updates_max": updates.max().item(),
        "mean_field_converged": found.converged.double().mean().item(),
    }
