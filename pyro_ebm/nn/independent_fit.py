# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Maximum likelihood of a conditional layer of independent units."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn import Parameter

from pyro_ebm.distributions.units import Unit
from pyro_ebm.ops.grouping import RowGroups, group_blocks

__all__ = ["fit_independent"]


def fit_independent(
    make_unit: Callable[[Tensor], Unit],
    parameters: Sequence[Parameter],
    data: Tensor,
    context: Tensor,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int | None,
) -> None:
    r"""Train the networks of a layer on :math:`\log p(y | x) = -u(y; x) - \Gamma(0; x)`, in closed form.

    :param make_unit: the layer from contexts of shape ``(contexts, n)``.
    :param parameters: what to train.
    :param Tensor data: y, shape ``(rows, V)``.
    :param Tensor context: x, shape ``(rows, n)``.
    :param int num_steps: updates of Adam.
    :param int batch_size: rows an update, drawn with repetition; all rows where there are no more.
    :param float learning_rate: the rate at the start; it falls to zero.
    :param int seed: seed of the choice of rows; the global generator if None.
    :raises ValueError: for impossible options.
    """
    if num_steps < 0 or batch_size < 1 or learning_rate <= 0:
        raise ValueError(
            "num_steps >= 0, batch_size >= 1 and learning_rate > 0 must hold, got "
            f"{num_steps!r}, {batch_size!r}, {learning_rate!r}"
        )
    generator = None if seed is None else Generator(device=data.device).manual_seed(seed)
    if not parameters:
        return
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    dtype, device = parameters[0].dtype, parameters[0].device
    # Networks are evaluated once a distinct context: ten classes, not a thousand rows.
    contexts, index = torch.unique(context, dim=0, return_inverse=True)
    contexts, index = contexts.to(device), index.cpu()
    size = torch.Size((batch_size,))
    rows = torch.arange(len(data), device=data.device)
    with torch.enable_grad():
        for step in range(num_steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1.0 - step / num_steps)
            if len(data) > batch_size:
                rows = torch.randint(len(data), size, generator=generator, device=data.device)
            y = data[rows].to(device=device, dtype=dtype)
            loss = _mean_loss(make_unit, y, contexts, index[rows.cpu()])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.zero_grad()


def _mean_loss(
    make_unit: Callable[[Tensor], Unit], y: Tensor, contexts: Tensor, index: Tensor
) -> Tensor:
    """Mean of ``-log p(y | x)``.

    :param Tensor contexts: the distinct ones, shape ``(contexts, n)``.
    :param Tensor index: that of every row, on the CPU.
    """
    parts = []
    for block in group_blocks(index):
        groups = RowGroups(block.position).to(y.device)
        rows = groups.pack(y[block.rows.to(y.device)])
        unit = make_unit(contexts[block.groups.to(y.device)])
        energy = (unit.energy(rows) * groups.mask().to(y)).sum()
        parts.append(energy + (groups.counts.to(y) * unit.log_partition()).sum())
    return torch.stack(parts).sum() / len(y)
