"""What a closed study leaves behind, as the report reads it: models by name, nothing hidden."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["UNKNOWN", "Analysis", "ClosedStudy", "Judgement", "Model", "Result", "Voided"]

UNKNOWN = "unknown"  # the guess of an operator who has none

Design = Literal["fixed", "sequential"]


@dataclass(frozen=True)
class Analysis:
    """What was decided before the first trial about how the results are read.

    Attributes:
        alpha: of two-sided comparisons, for the whole family of pairs (Holm).
        design: ``fixed`` looks once, at the end; ``sequential`` may look after every trial.
        pairs: names of the models that are compared; all pairs of the pool where empty.
    """

    alpha: float = 0.05
    design: Design = "fixed"
    pairs: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Model:
    """A model of the pool: its name, its identity (SHA-256 of files and options), its options."""

    name: str
    identity: str
    policy: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """What one judge saw in one trial's video.

    Attributes:
        judge: an opaque code of the person; ``adjudicator`` settles where two disagree.
        progress: milestones reached, as a fraction; None where the task has no rubric.
        failure: a tag of the study's list; None with a success.
    """

    judge: str
    success: bool
    progress: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Result:
    """One finished trial.

    Attributes:
        code: the alias that operator and judges knew it by.
        group: index of the group, 0 first; order: position in the whole study, 0 first.
        position: position in its group's queue, 0 first (fatigue within a session).
        condition: of the task's initial conditions; trials of one task and condition are matched.
        started: UTC [s since 1970]; seconds: from start to stop [s].
        success, progress, failure: the outcome that counts, after adjudication.
        judgements: as they were given, one or two and perhaps an adjudication.
        guess, truth: which of ``ClosedStudy.guess_choices`` the operator chose (``UNKNOWN``: none),
            and what would have been right; None where nothing was asked.
    """

    code: str
    model: str
    task: str
    condition: str
    group: int
    order: int
    position: int
    started: float
    seconds: float
    success: bool
    progress: float | None
    failure: str | None
    judgements: tuple[Judgement, ...]
    guess: str | None = None
    truth: str | None = None


@dataclass(frozen=True)
class Voided:
    """A trial that was aborted with a reason fixed before the study, and was run again."""

    code: str
    model: str
    task: str
    group: int
    order: int
    reason: str


@dataclass(frozen=True)
class ClosedStudy:
    """Everything a report is made from.

    Attributes:
        groups: names of the models of each group; ``bridge`` is in all of them, if there is one.
        planned: trials planned for each model and task.
        guess_choices: what an operator could guess, without ``UNKNOWN``.
        commitment: the SHA-256 that was shown at the lock; ``verified`` when plan, allocation and
            salt were found to give it again.
        versions: of the software that ran the study; ``notes``: what a reader has to know.
    """

    title: str
    models: tuple[Model, ...]
    tasks: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    bridge: str | None
    planned: int
    analysis: Analysis
    results: tuple[Result, ...]
    voided: tuple[Voided, ...]
    guess_choices: tuple[str, ...]
    commitment: str
    verified: bool
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
