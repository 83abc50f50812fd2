# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""How far samples are from data, from other samples, or from the truth.

Samples are rows of a tensor, ``(samples, units)``. :func:`maximum_mean_discrepancy` and
:func:`energy_distance` compare whole distributions, :func:`adversarial_accuracy` also shows copies of
training data, and :func:`moment_errors` says which units and pairs are wrong, against exact moments
where a machine can be enumerated.
"""

from pyro_ebm.distances.moments import MomentErrors, moment_errors
from pyro_ebm.distances.neighbours import AdversarialAccuracy, adversarial_accuracy
from pyro_ebm.distances.two_sample import (
    TwoSampleDistance,
    energy_distance,
    maximum_mean_discrepancy,
)

__all__ = [
    "AdversarialAccuracy",
    "MomentErrors",
    "TwoSampleDistance",
    "adversarial_accuracy",
    "energy_distance",
    "maximum_mean_discrepancy",
    "moment_errors",
]
