# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Annealing with other kernels, along other paths, in chunks and with several seeds: still unbiased."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer import (
    MALA,
    BlockGibbs,
    DiscreteLangevin,
    GibbsLangevin,
    GibbsWithGradients,
    LogPartitionEstimate,
    LogPartitionWarning,
    bracket_log_partition,
    estimate_log_partition,
    exact_log_partition,
)
from pyro_ebm.infer.log_partition import annealing
from pyro_ebm.infer.log_partition.reverse_start import ReverseStart
from pyro_ebm.infer.paths import GeometricPath, MachinePath, moment_averaged_path
from tests.distributions.families import random_rbm, to_machine
from tests.infer.reference import Z_LIMIT, exact_features, features, z_score, z_scores

METHODS = ["ais", "reverse-ais"]


def ratio_z(dist: RBM, method: str = "ais", **options: Any) -> float:
    """Standard errors between the mean weight and Z (between mean of 1/w and 1/Z, reversed)."""
    options = {"num_chains": 50_000, "num_temperatures": 3, "seed": 1, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogPartitionWarning)
        estimate = estimate_log_partition(dist, method, **options)
    assert estimate.log_weights is not None
    sign = -1.0 if method == "reverse-ais" else 1.0
    error = estimate.log_weights - exact_log_partition(dist)
    return z_score((sign * error).exp(), 1.0)


def coupled(pair: tuple[str, str], scale: float = 0.6) -> RBM:
    """A machine on which the moves matter: wrong ones are off by tens of standard errors."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        rbm = random_rbm(pair, offsets=True)
        weight = scale * torch.randn(*rbm.weight.shape, dtype=torch.float64)
    return RBM(rbm.visible, rbm.hidden, weight)


class TestKernels:
    KERNELS: dict[str, tuple[tuple[str, str], Any]] = {
        "block Gibbs": (("bernoulli", "ising"), lambda dist: BlockGibbs(dist, 2)),
        "Langevin": (("gaussian", "ising"), lambda dist: GibbsLangevin(dist, 0.5)),
        "over-relaxed": (("gaussian", "bernoulli"), lambda dist: GibbsLangevin(dist, -0.5)),
        "gradients": (("ising", "bernoulli"), lambda dist: GibbsWithGradients(dist, 2)),
        "discrete Langevin": (("bernoulli", "bernoulli"), lambda dist: DiscreteLangevin(dist, 0.2)),
        "MALA": (("gaussian", "ising"), lambda dist: MALA(dist, 0.3)),
    }

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("name", KERNELS)
    def test_unbiased(self, name: str, method: str) -> None:
        pair, kernel = self.KERNELS[name]
        assert abs(ratio_z(coupled(pair), method, kernel=kernel)) < Z_LIMIT

    @pytest.mark.parametrize("method", METHODS)
    def test_a_kernel_that_drifts_is_seen(self, method: str) -> None:
        """One that samples the machine at another temperature."""

        def wrong(dist: RBM) -> BlockGibbs:
            return BlockGibbs(RBM(dist.visible, dist.hidden, 0.5 * dist.weight))

        assert abs(ratio_z(coupled(("bernoulli", "ising"), 1.5), method, kernel=wrong)) > 10.0

    def test_batches_and_single_precision(self) -> None:
        rbm = random_rbm(("bernoulli", "categorical"), offsets=True, batched=True).to(torch.float32)
        estimate = estimate_log_partition(
            rbm, kernel=BlockGibbs, num_chains=5000, num_temperatures=5, seed=0
        )
        error = (estimate.value - exact_log_partition(rbm)) / estimate.std_error
        assert error.shape == (2, 3) and error.abs().max() < Z_LIMIT

    def test_draws_from_the_generator_of_the_run(self) -> None:
        rbm, before = coupled(("bernoulli", "ising")), torch.get_rng_state()
        options: dict[str, Any] = {"num_chains": 20, "num_temperatures": 5, "kernel": BlockGibbs}
        first = estimate_log_partition(rbm, seed=3, **options)
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(first.value, estimate_log_partition(rbm, seed=3, **options).value)
        assert first.settings["kernel"] == "BlockGibbs"

    @pytest.mark.parametrize("wrong", [lambda dist: dist, lambda dist: None], ids=["RBM", "None"])
    def test_no_kernel(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match="kernel must make a kernel of chains in one tensor"):
            estimate_log_partition(coupled(("bernoulli", "ising")), kernel=wrong)

    def test_kernel_of_other_machines(self) -> None:
        with pytest.raises(ValueError, match="needs Gaussian visible units"):
            estimate_log_partition(
                coupled(("bernoulli", "ising")), kernel=lambda dist: GibbsLangevin(dist, 0.5)
            )


def bent_path(rbm: RBM) -> MachinePath:
    """A detour through a machine of other weights and biases."""
    other = RBM(rbm.visible.neutral(), rbm.hidden, -0.5 * rbm.weight)
    return MachinePath.from_checkpoints([other, rbm])


class TestPaths:
    @pytest.mark.parametrize("method", METHODS)
    def test_unbiased_along_a_detour(self, method: str) -> None:
        rbm = coupled(("bernoulli", "ising"))
        assert abs(ratio_z(rbm, method, path=bent_path(rbm), num_temperatures=8)) < Z_LIMIT

    @pytest.mark.parametrize("method", METHODS)
    def test_unbiased_along_averaged_moments(self, method: str) -> None:
        rbm = coupled(("bernoulli", "ising"))
        path = moment_averaged_path(rbm, "uniform", num_knots=3)
        assert abs(ratio_z(rbm, method, path=path)) < Z_LIMIT

    def test_with_a_kernel(self) -> None:
        rbm = coupled(("gaussian", "ising"))
        path = bent_path(rbm)
        z = ratio_z(rbm, path=path, num_temperatures=8, kernel=lambda d: GibbsLangevin(d, 0.5))
        assert abs(z) < Z_LIMIT

    def test_geometric_path_is_the_default(self) -> None:
        rbm = coupled(("bernoulli", "ising"))
        options: dict[str, Any] = {"num_chains": 20, "num_temperatures": 5, "seed": 0}
        by_path = estimate_log_partition(rbm, path=GeometricPath(rbm, rbm.visible), **options)
        assert torch.equal(by_path.value, estimate_log_partition(rbm, **options).value)
        assert by_path.settings["base"] == "start of a GeometricPath"

    def test_generator_of_the_path_without_a_seed(self) -> None:
        rbm = coupled(("bernoulli", "ising"))

        def value(seed: int | None, own: int) -> Tensor:
            path = GeometricPath(rbm, rbm.visible, torch.Generator().manual_seed(own))
            return estimate_log_partition(rbm, path=path, num_temperatures=5, seed=seed).value

        before = torch.get_rng_state()
        assert torch.equal(value(None, 1), value(None, 1))
        assert not torch.equal(value(None, 1), value(None, 2))
        assert torch.equal(value(4, 1), value(4, 2))
        assert torch.equal(before, torch.get_rng_state())

    def test_path_is_left_as_it_was(self) -> None:
        rbm = coupled(("bernoulli", "ising"))
        path = bent_path(rbm)
        estimate_log_partition(rbm, path=path, num_temperatures=5, seed=0)
        assert path.generator is None

    def test_expanded_machine(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), batched=True)
        path = MachinePath.from_checkpoints([rbm])
        estimate = estimate_log_partition(
            rbm.expand((4, 2, 3)), path=path, num_chains=3000, num_temperatures=5, seed=0
        )
        error = (estimate.value - exact_log_partition(rbm)) / estimate.std_error
        assert error.shape == (4, 2, 3) and error.abs().max() < Z_LIMIT

    @pytest.mark.parametrize("change", ["weight", "visible", "hidden", "dtype", "batch"])
    def test_path_to_another_machine(self, change: str) -> None:
        rbm = coupled(("bernoulli", "ising"))
        visible, hidden, weight = rbm.visible, rbm.hidden, rbm.weight
        other = {
            "weight": RBM(visible, hidden, weight * 1.01),
            "visible": RBM(units.Bernoulli(visible.natural_bias + 0.01), hidden, weight),
            "hidden": RBM(visible, units.Ising(hidden.natural_bias + 0.01), weight),
            "dtype": rbm.to(torch.float32),
            "batch": RBM(visible, hidden, weight.expand(2, *weight.shape)),
        }[change]
        with pytest.raises(ValueError, match="path leads to another machine than dist"):
            estimate_log_partition(rbm, path=GeometricPath(other, other.visible))

    def test_path_to_another_precision_or_constant(self) -> None:
        rbm = coupled(("gaussian", "ising"))
        loc, precision = (rbm.visible.parameters[n] for n in ("loc", "precision"))
        other = RBM(units.Gaussian(loc / 1.1, 1.1 * precision), rbm.hidden, rbm.weight)
        with pytest.raises(ValueError, match="path leads to another machine than dist"):
            estimate_log_partition(rbm, path=GeometricPath(other, other.visible))

    def test_start_without_a_known_log_z(self) -> None:
        rbm = coupled(("bernoulli", "ising"))
        with pytest.raises(ValueError, match="the first machine of the path has weights"):
            estimate_log_partition(rbm, path=MachinePath([rbm, rbm]))

    def test_no_path(self) -> None:
        rbm = coupled(("bernoulli", "ising"))
        wrong: Any = [rbm, rbm]
        with pytest.raises(TypeError, match="path must be a Path, got list"):
            estimate_log_partition(rbm, path=wrong)
        with pytest.raises(ValueError, match="give base or path, not both"):
            estimate_log_partition(rbm, path=bent_path(rbm), base="uniform")


def small(**options: Any) -> LogPartitionEstimate:
    defaults: dict[str, Any] = {"num_chains": 20, "num_temperatures": 10, "seed": 3}
    return estimate_log_partition(coupled(("bernoulli", "ising")), **(defaults | options))


class TestChunks:
    @pytest.mark.parametrize("start", ["exact", "forward"])
    @pytest.mark.parametrize("method", METHODS)
    def test_unbiased(self, method: str, start: str) -> None:
        rbm = coupled(("bernoulli", "ising"))
        options: dict[str, Any] = {"start": start} if method == "reverse-ais" else {}
        # A resampled start is in equilibrium only up to the noise of its chunk.
        rbm.num_gibbs_steps = 30
        assert abs(ratio_z(rbm, method, chunk_size=7000, **options)) < Z_LIMIT

    def test_one_chunk_is_no_chunk(self) -> None:
        whole = small().log_weights
        for size in (20, 1000):
            assert torch.equal(small(chunk_size=size).log_weights, whole)
        assert not torch.equal(small(chunk_size=19).log_weights, whole)
        assert small(chunk_size=19).settings["chunk_size"] == 19

    @pytest.mark.parametrize("size", [1, 3, 19, 20])
    def test_every_chain_is_there_once(self, size: int) -> None:
        weights = small(chunk_size=size).log_weights
        assert weights is not None and weights.shape == (20,) and len(weights.unique()) > 10

    def test_given_starts_are_cut_like_chains(self) -> None:
        """Chain i starts from sample i, whatever the chunk that it is in."""
        rbm = random_rbm(("gaussian", "ising"), offsets=True)
        options: dict[str, Any] = {"num_chains": 20, "num_temperatures": 1, "seed": 0}
        options |= {"method": "reverse-ais", "initial": rbm.sample((20,))}
        whole = estimate_log_partition(rbm, **options).log_weights
        cut = estimate_log_partition(rbm, **options, chunk_size=7).log_weights
        # One step: the weight hangs on the start alone.
        assert whole is not None and cut is not None and len(whole.unique()) == 20
        torch.testing.assert_close(whole, cut)

    def test_memory_is_that_of_a_chunk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: list[int] = []
        original = GeometricPath.fields

        def fields(self: GeometricPath, v: Tensor, *arguments: Any) -> Tensor:
            sizes.append(len(v))
            return original(self, v, *arguments)

        monkeypatch.setattr(GeometricPath, "fields", fields)
        for options in (
            {},
            {"schedule": "adaptive"},
            {"method": "reverse-ais", "start": "forward"},
        ):
            small(chunk_size=6, **options)
        assert max(sizes) == 6

    def test_progress_bar_runs_over_chunks(self, capfd: pytest.CaptureFixture[str]) -> None:
        small(chunk_size=6, seed=[1, 2], progress=True)
        assert "/80 [" in capfd.readouterr().err  # 2 seeds x 4 chunks x 10 steps
        small(chunk_size=6, method="reverse-ais", start="forward", progress=True)
        assert "/80 [" in capfd.readouterr().err  # 4 chunks x there and back


class TestSeeds:
    def test_several(self) -> None:
        runs = [small(seed=seed).log_weights for seed in (3, 4, 5)]
        expected = torch.cat([w for w in runs if w is not None])
        for options in ({"seed": [3, 4, 5]}, {"seed": 3, "num_seeds": 3}, {"seed": range(3, 6)}):
            estimate = small(**options)
            assert torch.equal(estimate.log_weights, expected)
            assert estimate.settings["seed"] == [3, 4, 5]
            assert estimate.settings["num_chains"] == 60

    def test_seeds_drawn_from_the_global_generator(self) -> None:
        torch.manual_seed(0)
        first = small(seed=None, num_seeds=2)
        torch.manual_seed(0)
        assert torch.equal(first.value, small(seed=None, num_seeds=2).value)
        assert torch.equal(first.value, small(seed=first.settings["seed"]).value)

    def test_sides_of_a_bracket_share_no_seed(self) -> None:
        rbm = coupled(("bernoulli", "ising"))
        options: dict[str, Any] = {"num_chains": 20, "num_temperatures": 10}
        both = bracket_log_partition(rbm, seed=[5, 3], **options)
        assert both.forward.settings["seed"] == [5, 3]
        assert both.reverse.settings["seed"] == [6, 7]
        assert bracket_log_partition(rbm, seed=1, num_seeds=2, **options).reverse.settings[
            "seed"
        ] == [3, 4]

    def test_one_warning(self) -> None:
        hard = RBM(
            units.Bernoulli(torch.zeros(12)),
            units.Bernoulli(torch.zeros(12)),
            4.0 * torch.randn(12, 12),
        )
        with pytest.warns(LogPartitionWarning) as caught:
            estimate_log_partition(hard, num_chains=50, num_temperatures=1, seed=[0, 1, 2])
        assert len(caught) == 1 and caught[0].filename == __file__

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_seeds": 0}, "num_seeds must be at least 1, got 0"),
            ({"seed": []}, r"seed must hold different seeds.* got \[\]"),
            ({"seed": [1, 1]}, r"seed must hold different seeds.* got \[1, 1\]"),
            (
                {"seed": [1, 2], "num_seeds": 3},
                r"num_seeds of them .* got \[1, 2\] and num_seeds=3",
            ),
            ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
            ({"checkpoint_seconds": -1.0}, "checkpoint_seconds must be >= 0, got -1.0"),
        ],
    )
    def test_wrong_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            small(**options)


class TestStarts:
    def test_words(self) -> None:
        options: dict[str, Any] = {"method": "reverse-ais"}
        start = coupled(("bernoulli", "ising")).sample((20,))
        assert small(**options).settings["start"] == "exact"
        assert small(**options, start="exact").settings["start"] == "exact"
        assert "forward run, resampled" in small(**options, start="forward").settings["start"]
        for word in ("auto", "given"):
            estimate = small(**options, start=word, initial=start)
            assert estimate.settings["start"] == "given"

    def test_forward_runs_are_resampled_by_their_weights(self) -> None:
        """Without a sweep that would wash it out: the states are samples as they are."""
        rbm = coupled(("bernoulli", "ising"), 1.5)
        path = GeometricPath(rbm, rbm.visible)
        start = ReverseStart(rbm, "forward", None, 100_000)
        start._dist.num_gibbs_steps = 0
        v, log_weights = path.anneal(path.sample_base(100_000), [0.0, 0.5, 1.0])
        expected = exact_features(to_machine(rbm))
        samples = features(start.resample(v, log_weights, path))
        # Resampling adds its noise to that of the weights, whose effective size is a third or more.
        assert z_scores(samples, expected).abs().max() < 2.0 * Z_LIMIT
        assert z_scores(features(v), expected).abs().max() > 2.5 * Z_LIMIT

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"start": "tempering"}, "start must be one of .* got 'tempering'"),
            ({"start": "given"}, "start='given' needs initial"),
            ({"start": "exact", "initial": torch.ones(20, 3)}, "start='exact' does not go with"),
            ({"method": "ais", "start": "exact"}, 'initial and start are for method="reverse-ais"'),
            ({"method": "ais", "initial": torch.ones(20, 3)}, "initial and start are for method"),
        ],
    )
    def test_what_cannot_be(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            small(**({"method": "reverse-ais"} | options))

    def test_exact_start_of_a_machine_that_cannot_be_enumerated(self) -> None:
        with pytest.raises(ValueError, match="needs a layer of at most 65536 states"):
            estimate_log_partition(random_rbm(("gaussian", "relu")), "reverse-ais", start="exact")


class TestMistakesAreCaught:
    """Unbiasedness, chunk by chunk and with kernels, rejects what it is there to reject."""

    def test_kernel_at_the_temperature_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = GeometricPath.machine
        monkeypatch.setattr(
            GeometricPath, "machine", lambda self, beta: original(self, max(beta - 1 / 3, 0.0))
        )
        assert abs(ratio_z(coupled(("bernoulli", "ising"), 1.5), kernel=BlockGibbs)) > 10.0

    def test_reverse_chunks_with_the_wrong_sign(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = annealing._Chunk._leg

        def wrong(self: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
            v, log_weights = original(self, *arguments)
            return v, -log_weights

        monkeypatch.setattr(annealing._Chunk, "_leg", wrong)
        assert abs(ratio_z(coupled(("bernoulli", "ising")), "reverse-ais")) > 10.0
