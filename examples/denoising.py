# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Images out of noise of unknown strength: a machine is the prior, the noise is learned with the images.

The clean image is a site whose distribution is a Boltzmann machine that was trained on clean images. What is
seen is that image with flipped bits, or with Gaussian noise, gain and offset; a part of it may be hidden.
Nobody tells the program how strong the noise is. The posterior of images and noise together is drawn by block
Gibbs for the machine and NUTS for the parameters of the noise in turns.

    PYRO_EBM_DATA=/path/to/data python examples/denoising.py --model rbm.safetensors --output runs/denoising
    python examples/denoising.py --noise gaussian --model runs/rbm-mnist/model.safetensors
    python examples/denoising.py --occlude 0.4 --model runs/rbm-mnist/model.safetensors
    python examples/denoising.py --smoke

Without ``--model`` an RBM is trained first.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from denoising_baselines import best_weight, fill, median, total_variation
from denoising_pictures import picture_of_calibration, picture_of_images, picture_of_noise
from denoising_priors import fit_lattice, independent_pixels, trained_machine
from denoising_scores import image_report, noise_report, text_of
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor
from torch.distributions.utils import broadcast_all

from pyro_ebm import datasets, plotting
from pyro_ebm.diagnostics import ChainSummary, summarize_chains
from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer import BlockGibbs, Gibbs
from pyro_ebm.infer.mcmc.posterior import rbm_posterior

#: The noise that is to be found.
TRUTH = {
    "flips": {"flip": 0.15},
    "gaussian": {"scale": 0.6, "gain": 0.8, "offset": 0.3},
}
SMOKE = {
    "data": "digits",
    "rows": 10,
    "hidden": 48,
    "epochs": 20,
    "num_chains": 50,
    "averaging": 0.98,
    "draws": 30,
    "warmup": 20,
    "chains": 2,
    "fit_rows": 1000,
}
#: Images whose numbers of ink pixels are among the diagnostics.
MAX_SUMMARIES = 6


# --- the program ----------------------------------------------------------------------------------


class FlippedBits(dist.TorchDistribution):
    """Bits of which each is flipped with some probability.

    ``Bernoulli`` with probabilities computed from the bits has the same values. Here they are written as a
    linear function of the clean bits, so that one gradient is the field that block Gibbs needs.

    :param Tensor clean: the bits before.
    :param Tensor flip: the probability, of a shape that broadcasts.
    """

    arg_constraints = {"flip": dist.constraints.unit_interval}
    support = dist.constraints.boolean

    def __init__(self, clean: Tensor, flip: Tensor) -> None:
        self.clean, self.flip = broadcast_all(clean, flip)
        super().__init__(self.clean.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FlippedBits":
        return FlippedBits(self.clean.expand(batch_shape), self.flip.expand(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        flipped = torch.bernoulli(self.flip.expand(self._extended_shape(sample_shape)))
        return (self.clean - flipped).abs().detach()

    def log_prob(self, value: Tensor) -> Tensor:
        changed = value + self.clean - 2.0 * value * self.clean
        return torch.log1p(-self.flip) + changed * (self.flip.log() - torch.log1p(-self.flip))


def flips(
    machine: RBM | DBM, given: Tensor, seen: Tensor | None = None, per_image: bool = False
) -> Tensor:
    """Clean images, bits of which were flipped; ``given`` says which pixels were seen at all."""
    with pyro.plate("noises", len(given) if per_image else 1):
        flip = pyro.sample("flip", dist.Beta(1.0, 4.0))
    with pyro.plate("images", len(given)):
        clean = pyro.sample("clean", machine)
        noise = FlippedBits(clean, flip.unsqueeze(-1))
        return pyro.sample("seen", noise.mask(given).to_event(1), obs=seen)


def gaussian(
    machine: RBM | DBM, given: Tensor, seen: Tensor | None = None, per_image: bool = False
) -> Tensor:
    """Clean images under a gain, an offset and Gaussian noise."""
    with pyro.plate("noises", len(given) if per_image else 1):
        scale = pyro.sample("scale", dist.LogNormal(-1.0, 1.0)).unsqueeze(-1)
        gain = pyro.sample("gain", dist.LogNormal(0.0, 0.5)).unsqueeze(-1)
        offset = pyro.sample("offset", dist.Normal(0.0, 0.5)).unsqueeze(-1)
    with pyro.plate("images", len(given)):
        clean = pyro.sample("clean", machine)
        noise = dist.Normal(offset + gain * clean, scale)
        return pyro.sample("seen", noise.mask(given).to_event(1), obs=seen)


PROGRAMS: dict[str, Callable[..., Tensor]] = {"flips": flips, "gaussian": gaussian}


def corrupt(noise: str, clean: Tensor, given: Tensor, seed: int) -> Tensor:
    """The program run forward: what is seen of clean images under the true noise."""
    values = {name: torch.tensor([value]) for name, value in TRUTH[noise].items()}
    pyro.set_rng_seed(seed)
    program = poutine.condition(PROGRAMS[noise], data=values | {"clean": clean})
    return program(independent_pixels(clean), given).detach()


# --- inference ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Posterior:
    """Draws given what was seen.

    :param Tensor mean: probability of ink by pixel, shape ``(images, V)``.
    :param Tensor mode: an image near a mode of the posterior given the noise at its posterior mean (or as
        it is known), shape ``(images, V)``.
    :param Tensor draws: a few draws, shape ``(4, images, V)``.
    :param parameters: draws of the noise, shapes ``(chains, draws, 1 or images)``.
    :param ChainSummary summary: R-hat and effective sample sizes of the noise, and of the ink of some images.
    """

    mean: Tensor
    mode: Tensor
    draws: Tensor
    parameters: dict[str, Tensor]
    summary: ChainSummary


def make_kernel(program: Callable[..., Any], sweeps: int, known: bool) -> Gibbs:
    """Block Gibbs for the images, NUTS for the noise. Given the noise the rest of the program is linear in
    the bits: every block of the machine is drawn exactly, and nothing is rejected."""
    images: tuple[Any, Any] = (BlockGibbs(program, sweeps), ["clean"])
    if known:
        return Gibbs([images])
    return Gibbs([images, (NUTS(program, init_strategy=init_to_median, max_tree_depth=5), None)])


def given_noise(noise: str, values: Mapping[str, Tensor]) -> Callable[..., Any]:
    """The program where somebody has measured the noise: Pyro's ``condition``."""
    return poutine.condition(PROGRAMS[noise], data=dict(values))


def infer(
    noise: str,
    machine: RBM | DBM,
    given: Tensor,
    seen: Tensor,
    options: Any,
    known: Mapping[str, Tensor] | None = None,
) -> Posterior:
    """Draws of images and noise.

    :param known: the parameters of the noise if somebody knows them, None to learn them.
    """
    program = PROGRAMS[noise] if known is None else given_noise(noise, known)
    clean, parameters = [], []
    started = time.perf_counter()
    # One after the other: in processes of their own they would need a program that can be pickled.
    for chain in range(options.chains):
        pyro.set_rng_seed(options.seed + 1000 * chain)
        kernel = make_kernel(program, options.sweeps, known is not None)
        mcmc = MCMC(kernel, options.draws, options.warmup, disable_progbar=True)
        mcmc.run(machine, given, seen, options.per_image)
        draws = mcmc.get_samples()
        clean.append(draws["clean"])
        parameters.append({name: x for name, x in draws.items() if name in TRUTH[noise]})
    seconds = time.perf_counter() - started
    images = torch.stack(clean)
    noises = {name: torch.stack([p[name] for p in parameters]) for name in parameters[0]}
    values = known or {name: x.flatten(0, 1).mean(0) for name, x in noises.items()}
    every = images.flatten(0, 1)
    mean = every.mean(0)
    return Posterior(
        mean,
        mode(given_noise(noise, values), machine, given, seen, mean, options.per_image),
        every[:: max(1, len(every) // 4)][:4],
        noises,
        summarize_chains(chain_numbers(images, noises), seconds=seconds),
    )


def chain_numbers(images: Tensor, noises: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the chains are judged by, shapes ``(chains, draws)``: the noise (of the first image if each has
    its own), and the number of ink pixels of some images."""
    ink = images.sum(-1)
    numbers = {name: x[..., 0] for name, x in noises.items()}
    return numbers | {f"ink[{k}]": ink[..., k] for k in range(min(MAX_SUMMARIES, ink.shape[-1]))}


@torch.no_grad()
def mode(
    program: Callable[..., Any],
    machine: RBM | DBM,
    given: Tensor,
    seen: Tensor,
    start: Tensor,
    per_image: bool,
    num_steps: int = 50,
) -> Tensor:
    """Uphill from the posterior mean: given the noise the posterior is the machine with a further field, of
    which all units of one side in turn take their likelier state (iterated conditional modes)."""
    _, posterior = rbm_posterior(program, machine, given, seen, per_image)
    deep = posterior if isinstance(posterior, DBM) else None
    pair = posterior.bipartite() if isinstance(posterior, DBM) else posterior
    even = start.round()
    if deep is not None:
        even = torch.cat([even, even.new_zeros(len(even), sum(deep.sizes[2::2]))], -1)
    for _ in range(num_steps):
        odd = pair.hidden.mean(pair.hidden_field(even)).round()
        even = pair.visible.mean(pair.visible_field(odd)).round()
    return even[..., : start.shape[-1]]


# --- the comparison -------------------------------------------------------------------------------


def occlusion(image_shape: tuple[int, ...], num_rows: int, share: float) -> Tensor:
    """Which pixels are given: a band in the middle of the image is not. Shape ``(rows, V)``."""
    height, width = image_shape[-2:]
    band = round(share * height)
    first = (height - band) // 2
    given = torch.ones(height, width, dtype=torch.bool)
    given[first : first + band] = False
    return given.flatten().expand(num_rows, -1)


def filters(
    noise: str, seen: Tensor, given: Tensor, data: datasets.Dataset, options: Any
) -> dict[str, Tensor]:
    """Images by filters, which are told gain and offset, and the weight of the total variation that is best
    for the same noise on training images."""
    rows = data.binarized("train", seed=0)[: len(seen) * 4]
    noisy = corrupt(noise, rows, given[:1].expand(len(rows), -1), options.seed + 1)
    mean = data.train().mean(0)

    def rescaled(images: Tensor, mask: Tensor) -> Tensor:
        truth = TRUTH[noise]
        images = (images - truth.get("offset", 0.0)) / truth.get("gain", 1.0)
        return fill(images, mask, mean)

    own, others = rescaled(seen, given), rescaled(noisy, given[:1])
    weight = best_weight(others, rows, data.image_shape)
    return {
        "what is seen": own,
        "median filter": median(own, data.image_shape),
        "total variation": total_variation(own, data.image_shape, weight),
    }


def priors(machine: RBM | DBM, data: datasets.Dataset, options: Any) -> dict[str, RBM | DBM]:
    """The machine, and two that know less of digits, and are fitted on fewer images (``fit_rows``)."""
    rows = data.binarized("train", seed=0)[: options.fit_rows]
    return {
        "independent pixels": independent_pixels(rows),
        "Ising lattice": fit_lattice(rows, data.image_shape),
        "machine": machine,
    }


def fitted_on(data: datasets.Dataset, options: Any) -> dict[str, int | str]:
    """How many training images each prior has seen."""
    count = len(data.train())
    few = min(options.fit_rows, count)
    machine = f"those of {options.model}" if options.model else count
    return {"independent pixels": few, "Ising lattice": few, "machine": machine}


def run(options: Any) -> dict[str, Any]:
    """All estimates of the clean images, and how good they are."""
    data = datasets.load(options.data)
    machine = trained_machine(data, options)
    clean = data.binarized("test", seed=0)[: options.rows]
    given = occlusion(data.image_shape, len(clean), options.occlude)
    seen = corrupt(options.noise, clean, given, options.seed)
    estimates = filters(options.noise, seen, given, data, options)
    size = len(clean) if options.per_image else 1
    known = {name: torch.full((size,), value) for name, value in TRUTH[options.noise].items()}
    posteriors = {}
    for name, prior in priors(machine, data, options).items():
        posteriors[name] = infer(options.noise, prior, given, seen, options)
        print(f"\n{name}, noise learned: {posteriors[name].summary}")
    posteriors["machine, noise known"] = infer(
        options.noise, machine, given, seen, options, known=known
    )
    report: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "truth": TRUTH[options.noise],
        "fitted_on": fitted_on(data, options),
        "noise": {
            n: noise_report(p.parameters, TRUTH[options.noise]) for n, p in posteriors.items()
        },
        "images": image_report(estimates, posteriors, clean, given),
        "chains": {n: p.summary.to_dict() for n, p in posteriors.items()},
    }
    print(f"\n{text_of(report)}")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        draw(clean, seen, given, estimates, posteriors, data.image_shape, options)
    return report


def draw(
    clean: Tensor,
    seen: Tensor,
    given: Tensor,
    estimates: dict[str, Tensor],
    posteriors: dict[str, Posterior],
    image_shape: tuple[int, ...],
    options: Any,
) -> None:
    """The pictures."""
    best = posteriors["machine"]
    panels = {"clean": clean, "seen": torch.where(given, seen, torch.nan)}
    panels |= {name: x for name, x in estimates.items() if name != "what is seen"}
    panels |= {name: posteriors[name].mean for name in ("independent pixels", "Ising lattice")}
    panels |= {"machine": best.mean, "a draw": best.draws[0], "another": best.draws[-1]}
    figures = {
        "images": picture_of_images(panels, image_shape),
        "noise": picture_of_noise(
            {n: p.parameters for n, p in posteriors.items() if p.parameters}, TRUTH[options.noise]
        ),
        "calibration": picture_of_calibration({n: p.mean for n, p in posteriors.items()}, clean),
    }
    for name, figure in figures.items():
        plotting.save(figure, options.output / f"{name}.png")


def parse(arguments: list[str] | None = None) -> Any:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="mnist", choices=datasets.available())
    parser.add_argument("--noise", default="flips", choices=list(PROGRAMS))
    parser.add_argument("--occlude", type=float, default=0.0, help="share of hidden lines")
    parser.add_argument("--per-image", action="store_true", help="every image has its own noise")
    parser.add_argument("--rows", type=int, default=30, help="test images")
    parser.add_argument("--model", type=Path, help="a machine of clean images, RBM or DBM")
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--num-chains", type=int, default=200, help="chains of the training")
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--averaging", type=float, default=0.999)
    parser.add_argument("--fit-rows", type=int, default=5000, help="images of both other priors")
    parser.add_argument("--draws", type=int, default=250)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--sweeps", type=int, default=5, help="of block Gibbs a draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a folder for the report and the pictures")
    parser.add_argument("--smoke", action="store_true", help="seconds, on the digits")
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(SMOKE)
    if not 0.0 <= options.occlude < 1.0:
        parser.error(f"--occlude must be at least 0 and below 1, got {options.occlude}")
    return options


if __name__ == "__main__":
    run(parse())
