# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""An RBM of binarised MNIST by persistent contrastive divergence, with its test log-likelihood.

500 hidden units and a few epochs beat -110 nats per image by AIS. Reverse AIS gives the other end
of log Z, as AIS alone makes likelihoods look better than they are.

    python examples/mnist_rbm.py
    PYRO_EBM_DATA=/path/to/data python examples/mnist_rbm.py --epochs 5
    python examples/mnist_rbm.py --smoke
"""

import argparse
import time

import torch

import pyro_ebm
from pyro_ebm import datasets, nn
from pyro_ebm.infer import bracket_log_partition, log_likelihood
from pyro_ebm.training import Trainer, TrainerConfig


def main(arguments: argparse.Namespace) -> float:
    """Train, and return the test log-likelihood per image by AIS (from below log Z)."""
    data = datasets.load(arguments.data)
    train, test = data.train(), data.binarized("test", seed=0)
    rbm = nn.RBM(data.num_pixels, arguments.hidden, centered=True, seed=arguments.seed)
    rbm.init_from_data(train)
    config = TrainerConfig(
        num_epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        learning_rate_schedule="linear",
        num_steps=arguments.steps,
        persistent=True,
        binarize=True,  # new bits from the grey levels at every visit
        seed=arguments.seed,
    )
    started = time.perf_counter()
    Trainer(rbm, config).fit(train)
    print(f"trained {arguments.epochs} epochs in {time.perf_counter() - started:.0f} s")
    if arguments.output:
        pyro_ebm.save(rbm, arguments.output)

    with torch.no_grad():
        machine = rbm()
    bracket = bracket_log_partition(
        machine,
        num_chains=arguments.ais_chains,
        num_temperatures=arguments.ais_temperatures,
        schedule="adaptive",
        base=train.mean(0),
        seed=arguments.seed,
        progress=True,
    )
    print(bracket)
    by_side = {}
    for side, estimate in (("AIS", bracket.forward), ("reverse AIS", bracket.reverse)):
        rows = log_likelihood(machine, test, estimate)
        by_side[side] = rows.mean().item()
        # The error of log Z is common to all rows; that of the mean over rows comes on top.
        row_error = rows.std().item() / len(rows) ** 0.5
        print(
            f"test log-likelihood by {side}: {by_side[side]:.2f} +- {row_error:.2f} (images) "
            f"+- {estimate.std_error.item():.2f} (log Z) nats per image"
        )
    return by_side["AIS"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="mnist", choices=datasets.available())
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=1, help="Gibbs sweeps per update")
    parser.add_argument("--ais-chains", type=int, default=100)
    parser.add_argument("--ais-temperatures", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="a .safetensors file for the model")
    parser.add_argument("--smoke", action="store_true", help="seconds, on the digits")
    options = parser.parse_args()
    if options.smoke:
        options.data, options.hidden, options.epochs, options.ais_temperatures = (
            "digits",
            16,
            2,
            100,
        )
    main(options)
