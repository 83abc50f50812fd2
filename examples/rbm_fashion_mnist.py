# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""An RBM of binarised Fashion-MNIST by centred PCD, with its test log-likelihood.

As ``rbm_mnist.py``, with a smaller rate: the grey levels of clothes, from which bits are drawn at every
visit, are far from 0 and 1.

    PYRO_EBM_DATA=/path/to/data python examples/rbm_fashion_mnist.py --output runs/rbm-fashion
    python examples/rbm_fashion_mnist.py --smoke
"""

import sys

from rbm_images import parse, run

RECIPE = {
    "num_epochs": 60,
    "num_chains": 400,
    "learning_rate": 0.05,
    "learning_rate_schedule": "cosine",
    "averaging": 0.9998,
}

if __name__ == "__main__":
    run(parse(__doc__.split("\n\n")[0], "fashion-mnist", sys.argv[1:], **RECIPE))
