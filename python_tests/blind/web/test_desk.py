"""The desk: rules, models and videos act together, or not at all."""

import io
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from vlakern.blind.web.desk import MOST_BYTES, NoModels
from vlakern.errors import StudyError

MP4 = b"\0\0\0\x18ftypisom" + bytes(40)


def test_models_follow_the_trials(pages: Callable[..., Any]) -> None:
    """A start loads the group and puts the trial on; an end and an abort take it off."""
    here = pages()
    first, second = here.desk.plan.plan.queue[:2]
    here.desk.start("a", first.code)
    assert (here.models.current, here.models.groups[0]) == (first.code, 0)
    here.desk.stop("b", first.code, io.BytesIO(MP4))
    assert here.models.current is None
    assert here.desk.conduct.state.trials[first.code].requests == 7
    turn = here.desk.conduct.state.next.trial.code
    here.desk.start("c", turn)
    here.desk.abort("d", turn, "operator error")
    assert here.models.current is None
    assert second.code in here.desk.conduct.state.queue


def test_a_trial_that_may_not_start_loads_nothing(pages: Callable[..., Any]) -> None:
    """Another trial's turn: the models stay as they are."""
    here = pages()
    with pytest.raises(StudyError, match="not next"):
        here.desk.start("a", here.desk.plan.plan.queue[3].code)
    assert here.models.groups == []
    assert here.models.current is None


def test_a_video_that_is_too_large_leaves_nothing(
    pages: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing half-written, and the trial goes on."""
    monkeypatch.setattr("vlakern.blind.web.desk.MOST_BYTES", 30)
    assert MOST_BYTES > 30
    here = pages()
    code = here.desk.plan.plan.queue[0].code
    here.desk.start("a", code)
    with pytest.raises(StudyError, match="larger than"):
        here.desk.stop("b", code, io.BytesIO(MP4))
    assert list((here.folder / "videos").iterdir()) == []
    assert here.models.current == code


def test_steps_without_a_robot_need_no_models() -> None:
    """They count no requests."""
    none = NoModels()
    none.prepare(0)
    none.begin("A")
    assert none.end() == 0


def test_why_a_group_does_not_load_is_the_runners_to_know(
    pages: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The operator reads that it is not ready; the model's name is on the terminal alone."""
    here = pages()
    code = here.desk.plan.plan.queue[0].code

    def slow(group: int) -> None:
        raise StudyError("model 'secret-3' takes 400 ms")

    here.models.prepare = slow
    with pytest.raises(StudyError, match="the models of group 1 are not ready") as caught:
        here.desk.start("a", code)
    assert "secret" not in str(caught.value)
    assert "secret-3" in caplog.text
    assert here.desk.conduct.state.running is None


def test_a_video_stays_where_its_event_may_be_on_disk(
    pages: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that is done and reported as failed: the trial has ended, and has its video."""
    here = pages()
    code = here.desk.plan.plan.queue[0].code
    here.desk.start("a", code)
    real = here.desk.store._database

    class Committed:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def execute(self, sentence: str, *values: Any) -> Any:
            found = real.execute(sentence, *values)
            if sentence == "COMMIT":
                raise sqlite3.OperationalError("disk I/O error")
            return found

    here.desk.store._database = Committed()
    with pytest.raises(sqlite3.OperationalError):
        here.desk.stop("b", code, io.BytesIO(MP4))
    trial = here.desk.conduct.state.trials[code]
    assert trial.ended is not None
    assert (here.folder / "videos" / str(trial.video)).read_bytes() == MP4
    assert here.desk.stop("b", code, io.BytesIO(MP4)).kind == "ended"
