"""Names over results: every trial gets the model that the sealed key gave it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from vlakern.blind.opened import closed_study
from vlakern.blind.results import UNKNOWN, Judgement
from vlakern.errors import StudyError


def run_all(here: Any, abort: int = 2) -> None:
    """A whole study: some aborts, guesses by turns, success for one model alone."""
    index = 0
    while (turn := here.conduct.state.next) is not None:
        code = turn.trial.code
        if index < abort and here.conduct.rest() is None:
            here.conduct.start(f"s{index}", "operator", code)
            here.conduct.abort(f"a{index}", "operator", code, "operator error")
            index += 1
            continue
        here.run()
        here.conduct.guess(f"g{code}", "operator", code, ("same", "different", UNKNOWN)[index % 3])
        success = here.key.allocation.models[code] == "secret-1"
        progress = 0.5 if turn.trial.task == "push" else None
        one = Judgement("judge-1", success, progress, None if success else "stuck")
        here.conduct.judge(f"j{code}", "judge-1", code, one)
        index += 1


def test_a_whole_study_opens(site: Callable[..., Any]) -> None:
    """Counts, names, order, voids and truths of guesses are those of the key and the record."""
    here = site(trials=3)
    run_all(here)
    with pytest.raises(StudyError, match="not closed"):
        closed_study(here.public, here.key, here.conduct.state)
    here.conduct.close("c", "analyst")
    with pytest.raises(StudyError, match="not unblinded"):
        closed_study(here.public, here.key, here.conduct.state)
    here.conduct.request("r", "analyst")
    here.conduct.unblind("u", "analyst", here.public.commitment)
    found = closed_study(here.public, here.key, here.conduct.state)
    assert found.verified
    counts = Counter((one.model, one.task) for one in found.results)
    assert set(counts.values()) == {3}
    assert len(counts) == 8
    assert {one.model for one in found.results if one.success} == {"secret-1"}
    assert len(found.voided) == 2
    assert [one.order for one in found.results] == sorted(one.order for one in found.results)
    for group, names in enumerate(found.groups):
        assert {one.model for one in found.results if one.group == group} == set(names)
    order = {one.order: one.model for one in (*found.results, *found.voided)}
    for one in found.results:
        if one.order and one.guess is not None:
            assert one.truth == ("same" if order[one.order - 1] == one.model else "different")
    assert {model.name: model.identity for model in found.models} == here.key.identities


def test_an_incomplete_study_says_so(site: Callable[..., Any]) -> None:
    """The reason and late replies stand in the notes."""
    here = site()
    code = here.conduct.state.next.trial.code
    here.conduct.start("s", "operator", code)
    here.conduct.end("e", "operator", code, here.video(), requests=9, late=2)
    here.conduct.close("c", "analyst", "the arm broke")
    here.conduct.request("r", "analyst")
    here.conduct.unblind("u", "analyst", here.public.commitment)
    found = closed_study(here.public, here.key, here.conduct.state)
    assert found.results == ()
    assert "the arm broke" in found.notes[0]
    assert "2 of 9 replies" in found.notes[1]


def test_corrections_are_counted(site: Callable[..., Any]) -> None:
    """The later word is the result, and a reader is told that there was an earlier one."""
    here = site()
    code = here.run()
    progress = 0.5 if here.conduct.state.trials[code].trial.task == "push" else None
    for success, why in ((True, ""), (False, "misclick")):
        one = Judgement("judge-1", success, progress, None if success else "stuck")
        if why:
            here.conduct.correct("c", "judge-1", code, one, why)
        else:
            here.conduct.judge("j", "judge-1", code, one)
    here.conduct.close("e", "analyst", "enough")
    here.conduct.request("r", "analyst")
    here.conduct.unblind("u", "analyst", here.public.commitment)
    found = closed_study(here.public, here.key, here.conduct.state)
    assert [one.success for one in found.results] == [False]
    assert any("corrected 1 times" in note for note in found.notes)
