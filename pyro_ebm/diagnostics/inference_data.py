# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Chains for ArviZ, of both major versions.

This file imports nothing but numpy at the top, and ArviZ where it is used, so that it can be loaded by
its path where there is no torch.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["draws_of", "stats_of", "to_inference_data"]

Array = npt.NDArray[Any]


def to_inference_data(
    posterior: Any,
    *,
    sample_stats: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> Any:
    """Convert chains to ArviZ: ``InferenceData`` in ArviZ 0.x, ``DataTree`` in 1.x.

    :param posterior: a :class:`pyro.infer.MCMC` or :class:`~pyro_ebm.infer.VectorizedMCMC` after
        ``run()``, or a mapping of site names to arrays or tensors of shape ``(chains, draws, *event)``.
    :param sample_stats: numbers of every draw, shape ``(chains, draws, ...)``, such as
        ``{"energy": ...}``; the kernel's own if None.
    :param dims: names of the event axes by site, such as ``{"v": ["pixel"]}``.
    :param coords: labels of the named axes.
    :raises ValueError: if a value has no chain and draw axes or shapes contradict each other.
    :raises TypeError: if ``posterior`` is none of the above.

    >>> import torch
    >>> idata = to_inference_data({"v": torch.zeros(4, 10, 3)}, dims={"v": ["pixel"]})
    >>> tuple(idata.posterior["v"].dims)
    ('chain', 'draw', 'pixel')
    """
    import arviz as az

    draws = draws_of(posterior)
    stats = stats_of(posterior) if sample_stats is None else dict(sample_stats)
    groups: dict[str, Any] = {
        "posterior": {name: _array(name, value) for name, value in draws.items()},
        "sample_stats": {name: _array(name, value) for name, value in stats.items()},
    }
    _check_shapes({**groups["posterior"], **groups["sample_stats"]})
    groups = {name: group for name, group in groups.items() if group}
    options: dict[str, Any] = {}
    if dims is not None:
        options["dims"] = {name: list(axes) for name, axes in dims.items()}
    if coords is not None:
        options["coords"] = {name: list(labels) for name, labels in coords.items()}
    if int(az.__version__.split(".")[0]) >= 1:
        return az.from_dict(groups, **options)
    return az.from_dict(**groups, **options)


def draws_of(posterior: Any) -> Mapping[str, Any]:
    """Draws by site, shape ``(chains, draws, *event)``."""
    if isinstance(posterior, Mapping):
        return posterior
    if hasattr(posterior, "get_samples"):
        samples: Mapping[str, Any] = posterior.get_samples(group_by_chain=True)
        return samples
    raise TypeError(
        "posterior must be an MCMC object or a mapping of arrays, got " + type(posterior).__name__
    )


def stats_of(posterior: Any) -> dict[str, Any]:
    """Per-draw numbers that the kernel recorded; Pyro keeps them by chain."""
    if hasattr(posterior, "sample_stats"):
        return dict(posterior.sample_stats)
    # MCMC.diagnostics() would also compute Pyro's n_eff, whose memory is quadratic in the draws.
    chains = getattr(posterior, "_diagnostics", None)
    if not chains or any(not isinstance(chain, Mapping) for chain in chains):
        return {}
    draws = posterior.num_samples
    # Other arrays, such as a ladder of temperatures, are no numbers of a draw.
    names = [
        n for n, value in chains[0].items() if tuple(getattr(value, "shape", ()))[:1] == (draws,)
    ]
    return {_identifier(n): np.stack([_numpy(chain[n]) for chain in chains]) for n in names}


def _identifier(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def _numpy(value: Any) -> Array:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def _array(name: str, value: Any) -> Array:
    array = _numpy(value)
    if array.ndim < 2:
        raise ValueError(f"{name!r} must have shape (chains, draws, ...), got {array.shape}")
    # ArviZ 1.x cannot subtract booleans.
    return array.astype(np.float32) if array.dtype == np.bool_ else array


def _check_shapes(arrays: Mapping[str, Array]) -> None:
    shapes = {name: array.shape[:2] for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"numbers of chains and draws differ: {shapes}")
