# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Samplers at an equal budget."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ebm.diagnostics import compare_samplers
from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import BlockGibbs, ParallelTempering
from pyro_ebm.infer.mcmc import VectorizedKernel
from tests.diagnostics.machines import fast, two_modes


class ExactDraws(VectorizedKernel):
    """Independent draws: every one is effective."""

    site = "v"
    num_steps = 1

    def __init__(self, dist: RBM) -> None:
        super().__init__()
        self.dist = dist

    @property
    def initial_params(self) -> dict[str, Tensor]:
        return self._initial_params or {"v": self.dist.sample(self.chain_shape)}

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        self._initial_params = params

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"v": self.dist.sample(self.chain_shape)}


class Lazy(ExactDraws):
    """The same, with probability 3/4 of staying: a seventh of the draws is effective."""

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        new = super().sample(params)["v"]
        stay = torch.rand(*new.shape[:-1], 1) < 0.75
        return {"v": torch.where(stay, params["v"], new)}


class Overwriting(ExactDraws):
    """A kernel that goes on to write into the tensor it returned."""

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        self._state = self.dist.sample(self.chain_shape)

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"v": self._state.copy_(self.dist.sample(self.chain_shape))}


class Wrong(ExactDraws):
    """Draws of another machine, and no doubt about them."""

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"v": self.dist.tilt(torch.full((8,), 0.5)).sample(self.chain_shape)}


class TestCounts:
    def test_independent_and_lazy_draws(self) -> None:
        """Effective draws of chains that stay with probability q: (1 - q) / (1 + q)."""
        result = compare_samplers(
            fast(), {"exact": ExactDraws, "lazy": Lazy}, num_sweeps=1500, seeds=[0, 1]
        )
        for function in result.functions:
            exact, lazy = (result.ess_per_sweep(n, function) for n in ("exact", "lazy"))
            assert exact is not None and lazy is not None
            assert exact.mean == pytest.approx(1.0, rel=0.1)
            assert lazy.mean == pytest.approx(1.0 / 7.0, rel=0.3)
        assert not any("contradict" in flag for flag in result.flags)

    def test_states_are_copied(self) -> None:
        result = compare_samplers(fast(), {"a": Overwriting}, num_sweeps=500, seeds=[0])
        per_sweep = result.ess_per_sweep("a")
        assert per_sweep is not None and per_sweep.mean > 0.7

    def test_wrong_kernel_is_found(self) -> None:
        result = compare_samplers(
            fast(), {"exact": ExactDraws, "wrong": Wrong}, num_sweeps=500, seeds=[0, 1]
        )
        assert any("exact and wrong contradict" in flag for flag in result.flags)


class TestBudget:
    def test_sweeps(self) -> None:
        """Replicas count, and so do sweeps within a draw."""
        samplers = {
            "1": BlockGibbs,
            "4": lambda d: BlockGibbs(d, 4),
            "3 replicas": lambda d: ParallelTempering(d, betas=[0.0, 0.5, 1.0]),
        }
        result = compare_samplers(fast(), samplers, num_sweeps=120, num_chains=3, seeds=[5])
        assert [run.num_draws for run in result.runs] == [120, 30, 40]
        assert [run.sweeps_per_draw for run in result.runs] == [1, 4, 3]
        assert result.settings["budget"] == "120 sweeps"

    def test_tuned_ladder(self) -> None:
        result = compare_samplers(fast(), {"pt": ParallelTempering}, num_sweeps=300, seeds=[0])
        (run,) = result.runs
        assert run.sweeps_per_draw is not None and run.sweeps_per_draw >= 2
        assert run.num_draws == 300 // run.sweeps_per_draw

    def test_seconds(self) -> None:
        samplers = {"1": BlockGibbs, "50": lambda d: BlockGibbs(d, 50)}
        result = compare_samplers(fast(), samplers, seconds=0.2, seeds=[0])
        one, fifty = result.runs
        for run in (one, fifty):
            assert run.seconds >= 0.2
            # A draw too many, on a machine that may be busy.
            assert run.seconds < 0.2 + 5 * run.seconds / run.num_draws + 0.2
            assert 0.0 < run.warmup_seconds
        assert one.num_draws > 5 * fifty.num_draws

    def test_a_few_draws_in_any_case(self) -> None:
        result = compare_samplers(fast(), {"a": BlockGibbs}, num_sweeps=1, warmup=0.0, seeds=[0])
        assert result.runs[0].num_draws == 8 and not result.reliable

    def test_warmup_is_told_to_the_kernel(self) -> None:
        seen: list[int] = []

        class Watching(BlockGibbs):
            def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
                seen.append(warmup_steps)
                super().setup(warmup_steps, *args, **kwargs)

        compare_samplers(fast(), {"a": Watching}, num_sweeps=100, warmup=0.3, seeds=[0])
        assert seen == [0, 30]


class TestModes:
    def test_tempering_wins(self) -> None:
        samplers = {"gibbs": BlockGibbs, "tempering": ParallelTempering}
        start = torch.ones(8, 16)
        start[4:] = -1.0
        result = compare_samplers(
            two_modes(), samplers, num_sweeps=6000, num_chains=8, seeds=[0, 1], initial=start
        )
        assert result.best == "tempering"
        assert result.r_hat("gibbs") > 1.5 and result.r_hat("tempering") < 1.2
        assert any(flag.startswith("gibbs: R-hat") for flag in result.flags)

    def test_start(self) -> None:
        """From one mode, block Gibbs sees nothing of the other; the samplers contradict each other."""
        result = compare_samplers(
            two_modes(),
            {"gibbs": BlockGibbs, "exact": ExactDraws},
            num_sweeps=1000,
            num_chains=8,
            seeds=[0, 1],
            initial=torch.ones(8, 16),
        )
        assert result.r_hat("gibbs") < 1.1
        assert any("gibbs and exact contradict" in flag for flag in result.flags)


class TestSeeds:
    def test_reproducible_and_global_state_kept(self) -> None:
        rbm, before = fast(), torch.get_rng_state()

        def numbers(seed: int) -> Any:
            result = compare_samplers(rbm, {"a": BlockGibbs}, num_sweeps=50, seeds=[seed])
            return result.runs[0].functions

        assert numbers(3) == numbers(3) != numbers(4)
        assert torch.equal(before, torch.get_rng_state())

    def test_turns(self) -> None:
        samplers = {"a": BlockGibbs, "b": BlockGibbs}
        result = compare_samplers(fast(), samplers, num_sweeps=20, seeds=[0, 1])
        assert [(run.sampler, run.seed) for run in result.runs] == [
            ("a", 0),
            ("b", 0),
            ("a", 1),
            ("b", 1),
        ]
        # The same kernel with the same seed gives the same chains.
        assert result.runs[0].functions == result.runs[1].functions

    def test_own_functions(self) -> None:
        result = compare_samplers(
            fast(),
            {"a": BlockGibbs},
            num_sweeps=50,
            seeds=[0],
            functions={"v0": lambda v: v[..., 0]},
        )
        assert result.functions == ["v0"]


class TestErrors:
    def test_machine(self) -> None:
        wrong: Any = torch.zeros(3)
        with pytest.raises(TypeError, match="dist must be an RBM, got Tensor"):
            compare_samplers(wrong, {"a": BlockGibbs})
        batch = BernoulliRBM(torch.zeros(2, 3, 2), torch.zeros(3), torch.zeros(2))
        with pytest.raises(ValueError, match=r"no batch shape, got \(2,\)"):
            compare_samplers(batch, {"a": BlockGibbs})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"seconds": 1.0, "num_sweeps": 10}, "exclude each other"),
            ({"seconds": 0.0}, "seconds must be positive, got 0.0"),
            ({"num_sweeps": 0}, "num_sweeps must be at least 1, got 0"),
            ({"num_chains": 1}, "num_chains must be at least 2, got 1"),
            ({"warmup": -1.0}, "warmup must be at least 0, got -1.0"),
            ({"seeds": []}, "samplers and seeds must not be empty"),
            ({"samplers": {}}, "samplers and seeds must not be empty"),
            ({"functions": {}}, "functions must not be empty"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str) -> None:
        arguments = {"samplers": {"a": BlockGibbs}} | options
        with pytest.raises(ValueError, match=message):
            compare_samplers(fast(), **arguments)

    def test_kernel(self) -> None:
        wrong: Any = lambda d: 3  # noqa: E731
        with pytest.raises(TypeError, match="int cannot run chains in one tensor"):
            compare_samplers(fast(), {"a": wrong})
