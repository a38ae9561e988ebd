"""Results with names: the sealed key laid over the record, once a study is closed and unblinded."""

import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from vlakern.blind.results import ClosedStudy, Model, Result, Voided
from vlakern.blind.seal import Key, PublicPlan, open_key, read_plan
from vlakern.blind.state import State, check_record, fold
from vlakern.blind.store import Store, read
from vlakern.errors import StudyError

__all__ = ["closed_study", "named", "open_study", "running_study"]

PACKAGES = ("vlakern", "torch", "numpy", "scipy")


def open_study(folder: Path) -> ClosedStudy:
    """The results of a study's folder.

    Raises:
        StudyError: as :func:`closed_study`, or the folder is damaged.
    """
    plan = read_plan(folder)
    with Store(folder / "record") as store:
        check_record(plan, store.events, store.folder)
        return closed_study(plan, open_key(folder), fold(plan, store.events))


def running_study(folder: Path) -> tuple[PublicPlan, Key, State]:
    """Where a study stands that may be served by another process; writes nothing.

    Raises:
        StudyError: it is damaged, or was changed after the lock.
    """
    plan, key, events = read_plan(folder), open_key(folder), read(folder / "record")
    check_record(plan, events, folder / "record")
    return plan, key, fold(plan, events)


def closed_study(plan: PublicPlan, key: Key, state: State) -> ClosedStudy:
    """Everything a report is made from.

    Raises:
        StudyError: the study is not closed, or its names were not asked for in two steps.
    """
    if state.closed is None:
        raise StudyError("the study is not closed; names stay sealed until it is")
    if state.unblinded is None:
        raise StudyError("the study is not unblinded; `vlakern blind unblind` does it in two steps")
    return named(plan, key, state)


def named(plan: PublicPlan, key: Key, state: State) -> ClosedStudy:
    """Results with names as far as they are, for the runner alone; nobody may be shown them."""
    study = key.study
    return ClosedStudy(
        title=study.title,
        models=tuple(
            Model(
                model.name,
                key.identities[model.name],
                model.policy,
                {
                    "dtype": model.dtype,
                    "steps": model.steps,
                    "drop_views": list(model.drop_views),
                    "drop_state": model.drop_state,
                },
            )
            for model in study.models
        ),
        tasks=tuple(task.name for task in study.tasks),
        groups=key.allocation.groups,
        bridge=study.bridge,
        planned=study.trials,
        analysis=study.analysis,
        results=tuple(_results(plan, key, state)),
        voided=tuple(_voided(key, state)),
        guess_choices=plan.guess_choices,
        commitment=plan.commitment,
        verified=key.commitment == plan.commitment,
        versions=_versions(),
        notes=tuple(_notes(state, plan.judges)),
    )


def _results(plan: PublicPlan, key: Key, state: State) -> Iterator[Result]:
    """Trials that ended and have an outcome, in the order they were run."""
    for index, code in enumerate(state.started):
        one = state.trials[code]
        outcome = one.outcome(plan.judges)
        if one.ended is None or outcome is None:
            continue
        assert one.order is not None
        assert one.position is not None
        assert one.started is not None
        yield Result(
            code=code,
            model=key.allocation.models[code],
            task=one.trial.task,
            condition=one.trial.condition,
            group=one.trial.group,
            order=one.order,
            position=one.position,
            started=one.started,
            seconds=one.seconds,
            success=outcome.success,
            progress=outcome.progress,
            failure=outcome.failure,
            judgements=tuple(one.judgements.values()),
            guess=one.guess,
            truth=None if one.guess is None else _truth(key, state, index),
        )


def _truth(key: Key, state: State, index: int) -> str | None:
    """What a right guess would have been; None where there was nothing to compare with."""
    models = key.allocation.models
    name = models[state.started[index]]
    nickname = next(model.nickname for model in key.study.models if model.name == name)
    if nickname:
        return nickname
    if index == 0:
        return None
    return "same" if models[state.started[index - 1]] == name else "different"


def _voided(key: Key, state: State) -> Iterator[Voided]:
    for order, code in enumerate(state.started):
        one = state.trials[code]
        if one.aborted is not None:
            model = key.allocation.models[code]
            yield Voided(code, model, one.trial.task, one.trial.group, order, one.aborted)


def _notes(state: State, judges: int) -> Iterator[str]:
    """What a reader has to know before any number."""
    ended = [one for one in state.trials.values() if one.ended is not None]
    unjudged = sum(one.outcome(judges) is None for one in ended)
    if state.closed:
        yield f"The study was closed before all was done: {state.closed}"
    late = sum(one.late for one in state.trials.values())
    requests = sum(one.requests for one in state.trials.values())
    if late:
        yield (
            f"{late} of {requests} replies left after their deadline, which may tell models apart."
        )
    if unjudged:
        yield (
            f"{unjudged} trials were run and have no outcome, because a judgement is missing"
            " or disputed; they are left out."
        )
    if state.corrections:
        yield f"Judgements were corrected {state.corrections} times; the record holds all words."
    if state.looks:
        yield f"The analyst looked {state.looks} times before the end, without names."


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
