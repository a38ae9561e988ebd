"""Where a study stands, folded from its events alone: a restart stands where the last one did."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlakern.blind.events import Event
from vlakern.blind.plan import Trial
from vlakern.blind.results import Judgement
from vlakern.blind.seal import PublicPlan
from vlakern.errors import StudyError

__all__ = ["ADJUDICATOR", "State", "TrialState", "apply", "check_record", "fold"]

ADJUDICATOR = "adjudicator"


@dataclass
class TrialState:
    """What has happened to one trial.

    Attributes:
        order: position among all trials that were started, 0 first; None before.
        position: the same within its group.
        started, ended: UTC [s]; seconds: between the two [s].
        aborted: the reason, where it was.
        video: file name under ``videos``; sha256: of its content.
        requests, late: replies to the robot, and those that left after their time.
        judgements: judge -> what that judge saw.
    """

    trial: Trial
    order: int | None = None
    position: int | None = None
    started: float | None = None
    ended: float | None = None
    aborted: str | None = None
    video: str | None = None
    sha256: str | None = None
    guess: str | None = None
    requests: int = 0
    late: int = 0
    judgements: dict[str, Judgement] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long it took [s]; 0 before it ends."""
        return 0.0 if self.started is None or self.ended is None else self.ended - self.started

    @property
    def running(self) -> bool:
        """Started, and neither ended nor aborted."""
        return self.started is not None and self.ended is None and self.aborted is None

    @property
    def disputed(self) -> bool:
        """Two judges disagree about success and nobody has settled it."""
        verdicts = {one.success for one in self.judgements.values()}
        return len(verdicts) > 1 and ADJUDICATOR not in self.judgements

    def outcome(self, judges: int) -> Judgement | None:
        """The judgement that counts; None while one is missing or they are disputed.

        Where two judges agree about success, progress is their mean and the tag the first one's.
        """
        if ADJUDICATOR in self.judgements:
            return self.judgements[ADJUDICATOR]
        given = list(self.judgements.values())
        if len(given) < judges or self.disputed:
            return None
        steps = [one.progress for one in given if one.progress is not None]
        progress = sum(steps) / len(steps) if steps else None
        return dataclasses.replace(given[0], progress=progress)


@dataclass
class State:
    """Where a study stands.

    Attributes:
        queue: codes in the order they are run, repetitions included.
        trials: code -> what has happened to it.
        origin: code -> code of the plan that it is, or repeats.
        aborts: code of the plan -> repetitions used so far.
        started: codes in the order they were started; rested: how many when the last break ended.
        rest_began: of a break that runs, UTC [s].
        closed: the reason of an incomplete end, or "" after a complete one.
        looks: how often the analyst looked before the end; corrections: of judgements.
        requested, unblinded: when the names were asked for and given, UTC [s].
    """

    queue: list[str]
    trials: dict[str, TrialState]
    origin: dict[str, str]
    aborts: dict[str, int] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    rested: int = 0
    rest_began: float | None = None
    closed: str | None = None
    looks: int = 0
    corrections: int = 0
    requested: float | None = None
    unblinded: float | None = None

    @property
    def running(self) -> TrialState | None:
        """The trial that runs, if one does: the last that was started."""
        last = self.trials[self.started[-1]] if self.started else None
        return last if last is not None and last.running else None

    @property
    def next(self) -> TrialState | None:
        """The trial whose turn it is; every earlier one of the queue was started."""
        if len(self.started) == len(self.queue):
            return None
        return self.trials[self.queue[len(self.started)]]


def check_record(plan: PublicPlan, events: Sequence[Event], folder: Path) -> None:
    """Refuses the record of another study: its first event says which one it belongs to.

    Raises:
        StudyError: naming the record.
    """
    first = events[0].data if events else {}
    if first.get("commitment") != plan.commitment:
        raise StudyError(
            f"the record in {folder} is not that of the study with the commitment"
            f" {plan.commitment[:12]}; restore the two from one backup"
        )


def fold(plan: PublicPlan, events: Iterable[Event]) -> State:
    """The state after ``events``."""
    trials = {trial.code: TrialState(trial) for trial in plan.plan.queue}
    state = State([*trials], trials, {code: code for code in trials})
    for event in events:
        apply(state, event)
    return state


def apply(state: State, event: Event) -> None:
    """Brings ``state`` up to ``event``."""
    EFFECTS[event.kind](state, event)


def _started(state: State, event: Event) -> None:
    trial = state.trials[event.data["code"]]
    group = trial.trial.group
    trial.position = sum(state.trials[code].trial.group == group for code in state.started)
    trial.order, trial.started = len(state.started), event.time
    state.started.append(trial.trial.code)


def _ended(state: State, event: Event) -> None:
    trial = state.trials[event.data["code"]]
    trial.ended = event.time
    trial.video, trial.sha256 = event.data["video"], event.data["sha256"]
    trial.requests, trial.late = event.data["requests"], event.data["late"]


def _aborted(state: State, event: Event) -> None:
    """The repetition takes the trial's task and condition under its own alias."""
    code, repeat, before = (event.data[name] for name in ("code", "repeat", "before"))
    old = state.trials[code]
    old.aborted = event.data["reason"]
    origin = state.origin[code]
    state.aborts[origin] = state.aborts.get(origin, 0) + 1
    state.origin[repeat] = origin
    state.trials[repeat] = TrialState(dataclasses.replace(old.trial, code=repeat))
    index = len(state.queue) if before is None else state.queue.index(before)
    state.queue.insert(index, repeat)


def _guessed(state: State, event: Event) -> None:
    state.trials[event.data["code"]].guess = event.data["guess"]


def _judged(state: State, event: Event) -> None:
    """A judgement, an adjudication, or a correction that takes the place of an earlier one."""
    found = _judgement(event.data)
    state.trials[event.data["code"]].judgements[found.judge] = found


def _corrected(state: State, event: Event) -> None:
    state.corrections += 1
    _judged(state, event)


def _rested(state: State, event: Event) -> None:
    if not event.data["done"]:
        state.rest_began = event.time
        return
    state.rest_began, state.rested = None, len(state.started)


def _looked(state: State, event: Event) -> None:
    state.looks += 1


def _closed(state: State, event: Event) -> None:
    state.closed = event.data["incomplete"]


def _requested(state: State, event: Event) -> None:
    state.requested = event.time


def _unblinded(state: State, event: Event) -> None:
    state.unblinded = event.time


def _nothing(state: State, event: Event) -> None:
    """The lock itself changes nothing."""


def _judgement(data: Mapping[str, object]) -> Judgement:
    progress, failure = data["progress"], data["failure"]
    return Judgement(
        str(data["judge"]),
        bool(data["success"]),
        None if progress is None else float(str(progress)),
        None if failure is None else str(failure),
    )


EFFECTS: Mapping[str, Callable[[State, Event], None]] = {
    "locked": _nothing,
    "started": _started,
    "ended": _ended,
    "aborted": _aborted,
    "guessed": _guessed,
    "judged": _judged,
    "adjudicated": _judged,
    "corrected": _corrected,
    "rested": _rested,
    "looked": _looked,
    "closed": _closed,
    "requested": _requested,
    "unblinded": _unblinded,
}
