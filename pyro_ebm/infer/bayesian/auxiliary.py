# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Auxiliary rows of a machine, and the weights that they get on their way to another machine."""

from torch import Size, Tensor

from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.distributions.sampling import exact_side
from pyro_ebm.infer.bayesian.machine_factor import MachineFactor
from pyro_ebm.infer.paths import MachinePath
from pyro_ebm.ops.linear import chain_axes

__all__ = ["bridge_log_weights", "draw_auxiliary", "has_exact_draws"]


def has_exact_draws(machine: RBM) -> bool:
    """Whether :meth:`~pyro_ebm.distributions.RBM.sample` enumerates a layer of the machine."""
    return exact_side(machine) is not None


def draw_auxiliary(factor: MachineFactor, num_sweeps: int, num_copies: int | None = None) -> Tensor:
    """One row for every row of the data, drawn from the machine of the data.

    Exact where a layer can be enumerated. Otherwise every row is what block Gibbs makes of the row of the
    data in ``num_sweeps`` sweeps; seen from the visible layer they are reversible, as double
    Metropolis-Hastings needs them.

    :param num_copies: rows for every row of the data, on a further axis on the left; one and no axis if None.
    :returns: shape ``(num_copies,) + rows + (V,)``.
    """
    copies = Size(() if num_copies is None else (num_copies,))
    if has_exact_draws(factor.machine):
        draws: Tensor = factor.machine.expand(factor.rows).sample(copies)
        return draws
    value = factor.value.to(factor.machine.weight.dtype)
    start = value.expand(copies + factor.rows + value.shape[-1:])
    return GibbsSweep(factor.machine).run(start, num_sweeps)


def bridge_log_weights(start: RBM, end: RBM, x: Tensor, num_bridges: int) -> Tensor:
    r"""Logarithms of weights with the mean ``Z(end) / Z(start)``, an annealed importance run for every row.

    The machines between both are evenly spaced on the straight line of natural parameters, which is the same
    from either end, and so are the sweeps: run backwards they lead from ``end`` to ``start``, as
    the exchange algorithm needs them.

    :param RBM start: the machine that the rows were drawn from.
    :param RBM end: the machine that they are carried to, of the same families and shapes.
    :param Tensor x: the rows, shape ``(..., V)``.
    :param int num_bridges: machines between, with a sweep at each; 0 for the ratio of both densities.
    :returns: float64, shape ``(...)``.
    """
    if num_bridges == 0:
        return start.free_energy(x).double() - end.free_energy(x).double()
    batch, rows = start.parameter_batch_shape, x.shape[:-1]
    parameter, chain = chain_axes(rows, batch)
    order = [*chain, *parameter]
    flat = x.permute(*order, x.dim() - 1).reshape(-1, *batch, x.shape[-1])
    betas = [k / (num_bridges + 1) for k in range(num_bridges + 2)]
    _, log_weights = MachinePath([start, end]).anneal(flat, betas, last_move=False)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return log_weights.reshape([rows[i] for i in order]).permute(inverse)
