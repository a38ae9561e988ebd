"""The desk: rules, models and videos act together, or not at all."""

import io
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from python_tests.blind.conftest import clip
from vlakern.blind.web.desk import MOST_BYTES, NoModels
from vlakern.errors import StudyError

MP4 = clip()


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


def test_a_forms_key_is_its_own(pages: Callable[..., Any]) -> None:
    """A stop with the key of another form, or again with another video, is not said to be saved."""
    here = pages()
    code = here.desk.plan.plan.queue[0].code
    here.desk.start("a", code)
    with pytest.raises(StudyError, match="saved before with another content"):
        here.desk.stop("a", code, io.BytesIO(MP4))
    here.desk.stop("b", code, io.BytesIO(MP4))
    with pytest.raises(StudyError, match="has ended with another video, which is kept"):
        here.desk.stop("b", code, io.BytesIO(clip(1)))
    kept = list((here.folder / "videos").iterdir())
    assert [one.read_bytes() for one in kept] == [MP4]
    assert [one.stat().st_mode & 0o077 for one in kept] == [0]


def test_half_a_video_of_a_crash_is_removed(pages: Callable[..., Any]) -> None:
    """It may hold what its recorder wrote."""
    here = pages()
    (here.folder / "videos/.0123.part").write_bytes(b"half")
    for path in (here.folder, here.folder / "videos"):  # as an older version left them
        path.chmod(0o755)
    here.desk.close()
    here.desk.__init__(here.folder, here.models)
    assert list((here.folder / "videos").iterdir()) == []
    assert {path.stat().st_mode & 0o077 for path in (here.folder, here.folder / "videos")} == {0}
