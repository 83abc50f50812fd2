# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of models, chains and training runs.

Every function returns a :class:`matplotlib.figure.Figure` of its own, without pyplot's global state,
so that they work without a display and leak nothing; :func:`save` writes it to a file. matplotlib
(``pip install 'pyro-ebm[plot]'``) is imported when a figure is made.
"""

from pyro_ebm.plotting.activations import hidden_activations
from pyro_ebm.plotting.animation import ChainAnimation, chain_animation, save_animation
from pyro_ebm.plotting.calibration import calibration_ranks
from pyro_ebm.plotting.chains import energy_trace, rank_histograms, sampler_comparison
from pyro_ebm.plotting.classification import confusion_matrix
from pyro_ebm.plotting.conditional import class_parameters, class_samples
from pyro_ebm.plotting.deep import layer_filters, particle_animation
from pyro_ebm.plotting.energies import energy_histogram
from pyro_ebm.plotting.features import embedding
from pyro_ebm.plotting.figures import save
from pyro_ebm.plotting.filters import filters
from pyro_ebm.plotting.images import completions, image_grid, reconstructions
from pyro_ebm.plotting.learning_curves import learning_curves
from pyro_ebm.plotting.log_partition import log_partition_comparison
from pyro_ebm.plotting.tempering import replica_paths, tempering_ladder
from pyro_ebm.plotting.training import history

__all__ = [
    "ChainAnimation",
    "calibration_ranks",
    "chain_animation",
    "class_parameters",
    "class_samples",
    "completions",
    "confusion_matrix",
    "embedding",
    "energy_histogram",
    "energy_trace",
    "filters",
    "hidden_activations",
    "history",
    "image_grid",
    "layer_filters",
    "learning_curves",
    "log_partition_comparison",
    "particle_animation",
    "rank_histograms",
    "reconstructions",
    "replica_paths",
    "sampler_comparison",
    "save",
    "save_animation",
    "tempering_ladder",
]
