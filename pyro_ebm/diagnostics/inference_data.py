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

_DATA_GROUPS = ("observed_data", "constant_data")
#: Groups whose arrays have the same chains and draws.
_SAME_DRAWS = (
    ("posterior", "sample_stats", "posterior_predictive", "log_likelihood"),
    ("prior", "prior_predictive"),
)
_FURTHER_GROUPS = (
    "posterior_predictive",
    "log_likelihood",
    "prior",
    "prior_predictive",
    *_DATA_GROUPS,
)


def to_inference_data(
    posterior: Any,
    *,
    sample_stats: Mapping[str, Any] | None = None,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> Any:
    """Convert chains to ArviZ: ``InferenceData`` in ArviZ 0.x, ``DataTree`` in 1.x.

    :param posterior: a :class:`pyro.infer.MCMC` or :class:`~pyro_ebm.infer.VectorizedMCMC` after
        ``run()``, or a mapping of site names to arrays or tensors of shape ``(chains, draws, *event)``.
    :param sample_stats: numbers of every draw, shape ``(chains, draws, ...)``, such as
        ``{"energy": ...}``; the kernel's own if None.
    :param groups: further groups of ArviZ by name, such as ``{"log_likelihood": {"x": ...}}``, arrays of
        shape ``(chains, draws, ...)``; those of ``"observed_data"`` and ``"constant_data"`` have no such
        axes. :func:`program_groups` makes them from a Pyro model.
    :param dims: names of the event axes by site, such as ``{"v": ["pixel"]}``.
    :param coords: labels of the named axes.
    :raises ValueError: if a value has no chain and draw axes, shapes contradict each other, or ``groups``
        has a name that ArviZ does not know or that the other arguments give.
    :raises TypeError: if ``posterior`` is none of the above.

    >>> import torch
    >>> idata = to_inference_data({"v": torch.zeros(4, 10, 3)}, dims={"v": ["pixel"]})
    >>> tuple(idata.posterior["v"].dims)
    ('chain', 'draw', 'pixel')
    """
    import arviz

    az: Any = arviz
    stats = stats_of(posterior) if sample_stats is None else sample_stats
    further = groups or {}
    unknown = sorted(set(further) - set(_FURTHER_GROUPS))
    if unknown:
        raise ValueError(f"groups may have {', '.join(_FURTHER_GROUPS)}, got {unknown}")
    wanted = {"posterior": draws_of(posterior), "sample_stats": stats, **further}
    arrays = {name: _group(name, group) for name, group in wanted.items() if group}
    for names in _SAME_DRAWS:
        _check_shapes({f"{n}.{site}": x for n in names for site, x in arrays.get(n, {}).items()})
    options: dict[str, Any] = {}
    if dims is not None:
        options["dims"] = {name: list(axes) for name, axes in dims.items()}
    if coords is not None:
        options["coords"] = {name: list(labels) for name, labels in coords.items()}
    if int(az.__version__.split(".")[0]) >= 1:
        return az.from_dict(arrays, **options)
    return az.from_dict(**arrays, **options)


def _group(name: str, values: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays of a group; those of data have no axes of chains and draws."""
    convert = _without_bits if name in _DATA_GROUPS else _array
    return {site: convert(site, value) for site, value in values.items()}


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
    array = _without_bits(name, value)
    if array.ndim < 2:
        raise ValueError(f"{name!r} must have shape (chains, draws, ...), got {array.shape}")
    return array


def _without_bits(name: str, value: Any) -> Array:
    array = _numpy(value)
    # ArviZ 1.x cannot subtract booleans.
    return array.astype(np.float32) if array.dtype == np.bool_ else array


def _check_shapes(arrays: Mapping[str, Array]) -> None:
    shapes = {name: array.shape[:2] for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"numbers of chains and draws differ: {shapes}")
