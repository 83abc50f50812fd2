# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Priors on clean images for ``denoising.py``: a trained machine, pixels by themselves, and a lattice of
pixels that like to agree with their neighbours. All are RBMs (or DBMs), so that one program takes each."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

import pyro_ebm
from pyro_ebm import datasets, nn
from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.distributions.units import Bernoulli, Ising
from pyro_ebm.training import Trainer, TrainerConfig

#: Rates of pixels are kept this far from 0 and 1, so that every image is possible.
_MIN_RATE = 1e-3


def trained_machine(data: datasets.Dataset, options: Any) -> RBM | DBM:
    """The machine of a file, or one that is trained here on bits drawn from the grey levels."""
    if options.model:
        module = pyro_ebm.load(options.model)
    else:
        module = train(data, options)
    machine = module().detach()
    size = machine.sizes[0] if isinstance(machine, DBM) else machine.visible.size
    if size != data.num_pixels:
        raise ValueError(
            f"--model has {size} visible units, but images of {options.data!r} have {data.num_pixels} pixels"
        )
    return machine


def train(data: datasets.Dataset, options: Any) -> nn.RBM:
    """Centred persistent contrastive divergence, as in ``rbm_mnist.py``."""
    grey = data.train()
    module = nn.RBM(data.num_pixels, options.hidden, centered=True, seed=options.seed)
    config = TrainerConfig(
        num_epochs=options.epochs,
        batch_size=100,
        persistent=True,
        binarize=True,
        num_chains=options.num_chains,
        learning_rate=options.learning_rate,
        learning_rate_schedule="cosine",
        averaging=options.averaging,
        seed=options.seed,
        progress=False,
    )
    started = time.perf_counter()
    trainer = Trainer(module.init_from_data(grey), config)
    trainer.fit(grey)
    print(f"trained {options.epochs} epochs in {time.perf_counter() - started:.0f} s")
    if options.output:
        Path(options.output).mkdir(parents=True, exist_ok=True)
        pyro_ebm.save(trainer.averaged, Path(options.output) / "model.safetensors")
    averaged: nn.RBM = trainer.averaged
    return averaged


def independent_pixels(rows: Tensor) -> RBM:
    """Every pixel by itself, with its rate in the training images: a machine without weights."""
    rate = rows.mean(0).clamp(_MIN_RATE, 1.0 - _MIN_RATE)
    return RBM(Bernoulli(rate.logit()), Bernoulli(rate.new_zeros(1)), rate.new_zeros(len(rate), 1))


# --- an Ising lattice -----------------------------------------------------------------------------


def lattice_edges(height: int, width: int) -> Tensor:
    """Pairs of pixels below and beside each other, shape ``(2, edges)``."""
    pixel = torch.arange(height * width).reshape(height, width)
    down = torch.stack([pixel[:-1].flatten(), pixel[1:].flatten()])
    right = torch.stack([pixel[:, :-1].flatten(), pixel[:, 1:].flatten()])
    return torch.cat([down, right], 1)


def ising_machine(bias: Tensor, coupling: Tensor, edges: Tensor) -> RBM:
    r"""The Ising model :math:`p(s) \propto \exp(b^\top s + \sum_{ij} J_{ij} s_i s_j)` of bits
    :math:`v = (1 + s) / 2` as an RBM with a hidden spin an edge.

    A hidden spin that both ends pull with strength w contributes :math:`2 \cosh w (s_i + s_j)`, which is
    :math:`\exp(J s_i s_j)` up to a constant if :math:`\cosh 2 w = \exp 2 J`. It is exact, for any
    :math:`J \ge 0`.

    :param Tensor bias: b, shape ``(V,)``.
    :param Tensor coupling: J, none of them negative, shape ``(edges,)``.
    :param Tensor edges: numbers of the two ends, shape ``(2, edges)``.
    """
    if bool((coupling < 0.0).any()):
        raise ValueError("coupling must not be negative: a hidden spin makes its neighbours agree")
    pull = 0.5 * torch.acosh((2.0 * coupling).exp())
    weight = bias.new_zeros(len(bias), len(coupling))
    weight[edges, torch.arange(len(coupling))] = 2.0 * pull
    return RBM(Bernoulli(2.0 * bias), Ising(-2.0 * pull), weight)


def fit_lattice(rows: Tensor, image_shape: tuple[int, ...], num_steps: int = 60) -> RBM:
    """A bias for every pixel and a coupling for every pair of neighbours, by the pseudo-likelihood."""
    edges = lattice_edges(*image_shape[-2:])
    spins = 2.0 * rows - 1.0
    rate = rows.mean(0).clamp(_MIN_RATE, 1.0 - _MIN_RATE)
    bias = (0.5 * rate.logit()).requires_grad_()
    raw = torch.full((edges.shape[1],), -2.0, dtype=rows.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias, raw], max_iter=num_steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        first, second = edges
        coupling = softplus(raw)
        field = bias.expand_as(spins).index_add(1, first, spins[:, second] * coupling)
        field = field.index_add(1, second, spins[:, first] * coupling)
        # Pixels that are never on would have an infinite bias.
        penalty = 1e-3 * (bias.square().sum() + coupling.square().sum())
        value = softplus(-2.0 * spins * field).sum(1).mean() + penalty
        value.backward()
        return value

    optimizer.step(loss)
    return ising_machine(bias.detach(), softplus(raw).detach(), edges)
