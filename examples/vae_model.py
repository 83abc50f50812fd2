# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A variational autoencoder with latent bits, whose prior is a machine or independent bits."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor
from torch.nn import Module, Parameter

from pyro_ebm import nn
from pyro_ebm.distributions import RBM, ConcreteBernoulli, relaxed
from pyro_ebm.nn.networks import mlp

PriorName = Literal["rbm", "independent"]
PRIORS: tuple[PriorName, ...] = ("rbm", "independent")
#: Rates of pixels stay this far from 0 and 1 at the start.
_FLOOR = 1e-3


class IndependentBits(PyroModule):
    """The factorial prior: a bias for every bit."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = Parameter(torch.zeros(size))

    def forward(self) -> Any:
        return dist.Bernoulli(logits=self.bias).to_event(1)


class VAE(PyroModule):
    """Bits z from a prior, pixels x given z from a network; a guide q(z | x) of independent bits.

    :param prior: a module that makes the distribution of z, such as :class:`pyro_ebm.nn.RBM`.
    :param int num_pixels: entries of an image.
    :param int latent: bits of z.
    :param encoder_sizes: hidden layers of the network from x to the logits of q.
    :param decoder_sizes: hidden layers of the network from z to the logits of the pixels.
    """

    def __init__(
        self,
        prior: Module,
        num_pixels: int,
        latent: int,
        encoder_sizes: Sequence[int],
        decoder_sizes: Sequence[int],
    ) -> None:
        super().__init__()
        self.prior = prior
        self.encoder = mlp(num_pixels, encoder_sizes, latent)
        self.decoder = mlp(latent, decoder_sizes, num_pixels)
        #: Of the relaxed bits that a pathwise gradient needs; None for bits.
        self.temperature: float | None = None

    def model(self, x: Tensor, kl_weight: float = 1.0) -> None:
        prior = self.relax(self.prior())
        with pyro.plate("images", len(x)):
            with poutine.scale(scale=kl_weight):
                z = pyro.sample("z", prior)
            pixels = dist.Bernoulli(logits=self.decoder(z)).to_event(1)
            pyro.sample("x", pixels, obs=x)

    def guide(self, x: Tensor, kl_weight: float = 1.0) -> None:
        bits = dist.Bernoulli(logits=self.encoder(x)).to_event(1)
        with pyro.plate("images", len(x)), poutine.scale(scale=kl_weight):
            pyro.sample("z", self.relax(bits))

    def relax(self, bits: Any) -> Any:
        """A distribution of bits as it is, or of relaxed bits if there is a temperature."""
        if self.temperature is None:
            return bits
        if isinstance(bits, RBM):
            return relaxed(bits)
        return ConcreteBernoulli(self.temperature, bits.base_dist.logits).to_event(1)

    @torch.no_grad()
    def init_from_data(self, images: Tensor) -> "VAE":
        """Pixels start at their rates, whatever z is."""
        last: Any = list(self.decoder.modules())[-1]
        last.bias.copy_(images.mean(0).clamp(_FLOOR, 1.0 - _FLOOR).logit())
        return self


def network_parameters(sizes: Sequence[int]) -> int:
    """Weights and biases of a perceptron with these layers."""
    return sum((below + 1) * above for below, above in pairwise(sizes))


def twin_sizes(
    num_pixels: int, latent: int, encoder: Sequence[int], decoder: Sequence[int], extra: int
) -> tuple[list[int], list[int]]:
    """Hidden layers of the networks that also hold the parameters which an independent prior lacks.

    :param int extra: how many these are.
    :returns: layers of the encoder and of the decoder, every one wider by the same number, the smallest with
        which the networks have at least ``extra`` more parameters.
    :raises ValueError: if there is no hidden layer that could be wider.
    """
    if not (encoder or decoder):
        raise ValueError("networks without hidden layers have no place for further parameters")

    def count(wider: int) -> int:
        up, down = ([size + wider for size in sizes] for sizes in (encoder, decoder))
        return network_parameters([num_pixels, *up, latent]) + network_parameters(
            [latent, *down, num_pixels]
        )

    wider = 0
    while count(wider) - count(0) < extra:
        wider += 1
    return [size + wider for size in encoder], [size + wider for size in decoder]


def build(prior: PriorName, images: Tensor, options: Any) -> VAE:
    """A model at its start; both kinds have the same number of parameters, up to a unit.

    :param str prior: "rbm" or "independent".
    :param Tensor images: training images, shape ``(rows, pixels)``.
    :param options: ``latent``, ``hidden``, ``encoder``, ``decoder`` and ``seed``.
    """
    pyro.set_rng_seed(options.seed)
    num_pixels, latent = images.shape[1], options.latent
    encoder, decoder = list(options.encoder), list(options.decoder)
    module: Module
    if prior == "rbm":
        module = nn.RBM(latent, options.hidden, seed=options.seed)
    else:
        module = IndependentBits(latent)
        extra = (latent + 1) * options.hidden
        encoder, decoder = twin_sizes(num_pixels, latent, encoder, decoder, extra)
    return VAE(module, num_pixels, latent, encoder, decoder).init_from_data(images)


def count_parameters(module: Module) -> int:
    """Numbers that training sets."""
    return sum(parameter.numel() for parameter in module.parameters())
