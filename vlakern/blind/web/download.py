"""Files for the analyst: trials without names before the end, the report after it."""

from vlakern.blind.opened import closed_study
from vlakern.blind.seal import open_key
from vlakern.blind.tables import trials
from vlakern.blind.web.desk import Desk

__all__ = ["export", "report"]


def export(desk: Desk) -> str:
    """All started trials as CSV; without names until they are given."""
    state = desk.conduct.state
    models = {} if state.unblinded is None else open_key(desk.folder).allocation.models
    return trials(desk.plan, state, models)


def report(desk: Desk) -> str:
    """The report with names, as a page.

    Raises:
        StudyError: the study is not closed and unblinded.
    """
    study = closed_study(desk.plan, open_key(desk.folder), desk.conduct.state)
    from vlakern.blind.report import report as made
    from vlakern.blind.report_html import page

    return page(made(study))
