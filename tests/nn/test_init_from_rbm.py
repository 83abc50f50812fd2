# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""An RBM that continues another one: the same distribution, by sums over all states."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.infer import exact_log_partition
from tests.distributions.families import DISCRETE, PAIR_IDS, PAIRS, some_states
from tests.training.machines import (
    LAYERS,
    assert_same_state,
    make_module,
    random_module,
    state_of,
    to_machine,
)

every_pair = pytest.mark.parametrize("pair", PAIRS, ids=PAIR_IDS)
centred_or_not = pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def unchanged(module: nn.RBM, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def relative_free_energy(module: nn.RBM, v: Tensor) -> Tensor:
    """Free energies up to the constant that normalisation removes."""
    free_energy = module().free_energy(v).detach()
    return free_energy - free_energy[0]


def states_of(module: nn.RBM, count: int = 8) -> Tensor:
    return torch.as_tensor(some_states(to_machine(module).visible, count))


def normalised(module: nn.RBM, v: Tensor) -> Tensor:
    with torch.no_grad():
        return module().normalize(exact_log_partition(module())).log_prob(v)


@every_pair
@pytest.mark.parametrize("own", [False, True], ids=["to plain", "to centred"])
@pytest.mark.parametrize("theirs", [False, True], ids=["from plain", "from centred"])
def test_the_same_distribution_whatever_the_centring(pair, own, theirs):
    other = random_module(pair, centered=theirs)
    module = random_module(pair, centered=own)
    before = state_of(other)
    assert module.init_from_rbm(other) is module
    v = states_of(other)
    close(relative_free_energy(module, v), relative_free_energy(other, v), 1e-11)
    assert unchanged(other, before)
    if own == theirs:
        assert_same_state(module, other)
    if set(pair) & set(DISCRETE):
        close(normalised(module, v), normalised(other, v), 1e-12)


def test_precisions_may_be_learnt_or_not():
    other = random_module(("gaussian", "bernoulli"), centered=True)
    module = make_module(("gaussian", "bernoulli"), learn_precision=True).init_from_rbm(other)
    v = states_of(other)
    close(normalised(module, v), normalised(other, v), 1e-12)
    assert "visible.log_precision" in dict(module.named_parameters())


def larger(family: str, extra: int, **options) -> nn.RBM:
    size, required = LAYERS[family]
    return nn.RBM(
        3,
        size + extra,
        "bernoulli",
        family,
        hidden_options=required,
        dtype=torch.float64,
        **options,
    )


@pytest.mark.parametrize("family", [f for f in LAYERS if f != "multinomial"])
@pytest.mark.parametrize("own", [False, True], ids=["to plain", "to centred"])
@pytest.mark.parametrize("theirs", [False, True], ids=["from plain", "from centred"])
def test_further_units_without_weights_leave_the_distribution(family, own, theirs):
    other = random_module(("bernoulli", family), centered=theirs)
    module = larger(family, 3, centered=own)
    with torch.no_grad():
        getattr(module.hidden, "loc" if family == "gaussian" else "bias").uniform_(-1.0, 1.0)
    alone = larger(family, 3, weight_scale=0.0)
    alone.hidden.load_state_dict(module.hidden.state_dict())
    module.init_from_rbm(other, extra_scale=0.0)
    v = states_of(other)
    close(normalised(module, v), normalised(other, v), 1e-12)
    # Z is multiplied by that of the further units, those that the layer had already.
    known = other.weight.shape[1]
    unit = alone().hidden.select(torch.arange(known + 3) >= known)
    plain = (make_module(("bernoulli", family)).init_from_rbm(other), larger(family, 3))
    plain[1].hidden.load_state_dict(alone.hidden.state_dict())
    plain[1].init_from_rbm(plain[0], extra_scale=0.0)
    growth = exact_log_partition(plain[1]()) - exact_log_partition(plain[0]())
    close(growth.detach(), unit.log_partition().detach(), 1e-12)


@pytest.mark.parametrize(
    ("family", "variance"), [("bernoulli", 0.25), ("ising", 1.0), ("gaussian", 1.0)]
)
@centred_or_not
def test_further_units_change_the_distribution_to_second_order(family, variance, centered):
    other = random_module(("bernoulli", family), centered=True)
    module = larger(family, 2, centered=centered)
    module.init_from_rbm(other, extra_scale=0.1, seed=3)
    known = other.weight.shape[1]
    extra = module.weight.detach()[:, known:]
    assert 0.03 < extra.std() < 0.3
    v = torch.tensor(np.array(list(np.ndindex(2, 2, 2)))).double()
    change = (module().free_energy(v) - other().free_energy(v)).detach()
    reference = module.visible_offset if centered else torch.zeros(3).double()
    bound = (0.5 * variance * ((v - reference) @ extra).square()).sum(-1)
    # Where the further units have no field the change is the constant.
    at_reference = (module().free_energy(reference) - other().free_energy(reference)).detach()
    assert bool(((change - at_reference).abs() <= bound + 1e-12).all())
    if family == "gaussian":
        close(at_reference - change, bound, 1e-12)
    again = larger(family, 2, centered=centered).init_from_rbm(other, extra_scale=0.1, seed=3)
    assert torch.equal(again.weight, module.weight)


def test_further_units_have_the_scale_of_the_module():
    module = nn.RBM(400, 60, weight_scale=0.5, seed=0)
    module.init_from_rbm(nn.RBM(400, 10, seed=1), seed=2)
    # 20,000 draws: the standard error of the deviation is 0.0025.
    assert abs(module.weight[:, 10:].std().item() - 0.5) < 0.015


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.RBM(3, 3, "ising"), "the visible layer is bernoulli, that of the other machine ising"),
        (nn.RBM(4, 3), "the other machine has 4 visible entries, this one 3"),
        (nn.RBM(3, 5), "the other machine has 5 hidden entries, more than 3"),
        (
            nn.RBM(3, 3, hidden="categorical", hidden_options={"num_states": 3}),
            "the hidden layer is bernoulli, that of the other machine categorical",
        ),
    ],
    ids=["family", "visible", "fewer", "hidden"],
)
def test_machines_that_do_not_fit_change_nothing(other, message):
    module = random_module(("bernoulli", "bernoulli"), centered=True)
    before = state_of(module)
    with pytest.raises(ValueError, match=message):
        module.init_from_rbm(other)
    assert unchanged(module, before)


def test_options_must_agree():
    module = nn.RBM(6, 4, "categorical", visible_options={"num_states": 3})
    with pytest.raises(ValueError, match=r"num_states of the visible layer is 3, .* machine 2"):
        module.init_from_rbm(nn.RBM(6, 4, "categorical", visible_options={"num_states": 2}))
    counts = nn.RBM(3, 4, hidden="multinomial", hidden_options={"total_count": 2})
    with pytest.raises(
        ValueError, match=r"one unit, to which none can be added: .* 3 states, this one 4"
    ):
        counts.init_from_rbm(nn.RBM(3, 3, hidden="multinomial", hidden_options={"total_count": 2}))
    with pytest.raises(TypeError, match=r"other must be a pyro_ebm.nn.RBM, got RBM"):
        module.init_from_rbm(module())
    with pytest.raises(ValueError, match="extra_scale must be a number >= 0, got -1"):
        module.init_from_rbm(module, extra_scale=-1)


def test_blocks_of_a_layer_of_two_families_must_agree():
    module, other = nn.ClassificationRBM(3, 4, 3), nn.ClassificationRBM(4, 4, 2)
    with pytest.raises(
        ValueError, match=r"the blocks of the visible layers .* differ in their sizes"
    ):
        module.init_from_rbm(other)
    own = nn.ClassificationRBM(3, 4, 3, centered=True).init_from_rbm(module)
    x = torch.bernoulli(torch.full((5, 3), 0.5))
    close(own.log_class_probabilities(x), module.log_class_probabilities(x), 1e-5)


def test_machines_of_another_type():
    other = nn.RBM(5, 3, "gaussian", seed=1, dtype=torch.float64)
    module = nn.RBM(5, 3, "gaussian", centered=True, seed=2).init_from_rbm(other)
    assert module.weight.dtype == torch.float32
    assert all(p.requires_grad and p.is_leaf for p in module.parameters())
    assert_same_state(module, module.init_from_rbm(module))
