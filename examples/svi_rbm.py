# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""An RBM of handwritten digits as a Pyro model, trained with SVI.

The same model, loss and optimiser interface as for any other Pyro program; persistent contrastive
divergence supplies the gradient of log Z. With 12 hidden units log Z is exact, so that the printed
likelihoods are too.

    python examples/svi_rbm.py
"""

import argparse

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor

from pyro_ebm import datasets, nn
from pyro_ebm.infer import ContrastiveDivergence, exact_log_partition, log_likelihood


def main(arguments: argparse.Namespace) -> float:
    """Train and return the test log-likelihood per image."""
    pyro.set_rng_seed(arguments.seed)
    digits = datasets.load("digits")
    train = digits.binarized("train", seed=arguments.seed)
    test = digits.binarized("test", seed=arguments.seed)
    rbm = nn.RBM(train.shape[1], arguments.hidden, seed=arguments.seed).init_from_data(train)

    def model(batch: Tensor) -> None:
        machine = rbm()
        with pyro.plate("images", len(train), subsample_size=len(batch)):
            pyro.sample("v", machine, obs=batch)

    loss = ContrastiveDivergence(num_steps=arguments.steps, persistent=True, num_chains=200)
    svi = SVI(model, lambda batch: None, Adam({"lr": arguments.learning_rate}), loss=loss)

    def report(epoch: int) -> float:
        machine = rbm()
        with torch.no_grad():
            log_z = exact_log_partition(machine)
        mean = log_likelihood(machine, test, log_z).mean().item()
        print(f"epoch {epoch:3d}: exact test log-likelihood {mean:.2f} nats per image")
        return mean

    result = report(0)
    for epoch in range(1, arguments.epochs + 1):
        for rows in torch.randperm(len(train)).split(100):
            svi.step(train[rows])
        if epoch % 10 == 0 or epoch == arguments.epochs:
            result = report(epoch)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--hidden", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2, help="Gibbs sweeps per update")
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two epochs, to see that it runs")
    options = parser.parse_args()
    if options.smoke:
        options.epochs = 2
    main(options)
