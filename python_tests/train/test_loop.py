"""Runs that end early continue with the same bits; bad updates are skipped and named."""

import dataclasses
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vlakern.errors import CheckpointError, ConfigError, VlakernError
from vlakern.train import checkpoint, loop
from vlakern.train.loop import Place, RunConfig, find_start, train


def hashes(directory: Path) -> dict[str, Any]:
    """SHA-256 of every file of the newest checkpoint: all tensors, and all numbers."""
    newest = checkpoint.checkpoints(directory / "checkpoints")[-1]
    return json.loads((newest / "manifest.json").read_text())["files"]


def interrupt(monkeypatch: pytest.MonkeyPatch, call: int | None) -> None:
    """Makes the run believe that SIGTERM came just before it asked for the ``call``-th time.

    With two parts it asks before every step and between its micro-batches.
    """
    count = iter(range(1 << 30))

    @contextmanager
    def listening() -> Iterator[Callable[[], bool]]:
        yield lambda: next(count) == call

    monkeypatch.setattr(loop, "_listening", listening)


STEPS, SECOND = 10, 4
CASES = {
    "step 0": 0,
    "step 1": 2,
    "in the middle": 2 * 5,
    "mid-accumulation": 2 * 5 + 1,
    "last but one": 2 * (STEPS - 1),
    "mid-accumulation of the last": 2 * (STEPS - 1) + 1,
}


@pytest.fixture(scope="module")
def whole(lab: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The files that an uninterrupted run of two stages ends with."""
    root = tmp_path_factory.mktemp("whole")
    config = lab.longer(STEPS, expert_steps=SECOND)
    run = RunConfig(save_every=STEPS, parts=2)
    train(lab.make_model(), config, 3, lab.Samples(4, parts=2), lab.place(root), run)
    return hashes(root)


@pytest.mark.parametrize("call", CASES.values(), ids=list(CASES))
def test_resume_is_bit_exact(
    call: int,
    lab: ModuleType,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights, moments, average, generators, losses, damaged samples: the same SHA-256."""
    config, run = lab.longer(STEPS, expert_steps=SECOND), RunConfig(save_every=STEPS, parts=2)
    interrupt(monkeypatch, call)
    arguments = (lab.place(tmp_path), run)
    first = train(lab.make_model(), config, 3, lab.Samples(4, parts=2), *arguments)
    assert (first.stopped, first.steps) == (True, call // 2)
    interrupt(monkeypatch, None)
    start = find_start(tmp_path / "checkpoints", "auto")
    assert start is not None
    assert checkpoint.read(start).part == call % 2
    # Another start must not matter: everything comes from the checkpoint.
    torch.rand(7)
    samples = lab.Samples(4, parts=2)
    second = train(lab.make_model(99), config, 3, samples, *arguments, start=start)
    assert (second.stopped, second.steps) == (False, STEPS)
    assert second.quarantine["drawn"] == 4 * STEPS + second.quarantine["damaged"]
    assert list(second.quarantine["reasons"]) == [f"lab/{n}" for n in range(9, 4 * STEPS, 25)]
    assert hashes(tmp_path) == whole


@pytest.mark.parametrize("at", [0, SECOND])
def test_a_checkpoint_between_two_stages_is_bit_exact(
    at: int,
    lab: ModuleType,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second stage begins with new moments, whether the process was there before or not."""
    config, run = lab.longer(STEPS, expert_steps=SECOND), RunConfig(save_every=STEPS, parts=2)
    interrupt(monkeypatch, 2 * at)
    arguments = (lab.place(tmp_path), run)
    train(lab.make_model(), config, 3, lab.Samples(4, parts=2), *arguments)
    interrupt(monkeypatch, None)
    start, samples = find_start(tmp_path / "checkpoints", "auto"), lab.Samples(4, parts=2)
    train(lab.make_model(5), config, 3, samples, *arguments, start=start)
    assert hashes(tmp_path) == whole


def test_other_parts_do_half_a_step_again(
    lab: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint in the middle of a step that continues whole gives the same step."""
    config = lab.longer(3)
    reference: list[float] = []
    whole_run = (config, 0, lab.Samples(4), lab.place(tmp_path / "a"), RunConfig(save_every=0))
    train(lab.make_model(), *whole_run, on_step=lambda step, row: reference.append(row["loss"]))
    interrupt(monkeypatch, 2 * 1 + 1)
    place = lab.place(tmp_path / "b")
    train(lab.make_model(), config, 0, lab.Samples(4, parts=2), place, RunConfig(parts=2))
    interrupt(monkeypatch, None)
    found: list[float] = []
    train(
        lab.make_model(9),
        config,
        0,
        lab.Samples(4),
        place,
        start=find_start(place.checkpoints, "auto"),
        on_step=lambda step, row: found.append(row["loss"]),
    )
    assert found == pytest.approx(reference[1:], rel=1e-5)


def test_parts_do_not_change_the_curve(lab: ModuleType, tmp_path: Path) -> None:
    """One, two or four micro-batches of the same samples: global denominators."""
    curves = []
    for parts in (1, 2, 4):
        curve: list[float] = []
        place, run = lab.place(tmp_path / str(parts)), RunConfig(0, parts=parts)
        note = curve.append
        train(
            lab.make_model(),
            lab.longer(5),
            0,
            lab.Samples(4, parts=parts),
            place,
            run,
            on_step=lambda step, row, note=note: note(row["loss"]),
        )
        curves.append(curve)
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert curves[2] == pytest.approx(curves[0], rel=1e-5)


def test_sigterm_saves_and_a_second_one_changes_nothing(lab: ModuleType, tmp_path: Path) -> None:
    """The real signal; the handler that was there before is put back."""
    before = signal.getsignal(signal.SIGTERM)
    written: list[Any] = []

    def on_step(step: int, row: dict[str, Any]) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    place = Place(tmp_path / "checkpoints", written.append)
    summary = train(lab.make_model(), lab.longer(9), 0, lab.Samples(4), place, on_step=on_step)
    assert (summary.stopped, summary.steps, summary.samples) == (True, 2, 8)
    assert [path.name[-2:] for path in checkpoint.checkpoints(tmp_path / "checkpoints")] == ["02"]
    assert not written
    assert signal.getsignal(signal.SIGTERM) is before


def test_checkpoints_and_policies_on_the_way(lab: ModuleType, tmp_path: Path) -> None:
    """Every save_every steps and at the end; none but the policy if it is 0."""
    for save_every, steps, policies in ((0, [], 1), (2, [4, 5], 3), (5, [5], 1), (9, [5], 1)):
        written: list[Any] = []
        place = Place(tmp_path / str(save_every), written.append)
        run = RunConfig(save_every, keep=2)
        train(lab.make_model(), lab.longer(5), 0, lab.Samples(4), place, run)
        found = checkpoint.checkpoints(tmp_path / str(save_every))
        assert [int(path.name[-8:]) for path in found] == steps
        assert len(written) == policies
        assert set(written[-1]) == set(lab.make_model().state_dict())


def test_one_bad_update_is_skipped(lab: ModuleType, tmp_path: Path) -> None:
    """Weights, moments and average stay as they were; the row names the samples."""
    rows: list[dict[str, Any]] = []
    samples = lab.Samples(4, parts=2, poison=(1,))
    run = RunConfig(save_every=1, keep=9, parts=2)
    summary = train(
        lab.make_model(),
        lab.longer(3),
        0,
        samples,
        lab.place(tmp_path),
        run,
        on_step=lambda step, row: rows.append(row),
    )
    assert summary.skipped == 1
    assert math.isfinite(summary.loss)
    assert ["skipped" in row for row in rows] == [False, True, False]
    # Both micro-batches hold one bad sample, so both are named.
    assert rows[1]["skipped"] == [f"set/{number}" for number in range(4, 8)]
    one, two, three = (
        checkpoint.read(path) for path in checkpoint.checkpoints(tmp_path / "checkpoints")
    )
    for file in ("model", "optimizer", "average"):
        kept, same, other = (found.tensors[file] for found in (one, two, three))
        assert all(torch.equal(kept[name], same[name]) for name in kept)
        assert not all(torch.equal(kept[name], other[name]) for name in kept)


def test_an_infinite_gradient_of_a_finite_loss_is_skipped(
    lab: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All samples of the step are named, because any of them may be it."""
    rows: list[dict[str, Any]] = []
    micro = loop.Learner.micro

    def spoilt(self: Any, *rest: Any) -> Any:
        found = micro(self, *rest)
        if len(rows) == 1:
            next(iter(self.optimizer.gradients.values())).fill_(math.inf)
        return found

    monkeypatch.setattr(loop.Learner, "micro", spoilt)
    arguments = (lab.longer(3), 0, lab.Samples(4), lab.place(tmp_path))
    summary = train(lab.make_model(), *arguments, on_step=lambda step, row: rows.append(row))
    assert summary.skipped == 1
    assert rows[1]["skipped"] == [f"set/{number}" for number in range(4, 8)]
    assert math.isfinite(rows[1]["loss"])


def test_three_bad_updates_in_a_row_stop_and_name_the_samples(
    lab: ModuleType, tmp_path: Path
) -> None:
    """Two are survived; no policy is written by a run that stops."""
    written: list[Any] = []
    place = Place(tmp_path / "checkpoints", written.append)
    survived = (lab.longer(6), 0, lab.Samples(4, poison=(1, 2, 4, 5)), place)
    assert train(lab.make_model(), *survived).skipped == 4
    assert len(written) == 1
    sentence = (
        r"step 4: .* not finite for 3 steps in a row; the samples of this one: set/16, set/17"
    )
    with pytest.raises(VlakernError, match=sentence):
        train(lab.make_model(), lab.longer(9), 0, lab.Samples(4, poison=(0, 2, 3, 4)), place)
    with pytest.raises(VlakernError, match="none of 2 steps had a finite loss"):
        train(lab.make_model(), lab.longer(2), 0, lab.Samples(4, poison=(0, 1)), place)
    assert len(written) == 1


def test_a_full_disk_does_not_stop_training(
    lab: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old checkpoint stays, the message is loud, and the run reaches its end."""
    said: list[str] = []
    room, put = [True], checkpoint._put

    def full(file: Any, block: Any) -> None:
        if not room[0]:
            raise OSError(28, "No space left on device")
        put(file, block)

    def policy(weights: Any) -> None:
        if not room[0]:
            raise OSError(28, "No space left on device")

    def on_step(step: int, row: dict[str, Any]) -> None:
        room[0] = step in (1, 4)

    monkeypatch.setattr(checkpoint, "_put", full)
    place = Place(tmp_path / "checkpoints", policy, {}, said.append)
    run = RunConfig(save_every=1, keep=9)
    summary = train(lab.make_model(), lab.longer(4), 0, lab.Samples(4), place, run, on_step=on_step)
    assert summary.steps == 4
    found = checkpoint.checkpoints(tmp_path / "checkpoints")
    assert [checkpoint.read(path).step for path in found] == [1, 4]
    assert sum("checkpoint of step" in text for text in said) == 2
    assert said[0].startswith("the checkpoint of step 2 was NOT written (No space left on device)")
    assert said[1].startswith("the policy of step 2 was NOT written")


def test_an_end_without_a_state_is_an_error(
    lab: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy is there and the older checkpoint stays, but nobody may take the run for whole."""
    room, put, policies = [True], checkpoint._put, []

    def full(file: Any, block: Any) -> None:
        if not room[0]:
            raise OSError(28, "No space left on device")
        put(file, block)

    def on_step(step: int, row: dict[str, Any]) -> None:
        room[0] = step == 1

    monkeypatch.setattr(checkpoint, "_put", full)
    place = Place(tmp_path / "checkpoints", policies.append, {}, lambda text: None)
    rest = (place, RunConfig(save_every=1))
    with pytest.raises(VlakernError, match=r"trained to step 2 .* its checkpoint is not; free"):
        train(lab.make_model(), lab.longer(2), 0, lab.Samples(4), *rest, on_step=on_step)
    assert len(policies) == 2
    found = checkpoint.checkpoints(tmp_path / "checkpoints")
    assert [checkpoint.read(path).step for path in found] == [1]


def test_a_stop_without_a_state_is_an_error(
    lab: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM on a full disk must not look like a run that can be continued."""

    def full(*rest: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_put", full)
    interrupt(monkeypatch, 1)
    with pytest.raises(VlakernError, match="stopped by SIGTERM after 1 steps, without a state"):
        train(lab.make_model(), lab.longer(4), 0, lab.Samples(4), lab.place(tmp_path))


def test_a_damaged_checkpoint_falls_back(
    lab: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run continues from the one before, with the same end, and says what happened."""
    run = RunConfig(save_every=2, keep=3)
    config, rest = lab.longer(6), (lab.place(tmp_path), run)
    train(lab.make_model(), config, 0, lab.Samples(4), *rest)
    expected = hashes(tmp_path)
    last = checkpoint.checkpoints(tmp_path / "checkpoints")[-1]
    file = last / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    start = find_start(tmp_path / "checkpoints", "auto")
    assert start is not None
    assert start.name.endswith("04")
    assert "*** vlakern: checkpoint" in capsys.readouterr().err
    summary = train(lab.make_model(1), config, 0, lab.Samples(4), *rest, start=start)
    assert summary.samples == 8
    assert hashes(tmp_path) == expected


def test_another_run_is_not_continued(lab: ModuleType, tmp_path: Path) -> None:
    """What decides the result must be the same; the sentence names what is not."""
    config, run = lab.longer(2), RunConfig(save_every=1)
    train(lab.make_model(), config, 0, lab.Samples(4), lab.place(tmp_path, data={"n": [3]}), run)
    start = find_start(tmp_path / "checkpoints", "auto")
    for facts, sentence in (
        ({"data": {"n": [4]}}, r"data\.n was \[3\] and is \[4\] now"),
        ({}, r"data was \{'n': \[3\]\} and is None now"),
    ):
        place = lab.place(tmp_path, **facts)
        with pytest.raises(CheckpointError, match=sentence):
            train(lab.make_model(), config, 0, lab.Samples(4), place, run, start=start)
    wide = dataclasses.replace(lab.MODEL, chunk=3, action_dim=3)
    place = lab.place(tmp_path, data={"n": [3]})
    with pytest.raises(CheckpointError, match=r"'model\.action_.*, this run needs"):
        train(lab.make_model(0, wide), config, 0, lab.Samples(4), place, run, start=start)


def test_where_a_run_starts(lab: ModuleType, tmp_path: Path) -> None:
    """Anew, from the newest, or from the one that is named."""
    directory = tmp_path / "checkpoints"
    assert find_start(directory, "auto") is None
    run = RunConfig(save_every=1)
    train(lab.make_model(), lab.longer(2), 0, lab.Samples(4), lab.place(tmp_path), run)
    first, second = checkpoint.checkpoints(directory)
    assert find_start(directory, "no") is None
    assert find_start(directory, "auto") == second
    assert find_start(directory, first) == first
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        find_start(directory, tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"save_every": -1}, "save_every is -1, expected at least 0"),
        ({"keep": 0}, "keep is 0, expected at least 1"),
        ({"parts": 0}, "parts is 0, expected at least 1"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(change: dict[str, int], sentence: str) -> None:
    """In one sentence."""
    with pytest.raises(ConfigError, match=sentence):
        RunConfig(**change)  # pyright: ignore[reportArgumentType]
