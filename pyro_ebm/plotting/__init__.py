# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of models, chains and training runs.

Every function returns a :class:`matplotlib.figure.Figure` of its own, without pyplot's global state,
so that they work without a display and leak nothing; :func:`save` writes it to a file. matplotlib
(``pip install 'pyro-ebm[plot]'``) is imported when a figure is made.
"""

from pyro_ebm.plotting.chains import energy_trace, rank_histograms, sampler_comparison
from pyro_ebm.plotting.conditional import class_parameters, class_samples
from pyro_ebm.plotting.figures import save
from pyro_ebm.plotting.images import completions, filters, image_grid
from pyro_ebm.plotting.log_partition import log_partition_comparison
from pyro_ebm.plotting.tempering import replica_paths, tempering_ladder
from pyro_ebm.plotting.training import history

__all__ = [
    "class_parameters",
    "class_samples",
    "completions",
    "energy_trace",
    "filters",
    "history",
    "image_grid",
    "log_partition_comparison",
    "rank_histograms",
    "replica_paths",
    "sampler_comparison",
    "save",
    "tempering_ladder",
]
