# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Chains of the visible and of the hidden layer: the same gradient, and which layer is taken."""

from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer import BlockGibbs, ContrastiveDivergence
from tests.infer.contrastive.conditional_machines import (
    HIDDEN,
    NUM_HIDDEN,
    NUM_VISIBLE,
    VISIBLE,
    Contexts,
    empty_guide,
    largest_z,
)

#: 12 tests of up to 42 entries from 60 runs each; t at 59 degrees of freedom beyond 6.5: 2e-8.
Z_BOUND = 6.5
NUM_CONTEXTS, ROWS, CHAINS, RUNS = 3, 5, 1000, 60
CONTEXTS = torch.arange(NUM_CONTEXTS)


def make_model(contexts: Contexts, **options: Any):
    """A few rows of every context: plate "contexts" at dim -1, "rows" at -2."""

    def model(data: torch.Tensor) -> None:
        with pyro.plate("contexts", NUM_CONTEXTS), pyro.plate("rows", len(data)):
            pyro.sample("y", contexts.condition(CONTEXTS), obs=data, infer=options)

    return model


def gradients(contexts: Contexts, data: torch.Tensor, side: str, seed: int) -> list[torch.Tensor]:
    """Of the loss with chains in equilibrium, drawn anew for every run."""
    model = make_model(contexts, chain_key=CONTEXTS)
    torch.manual_seed(seed)
    found = []
    dist = contexts.condition(CONTEXTS).detach()
    for _ in range(RUNS):
        loss = ContrastiveDivergence(persistent=True, side=side)
        start = (dist if side == "visible" else dist.transpose()).sample((CHAINS,))
        state = {"keys": CONTEXTS, "states": start.transpose(0, 1)}
        loss.load_state_dict({"chains": {}, "keyed_chains": {"y": state}, "sides": {"y": side}})
        found.append(contexts.gradient(loss.differentiable_loss(model, empty_guide, data)))
    return found


def make_data(contexts: Contexts) -> torch.Tensor:
    return contexts.sample(CONTEXTS.expand(ROWS, NUM_CONTEXTS))


def exact(contexts: Contexts, data: torch.Tensor) -> torch.Tensor:
    index = CONTEXTS.expand(ROWS, NUM_CONTEXTS).flatten()
    return contexts.gradient(contexts.nll(data.flatten(0, 1), index))


@pytest.mark.parametrize("side", ["visible", "hidden"])
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("visible", VISIBLE)
def test_gradient_is_that_of_maximum_likelihood(visible: str, hidden: str, side: str) -> None:
    contexts = Contexts(visible, hidden, NUM_CONTEXTS)
    data = make_data(contexts)
    got = gradients(contexts, data, side, seed=2)
    assert largest_z(got, exact(contexts, data)) < Z_BOUND


def test_a_wrong_hidden_chain_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test has power: chains of a weight 10 % too strong give a gradient that it refuses."""
    original = RBM.canonical
    monkeypatch.setattr(
        RBM, "canonical", lambda self: replace(original(self), weight=1.1 * self.weight)
    )
    contexts = Contexts("gaussian", "ising", NUM_CONTEXTS)
    data = make_data(contexts)
    got = gradients(contexts, data, "hidden", seed=2)
    assert largest_z(got, exact(contexts, data)) > Z_BOUND


@pytest.mark.parametrize("hidden", HIDDEN)
def test_the_hidden_side_has_less_variance(hidden: str) -> None:
    """Of every parameter of a Gaussian machine that has noise at all, and none for the mean."""
    contexts = Contexts("gaussian", hidden, NUM_CONTEXTS)
    data = make_data(contexts)
    of_side = {
        side: torch.stack(gradients(contexts, data, side, seed=3)).var(0)
        for side in ("visible", "hidden")
    }
    ratio = of_side["hidden"] / of_side["visible"]
    num_means = NUM_CONTEXTS * NUM_VISIBLE
    assert (ratio[:num_means] < 1e-20).all()
    rest = slice(num_means, None)
    # Entries alone have an error of 19 % each.
    assert of_side["hidden"][rest].sum() < 0.7 * of_side["visible"][rest].sum()


def test_long_contrastive_divergence_on_the_hidden_side() -> None:
    """CD-k from hidden draws given the data reaches equilibrium, a chain a row."""
    contexts = Contexts("gaussian", "bernoulli", NUM_CONTEXTS)
    data = make_data(contexts)
    loss, model = ContrastiveDivergence(num_steps=20), make_model(contexts)
    torch.manual_seed(4)
    got = [
        contexts.gradient(loss.differentiable_loss(model, empty_guide, data)) for _ in range(200)
    ]
    assert loss.chains == {} and loss.sides == {}
    assert largest_z(got, exact(contexts, data)) < Z_BOUND


class TestChoice:
    """Which layer the chains are of."""

    @staticmethod
    def run(visible: str, **options: Any) -> ContrastiveDivergence:
        contexts = Contexts(visible, "ising", 1)
        dist = contexts.condition(torch.tensor(0))

        def model() -> None:
            with pyro.plate("rows", 6):
                pyro.sample("y", dist, obs=data)

        data = contexts.sample(torch.zeros(6, dtype=torch.long))
        loss = ContrastiveDivergence(persistent=True, num_chains=4, **options)
        loss.loss_and_grads(model, empty_guide)
        return loss

    @pytest.mark.parametrize(
        ("visible", "options", "side"),
        [
            ("gaussian", {}, "hidden"),
            ("gaussian", {"side": "visible"}, "visible"),
            ("gaussian", {"kernel": BlockGibbs}, "visible"),
            ("gaussian", {"kernel": BlockGibbs, "side": "hidden"}, "hidden"),
            ("ising", {}, "visible"),
            ("ising", {"side": "hidden"}, "hidden"),
            ("bernoulli", {"kernel": BlockGibbs, "side": "hidden"}, "hidden"),
        ],
    )
    def test_layer(self, visible: str, options: dict[str, Any], side: str) -> None:
        loss = self.run(visible, **options)
        size = {"visible": NUM_VISIBLE, "hidden": NUM_HIDDEN}[side]
        assert loss.sides == {"y": side}
        assert loss.chains["y"].shape == (4, size)
        if side == "hidden":
            assert set(loss.chains["y"].unique().tolist()) <= {-1.0, 1.0}

    def test_two_continuous_layers_stay_visible(self) -> None:
        weight = 0.2 * torch.ones(NUM_VISIBLE, NUM_HIDDEN)
        weight.requires_grad_()
        dist = RBM(
            units.Gaussian(torch.zeros(NUM_VISIBLE), torch.ones(NUM_VISIBLE)),
            units.Gaussian(torch.zeros(NUM_HIDDEN), torch.ones(NUM_HIDDEN)),
            weight,
        )
        loss = ContrastiveDivergence(persistent=True)
        data = torch.zeros(5, NUM_VISIBLE)
        loss.loss_and_grads(
            lambda: pyro.sample("y", dist.expand([5]).to_event(1), obs=data), empty_guide
        )
        assert loss.sides == {"y": "visible"}

    def test_the_kernel_is_given_the_transposed_machine(self) -> None:
        seen = []

        def kernel(dist: RBM) -> BlockGibbs:
            seen.append(dist.event_shape)
            return BlockGibbs(dist)

        self.run("ising", kernel=kernel, side="hidden")
        assert seen == [(NUM_HIDDEN,)]

    def test_a_state_knows_its_side(self) -> None:
        loss = self.run("gaussian")
        other = ContrastiveDivergence(persistent=True)
        other.load_state_dict(loss.state_dict())
        assert other.sides == {"y": "hidden"} and torch.equal(other.chains["y"], loss.chains["y"])

    def test_a_state_of_before_holds_visible_states(self) -> None:
        contexts = Contexts("gaussian", "ising", 1)
        data = contexts.sample(torch.zeros(6, dtype=torch.long))
        loss = ContrastiveDivergence(persistent=True)
        loss.load_state_dict({"chains": {"y": data}})

        def model() -> None:
            pyro.sample("y", contexts.condition(torch.tensor(0)).expand([6]).to_event(1), obs=data)

        with pytest.raises(ValueError, match=r"are visible states.*use side='visible'"):
            loss.loss_and_grads(model, empty_guide)
        loss.side = "visible"
        loss.loss_and_grads(model, empty_guide)
        assert loss.chains["y"].shape == (6, NUM_VISIBLE)

    def test_refused(self) -> None:
        with pytest.raises(ValueError, match="side must be 'auto', 'visible' or 'hidden'"):
            ContrastiveDivergence(side="left")
        with pytest.raises(ValueError, match="'sides' of state"):
            ContrastiveDivergence().load_state_dict({"chains": {}, "sides": {"y": "left"}})
