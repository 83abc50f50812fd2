# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Whether the importance weights of a guide are those of a model."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor

from pyro_ebm.distributions.wrapped import wrapped_machine
from pyro_ebm.infer.mcmc.site_density import is_plate, refuse_random_subsample

__all__ = [
    "check_match",
    "check_point_masses",
    "check_scales",
    "guide_terms",
    "model_terms",
    "row_frame",
    "share_masks",
]


def model_terms(trace: poutine.Trace) -> list[Any]:
    """The sites of a model that have a log-probability: no plates, no deterministic ones."""
    return [node for node in _sites(trace) if _has_density(node)]


def guide_terms(trace: poutine.Trace) -> list[Any]:
    """The sites of a guide whose density the weights are divided by: those that it draws, and its factors.

    What a guide is conditioned on is not drawn: its other sites are drawn given that.
    """
    return [
        node
        for node in model_terms(trace)
        if not node["is_observed"] or isinstance(node["fn"], dist.Unit)
    ]


def share_masks(guide_trace: poutine.Trace, model_trace: poutine.Trace) -> None:
    """Give the sites of a guide the masks of the model's: a row that does not count there, counts in neither.

    ``mask(False)`` in the model is an improper prior, whose weights take the density of the guide.
    """
    for name, node in _drawn(guide_trace).items():
        own = model_trace.nodes.get(name)
        if own is not None and _has_density(own):
            node["fn"], node["mask"] = _unmasked(node["fn"]), _mask(own)


def check_match(guide_trace: poutine.Trace, model_trace: poutine.Trace) -> None:
    """Refuse a guide that is none of this model, and what would make weights wrong.

    :raises ValueError: see :func:`~pyro_ebm.infer.importance_log_likelihood`.
    """
    for trace in (guide_trace, model_trace):
        refuse_random_subsample(
            trace,
            "so that particles would be of different rows; give them, pyro.plate(..., subsample=rows), in an "
            "autoguide by create_plates",
        )
    of_guide, of_model = _drawn(guide_trace), {n["name"]: n for n in _sites(model_trace)}
    fixed = [name for name in of_guide if name in of_model and of_model[name]["is_observed"]]
    if fixed:
        raise ValueError(
            f"the guide draws {fixed}, which the model observes or is conditioned on: condition or block the "
            f"guide too, poutine.condition(guide, data=...) or poutine.block(guide, hide={fixed})"
        )
    missing = [
        name
        for name, n in of_model.items()
        if not n["is_observed"] and name not in of_guide and _has_density(n)
    ]
    unknown = [n for n in of_guide if n not in of_model and not _is_auxiliary(of_guide[n])]
    if missing or unknown:
        raise ValueError(
            f"guide and model must have the same latent sites; the guide lacks {missing} and has {unknown}, "
            "which the model has not"
        )
    for name, node in of_guide.items():
        machine = wrapped_machine(node["fn"])
        if machine is not None and machine.log_partition is None:
            raise ValueError(
                f"site {name!r} of the guide is a machine without log Z; attach it by normalize"
            )
        if name in of_model:
            _check_mask(node, of_model[name], of_guide)


def check_scales(nodes: list[Any], frame: Any) -> None:
    """Refuse scales of sites in a model with latent ones, where they are powers of the weights.

    :param nodes: the sites of the model and its guide.
    :param frame: that of the plate of rows, whose own scale is taken out; None if there is none.
    """
    own = 1.0 if frame is None or frame.full_size is None else frame.full_size / frame.size
    rows = "no plate is given" if frame is None else f"the plate of rows {frame.name!r} has {own:g}"
    for node in nodes:
        scale = torch.as_tensor(node["scale"], dtype=torch.float64)
        if not bool(torch.isclose(scale, scale.new_tensor(own), rtol=1e-6, atol=0.0).all()):
            raise ValueError(
                f"site {node['name']!r} is scaled by {scale.unique().tolist()}, but {rows}: with latent "
                "sites a scale (of poutine.scale, or of another plate's subsample) is a power of the "
                "importance weights, whose mean is no likelihood; take it away, or name the plate"
            )


def check_point_masses(
    run: Callable[[Callable[[Any], Any]], poutine.Trace],
    guide_trace: poutine.Trace,
    model_trace: poutine.Trace,
) -> None:
    """Refuse guides that put a continuous variable on one point, whose weights are no density's.

    The point masses of Pyro's autoguides are other: their values are made of what an auxiliary site draws.

    :param run: the trace of the guide with a handler around it.
    """
    drawn = _drawn(guide_trace)
    points = [name for name in drawn if _is_point_of_continuous(name, drawn, model_trace)]
    if not points:
        return
    # Another draw of the auxiliary sites alone moves what is made of them.
    held = guide_trace.copy()
    for name in drawn:
        if name in points or _is_auxiliary(drawn[name]):
            held.remove_node(name)
    again = _drawn(run(lambda guide: poutine.replay(guide, trace=held)))
    still = [n for n in points if torch.equal(again[n]["value"], drawn[n]["value"])]
    if still:
        raise ValueError(
            f"the guide is a point mass at the continuous sites {still}, as AutoDelta is: the density of "
            "the model at one point says nothing of the integral over them. Take a guide with a density "
            "(AutoNormal), or condition both, poutine.condition(..., data=point), for the likelihood at it"
        )


def row_frame(plate: str, nodes: list[Any]) -> Any:
    """The frame of the plate of rows, in which all sites must be."""
    frames = [
        {frame.name: frame for frame in node["cond_indep_stack"] if frame.vectorized}
        for node in nodes
    ]
    outside = sorted(
        {node["name"] for node, own in zip(nodes, frames, strict=True) if plate not in own}
    )
    if not nodes or len(outside) == len({node["name"] for node in nodes}):
        known = sorted({name for own in frames for name in own})
        raise ValueError(f"plate must name a vectorised plate of the model, {known}, got {plate!r}")
    if outside:
        raise ValueError(
            f"the sites {outside} are outside of plate {plate!r}, whose rows then have no likelihoods of "
            "their own: condition the model and the guide on them, or give plate=None for the likelihood "
            "of the whole"
        )
    return frames[0][plate]


# --- sites ------------------------------------------------------------------------------------


def _sites(trace: poutine.Trace) -> Iterator[Any]:
    nodes: dict[str, Any] = trace.nodes
    return (n for n in nodes.values() if n["type"] == "sample" and not is_plate(n))


def _drawn(trace: poutine.Trace) -> dict[str, Any]:
    return {node["name"]: node for node in _sites(trace) if not node["is_observed"]}


def _has_density(node: Any) -> bool:
    masked = isinstance(node["fn"], MaskedDistribution) and node["fn"]._mask is False
    return not (masked or node["mask"] is False)


def _is_auxiliary(node: Any) -> bool:
    return bool(node["infer"].get("is_auxiliary"))


def _is_delta(fn: Any) -> bool:
    while fn is not None and not isinstance(fn, dist.Delta):
        fn = getattr(fn, "base_dist", None)
    return fn is not None


def _is_point_of_continuous(name: str, drawn: dict[str, Any], model_trace: poutine.Trace) -> bool:
    own: Any = model_trace.nodes.get(name)
    if own is None or not _is_delta(drawn[name]["fn"]) or _is_delta(own["fn"]):
        return False
    return not own["fn"].support.is_discrete


# --- masks ------------------------------------------------------------------------------------


def _unmasked(fn: Any) -> Any:
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return fn


def _mask(node: Any) -> Tensor | None:
    """The mask of a site's rows, by handlers and by its distribution."""
    masks, fn = [node["mask"]], node["fn"]
    while isinstance(fn, MaskedDistribution):
        masks.append(fn._mask)
        fn = fn.base_dist
    mask: Tensor | None = None
    for own in masks:
        if isinstance(own, Tensor):
            mask = own if mask is None else mask & own
    return mask


def _check_mask(node: Any, own: Any, of_guide: dict[str, Any]) -> None:
    """Refuse masks of the model's site that the guide's cannot take over."""
    fn = _unmasked(own["fn"])
    while fn is not None:
        if isinstance(fn, MaskedDistribution) and not bool(torch.as_tensor(fn._mask).all()):
            raise ValueError(
                f"site {own['name']!r} masks elements within its event, which the guide's cannot; put the "
                "mask behind to_event, over rows"
            )
        fn = getattr(fn, "base_dist", None)
    mask = _mask(own)
    if mask is None or bool(mask.all()) or not _is_delta(node["fn"]):
        return
    bare = [n for n, aux in of_guide.items() if _is_auxiliary(aux) and _mask(aux) is None]
    if bare:
        raise ValueError(
            f"the model masks site {own['name']!r}, but not the guide its auxiliary sites {bare}: give the "
            "guide the same mask, poutine.mask(guide, mask=...)"
        )
