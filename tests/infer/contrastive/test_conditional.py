# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Conditional machines in Pyro programs: plates, latent contexts, guides, NUTS."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM, UnnormalizedGradientError, units
from pyro_ebm.infer import ContrastiveDivergence, exact_log_partition
from tests.infer.contrastive.conditional_machines import Contexts, empty_guide, largest_z

Z_BOUND = 6.5


class Conditional:
    """A machine whose parameters are affine in a scalar context."""

    def __init__(self, visible: str, requires_grad: bool = True, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def leaf(*shape: int) -> Tensor:
            values = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
            return values.requires_grad_(requires_grad)

        self.visible = visible
        self.bias, self.hidden_bias, self.weight = leaf(3), leaf(2), leaf(3, 2)
        self.leaves = [self.bias, self.hidden_bias, self.weight]

    def condition(self, x: Tensor) -> RBM:
        """Batch shape that of x."""
        bias = self.bias[0] + self.bias[1] * x[..., None]
        hidden_bias = self.hidden_bias[0] + self.hidden_bias[1] * x[..., None]
        weight = self.weight[0] + self.weight[1] * x[..., None, None]
        if self.visible == "gaussian":
            unit = units.Gaussian(bias, torch.full_like(bias, 2.0))
            return RBM(unit, units.Ising(hidden_bias), weight, visible_offset=bias)
        return RBM(units.Bernoulli(bias), units.Ising(hidden_bias), weight)

    def normalized(self, x: Tensor) -> RBM:
        machine = self.condition(x)
        return machine.normalize(exact_log_partition(machine))


@pytest.mark.parametrize("visible", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("options", [{}, {"persistent": True, "num_chains": 30}], ids=["CD", "PCD"])
def test_subsampling_scale_and_masks(visible: str, options: dict[str, Any]) -> None:
    """Six of 30 rows, one masked out, counted half: the gradient of 2.5 times the other five."""
    contexts = Contexts(visible, "ising", 3)
    index = torch.tensor([0, 1, 2] * 10)
    data = contexts.sample(index)
    rows = torch.tensor([4, 9, 11, 3, 28, 20])
    keep = torch.tensor([True, True, False, True, True, True])

    def model() -> None:
        with (
            pyro.plate("rows", 30, subsample=rows) as some,
            poutine.scale(scale=0.5),
            poutine.mask(mask=keep),
        ):
            machine = contexts.condition(index[some])
            pyro.sample("y", machine, obs=data[some], infer={"chain_key": index[some]})

    loss = ContrastiveDivergence(40, **options)
    torch.manual_seed(1)
    got = [contexts.gradient(loss.differentiable_loss(model, empty_guide)) for _ in range(60)]
    counted = rows[keep]
    expected = 2.5 * contexts.gradient(contexts.nll(data[counted], index[counted]))
    assert largest_z(got, expected) < Z_BOUND


class TestLatentContext:
    """x is latent with a guide, y observed with the machine of x, in two rows."""

    ROWS = 2

    @pytest.fixture(params=["gaussian", "bernoulli"])
    def machine(self, request: pytest.FixtureRequest) -> Conditional:
        return Conditional(request.param)

    def differences(
        self, machine: Conditional, family: Any, num_runs: int = 30, **options: Any
    ) -> list[Tensor]:
        """Gradients of the loss less those with the exact log Z at the same draws of the guide."""
        with torch.no_grad():
            torch.manual_seed(0)
            y = machine.condition(torch.tensor([0.5, -1.0]).double()).sample()
        loc = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
        log_scale = torch.tensor([-0.5, 0.1], dtype=torch.float64, requires_grad=True)
        leaves = [*machine.leaves, loc, log_scale]

        def model(condition: Any) -> None:
            with pyro.plate("rows", self.ROWS):
                x = pyro.sample("x", family(loc.new_zeros(()), loc.new_ones(())))
                pyro.sample("y", condition(x), obs=y)

        def guide(condition: Any) -> None:
            with pyro.plate("rows", self.ROWS):
                pyro.sample("x", family(loc, log_scale.exp()))

        def elbo() -> Trace_ELBO:
            return Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=1)

        surrogate = ContrastiveDivergence(25, elbo=elbo(), **options)
        found = []
        for seed in range(num_runs):
            gradients = []
            for loss, condition in (
                (surrogate, machine.condition),
                (elbo(), machine.normalized),
            ):
                torch.manual_seed(seed)
                value = loss.differentiable_loss(model, guide, condition)
                gradient = torch.autograd.grad(value, leaves)
                gradients.append(torch.cat([g.flatten() for g in gradient]))
            found.append(gradients[0] - gradients[1])
        return found

    def test_pathwise_gradients_need_no_value(self, machine: Conditional) -> None:
        found = self.differences(machine, dist.Normal)
        assert largest_z(found, torch.zeros_like(found[0])) < Z_BOUND

    def test_score_function_gradients_need_the_value(self, machine: Conditional) -> None:
        found = self.differences(
            machine, NonreparameterizedNormal, log_partition=exact_log_partition
        )
        assert largest_z(found, torch.zeros_like(found[0])) < Z_BOUND
        found = self.differences(machine, NonreparameterizedNormal)
        assert largest_z(found, torch.zeros_like(found[0])) > Z_BOUND

    def test_particles_of_a_key_have_other_parameters(self, machine: Conditional) -> None:
        def model() -> None:
            with pyro.plate("rows", 2):
                x = pyro.sample("x", dist.Normal(torch.zeros(2).double(), 1.0))
                y = torch.zeros(2, 3)
                pyro.sample("y", machine.condition(x), obs=y, infer={"chain_key": torch.arange(2)})

        def guide() -> None:
            with pyro.plate("rows", 2):
                pyro.sample("x", dist.Normal(torch.zeros(2).double(), 1.0))

        elbo = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
        with pytest.raises(ValueError, match="gives one key to several machines"):
            ContrastiveDivergence(persistent=True, elbo=elbo).loss_and_grads(model, guide)
        ContrastiveDivergence(persistent=True).loss_and_grads(model, guide)


def test_a_conditional_machine_as_a_guide() -> None:
    """Normalised, it is the guide of discrete latents; its gradient against a sum over all states."""
    machine = Conditional("bernoulli")
    x = torch.tensor([0.5, -1.0], dtype=torch.float64)
    loading = torch.tensor([1.0, -0.5, 0.7], dtype=torch.float64)
    prior = dist.Bernoulli(torch.full((3,), 0.3, dtype=torch.float64)).to_event(1)

    def model(x: Tensor) -> None:
        with pyro.plate("rows", 2):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ loading, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", 2):
            pyro.sample("z", machine.normalized(x))

    states = units.Bernoulli(torch.zeros(3, dtype=torch.float64)).states(0, 8)[:, None]
    log_q = machine.normalized(x).log_prob(states)
    log_p = prior.log_prob(states) + dist.Normal(states @ loading, 0.8).log_prob(x)
    expected = torch.autograd.grad((log_q.exp() * (log_q - log_p)).sum(), machine.leaves)
    elbo = Trace_ELBO(num_particles=400, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(0)
    found = []
    for _ in range(60):
        value = ContrastiveDivergence(elbo=elbo).differentiable_loss(model, guide, x)
        gradient = torch.autograd.grad(value, machine.leaves)
        found.append(torch.cat([g.flatten() for g in gradient]))
    assert largest_z(found, torch.cat([g.flatten() for g in expected])) < Z_BOUND


@pytest.mark.parametrize(
    ("visible", "num_samples"),
    [
        ("gaussian", 100),
        pytest.param("gaussian", 1000, marks=pytest.mark.slow),
        pytest.param("bernoulli", 1000, marks=pytest.mark.slow),
    ],
)
def test_nuts_over_a_latent_context(visible: str, num_samples: int) -> None:
    """With the exact log Z attached NUTS finds the posterior of quadrature; without it refuses."""
    machine = Conditional(visible, requires_grad=False, seed=1)
    torch.manual_seed(1)
    y = machine.condition(torch.tensor(0.7).double()).sample((3,))
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)

    def model(condition: Any) -> None:
        x = pyro.sample("x", dist.Normal(zero, one))
        with pyro.plate("rows", 3):
            pyro.sample("y", condition(x), obs=y)

    def run(condition: Any, num_samples: int, warmup_steps: int) -> MCMC:
        mcmc = MCMC(NUTS(model), num_samples, warmup_steps, disable_progbar=True)
        mcmc.run(condition)
        return mcmc

    with pytest.raises(UnnormalizedGradientError):
        run(machine.condition, 5, 5)
    pyro.set_rng_seed(2)
    mcmc = run(machine.normalized, num_samples, 40)
    draws = mcmc.get_samples()["x"]
    grid = torch.linspace(-6.0, 6.0, 1201, dtype=torch.float64)
    log_w = machine.normalized(grid[:, None]).log_prob(y).sum(-1)
    weights = torch.softmax(log_w + dist.Normal(zero, one).log_prob(grid), 0)
    size = mcmc.diagnostics()["x"]["n_eff"]
    for power in (1, 2):
        exact = (weights * grid**power).sum()
        error = (draws**power).std() / size.sqrt()
        assert abs((draws**power).mean() - exact) / error < Z_BOUND
    # The prior's moments are (0, 1); the posterior is another law.
    assert abs((weights * grid).sum()) > 0.2


@pytest.mark.slow
def test_learning_with_keys_is_as_good_as_exact_learning() -> None:
    """SVI of a neural Boltzmann machine, by batches with kept chains and by the exact likelihood."""
    truth = Contexts("gaussian", "ising", 3, dtype=torch.float32)
    with torch.no_grad():
        truth.weight.mul_(1.5)
    label = torch.arange(3).repeat(100)
    x, y = torch.eye(3)[label], truth.sample(label)

    def learn(loss: Any, exact: bool, steps: int) -> tuple[float, float]:
        pyro.clear_param_store()
        nbm = nn.NeuralBoltzmannMachine(3, 3, 2, seed=0, hidden_sizes=())

        def model(rows: Tensor) -> None:
            machine = nbm.condition(x[rows])
            if exact:
                machine = machine.normalize(exact_log_partition(machine))
            with pyro.plate("rows", len(y), subsample=rows):
                pyro.sample("y", machine, obs=y[rows], infer={"chain_key": label[rows]})

        def nll() -> float:
            with torch.no_grad():
                machine = nbm.condition(x)
                return (exact_log_partition(machine) - machine.log_prob(y)).mean().item()

        svi = SVI(model, empty_guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.96}), loss=loss)
        start = nll()
        for step in range(steps):
            svi.step(torch.arange(75) + 75 * (step % 4))
        return start, nll()

    torch.manual_seed(0)
    keyed = ContrastiveDivergence(10, persistent=True, num_chains=100)
    start, learnt = learn(keyed, exact=False, steps=80)
    _, best = learn(Trace_ELBO(), exact=True, steps=80)
    assert keyed.keyed_chains["y"].states.shape == (3, 100, 2)
    # 9.1 nats a row at the start, 4.9 at the end.
    assert start - best > 3.0
    assert abs(learnt - best) < 0.03
