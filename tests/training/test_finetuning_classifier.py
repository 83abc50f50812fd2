# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Classifiers that start as Boltzmann machines compute the means of these machines."""

import pytest
import torch

from pyro_ebm import nn
from pyro_ebm.nn.tied_rbm import TiedRBM
from pyro_ebm.training.finetuning import (
    FeedForwardClassifier,
    FineTuneConfig,
    FineTuner,
    MeanFieldInputs,
    MeanLayer,
)
from tests.distributions.families import FAMILIES, uniform
from tests.training.machines import random_module


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def expected_mean(module: nn.RBM, v):
    dist = module()
    return dist.hidden.mean(dist.hidden_field(v))


def two_layers(extra_inputs=True, **options):
    """A deep machine of 4, 3 and 2 units."""
    weights = [uniform((4, 3), -1, 1), uniform((3, 2), -1, 1)]
    biases = [uniform((3,), -1, 1), uniform((2,), -1, 1)]
    classifier = FeedForwardClassifier.from_weights(
        weights, biases, 5, extra_inputs=extra_inputs, seed=0, **options
    )
    return classifier, weights, biases


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_layer_is_the_hidden_mean(family, centered):
    module = random_module(("bernoulli", family), centered=centered)
    layer = MeanLayer.from_rbm(module)
    v = torch.bernoulli(torch.full((7, 3), 0.5, dtype=torch.float64))
    close(layer(v), expected_mean(module, v))
    # Precisions that are learnt come too, and the machine is not changed by what the layer becomes.
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_parameter(family):
    module = random_module(("bernoulli", family), learn_precision=True, centered=True)
    layer = MeanLayer.from_rbm(module)
    v = uniform((4, 3), 0, 1)
    parameters = dict(layer.named_parameters())

    def outputs(*values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (v,))

    assert torch.autograd.gradcheck(outputs, tuple(parameters.values()))


def test_stack_of_machines():
    first = random_module(("bernoulli", "ising"), centered=True)
    second = random_module(("gaussian", "bernoulli"), centered=True, seed=1)
    middle = nn.RBM(3, 2, "ising", "gaussian", centered=True, seed=2, dtype=torch.float64)
    classifier = FeedForwardClassifier.from_rbms([first, middle, second], 4, seed=3)
    v = torch.bernoulli(torch.full((6, 3), 0.5, dtype=torch.float64))
    top = v
    for module in (first, middle, second):
        top = expected_mean(module, top)
    logits = top @ classifier.head.weight.T + classifier.head.bias
    close(classifier(v), logits)
    close(classifier.predict_log_proba(v), logits.log_softmax(-1))
    assert torch.equal(classifier.predict(v), logits.argmax(-1))
    assert classifier.accuracy(v, logits.argmax(-1)) == 1.0
    assert classifier.num_visible == 3 and classifier.num_classes == 4


def test_one_machine_is_a_stack():
    module = random_module(("bernoulli", "bernoulli"))
    v = uniform((5, 3), 0, 1)
    one = FeedForwardClassifier.from_rbms(module, 3, seed=0)
    close(one(v), FeedForwardClassifier.from_rbms([module], 3, seed=0)(v))


def test_random_weights_are_glorots():
    classifier = FeedForwardClassifier.random((300, 200), 10, seed=0, dtype=torch.float64)
    weight = classifier.layers[0].weight
    bound = (6 / 500) ** 0.5
    assert weight.abs().max() <= bound
    # The variance of a uniform law, whose square has a standard deviation of 0.89 of its mean.
    error = 0.9 * bound**2 / 3 / weight.numel() ** 0.5
    assert abs(weight.square().mean() - bound**2 / 3) < 6 * error
    assert classifier.layers[0].preactivation(torch.zeros(1, 300).double()).abs().max() == 0
    other = FeedForwardClassifier.random((300, 200), 10, seed=0, dtype=torch.float64)
    assert torch.equal(other.head.weight, classifier.head.weight)
    assert not torch.equal(
        FeedForwardClassifier.random((300, 200), 10, seed=1).head.weight, classifier.head.weight
    )


def test_extra_inputs_that_are_given():
    q = uniform((6, 2), 0, 1)
    classifier, (w1, w2), (b1, b2) = two_layers(extra_inputs=lambda v: q)
    v = uniform((6, 4), 0, 1)
    field = classifier.layers[0].preactivation(torch.cat([v, q], 1))
    close(field, v @ w1 + q @ w2.T + b1)
    hidden = torch.sigmoid(torch.sigmoid(field) @ w2 + b2)
    close(classifier(v), hidden @ classifier.head.weight.T + classifier.head.bias)
    close(classifier(v, q), classifier(v))
    assert classifier.num_visible == 4


def test_extra_inputs_of_the_mean_field():
    classifier, (w1, w2), (b1, b2) = two_layers()
    mean_field = classifier.extra_inputs
    mean_field.max_updates, mean_field.tolerance = 10_000, 1e-13
    v = uniform((6, 4), 0, 1)
    q2 = classifier.extra(v)
    # A fixed point of both updates; the first layer then computes q(h1 | v) of the deep machine.
    q1 = torch.sigmoid(v @ w1 + q2 @ w2.T + b1)
    close(torch.sigmoid(q1 @ w2 + b2), q2)
    close(classifier.layers[0](torch.cat([v, q2], 1)), q1)
    assert "extra_inputs.weight_1" in classifier.state_dict()
    assert all("extra_inputs" not in name for name, _ in classifier.named_parameters())


def random_dbm(sizes=(3, 3, 2), hidden="bernoulli", **options) -> nn.DBM:
    own = {"categorical": {"num_states": 3}, "multinomial": {"total_count": 3}}
    families = [hidden] * len(sizes) if isinstance(hidden, str) else hidden
    module = nn.DBM(
        4,
        list(sizes),
        hidden=families,
        hidden_options=[own.get(family, {}) for family in families],
        dtype=torch.float64,
        **options,
    )
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(uniform(tuple(tensor.shape), 0.2 if "precision" in name else -0.5, 0.5))
    return module


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(
    "hidden", ["bernoulli", ["ising", "categorical", "bernoulli"], ["relu", "ising", "multinomial"]]
)
def test_network_of_a_deep_machine_computes_its_mean_field(hidden, centered):
    """Layer by layer, at the fixed point: the network of section 3.3 at any depth."""
    module = random_dbm((3, 6, 3), hidden, centered=centered)
    classifier = FeedForwardClassifier.from_dbm(
        module, 5, mean_field_tolerance=1e-13, max_mean_field_updates=5000, seed=0
    )
    v = uniform((6, 4), 0, 1)
    found = module(validate_args=False).mean_field(v, tolerance=1e-13, max_updates=5000)
    extra = classifier.extra(v)
    close(extra, torch.cat(found.means[1:], -1))
    assert [layer.weight.shape for layer in classifier.layers] == [(10, 3), (6, 6), (6, 3)]
    x = torch.cat([v, extra[:, :6]], -1)
    for layer, mean, above in zip(
        classifier.layers, found.means, [extra[:, 6:], extra[:, :0], None], strict=True
    ):
        x = layer(x)
        torch.testing.assert_close(x, mean, rtol=1e-9, atol=1e-9)
        x = x if above is None else torch.cat([x, above], -1)
    close(classifier(v), classifier.head(found.means[2]))
    assert classifier.num_visible == 4
    # Parameters of the machine are no parameters of the network.
    assert all("extra_inputs" not in name for name, _ in classifier.named_parameters())
    with torch.no_grad():
        module.weights[1].add_(1.0)
    close(classifier.extra(v), extra)


@pytest.mark.parametrize("centered", [False, True])
def test_network_of_a_deep_machine_without_extra_inputs(centered):
    module = random_dbm((3, 2), centered=centered)
    classifier = FeedForwardClassifier.from_dbm(module, 5, extra_inputs=False, seed=0)
    v = uniform((6, 4), 0, 1)
    dist = module()
    form = dist.bipartite().canonical()
    first = torch.sigmoid(form.hidden_bias + v @ module.weights[0])
    second = torch.sigmoid(form.visible_bias[4:] + first @ module.weights[1])
    close(classifier(v), classifier.head(second))
    assert classifier.extra_inputs is None


def test_network_of_one_hidden_layer_is_that_of_the_rbm():
    module = random_dbm((3,), centered=True)
    classifier = FeedForwardClassifier.from_dbm(module, 5, seed=0)
    v = uniform((6, 4), 0, 1)
    close(classifier.layers[0](v), module.transform(v))
    assert classifier.extra_inputs is None


def test_extra_inputs_move_with_the_network():
    classifier = FeedForwardClassifier.from_dbm(random_dbm(), 5, seed=0)
    v = uniform((6, 4), 0, 1)
    expected = classifier(v)
    got = classifier.float()(v.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_averaged_weights_of_a_deep_start_are_validated():
    """Plain tensors stand in for the parameters then."""
    classifier = FeedForwardClassifier.from_dbm(random_dbm(), 2, seed=0)
    v, y = uniform((40, 4), 0, 1), torch.arange(40) % 2
    config = FineTuneConfig(max_epochs=2, averaging=0.9, seed=0, progress=False)
    history = FineTuner(classifier, config).fit(v, y, v, y)
    found = torch.nn.functional.cross_entropy(classifier(v), y).item()
    best = min(
        history, key=lambda record: (-record["validation_accuracy"], record["validation_loss"])
    )
    assert abs(best["validation_loss"] - found) < 1e-9


def test_dropout_of_extra_inputs_is_that_of_inputs():
    classifier = FeedForwardClassifier.from_dbm(random_dbm(), 2, input_dropout=0.99, seed=0).train()
    v = uniform((2000, 4), 0, 1)
    seen = []
    classifier.layers[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    classifier(v, generator=torch.Generator().manual_seed(0))
    assert (seen[0][:, :3] != 0).all()
    rate = (seen[0][:, 3:] != 0).double().mean().item()
    assert abs(rate - 0.01) < 6 * (0.01 * 0.99 / 4000) ** 0.5


def test_dropout_is_unbiased_and_only_in_training():
    weight = torch.eye(4, dtype=torch.float64)
    classifier = FeedForwardClassifier.from_weights(
        [weight], [torch.zeros(4).double()], 4, hidden="gaussian", input_dropout=0.3, dropout=0.4
    )
    with torch.no_grad():
        classifier.head.weight.copy_(weight)
    v = torch.ones(40_000, 4, dtype=torch.float64)
    close(classifier.eval()(v), v)
    generator = torch.Generator().manual_seed(0)
    x = classifier.train()(v, generator=generator).detach()
    kept = 0.7 * 0.6
    close(x.unique(), torch.tensor([0.0, 1 / kept], dtype=torch.float64))
    error = ((1 / kept - 1) / x.numel()) ** 0.5
    assert abs(x.mean() - 1.0) < 6 * error
    # Predictions leave the mode as it was.
    classifier.predict(v[:2])
    assert classifier.training


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: FeedForwardClassifier.from_rbms([], 3), ValueError, "at least one hidden"),
        (
            lambda: FeedForwardClassifier.from_rbms(torch.nn.Linear(2, 2), 3),
            TypeError,
            "Linear|iter",
        ),
        (lambda: FeedForwardClassifier.from_rbms([None], 3), TypeError, "NoneType"),
        (lambda: FeedForwardClassifier.random((3,), 3), ValueError, "sizes"),
        (lambda: FeedForwardClassifier.random((3, 0), 3), ValueError, "sizes"),
        (lambda: FeedForwardClassifier.random((3, 2), 1), ValueError, "num_classes"),
        (lambda: FeedForwardClassifier.random((3, 2), 3, dropout=1.0), ValueError, "dropout"),
        (lambda: FeedForwardClassifier.random((3, 2), 3, seed=-1), ValueError, "seed"),
        (lambda: FeedForwardClassifier.random((3, 2), 3, hidden="x"), ValueError, "unknown unit"),
        (
            lambda: FeedForwardClassifier.from_weights([torch.ones(3, 2)], [], 3),
            ValueError,
            "1 weights, but 0 biases",
        ),
        (
            lambda: FeedForwardClassifier.from_weights([torch.ones(3, 2)], [torch.ones(3)], 3),
            ValueError,
            "bias",
        ),
        (
            lambda: FeedForwardClassifier.from_weights(
                [torch.full((3, 2), torch.nan)], [torch.ones(2)], 3
            ),
            ValueError,
            "NaN",
        ),
        (
            lambda: FeedForwardClassifier.from_rbms([nn.RBM(3, 2), nn.RBM(3, 2)], 3),
            ValueError,
            "layer 0 has 2 outputs",
        ),
        (
            lambda: FeedForwardClassifier.from_rbms(nn.RBM(3, 2), 3, extra_inputs=True),
            ValueError,
            "two hidden layers",
        ),
        (lambda: two_layers(extra_inputs=3), TypeError, "extra_inputs"),
        (
            lambda: two_layers(extra_inputs=lambda v: v)[0].extra(torch.ones(2, 4)),
            ValueError,
            "extra",
        ),
        (lambda: two_layers()[0].predict(torch.ones(2, 3)), ValueError, "rows must have shape"),
        (
            lambda: two_layers()[0].accuracy(torch.ones(2, 4), torch.ones(3).long()),
            ValueError,
            "y must have shape",
        ),
        (lambda: FeedForwardClassifier.from_dbm(nn.RBM(3, 2), 3), TypeError, "nn.DBM"),
        (lambda: FeedForwardClassifier.from_rbms(TiedRBM(3, 2), 3), TypeError, "from_dbm"),
        (lambda: MeanFieldInputs(random_dbm((3,))()), ValueError, "two hidden layers"),
        (lambda: MeanFieldInputs(random_dbm()(), max_updates=0), ValueError, "max_updates"),
        (lambda: MeanFieldInputs(random_dbm()(), tolerance=-1.0), ValueError, "tolerance"),
        (
            lambda: FeedForwardClassifier(
                [
                    MeanLayer(torch.ones(5, 3)),
                    MeanLayer(torch.ones(3, 3)),
                    MeanLayer(torch.ones(3, 2)),
                ],
                3,
                extra_inputs=lambda v: v,
            ),
            ValueError,
            "layer 0 has 3 outputs, but layer 1 takes 1 inputs and 2 extra ones",
        ),
    ],
)
def test_refusals(make, error, match):
    with pytest.raises(error, match=match):
        make()
