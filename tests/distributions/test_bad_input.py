# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Errors name the argument, what was got and what is expected. (Of clamp: test_clamp.py.)"""

import math

import pytest
import torch

from pyro_ebm.distributions import RBM, BernoulliRBM, GaussianBernoulliRBM, IsingRBM, units

V, H = 4, 3


def bits(n: int, *batch: int) -> units.Bernoulli:
    return units.Bernoulli(torch.zeros(*batch, n))


def make(**changes):
    arguments = {"visible": bits(V), "hidden": bits(H), "weight": torch.zeros(V, H), **changes}
    return RBM(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"visible": torch.zeros(V)}, TypeError, "visible must be a .*units.Unit, got tensor"),
        ({"hidden": None}, TypeError, "hidden must be a .*units.Unit, got None"),
        ({"weight": torch.zeros(V)}, ValueError, r"weight must be a tensor of shape .*V, H.*got"),
        ({"weight": [[0.0]]}, ValueError, r"weight must be a tensor of shape .* got \[\[0.0\]\]"),
        ({"visible": bits(5)}, ValueError, r"visible layer has 5 .* weight \(4, 3\) expects 4"),
        ({"hidden": bits(2)}, ValueError, r"hidden layer has 2 .* weight \(4, 3\) expects 3"),
        ({"weight": torch.zeros(H, V)}, ValueError, r"visible layer has 4 .* \(3, 4\) expects 3"),
        ({"visible_offset": torch.zeros(2)}, ValueError, "visible_offset has 2 .* expects 4"),
        ({"hidden_offset": torch.zeros(4)}, ValueError, "hidden_offset has 4 .* expects 3"),
        ({"visible_offset": torch.tensor(0.5)}, ValueError, "visible_offset must be a tensor of"),
        ({"hidden_offset": [0.0] * H}, ValueError, "hidden_offset must be a tensor of .* got"),
        ({"visible_offset": torch.full((V,), math.nan)}, ValueError, "visible_offset .* NaN"),
        ({"hidden_offset": torch.full((H,), math.nan)}, ValueError, "hidden_offset .* NaN"),
        ({"weight": torch.full((V, H), math.nan)}, ValueError, "parameter weight .*nan"),
        ({"num_gibbs_steps": 0}, ValueError, "num_gibbs_steps must be at least 1, got 0"),
        ({"log_partition": math.nan}, ValueError, "log_partition is NaN"),
        ({"log_partition": torch.zeros(2)}, ValueError, r"log_partition of shape \(2,\) .* \(\)"),
        (
            {"visible": bits(V, 2), "hidden": bits(H, 3)},
            ValueError,
            r"batch shapes of visible, hidden, weight .* \[\(2,\), \(3,\), \(\)\]",
        ),
    ],
)
def test_constructor(changes, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        make(**changes)


def test_nan_is_accepted_where_validation_is_off():
    nan = torch.full((V,), math.nan)
    assert make(visible_offset=nan, validate_args=False).event_shape == (V,)
    weight = torch.full((V, H), math.nan)
    assert make(weight=weight, validate_args=False).event_shape == (V,)


@pytest.mark.parametrize("cls", [BernoulliRBM, IsingRBM])
@pytest.mark.parametrize("name", ["weight", "visible_bias", "hidden_bias"])
def test_presets_name_nan_parameters(cls, name):
    arguments = {
        "weight": torch.zeros(V, H),
        "visible_bias": torch.zeros(V),
        "hidden_bias": torch.zeros(H),
    }
    arguments[name] = torch.full_like(arguments[name], math.nan)
    with pytest.raises(ValueError, match=f"(?s){name.split('_')[-1]}.*nan"):
        cls(**arguments)
    assert cls(**arguments, validate_args=False).event_shape == (V,)


@pytest.mark.parametrize(
    ("name", "bad"), [("precision", 0.0), ("precision", -1.0), ("loc", math.nan)]
)
def test_gaussian_preset_names_bad_parameters(name, bad):
    arguments = {"loc": torch.zeros(V), "precision": torch.ones(V)}
    arguments[name] = torch.full((V,), bad)
    with pytest.raises(ValueError, match=f"{name} must be .*{bad}"):
        GaussianBernoulliRBM(torch.zeros(V, H), **arguments, hidden_bias=torch.zeros(H))


@pytest.mark.parametrize(
    ("unit", "outside"),
    [
        (bits(V), [0.0, 1.0, 0.5, 0.0]),
        (bits(V), [0.0, 1.0, 2.0, 0.0]),
        (bits(V), [0.0, math.nan, 1.0, 0.0]),
        (units.Ising(torch.zeros(V)), [0.0, 1.0, -1.0, 1.0]),
        (units.Ising(torch.zeros(V)), [math.nan, 1.0, -1.0, 1.0]),
        (units.Categorical(torch.zeros(2, 2)), [1.0, 0.0, 1.0, 1.0]),
        (units.Categorical(torch.zeros(2, 2)), [1.0, 0.0, 0.0, 0.0]),
        (units.Categorical(torch.zeros(2, 2)), [1.0, 0.0, 0.5, 0.5]),
        (units.Categorical(torch.zeros(2, 2)), [1.0, 0.0, 2.0, -1.0]),
        (units.Categorical(torch.zeros(2, 2)), [1.0, 0.0, math.nan, 1.0]),
        (units.Multinomial(torch.zeros(V), 3), [1.0, 1.0, 0.0, 0.0]),
        (units.Multinomial(torch.zeros(V), 3), [4.0, -1.0, 0.0, 0.0]),
        (units.Multinomial(torch.zeros(V), 3), [1.5, 1.5, 0.0, 0.0]),
        (units.Multinomial(torch.zeros(V), 3), [3.0, math.nan, 0.0, 0.0]),
        (units.Gaussian(torch.zeros(V), 1.0), [0.0, math.nan, 0.0, 0.0]),
        (units.ReLU(torch.zeros(V), 1.0), [1.0, -1e-6, 0.0, 0.0]),
        (units.ReLU(torch.zeros(V), 1.0), [1.0, math.nan, 0.0, 0.0]),
    ],
)
def test_values_outside_of_the_support(unit, outside):
    value = torch.tensor(outside)
    with pytest.raises(ValueError, match=r"(?s)within the support .* but found invalid values"):
        make(visible=unit).log_prob(value)
    # Off means off: no check, no error.
    make(visible=unit, validate_args=False).log_prob(value)


def test_shapes_of_values():
    rbm = make()
    with pytest.raises(ValueError, match=r"value must have shape \(..., 4\), got \(3,\)"):
        rbm.free_energy(torch.zeros(3))
    with pytest.raises(ValueError, match=r"v must have shape \(..., 4\), got \(\)"):
        rbm.hidden_given(torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"h must have shape \(..., 3\), got \(2, 4\)"):
        rbm.visible_given(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"h must have shape \(..., 3\), got \(1,\)"):
        rbm.energy(torch.zeros(4), torch.zeros(1))
    with pytest.raises(ValueError, match=r"v must have shape \(..., 4\), got \(1,\)"):
        rbm.energy(torch.zeros(1), torch.zeros(3))
