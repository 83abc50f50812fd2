# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""What cannot be right is refused, whoever notices: this is the table of docs/source/howto/programs.rst."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.contrib.gp.kernels
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
    infer_discrete,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoDiscreteParallel,
    AutoLaplaceApproximation,
    AutoNormal,
)
from pyro.infer.mcmc import RandomWalkKernel

from pyro_ebm.distributions import (
    RBM,
    BernoulliRBM,
    GaussianBernoulliRBM,
    UnnormalizedGradientError,
)
from pyro_ebm.infer import (
    ContrastiveDivergence,
    Gibbs,
    LeaveOneOutELBO,
    exact_log_partition,
)
from tests.infer.programs.machines import bits, double, log_p_star, rbm

SEEN = double(0.4, -0.3, 0.9)
JIT = [JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO]


def large() -> BernoulliRBM:
    """Twelve bits, above the limit of Pyro's enumeration here."""
    return BernoulliRBM(
        torch.zeros(12, 3).double(), torch.zeros(12).double(), torch.zeros(3).double()
    )


def program(make: Callable[[], Any], **infer: Any) -> Callable[[], None]:
    def model() -> None:
        v = pyro.sample("v", make(), infer=infer)
        pyro.sample("x", dist.Normal(v[..., :3], 1.0).to_event(1), obs=SEEN)

    return model


def learnable() -> RBM:
    bias = pyro.param("bias", rbm().visible.natural_bias)
    return rbm(bias - rbm().visible.natural_bias)


def real() -> GaussianBernoulliRBM:
    weight = pyro.param("weight", 0.1 * torch.ones(3, 2).double())
    return GaussianBernoulliRBM(
        weight, torch.zeros(3).double(), torch.ones(3).double(), torch.zeros(2).double()
    )


def guide() -> None:
    pyro.sample("v", dist.Bernoulli(double(0.3, 0.6, 0.4)).to_event(1))


def latent_parameters() -> None:
    shift = pyro.sample("shift", dist.Normal(double(0.0).squeeze(), 1.0))
    pyro.sample("v", rbm(shift.unsqueeze(-1)), obs=bits(3)[5])


def step(model: Any, guide: Any, loss: Any) -> None:
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=loss).step()


class TestWithoutLogPartition:
    @pytest.mark.parametrize(
        "elbo",
        [
            Trace_ELBO(),
            TraceGraph_ELBO(),
            TraceMeanField_ELBO(),
            RenyiELBO(num_particles=2),
            ReweightedWakeSleep(),
            JitTrace_ELBO(),
        ],
        ids=lambda elbo: type(elbo).__name__,
    )
    def test_plain_losses(self, elbo: Any) -> None:
        with pytest.raises(UnnormalizedGradientError, match="ContrastiveDivergence"):
            step(program(learnable), guide, elbo)

    @pytest.mark.parametrize("kernel", [NUTS, RandomWalkKernel])
    def test_kernels_over_parameters(self, kernel: Any) -> None:
        with pytest.raises(UnnormalizedGradientError, match="exact_log_partition"):
            MCMC(kernel(latent_parameters), 2, 2, disable_progbar=True).run()

    def test_guides(self) -> None:
        with pytest.raises(UnnormalizedGradientError):
            step(program(rbm), lambda: pyro.sample("v", learnable()), ContrastiveDivergence())

    def test_second_order(self) -> None:
        laplace = AutoLaplaceApproximation(program(real))
        step(program(real), laplace, ContrastiveDivergence())
        with pytest.raises(UnnormalizedGradientError):
            laplace.laplace_approximation()


class TestCompiled:
    @pytest.mark.parametrize("elbo", JIT)
    @pytest.mark.parametrize("persistent", [True, False])
    def test_losses(self, elbo: Any, persistent: bool) -> None:
        with pytest.raises(ValueError, match=f"{elbo.__name__} would freeze the chains"):
            ContrastiveDivergence(elbo=elbo(), persistent=persistent)

    def test_compound_kernels(self) -> None:
        with pytest.raises(ValueError, match="jit_compile=True"):
            Gibbs([(NUTS(latent_parameters, jit_compile=True), None)])


class TestDiscreteMachines:
    def test_enumeration_above_the_limit(self) -> None:
        loss = ContrastiveDivergence(elbo=TraceEnum_ELBO(max_plate_nesting=0))
        with pytest.raises(NotImplementedError, match=r"at most 1024 states.*has 4096"):
            step(program(large, enumerate="parallel"), lambda: None, loss)

    @pytest.mark.parametrize("enumerated", [True, False])
    def test_neither_in_the_guide_nor_enumerated(self, enumerated: bool) -> None:
        """``config_enumerate`` passes over what is too large, and Pyro only warns."""
        model = program(large)
        elbo = TraceEnum_ELBO(max_plate_nesting=0) if enumerated else Trace_ELBO()
        loss = ContrastiveDivergence(elbo=elbo)
        with pytest.raises(ValueError, match=r"'v' is neither in the guide nor enumerated.*1024"):
            step(config_enumerate(model) if enumerated else model, lambda: None, loss)

    @pytest.mark.parametrize(
        "elbo",
        [Trace_ELBO(), TraceGraph_ELBO(), LeaveOneOutELBO(4, 0)],
        ids=lambda e: type(e).__name__,
    )
    def test_annotated_where_nothing_enumerates(self, elbo: Any) -> None:
        """``config_enumerate`` is a note to TraceEnum_ELBO, which others do not read."""
        with pytest.raises(ValueError, match="'v' is neither in the guide nor enumerated"):
            ContrastiveDivergence(elbo=elbo).loss(config_enumerate(program(rbm)), lambda: None)

    def test_normalised_ones(self) -> None:
        def normalised() -> RBM:
            return rbm().normalize(exact_log_partition(rbm()))

        with pytest.raises(ValueError, match="'v' is neither in the guide nor enumerated"):
            ContrastiveDivergence().loss(program(normalised), lambda: None)

    @pytest.mark.parametrize("within", [True, False])
    @pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
    def test_masked_out(self, within: bool) -> None:
        """It adds nothing to the ELBO, so anyone may draw it."""

        def model() -> None:
            if within:
                pyro.sample("v", rbm().mask(False))
            else:
                with poutine.mask(mask=False):
                    pyro.sample("v", rbm())
            pyro.sample("x", dist.Normal(SEEN, 1.0).to_event(1), obs=SEEN)

        expected = -dist.Normal(SEEN, 1.0).log_prob(SEEN).sum()
        assert ContrastiveDivergence().loss(model, lambda: None) == pytest.approx(float(expected))

    def test_hamiltonian_kernels(self) -> None:
        with pytest.raises(ValueError, match="cannot handle discrete sample site 'v'"):
            MCMC(NUTS(program(large)), 2, 2, disable_progbar=True).run()

    @pytest.mark.parametrize(
        "auto", [AutoNormal, AutoDelta, AutoDiagonalNormal, AutoLaplaceApproximation]
    )
    def test_continuous_autoguides(self, auto: Any) -> None:
        with pytest.raises(ValueError, match="cannot handle discrete sample site 'v'"):
            step(program(learnable), auto(program(learnable)), ContrastiveDivergence())

    def test_discrete_autoguide(self) -> None:
        with pytest.raises(NotImplementedError, match="RBM is not supported"):
            auto = AutoDiscreteParallel(program(rbm))
            step(program(rbm), auto, ContrastiveDivergence())

    def test_mean_field_elbo(self) -> None:
        with pytest.raises(NotImplementedError, match="fully reparameterized"):
            step(program(learnable), guide, ContrastiveDivergence(elbo=TraceMeanField_ELBO()))

    def test_infer_discrete(self) -> None:
        """A limit of Pyro; see docs/upstream.md."""
        with pytest.raises(ValueError, match="Invalid tensor shape"):
            infer_discrete(config_enumerate(program(rbm)), first_available_dim=-1)()


class TestWhatWorks:
    """Other losses within ContrastiveDivergence: the same value as with the log Z attached."""

    @pytest.mark.parametrize(
        "elbo",
        [lambda: RenyiELBO(num_particles=3), lambda: ReweightedWakeSleep(num_particles=3)],
        ids=["Renyi", "wake-sleep"],
    )
    def test_values(self, elbo: Any) -> None:
        def normalized() -> RBM:
            return rbm().normalize(exact_log_partition(rbm()))

        found = []
        for loss, make in (
            (ContrastiveDivergence(elbo=elbo(), log_partition=exact_log_partition), rbm),
            (elbo(), normalized),
        ):
            pyro.set_rng_seed(1)
            value = loss.loss(program(make), guide)
            found.append(torch.as_tensor(value, dtype=torch.float64).detach())
        assert torch.allclose(found[0], found[1], rtol=0, atol=1e-9)

    def test_sleep_phase(self) -> None:
        """It draws the machine from the model on purpose."""

        def learnt_guide(observations: Any = None) -> None:
            logits = pyro.param("logits", torch.zeros(3).double())
            pyro.sample("v", dist.Bernoulli(logits=logits).to_event(1))

        number = 4000
        elbo = ReweightedWakeSleep(
            num_particles=2,
            insomnia=0.0,
            num_sleep_particles=number,
            vectorize_particles=True,
            max_plate_nesting=0,
        )
        ContrastiveDivergence(elbo=elbo).loss_and_grads(program(learnable), learnt_guide)
        got = dict(pyro.get_param_store().named_parameters())["logits"].grad
        means = torch.softmax(log_p_star(rbm(), bits(3)), 0) @ bits(3)
        assert got is not None
        assert ((got - (0.5 - means)) / (0.25 / number) ** 0.5).abs().max() < 6.0
        assert (0.5 - means).abs().max() > 0.1

    def test_draws_of_the_prior(self) -> None:
        """Trace_MMD draws them on purpose; what it refuses is that they have no pathwise gradient."""
        kernel = pyro.contrib.gp.kernels.RBF(3, lengthscale=double(1.0).squeeze())
        elbo = Trace_MMD(
            {"v": kernel}, num_particles=4, vectorize_particles=True, max_plate_nesting=0
        )
        with pytest.raises(ValueError, match=r"site v is not reparameterizable"):
            ContrastiveDivergence(elbo=elbo).differentiable_loss(program(rbm), guide)

    @pytest.mark.parametrize("auto", [AutoNormal, AutoDelta])
    @pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
    def test_autoguides_of_continuous_machines(self, auto: Any, elbo: Any) -> None:
        """The gradient by where the guide is, in closed form; its width is next to nothing."""
        model = program(real)
        guide = auto(model) if auto is AutoDelta else auto(model, init_scale=1e-8)
        ContrastiveDivergence(elbo=elbo()).loss_and_grads(model, guide)
        names = {AutoDelta: "v", AutoNormal: "locs.v"}
        place = next(p for n, p in guide.named_parameters() if n.startswith(names[auto]))
        v = place.detach().clone().requires_grad_()
        energy = real().free_energy(v) - dist.Normal(v, 1.0).log_prob(SEEN).sum()
        (exact,) = torch.autograd.grad(energy, v)
        assert torch.allclose(place.grad, exact, rtol=0, atol=1e-6)
        assert exact.abs().max() > 0.1
