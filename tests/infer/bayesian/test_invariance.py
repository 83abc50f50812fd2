# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Parameters and data from their joint law keep it under every kernel, and not under broken ones."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ebm.infer.bayesian import Exchange, PseudoMarginal, exchange
from pyro_ebm.infer.bayesian.machine_factor import MachineFactor
from tests.infer.bayesian.small_programs import program, worst_change
from tests.infer.reference import Z_LIMIT

#: The reference of the pseudo-marginal kernel must not depend on the draws.
REFERENCE = {"coupling": torch.tensor(0.5).double(), "scale": torch.tensor(1.2).double()}
WIDE = {"init_scale": 0.7}


@pytest.mark.parametrize("options", [{}, {"num_bridges": 3}, {"num_steps": 2}])
def test_exchange(options: dict[str, int]) -> None:
    assert worst_change(Exchange(program, **WIDE, **options), 8) < Z_LIMIT


@pytest.mark.parametrize(
    "options", [{"num_bridges": 0}, {"num_bridges": 2}, {"num_bridges": 1, "num_particles": 3}]
)
def test_pseudo_marginal(options: dict[str, int]) -> None:
    kernel = PseudoMarginal(program, reference=REFERENCE, **WIDE, **options)
    assert worst_change(kernel, 12) < Z_LIMIT


class TestBrokenExchange:
    """What would be an easy mistake is seen."""

    @staticmethod
    def worst() -> float:
        return worst_change(Exchange(program, **WIDE), 8)

    def test_ratio_inverted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        weights = exchange.bridge_log_weights
        monkeypatch.setattr(exchange, "bridge_log_weights", lambda *a: -weights(*a))
        assert self.worst() > Z_LIMIT

    def test_one_row_for_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        weights = exchange.bridge_log_weights
        monkeypatch.setattr(
            exchange, "bridge_log_weights", lambda start, end, x, k: weights(start, end, x, k) / 6
        )
        assert self.worst() > Z_LIMIT

    def test_no_auxiliary_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            exchange, "bridge_log_weights", lambda start, end, x, k: torch.zeros(x.shape[:-1])
        )
        assert self.worst() > Z_LIMIT

    def test_rows_of_the_present_parameters(self, monkeypatch: pytest.MonkeyPatch) -> None:
        exchanged = Exchange._exchanged

        def wrong(self: Exchange, proposal: Any, point: Any) -> Tensor:
            draw = exchange.draw_auxiliary

            def draw_present(factor: MachineFactor, *args: Any) -> Tensor:
                return draw(point.factors[factor.name], *args)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(exchange, "draw_auxiliary", draw_present)
                return exchanged(self, proposal, point)

        monkeypatch.setattr(Exchange, "_exchanged", wrong)
        assert self.worst() > Z_LIMIT

    def test_no_jacobian(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from pyro_ebm.infer.bayesian.program_density import ProgramDensity

        constrained = ProgramDensity._constrained

        def wrong(self: ProgramDensity, z: Tensor) -> Any:
            return [(site, value, 0.0 * log_det) for site, value, log_det in constrained(self, z)]

        monkeypatch.setattr(ProgramDensity, "_constrained", wrong)
        assert self.worst() > Z_LIMIT


class TestBrokenPseudoMarginal:
    """Two mistakes that leave a plausible chain."""

    @staticmethod
    def worst() -> float:
        kernel = PseudoMarginal(program, reference=REFERENCE, num_bridges=0, **WIDE)
        return worst_change(kernel, 20, num_chains=4000)

    def test_estimate_refreshed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        transition = PseudoMarginal._transition

        def wrong(self: PseudoMarginal, point: Any) -> Any:
            self._estimate = self._log_estimate(point)
            return transition(self, point)

        monkeypatch.setattr(PseudoMarginal, "_transition", wrong)
        assert self.worst() > Z_LIMIT

    def test_estimate_inverted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        estimate = PseudoMarginal._log_estimate
        monkeypatch.setattr(PseudoMarginal, "_log_estimate", lambda *a: -estimate(*a))
        assert self.worst() > Z_LIMIT
