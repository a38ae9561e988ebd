"""The rules of a running study: which trial is next, who may say what, and when it is over.

Every form carries a key of its own; a form that was saved before is answered from the record.
"""

import hashlib
import hmac
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlakern.blind.events import Event
from vlakern.blind.plan import Trial
from vlakern.blind.results import UNKNOWN, Judgement
from vlakern.blind.seal import PublicPlan
from vlakern.blind.state import State, TrialState, apply, check_record, fold
from vlakern.blind.store import Store
from vlakern.errors import StudyError

__all__ = ["Conduct", "Rest"]

MOST_TEXT = 2000  # characters of a note


@dataclass(frozen=True)
class Rest:
    """A break that has to be taken: why, how long, and what is left of it [s]."""

    why: str
    minutes: float
    left: float | None


class Conduct:
    """A study that runs: reads its events, checks what is said, writes new ones.

    Args:
        spares: alias of the plan -> aliases of its repetitions, from the sealed key.
        videos: folder of the recordings.
        source: where a repetition is put into the queue: the operating system's entropy.

    Raises:
        StudyError: the record is that of another study.
    """

    def __init__(
        self,
        plan: PublicPlan,
        store: Store,
        spares: Mapping[str, tuple[str, ...]],
        videos: Path,
        source: random.Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.plan, self.store, self.videos = plan, store, videos
        self._spares, self._clock = spares, clock
        self._source = source or random.SystemRandom()
        self._tasks = {task.name: task for task in plan.tasks}
        check_record(plan, store.events, store.folder)
        self.state: State = fold(plan, store.events)
        self._applied = len(store.events)

    def start(self, key: str, actor: str, code: str) -> Event:
        """Starts the trial whose turn it is.

        Raises:
            StudyError: it is another's turn, a trial runs, a break is due, or the study is closed.
        """
        if self._again(key):
            return self._say(key, actor, "started", {"code": code})
        turn = self.state.next
        self._open()
        if self.state.running is not None:
            raise StudyError(f"trial {self.state.running.trial.code} is running; stop it first")
        if turn is None or turn.trial.code != code:
            raise StudyError(f"trial {code} is not next; reload the page")
        rest = self.rest()
        if rest is not None:
            raise StudyError(f"{rest.why}; take the break of {rest.minutes:g} minutes first")
        return self._say(key, actor, "started", {"code": code})

    def end(
        self, key: str, actor: str, code: str, video: str, requests: int = 0, late: int = 0
    ) -> Event:
        """Ends the trial that runs; its video lies in ``videos`` already.

        Args:
            requests, late: replies to the robot, and those that left after their time.

        Raises:
            StudyError: it does not run, or its video is missing.
        """
        digest = self._video(code, video)
        data = {
            "code": code, "video": video, "sha256": digest, "requests": requests, "late": late
        }  # fmt: skip
        if not self._again(key):
            self._running(code)
        return self._say(key, actor, "ended", data)

    def abort(self, key: str, actor: str, code: str, reason: str) -> Event:
        """Voids the trial that runs; it is repeated later in its queue, under a new alias.

        Raises:
            StudyError: the reason is none of the study's, or the trial was repeated too often.
        """
        known = self.store.find(key)
        if known is not None:  # the place in the queue was drawn then
            return self._say(key, actor, "aborted", {**known.data, "code": code, "reason": reason})
        if reason not in self.plan.abort_reasons:
            raise StudyError(f"reason {reason!r} is none of {', '.join(self.plan.abort_reasons)}")
        trial = self._running(code).trial
        origin = self.state.origin[code]
        used = self.state.aborts.get(origin, 0)
        if used >= len(self._spares[origin]):
            raise StudyError(
                f"trial {code} was aborted {used} times before; end it as a failure, or close the"
                " study"
            )
        data = {
            "code": code,
            "reason": reason,
            "repeat": self._spares[origin][used],
            "before": self._place(trial),
        }
        return self._say(key, actor, "aborted", data)

    def guess(self, key: str, actor: str, code: str, choice: str) -> Event:
        """What the operator believes, right after a trial."""
        choices = (*self.plan.guess_choices, UNKNOWN)
        if choice not in choices:
            raise StudyError(f"guess {choice!r} is none of {', '.join(choices)}")
        trial = self._trial(code)
        if not self._again(key):
            self._open()
        if not self._again(key) and (trial.ended is None or trial.guess is not None):
            raise StudyError(f"trial {code} takes no guess now; it was given, or it has not ended")
        return self._say(key, actor, "guessed", {"code": code, "guess": choice})

    def judge(self, key: str, judge: str, code: str, verdict: Judgement) -> Event:
        """What a judge saw in the video of a trial.

        Raises:
            StudyError: the trial has not ended, was judged by this judge or by enough of them.
        """
        trial = self._trial(code)
        data = self._verdict(trial, verdict)
        if not self._again(key):
            self._open()
            if trial.ended is None:
                raise StudyError(f"trial {code} has not ended; there is nothing to judge")
            self._video(code, str(trial.video), trial.sha256)
            if verdict.judge in trial.judgements or len(trial.judgements) >= self.plan.judges:
                raise StudyError(f"trial {code} was judged; a correction needs a reason")
        return self._say(key, judge, "judged", {"code": code, **data})

    def adjudicate(self, key: str, actor: str, code: str, verdict: Judgement) -> Event:
        """Settles a trial about which two judges disagree."""
        trial = self._trial(code)
        data = self._verdict(trial, verdict)
        if not self._again(key):
            self._open()
            if not trial.disputed:
                raise StudyError(f"trial {code} is not disputed; there is nothing to settle")
        return self._say(key, actor, "adjudicated", {"code": code, **data})

    def correct(self, key: str, actor: str, code: str, verdict: Judgement, why: str) -> Event:
        """Replaces the judge's own earlier judgement; both stay in the record."""
        trial = self._trial(code)
        data = self._verdict(trial, verdict)
        if not why.strip() or len(why) > MOST_TEXT:
            raise StudyError(f"a correction needs a reason of 1 to {MOST_TEXT} characters")
        if not self._again(key):
            self._open()
            if verdict.judge not in trial.judgements:
                raise StudyError(f"trial {code} has no judgement of yours that could be corrected")
        return self._say(key, actor, "corrected", {"code": code, **data, "why": why})

    def rest(self) -> Rest | None:
        """The break that is due before the next trial, if one is."""
        state, turn = self.state, self.state.next
        if turn is None or not state.started:
            return None
        since = len(state.started) - state.rested
        if turn.trial.group != state.trials[state.started[-1]].trial.group and since:
            why, minutes = "a group is complete", self.plan.group_minutes
        elif since >= self.plan.break_every:
            why, minutes = f"{since} trials were run", self.plan.break_minutes
        else:
            return None
        if state.rest_began is None:
            return Rest(why, minutes, None)
        return Rest(why, minutes, max(0.0, state.rest_began + 60.0 * minutes - self._clock()))

    def pause(self, key: str, actor: str) -> Event:
        """Begins the break that is due; a second call after its time ends it.

        Raises:
            StudyError: no break is due, or it is not over.
        """
        known = self.store.find(key)
        if known is not None:
            return self._say(key, actor, "rested", known.data)
        self._open()
        rest = self.rest()
        if rest is None or self.state.running is not None:
            raise StudyError("no break is due now")
        if rest.left is not None and rest.left > 0.0:
            raise StudyError(f"the break goes on for {rest.left:.0f} s")
        return self._say(key, actor, "rested", {"done": rest.left is not None})

    def to_judge(self, judge: str) -> list[str]:
        """Codes that this judge has not judged, in an order of the judge's own."""
        waiting = [
            code
            for code, one in self.state.trials.items()
            if one.ended is not None
            and judge not in one.judgements
            and len(one.judgements) < self.plan.judges
        ]
        return sorted(waiting, key=lambda code: _shuffled(judge, code))

    def disputed(self) -> list[str]:
        """Codes that an adjudicator has to settle."""
        return [code for code, one in self.state.trials.items() if one.disputed]

    def missing(self) -> list[str]:
        """What is left to do before the study can be closed, one sentence each."""
        trials = [self.state.trials[code] for code in self.state.queue]
        kept = [one for one in trials if one.aborted is None]
        left = {
            "not run": sum(one.ended is None for one in kept),
            "not judged": sum(
                one.ended is not None and len(one.judgements) < self.plan.judges for one in kept
            ),
            "disputed": len(self.disputed()),
        }
        return [f"{count} trials are {what}" for what, count in left.items() if count]

    def close(self, key: str, actor: str, incomplete: str = "") -> Event:
        """Ends the study: nothing can be added after.

        Args:
            incomplete: why it ends before all is done; the report says so.

        Raises:
            StudyError: something is missing and no reason was given.
        """
        missing = self.missing()
        if missing and not incomplete.strip():
            raise StudyError(f"{'; '.join(missing)}; do that, or close with a reason")
        if len(incomplete) > MOST_TEXT:
            raise StudyError(f"the reason has {len(incomplete)} characters, at most {MOST_TEXT}")
        if not missing:
            incomplete = ""  # nothing is left out, so there is nothing to excuse
        if not self._again(key):
            self._open()
            if self.state.running is not None:
                raise StudyError(f"trial {self.state.running.trial.code} is running; stop it first")
        return self._say(key, actor, "closed", {"incomplete": incomplete, "missing": missing})

    def look(self, key: str, actor: str, verdicts: Mapping[str, bool]) -> Event:
        """An interim look of a sequential design: what the looker was told goes to the record."""
        if not self._again(key):
            self._open()
        return self._say(key, actor, "looked", {"decided": dict(verdicts)})

    def request(self, key: str, actor: str) -> Event:
        """The first of two steps to the names: it is logged that somebody wants them."""
        if self.state.closed is None:
            raise StudyError("the study is not closed; names stay sealed until it is")
        return self._say(key, actor, "requested", {})

    def unblind(self, key: str, actor: str, commitment: str) -> Event:
        """The second step, with the commitment that was shown at the lock."""
        if self.state.requested is None:
            raise StudyError("nobody has requested the names; that is the first of two steps")
        if commitment != self.plan.commitment:
            raise StudyError(
                f"commitment {commitment[:12]!r} is not the study's; read it from the lock's output"
            )
        return self._say(key, actor, "unblinded", {"commitment": commitment})

    def _say(self, key: str, actor: str, kind: str, data: Mapping[str, Any]) -> Event:
        try:
            return self.store.append(key, actor, kind, data)
        finally:  # a write that was reported as failed may be on disk all the same
            for one in self.store.events[self._applied :]:
                apply(self.state, one)
            self._applied = len(self.store.events)

    def _again(self, key: str) -> bool:
        """Whether this form was saved before: then the record answers, not the rules."""
        return self.store.find(key) is not None

    def _open(self) -> None:
        if self.state.closed is not None:
            raise StudyError("the study is closed; nothing can be added")

    def _trial(self, code: str) -> TrialState:
        if code not in self.state.trials:
            raise StudyError(f"no trial {code[:16]!r} in this study")
        return self.state.trials[code]

    def _running(self, code: str) -> TrialState:
        trial = self._trial(code)
        if not trial.running:
            raise StudyError(f"trial {code} is not running; reload the page")
        return trial

    def _verdict(self, trial: TrialState, verdict: Judgement) -> dict[str, Any]:
        """The judgement as plain values, checked."""
        steps = len(self._tasks[trial.trial.task].milestones)
        if not steps and verdict.progress is not None:
            raise StudyError(f"task {trial.trial.task!r} has no rubric; leave progress out")
        if steps and (verdict.progress is None or not 0.0 <= verdict.progress <= 1.0):
            raise StudyError(f"progress is {verdict.progress}, expected a fraction from 0 to 1")
        if verdict.success == (verdict.failure is not None):
            raise StudyError("a failure needs a tag, and a success has none")
        if verdict.failure is not None and verdict.failure not in self.plan.failure_tags:
            raise StudyError(
                f"tag {verdict.failure!r} is none of {', '.join(self.plan.failure_tags)}"
            )
        return {
            "judge": verdict.judge,
            "success": verdict.success,
            "progress": verdict.progress,
            "failure": verdict.failure,
        }

    def _video(self, code: str, name: str, expected: str | None = None) -> str:
        """SHA-256 of a trial's video."""
        path = self.videos / name
        if Path(name).name != name or not path.is_file():
            raise StudyError(f"trial {code} has no video {name[:80]!r}; record it, or abort it")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if expected is not None and digest != expected:
            raise StudyError(f"the video of trial {code} is not the one that was recorded")
        return digest

    def _place(self, trial: Trial) -> str | None:
        """The code before which a repetition is put: anywhere in what is left of the queue."""
        left = [
            code
            for code in self.state.queue
            if self.state.trials[code].started is None
            and (one := self.state.trials[code].trial).group == trial.group
            and one.task == trial.task
        ]
        after = self.state.queue.index(trial.code) + 1
        ends = [*left, self._after(left, after)]
        return self._source.choice(ends)

    def _after(self, left: list[str], fallback: int) -> str | None:
        """What follows the last of ``left`` in the queue; None at the queue's end."""
        index = self.state.queue.index(left[-1]) + 1 if left else fallback
        return self.state.queue[index] if index < len(self.state.queue) else None


def _shuffled(judge: str, code: str) -> bytes:
    """A sort key that mixes the order of trials, another way for each judge."""
    return hmac.new(judge.encode(), code.encode(), "sha256").digest()
