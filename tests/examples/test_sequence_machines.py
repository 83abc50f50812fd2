# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Mixtures and chains of conditional machines: evidence against all paths, posteriors against Bayes' rule."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch import Generator, Tensor

from pyro_ebm.distributions import UnnormalizedGradientError

ROOT = Path(__file__).resolve().parent.parent.parent
ORDER, CHANNELS, HIDDEN, K = 2, 2, 2, 3


@pytest.fixture
def programs(load: Any) -> dict[str, Any]:
    """The example's modules: they find each other in their own folder."""
    names = ("machines", "models", "data", "start", "pictures")
    return {name: load(f"sequence_{name}") for name in names}


def regimes(programs: dict[str, Any], family: str, num_regimes: int = K) -> Any:
    """Random regimes, far from each other, in float64."""
    torch.set_default_dtype(torch.float64)
    generator = Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    root = normal(num_regimes, CHANNELS, CHANNELS)
    start = programs["start"].Autoregressions(
        0.4 * normal(num_regimes, CHANNELS, ORDER * CHANNELS),
        normal(num_regimes, CHANNELS),
        root @ root.mT + 0.3 * torch.eye(CHANNELS),
    )
    models = programs["models"]
    module = models.LinearRegimes(start)
    if family == "crbm":
        module = models.ConditionalMachines(module, HIDDEN, seed=1)
    with torch.no_grad():
        module.initial_logits.copy_(normal(num_regimes))
        module.transition_logits.copy_(normal(num_regimes, num_regimes))
        for name, parameter in module.named_parameters():
            # Hidden biases that matter.
            if "hidden_bias" in name or "weight.value" in name:
                parameter.copy_(normal(*parameter.shape))
    return module


def sequences(count: int = 2, length: int = 6) -> Tensor:
    return 1.5 * torch.randn(count, length, CHANNELS, generator=Generator().manual_seed(7))


def log_density(module: Any, k: int, history: Tensor, frame: Tensor) -> Tensor:
    """log p(frame | history) of one regime from its definition: all hidden states, and normal densities."""
    if not hasattr(module, "machines"):
        loc = module.weight[k] @ history + module.bias[k]
        root = module.lower[k].tril(-1) + module.log_scale[k].exp().diag()
        return torch.distributions.MultivariateNormal(loc, root @ root.T).log_prob(frame)
    own = module.machines[k]
    loc, precision = own.loc(history), own.log_precision(history).exp()
    factor = own.cov_factor(history).reshape(CHANNELS, CHANNELS - 1)
    covariance = factor @ factor.T + (1.0 / precision).diag()
    weight = own.weight(history) / CHANNELS**0.5
    bias = own.hidden_bias(history)
    log_p, densities = [], []
    for state in itertools.product((-1.0, 1.0), repeat=HIDDEN):
        h = torch.tensor(state)
        move = weight @ h
        # exp(-E) summed over the frame is exp(b'h) times this Gaussian integral.
        log_p.append(bias @ h + 0.5 * move @ covariance @ move)
        normal = torch.distributions.MultivariateNormal(loc + covariance @ move, covariance)
        densities.append(normal.log_prob(frame))
    return torch.logsumexp(torch.stack(log_p).log_softmax(0) + torch.stack(densities), 0)


def emissions(module: Any, sequence: Tensor) -> Tensor:
    """Shape ``(frames, K)``, frame by frame."""
    return torch.stack(
        [
            torch.stack(
                [
                    log_density(
                        module, k, torch.cat([sequence[t - 1], sequence[t - 2]]), sequence[t]
                    )
                    for k in range(module.num_regimes)
                ]
            )
            for t in range(ORDER, len(sequence))
        ]
    )


def joint_of_paths(module: Any, sequence: Tensor) -> dict[tuple[int, ...], float]:
    """log p(path, frames) of every path of regimes."""
    log_p = emissions(module, sequence)
    initial = module.initial_logits.log_softmax(0)
    transition = module.transition_logits.log_softmax(1)
    # Pyro's convention: the chain makes a step before the first frame.
    first = torch.logsumexp(initial.unsqueeze(1) + transition, 0)
    result = {}
    for path in itertools.product(range(module.num_regimes), repeat=len(log_p)):
        total = first[path[0]] + log_p[0, path[0]]
        for t in range(1, len(path)):
            total = total + transition[path[t - 1], path[t]] + log_p[t, path[t]]
        result[path] = total.item()
    return result


@pytest.mark.parametrize("family", ["var", "crbm"])
def test_evidence_of_the_chain(programs: dict[str, Any], family: str) -> None:
    module, data = regimes(programs, family), sequences()
    tables = [joint_of_paths(module, sequence) for sequence in data]
    exact = torch.stack([torch.tensor(list(t.values())).logsumexp(0) for t in tables])
    found = programs["models"].log_likelihood(module, data, switching=True)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)
    program = programs["models"].switching_model
    value = -Trace_ELBO().loss(program, lambda *arguments: None, module, data)
    assert value == pytest.approx(exact.sum().item(), abs=1e-9)
    # The posterior of every frame's regime is a sum over the paths through it.
    posterior = programs["models"].regime_posterior(module, data, switching=True)
    for number, table in enumerate(tables):
        expected = torch.zeros_like(posterior[number])
        for path, log_p in table.items():
            weight = torch.tensor(log_p - exact[number].item()).exp()
            expected[torch.arange(len(path)), list(path)] += weight
        torch.testing.assert_close(posterior[number], expected, rtol=0, atol=1e-9)


def test_counts_and_rounds_of_em(programs: dict[str, Any]) -> None:
    """Expected transitions against all paths; no round lowers the likelihood."""
    module, data = regimes(programs, "var", 2), sequences(1, 5)
    table = joint_of_paths(module, data[0])
    evidence = torch.tensor(list(table.values())).logsumexp(0)
    expected = torch.zeros(2, 2)
    for path, log_p in table.items():
        for before, after in itertools.pairwise(path):
            expected[before, after] += (torch.tensor(log_p) - evidence).exp()
    shares, first, steps = programs["models"].expected_counts(module, data, True)
    # One transition more comes from the regime before the first frame.
    torch.testing.assert_close(steps.sum(0), shares.sum((0, 1)), rtol=0, atol=1e-9)
    torch.testing.assert_close((steps - expected).sum(), torch.ones(()), rtol=0, atol=1e-9)
    torch.testing.assert_close((steps - expected).sum(1), first, rtol=0, atol=1e-9)
    made = programs["data"].make_motions(6, 25, Generator().manual_seed(0)).frames.double()
    history, frames = programs["data"].history_and_frames(made, 1)
    start = programs["start"].divide(history, frames, 2, Generator().manual_seed(0), restarts=1)
    for switching in (True, False):
        values = []
        for rounds in range(4):
            found = programs["models"].expectation_maximization(start, made, switching, rounds)
            values.append(programs["models"].log_likelihood(found, made, switching).sum().item())
        # Blocks that belong to one regime each are an optimum of the mixture already.
        assert values[3] > values[0] + (1.0 if switching else -1e-6)
        # But for the ridge and the extra counts, which are small.
        assert all(b > a - 0.5 for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("family", ["var", "crbm"])
def test_mixture(programs: dict[str, Any], family: str) -> None:
    module, data = regimes(programs, family), sequences(3)
    log_p = torch.stack([emissions(module, sequence).sum(0) for sequence in data])
    joint = module.initial_logits.log_softmax(0) + log_p
    models = programs["models"]
    found = models.log_likelihood(module, data, switching=False)
    torch.testing.assert_close(found, joint.logsumexp(1), rtol=0, atol=1e-9)
    posterior = models.regime_posterior(module, data, switching=False)
    expected = joint.softmax(1).unsqueeze(1).expand_as(posterior)
    torch.testing.assert_close(posterior, expected, rtol=0, atol=1e-9)
    elbo = TraceEnum_ELBO(max_plate_nesting=2)
    value = -elbo.loss(models.mixture_model, lambda *arguments: None, module, data)
    assert value == pytest.approx(joint.logsumexp(1).sum().item(), abs=1e-9)
    # Pyro's own posterior of the component is Bayes' rule too.
    marginal = elbo.compute_marginals(models.mixture_model, lambda *arguments: None, module, data)
    torch.testing.assert_close(marginal["z"].probs.squeeze(1), joint.softmax(1), rtol=0, atol=1e-9)


def test_pyro_markov_agrees(programs: dict[str, Any]) -> None:
    """The chain as a Pyro program of its own, regime by regime, which Pyro enumerates."""
    module, data = regimes(programs, "crbm"), sequences(2, 5)
    history, frames = programs["data"].history_and_frames(data, ORDER)

    @pyro.infer.config_enumerate
    def program() -> None:
        emission = module.emission(history.transpose(0, 1))
        with pyro.plate("sequences", len(data)):
            z = pyro.sample("z", dist.Categorical(logits=module.initial_logits))
            for t in pyro.markov(range(frames.shape[1])):
                logits = module.transition_logits[z]
                z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits))
                here = module.emission(history[:, t])
                pyro.sample(f"y_{t}", module.one(here, z), obs=frames[:, t])
        assert emission.batch_shape == (frames.shape[1], len(data), K)

    value = -TraceEnum_ELBO(max_plate_nesting=1).loss(program, lambda: None)
    exact = programs["models"].log_likelihood(module, data, switching=True).sum().item()
    assert value == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("model", ["mixture", "switching"])
def test_gradient_of_the_elbo(programs: dict[str, Any], model: str) -> None:
    """SVI follows the exact gradient: finite differences of the evidence from its definition."""
    module, data = regimes(programs, "crbm", 2), sequences(1, 4)[:, :4]
    program = programs["models"].mixture_model
    elbo: Any = TraceEnum_ELBO(max_plate_nesting=2)
    if model == "switching":
        program, elbo = programs["models"].switching_model, Trace_ELBO()

    def evidence() -> float:
        if model == "switching":
            return float(torch.tensor(list(joint_of_paths(module, data[0]).values())).logsumexp(0))
        joint = module.initial_logits.log_softmax(0) + emissions(module, data[0]).sum(0)
        return float(joint.detach().logsumexp(0))

    with poutine.trace(param_only=True):
        elbo.differentiable_loss(program, lambda *arguments: None, module, data).backward()
    step, generator = 1e-5, Generator().manual_seed(11)
    for name, parameter in module.named_parameters():
        if parameter.grad is None:
            assert model == "mixture" and name == "transition_logits"
            continue
        # Along a random direction, in which all entries take part.
        direction = torch.randn(parameter.shape, generator=generator)
        before = parameter.detach().clone()
        values = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                parameter.copy_(before + sign * step * direction)
            values.append(evidence())
        with torch.no_grad():
            parameter.copy_(before)
        expected = -(values[0] - values[1]) / (2 * step)
        found = (parameter.grad * direction).sum().item()
        assert found == pytest.approx(expected, abs=1e-7, rel=1e-6), name


def test_machines_start_at_their_autoregressions(programs: dict[str, Any]) -> None:
    torch.set_default_dtype(torch.float64)
    data = torch.randn(4, 30, 3, generator=Generator().manual_seed(0)).cumsum(1) * 0.3
    history, frames = programs["data"].history_and_frames(data, ORDER)
    generator = Generator().manual_seed(0)
    start = programs["start"].divide(history, frames, 2, generator, restarts=2)
    linear = programs["models"].LinearRegimes(start)
    with torch.no_grad():
        linear.transition_logits.copy_(torch.randn(2, 2))
    torch.testing.assert_close(
        linear.emission(history).log_prob(frames.unsqueeze(-2)),
        start.log_prob(history, frames),
        rtol=0,
        atol=1e-9,
    )
    for hidden in (1, 3):
        module = programs["models"].ConditionalMachines(linear, hidden)
        torch.testing.assert_close(module.transition_logits, linear.transition_logits)
        for k in range(2):
            mean, covariance = moments(module, k, history[0, 0])
            torch.testing.assert_close(
                mean, start.weight[k] @ history[0, 0] + start.bias[k], rtol=0, atol=1e-9
            )
            torch.testing.assert_close(covariance, start.covariance[k], rtol=1e-9, atol=1e-9)
        # Not normal, but hardly less likely.
        losses = (
            programs["models"].log_likelihood(linear, data, switching)
            - programs["models"].log_likelihood(module, data, switching)
            for switching in (True, False)
        )
        assert all(abs(loss.mean() / frames.shape[1]) < 2e-3 for loss in losses)
        assert not torch.equal(module.machines[0].weight(history[0, 0]), torch.zeros(3, hidden))


@torch.no_grad()
def moments(module: Any, k: int, history: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a frame of one machine, from the normal laws that it is a mixture of."""
    own = module.machines[k]
    channels = len(own.loc(history))
    factor = own.cov_factor(history).reshape(channels, -1)
    noise = factor @ factor.T + (-own.log_precision(history)).exp().diag()
    weight = own.weight(history) / channels**0.5
    h = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=weight.shape[1])))
    pull = h @ weight.T
    shares = (h @ own.hidden_bias(history) + 0.5 * (pull @ noise * pull).sum(1)).softmax(0)
    moved = pull @ noise
    mean = shares @ moved
    spread = (moved - mean).T @ (shares.unsqueeze(1) * (moved - mean))
    return own.loc(history) + mean, noise + spread


def test_more_spins_than_channels_start_near(programs: dict[str, Any]) -> None:
    torch.set_default_dtype(torch.float64)
    root = torch.randn(2, 2, generator=Generator().manual_seed(0))
    covariance = (root @ root.T + torch.eye(2)).unsqueeze(0)
    start = programs["start"].Autoregressions(torch.zeros(1, 2, 2), torch.zeros(1, 2), covariance)
    linear = programs["models"].LinearRegimes(start)
    module = programs["models"].ConditionalMachines(linear, 6)
    mean, found = moments(module, 0, torch.zeros(2))
    torch.testing.assert_close(mean, torch.zeros(2), rtol=0, atol=1e-9)
    assert (found - covariance[0]).norm() < 0.01 * covariance.norm()


def test_no_regime_is_without_a_block(programs: dict[str, Any]) -> None:
    """Blocks come from regimes that keep others, even where the only block of a regime suits it least."""
    without_empty = programs["start"]._without_empty
    owner = torch.tensor([0, 0, 0, 1])
    assert without_empty(owner, torch.tensor([3, 1, 0, 2]), 3).tolist() == [0, 2, 0, 1]
    assert without_empty(owner, torch.tensor([3, 1, 0, 2]), 4).tolist() == [3, 2, 0, 1]
    assert owner.tolist() == [0, 0, 0, 1]
    with pytest.raises(ValueError, match="3 regimes need as many blocks, got 2"):
        programs["start"].divide(torch.zeros(2, 5, 2), torch.zeros(2, 5, 1), 3, Generator())


def test_blocks_find_their_autoregressions(programs: dict[str, Any]) -> None:
    made = programs["data"].make_motions(9, 40, Generator().manual_seed(0))
    history, frames = programs["data"].history_and_frames(made.frames, ORDER)
    start = programs["start"].divide(history, frames, 3, Generator().manual_seed(1))
    owner = start.log_prob(history, frames).sum(1).argmax(1)
    assert programs["machines"].matched_accuracy(made.labels[:, 0], owner) == 1.0


def test_history(programs: dict[str, Any]) -> None:
    data = torch.arange(10.0).reshape(1, 5, 2)
    history, frames = programs["data"].history_and_frames(data, 2)
    assert history.tolist()[0][0] == [2.0, 3.0, 0.0, 1.0]
    assert frames.tolist()[0][0] == [4.0, 5.0]
    with pytest.raises(ValueError, match="order must be between 1 and 4 frames, got 5"):
        programs["data"].history_and_frames(data, 5)


def test_streams_keep_frames_with_their_labels(programs: dict[str, Any]) -> None:
    labels = torch.arange(6).unsqueeze(1).repeat(1, 11)
    frames = labels.unsqueeze(-1) * 100.0 + torch.arange(11.0).reshape(1, 11, 1)
    data = programs["data"].Sequences(frames, labels, tuple("abcdef"))
    streams = data.streams(5, 4, Generator().manual_seed(0))
    assert streams.frames.shape == (3, 20, 1)
    torch.testing.assert_close(streams.frames[..., 0] // 100, streams.labels.float())
    assert len(streams.frames.unique()) == 60


def test_agreement(programs: dict[str, Any]) -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    machines = programs["machines"]
    assert machines.matched_accuracy(labels, (labels + 1) % 3) == 1.0
    assert machines.adjusted_rand(labels, (labels + 1) % 3) == pytest.approx(1.0)
    found = torch.tensor([0, 0, 0, 1, 1, 1])
    assert machines.matched_accuracy(labels, found) == pytest.approx(4 / 6)
    # Sum over cells, lines and columns of pairs: 2 of 15, 3 and 6.
    assert machines.adjusted_rand(labels, found) == pytest.approx((2 - 18 / 15) / (4.5 - 18 / 15))
    # The best of all permutations, with activities and regimes that the others do not have.
    generator = Generator().manual_seed(0)
    for activities, regimes_ in ((3, 5), (5, 3)):
        labels = torch.randint(activities, (60,), generator=generator)
        found = torch.randint(regimes_, (60,), generator=generator)
        best = max(
            (torch.tensor(way)[labels] == found).double().mean().item()
            for way in itertools.permutations(range(5))
        )
        assert machines.matched_accuracy(labels, found) == pytest.approx(best)


def test_all_regimes_are_shown(programs: dict[str, Any]) -> None:
    """In the order of their activities, and those that no frame has behind."""
    module = regimes(programs, "var", 4)
    labels = torch.tensor([[9, 9, 0, 0, 1, 1]]).clamp(max=1)
    data = programs["data"].Sequences(torch.zeros(1, 6, 2), labels, ("a", "b"))
    posterior = torch.eye(4)[[1, 1, 0, 0]].unsqueeze(0)
    found = programs["machines"].named(posterior, data, module)
    torch.testing.assert_close(found, posterior[..., [1, 0, 2, 3]])


def test_errors_of_gains(programs: dict[str, Any]) -> None:
    """Differences by sequence, within seeds: what sequences have in common does not count."""
    generator = Generator().manual_seed(0)
    common, own = (torch.randn(3, 500, generator=generator).double() for _ in range(2))
    runs = {
        "crbm switching": [
            {"test_by_sequence": (9 * a + 1 + b).tolist()} for a, b in zip(common, own, strict=True)
        ],
        "var switching": [{"test_by_sequence": (9 * a).tolist()} for a in common],
        "var switching, 8 regimes": [{"test_by_sequence": (9 * a + 2).tolist()} for a in common],
        "var single": [{"test_by_sequence": a.tolist()} for a in common],
    }
    found = programs["machines"].gains(runs, ["single", "switching"])
    assert set(found) == {f"crbm switching over {n}" for n in list(runs)[1:3]}
    for name, expected in zip(found, (1.0, -1.0), strict=True):
        error = found[name]["error_over_sequences"]
        assert error == pytest.approx(own.var(1).mean().item() ** 0.5 / 500**0.5)
        assert all(abs(gain - expected) < 6 * error for gain in found[name]["by_seed"])


def test_validation_leaves_test_recordings_alone(programs: dict[str, Any]) -> None:
    machines = programs["machines"]
    arguments = ["--data", "made", "--recordings", "8", "--length", "20"]
    train, _ = machines.load("recordings", 0, machines.parse(arguments))
    options = machines.parse([*arguments, "--split", "validation"])
    rest, held_out = machines.load("recordings", 0, options)
    assert (len(rest.frames), len(held_out.frames)) == (6, 2)

    def raw(part: Any) -> Tensor:
        return torch.corrcoef(part.frames[..., 0])

    # Standardising is affine by channel: correlations of recordings remain.
    together = programs["data"].Sequences(
        torch.cat([held_out.frames, rest.frames]), torch.cat([held_out.labels, rest.labels]), ()
    )
    torch.testing.assert_close(
        raw(together), raw(train.rows(torch.tensor([0, 4, 1, 2, 3, 5, 6, 7])))
    )


def test_generated_sequences_follow_the_chain(programs: dict[str, Any]) -> None:
    """Regimes by their transition probabilities, frames with the mean of their regime."""
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(3)
    covariance = torch.eye(1).repeat(2, 1, 1)
    start = programs["start"].Autoregressions(
        torch.full((2, 1, 1), 0.5), torch.tensor([[-2.0], [2.0]]), covariance
    )
    module = programs["models"].LinearRegimes(start)
    with torch.no_grad():
        module.transition_logits.copy_(torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log())
    made, path = programs["machines"].generate(module, torch.zeros(400, 1, 1), 50, "switching")
    past, now = path[:, :-1].flatten(), path[:, 1:].flatten()
    for state, stay in ((0, 0.9), (1, 0.7)):
        same = (now[past == state] == state).double()
        assert abs(same.mean() - stay) < 6 * (stay * (1 - stay) / len(same)) ** 0.5
    before = torch.cat([torch.zeros(400, 1), made[:, :-1, 0]], 1)
    left = made[..., 0] - 0.5 * before - (4.0 * path - 2.0)
    assert abs(left.mean()) < 6 / left.numel() ** 0.5
    assert abs(left.square().mean() - 1.0) < 6 * (2.0 / left.numel()) ** 0.5


def test_training_raises_the_likelihood(programs: dict[str, Any]) -> None:
    made = programs["data"].make_motions(6, 24, Generator().manual_seed(0))
    machines, models = programs["machines"], programs["models"]
    options = machines.parse(["--smoke", "--order", "1"])
    options.piece, options.steps, options.regimes, options.rounds = 10, 1, 2, 0
    before, _ = machines.fit(made.frames, "crbm", "switching", 0, options)
    low = models.log_likelihood(before, made.frames, True).mean()
    options.steps = 15
    after, losses = machines.fit(made.frames, "crbm", "switching", 0, options)
    assert models.log_likelihood(after, made.frames, True).mean() > low + 0.5
    assert len(losses) == 15


def test_motions(programs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the format, in a package that is not imported: repeated frames go."""
    folder = tmp_path / "sktime" / "datasets" / "data" / "BasicMotions"
    folder.mkdir(parents=True)
    (tmp_path / "sktime" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    header = "#text\n@data\n"
    (folder / "BasicMotions_TRAIN.ts").write_text(
        header + "1,1,2,3:5,5,6,7:Walk\n1,2,3,4:0,0,0,1:Run\n"
    )
    (folder / "BasicMotions_TEST.ts").write_text(header + "1,2,3,4:4,3,2,1:Run\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    train, test = programs["data"].load_motions()
    assert train.names == ("Run", "Walk")
    assert train.frames[0].tolist() == [[1.0, 5.0], [2.0, 6.0], [3.0, 7.0]]
    assert train.labels[:, 0].tolist() == [1, 0] and test.labels[:, 0].tolist() == [0]
    monkeypatch.setattr(programs["data"], "_PACKAGES", ("no_such_package",))
    with pytest.raises(FileNotFoundError, match="pip install sktime"):
        programs["data"].load_motions()


def test_unnormalised_machines_are_refused(programs: dict[str, Any]) -> None:
    """The guard: without log Z neither the mixture's weights nor its gradient would be right."""
    module, data = regimes(programs, "crbm"), sequences()
    emission = module.emission

    def forgetful(history: Tensor) -> Any:
        return emission(history).normalize(None)

    module.emission = forgetful
    svi = SVI(
        programs["models"].switching_model,
        lambda *arguments: None,
        pyro.optim.Adam({"lr": 1e-3}),
        loss=Trace_ELBO(),
    )
    with pytest.raises(UnnormalizedGradientError, match="log Z is not attached"):
        svi.step(module, data)


def test_smoke(tmp_path: Path) -> None:
    command = [
        sys.executable,
        ROOT / "examples" / "sequence_machines.py",
        "--smoke",
        "--output",
        tmp_path,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "sequence_machines.json").read_text())
    runs = report["streams"]["runs"]
    assert runs["var switching"][0]["test"] > runs["var single"][0]["test"] + 1.0
    assert runs["crbm switching"][0]["rand"] > 0.5
    assert "var switching, 6 regimes" in runs and "var single, 6 regimes" not in runs
    assert len(report["streams"]["gains"]) == 3
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [
        "streams_generated.png",
        "streams_regimes.png",
    ]
