"""Tables for spreadsheets, and the one of all trials: without names until they are given."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlakern.blind.seal import PublicPlan
from vlakern.blind.state import State, TrialState
from vlakern.blind.tokens import seats

__all__ = ["table", "trials"]

# A spreadsheet would run a cell that begins like this as a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV: a comma separates, the first row names the columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return text.getvalue()


def trials(plan: PublicPlan, state: State, models: Mapping[str, str]) -> str:
    """A row for each trial that was started, in their order.

    Args:
        models: alias -> model; the column is there only once the names were given.
    """
    judges = seats(plan.judges)
    rows = [_trial(plan, state, code, judges) for code in state.started]
    if state.unblinded is not None:
        rows = [{"code": row["code"], "model": models[row["code"]], **row} for row in rows]
    first = ("code",) if state.unblinded is None else ("code", "model")
    return table((*first, *COLUMNS, *judges, "video_sha256"), rows)


COLUMNS = (
    "order",
    "group",
    "task",
    "condition",
    "started_unix_s",
    "seconds",
    "aborted",
    "guess",
    "success",
    "progress",
    "failure",
)


def _trial(plan: PublicPlan, state: State, code: str, judges: Sequence[str]) -> dict[str, Any]:
    one: TrialState = state.trials[code]
    outcome = one.outcome(plan.judges)
    found: dict[str, Any] = {
        "code": code,
        "order": one.order,
        "group": one.trial.group,
        "task": one.trial.task,
        "condition": one.trial.condition,
        "started_unix_s": one.started,
        "seconds": round(one.seconds, 3),
        "aborted": one.aborted,
        "guess": one.guess,
        "video_sha256": one.sha256,
    }
    if outcome is not None:
        found |= {
            "success": int(outcome.success),
            "progress": outcome.progress,
            "failure": outcome.failure,
        }
    given = ((name, one.judgements.get(name)) for name in judges)
    return found | {name: int(said.success) for name, said in given if said is not None}


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return "" if value is None else value
