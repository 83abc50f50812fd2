# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The compound kernel under Pyro's drivers: starts, chains, processes, and what is refused."""

import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, NUTS
from pyro.infer.mcmc.api import StreamingMCMC
from pyro.infer.mcmc.rwkernel import RandomWalkKernel
from torch import Tensor

from pyro_ebm.infer import (
    BlockGibbs,
    DiscreteGibbs,
    Gibbs,
    ParallelTempering,
    VectorizedMCMC,
)
from tests.infer.mcmc.compound_models import PRIOR, coupled, double, noisy, run

#: Pyro forks while its logging thread runs, which Python 3.12 and later warn of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def tiny() -> Gibbs:
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
