# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Log-likelihoods of rows with missing entries."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.observed_rows import ObservedRows
from pyro_ebm.infer.log_partition.estimate import LogPartitionWarning
from pyro_ebm.infer.log_partition.exact import exact_log_partition
from pyro_ebm.infer.missing.annealed import annealed_log_density, annealed_log_partition
from pyro_ebm.infer.missing.exact import enumerable, exact_log_density
from pyro_ebm.infer.missing.result import ObservedLogLikelihood

__all__ = ["observed_log_likelihood"]

_METHODS = ("auto", "exact", "ais")
#: The other side, for what is subtracted.
_OPPOSITE = {"below": "above", "above": "below", None: None}


def observed_log_likelihood(
    dist: RBM,
    value: Tensor,
    observed: Tensor,
    log_partition: Any = None,
    *,
    method: str = "auto",
    max_states: int = 2**16,
    num_chains: int = 100,
    num_temperatures: int = 1000,
    schedule: str | Tensor = "auto",
    seed: int | None = None,
) -> ObservedLogLikelihood:
    r"""Log-likelihood of the observed entries of every row, the missing ones summed or integrated out,

    .. math:: \log p(v_o) = \log \sum_h \sum_{v_m} e^{-E(v_o, v_m, h)} - \log Z.

    Given h the missing entries are independent and leave in closed form. For Gaussian visible units (mean
    m, precision P; offset m and d = v - m) this is

    .. math::
        \log p(v_o) = -\tfrac12 d_o^\top P_o d_o + \tfrac12 \sum_{i \in o} \log \frac{P_i}{2 \pi}
            + \log \sum_h e^{h^\top (c + W_o^\top d_o) + h^\top K_m h / 2}
            - \log \sum_h e^{c^\top h + h^\top K h / 2}, \qquad K_m = W_m^\top P_m^{-1} W_m .

    The first term is exact where the hidden layer has at most ``max_states`` states (for all rows and masks
    at once), where the visible layer has, where both layers are Gaussian, and, for a machine without a
    batch shape, where the missing units of every row have. Otherwise every row is annealed
    (:func:`estimate_log_partition` on :meth:`RBM.clamp_rows`): that term is then **too low** in
    expectation. An annealed log Z is too low as well and makes the result **too high**; ``side`` says
    what is left. A row that misses nothing has :math:`-F(v) - \log Z`, one that misses everything zero.

    :param RBM dist: the machine, with any batch shape, such as an NBM's ``condition(x)``.
    :param Tensor value: shape ``(..., V)``, whose batch shape broadcasts with the machine's; read only
        where ``observed`` is True, so that missing places may hold NaN.
    :param Tensor observed: boolean, shape ``(..., V)``; True where an entry is observed.
    :param log_partition: log Z as a number, a tensor or an estimate, which broadcasts to
        ``dist.batch_shape``. If None it is computed, exactly where it is a sum of at most
        ``max_states`` terms, by annealing otherwise.
    :param str method: "exact", "ais", or "auto" for the first of these that can be had.
    :param int max_states: enumerate no more states than this.
    :param int num_chains: annealing runs of every row.
    :param int num_temperatures: steps of every run.
    :param schedule: its temperatures, as for :func:`estimate_log_partition`; "auto" is "linear", or even in
        the coupling :math:`\beta^2 K` where a Gaussian layer is summed out (in float64), as in
        :func:`conditional_log_partition`.
    :param int seed: seed of annealing; the global generator if None.
    :returns: numbers of shape ``broadcast(rows, dist.batch_shape)``. Where ``exact`` holds, and log Z was
        computed or is differentiable itself, ``value`` is differentiable in the parameters: the sum
        over rows trains by maximum likelihood on incomplete data.
    :raises ValueError: for rows that :meth:`RBM.clamp_rows` refuses, an impossible option, a log Z that
        does not fit, or ``method="exact"`` where it is not possible.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import observed_log_likelihood
    >>> rbm = BernoulliRBM(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2))
    >>> value = torch.tensor([[1.0, 0.0, torch.nan], [torch.nan, torch.nan, torch.nan]])
    >>> observed_log_likelihood(rbm, value, ~value.isnan()).value.exp()
    tensor([0.2500, 1.0000], dtype=torch.float64)
    """
    if not isinstance(dist, RBM):
        raise TypeError(f"dist must be an RBM, got {type(dist).__name__}")
    if method not in _METHODS:
        raise ValueError(f"method must be one of {_METHODS}, got {method!r}")
    dist.check_normalizable()
    annealing = {
        "num_chains": num_chains,
        "num_temperatures": num_temperatures,
        "schedule": schedule,
        "seed": seed,
    }
    rows = ObservedRows(dist, value, observed, validate=True)
    top = _density(dist, value, observed, rows, method, max_states, annealing)
    bottom = _normaliser(dist, log_partition, method, max_states, annealing)
    result = _ratio(top, bottom, empty=~rows.units.any(-1))
    if result.flags:
        warnings.warn(
            f"{'; '.join(result.flags)}: the error bars are too small",
            LogPartitionWarning,
            stacklevel=2,
        )
    return result


@dataclass(frozen=True)
class _Term:
    """One of the two logarithms."""

    value: Tensor
    std_error: Tensor | float = 0.0
    #: Whether nothing was estimated.
    exact: bool = True
    #: The side that it errs on.
    side: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


def _density(
    dist: RBM,
    value: Tensor,
    observed: Tensor,
    rows: ObservedRows,
    method: str,
    max_states: int,
    annealing: dict[str, Any],
) -> _Term:
    """log sum exp(-E) over what is not observed."""
    if method != "ais":
        double = dist.to(dtype=torch.float64)
        same = ObservedRows(double, value, observed, validate=False)
        total, word = exact_log_density(double, same, max_states)
        if total is not None:
            return _Term(total, settings={"method": word})
        if method == "exact":
            raise ValueError(f'method="exact" is impossible: {word}; use method="ais"')
    found = annealed_log_density(dist, rows, annealing)
    return _Term(found.value, found.std_error, False, "below", found.settings, found.flags)


def _normaliser(
    dist: RBM, given: Any, method: str, max_states: int, annealing: dict[str, Any]
) -> _Term:
    """log Z: given, exact or annealed."""
    if given is not None:
        # The machine knows which shapes fit.
        checked = dist.to(dtype=torch.float64).normalize(given).log_partition
        assert checked is not None
        error = getattr(given, "std_error", 0.0)
        known = not hasattr(given, "std_error")
        side, flags = getattr(given, "side", None), tuple(getattr(given, "flags", ()))
        return _Term(checked, error, known, side, {"method": "given"}, flags)
    if enumerable(dist, max_states):
        total = exact_log_partition(dist, max_states=max_states)
        return _Term(total, settings={"method": "exact"})
    if method == "exact":
        raise ValueError(
            f'method="exact" needs log_partition: no layer has at most max_states={max_states} states'
        )
    estimate = annealed_log_partition(dist, annealing)
    return _Term(
        estimate.value, estimate.std_error, False, estimate.side, estimate.settings, estimate.flags
    )


def _ratio(top: _Term, bottom: _Term, empty: Tensor) -> ObservedLogLikelihood:
    """The difference of the two; zero for rows that miss everything, whatever was estimated."""
    value = torch.where(empty, 0.0, top.value - bottom.value)
    error = torch.hypot(*(torch.as_tensor(t.std_error).to(value) for t in (top, bottom)))
    sides = {_OPPOSITE[bottom.side]} if not bottom.exact else set()
    if not top.exact:
        sides.add(top.side)
    return ObservedLogLikelihood(
        value,
        torch.where(empty, 0.0, error).expand_as(value),
        top.exact and bottom.exact,
        sides.pop() if len(sides) == 1 else None,
        {**top.settings, "log_partition": bottom.settings},
        tuple(dict.fromkeys((*top.flags, *bottom.flags))),
    )
