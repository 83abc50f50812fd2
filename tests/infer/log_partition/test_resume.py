# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Annealing that is interrupted and goes on: the same bits, and no other run's state."""

import itertools
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import (
    BlockGibbs,
    GibbsLangevin,
    LogPartitionEstimate,
    bracket_log_partition,
    estimate_log_partition,
)
from pyro_ebm.infer.log_partition.resume import ResumeFile, digest
from pyro_ebm.infer.paths import GeometricPath, MachinePath
from tests.distributions.families import random_rbm

ROOT = Path(__file__).resolve().parents[3]


class Killed(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int | None], None]]:
    """Ends the run in the middle of the n-th evaluation of fields, wherever that is."""
    original = GeometricPath.fields
    left: list[int | None] = [None]

    def fields(self: GeometricPath, *arguments: Any) -> Tensor:
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
        return original(self, *arguments)

    monkeypatch.setattr(GeometricPath, "fields", fields)
    yield lambda number: left.__setitem__(0, number)


def machine(pair: tuple[str, str] = ("bernoulli", "ising"), batched: bool = False) -> RBM:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        rbm = random_rbm(pair, offsets=True, batched=batched).to(torch.float32)
    rbm.num_gibbs_steps = 3
    return rbm


CASES: dict[str, dict[str, Any]] = {
    "forward": {},
    "chunks": {"chunk_size": 8},
    "reverse": {"method": "reverse-ais", "chunk_size": 9},
    "resampled": {"method": "reverse-ais", "start": "forward", "chunk_size": 9},
    "adaptive": {"schedule": "adaptive", "chunk_size": 8},
    "seeds": {"seed": [3, 8], "chunk_size": 8},
    "adaptive seeds": {"seed": [3, 8], "schedule": "adaptive"},
    "kernel": {"kernel": lambda dist: BlockGibbs(dist, 2), "chunk_size": 8},
    "batched": {"batched": True, "chunk_size": 8},
    "continuous": {"pair": ("gaussian", "ising"), "kernel": lambda dist: GibbsLangevin(dist, 0.5)},
}


def run(checkpoint: Path | None = None, **options: Any) -> LogPartitionEstimate:
    rbm = machine(options.pop("pair", ("bernoulli", "ising")), options.pop("batched", False))
    defaults = {"num_chains": 20, "num_temperatures": 15, "seed": 3, "checkpoint_seconds": 0.0}
    return estimate_log_partition(rbm, **{**defaults, **options}, checkpoint=checkpoint)


def assert_same(first: LogPartitionEstimate, second: LogPartitionEstimate) -> None:
    assert first.log_weights is not None and second.log_weights is not None
    assert torch.equal(first.log_weights, second.log_weights)
    ignored = {"seconds"}
    assert {k: v for k, v in first.settings.items() if k not in ignored} == {
        k: v for k, v in second.settings.items() if k not in ignored
    }


@pytest.mark.parametrize("case", CASES)
def test_killed_again_and_again(case: str, tmp_path: Path, kill_after: Any) -> None:
    """Killed every few steps until it gets through, it gives what an uninterrupted run gives."""
    options, path = CASES[case], tmp_path / "state"
    expected = run(**options)
    lengths = itertools.cycle([7, 4, 11, 30, 2, 13])
    result, kills = None, 0
    while result is None:
        kill_after(next(lengths))
        try:
            result = run(path, **options)
        except Killed:
            kills += 1
            assert kills < 200, "no progress"
    assert kills >= 1
    assert_same(result, expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", [0, 1, 5, 14, 15, 16, 17, 18, 19, 20, 25, 34])
def test_killed_at_any_step(step: int, tmp_path: Path, kill_after: Any) -> None:
    """16 evaluations of fields on the way up, 3 at the top, 16 on the way down."""
    path, options = tmp_path / "state", {"method": "reverse-ais", "start": "forward"}
    expected = run(**options)
    kill_after(step)
    with pytest.raises(Killed):
        run(path, **options)
    kill_after(35 - step + 5)  # what is left, and what lies behind the last writing
    assert_same(run(path, **options), expected)


class TestFile:
    @staticmethod
    def interrupted(path: Path, kill_after: Any, **options: Any) -> None:
        kill_after(10)
        with pytest.raises(Killed):
            run(path, **options)
        kill_after(None)
        assert path.exists()

    def test_holds_no_code(self, tmp_path: Path, kill_after: Any) -> None:
        path = tmp_path / "state"
        self.interrupted(path, kill_after)
        content = torch.load(path, weights_only=True)
        assert set(content) == {"format", "version", "fingerprint", "state"}
        assert content["state"]["v"].shape == (20, 3)
        # A state read from an untrusted file must not run anything.
        path.write_bytes(pickle.dumps({"format": Path}))
        with pytest.raises(ValueError, match="is damaged or no checkpoint"):
            run(path)

    def test_seed_is_drawn_and_kept(self, tmp_path: Path, kill_after: Any) -> None:
        """Without a seed the run draws one that it can come back to."""
        path = tmp_path / "state"
        torch.manual_seed(11)
        expected = run(tmp_path / "other", seed=None)
        torch.manual_seed(11)
        self.interrupted(path, kill_after, seed=None)
        torch.manual_seed(12)
        resumed = run(path, seed=None)
        assert_same(resumed, expected)
        assert_same(run(seed=resumed.settings["seed"]), expected)

    def test_is_removed_in_the_end(self, tmp_path: Path) -> None:
        run(tmp_path / "state")
        assert list(tmp_path.iterdir()) == []

    def test_time_between_writings(self, tmp_path: Path) -> None:
        file = ResumeFile(tmp_path / "state", {}, seconds=0.05)
        assert not file.is_due
        time.sleep(0.06)
        assert file.is_due
        file.write({"a": torch.zeros(1)})
        assert not file.is_due and file.read() == {"a": torch.zeros(1)}
        file.remove()
        file.remove()
        assert file.read() is None

    def test_seconds_include_those_before(self, tmp_path: Path, kill_after: Any) -> None:
        path = tmp_path / "state"
        self.interrupted(path, kill_after)
        content = torch.load(path, weights_only=True)
        content["state"]["seconds"] = 1000.0
        torch.save(content, path)
        assert 1000.0 < run(path).settings["seconds"] < 1100.0

    def test_progress_goes_on_where_it_was(
        self, tmp_path: Path, kill_after: Any, capfd: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "state"
        self.interrupted(path, kill_after, chunk_size=5)
        run(path, chunk_size=5, progress=True)
        shown = capfd.readouterr().err
        # 4 chunks of 15 steps; 10 evaluations of fields are 9 steps and the start.
        assert "| 9/60" in shown

    def test_bracket_keeps_the_side_that_is_done(self, tmp_path: Path, kill_after: Any) -> None:
        path = tmp_path / "state"
        options: dict[str, Any] = {"num_chains": 20, "num_temperatures": 15, "seed": 3}
        rbm = machine()
        expected = bracket_log_partition(rbm, **options)
        options |= {"checkpoint": path, "checkpoint_seconds": 0.0}
        kill_after(16 + 8)
        with pytest.raises(Killed):
            bracket_log_partition(rbm, **options)
        assert {p.name for p in tmp_path.iterdir()} == {"state.ais", "state.reverse-ais"}
        kill_after(10)  # what is left of the reverse run
        result = bracket_log_partition(rbm, **options)
        assert_same(result.forward, expected.forward)
        assert_same(result.reverse, expected.reverse)
        assert list(tmp_path.iterdir()) == []


class TestOtherRuns:
    """A state of another run is refused, and the message says what differs."""

    OPTIONS: list[tuple[dict[str, Any], str]] = [
        ({"num_chains": 21}, "num_chains is 20 in the file and 21 now"),
        ({"num_temperatures": 16}, "num_temperatures is 15 in the file and 16 now"),
        ({"seed": 4}, r"seed is \[3\] in the file and \[4\] now"),
        ({"chunk_size": 5}, "chunk_size is 20 in the file and 5 now"),
        ({"schedule": "adaptive"}, "schedule is 'linear' in the file and 'adaptive' now"),
        ({"schedule": torch.linspace(0, 1, 16)}, "schedule is 'linear' in the file and '"),
        ({"method": "reverse-ais"}, "method is 'ais' in the file and 'reverse-ais' now"),
        ({"base": "uniform"}, "path is 'GeometricPath "),
        (
            {"kernel": BlockGibbs},
            r"kernel is None in the file and 'BlockGibbs\(num_steps=1.*\)' now",
        ),
    ]

    @pytest.mark.parametrize(("options", "message"), OPTIONS, ids=range(len(OPTIONS)))
    def test_options(
        self, options: dict[str, Any], message: str, tmp_path: Path, kill_after: Any
    ) -> None:
        path = tmp_path / "state"
        TestFile.interrupted(path, kill_after)
        before = path.read_bytes()
        with pytest.raises(ValueError, match=f"is the checkpoint of another run: .*{message}"):
            run(path, **options)
        assert path.read_bytes() == before

    def test_parameters(self, tmp_path: Path, kill_after: Any) -> None:
        path = tmp_path / "state"
        TestFile.interrupted(path, kill_after)
        rbm = machine()
        rbm.weight[0, 0] += 1e-3
        with pytest.raises(ValueError, match=r"parameters is '[0-9a-f]+' in the file and"):
            estimate_log_partition(rbm, num_chains=20, num_temperatures=15, seed=3, checkpoint=path)

    def test_initial_samples(self, tmp_path: Path, kill_after: Any) -> None:
        path, start = tmp_path / "state", machine().sample((20,))
        options = {"method": "reverse-ais", "initial": start}
        TestFile.interrupted(path, kill_after, **options)
        with pytest.raises(ValueError, match=r"initial is '[0-9a-f]+' in the file and"):
            run(path, method="reverse-ais", initial=1.0 - start)

    def test_knots_of_a_path(self, tmp_path: Path) -> None:
        """Two paths that differ only between their ends, and off the levels that are looked at."""
        rbm = machine()

        def fingerprint(scale: float) -> str:
            between = RBM(rbm.visible, rbm.hidden, scale * rbm.weight)
            path = MachinePath.from_checkpoints([between, rbm, rbm, rbm, rbm, rbm, rbm])
            return digest(t for knot in path.knots for t in knot.parameters())

        assert fingerprint(0.5) == fingerprint(0.5) != fingerprint(0.6)

    @pytest.mark.parametrize(
        "content", [b"", b"text", b"PK\x03\x04broken"], ids=["empty", "text", "zip"]
    )
    def test_damaged(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "state"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged or no checkpoint"):
            run(path)
        assert path.read_bytes() == content

    def test_truncated(self, tmp_path: Path, kill_after: Any) -> None:
        path = tmp_path / "state"
        TestFile.interrupted(path, kill_after)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match="is damaged or no checkpoint"):
            run(path)

    @pytest.mark.parametrize("content", [{}, [1], {"format": "other"}, torch.zeros(3)], ids=str)
    def test_foreign(self, content: Any, tmp_path: Path) -> None:
        path = tmp_path / "state"
        torch.save(content, path)
        with pytest.raises(ValueError, match="is no checkpoint of annealing"):
            run(path)

    def test_version(self, tmp_path: Path) -> None:
        path = tmp_path / "state"
        torch.save({"format": "pyro_ebm annealing", "version": 99}, path)
        with pytest.raises(ValueError, match="has version 99, expected 1"):
            run(path)

    def test_kernel_with_random_bits_of_its_own(self, tmp_path: Path) -> None:
        generator = torch.Generator()
        with pytest.raises(ValueError, match="kernel must draw from the generator of the run"):
            run(tmp_path / "state", kernel=lambda dist: BlockGibbs(dist, generator=generator))

    def test_folder_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="is in a folder that does not exist"):
            run(tmp_path / "nowhere" / "state")


def long_run(path: str | None, seconds: float) -> Tensor:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rbm = BernoulliRBM(torch.randn(6, 4), torch.randn(6), torch.randn(4))
    options: dict[str, Any] = {"num_chains": 40, "num_temperatures": 600, "chunk_size": 20}
    estimate = estimate_log_partition(
        rbm, seed=1, checkpoint=path, checkpoint_seconds=seconds, **options
    )
    assert estimate.log_weights is not None
    return estimate.log_weights


def test_a_killed_process(tmp_path: Path) -> None:
    """SIGKILL, which no code can catch, at some moment of a run that saves at every step."""
    path = tmp_path / "state"
    code = f"from {__name__} import long_run; long_run({str(path)!r}, 0.0)"
    victim = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 120.0
    while not path.exists() and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, "it was through before it was killed"
    assert path.exists()
    threads = torch.get_num_threads()
    try:
        assert torch.equal(long_run(str(path), 60.0), long_run(None, 60.0))
    finally:
        torch.set_num_threads(threads)
    assert not path.exists()


def test_a_bracket_without_a_seed(tmp_path: Path, kill_after: Any) -> None:
    """Random seeds are part of what is saved, for both sides."""
    file = tmp_path / "bracket"
    options: dict[str, Any] = {"num_chains": 4, "num_temperatures": 20, "num_seeds": 2}
    kill_after(70)
    with pytest.raises(Killed):
        bracket_log_partition(machine(), checkpoint=file, checkpoint_seconds=0.0, **options)
    kill_after(None)
    bracket = bracket_log_partition(machine(), checkpoint=file, checkpoint_seconds=0.0, **options)
    for side in (bracket.forward, bracket.reverse):
        assert len(set(side.settings["seed"])) == 2
    assert list(tmp_path.iterdir()) == []


def test_another_number_of_seeds(tmp_path: Path, kill_after: Any) -> None:
    kill_after(30)
    with pytest.raises(Killed):
        run(tmp_path / "file", seed=None, num_seeds=3)
    kill_after(None)
    with pytest.raises(ValueError, match="num_seeds is 3 in the file and 5 now"):
        run(tmp_path / "file", seed=None, num_seeds=5)
