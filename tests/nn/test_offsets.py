# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Moving the offsets of a centred module leaves its distribution as it is."""

import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.infer import exact_log_partition
from tests.distributions.families import CONTINUOUS, PAIR_IDS, PAIRS, some_states, uniform
from tests.training.machines import make_module, random_module, state_of, to_machine


def relative_free_energy(module: nn.RBM, v: Tensor) -> Tensor:
    """Free energies up to the constant that normalisation removes."""
    free_energy = module().free_energy(v).detach()
    return free_energy - free_energy[0]


def steps_for(module: nn.RBM, moved: str) -> dict[str, Tensor]:
    num_visible, num_hidden = module.weight.shape
    steps = {
        "visible_step": uniform((num_visible,), -2, 2),
        "hidden_step": uniform((num_hidden,), -2, 2),
    }
    return {name: step for name, step in steps.items() if moved in ("both", name)}


@pytest.mark.parametrize("moved", ["visible_step", "hidden_step", "both"])
@pytest.mark.parametrize("pair", PAIRS, ids=PAIR_IDS)
def test_shift_offsets_keeps_the_distribution(pair, moved):
    module = random_module(pair, centered=True)
    v = torch.as_tensor(some_states(to_machine(module).visible, 8))
    before, old = relative_free_energy(module, v), state_of(module)
    steps = steps_for(module, moved)
    module.shift_offsets(**steps)
    torch.testing.assert_close(relative_free_energy(module, v), before, rtol=0, atol=1e-10)
    for side in ("visible", "hidden"):
        expected = old[f"{side}_offset"] + steps.get(f"{side}_step", 0.0)
        assert torch.equal(getattr(module, f"{side}_offset"), expected)
    assert torch.equal(module.weight, old["weight"])
    # Without its compensation in the biases a shift would change the machine.
    module.load_state_dict({**module.state_dict(), **{n: old[n] for n in old if "." in n}})
    assert (relative_free_energy(module, v) - before).abs().max() > 1e-3


@pytest.mark.parametrize("pair", [("bernoulli", "ising"), ("gaussian", "bernoulli")], ids="-".join)
def test_shift_offsets_keeps_normalised_probabilities(pair):
    module = random_module(pair, centered=True)
    v = torch.as_tensor(some_states(to_machine(module).visible, 4))

    def log_prob() -> Tensor:
        with torch.no_grad():
            return module().normalize(exact_log_partition(module())).log_prob(v)

    before = log_prob()
    module.shift_offsets(**steps_for(module, "both"))
    torch.testing.assert_close(log_prob(), before, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", CONTINUOUS)
def test_precisions_do_not_drift(family):
    """A precision is stored by its logarithm; log(exp(x)) differs from x in the last bit."""
    module = make_module((family, family), centered=True, dtype=torch.float32)
    with torch.no_grad():
        for layer in (module.visible, module.hidden):
            layer.log_precision.copy_(torch.tensor([0.1, -2.7]))
    assert not torch.equal(module.visible.log_precision.exp().log(), module.visible.log_precision)
    before = state_of(module)
    for _ in range(3):
        module.shift_offsets(torch.ones(2), -torch.ones(2))
    for side in ("visible", "hidden"):
        name = f"{side}.log_precision"
        assert torch.equal(module.state_dict()[name], before[name])


def test_shift_offsets_leaves_no_graph():
    module = random_module(("bernoulli", "bernoulli"), centered=True)
    step = torch.ones(3, dtype=torch.float64, requires_grad=True)
    module.shift_offsets(step, step)
    assert not module.visible_offset.requires_grad and not module.hidden_offset.requires_grad
    assert all(p.is_leaf and p.grad is None for p in module.parameters())


def test_without_steps_nothing_moves():
    module = random_module(("bernoulli", "bernoulli"), centered=True)
    before = state_of(module)
    module.shift_offsets()
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_a_module_without_offsets_is_refused():
    module = random_module(("bernoulli", "bernoulli"))
    with pytest.raises(ValueError, match="no offsets; make it with centered=True"):
        module.shift_offsets(torch.zeros(3))


@pytest.mark.parametrize(
    "steps", [{"visible_step": torch.zeros(4)}, {"hidden_step": torch.zeros(2)}], ids=str
)
def test_steps_of_a_wrong_size_change_nothing(steps):
    module = make_module(("bernoulli", "bernoulli"), centered=True, dtype=torch.float32)
    before = state_of(module)
    with pytest.raises((RuntimeError, ValueError)):
        module.shift_offsets(**steps)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
