"""What a page shows: plain values from the public plan and the record, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest

from python_tests.blind.conftest import clip
from vlakern.blind.results import Judgement
from vlakern.blind.web import views
from vlakern.errors import StudyError


def run(here: Any, count: int) -> None:
    """Trials that end at once, with their guesses."""
    import io

    for index in range(count):
        code = here.desk.conduct.state.next.trial.code
        here.desk.start(f"s{index}", code)
        here.desk.stop(f"e{index}", code, io.BytesIO(clip()))


def test_no_view_names_a_model(pages: Callable[..., Any]) -> None:
    """Every role's values, before and while trials run, hold no name of the pool."""
    here = pages()
    run(here, 2)
    shown = [
        views.operator(here.desk, {}),
        views.judge(here.desk, "judge-1", {}),
        views.adjudicator(here.desk, {}),
        views.analyst(here.desk, {}),
    ]
    assert "secret" not in repr(shown)
    assert "policy" not in repr(shown)


def test_the_first_trial_is_compared_with_nothing(pages: Callable[..., Any]) -> None:
    """Its guess is not asked; the second one's is."""
    here = pages()
    run(here, 1)
    assert views.operator(here.desk, {})["step"] == "next"
    run_again = here.desk.conduct.state.next.trial.code
    here.desk.start("again", run_again)
    import io

    here.desk.stop("stop again", run_again, io.BytesIO(clip()))
    assert views.operator(here.desk, {})["step"] == "guess"


def test_progress_counts_voided_trials_once(pages: Callable[..., Any]) -> None:
    """An abort moves the end, not the total."""
    here = pages()
    total = views.operator(here.desk, {})["total"]
    code = here.desk.conduct.state.next.trial.code
    here.desk.start("s", code)
    here.desk.abort("a", code, "operator error")
    shown = views.operator(here.desk, {})
    assert (shown["done"], shown["total"]) == (0, total)


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({}, "choose success or failure"),
        ({"outcome": "maybe"}, "choose success or failure"),
        ({"outcome": "success", "failure": "stuck"}, "a success has no failure tag"),
        ({"outcome": "failure"}, "choose a tag"),
    ],
)
def test_a_verdict_is_whole(pages: Callable[..., Any], form: dict[str, str], sentence: str) -> None:
    """What is missing is said before anything is saved."""
    here = pages()
    code = here.desk.plan.plan.queue[0].code
    with pytest.raises(StudyError, match=sentence):
        views.verdict(here.desk, "judge-1", {"code": code, **form})


def test_milestones_are_a_fraction(pages: Callable[..., Any]) -> None:
    """Two of three ticked; a success has all of them."""
    here = pages()
    code = next(one.code for one in here.desk.plan.plan.queue if one.task == "push")
    ticked = {"code": code, "milestone-0": "yes", "milestone-1": "yes"}
    found = views.verdict(
        here.desk, "judge-1", {**ticked, "outcome": "failure", "failure": "stuck"}
    )
    assert found == Judgement("judge-1", False, 2 / 3, "stuck")
    with pytest.raises(StudyError, match="a success reached all milestones"):
        views.verdict(here.desk, "judge-1", {**ticked, "outcome": "success"})
