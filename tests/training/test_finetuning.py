# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Fine-tuning: single steps by hand, the best weights at the end, runs that go on as if never stopped."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from pyro_ebm.nn import ModelFileError
from pyro_ebm.training import TrainingDivergedError
from pyro_ebm.training.finetuning import FeedForwardClassifier, FineTuneConfig, FineTuner
from pyro_ebm.training.finetuning.averaging import WeightAverage
from pyro_ebm.training.finetuning.progress import Progress
from pyro_ebm.training.finetuning.tuner import FineTuner as Tuner


def make_data(num_rows=60, seed=0):
    """Three classes, by the largest of the first three inputs, with a fifth of the labels wrong."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(num_rows, 5, generator=generator, dtype=torch.float64)
    y = x[:, :3].argmax(1)
    wrong = torch.rand(num_rows, generator=generator) < 0.2
    return x, torch.where(wrong, (y + 1) % 3, y)


X, Y = make_data()
X_VALIDATION, Y_VALIDATION = make_data(30, 1)


def make_classifier(seed=0, **options):
    return FeedForwardClassifier.random((5, 6, 4), 3, seed=seed, dtype=torch.float64, **options)


def make_config(**options):
    base = {"max_epochs": 4, "batch_size": 25, "learning_rate": 0.05, "seed": 1, "progress": False}
    return FineTuneConfig(**{**base, **options})


def fit(classifier=None, validation=True, **options):
    classifier = make_classifier() if classifier is None else classifier
    tuner = FineTuner(classifier, make_config(**options))
    tuner.fit(X, Y, *((X_VALIDATION, Y_VALIDATION) if validation else ()))
    return tuner


def weights_of(classifier):
    return {name: p.detach().clone() for name, p in classifier.named_parameters()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def test_one_step_by_hand():
    classifier = make_classifier()
    start = weights_of(classifier)
    cross_entropy(classifier(X), Y, label_smoothing=0.1).backward()
    gradients = {name: p.grad.clone() for name, p in classifier.named_parameters()}
    factors = {"layers.0": 0.1, "layers.1": 0.5, "head": 1.0}
    fit(
        classifier,
        validation=False,
        max_epochs=1,
        batch_size=100,
        optimizer="sgd",
        rate_factors=tuple(factors.values()),
        weight_decay=0.3,
        label_smoothing=0.1,
    )
    for name, after in weights_of(classifier).items():
        factor = next(f for layer, f in factors.items() if name.startswith(layer))
        decay = 0.3 * start[name] if name.endswith("weight") else 0.0
        expected = start[name] - 0.05 * factor * (gradients[name] + decay)
        torch.testing.assert_close(after, expected, rtol=1e-12, atol=1e-12)


def test_layers_of_rate_0_stay():
    classifier = make_classifier()
    classifier.layers[1].weight.requires_grad_(False)
    start = weights_of(classifier)
    fit(classifier, rate_factors=(0.0, 0.0, 1.0), averaging=0.9)
    after = weights_of(classifier)
    assert [n for n in start if torch.equal(start[n], after[n])] == [
        n for n in start if n.startswith("layers")
    ]
    # What is trained is an affair of the run, not of the classifier.
    assert not classifier.layers[1].weight.requires_grad
    assert classifier.layers[0].weight.requires_grad
    assert all(p.grad is None for p in classifier.parameters())


@pytest.mark.parametrize("monitor", ["accuracy", "loss"])
@pytest.mark.parametrize("averaging", [0.0, 0.5])
def test_best_weights_are_restored(monitor, averaging):
    """Validation labels that are all wrong: what is learnt makes the result worse."""
    wrong = (X_VALIDATION[:, :3].argmax(1) + 1) % 3
    config = make_config(max_epochs=12, monitor=monitor, averaging=averaging, patience=None)
    tuner = FineTuner(make_classifier(), config)
    tuner.fit(X, Y, X_VALIDATION, wrong)
    results = [(r["validation_accuracy"], -r["validation_loss"]) for r in tuner.history]
    if monitor == "loss":
        results = [result[1:] for result in results]
    assert len(results) == 12
    assert max(results) > results[-1]
    assert tuner.progress.best_epoch == results.index(max(results)) + 1
    best = tuner.history[tuner.progress.best_epoch - 1]
    assert tuner.classifier.accuracy(X_VALIDATION, wrong) == best["validation_accuracy"]
    loss = cross_entropy(tuner.classifier.predict_log_proba(X_VALIDATION), wrong)
    assert loss.item() == pytest.approx(best["validation_loss"], rel=1e-12)


def test_early_stopping():
    tuner = fit(max_epochs=1000, learning_rate=1.0, patience=3)
    assert len(tuner.history) == tuner.progress.best_epoch + 3 < 1000
    before = len(tuner.history)
    assert len(tuner.fit(X, Y, X_VALIDATION, Y_VALIDATION)) == before


def test_without_validation_the_last_weights_stay():
    tuner = fit(validation=False, max_epochs=3)
    assert len(tuner.history) == 3 and "validation_loss" not in tuner.history[0]
    averaged = fit(validation=False, max_epochs=3, averaging=0.9)
    assert_same(weights_of(averaged.classifier), averaged._average.values)
    difference = tuner.classifier.head.weight - averaged.classifier.head.weight
    assert difference.abs().max() > 1e-3


def test_average_by_hand():
    module = torch.nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        module.weight.fill_(1.0)
    average = WeightAverage(module, 0.25)
    expected = 1.0
    for t, value in enumerate((2.0, 5.0, -1.0, 3.0), start=1):
        with torch.no_grad():
            module.weight.fill_(value)
        average.update(module)
        decay = min(0.25, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * value
    assert average.values["weight"].item() == pytest.approx(expected, rel=1e-12)


def test_learns():
    config = make_config(max_epochs=15, learning_rate_schedule="cosine", patience=None)
    tuner = FineTuner(make_classifier(), config)
    tuner.fit(*make_data(1000, 3), X_VALIDATION, Y_VALIDATION)
    # Four fifths of the labels are those of the rule.
    assert 0.7 < tuner.classifier.accuracy(*make_data(2000, 2)) < 0.85
    assert tuner.history[0]["loss"] > tuner.history[-1]["loss"]


def test_schedules():
    config = make_config(learning_rate_schedule="cosine", max_epochs=4)
    progress = Progress()
    assert progress.rate(config, 0.0) == 1.0
    assert progress.rate(config, 2.0) == pytest.approx(0.5)
    assert progress.rate(config, 3.0) == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))
    config = make_config(learning_rate_schedule="plateau", plateau_patience=2, plateau_factor=0.1)
    rates = []
    for epoch, loss in enumerate([3.0, 2.0, 2.5, 2.5, 2.5, 2.5, 1.0], start=1):
        progress.epoch = epoch
        progress.update(config, {"validation_loss": loss, "validation_accuracy": 0.5})
        rates.append(progress.rate(config, 0.0))
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert progress.best_epoch == 7
    tuner = fit(learning_rate_schedule="plateau", plateau_patience=1, max_epochs=12, patience=None)
    # Every epoch that is no better than the best one so far cuts the rate of the next one.
    rate, best = 0.05, math.inf
    for record in tuner.history:
        assert record["rate"] == pytest.approx(rate)
        result = (-record["validation_accuracy"], record["validation_loss"])
        rate, best = (rate, result) if best == math.inf or result < best else (0.2 * rate, best)
    assert rate < 0.05


NOISY = {
    "adam": {},
    "noise": {"noise_std": 0.1, "averaging": 0.8, "learning_rate_schedule": "cosine"},
    "bits": {"binarize": True, "optimizer": "sgd", "optimizer_options": {"momentum": 0.9}},
}


@pytest.mark.parametrize("options", NOISY.values(), ids=NOISY)
def test_reproducible(options):
    first, same = (
        fit(make_classifier(dropout=0.3, input_dropout=0.1), **options) for _ in range(2)
    )
    assert_same(weights_of(first.classifier), weights_of(same.classifier))
    torch.rand(3)  # The global generator plays no part.
    other = fit(make_classifier(dropout=0.3, input_dropout=0.1), **{**options, "seed": 2})
    assert not torch.equal(first.classifier.head.weight, other.classifier.head.weight)


@pytest.mark.parametrize("options", NOISY.values(), ids=NOISY)
def test_resume_is_exact(tmp_path, monkeypatch, options):
    options = {**options, "max_epochs": 6, "patience": None, "rate_factors": (0.1, 0.0, 1.0)}
    whole = fit(make_classifier(dropout=0.3), **options)
    path = tmp_path / "run" / "state.safetensors"
    evaluate = Tuner._evaluate

    def interrupted(self, rows):
        if self.progress.epoch == 4:
            raise KeyboardInterrupt
        return evaluate(self, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tuner, "_evaluate", interrupted)
        fit(make_classifier(dropout=0.3), checkpoint=path, **options)
    resumed = FineTuner.from_checkpoint(path, make_classifier(seed=9, dropout=0.3))
    assert resumed.progress.epoch == 3
    resumed.fit(X, Y, X_VALIDATION, Y_VALIDATION)
    assert_same(weights_of(resumed.classifier), weights_of(whole.classifier))
    keys = set(whole.history[0]) - {"seconds"}
    assert [{k: r[k] for k in keys} for r in resumed.history] == [
        {k: r[k] for k in keys} for r in whole.history
    ]


def test_extra_inputs_are_data():
    """They are computed once, of inputs without noise, and again for other rows."""
    calls = []

    def top(v):
        calls.append(len(v))
        return v[:, :4].round()

    weights = [torch.rand(5, 6).double(), torch.rand(6, 4).double()]
    biases = [torch.zeros(6).double(), torch.zeros(4).double()]
    classifier = FeedForwardClassifier.from_weights(weights, biases, 3, extra_inputs=top, seed=0)
    fit(classifier, noise_std=0.5, max_epochs=3)
    assert calls == [60, 30]
    assert 0 <= classifier.accuracy(X, Y) <= 1 and calls[-1] == 60


def test_damaged_checkpoints(tmp_path):
    path = tmp_path / "state.safetensors"
    fit(checkpoint=path)
    with pytest.raises(ModelFileError, match="other names or shapes"):
        other = FeedForwardClassifier.random((5, 7, 4), 3, dtype=torch.float64)
        FineTuner.from_checkpoint(path, other)
    with pytest.raises(ValueError, match="max_epochs"):
        FineTuner.from_checkpoint(path, make_classifier(), max_epochs=0)
    with pytest.raises(FileNotFoundError):
        FineTuner.from_checkpoint(tmp_path / "none", make_classifier())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError):
        FineTuner.from_checkpoint(path, make_classifier())


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 0},
        {"batch_size": 1.5},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"rate_factors": (0.0, 0.0)},
        {"rate_factors": (-1.0, 1.0)},
        {"rate_factors": 0.1},
        {"optimizer": "nothing"},
        {"optimizer": "lbfgs"},
        {"optimizer_options": 3},
        {"learning_rate_schedule": "linear"},
        {"plateau_factor": 1.0},
        {"plateau_patience": 0},
        {"weight_decay": -1},
        {"label_smoothing": 1.0},
        {"averaging": 1.0},
        {"binarize": 1},
        {"noise_std": -0.1},
        {"monitor": "f1"},
        {"patience": 0},
        {"seed": -1},
        {"checkpoint": 3},
    ],
    ids=str,
)
def test_impossible_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        FineTuneConfig(**options)


def test_config_as_json():
    config = make_config(rate_factors=[0.1, 1], optimizer_options={"betas": [0.9, 0.99]})
    assert FineTuneConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="unknown options"):
        FineTuneConfig.from_dict({"epochs": 3})


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ((X.numpy(), Y), TypeError, "x must be a tensor"),
        ((X, Y.tolist()), TypeError, "y must be a tensor"),
        ((X[:, :4], Y), ValueError, r"x must have shape \(rows >= 1, 5\)"),
        ((X, Y[:-1]), ValueError, r"y must be whole numbers of shape \(60,\)"),
        ((X, Y.double()), ValueError, "y must be whole numbers"),
        ((X, Y + 1), ValueError, r"y must be in \[0, 3\)"),
        ((X * torch.nan, Y), ValueError, "x holds NaN"),
        ((X, Y, X), TypeError, "y_validation must be a tensor"),
        ((X, Y, X, Y - 1), ValueError, r"y_validation must be in"),
    ],
)
def test_impossible_data(arguments, error, match):
    with pytest.raises(error, match=match):
        FineTuner(make_classifier(), make_config()).fit(*arguments)


def test_other_refusals():
    with pytest.raises(TypeError, match="FeedForwardClassifier"):
        FineTuner(torch.nn.Linear(2, 2), make_config())
    with pytest.raises(ValueError, match="rate_factors must have 3 entries"):
        FineTuner(make_classifier(), make_config(rate_factors=(0.1, 1)))
    with pytest.raises(ValueError, match="optimizer_options of 'sgd'"):
        FineTuner(
            make_classifier(), make_config(optimizer="sgd", optimizer_options={"momentun": 0.9})
        )
    with pytest.raises(ValueError, match="plateau"):
        fit(validation=False, learning_rate_schedule="plateau")
    with pytest.raises(ValueError, match=r"x must be in \[0, 1\]"):
        FineTuner(make_classifier(), make_config(binarize=True)).fit(X - 1, Y)
    with pytest.raises(TrainingDivergedError, match="learning_rate"):
        classifier = make_classifier(hidden="gaussian")
        fit(classifier, optimizer="sgd", learning_rate=1e200)


@pytest.mark.parametrize(
    "changes",
    [{"rate_factors": (1.0, 1.0, 1.0)}, {"optimizer": "sgd"}, {"averaging": 0.9}],
    ids=str,
)
def test_what_belongs_to_other_options_starts_anew(tmp_path, changes):
    """Moments of other layers or another optimiser are nobody's; the weights go on."""
    path = tmp_path / "run"
    first = {"checkpoint": path, "rate_factors": (0.0, 0.5, 1.0), "optimizer": "adam"}
    fit(validation=False, max_epochs=2, **first)
    tuner = FineTuner.from_checkpoint(path, make_classifier(seed=9), max_epochs=4, **changes)
    start = weights_of(tuner.classifier)
    assert len(tuner.fit(X, Y)) == 4
    end = weights_of(tuner.classifier)
    assert all(torch.isfinite(value).all() for value in end.values())
    assert not torch.equal(start["head.weight"], end["head.weight"])


def test_a_run_with_validation_rows_goes_on_with_them(tmp_path):
    path = tmp_path / "run"
    fit(max_epochs=2, checkpoint=path)
    tuner = FineTuner.from_checkpoint(path, make_classifier(), max_epochs=4)
    with pytest.raises(ValueError, match="go on with x_validation and y_validation"):
        tuner.fit(X, Y)
    assert len(tuner.fit(X, Y, X_VALIDATION, Y_VALIDATION)) == 4
