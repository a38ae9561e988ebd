"""The desk: rules, models and videos act together, or not at all."""

import io
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
