# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A deep Boltzmann machine of binarised Fashion-MNIST, with the bound of its test log-likelihood.

As ``dbm_mnist.py``, from the RBM of ``rbm_fashion_mnist.py`` and with its smaller rate.

    PYRO_EBM_DATA=/path/to/data python examples/dbm_fashion_mnist.py --output runs/dbm-fashion
    python examples/dbm_fashion_mnist.py --smoke
"""

import sys

from dbm_training import parse, run
from rbm_fashion_mnist import RECIPE as RBM_RECIPE

RECIPE = {
    "num_epochs": 40,
    "num_chains": 400,
    "learning_rate": 0.02,
    "learning_rate_schedule": "cosine",
    "averaging": 0.9998,
    "mean_field_updates": 30,
    "persistent_start": "data",
}

if __name__ == "__main__":
    run(parse(__doc__.split("\n\n")[0], "fashion-mnist", RBM_RECIPE, sys.argv[1:], **RECIPE))
