# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Chains of block Gibbs and their diagnostics."""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.cli.machines import (
    MAX_UPDATES,
    TOLERANCE,
    Machine,
    free_energies,
    lowest_weight,
    two_sided,
)
from pyro_ebm.diagnostics import to_inference_data
from pyro_ebm.infer import BlockGibbs, VectorizedMCMC

__all__ = [
    "ChainOptions",
    "Chains",
    "describe_diagnostics",
    "diagnose",
    "read_chains",
    "run_chains",
    "unit_means",
    "unmixed",
    "write_chains",
]


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """How long chains are: ``thin`` sweeps lie between two draws that are kept."""

    num_chains: int = 8
    num_draws: int = 500
    warmup: int = 200
    thin: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_chains, self.num_draws, self.thin) < 1 or self.warmup < 0:
            raise ValueError("chains, draws and thin must be at least 1, warmup at least 0")


@dataclass(frozen=True)
class Chains:
    """Draws of block Gibbs.

    :param Tensor v: visible states, shape ``(chains, draws, V)``.
    :param Tensor energy: their free energies, shape ``(chains, draws)``; of a deep machine the upper bounds
        by mean field.
    :param ChainOptions options: how they were run.
    :param float seconds: how long it took.
    """

    v: Tensor
    energy: Tensor
    options: ChainOptions
    seconds: float


def run_chains(module: Machine, options: ChainOptions, *, progress: bool = True) -> Chains:
    """Run block Gibbs chains from draws of the visible layer alone; of a deep machine between its even and
    its odd layers, from draws of the even ones.

    :param module: the model.
    :param ChainOptions options: how long.
    """
    started = time.perf_counter()
    device = lowest_weight(module).device
    generator = Generator(device=device).manual_seed(options.seed)
    kernel = BlockGibbs(two_sided(module), num_steps=options.thin, generator=generator)
    mcmc = VectorizedMCMC(
        kernel,
        options.num_draws,
        options.warmup,
        options.num_chains,
        disable_progbar=not progress,
    )
    mcmc.run()
    v = mcmc.get_samples(group_by_chain=True)["v"]
    energy = mcmc.sample_stats["energy"]
    if isinstance(module, nn.DBM):
        v = v[..., : module.sizes[0]].contiguous()
        energy = free_energies(module, v)
    return Chains(v, energy, options, round(time.perf_counter() - started, 3))


def write_chains(chains: Chains, path: Path) -> None:
    """Write chains as ArviZ's netCDF, atomically. Settings are attributes of the file."""
    idata = to_inference_data(
        {"v": chains.v}, sample_stats={"energy": chains.energy}, dims={"v": ["pixel"]}
    )
    idata.posterior.attrs.update(asdict(chains.options), seconds=chains.seconds)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        idata.to_netcdf(str(temporary))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_chains(path: Path) -> Chains:
    """Read what :func:`write_chains` wrote.

    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it holds no chains of ours.
    """
    import arviz as az

    if not path.is_file():
        raise FileNotFoundError(f"no chains at {path}; run pyro-ebm sample first")
    try:
        idata = az.from_netcdf(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no readable netCDF file ({error})") from error
    try:
        attributes = idata.posterior.attrs
        numbers = {name: int(attributes[name]) for name in asdict(ChainOptions())}
        v = torch.as_tensor(np.asarray(idata.posterior["v"].values))
        energy = torch.as_tensor(np.asarray(idata.sample_stats["energy"].values))
        seconds = float(attributes["seconds"])
    except (AttributeError, KeyError) as error:
        raise ValueError(f"{path} holds no chains of pyro-ebm sample ({error})") from error
    finally:
        idata.close()
    return Chains(v, energy, ChainOptions(**numbers), seconds)


def diagnose(chains: Chains) -> dict[str, Any]:
    """ArviZ's rank-normalised R-hat and effective sample sizes of the energy and of all units.

    Units that never change have no R-hat; they are counted. With fewer than four draws or one chain
    there is nothing to compute.
    """
    result: dict[str, Any] = {**asdict(chains.options), "seconds": chains.seconds}
    flat = chains.v.flatten(0, 1)
    moving = (flat != flat[:1]).any(0)
    result["constant_units"] = int((~moving).sum())
    result["units"] = int(moving.numel())
    if chains.v.shape[0] < 2 or chains.v.shape[1] < 4:
        return result
    result["energy"] = _diagnose(chains.energy.unsqueeze(-1))
    if bool(moving.any()):
        result["v"] = _diagnose(chains.v[..., moving])
    return result


def _diagnose(values: Tensor) -> dict[str, float]:
    import arviz as az

    data = to_inference_data({"x": values.double()}, sample_stats={})
    with np.errstate(divide="ignore", invalid="ignore"):
        r_hat = np.asarray(az.rhat(data)["x"].values)
        bulk = np.asarray(az.ess(data, method="bulk")["x"].values)
        tail = np.asarray(az.ess(data, method="tail")["x"].values)
    # A unit that changes in a single chain only, once, may have none.
    found = {
        "r_hat_max": np.nanmax(r_hat),
        "ess_bulk_min": np.nanmin(bulk),
        "ess_bulk_median": np.nanmedian(bulk),
        "ess_tail_min": np.nanmin(tail),
    }
    return {name: float(value) for name, value in found.items()}


def unmixed(result: dict[str, Any]) -> bool:
    """Whether any R-hat of :func:`diagnose` is above the usual limit of 1.01."""
    return any(result[key]["r_hat_max"] > 1.01 for key in ("energy", "v") if key in result)


def describe_diagnostics(result: dict[str, Any]) -> str:
    """The diagnostics as a table for people."""
    draws = result["num_chains"] * result["num_draws"]
    lines = [
        f"{result['num_chains']} chains x {result['num_draws']} draws, {result['thin']} sweeps "
        f"apart, after {result['warmup']} draws of warm-up; {result['seconds']:.1f} s"
    ]
    if "energy" not in result:
        lines.append("R-hat and ESS need at least 2 chains and 4 draws")
        return "\n".join(lines)
    lines.append(
        f"{'ArviZ, ' + str(draws) + ' draws':24}{'R-hat':>8}{'ESS bulk':>10}{'ESS tail':>10}"
    )
    names = {"energy": "free energy"}
    if "v" in result:
        names["v"] = f"pixels, worst of {result['units'] - result['constant_units']}"
    for key, name in names.items():
        row = result[key]
        lines.append(
            f"{name:24}{row['r_hat_max']:8.3f}{row['ess_bulk_min']:10.0f}{row['ess_tail_min']:10.0f}"
        )
    if unmixed(result):
        lines.append("R-hat above 1.01: the chains have not forgotten their starts yet")
    if result["constant_units"]:
        lines.append(f"{result['constant_units']} pixels never changed and are left out")
    return "\n".join(lines)


@torch.no_grad()
def unit_means(module: Machine, v: Tensor, seed: int = 0) -> Tensor:
    """Means of the visible units given hidden states drawn from visible ones (of a deep machine given the
    mean field): smoother pictures."""
    if isinstance(module, nn.DBM):
        return module.reconstruct(v, max_updates=MAX_UPDATES, tolerance=TOLERANCE)
    dist = two_sided(module)
    generator = Generator(device=dist.weight.device).manual_seed(seed)
    field = dist.hidden_field(v.to(dist.weight))
    h = dist.hidden.natural_sample(dist.hidden.natural_bias + field, generator)
    return dist.visible.mean(dist.visible_field(h))
