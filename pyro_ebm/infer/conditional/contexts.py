# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Contexts of conditional machines: which are the same, and the rows that belong to each."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.ops.modules import random_sites

__all__ = [
    "ConditionalModel",
    "check_contexts",
    "condition",
    "evaluating",
    "match_contexts",
    "refuse_random_weights",
    "unique_contexts",
]


class ConditionalModel(Protocol):
    """Whatever makes a machine from a context, as Pyro's ``ConditionalDistribution`` does."""

    def condition(self, context: Any) -> Any:
        """A machine with batch shape ``context.shape[:-1]``."""


def unique_contexts(context: Tensor) -> tuple[Tensor, Tensor]:
    """The different contexts among rows, in the order in which they first occur.

    :param Tensor context: shape ``(rows, n_x)``, finite.
    :returns: the contexts, shape ``(U, n_x)``, and for every row the number of its own, shape
        ``(rows,)``, so that ``contexts[index]`` is ``context``.
    :raises ValueError: if the shape is another one, there is no row, or a number is not finite.

    >>> import torch
    >>> unique_contexts(torch.tensor([[2.0], [1.0], [2.0]]))
    (tensor([[2.],
            [1.]]), tensor([0, 1, 0]))
    """
    check_contexts(context, "context", "rows")
    ordered, inverse = torch.unique(context, dim=0, return_inverse=True)
    rows = torch.arange(len(context), device=context.device)
    # The order of torch.unique is that of the numbers; one-hot contexts would come out reversed.
    first = rows.new_full((len(ordered),), len(context)).scatter_reduce(0, inverse, rows, "amin")
    order = torch.argsort(first)
    place = torch.empty_like(order)
    place[order] = rows[: len(order)]
    return context[first[order]], place[inverse]


def check_contexts(contexts: Tensor, name: str = "contexts", rows: str = "U") -> None:
    """Refuse what is no table of contexts.

    :raises TypeError: if it is no tensor.
    :raises ValueError: if the shape is not ``(rows, n_x)`` with at least one row, or a number is not
        finite.
    """
    if not isinstance(contexts, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(contexts).__name__}")
    if contexts.dim() != 2 or len(contexts) == 0:
        raise ValueError(
            f"{name} must have shape ({rows}, n_x) with {rows} >= 1, got {tuple(contexts.shape)}"
        )
    if not bool(torch.isfinite(contexts).all()):
        bad = int((~torch.isfinite(contexts)).any(-1).sum())
        raise ValueError(f"{name} must be finite, {bad} of {len(contexts)} rows are not")


def match_contexts(context: Tensor, contexts: Tensor) -> Tensor:
    """For every row the number of its context in a table.

    :param Tensor context: shape ``(rows, n_x)``.
    :param Tensor contexts: the table, shape ``(U, n_x)``, no two of them the same. Numbers of two types are
        compared in the less precise floating-point type of them.
    :returns: shape ``(rows,)``.
    :raises ValueError: if the table holds a context twice, or a row's context not at all.
    """
    check_contexts(context, "context", "rows")
    check_contexts(contexts)
    if context.shape[-1] != contexts.shape[-1]:
        raise ValueError(
            f"context has {context.shape[-1]} entries a row, contexts {contexts.shape[-1]}"
        )
    dtype = _common_type(context.dtype, contexts.dtype)
    table = contexts.to(context.device, dtype)
    _, index = unique_contexts(torch.cat([table, context.to(dtype)]))
    if bool((index[: len(table)] != torch.arange(len(table), device=index.device)).any()):
        raise ValueError("contexts holds a context twice")
    index = index[len(table) :]
    unknown = int((index >= len(table)).sum())
    if unknown:
        raise ValueError(f"{unknown} of {len(context)} rows have a context that is not in contexts")
    return index


def _common_type(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """The type in which numbers of two types are compared: whole numbers become real ones, and float64
    becomes float32, as 0.1 of the one is not 0.1 of the other."""
    common = torch.promote_types(a, b)
    if a.is_floating_point and b.is_floating_point and common in (a, b):
        return b if common == a else a
    return common


def refuse_random_weights(model: Any) -> None:
    """Refuse a model that makes another machine at every call: log Z would be that of the one, and free
    energies those of the other.

    :raises ValueError: if a parameter of the model, or of a part of it, is a :class:`pyro.nn.PyroSample`.
    """
    if not isinstance(model, torch.nn.Module):
        return
    sites = random_sites(model)
    if sites:
        raise ValueError(
            f"weights {sites} of the model are random (PyroSample), and every call draws others: "
            "condition them first, e.g. by a model whose method condition(context) calls "
            "pyro.poutine.condition(module, data=draw)(context)"
        )


def condition(model: ConditionalModel, contexts: Tensor) -> RBM:
    """The machines of some contexts, checked.

    :param model: anything with a method ``condition``.
    :param Tensor contexts: shape ``(U, n_x)``.
    :returns: a machine of batch shape ``(U,)``.
    :raises TypeError: if the model has no such method, or what it makes is no RBM.
    :raises ValueError: if the batch shape of the machine is another one, or the model's weights are random.
    """
    if not callable(getattr(model, "condition", None)):
        raise TypeError(
            f"model must have a method condition(context), {type(model).__name__} has not"
        )
    refuse_random_weights(model)
    dist = model.condition(contexts)
    if not isinstance(dist, RBM):
        raise TypeError(f"model.condition(contexts) must be an RBM, got {type(dist).__name__}")
    if dist.batch_shape != contexts.shape[:1]:
        raise ValueError(
            f"model.condition(contexts) must have batch shape {tuple(contexts.shape[:1])} for "
            f"contexts of shape {tuple(contexts.shape)}, got {tuple(dist.batch_shape)}"
        )
    return dist


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without gradients, and a module's parts in evaluation mode: log Z and free energies must be
    those of the same machine, also where networks drop units at random."""
    parts = model.modules() if isinstance(model, torch.nn.Module) else ()
    training = [part for part in parts if part.training]
    try:
        for part in training:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True
