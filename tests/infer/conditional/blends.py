# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Conditional machines for tests: parameters between those of two random machines."""

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM
from tests import brute_force
from tests.distributions.families import ALL_FAMILIES, ALL_PAIRS, UNBOUNDED, random_rbm, to_machine
from tests.infer.reference import log_partition

GAUSSIAN = {"gaussian", "low_rank"}
#: Pairs whose log Z is a finite sum or a Gaussian integral.
EXACT_PAIRS = [p for p in ALL_PAIRS if not set(p) <= set(UNBOUNDED) or set(p) <= GAUSSIAN]
#: Pairs of a Gaussian layer and another one, on either side.
REDUCIBLE = [p for p in EXACT_PAIRS if (p[0] in GAUSSIAN) != (p[1] in GAUSSIAN)]
assert set(ALL_FAMILIES) == {family for pair in EXACT_PAIRS for family in pair}


class Blend:
    """Contexts of two numbers; the first, from 0 to 1, leads from one machine to the other."""

    def __init__(self, first: RBM, second: RBM) -> None:
        self.ends = first, second

    @classmethod
    def random(cls, pair: tuple[str, str], **options: int) -> "Blend":
        return cls(*(random_rbm(pair, offsets=True, **options) for _ in range(2)))

    def condition(self, context: Tensor) -> RBM:
        share = context[..., 0]
        first, second = self.ends

        def blend(a: Tensor, b: Tensor) -> Tensor:
            x = share.reshape(share.shape + (1,) * a.dim()).to(a)
            return a + x * (b - a)

        def layer(name: str) -> object:
            one, other = getattr(first, name), getattr(second, name)
            return one.replace(
                **{n: blend(p, other.parameters[n]) for n, p in one.parameters.items()}
            )

        return RBM(
            layer("visible"),
            layer("hidden"),
            blend(first.weight, second.weight),
            visible_offset=blend(first.visible_offset, second.visible_offset),
            hidden_offset=blend(first.hidden_offset, second.hidden_offset),
        )


def brute_log_joint(model: Blend, data: Tensor, contexts: Tensor) -> Tensor:
    """log p(y | x) of every row under every context, from the definition, shape ``(rows, U)``."""
    columns = []
    for context in contexts:
        machine = to_machine(model.condition(context))
        density = -brute_force.free_energy(machine, data.double().numpy()).real
        columns.append(torch.as_tensor(density) - log_partition(machine))
    return torch.stack(columns, -1)
