# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""HMC and NUTS of Pyro sample the free energy of machines with continuous visible units."""

import math
import pickle
from typing import Any

import pytest
import torch
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.infer.mcmc.util import initialize_model
from torch import Size, Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer import free_energy_model
from pyro_ebm.ops.chains import effective_sample_size
from tests.distributions.families import FAMILIES, batch_indices, random_rbm, to_machine
from tests.infer.reference import Z_LIMIT, exact_features, features

NUM_SAMPLES = 400


def draws(kernel: Any, num_samples: int = NUM_SAMPLES) -> Tensor:
    mcmc = MCMC(kernel, num_samples=num_samples, warmup_steps=150, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples()["v"]


def worst(v: Tensor, rbm: RBM, index: tuple[int, ...] = ()) -> float:
    """Largest deviation of a first or second moment, in standard errors of correlated draws."""
    values = features(v.double())
    error = values.std(0) / effective_sample_size(values.unsqueeze(0)).clamp(max=len(v)).sqrt()
    expected = exact_features(to_machine(rbm, index))
    return ((values.mean(0) - expected) / error).abs().max().item()


@pytest.mark.parametrize(("hidden", "kernel"), [("bernoulli", HMC), ("categorical", NUTS)])
def test_moments_of_gaussian_units(hidden: str, kernel: type[HMC]) -> None:
    rbm = random_rbm(("gaussian", hidden), offsets=True, scale=1.5)
    options = {"trajectory_length": 2.0} if kernel is HMC else {}
    assert worst(draws(kernel(free_energy_model(rbm), **options)), rbm) < Z_LIMIT


def test_moments_of_rectified_units() -> None:
    rbm = random_rbm(("relu", "ising"), offsets=True)
    v = draws(HMC(free_energy_model(rbm), trajectory_length=2.0))
    assert (v >= 0).all()
    assert worst(v, rbm) < Z_LIMIT


def test_a_wrong_energy_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above have power: energies three times too large narrow the draws."""
    one = torch.ones(2, dtype=torch.float64)
    rbm = RBM(units.Gaussian(0.0 * one, one), units.Ising(0.0 * one), 0.3 * torch.diag(one))
    original = RBM.free_energy
    monkeypatch.setattr(RBM, "free_energy", lambda self, value: 3.0 * original(self, value))
    # A quarter of a period of the narrow law: draws are nearly independent.
    kernel = HMC(free_energy_model(rbm), trajectory_length=0.9)
    assert worst(draws(kernel), rbm) > Z_LIMIT


@pytest.mark.parametrize("hidden", FAMILIES)
@pytest.mark.parametrize("visible", ["gaussian", "relu"])
def test_potential_energy(visible: str, hidden: str) -> None:
    """The free energy, and the logarithm of the Jacobian of v = exp(z) for rectified units."""
    rbm = random_rbm((visible, hidden), offsets=True)
    _, potential, transforms, _ = initialize_model(free_energy_model(rbm))
    z = torch.randn(2, dtype=torch.float64)
    v = transforms["v"].inv(z) if transforms else z
    expected = rbm.free_energy(v)
    if visible == "relu":
        torch.testing.assert_close(v, z.exp())
        expected = expected - z.sum()
    torch.testing.assert_close(potential({"v": z}), expected)


def test_parameters_that_require_gradients() -> None:
    rbm = random_rbm(("gaussian", "bernoulli"), offsets=True)
    leaves = [rbm.weight, rbm.visible_offset, *rbm.visible.parameters.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    # Weights that come out of a network are no leaves, and cannot be pickled.
    learnable = RBM(rbm.visible, rbm.hidden, 1.0 * rbm.weight, visible_offset=rbm.visible_offset)
    model = free_energy_model(learnable)
    assert not any(p.requires_grad for p in model.machine.parameters())
    v = draws(NUTS(model), 20)
    assert not v.requires_grad
    assert all(leaf.grad is None for leaf in leaves)


def test_an_attached_log_partition_is_dropped() -> None:
    rbm = random_rbm(("gaussian", "bernoulli")).normalize(3.0)
    assert free_energy_model(rbm).machine.log_partition is None
    assert rbm.log_partition is not None


def test_pickle_and_name() -> None:
    rbm = random_rbm(("gaussian", "ising"), offsets=True)
    model = pickle.loads(pickle.dumps(free_energy_model(rbm, "pixels")))
    mcmc = MCMC(NUTS(model), num_samples=10, warmup_steps=5, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["pixels"].shape == (10, 2)


def test_a_start_far_away() -> None:
    """A draw of the machine, where zero is a hundred deviations away."""
    one = torch.ones(2, dtype=torch.float64)
    rbm = RBM(
        units.Gaussian(1000.0 * one, 0.01 * one), units.Bernoulli(one), torch.diag(0.01 * one)
    )
    kernel = HMC(free_energy_model(rbm), init_strategy=init_to_sample)
    kernel.setup(0)
    start = kernel.initial_params["v"]
    assert ((start - 1000.0).abs() < 100.0).all()


class TestBatches:
    def test_refused(self) -> None:
        rbm = random_rbm(("gaussian", "bernoulli"), batched=True)
        with pytest.raises(ValueError, match=r"all elements of a batch together.*\(2, 3\).*joint"):
            free_energy_model(rbm)
        with pytest.raises(ValueError, match=r"\(4,\)"):
            free_energy_model(random_rbm(("gaussian", "bernoulli")).expand(Size((4,))))

    def test_joint(self) -> None:
        rbm = random_rbm(("gaussian", "bernoulli"), batched=True)
        v = draws(HMC(free_energy_model(rbm, joint=True), trajectory_length=1.5))
        assert v.shape == (NUM_SAMPLES, 2, 3, 2)
        for index in batch_indices(rbm.batch_shape):
            assert worst(v[(slice(None), *index)], rbm, index) < Z_LIMIT


class TestArguments:
    @pytest.mark.parametrize("family", ["bernoulli", "ising", "categorical", "multinomial"])
    def test_discrete_units(self, family: str) -> None:
        message = f"need continuous visible units, got {FAMILIES[family].__name__}; use BlockGibbs"
        with pytest.raises(ValueError, match=message):
            free_energy_model(random_rbm((family, "gaussian")))

    @pytest.mark.parametrize("wrong", [None, math.pi, torch.zeros(2)])
    def test_no_machine(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match="dist must be an RBM distribution, got"):
            free_energy_model(wrong)

    def test_not_normalisable(self) -> None:
        one = torch.ones(2)
        rbm = RBM(units.Gaussian(one, one), units.Gaussian(one, one), 2.0 * torch.eye(2))
        with pytest.raises(ValueError, match="not normalisable"):
            free_energy_model(rbm)
