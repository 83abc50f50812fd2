# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Kernels as the transitions of annealing, and what paths and kernels must fulfil for it."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.infer.mcmc.kernel import VectorizedKernel, run_kernel
from pyro_ebm.infer.paths import Path, Transition

__all__ = ["MakeKernel", "check_kernel", "check_path", "describe_kernel", "kernel_transition"]

#: Makes the kernel that moves chains at a machine.
MakeKernel = Callable[[RBM], VectorizedKernel]


def kernel_transition(make_kernel: MakeKernel, generator: Generator | None) -> Transition:
    """A transition of annealing that is one draw of a kernel, made anew for every machine.

    :param make_kernel: makes the kernel.
    :param torch.Generator generator: given to kernels without one of their own.
    """

    def move(machine: RBM, v: Tensor) -> Tensor:
        kernel = make_kernel(machine)
        if generator is not None and getattr(kernel, "generator", generator) is None:
            kernel.generator = generator  # type: ignore[attr-defined]
        return run_kernel(kernel, {kernel.site: v}, 1)[kernel.site]

    return move


def check_kernel(make_kernel: MakeKernel, path: Path, *, resumable: bool = False) -> None:
    """Refuse what makes no kernel of ours.

    :param make_kernel: makes the kernel.
    :param Path path: the path whose machines it is for.
    :param bool resumable: whether all of its random bits must come from the run's generator, whose state is
        saved.
    :raises TypeError: if it makes none.
    :raises ValueError: if it has a source of random bits of its own, and must not.
    """
    kernel = make_kernel(path.target)
    if not isinstance(kernel, VectorizedKernel):
        raise TypeError(
            f"kernel must make a kernel of chains in one tensor, such as BlockGibbs, got "
            f"{type(kernel).__name__}"
        )
    if resumable and getattr(kernel, "generator", kernel) is not None:
        raise ValueError(
            "kernel must draw from the generator of the run, whose state is saved: make it without one"
        )


def check_path(path: Path, dist: RBM) -> None:
    """Refuse paths that do not lead from an exact start to the machine.

    :raises TypeError: if it is no path.
    :raises ValueError: if it leads to another machine, or its start has no known log Z.
    """
    if not isinstance(path, Path):
        raise TypeError(f"path must be a Path, got {type(path).__name__}")
    path.log_partition_base  # noqa: B018 - raises where the start has weights
    here, there = _canonical_tensors(dist), _canonical_tensors(path.target)
    same = (
        path.target.weight.dtype == dist.weight.dtype
        and path.target.weight.device == dist.weight.device
        and path.batch_shape == dist.parameter_batch_shape
        and here.keys() == there.keys()
        and all(_is_close(here[name], there[name]) for name in here)
    )
    if not same:
        raise ValueError("path leads to another machine than dist (parameters, dtype or device)")


def _canonical_tensors(dist: RBM) -> dict[str, Tensor]:
    """What a machine is, however it is parameterised."""
    form = dist.canonical()
    tensors = {
        "visible bias": form.visible_bias,
        "hidden bias": form.hidden_bias,
        "weight": form.weight,
        "constant": form.constant,
    }
    for name, unit in (("visible", dist.visible), ("hidden", dist.hidden)):
        # What is left of a layer without its bias: precisions and the like.
        for parameter, value in unit.neutral().parameters.items():
            tensors[f"neutral {name} {parameter}"] = value
    return tensors


def _is_close(a: Tensor, b: Tensor) -> bool:
    try:
        a, b = torch.broadcast_tensors(a, b)
    except RuntimeError:
        return False
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.abs().max())))


def describe_kernel(kernel: VectorizedKernel) -> str:
    """Type and plain options of a kernel."""
    options = {
        name: value
        for name, value in sorted(vars(kernel).items())
        if not name.startswith("_") and isinstance(value, bool | int | float | str)
    }
    return f"{type(kernel).__name__}({', '.join(f'{n}={v!r}' for n, v in options.items())})"
