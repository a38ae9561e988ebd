"""The same batches whoever makes them, in any order, on any number of ranks; damaged samples go."""

import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import _utils as data_utils

from vlakern.data import loader as loading
from vlakern.data.collate import Augment, TrainBatch
from vlakern.data.corpus import Corpus, open_corpus
from vlakern.data.loader import Loader
from vlakern.data.mixture import DatasetEntry, Mixture
from vlakern.errors import ConfigError, DatasetError, InputError
from vlakern.models import preset
from vlakern.models.weights import Processing

RELATIVE = Processing("zscore", "zscore", execute=2, frame="world_relative")
ALL = Augment(drop_state=0.3, drop_view=0.3, shift=2, jitter=0.1)


def corpus_of(robots: Path, memory: int = 1 << 30) -> Corpus:
    entries = tuple(DatasetEntry(name, str(robots / name)) for name in ("sawyer", "panda"))
    return open_corpus(Mixture("m", entries), preset("tiny"), RELATIVE, memory=memory)


@pytest.fixture(scope="module")
def corpus(robots: Path) -> Corpus:
    """Two robots, one in memory and one on disk."""
    return corpus_of(robots, (12 + 7 + 9) * 2 * 28 * 28 * 3)


def loader(corpus: Corpus, **more: Any) -> Loader:
    settings = {"seed": 7, "batch_size": 6, "augment": ALL, **more}
    return Loader(corpus, corpus.sampler(7), **settings)


def same(one: TrainBatch, other: TrainBatch) -> bool:
    """Bit by bit, everything."""
    pairs = [
        (one.prefix.layout.who.kv_end, other.prefix.layout.who.kv_end),
        (one.prefix.layout.positions, other.prefix.layout.positions),
        *((getattr(one.prefix, n), getattr(other.prefix, n)) for n in ("pixels_V3SS", "tokens_L")),
        *((getattr(one.prefix, n), getattr(other.prefix, n)) for n in ("state_RS", "cu_prefix")),
        *(
            (getattr(one, field.name), getattr(other, field.name))
            for field in dataclasses.fields(one)
            if field.name not in ("prefix", "sample_ids")
        ),
    ]
    return one.sample_ids == other.sample_ids and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_do_not_change_a_bit(corpus: Corpus, workers: int) -> None:
    """Also when a run begins in the middle and jumps."""
    with loader(corpus) as plain, loader(corpus, workers=workers) as many:
        for step in (0, 1, 2, 40, 41, 3):
            assert same(plain.batch(step), many.batch(step)), step
            assert many.waited > 0


def test_batches_depend_on_their_step_alone(corpus: Corpus) -> None:
    """Not on the ones before; steps differ from each other and with the seed."""
    first, again, other = loader(corpus), loader(corpus), loader(corpus, seed=8)
    batches = [first.batch(step) for step in range(4)]
    assert same(again.batch(3), batches[3])
    assert not same(again.batch(2), batches[3])
    assert not same(other.batch(3), batches[3])


def test_ranks_and_parts_share_out_one_batch(corpus: Corpus) -> None:
    """Two ranks with three parts make the samples of one, each exactly as it was."""
    whole = loader(corpus, batch_size=12).batch(5)
    assert whole.numbers_B is not None
    assert whole.numbers_B.tolist() == list(range(60, 72))
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for rank in range(2):
        one = loader(corpus, batch_size=12, rank=rank, world=2, parts=3)
        for part in range(3):
            batch = one.batch(5, part)
            assert batch.numbers_B is not None
            for row, number in enumerate(batch.numbers_B.tolist()):
                found[number] = batch.sample_ids[row], batch.action_BHA[row]
    assert sorted(found) == list(range(60, 72))
    for row, number in enumerate(whole.numbers_B.tolist()):
        assert found[number][0] == whole.sample_ids[row]
        assert torch.equal(found[number][1], whole.action_BHA[row])


def test_parts_come_from_workers_in_order(corpus: Corpus) -> None:
    """Micro-batches of a step, then of the next."""
    settings: dict[str, Any] = {"batch_size": 4, "parts": 2}
    with loader(corpus, **settings) as plain, loader(corpus, workers=2, **settings) as many:
        for step, part in ((0, 0), (0, 1), (1, 0), (1, 1), (7, 1), (8, 0)):
            assert same(plain.batch(step, part), many.batch(step, part))


def test_dropout_has_the_papers_rates(corpus: Corpus) -> None:
    """0.2 of states are zero as a whole; a view stays with 0.8, and one always does."""
    augment = Augment(drop_state=0.2, drop_view=0.2)
    batch = loader(corpus, batch_size=600, augment=augment).batch(0)
    zero = (batch.prefix.state_RS == 0).all(1)
    assert 0.2 * 600 - 4 * 9.8 < int(zero.sum()) < 0.2 * 600 + 4 * 9.8
    views = torch.bincount(batch.view_rows, minlength=600)
    assert set(views.tolist()) == {1, 2}
    both = int((views == 2).sum())
    assert 0.64 * 600 - 4 * 11.8 < both < 0.64 * 600 + 4 * 11.8
    # Packed: a dropped view leaves no token behind.
    lengths = batch.prefix.cu_prefix.diff()
    assert len(batch.prefix.layout.positions) == int(lengths.sum())
    assert float(lengths[views == 1].float().mean()) < float(lengths[views == 2].float().mean())


def damage(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, bad: Callable[[int, int], bool]
) -> None:
    """Frames whose pictures cannot be decoded."""
    for one in corpus.recordings:
        picture = one.picture

        def damaged(i: int, view: str, frame: int, side: int, picture: Any = picture) -> Any:
            if bad(i, frame):
                raise DatasetError(f"frame {frame} of episode {i} cannot be decoded")
            return picture(i, view, frame, side)

        monkeypatch.setattr(one, "picture", damaged)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_replaced_and_named(
    robots: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """By another of its dataset, the same whoever makes the batch; the others do not change."""
    clean = loader(corpus_of(robots), batch_size=40).batch(0)
    broken = corpus_of(robots)
    damage(broken, monkeypatch, lambda i, frame: (i, frame) == (0, 3))
    with loader(broken, batch_size=40, workers=workers) as one:
        batch = one.batch(0)
        rows = [row for row, name in enumerate(clean.sample_ids) if name.endswith("/0/3")]
        assert rows
        assert set(one.quarantined) == {clean.sample_ids[row] for row in rows}
        assert all("cannot be decoded" in reason for reason in one.quarantined.values())
        assert one.quarantine.drawn == 40 + one.quarantine.count
    for row, name in enumerate(batch.sample_ids):
        assert not name.endswith("/0/3")
        if row in rows:
            assert name.split("/")[0] == clean.sample_ids[row].split("/")[0]
        else:
            assert name == clean.sample_ids[row]
            assert torch.equal(batch.action_BHA[row], clean.action_BHA[row])
    again = loader(broken, batch_size=40).batch(0)
    assert same(batch, again)


@pytest.mark.parametrize("workers", [0, 2])
def test_many_damaged_samples_stop_the_run(
    robots: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """One sentence, also from a worker."""
    broken = corpus_of(robots)
    damage(broken, monkeypatch, lambda i, frame: i == 0)
    with (
        loader(broken, batch_size=40, workers=workers) as one,
        pytest.raises(DatasetError, match=r"samples are damaged, more than 0\.1%") as caught,
    ):
        [one.batch(step) for step in range(3)]
    assert "\n" not in str(caught.value)
    damage(broken, monkeypatch, lambda i, frame: True)
    with (
        loader(broken, workers=workers) as one,
        pytest.raises(
            DatasetError, match="100 samples in a row are damaged, the last is"
        ) as caught,
    ):
        one.batch(0)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_not_finite_or_no_rotation_are_damage(
    robots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would poison the whole batch; the sample alone is replaced."""
    for bad in ("nan", "encode"):
        broken = corpus_of(robots)
        clip = broken.clip

        def wrong(sample: Any, number: int, *rest: Any, clip: Any = clip, bad: str = bad) -> Any:
            found = clip(sample, number, *rest)
            if (sample.dataset, sample.episode) == (1, 1):
                poison = np.full_like(found.state, np.nan if bad == "nan" else 1e300)
                found = dataclasses.replace(found, state=poison)
            return found

        monkeypatch.setattr(broken, "clip", wrong)
        monkeypatch.setattr(loading.Quarantine, "add", lambda *rest: None)
        batch = loader(broken, batch_size=30).batch(0)
        assert torch.isfinite(batch.prefix.state_RS).all()
        assert not any(name.startswith("panda/1/") for name in batch.sample_ids)
        assert any(name.startswith("panda/0/") for name in batch.sample_ids)


def test_a_worker_that_dies_is_one_sentence(robots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback, and not a wait without end."""
    broken = corpus_of(robots)
    monkeypatch.setattr(broken, "clip", lambda *rest: os._exit(3))
    with (
        loader(broken, workers=1) as one,
        pytest.raises(DatasetError, match="worker processes of the loader failed") as caught,
    ):
        one.batch(0)
    assert "\n" not in str(caught.value)


def test_a_worker_that_hangs_is_waited_for_and_then_killed(
    robots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wait is not the end, the last one is; no process is left that ignores SIGTERM."""
    slow = corpus_of(robots)
    clip, pause = slow.clip, [1.0]

    def late(*rest: Any) -> Any:
        time.sleep(pause[0])
        return clip(*rest)

    monkeypatch.setattr(slow, "clip", late)
    monkeypatch.setattr(loading, "PATIENCE", 3.0)
    monkeypatch.setattr(loading, "WAITS", 10)
    monkeypatch.setattr(data_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    with loader(slow, batch_size=1, workers=1) as one:
        assert one.batch(0).sample_ids == loader(slow, batch_size=1).batch(0).sample_ids
        one.close()
        assert not multiprocessing.active_children()
        pause[0] = 1000.0
        monkeypatch.setattr(loading, "PATIENCE", 1.0)
        with pytest.raises(DatasetError, match=r"failed \(no batch for 1.0 s\)"):
            one.batch(1)
        assert not multiprocessing.active_children()


def test_a_worker_does_not_tell_of_a_run_that_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The thread that hands batches over meets a closed connection then; other errors are told."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    loading._stay(0)
    for error in (EOFError(), ConnectionResetError("gone")):
        sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err == ""
    sys.excepthook(ValueError, ValueError("a defect"), None)
    assert "ValueError: a defect" in capsys.readouterr().err


def test_what_cannot_be_divided_or_counted_is_refused(corpus: Corpus) -> None:
    """Naming the numbers."""
    with pytest.raises(ConfigError, match="batch size 6 is not divisible by 2 ranks times 2 parts"):
        loader(corpus, world=2, parts=2)
    for wrong, said in (
        ({"batch_size": 0}, "the batch size is 0, expected at least 1"),
        ({"workers": -1}, "the number of workers is -1"),
        ({"parts": 0}, "the number of micro-batches is 0"),
        ({"rank": 1}, "rank 1 of 1"),
        ({"seed": -1}, "the seed is -1"),
    ):
        with pytest.raises(ConfigError, match=said):
            loader(corpus, **wrong)
    with pytest.raises(InputError, match="step -1, part 0"):
        loader(corpus).batch(-1)
    with pytest.raises(InputError, match="step 0, part 1"):
        loader(corpus).batch(0, 1)
