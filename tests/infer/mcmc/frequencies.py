# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""How often every state of a small space occurs, against exact probabilities."""

import torch
from torch import Tensor

from tests.infer.reference import Z_LIMIT

#: Slack of a count beside its standard errors: a state of probability 1e-5 may occur once or twice.
_RARE = 20.0


def occurrences(v: Tensor, states: Tensor) -> Tensor:
    """Which of the states every row is, in front of the other axes of ``v``."""
    lifted = states.reshape(len(states), *(1,) * (v.dim() - 1), -1)
    return (v.unsqueeze(0) == lifted).all(-1).double()


def have_probabilities(v: Tensor, states: Tensor, p: Tensor) -> bool:
    """Whether independent draws along the first axis of ``v`` have the given law.

    :param v: draws, shape ``(n, ..., size)``.
    :param states: all states, shape ``(k, size)``.
    :param p: their probabilities, shape ``(k, ...)``.
    """
    n = len(v)
    counts = occurrences(v, states).sum(1)
    assert torch.equal(counts.sum(0), torch.full_like(counts[0], n)), "draws outside of the support"
    error = (n * p * (1.0 - p)).clamp(min=0.0).sqrt()
    return bool(((counts - n * p).abs() < Z_LIMIT * error + _RARE).all())
