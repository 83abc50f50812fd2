# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A deep Boltzmann machine of binarised MNIST, with the bound of its test log-likelihood.

The lowest layer starts as the RBM of ``rbm_mnist.py``; those above it start at small random weights, and
all layers are trained together: mean field beside the data, persistent chains beside the model. log Z
comes from both sides, as AIS alone makes likelihoods look better than they are; with at most 20 units in the
odd layers it is exact.

    PYRO_EBM_DATA=/path/to/data python examples/dbm_mnist.py --output runs/dbm-mnist
    python examples/dbm_mnist.py --rbm runs/rbm-mnist/model.safetensors --output runs/dbm-mnist
    python examples/dbm_mnist.py --hidden 512 1024 --start random --output runs/dbm-random
    python examples/dbm_mnist.py --skip-training --model runs/dbm-mnist/model.safetensors
    python examples/dbm_mnist.py --smoke
"""

import sys

from dbm_training import parse, run
from rbm_mnist import RECIPE as RBM_RECIPE

#: Of the joint training.
RECIPE = {
    "num_epochs": 40,
    "num_chains": 400,
    "learning_rate": 0.1,
    "learning_rate_schedule": "cosine",
    "averaging": 0.9998,
    "mean_field_updates": 30,
    "persistent_start": "data",
}

if __name__ == "__main__":
    run(parse(__doc__.split("\n\n")[0], "mnist", RBM_RECIPE, sys.argv[1:], **RECIPE))
