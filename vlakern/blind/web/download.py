"""Files for the analyst: trials without names before the end, the report after it."""

import csv
import io

from vlakern.blind.opened import closed_study
from vlakern.blind.seal import open_key
from vlakern.blind.web.desk import Desk

__all__ = ["export", "report"]

COLUMNS = (
    "order",
    "code",
    "group",
    "task",
    "condition",
    "started",
    "seconds",
    "aborted",
    "guess",
    "success",
    "progress",
    "failure",
    "judgements",
    "video_sha256",
)


def export(desk: Desk) -> str:
    """All started trials as CSV, under their aliases."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for code in desk.conduct.state.started:
        one = desk.conduct.state.trials[code]
        outcome = one.outcome(desk.plan.judges)
        rows.writerow(
            [
                one.order,
                code,
                one.trial.group,
                one.trial.task,
                one.trial.condition,
                one.started,
                round(one.seconds, 3),
                one.aborted,
                one.guess,
                None if outcome is None else int(outcome.success),
                None if outcome is None else outcome.progress,
                None if outcome is None else outcome.failure,
                len(one.judgements),
                one.sha256,
            ]
        )
    return text.getvalue()


def report(desk: Desk) -> str:
    """The report with names, as a page.

    Raises:
        StudyError: the study is not closed and unblinded.
    """
    study = closed_study(desk.plan, open_key(desk.folder), desk.conduct.state)
    from vlakern.blind.report import report as made
    from vlakern.blind.report_html import page

    return page(made(study))
