"""State is folded from events: a restart stands where the last acknowledged event left it."""

from collections.abc import Callable
from typing import Any

from vlakern.blind.protocol import Conduct
from vlakern.blind.results import Judgement
from vlakern.blind.state import ADJUDICATOR, TrialState, fold

REASON = "hardware fault"


def test_a_restart_stands_where_it_stood(site: Callable[..., Any]) -> None:
    """After starts, ends, aborts, breaks and judgements the folded state is the live one."""
    here = site()
    for index in range(9):
        code = here.run()
        if index % 3 == 0:
            turn = here.conduct.state.next
            if here.conduct.rest() is None and turn is not None:
                here.conduct.start(f"s{index}", "operator", turn.trial.code)
                here.conduct.abort(f"a{index}", "operator", turn.trial.code, REASON)
        if here.public.tasks[0].name == here.conduct.state.trials[code].trial.task:
            here.conduct.judge(f"j{index}", "judge-1", code, Judgement("judge-1", True))
    again = Conduct(here.public, here.store, here.key.allocation.spares, here.folder / "videos")
    assert again.state == here.conduct.state
    assert fold(here.public, here.store.events) == here.conduct.state
    assert len(here.conduct.state.aborts) >= 2


def test_what_was_started_heads_the_queue(site: Callable[..., Any]) -> None:
    """However often trials are aborted, repetitions come later and keep task and condition."""
    here = site(every=1000)
    for index in range(4):
        turn = here.conduct.state.next
        here.conduct.start(f"s{index}", "operator", turn.trial.code)
        here.conduct.abort(f"a{index}", "operator", turn.trial.code, REASON)
        state = here.conduct.state
        assert state.queue[: len(state.started)] == state.started
        repeat = here.store.events[-1].data["repeat"]
        assert repeat not in state.started
        old, new = state.trials[turn.trial.code].trial, state.trials[repeat].trial
        assert (old.task, old.condition, old.group) == (new.task, new.condition, new.group)
        models = here.key.allocation.models
        assert models[old.code] == models[new.code]


def test_two_judges_agree_or_are_settled(site: Callable[..., Any]) -> None:
    """Progress is their mean; a dispute has no outcome before the adjudicator's word."""
    trial = TrialState(site().public.plan.queue[0])
    first, second = Judgement("judge-1", True, 1.0), Judgement("judge-2", True, 0.5)
    trial.judgements["judge-1"] = first
    assert trial.outcome(2) is None
    trial.judgements["judge-2"] = second
    outcome = trial.outcome(2)
    assert outcome is not None
    assert (outcome.success, outcome.progress) == (True, 0.75)
    trial.judgements["judge-2"] = Judgement("judge-2", False, 0.5, "stuck")
    assert trial.disputed
    assert trial.outcome(2) is None
    trial.judgements[ADJUDICATOR] = Judgement(ADJUDICATOR, False, 0.5, "stuck")
    assert not trial.disputed
    assert trial.outcome(2) == trial.judgements[ADJUDICATOR]
