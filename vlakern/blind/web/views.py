"""What each role's page shows, as plain values: nothing here knows a model."""

import secrets
from collections.abc import Mapping
from typing import Any

from vlakern.blind.results import UNKNOWN, Judgement
from vlakern.blind.state import ADJUDICATOR, TrialState
from vlakern.blind.web.desk import Desk
from vlakern.errors import StudyError

__all__ = ["PAGES", "adjudicator", "analyst", "judge", "operator", "verdict"]

PAGES = ("operator", "judge", "adjudicator", "analyst")


def operator(desk: Desk, typed: Mapping[str, str]) -> dict[str, Any]:
    """The trial that runs or is next, the break that is due, or the guess that is owed."""
    state, plan = desk.conduct.state, desk.plan
    ended = sum(one.ended is not None for one in state.trials.values())
    voided = sum(one.aborted is not None for one in state.trials.values())
    shown: dict[str, Any] = {
        "done": ended,
        "total": len(state.queue) - voided,
        "typed": typed,
        "reasons": plan.abort_reasons,
        "choices": (*plan.guess_choices, UNKNOWN),
        "compares": plan.guess_choices == ("same", "different"),
        "key": secrets.token_hex(16),
    }
    last = state.trials[state.started[-1]] if state.started else None
    rest = desk.conduct.rest()
    if state.closed is not None:
        return {**shown, "step": "over"}
    if state.running is not None:
        return {**shown, "step": "running", **_trial(desk, state.running)}
    if last is not None and last.ended is not None and last.guess is None and _asks(desk, last):
        return {**shown, "step": "guess", **_trial(desk, last)}
    if rest is not None:
        left = None if rest.left is None else int(rest.left + 0.999)
        return {**shown, "step": "rest", "why": rest.why, "minutes": rest.minutes, "left": left}
    if state.next is None:
        return {**shown, "step": "over"}
    return {**shown, "step": "next", **_trial(desk, state.next)}


def _asks(desk: Desk, trial: TrialState) -> bool:
    """The first trial has no earlier one that it could be compared with."""
    return desk.plan.guess_choices != ("same", "different") or trial.order != 0


def judge(desk: Desk, role: str, typed: Mapping[str, str], code: str = "") -> dict[str, Any]:
    """The next video of this judge, or an earlier one to correct."""
    conduct = desk.conduct
    waiting = conduct.to_judge(role)
    mine = [key for key, one in conduct.state.trials.items() if role in one.judgements]
    shown: dict[str, Any] = {
        "waiting": len(waiting),
        "judged": len(mine),
        "tags": desk.plan.failure_tags,
        "typed": typed,
        "key": secrets.token_hex(16),
        "corrects": bool(code),
        "mine": sorted(mine),
    }
    if code and code not in mine:
        raise StudyError(f"trial {code[:16]} was not judged by you; there is nothing to correct")
    if not code and not waiting:
        return {**shown, "step": "over"}
    return {**shown, "step": "judge", **_trial(desk, conduct.state.trials[code or waiting[0]])}


def adjudicator(desk: Desk, typed: Mapping[str, str], code: str = "") -> dict[str, Any]:
    """The next dispute with both judgements, unnamed, or an earlier one to correct."""
    trials, disputed = desk.conduct.state.trials, desk.conduct.disputed()
    mine = [key for key, one in trials.items() if ADJUDICATOR in one.judgements]
    shown: dict[str, Any] = {
        "waiting": len(disputed),
        "corrects": bool(code),
        "mine": sorted(mine),
        "tags": desk.plan.failure_tags,
        "typed": typed,
        "key": secrets.token_hex(16),
    }
    if code and code not in mine:
        raise StudyError(f"trial {code[:16]} was not settled by you; there is nothing to correct")
    if not code and not disputed:
        return {**shown, "step": "over"}
    trial = trials[code or disputed[0]]
    given = [one for one in trial.judgements.values() if one.judge != ADJUDICATOR]
    given.sort(key=lambda one: one.success)  # in the judges' order it would say who said what
    return {**shown, "step": "judge", "given": given, **_trial(desk, trial)}


def analyst(desk: Desk, typed: Mapping[str, str]) -> dict[str, Any]:
    """What is left to do, and the steps from the end of the study to its names."""
    state = desk.conduct.state
    return {
        "step": _stage(desk),
        "missing": desk.conduct.missing(),
        "commitment": desk.plan.commitment,
        "analysis": desk.plan.analysis,
        "started": len(state.started),
        "ended": sum(one.ended is not None for one in state.trials.values()),
        "judged": sum(one.outcome(desk.plan.judges) is not None for one in state.trials.values()),
        "entries": len(desk.store.events),
        "head": desk.store.events[-1].hash if desk.store.events else "",
        "typed": typed,
        "key": secrets.token_hex(16),
    }


def _stage(desk: Desk) -> str:
    state = desk.conduct.state
    if state.closed is None:
        return "open"
    if state.requested is None:
        return "closed"
    return "requested" if state.unblinded is None else "unblinded"


def verdict(desk: Desk, role: str, form: Mapping[str, str]) -> Judgement:
    """The judgement of a form.

    Raises:
        StudyError: no outcome was chosen.
    """
    if form.get("outcome") not in ("success", "failure"):
        raise StudyError("choose success or failure")
    success = form["outcome"] == "success"
    trial = desk.conduct.state.trials.get(form.get("code", ""))
    steps = () if trial is None else _milestones(desk, trial)
    reached = [index for index in range(len(steps)) if form.get(f"milestone-{index}") == "yes"]
    tag = form.get("failure") or None
    if success and tag is not None:
        raise StudyError("a success has no failure tag; choose none, or failure")
    if not success and tag is None:
        raise StudyError("choose a tag that says how it failed")
    if success and len(reached) < len(steps):
        raise StudyError("a success reached all milestones; tick them, or choose failure")
    progress = len(reached) / len(steps) if steps else None
    return Judgement(ADJUDICATOR if role == ADJUDICATOR else role, success, progress, tag)


def _milestones(desk: Desk, trial: TrialState) -> tuple[str, ...]:
    return next(one.milestones for one in desk.plan.tasks if one.name == trial.trial.task)


def _trial(desk: Desk, one: TrialState) -> dict[str, Any]:
    """What may be said of a trial."""
    task = next(task for task in desk.plan.tasks if task.name == one.trial.task)
    return {
        "code": one.trial.code,
        "task": task.name,
        "instruction": task.instruction,
        "criterion": task.criterion,
        "condition": one.trial.condition,
        "milestones": task.milestones,
        "seconds": task.seconds,
        "video": one.video,
    }
