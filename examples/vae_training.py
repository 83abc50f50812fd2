# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Trains the autoencoders of ``vae_rbm_prior.py``: both priors by the same estimator."""

import time
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from vae_model import VAE

from pyro_ebm.infer import ContrastiveDivergence, LeaveOneOutELBO

Record = dict[str, Any]


def make_loss(options: Any, relaxed: bool) -> ContrastiveDivergence:
    """Pathwise gradients of relaxed bits, or score-function ones of bits; log Z by persistent chains.

    A prior that is normalised has no negative phase: the same loss then is the ELBO alone.
    """
    elbo: Any
    if relaxed:
        elbo = Trace_ELBO(max_plate_nesting=1)
    else:
        elbo = LeaveOneOutELBO(options.particles, max_plate_nesting=1)
    return ContrastiveDivergence(
        options.sweeps, persistent=True, num_chains=options.chains, elbo=elbo
    )


def make_optimizer(options: Any) -> Any:
    """Adam, whose rates fall along a line to zero from the epoch ``decay_from`` on."""

    def share(epoch: int) -> float:
        left = options.epochs - epoch
        return min(1.0, left / max(1, options.epochs - options.decay_from))

    def rate(name: str) -> dict[str, float]:
        of_prior = name.startswith("prior")
        return {
            "lr": options.prior_learning_rate if of_prior else options.learning_rate,
            "fused": True,
        }

    return pyro.optim.LambdaLR(
        {"optimizer": torch.optim.Adam, "optim_args": rate, "lr_lambda": share}
    )


class Training:
    """Stochastic variational inference on images whose bits are new at every visit.

    The first ``relaxed_epochs`` have pathwise gradients of relaxed bits, which learn fast towards a bound
    that is not quite that of the model; the others score-function gradients of bits, whose bound it is.
    The chains of the prior and the state of the optimiser go on from one to the other.

    :param Tensor images: grey levels, shape ``(rows, pixels)``.
    :param options: see :func:`vae_rbm_prior.parse`.
    """

    def __init__(self, vae: VAE, images: Tensor, options: Any) -> None:
        pyro.clear_param_store()
        pyro.set_rng_seed(options.seed)
        self.vae, self.images, self.options = vae, images, options
        self.optimizer = make_optimizer(options)
        self.loss: ContrastiveDivergence | None = None
        self.steps = 0

    def start(self, relaxed: bool) -> SVI:
        """The steps of either kind."""
        loss = make_loss(self.options, relaxed)
        if self.loss is not None:
            loss.load_state_dict(self.loss.state_dict())
        self.loss = loss
        self.vae.temperature = self.options.temperature if relaxed else None
        return SVI(self.vae.model, self.vae.guide, self.optimizer, loss=loss)

    def run(self, evaluate: Callable[[VAE], Record] | None = None) -> list[Record]:
        """All epochs.

        :param evaluate: what the history records every ``every`` epochs and at the end.
        :returns: the history. The model has bits again at the end.
        """
        options = self.options
        history: list[Record] = []
        seconds = 0.0
        for epoch in range(1, options.epochs + 1):
            if epoch in (1, options.relaxed_epochs + 1):
                svi = self.start(relaxed=epoch <= options.relaxed_epochs)
            started = time.perf_counter()
            self._epoch(svi)
            seconds += time.perf_counter() - started
            if evaluate and (epoch % options.every == 0 or epoch == options.epochs):
                history.append({"epoch": epoch, "seconds": seconds} | _evaluate(self.vae, evaluate))
                if options.progress:
                    print(_line(history[-1]), flush=True)
        self.vae.temperature = None
        return history

    def _epoch(self, svi: SVI) -> None:
        images, size = self.images, self.options.batch_size
        warmup = max(1, self.options.warmup * (-(-len(images) // size)))
        for rows in torch.randperm(len(images)).split(size):
            self.steps += 1
            weight = min(1.0, self.steps / warmup)
            # Checks cost a tenth of a step and find what is wrong in the first ones.
            with pyro.validation_enabled(self.steps <= 3):
                svi.step(torch.bernoulli(images[rows]), kl_weight=weight)
        self.optimizer.step()


def _evaluate(vae: VAE, evaluate: Callable[[VAE], Record]) -> Record:
    """The record of the discrete model, without a mark on the random numbers of the training."""
    temperature, vae.temperature = vae.temperature, None
    with torch.random.fork_rng():
        record = evaluate(vae)
    vae.temperature = temperature
    return record


def _line(record: Record) -> str:
    """An epoch in a line."""
    numbers = (
        f"{name} {value:.2f}" for name, value in record.items() if name not in ("epoch", "seconds")
    )
    return f"epoch {record['epoch']:3d} ({record['seconds']:.0f} s): {', '.join(numbers)}"
