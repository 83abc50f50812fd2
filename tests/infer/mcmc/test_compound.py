# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Several kernels on one model, against quadrature and enumeration."""

import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.mcmc.api import StreamingMCMC
from pyro.infer.mcmc.rwkernel import RandomWalkKernel
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM, units
from pyro_ebm.infer import (
    BlockGibbs,
    DiscreteGibbs,
    DiscreteLangevin,
    Gibbs,
    GibbsWithGradients,
    MetropolisBlockGibbs,
    ParallelTempering,
    VectorizedMCMC,
    exact_log_partition,
)
from pyro_ebm.infer.mcmc.blocks import HamiltonianBlock, ModelBlock
from pyro_ebm.ops.chains import effective_sample_size
from tests.infer.reference import Z_LIMIT

Model = Callable[..., Any]

#: Pyro forks while its logging thread runs, which Python 3.12 and later warn of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def machine() -> RBM:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        weight, visible, hidden = torch.randn(4, 3), torch.randn(4), torch.randn(3)
        return BernoulliRBM(weight.double(), visible.double(), hidden.double())


PRIOR = machine()
SEEN = double(1.3, -0.2, 0.4, 0.9)


def noisy(seen: Tensor = SEEN) -> None:
    """Bits through noise of an unknown scale."""
    scale = pyro.sample("scale", dist.LogNormal(double(-0.5).squeeze(), 0.7))
    v = pyro.sample("v", PRIOR)
    pyro.sample("x", dist.Normal(v, scale).to_event(1), obs=seen)


def bent(v: Tensor, scale: Tensor) -> Tensor:
    return torch.cos(scale + v.sum(-1)) + 2.0 * torch.tanh(scale) * v[..., 0] * v[..., 1]


def coupled() -> None:
    """Bits and a scale in a likelihood that is not linear in the bits."""
    scale = pyro.sample("scale", dist.LogNormal(double(0.0).squeeze(), 0.5))
    v = pyro.sample("v", PRIOR)
    pyro.factor("f", bent(v, scale))


def posterior(model: Model) -> tuple[Tensor, Tensor]:
    """Means of v and of log scale: the scale on a grid, v by enumeration."""
    log_scale = torch.linspace(-6.0, 5.0, 4001, dtype=torch.float64)
    scale = log_scale.exp()[:, None]
    states = PRIOR.visible.states(0, 16)
    if model is noisy:
        law, density = dist.Normal(-0.5, 0.7), dist.Normal(states, scale[..., None])
        rest = density.log_prob(SEEN).sum(-1)
    else:
        law, rest = dist.Normal(0.0, 0.5), bent(states, scale)
    log_p = law.log_prob(log_scale)[:, None] + PRIOR.log_prob(states) + rest
    p = torch.softmax(log_p.flatten(), 0).reshape(log_p.shape)
    return p.sum(0) @ states, p.sum(1) @ log_scale


def run(kernel: Gibbs, *args: Any, num_samples: int = 300, **options: Any) -> MCMC:
    options = {"warmup_steps": 100, "disable_progbar": True, **options}
    mcmc = MCMC(kernel, num_samples=num_samples, **options)
    mcmc.run(*args)
    return mcmc


def standard_errors(draws: Tensor, expected: Tensor) -> Tensor:
    """Distance of the mean of a chain from the truth, in standard errors by its ESS.

    Short chains are trusted with half of it; what hardly ever changes, with a quarter of the draws.
    """
    size = 0.5 * effective_sample_size(draws[None]).clamp(max=len(draws))
    deviation = draws.std(0)
    rare = (expected * (1.0 - expected)).clamp(min=1e-6).sqrt()
    size = torch.where(deviation > 0.0, size, len(draws) / 4)
    return (draws.mean(0) - expected) / (
        torch.where(deviation > 0.0, deviation, rare) / size.sqrt()
    )


def worst(mcmc: MCMC, model: Model) -> float:
    v, log_scale = posterior(model)
    samples = mcmc.get_samples()
    z = standard_errors(samples["v"], v)
    z_scale = standard_errors(samples["scale"].log()[:, None], log_scale)
    return torch.cat([z, z_scale]).abs().max().item()


class TestScaleOfNoise:
    """LogNormal scale, prior of an RBM on bits, Gaussian likelihood."""

    @pytest.mark.parametrize("kernel_type", [BlockGibbs, MetropolisBlockGibbs])
    def test_against_quadrature(self, kernel_type: Any) -> None:
        mcmc = run(Gibbs([(kernel_type(noisy), ["v"]), (NUTS(noisy), None)]))
        assert worst(mcmc, noisy) < Z_LIMIT
        if kernel_type is MetropolisBlockGibbs:
            accept_prob = mcmc.diagnostics()["v.accept_prob"]["chain 0"]
            assert accept_prob.shape == (300,) and accept_prob.min() > 1.0 - 1e-9

    @pytest.mark.slow
    def test_long(self) -> None:
        mcmc = run(Gibbs([(BlockGibbs(noisy), ["v"]), (NUTS(noisy), None)]), num_samples=6000)
        assert worst(mcmc, noisy) < 5.0

    def test_few_runs_of_the_model_a_draw(self) -> None:
        """One for the field, one that confirms it; HMC and the set-up apart."""
        count = 0

        def model() -> None:
            nonlocal count
            count += 1
            noisy()

        kernel = Gibbs([(BlockGibbs(model), ["v"]), (lambda v: {"scale": v["scale"]}, ["scale"])])
        kernel.setup(0)
        params, count = kernel.initial_params, 0
        for _ in range(10):
            params = kernel.sample(params)
        assert count == 20


class TestErrorsAreCaught:
    """Values of other sites that are out of date give other means."""

    @staticmethod
    def worst() -> float:
        # The noise is large at first and small in the end.
        kernel = Gibbs([(BlockGibbs(noisy), ["v"]), (NUTS(noisy), None)])
        return worst(run(kernel, initial_params={"scale": double(2.0).squeeze()}), noisy)

    @pytest.mark.parametrize("block", [ModelBlock, HamiltonianBlock])
    def test_values_of_the_start(self, block: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        set_others = block.set_others

        def once(self: Any, values: dict[str, Tensor]) -> None:
            if not self._others:
                set_others(self, values)

        monkeypatch.setattr(block, "set_others", once)
        assert self.worst() > Z_LIMIT

    def test_a_field_of_the_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(BlockGibbs, "refresh", lambda self: None)
        assert self.worst() > Z_LIMIT


class TestCoupledBits:
    @pytest.mark.parametrize(
        "kernel",
        [
            MetropolisBlockGibbs(coupled),
            GibbsWithGradients(coupled, 4),
            DiscreteLangevin(coupled, num_steps=4),
        ],
        ids=lambda kernel: type(kernel).__name__,
    )
    def test_against_quadrature(self, kernel: Any) -> None:
        hmc = HMC(coupled, step_size=0.4, num_steps=3)
        mcmc = run(Gibbs([(hmc, "scale"), (kernel, "v")]))
        assert worst(mcmc, coupled) < Z_LIMIT
        assert 0.05 < mcmc.diagnostics()["v.accept_prob"]["chain 0"].mean() < 0.999

    def test_block_gibbs_notices_a_coupling_that_comes_later(self) -> None:
        """At the start the bits are not coupled, afterwards they are."""

        def model() -> None:
            strength = pyro.sample("strength", dist.Normal(double(0.0).squeeze(), 1.0))
            v = pyro.sample("v", PRIOR)
            pyro.factor("f", strength.clamp(min=0.0) * v[..., 0] * v[..., 1])

        start = {"strength": double(-1.0).squeeze()}
        later = Gibbs(
            [
                (lambda v: {"strength": v["strength"] + 3.0}, ["strength"]),
                (BlockGibbs(model), ["v"]),
            ]
        )
        with pytest.raises(ValueError, match=r"not linear in the states of site 'v'.*Metropolis"):
            run(later, initial_params=start)

    def test_noise_that_hid_its_square_at_first(self) -> None:
        """With a wide scale the log-density is as good as linear in real numbers, later it is not."""

        def model() -> None:
            scale = pyro.sample("scale", dist.HalfCauchy(100.0))
            v = pyro.sample("v", PRIOR.to(torch.float32))
            pyro.sample("x", dist.Normal(v, scale).to_event(1), obs=SEEN.float())

        kernel = Gibbs(
            [(lambda v: {"scale": v["scale"] / 2}, ["scale"]), (BlockGibbs(model), ["v"])]
        )
        start = {"scale": torch.tensor(1000.0)}
        assert run(kernel, num_samples=10, warmup_steps=0, initial_params=start).get_samples()


NUM_ROWS = 6


def components() -> tuple[RBM, RBM]:
    """Two machines with their log Z."""
    rbm = PRIOR
    other = RBM(units.Bernoulli(-rbm.visible.natural_bias), rbm.hidden, -rbm.weight)
    first, second = (r.normalize(exact_log_partition(r)) for r in (rbm, other))
    return first, second


def mixture(x: Tensor) -> None:
    """Rows from two machines with unknown weights."""
    first, second = components()
    bias = torch.stack([first.visible.natural_bias, second.visible.natural_bias])
    weight = torch.stack([first.weight, second.weight])
    assert first.log_partition is not None and second.log_partition is not None
    log_partition = torch.stack([first.log_partition, second.log_partition])
    weights = pyro.sample("weights", dist.Dirichlet(double(1.5, 1.0)))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        component = RBM(
            units.Bernoulli(bias[z]), first.hidden, weight[z], log_partition=log_partition[z]
        )
        pyro.sample("x", component, obs=x)


class TestMixtureOfMachines:
    """Weights and assignments, against quadrature over the weight."""

    @staticmethod
    def data() -> Tensor:
        first, second = components()
        return torch.cat([first.sample((NUM_ROWS - 2,)), second.sample((2,))])

    @staticmethod
    def exact(x: Tensor) -> tuple[Tensor, Tensor]:
        """Means of the first weight and of the assignments."""
        first, second = components()
        # Roots of the grid end at 0 and 1, where the density is small but singular in its slope.
        w = torch.linspace(0.0, 1.0, 20_002, dtype=torch.float64)[1:-1, None]
        likelihood = w * first.log_prob(x).exp(), (1.0 - w) * second.log_prob(x).exp()
        total = likelihood[0] + likelihood[1]
        p = w[:, 0].sqrt() * total.prod(-1)
        p = p / p.sum()
        return p @ w[:, 0], p @ (likelihood[1] / total)

    def test_against_quadrature(self) -> None:
        x = self.data()
        kernel = Gibbs([(DiscreteGibbs(mixture), ["z"]), (NUTS(mixture), None)])
        samples = run(kernel, x).get_samples()
        weight, assignment = self.exact(x)
        assert samples["z"].shape == (300, NUM_ROWS) and samples["weights"].shape == (300, 2)
        z = standard_errors(samples["z"], assignment)
        z_weight = standard_errors(samples["weights"][:, :1], weight)
        assert torch.cat([z, z_weight]).abs().max() < Z_LIMIT


class TestAdaptation:
    """Step size and mass matrix are tuned while other blocks move."""

    @pytest.mark.parametrize("target", [0.6, 0.9])
    def test_acceptance_is_near_its_target(self, target: float) -> None:
        def model() -> None:
            with pyro.plate("dims", 5):
                y = pyro.sample(
                    "y", dist.Normal(double(0.0).squeeze(), torch.arange(1.0, 6.0).double())
                )
            v = pyro.sample("v", PRIOR)
            pyro.sample("x", dist.Normal(v + y[..., :4], 0.5).to_event(1), obs=SEEN)

        hmc = NUTS(model, step_size=5.0, target_accept_prob=target)
        mcmc = run(
            Gibbs([(BlockGibbs(model), ["v"]), (hmc, None)]), num_samples=120, warmup_steps=150
        )
        numbers = {n: v["chain 0"] for n, v in mcmc.diagnostics().items() if n.startswith("y.")}
        # Pyro's adaptation ends up to 0.15 above the target without other blocks, too.
        assert target - 0.1 < numbers["y.mean accept prob"] < min(target + 0.22, 0.995)
        assert 0.05 < numbers["y.step size"] < 2.0
        # The fifth dimension sees no data: its variance of 25 is in the mass matrix.
        (inverse_mass,) = hmc.mass_matrix_adapter.inverse_mass_matrix.values()
        assert inverse_mass[4] > 3.0 * inverse_mass[:4].max()


def forced() -> None:
    """Bits that are told by the sign, with near certainty."""
    sign = pyro.sample("sign", dist.Normal(0.0, 1.0))
    v = pyro.sample("v", BernoulliRBM(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2)))
    pyro.factor("f", 50.0 * sign * (v - 0.5).sum(-1))


def forced_rows() -> None:
    sign = pyro.sample("sign", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 3):
        v = pyro.sample("v", dist.Categorical(torch.ones(2)))
        pyro.factor("f", 50.0 * sign * (v - 0.5))


class TestOfTheOthers:
    """Every kernel sees the other sites as they are, whatever they were before."""

    @pytest.mark.parametrize(
        "kernel",
        [
            BlockGibbs(forced),
            MetropolisBlockGibbs(forced),
            GibbsWithGradients(forced, 20),
            DiscreteLangevin(forced, num_steps=20, step_size=10.0, adapt=False),
            DiscreteGibbs(forced_rows),
        ],
        ids=lambda kernel: type(kernel).__name__,
    )
    def test_kernels_follow(self, kernel: Any) -> None:
        gibbs = Gibbs([(lambda v: {"sign": -v["sign"]}, ["sign"]), (kernel, None)])
        gibbs.initial_params = {"sign": torch.tensor(1.0)}
        gibbs.setup(0)
        params = gibbs.initial_params
        for i in range(6):
            params = gibbs.sample(params)
            assert params["sign"] == (-1.0) ** (i + 1)
            assert params["v"].tolist() == [float(params["sign"] > 0)] * 3

    @pytest.mark.parametrize("forget", [True, False], ids=["cleared", "kept"])
    def test_the_potential_is_that_of_the_present_values(
        self, forget: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A small step keeps the energy, so that all are accepted, unless the energy is another's."""

        def model() -> None:
            sign = pyro.sample("sign", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(3.0 * sign, 1.0))

        if not forget:
            monkeypatch.setattr(HMC, "clear_cache", lambda self: None)
        hmc = HMC(model, step_size=1e-3, num_steps=1, adapt_step_size=False)
        gibbs = Gibbs([(lambda v: {"sign": -v["sign"]}, ["sign"]), (hmc, None)])
        gibbs.initial_params = {"sign": torch.tensor(1.0), "y": torch.tensor(-1.0)}
        gibbs.setup(0)
        params = gibbs.initial_params
        for _ in range(20):
            params = gibbs.sample(params)
        accept_prob = gibbs.diagnostics()["y.mean accept prob"]
        assert accept_prob > 0.99 if forget else accept_prob < 0.9

    def test_a_state_from_elsewhere_is_honoured(self) -> None:
        gibbs = Gibbs([(BlockGibbs(forced), ["v"]), (lambda v: {"sign": v["sign"]}, None)])
        gibbs.setup(0)
        for sign in (1.0, -1.0, 1.0):
            given = {"sign": torch.tensor(sign), "v": torch.ones(3)}
            new = gibbs.sample(given)
            assert new["v"].tolist() == [float(sign > 0)] * 3 and new["sign"] == sign
            assert given["v"].tolist() == [1.0] * 3

    def test_a_function_sees_constrained_values_in_the_models_types(self) -> None:
        seen: list[dict[str, Tensor]] = []

        def model() -> None:
            pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            pyro.sample("z", dist.Categorical(torch.ones(3)))
            pyro.sample("y", dist.Normal(0.0, 1.0))

        def update(values: dict[str, Tensor]) -> dict[str, Tensor]:
            seen.append(values)
            return {"y": torch.randn(())}

        kernel = Gibbs(
            [
                (HMC(model, step_size=0.1, num_steps=2), ["scale"]),
                (update, ["y"]),
                (DiscreteGibbs(model), ["z"]),
            ]
        )
        samples = run(kernel, num_samples=20, warmup_steps=0).get_samples()
        scales = torch.stack([values["scale"] for values in seen])
        torch.testing.assert_close(scales, samples["scale"])
        assert {values["z"].dtype for values in seen} == {torch.int64}
        assert samples["z"].dtype == torch.float32


def tiny(seen: Tensor = SEEN) -> Gibbs:
    return Gibbs([(BlockGibbs(noisy), ["v"]), (HMC(noisy, step_size=0.3, num_steps=2), None)])


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 4)


class TestUnderPyro:
    def test_interface(self) -> None:
        mcmc = run(tiny(), num_samples=10, warmup_steps=5)
        samples = mcmc.get_samples()
        assert sorted(samples) == ["scale", "v"] and (samples["scale"] > 0).all()
        assert not any(s.requires_grad for s in samples.values())
        diagnostics = mcmc.diagnostics()
        assert {"divergences", "v.energy", "scale.acceptance rate", "scale.step size"} <= set(
            diagnostics
        )
        assert diagnostics["v.energy"]["chain 0"].shape == (10,)
        mcmc.summary()

    def test_progress(self) -> None:
        kernel = tiny()
        kernel.setup(0)
        kernel.sample(kernel.initial_params)
        logged = kernel.logging()
        assert list(logged) == ["v.energy", "scale.step size", "scale.acc. prob"]
        assert all(isinstance(text, str) for text in logged.values())

    def test_streaming(self) -> None:
        mcmc = StreamingMCMC(tiny(), num_samples=20, warmup_steps=5, disable_progbar=True)
        mcmc.run()
        assert mcmc.get_statistics(group_by_chain=False)["v"]["mean"].shape == (4,)

    def test_chains_one_after_the_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both chains of a run are what one chain with the same seed is."""
        monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 1)
        setup = Gibbs.setup

        def seeded(self: Gibbs, *args: Any, **kwargs: Any) -> None:
            pyro.set_rng_seed(7)
            setup(self, *args, **kwargs)

        monkeypatch.setattr(Gibbs, "setup", seeded)
        options = {"num_samples": 15, "warmup_steps": 10}
        alone = run(tiny(), **options).get_samples()  # type: ignore[arg-type]
        mcmc = run(tiny(), num_chains=2, **options)  # type: ignore[arg-type]
        both = mcmc.get_samples(group_by_chain=True)
        for name, draws in alone.items():
            assert torch.equal(both[name][0], draws) and torch.equal(both[name][1], draws)
        assert mcmc.diagnostics()["v.energy"]["chain 1"].shape == (15,)

    @pytest.mark.usefixtures("four_cores")
    @pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
    def test_chains_in_processes(self, context: str) -> None:
        mcmc = run(tiny(), num_samples=10, warmup_steps=5, num_chains=2, mp_context=context)
        assert type(mcmc.sampler).__name__ == "_MultiSampler"
        samples = mcmc.get_samples(group_by_chain=True)
        assert samples["v"].shape == (2, 10, 4) and (samples["scale"] > 0).all()

    def test_pickling(self) -> None:
        copy = pickle.loads(ForkingPickler.dumps(tiny()))
        assert run(copy, num_samples=5, warmup_steps=2).get_samples()["v"].shape == (5, 4)

    def test_cleanup(self) -> None:
        kernel = tiny()
        kernel.initial_params = {"v": torch.ones(4).double()}
        kernel.setup(0)
        kernel.sample(kernel.initial_params)
        for _ in range(2):
            kernel.cleanup()
            assert kernel.diagnostics()["v.energy"].numel() == 0
            assert list(kernel.diagnostics()) == ["divergences", "v.energy"]
        assert all(block.update.model is noisy for block in kernel._blocks)
        assert all(block.update._initial_params is None for block in kernel._blocks)
        assert run(kernel, num_samples=3, warmup_steps=2).get_samples()["v"].shape == (3, 4)

    def test_divergences_are_collected(self) -> None:
        def model() -> None:
            for name in ("a", "b"):
                pyro.sample(name, dist.Normal(double(0.0).squeeze(), 0.001))

        hmc = [HMC(model, step_size=1.0, num_steps=3, adapt_step_size=False) for _ in range(2)]
        mcmc = run(Gibbs([(hmc[0], ["a"]), (hmc[1], ["b"])]), num_samples=3, warmup_steps=0)
        assert mcmc._diagnostics[0]["divergences"] == [0, 1, 2]


class TestStart:
    def test_of_some_blocks(self) -> None:
        """Values of HMC's sites are in unconstrained space."""
        kernel = tiny()
        kernel.initial_params = {"scale": double(0.5).squeeze()}
        kernel.setup(0)
        assert kernel.initial_params["scale"] == 0.5 and kernel.initial_params["v"].shape == (4,)
        assert kernel.transforms is not None
        torch.testing.assert_close(
            kernel.transforms["scale"].inv(kernel.initial_params["scale"]), double(0.5).exp()[0]
        )

    @pytest.mark.parametrize("num_chains", [1, 2])
    def test_of_chains(self, num_chains: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 1)
        starts: list[Tensor] = []
        setup = Gibbs.setup

        def spy(self: Gibbs, *args: Any, **kwargs: Any) -> None:
            setup(self, *args, **kwargs)
            starts.append(self.initial_params["v"])

        monkeypatch.setattr(Gibbs, "setup", spy)
        v = torch.eye(4).double()[:num_chains]
        given = {"v": v if num_chains > 1 else v[0]}
        run(tiny(), num_samples=4, warmup_steps=0, num_chains=num_chains, initial_params=given)
        assert torch.equal(torch.stack(starts), v)

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"u": torch.zeros(4)}, r"holds \['u'\], but the latent sites are \['scale', 'v'\]"),
            ({"v": torch.zeros(3)}, "must hold 'v' of shape"),
            ({"v": torch.full((4,), 0.5)}, "outside of"),
        ],
        ids=["name", "shape", "support"],
    )
    def test_wrong(self, params: dict[str, Tensor], message: str) -> None:
        kernel = tiny()
        kernel.initial_params = params
        with pytest.raises(ValueError, match=message):
            kernel.setup(0)

    def test_a_part_of_a_block(self) -> None:
        def model() -> None:
            pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("b", dist.Normal(0.0, 1.0))

        kernel = Gibbs([(NUTS(model), None)])
        kernel.initial_params = {"a": torch.tensor(0.0)}
        with pytest.raises(ValueError, match=r"all of the sites \['a', 'b'\] .* got \['a'\]"):
            kernel.setup(0)


def with_assignment() -> None:
    noisy()
    pyro.sample("z", dist.Categorical(torch.ones(2)))


def copy_of_noisy() -> None:
    noisy()


class TestRefusals:
    @pytest.mark.parametrize(
        ("blocks", "message"),
        [
            (lambda: [], "at least one pair"),
            (lambda: [(NUTS(noisy), [])], "a list of names or None"),
            (lambda: [(NUTS(noisy), [3])], "a list of names or None"),
            (
                lambda: [(BlockGibbs(noisy), ["v"]), (NUTS(noisy), ["scale", "v"])],
                r"sites \['v'\] are named by more than one block",
            ),
            (lambda: [(BlockGibbs(noisy), None), (NUTS(noisy), None)], "at most one block"),
            (
                lambda: [(BlockGibbs(noisy), ["v"]), (NUTS(copy_of_noisy), None)],
                "the same model, but theirs differ",
            ),
            (lambda: [(BlockGibbs(PRIOR), ["v"])], r"must be built with .* BlockGibbs\(model\)"),
            (lambda: [(HMC(potential_fn=len), None)], r"must be built with .* HMC\(model\)"),
            (lambda: [(NUTS(noisy, jit_compile=True), None)], "jit_compile=True"),
            (lambda: [(lambda v: v, ["v"])], "at least one block must have a kernel"),
            (lambda: [(k := NUTS(noisy), ["v"]), (k, None)], "one is used twice"),
        ],
    )
    def test_blocks(self, blocks: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Gibbs(blocks())

    @pytest.mark.parametrize("kernel", [3, None, RandomWalkKernel(noisy)])
    def test_kernel(self, kernel: Any) -> None:
        with pytest.raises(
            TypeError, match=f"or a function of the values, got {type(kernel).__name__}"
        ):
            Gibbs([(kernel, None)])

    @pytest.mark.parametrize(
        ("blocks", "message"),
        [
            (lambda m: [(NUTS(m), ["scale"])], r"no block updates the latent sites \['v', 'z'\]"),
            (lambda m: [(NUTS(m), ["x"])], r"sites \['x'\] are not latent in the model; it has"),
            (
                lambda m: [(BlockGibbs(m), ["v"]), (NUTS(m), None)],
                r"NUTS cannot update the discrete sites \['z'\].*DiscreteGibbs",
            ),
            (
                lambda m: [(DiscreteGibbs(m), ["z"]), (NUTS(m), None)],
                r"NUTS cannot update the discrete sites \['v'\]",
            ),
            (
                lambda m: [
                    (NUTS(m), "scale"),
                    (BlockGibbs(m), "v"),
                    (DiscreteGibbs(m), "z"),
                    (HMC(m), None),
                ],
                "no site of the model remains",
            ),
            (
                lambda m: [(NUTS(m), "scale"), (BlockGibbs(m), ["v", "z"])],
                r"BlockGibbs needs .* the latent sites are \['v', 'z'\]",
            ),
            (
                lambda m: [(NUTS(m), "scale"), (DiscreteGibbs(m), ["v", "z"])],
                "DiscreteGibbs cannot draw site 'v'",
            ),
            (
                lambda m: [
                    (NUTS(m), "scale"),
                    (DiscreteGibbs(m), "z"),
                    (ParallelTempering(m), "v"),
                ],
                "ParallelTempering .*compound kernel",
            ),
        ],
        ids=["nobody", "observed", "z", "v", "none", "two", "machine", "tempering"],
    )
    def test_sites(self, blocks: Any, message: str) -> None:
        kernel = Gibbs(blocks(with_assignment))
        with pytest.raises(ValueError, match=message):
            kernel.setup(0)

    def test_block_gibbs_of_a_rest_that_is_not_linear(self) -> None:
        kernel = Gibbs([(BlockGibbs(coupled), ["v"]), (NUTS(coupled), None)])
        with pytest.raises(ValueError, match="MetropolisBlockGibbs or GibbsWithGradients"):
            kernel.setup(0)

    @pytest.mark.parametrize(
        "returned",
        [None, {"v": torch.zeros(4)}, {"scale": torch.zeros(2)}],
        ids=["none", "name", "shape"],
    )
    def test_what_a_function_returns(self, returned: Any) -> None:
        kernel = Gibbs([(BlockGibbs(noisy), ["v"]), (lambda v: returned, ["scale"])])
        kernel.setup(0)
        with pytest.raises(
            ValueError, match=r"update of \['scale'\] must return tensors of the shapes"
        ):
            kernel.sample(kernel.initial_params)

    def test_many_chains_in_one_tensor(self) -> None:
        with pytest.raises(TypeError, match="Gibbs cannot run chains in one tensor"):
            VectorizedMCMC(tiny(), 10)  # type: ignore[arg-type]
