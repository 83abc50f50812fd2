# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""An RBM of binarised MNIST by centred persistent contrastive divergence, with its test log-likelihood.

The defaults are a recipe for the likelihood: many persistent chains, a high rate that falls to zero along a
cosine, and an average of the parameters. log Z comes from both sides, as AIS alone makes likelihoods look
better than they are; with at most 20 hidden units it is exact.

    PYRO_EBM_DATA=/path/to/data python examples/rbm_mnist.py --output runs/rbm-mnist
    python examples/rbm_mnist.py --hidden 16 --num-epochs 50
    python examples/rbm_mnist.py --smoke
"""

import sys

from rbm_images import parse, run

#: Chosen by the likelihood of the last 10,000 training images.
RECIPE = {
    "num_epochs": 120,
    "num_chains": 400,
    "learning_rate": 0.4,
    "learning_rate_schedule": "cosine",
    "averaging": 0.9998,
}

if __name__ == "__main__":
    run(parse(__doc__.split("\n\n")[0], "mnist", sys.argv[1:], **RECIPE))
