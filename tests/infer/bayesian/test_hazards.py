# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Programs at which a kernel would be silently wrong, or stop in the middle of a run."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC
from torch import Size, Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM, UnnormalizedGradientError, units
from pyro_ebm.infer import Exchange, PseudoMarginal, VectorizedMCMC
from pyro_ebm.infer.bayesian.machine_factor import machine_factor
from tests.infer.bayesian.small_programs import machine
from tests.infer.reference import Z_LIMIT

ROWS = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]).double()
ZERO = torch.zeros(()).double()
KERNELS = [Exchange, PseudoMarginal]


def normal(name: str = "w") -> Tensor:
    return pyro.sample(name, dist.Normal(ZERO, 1.0))


class TestRowsThatMove:
    """The estimate of Z belongs to the rows that count."""

    @staticmethod
    def masked(mask: Any) -> Any:
        def model() -> None:
            rbm = machine(normal(), ZERO)
            with pyro.plate("rows", 3), poutine.mask(mask=mask()):
                pyro.sample("v", rbm, obs=ROWS)

        return model

    def test_mask_moved_by_another_block(self) -> None:
        mask = torch.tensor([True, False, True])
        kernels = [kernel_type(self.masked(lambda: mask)) for kernel_type in KERNELS]
        for kernel in kernels:
            kernel.setup(0)
            kernel.sample(kernel.initial_params)
        mask = torch.tensor([True, True, True])
        for kernel in kernels:
            kernel.refresh()
        kernels[0].sample(kernels[0].initial_params)
        with pytest.raises(ValueError, match="the mask of the machine at site 'v' were changed"):
            kernels[1].sample(kernels[1].initial_params)

    @pytest.mark.parametrize("kernel_type", KERNELS)
    def test_mask_of_the_kernels_own_parameters(self, kernel_type: Any) -> None:
        def model() -> None:
            w = normal()
            with pyro.plate("rows", 3), poutine.mask(mask=ROWS[:, 0] > w):
                pyro.sample("v", machine(w, ZERO), obs=ROWS)

        kernel = kernel_type(model, init_scale=5.0)
        kernel.initial_params = {"w": 0.5 + ZERO}
        kernel.setup(0)
        with pytest.raises(ValueError, match="mask of site 'v' depend"):
            for _ in range(50):
                kernel.sample(kernel.initial_params)

    def test_masks_that_are_no_tensors(self) -> None:
        for mask, counts in ((True, True), (False, False)):
            for model in (
                self.masked(lambda m=mask: m),
                lambda m=mask: pyro.sample("v", machine(normal(), ZERO).mask(m), obs=ROWS[0]),
            ):
                trace = poutine.trace(model).get_trace()
                assert (machine_factor("v", trace.nodes["v"]) is not None) == counts


@pytest.mark.parametrize("kernel_type", KERNELS)
class TestHiddenMachines:
    """Without log Z no gradient may pass, and neither may a Metropolis test."""

    def refused(self, model: Any, kernel_type: Any) -> None:
        with pytest.raises(UnnormalizedGradientError, match="hidden from"):
            kernel_type(model).setup(0)

    def test_factor(self, kernel_type: Any) -> None:
        def model() -> None:
            rbm = machine(normal(), ZERO)
            with pyro.plate("rows", 3):
                pyro.factor("v", rbm.log_prob(ROWS))

        self.refused(model, kernel_type)

    def test_mixture(self, kernel_type: Any) -> None:
        def model() -> None:
            parts = machine(torch.stack([normal(), ZERO]), torch.zeros(2).double())
            choice = dist.Categorical(torch.ones(2).double())
            with pyro.plate("rows", 3):
                pyro.sample("v", dist.MixtureSameFamily(choice, parts), obs=ROWS)

        self.refused(model, kernel_type)

    def test_masked_mixture(self, kernel_type: Any) -> None:
        mask = torch.tensor([True, False, True])

        def model() -> None:
            one, other = machine(normal(), ZERO).expand([3]), machine(ZERO, ZERO).expand([3])
            with pyro.plate("rows", 3):
                pyro.sample("v", dist.MaskedMixture(mask, one, other), obs=ROWS)

        self.refused(model, kernel_type)


@pytest.mark.parametrize("kernel_type", KERNELS)
class TestChains:
    """As many chains as rows or units, so that every shape fits."""

    def test_missing_to_event(self, kernel_type: Any) -> None:
        data = ROWS.repeat(2, 1)

        def model(events: int) -> None:
            w = pyro.sample("w", dist.Normal(ZERO, 1.0).expand([3, 2]).to_event(events))
            rbm = BernoulliRBM(w, torch.zeros(3).double(), torch.zeros(2).double())
            with pyro.plate("rows", 6):
                pyro.sample("v", rbm, obs=data)

        kernel = kernel_type(model)
        kernel.chain_shape = Size((6,))
        kernel.setup(0, 2)
        with pytest.raises(ValueError, match="depends on the values of other chains"):
            kernel.setup(0, 0)

    def test_missing_axes(self, kernel_type: Any) -> None:
        def model() -> None:
            rbm = BernoulliRBM(
                normal() * torch.ones(3, 2).double(),
                torch.zeros(3).double(),
                torch.zeros(2).double(),
            )
            with pyro.plate("rows", 3):
                pyro.sample("v", rbm, obs=ROWS)

        kernel = kernel_type(model)
        kernel.setup(0)
        kernel.chain_shape = Size((3,))
        with pytest.raises(ValueError, match="depends on the values of other chains"):
            kernel.setup(0)


@pytest.mark.parametrize("kernel_type", KERNELS)
def test_support_of_another_site(kernel_type: Any) -> None:
    def model(fixed: bool) -> None:
        a = pyro.sample("a", dist.Gamma(2.0 + ZERO, 1.0))
        b = pyro.sample("b", dist.Uniform(ZERO, 1.0 + ZERO if fixed else a))
        pyro.sample("v", machine(a * b, ZERO), obs=ROWS[0])

    kernel_type(model).setup(0, True)
    with pytest.raises(ValueError, match="site 'b' has not the same support everywhere"):
        kernel_type(model).setup(0, False)


class TestNoFiniteZ:
    """Two Gaussian layers have a finite Z for couplings between -1 and 1 only."""

    # p(w) / Z(w) without data in the machine's favour: the row is zero.
    @staticmethod
    def model() -> None:
        w = normal()
        one, zero = torch.ones(1).double(), torch.zeros(1).double()
        rbm = RBM(units.Gaussian(zero, one), units.Gaussian(zero, one), w[..., None, None])
        pyro.sample("v", rbm, obs=zero)

    @pytest.mark.filterwarnings("ignore::pyro_ebm.infer.ApproximateAuxiliaryWarning")
    @pytest.mark.parametrize(
        "kernel",
        [
            Exchange(model, num_bridges=2, init_scale=1.5, num_sweeps=15),
            PseudoMarginal(
                model, reference={"w": ZERO}, num_bridges=2, init_scale=1.5, num_sweeps=15
            ),
        ],
    )
    def test_long_run(self, kernel: Any) -> None:
        start = {"w": 0.3 * torch.linspace(-1.0, 1.0, 40).double()}
        mcmc = VectorizedMCMC(
            kernel, 25, 15, num_chains=40, initial_params=start, disable_progbar=True
        )
        mcmc.run()
        draws = mcmc.get_samples(group_by_chain=True)["w"]
        assert draws.abs().max() < 1.0
        # The density is a normal one times 1 / Z, which is proportional to the root of 1 - w**2.
        grid = torch.linspace(-1.0, 1.0, 4001).double()
        p = (-grid.square() / 2).exp() * (1.0 - grid.square()).sqrt()
        expected = float((p * grid.square()).sum() / p.sum())
        means = draws.square().mean(1)
        assert abs(float(means.mean()) - expected) < Z_LIMIT * float(means.std()) / 40**0.5

    @pytest.mark.filterwarnings("ignore::pyro_ebm.infer.ApproximateAuxiliaryWarning")
    @pytest.mark.parametrize("kernel_type", KERNELS)
    def test_single_chain(self, kernel_type: Any) -> None:
        """All of its proposals are impossible."""
        kernel = kernel_type(self.model, init_scale=1e6)
        mcmc = MCMC(kernel, 5, 0, initial_params={"w": 0.5 + ZERO}, disable_progbar=True)
        mcmc.run()
        assert torch.equal(mcmc.get_samples()["w"], torch.full((5,), 0.5).double())
