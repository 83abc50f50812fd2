# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Parallel tempering leaves every level invariant, and its state is what its parameters say."""

from typing import Any

import pytest
import torch
from torch import Size, Tensor

from pyro_ebm.distributions import RBM, GibbsSweep, units
from pyro_ebm.infer import ParallelTempering
from pyro_ebm.infer.mcmc import run_kernel
from pyro_ebm.infer.paths import GeometricPath, MachinePath, Path, base_unit
from tests.distributions.families import (
    ALL_PAIR_IDS,
    ALL_PAIRS,
    UNBOUNDED,
    batch_indices,
    random_rbm,
    to_machine,
)
from tests.infer.reference import Z_LIMIT, exact_features, features, z_scores

BETAS = [0.0, 0.6, 1.0]


def make_path(rbm: RBM) -> Path:
    return GeometricPath(rbm, base_unit(rbm, "uniform" if rbm.visible.num_states else None))


def exact_state(
    path: Path, betas: list[float], num_chains: int, site: str = "v"
) -> dict[str, Tensor]:
    """A state of exact and independent draws at all levels."""
    levels = [path.machine(beta).sample((num_chains,)) for beta in betas]
    return {site: levels[-1], f"{site}.replicas": torch.stack(levels, 1)}


def worst(v: Tensor, rbm: RBM, index: tuple[int, ...] = ()) -> float:
    """Largest deviation, in standard errors, of a first or second moment."""
    expected = exact_features(to_machine(rbm, index))
    return z_scores(features(v), expected).abs().max().item()


def machine() -> RBM:
    return random_rbm(("bernoulli", "ising"), offsets=True)


class TestInvariance:
    @pytest.mark.parametrize("pair", ALL_PAIRS, ids=ALL_PAIR_IDS)
    def test_exact_levels_stay_exact(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=True, num_hidden=1, scale=1.5 if pair[1] == "ising" else 1.0)
        if set(pair) <= set(UNBOUNDED):
            # No layer can be enumerated; so weak a machine forgets its start in a few sweeps.
            rbm.num_gibbs_steps = 20
        path = make_path(rbm)
        start = exact_state(path, BETAS, 25_000)
        kernel = ParallelTempering(rbm, betas=BETAS)
        end = run_kernel(kernel, start, 3)
        assert worst(start["v"], rbm) < Z_LIMIT and worst(end["v"], rbm) < Z_LIMIT
        for level, beta in enumerate(BETAS):
            assert worst(end["v.replicas"][:, level], path.machine(beta)) < Z_LIMIT
        assert not torch.equal(start["v"], end["v"])
        # States did come from elsewhere.
        assert (end["v.identity"][:, -1] != 2).double().mean() > 0.1

    def test_batches_stay_exact(self) -> None:
        rbm = random_rbm(("bernoulli", "categorical"), offsets=True, batched=True)
        start = exact_state(make_path(rbm), BETAS, 20_000)
        end = run_kernel(ParallelTempering(rbm, betas=BETAS), start, 3)
        for index in batch_indices(rbm.batch_shape):
            assert worst(end["v"][(slice(None), *index)], rbm, index) < Z_LIMIT

    def test_float32_stays_exact(self) -> None:
        """The fast bits of float32, and its swaps, are made in another way than those of float64."""
        rbm = machine().to(torch.float32)
        start = exact_state(make_path(rbm), BETAS, 200_000)
        assert worst(run_kernel(ParallelTempering(rbm, betas=BETAS), start, 3)["v"], rbm) < Z_LIMIT

    def test_checkpoints_stay_exact(self) -> None:
        machines = [random_rbm(("ising", "bernoulli"), offsets=True) for _ in range(3)]
        start = {"v": machines[-1].sample((40_000,))}
        start["v.replicas"] = torch.stack([m.sample((40_000,)) for m in machines], 1)
        kernel = ParallelTempering.from_checkpoints(machines)
        end = run_kernel(kernel, start, 3)
        for level, rbm in enumerate(machines):
            assert worst(end["v.replicas"][:, level], rbm) < Z_LIMIT
        assert kernel.betas == [0.0, 0.5, 1.0]

    @pytest.mark.parametrize("base", [None, "uniform", "biases", "means"])
    def test_every_base(self, base: Any) -> None:
        rbm = machine()
        means = torch.tensor([0.1, 0.5, 0.7], dtype=torch.float64)
        same: dict[Any, Any] = {None: "uniform", "biases": None, "means": means}
        unit = base_unit(rbm, same.get(base, base))
        start = exact_state(GeometricPath(rbm, unit), BETAS, 40_000)
        kernel = ParallelTempering(rbm, base=means if base == "means" else base, betas=BETAS)
        end = run_kernel(kernel, start, 3)
        assert z_scores(end["v.replicas"][:, 0], unit.mean()).abs().max() < Z_LIMIT
        assert worst(end["v"], rbm) < Z_LIMIT

    def test_clamped_machine(self) -> None:
        rbm = random_rbm(("bernoulli", "bernoulli"), offsets=True)
        mask = torch.tensor([True, False, False])
        clamped = rbm.clamp(mask, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
        start = exact_state(make_path(clamped), BETAS, 60_000)
        end = run_kernel(ParallelTempering(clamped, betas=BETAS), start, 3)["v"]
        states = clamped.visible.states(0, 4)
        full = torch.cat([torch.ones(4, 1, dtype=torch.float64), states], 1)
        probability = torch.softmax(rbm.log_prob(full), 0)
        expected = probability @ features(states)
        assert z_scores(features(end), expected).abs().max() < Z_LIMIT

    @pytest.mark.parametrize("fault", ["field", "swap"])
    def test_small_errors_are_caught(self, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Units that pull each other along, and an error of a few percent."""
        one = torch.ones(6, 6, dtype=torch.float64)
        rbm = RBM(units.Bernoulli(0.0 * one[0]), units.Ising(-one[0]), 0.4 * one)
        path = make_path(rbm)
        start = exact_state(path, BETAS, 100_000)
        ladder = type(path.ladder(BETAS))
        if fault == "field":
            original = ladder.fields
            monkeypatch.setattr(ladder, "fields", lambda self, v: 1.05 * original(self, v))
            sweep = type(path).fields
            monkeypatch.setattr(
                type(path), "fields", lambda self, v, beta=1.0: 1.05 * sweep(self, v, beta)
            )
        else:
            ratio = ladder.swap_log_ratio

            def wrong(self: Any, *arguments: Tensor) -> Any:
                value, exchanged = ratio(self, *arguments)
                return 0.7 * value, exchanged

            monkeypatch.setattr(ladder, "swap_log_ratio", wrong)
        end = run_kernel(ParallelTempering(rbm, betas=BETAS), start, 8)
        assert worst(end["v"], rbm) > Z_LIMIT


class TestTuning:
    @staticmethod
    def run(kernel: ParallelTempering, warmup: int, draws: int, num_chains: int) -> Tensor:
        kernel.chain_shape = Size((num_chains,))
        kernel.setup(warmup)
        params = kernel.initial_params
        for _ in range(warmup + draws):
            params = kernel.sample(params)
        return params["v"]

    @pytest.mark.parametrize("num_replicas", [None, 3])
    def test_exact_after_the_warmup(self, num_replicas: int | None) -> None:
        one = torch.ones(3, dtype=torch.float64)
        rbm = RBM(units.Ising(0.2 * one), units.Ising(-0.1 * one), 0.5 * torch.ones(3, 3).double())
        kernel = ParallelTempering(rbm, num_replicas, target_rejection=0.2)
        v = self.run(kernel, 30, 6, 20_000)
        assert worst(v, rbm) < Z_LIMIT
        assert kernel.betas != torch.linspace(0, 1, len(kernel.betas)).tolist()
        assert num_replicas in (None, len(kernel.betas))

    def test_every_level_is_exact_after_the_warmup(self) -> None:
        rbm = random_rbm(("bernoulli", "bernoulli"), offsets=True, scale=1.5)
        kernel = ParallelTempering(rbm, target_rejection=0.1)
        kernel.chain_shape = Size((15_000,))
        kernel.setup(40)
        params = kernel.initial_params
        for _ in range(45):
            params = kernel.sample(params)
        path = make_path(rbm)
        for level, beta in enumerate(kernel.betas):
            assert worst(params["v.replicas"][:, level], path.machine(beta)) < Z_LIMIT

    def test_frozen_after_the_warmup(self) -> None:
        kernel = ParallelTempering(machine(), 5)
        self.run(kernel, 40, 0, 10)
        betas = kernel.betas
        params = kernel.initial_params
        for _ in range(100):
            params = kernel.sample(params)
            assert kernel.betas == betas
        report = kernel.diagnostics()["tempering"]
        assert report["betas"].tolist() == betas and betas[0] == 0.0 and betas[-1] == 1.0

    def test_not_without_being_asked(self) -> None:
        for kernel in (
            ParallelTempering(machine(), 5, adapt=False),
            ParallelTempering(machine(), betas=[0.0, 0.25, 0.5, 0.75, 1.0]),
            ParallelTempering(machine(), 5),
        ):
            self.run(kernel, 0 if kernel.adapt else 40, 20, 10)
            assert kernel.betas == [0.0, 0.25, 0.5, 0.75, 1.0]

    def test_checkpoints_may_be_tuned(self) -> None:
        machines = [random_rbm(("ising", "ising"), scale=s) for s in (0.01, 2.0, 3.0)]
        kernel = ParallelTempering.from_checkpoints(machines, 4, adapt=True)
        v = self.run(kernel, 40, 10, 10_000)
        assert worst(v, machines[-1]) < Z_LIMIT
        assert len(kernel.betas) == 4


class TestState:
    @staticmethod
    def prepared(rbm: RBM, num_chains: int | None = 6, **options: Any) -> ParallelTempering:
        kernel = ParallelTempering(rbm, **{"betas": BETAS, **options})
        kernel.chain_shape = Size() if num_chains is None else Size((num_chains,))
        kernel.setup(0)
        return kernel

    def test_a_function_of_its_parameters(self) -> None:
        """From the same parameters and seed a kernel makes the same draws, whatever it did before."""
        rbm, results = machine(), []
        busy = self.prepared(rbm)
        params = busy.initial_params
        for _ in range(5):
            params = busy.sample(params)
        copies = {name: value.clone() for name, value in params.items()}
        for kernel, state in ((busy, params), (busy, copies), (self.prepared(rbm), copies)):
            torch.manual_seed(3)
            end = kernel.sample(kernel.sample(state))
            results.append(end)
        for other in results[1:]:
            assert all(torch.equal(results[0][name], other[name]) for name in params)

    def test_entries(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), batched=True).to(torch.float32)
        kernel = self.prepared(rbm)
        for params in (kernel.initial_params, kernel.sample(kernel.initial_params)):
            assert params["v"].shape == (6, 2, 3, 3)
            assert params["v.replicas"].shape == (6, 3, 2, 3, 3)
            assert params["v.identity"].shape == (6, 3, 2, 3)
            assert params["v.parity"].shape == (6,)
            assert torch.equal(params["v"], params["v.replicas"][:, -1])
            assert params["v"].dtype == torch.float32
        assert kernel.save_params == ["v"]

    def test_parity_alternates(self) -> None:
        kernel = self.prepared(machine())
        params, seen = kernel.initial_params, []
        for _ in range(4):
            seen.append(int(params["v.parity"][0]))
            params = self.prepared(machine()).sample(params)
        assert seen == [0, 1, 0, 1]

    def test_input_is_not_changed(self) -> None:
        kernel = self.prepared(machine())
        params = kernel.sample(kernel.initial_params)
        before = {name: value.clone() for name, value in params.items()}
        changed = {**params, "v": 1.0 - params["v"]}
        kernel.sample(params)
        kernel.sample(changed)
        assert all(torch.equal(params[name], value) for name, value in before.items())

    @pytest.mark.parametrize("own", [True, False])
    def test_a_draw_from_elsewhere_is_honoured(self, own: bool) -> None:
        """With weights this strong a sweep copies the draw, unless it is exchanged."""
        bias = torch.full((4,), -50.0)
        rbm = RBM(units.Bernoulli(bias), units.Bernoulli(bias), 100.0 * torch.eye(4))
        kernel = self.prepared(rbm, betas=[0.0, 1.0])
        params, stayed = kernel.initial_params, 0
        for _ in range(10):
            given = torch.bernoulli(torch.full((6, 4), 0.5))
            before = {**params, "v": given}
            if not own:
                before = {name: value.clone() for name, value in before.items()}
            params = kernel.sample(before)
            came_from_below = params["v.identity"][:, -1] != before["v.identity"][:, -1]
            kept = (params["v"] == given).all(-1)
            assert (kept | came_from_below).all()
            stayed += int((kept & ~came_from_below).sum())
        assert stayed > 20

    def test_the_draw_alone(self) -> None:
        """The other levels start as copies of it."""
        kernel = self.prepared(machine())
        given = torch.bernoulli(torch.full((6, 3), 0.5, dtype=torch.float64))
        replicas = kernel._read({"v": given})
        assert torch.equal(replicas.v, given.unsqueeze(1).expand(6, 3, 3))
        assert (replicas.identity == torch.arange(3)).all() and replicas.parity == 0
        assert set(kernel.sample({"v": given})) == {"v", "v.replicas", "v.identity", "v.parity"}

    @pytest.mark.parametrize("levels", [2, 4])
    def test_replicas_of_another_ladder(self, levels: int) -> None:
        kernel = self.prepared(machine())
        other = torch.zeros(6, levels, 3, dtype=torch.float64)
        params = {"v": torch.ones(6, 3, dtype=torch.float64), "v.replicas": other}
        assert kernel.sample(params)["v.replicas"].shape == (6, 3, 3)

    @pytest.mark.parametrize(
        ("own", "full"), [((), (4, 5)), ((2, 1), (4, 2, 5)), ((2, 1, 1), (2, 4, 5))]
    )
    def test_expanded_target(self, own: tuple[int, ...], full: tuple[int, ...]) -> None:
        """Every element of an expanded batch is a chain of its own, in the right place."""
        rbm = random_rbm(("bernoulli", "ising"), offsets=True)
        if own:
            # All bits off in the first half of the batch, all on in the second.
            bias = torch.tensor([-40.0, 40.0], dtype=torch.float64).view(*own, 1).expand(*own, 3)
            rbm = RBM(units.Bernoulli(bias), rbm.hidden, rbm.weight)
        expanded = rbm.expand(full)
        kernel = self.prepared(expanded)
        params = kernel.sample(kernel.initial_params)
        params = kernel.sample({name: value.clone() for name, value in params.items()})
        assert params["v"].shape == (6, *full, 3)
        energy = kernel.diagnostics()["energy"][-1]
        torch.testing.assert_close(energy, expanded.free_energy(params["v"]))
        assert kernel.diagnostics()["tempering"]["round_trips"].shape == (6, *full)
        if not own:
            assert len({tuple(row.tolist()) for row in params["v"].reshape(-1, 3)}) > 2
            return
        off, on = params["v"].unbind(full.index(2) + 1)
        assert (off == 0).all() and (on == 1).all()

    def test_num_steps(self) -> None:
        """Three steps a draw are every third draw of one step each."""
        rbm, results = machine(), []
        for num_steps, draws in ((1, 6), (3, 2)):
            kernel = self.prepared(
                rbm, num_steps=num_steps, generator=torch.Generator().manual_seed(0)
            )
            params = kernel.initial_params
            for _ in range(draws):
                params = kernel.sample(params)
            results.append(params)
        assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])

    def test_parameters_are_read_in_setup(self) -> None:
        bias = torch.full((3,), -100.0)
        rbm = RBM(units.Bernoulli(bias), units.Bernoulli(torch.zeros(2)), torch.zeros(3, 2))
        kernel = ParallelTempering(rbm, betas=[0.0, 1.0])
        for value, expected in ((-100.0, 0), (100.0, 3)):
            bias.fill_(value)
            kernel.setup(0)
            # Level 0 is uniform, but an exchange with it cannot be accepted.
            assert kernel.sample(kernel.initial_params)["v"].sum() == expected

    def test_no_gradients(self) -> None:
        rbm = machine()
        for parameter in rbm.parameters():
            parameter.requires_grad_()
        kernel = self.prepared(rbm)
        params = kernel.sample(kernel.initial_params)
        assert not any(value.requires_grad for value in params.values())


class TestReport:
    def test_numbers(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), batched=True)
        kernel = TestState.prepared(rbm, 7)
        params, energies = kernel.initial_params, []
        for _ in range(30):
            params = kernel.sample(params)
            energies.append(rbm.free_energy(params["v"]))
        result = kernel.diagnostics()
        torch.testing.assert_close(result["energy"], torch.stack(energies))
        report = result["tempering"]
        assert report["betas"].tolist() == BETAS
        assert report["swap_rate"].shape == (2, 2, 3)
        assert ((report["swap_rate"] > 0) & (report["swap_rate"] <= 1)).all()
        assert report["round_trips"].shape == (7, 2, 3) and report["round_trips"].sum() > 0
        assert report["energy_mean"].shape == report["energy_std"].shape == (3, 2, 3)

    def test_energies_by_level(self) -> None:
        """Mean and deviation of the free energy under the machine, of states of every level."""
        rbm = random_rbm(("ising", "bernoulli"), offsets=True)
        path = make_path(rbm)
        kernel = ParallelTempering(rbm, betas=BETAS)
        kernel.chain_shape = Size((100_000,))
        kernel.setup(0)
        kernel.sample(exact_state(path, BETAS, 100_000))
        report = kernel.diagnostics()["tempering"]
        states = rbm.visible.states(0, 8)
        energy = rbm.free_energy(states)
        for level, beta in enumerate(BETAS):
            p = torch.softmax(path.machine(beta).log_prob(states), 0)
            mean, square = p @ energy, p @ energy.square()
            std = (square - mean.square()).sqrt()
            assert (report["energy_mean"][level] - mean).abs() < 6.0 * std / 100_000**0.5
            assert report["energy_std"][level] == pytest.approx(std.item(), rel=0.03)

    def test_swap_rate_and_trips_are_those_of_the_draws(self) -> None:
        """Counted from the identities of all draws after the warm-up."""
        kernel = ParallelTempering(machine(), 3)
        kernel.chain_shape = Size((40,))
        kernel.setup(30)
        params = kernel.initial_params
        for _ in range(30):
            params = kernel.sample(params)
        moved: list[list[Tensor]] = [[], []]
        for _ in range(400):
            before, parity = params["v.identity"], int(params["v.parity"][0])
            params = kernel.sample(params)
            moved[parity].append((params["v.identity"] != before)[:, parity].double().mean())
        report = kernel.diagnostics()["tempering"]
        for pair in range(2):
            rate = float(torch.stack(moved[pair]).mean())
            assert report["swap_rate"][pair].item() == pytest.approx(rate, abs=0.04)
        assert report["round_trips"].shape == (40,) and (report["round_trips"] > 0).all()

    def test_nothing_before_the_warmup_has_ended(self) -> None:
        kernel = ParallelTempering(machine(), 3)
        kernel.setup(20)
        params = kernel.initial_params
        for _ in range(20):
            params = kernel.sample(params)
        assert set(kernel.diagnostics()) == {"divergences", "energy"}
        assert set(kernel.logging()) <= {"replicas", "swaps"}
        kernel.sample(params)
        assert set(kernel.diagnostics()) == {"divergences", "energy", "tempering"}

    def test_logging(self) -> None:
        kernel = TestState.prepared(machine())
        params = kernel.initial_params
        assert kernel.logging() == {}
        for _ in range(10):
            params = kernel.sample(params)
        shown = kernel.logging()
        assert list(shown) == ["replicas", "swaps", "energy"] and shown["replicas"] == "3"
        assert 0.0 <= float(shown["swaps"]) <= 1.0
        assert float(shown["energy"]) == pytest.approx(
            kernel.diagnostics()["energy"][-1].mean().item(), rel=1e-3
        )


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_replicas": 1}, "num_replicas must be at least 2, got 1"),
            ({"betas": [0.0, 0.5]}, "betas must be at least 2 numbers that increase strictly to 1"),
            ({"betas": BETAS, "num_replicas": 4}, "num_replicas is 4, but betas has 3 levels"),
            ({"target_rejection": 1.0}, "target_rejection must be between 0 and 1, got 1.0"),
            ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
            ({"base": "flat"}, "base must be None"),
            ({"base": torch.zeros(4)}, r"base must have shape \(\.\.\., 3\)"),
        ],
    )
    def test_impossible(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ParallelTempering(machine(), **options)

    def test_target(self) -> None:
        with pytest.raises(TypeError, match=r"target must be .*got int"):
            ParallelTempering(3)

    def test_unbounded_units(self) -> None:
        rbm = random_rbm(("gaussian", "bernoulli"))
        with pytest.raises(ValueError, match='base="uniform" is impossible for unbounded'):
            ParallelTempering(rbm, base="uniform")
        assert ParallelTempering(rbm).base is None

    def test_paths(self) -> None:
        rbm, other = machine(), machine()
        path = MachinePath([other, rbm])
        ParallelTempering(rbm, path=path)
        ParallelTempering(rbm, path=make_path(rbm))
        with pytest.raises(
            ValueError, match="path does not end at the target: their free energies"
        ):
            ParallelTempering(other, path=path)
        with pytest.raises(ValueError, match=r"batch shape \(\) and 3 units, the target \(2, 3\)"):
            ParallelTempering(random_rbm(("bernoulli", "ising"), batched=True), path=path)
        with pytest.raises(ValueError, match="base and path exclude each other"):
            ParallelTempering(rbm, path=path, base="uniform")
        with pytest.raises(ValueError, match="give it to the path"):
            ParallelTempering(rbm, path=path, generator=torch.Generator())

    def test_checkpoints(self) -> None:
        with pytest.raises(ValueError, match="a path needs at least 2 machines, got 1"):
            ParallelTempering.from_checkpoints([machine()])
        wrong = random_rbm(("ising", "ising"))
        with pytest.raises(ValueError, match="machine 1 of the path differs"):
            ParallelTempering.from_checkpoints([machine(), wrong])

    def test_betas_before_setup(self) -> None:
        kernel = ParallelTempering(machine())
        with pytest.raises(RuntimeError, match="only after setup"):
            _ = kernel.betas
        assert ParallelTempering(machine(), betas=BETAS).betas == BETAS

    def test_wrong_start(self) -> None:
        with pytest.raises(ValueError, match=r"must hold 'v' of shape \(3,\)"):
            ParallelTempering(machine()).initial_params = {"v": torch.zeros(4)}

    def test_not_in_a_compound_kernel(self) -> None:
        with pytest.raises(TypeError, match="cannot be part of a compound kernel"):
            ParallelTempering(machine()).refresh()

    def test_own_generator(self) -> None:
        before, runs = torch.get_rng_state(), []
        rbm = random_rbm(("bernoulli", "ising"))
        before = torch.get_rng_state()
        for seed in (1, 1, 2):
            kernel = ParallelTempering(rbm, generator=torch.Generator().manual_seed(seed))
            runs.append(TestTuning.run(kernel, 20, 5, 30))
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_energies_cost_no_sweep_of_their_own() -> None:
    """The fields of the last level are those of the machine, offsets or not, for both ladders."""
    rbm = random_rbm(("bernoulli", "multinomial"), offsets=True)
    for path in (make_path(rbm), MachinePath([random_rbm(("bernoulli", "multinomial")), rbm])):
        ladder = path.ladder(BETAS)
        v = ladder.initial(Size((5,)))
        theta = GibbsSweep(rbm).hidden_theta(v[:, -1])
        torch.testing.assert_close(ladder.fields(v)[:, -1], theta)
