"""The rules: whose turn it is, breaks, aborts, judgements, and two steps to the names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlakern.blind.protocol import Conduct
from vlakern.blind.results import UNKNOWN, Judgement
from vlakern.blind.state import ADJUDICATOR
from vlakern.blind.store import Store
from vlakern.errors import StudyError


def verdict(here: Any, code: str, judge: str = "judge-1", success: bool = True) -> Judgement:
    """A judgement that suits the trial's task."""
    rubric = here.conduct.state.trials[code].trial.task == "push"
    return Judgement(judge, success, 1.0 if rubric else None, None if success else "stuck")


def judged(here: Any, code: str, judge: str = "judge-1", success: bool = True) -> None:
    here.conduct.judge(f"{judge} {code}", judge, code, verdict(here, code, judge, success))


def finish(here: Any) -> None:
    while here.conduct.state.next is not None:
        code = here.run()
        for judge in range(here.public.judges):
            judged(here, code, f"judge-{judge + 1}")


def test_only_the_next_trial_starts(site: Callable[..., Any]) -> None:
    """Nobody chooses a trial, and two do not run at once."""
    here = site()
    first, second = here.public.plan.queue[:2]
    with pytest.raises(StudyError, match=f"trial {second.code} is not next"):
        here.conduct.start("k1", "operator", second.code)
    here.conduct.start("k2", "operator", first.code)
    with pytest.raises(StudyError, match=f"trial {first.code} is running"):
        here.conduct.start("k3", "operator", second.code)


def test_a_form_sent_twice_is_answered_from_the_record(site: Callable[..., Any]) -> None:
    """Every kind of form: the second time gives the same event, whatever has happened since."""
    here = site(every=1)
    code = here.public.plan.queue[0].code
    video = here.video()
    forms: list[Callable[[], Any]] = [
        lambda: here.conduct.start("1", "operator", code),
        lambda: here.conduct.end("2", "operator", code, video),
        lambda: here.conduct.guess("3", "operator", code, "same"),
        lambda: here.conduct.judge("4", "judge-1", code, verdict(here, code)),
        lambda: here.conduct.pause("5", "operator"),
    ]
    first = [form() for form in forms]
    assert [form() for form in forms] == first
    assert len(here.store.events) == 1 + len(forms)
    here.clock.pass_by(301.0)
    here.conduct.pause("6", "operator")
    turn = here.conduct.state.next.trial.code
    here.conduct.start("7", "operator", turn)
    gone = here.conduct.abort("8", "operator", turn, "hardware fault")
    assert here.conduct.abort("8", "operator", turn, "hardware fault") == gone


def test_breaks_are_enforced(site: Callable[..., Any]) -> None:
    """After five trials no sixth starts before five minutes of break are over."""
    here = site(trials=3, every=5)
    for _ in range(5):
        here.run()
    turn = here.conduct.state.next.trial.code
    with pytest.raises(StudyError, match="5 trials were run; take the break of 5 minutes"):
        here.conduct.start("k", "operator", turn)
    here.conduct.pause("p1", "operator")
    here.clock.pass_by(299.0)
    with pytest.raises(StudyError, match="the break goes on for 1 s"):
        here.conduct.pause("p2", "operator")
    with pytest.raises(StudyError, match="take the break"):
        here.conduct.start("k", "operator", turn)
    here.clock.pass_by(2.0)
    here.conduct.pause("p2", "operator")
    here.conduct.start("k", "operator", turn)


def test_groups_are_apart(site: Callable[..., Any]) -> None:
    """Between two groups lies the longer break, and there alone."""
    here = site(trials=1, every=1000)
    pauses = 0
    while (turn := here.conduct.state.next) is not None:
        rest = here.conduct.rest()
        if rest is not None:
            assert rest.minutes == 10.0
            assert rest.why == "a group is complete"
            assert turn.trial.group == 1
            pauses += 1
        here.run()
    assert pauses == 1


def test_an_abort_needs_one_of_the_reasons(site: Callable[..., Any]) -> None:
    """Reasons were fixed before the study; so was how often a trial may be repeated."""
    here = site(every=1000)
    origin = here.public.plan.queue[0].code
    done = 0
    while here.conduct.state.aborts.get(origin, 0) < 5:
        code = here.conduct.state.next.trial.code
        here.conduct.start(f"s{done}", "operator", code)
        done += 1
        with pytest.raises(StudyError, match="reason 'it was losing' is none of"):
            here.conduct.abort(f"a{done}", "operator", code, "it was losing")
        if here.conduct.state.origin[code] == origin:
            here.conduct.abort(f"a{done}", "operator", code, "operator error")
        else:
            here.conduct.end(f"e{done}", "operator", code, here.video())
    while True:
        code = here.conduct.state.next.trial.code
        here.conduct.start(f"s{done}", "operator", code)
        done += 1
        if here.conduct.state.origin[code] == origin:
            with pytest.raises(StudyError, match="aborted 5 times before"):
                here.conduct.abort("last", "operator", code, "operator error")
            return
        here.conduct.end(f"e{done}", "operator", code, here.video())


def test_a_trial_without_its_video_does_not_end(site: Callable[..., Any]) -> None:
    """Nor with a name that leads elsewhere; and a video that changed is not judged."""
    here = site()
    code = here.public.plan.queue[0].code
    here.conduct.start("s", "operator", code)
    for name in ("lost.mp4", "../plan.json", ""):
        with pytest.raises(StudyError, match="has no video"):
            here.conduct.end("e", "operator", code, name)
    video = here.video()
    here.conduct.end("e", "operator", code, video)
    (here.folder / "videos" / video).write_bytes(b"another one")
    with pytest.raises(StudyError, match="not the one that was recorded"):
        judged(here, code)
    (here.folder / "videos" / video).unlink()
    with pytest.raises(StudyError, match="has no video"):
        judged(here, code)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (Judgement("judge-1", False), "a failure needs a tag"),
        (Judgement("judge-1", True, None, "stuck"), "a failure needs a tag"),
        (Judgement("judge-1", False, None, "ugly"), "tag 'ugly' is none of"),
        (Judgement("judge-1", True, 0.5), "has no rubric"),
    ],
)
def test_a_judgement_is_checked(site: Callable[..., Any], wrong: Judgement, sentence: str) -> None:
    """Success and tag exclude each other; progress is there exactly with a rubric."""
    here = site()
    code = here.run()
    while here.conduct.state.trials[code].trial.task != "reach":
        code = here.run()
    with pytest.raises(StudyError, match=sentence):
        here.conduct.judge("j", "judge-1", code, wrong)


def test_judges_see_another_order(site: Callable[..., Any]) -> None:
    """Each judge's list is a shuffle of its own, and a judged trial leaves it."""
    here = site(judges=2, trials=3, every=1000)
    codes = [here.run() for _ in range(12)]
    one, two = here.conduct.to_judge("judge-1"), here.conduct.to_judge("judge-2")
    assert sorted(one) == sorted(two) == sorted(codes)
    assert one != codes
    assert one != two
    judged(here, one[0], "judge-1")
    assert here.conduct.to_judge("judge-1") == one[1:]
    assert one[0] in here.conduct.to_judge("judge-2")


def test_a_dispute_is_settled_once(site: Callable[..., Any]) -> None:
    """Two judges disagree; the adjudicator's word counts, and theirs stay."""
    here = site(judges=2)
    code = here.run()
    judged(here, code, "judge-1", True)
    judged(here, code, "judge-2", False)
    assert here.conduct.disputed() == [code]
    here.conduct.adjudicate("x", ADJUDICATOR, code, verdict(here, code, ADJUDICATOR, False))
    assert here.conduct.disputed() == []
    assert not here.conduct.state.trials[code].outcome(2).success
    assert len(here.conduct.state.trials[code].judgements) == 3
    with pytest.raises(StudyError, match="not disputed"):
        here.conduct.adjudicate("y", ADJUDICATOR, code, verdict(here, code, ADJUDICATOR, True))


def test_a_correction_is_added_not_edited(site: Callable[..., Any]) -> None:
    """A judge's second thought has a reason, counts, and leaves the first in the record."""
    here = site()
    code = here.run()
    judged(here, code, success=True)
    second = verdict(here, code, success=False)
    with pytest.raises(StudyError, match="a correction needs a reason"):
        here.conduct.judge("j2", "judge-1", code, second)
    with pytest.raises(StudyError, match="a reason of 1 to"):
        here.conduct.correct("c", "judge-1", code, verdict(here, code, success=False), " ")
    here.conduct.correct("c", "judge-1", code, verdict(here, code, success=False), "misclick")
    assert not here.conduct.state.trials[code].outcome(1).success
    kinds = [event.kind for event in here.store.events]
    assert kinds[-2:] == ["judged", "corrected"]


def test_a_guess_is_asked_once(site: Callable[..., Any]) -> None:
    """After the end, from the given choices or none."""
    here = site()
    code = here.run()
    with pytest.raises(StudyError, match="guess 'secret-1' is none of"):
        here.conduct.guess("g", "operator", code, "secret-1")
    here.conduct.guess("g", "operator", code, UNKNOWN)
    with pytest.raises(StudyError, match="takes no guess"):
        here.conduct.guess("h", "operator", code, "same")


def test_names_take_a_closed_study_and_two_steps(site: Callable[..., Any]) -> None:
    """Not before all is judged or a reason given, not without the request, not by guessing."""
    here = site(trials=1, every=1000)
    with pytest.raises(StudyError, match="the study is not closed"):
        here.conduct.request("r", "analyst")
    here.run()
    with pytest.raises(StudyError, match="trials are not run; 1 trials are not judged"):
        here.conduct.close("c", "analyst")
    finish_rest(here)
    here.conduct.close("c", "analyst")
    with pytest.raises(StudyError, match="the study is closed"):
        judged(here, here.public.plan.queue[0].code, "judge-9")
    with pytest.raises(StudyError, match="nobody has requested"):
        here.conduct.unblind("u", "analyst", here.public.commitment)
    here.conduct.request("r", "analyst")
    with pytest.raises(StudyError, match="is not the study's"):
        here.conduct.unblind("u", "analyst", "0" * 64)
    here.conduct.unblind("u", "analyst", here.public.commitment)
    assert here.conduct.state.unblinded is not None


def finish_rest(here: Any) -> None:
    """Judges what was run, then runs and judges the rest."""
    for code in here.conduct.to_judge("judge-1"):
        judged(here, code)
    finish(here)


def test_an_early_end_says_why(site: Callable[..., Any]) -> None:
    """A study may be closed incomplete, with its reason in the record."""
    here = site()
    judged(here, here.run())
    with pytest.raises(StudyError, match="the reason has 2001 characters"):
        here.conduct.close("c", "analyst", "x" * 2001)
    here.conduct.close("c", "analyst", "the arm broke")
    assert here.store.events[-1].data["incomplete"] == "the arm broke"
    assert here.conduct.state.closed == "the arm broke"


def test_a_record_of_another_study_is_refused(site: Callable[..., Any], tmp_path: Path) -> None:
    """Its first entry names the study it belongs to."""
    here = site()
    with Store(tmp_path / "other") as store:
        store.append("lock", "runner", "locked", {"commitment": "0" * 64})
        with pytest.raises(StudyError, match="is not that of the study"):
            Conduct(here.public, store, {}, here.folder / "videos")


def test_nothing_is_added_after_the_end(site: Callable[..., Any]) -> None:
    """Not a word that settles a dispute, which would be spoken with the names known; no break."""
    here = site(judges=2, every=1)
    code = here.run()
    judged(here, code, "judge-1", True)
    judged(here, code, "judge-2", False)
    here.conduct.close("c", "analyst", "the arm broke")
    count = len(here.store.events)
    word = verdict(here, code, ADJUDICATOR, False)
    with pytest.raises(StudyError, match="the study is closed"):
        here.conduct.adjudicate("x", ADJUDICATOR, code, word)
    with pytest.raises(StudyError, match="the study is closed"):
        here.conduct.pause("p", "operator")
    assert len(here.store.events) == count


def test_a_complete_study_has_no_excuse(site: Callable[..., Any]) -> None:
    """A reason typed where nothing is missing does not make the report call it incomplete."""
    here = site(trials=1, every=1000)
    finish(here)
    here.conduct.close("c", "analyst", "we are done")
    assert here.conduct.state.closed == ""
