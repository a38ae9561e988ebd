"""Files for the analyst: aliases before the end, names after two steps."""

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest

from python_tests.blind.conftest import clip
from vlakern.blind.results import Judgement
from vlakern.blind.seal import open_key
from vlakern.blind.web.download import export, report
from vlakern.errors import StudyError


def test_trials_are_exported_under_their_aliases(pages: Callable[..., Any]) -> None:
    """A row for each started trial; no model in it. The report waits for the names."""
    here = pages()
    queue = here.desk.plan.plan.queue
    here.desk.start("s", queue[0].code)
    here.desk.stop("e", queue[0].code, io.BytesIO(clip()))
    progress = 1.0 if queue[0].task == "push" else None
    here.desk.judge("j", queue[0].code, Judgement("judge-1", True, progress))
    here.desk.start("t", here.desk.conduct.state.next.trial.code)
    text = export(here.desk)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["success"] for row in rows] == ["1", ""]
    assert rows[0]["code"] == queue[0].code
    assert "secret" not in text
    with pytest.raises(StudyError, match="not closed"):
        report(here.desk)
    here.desk.abort("a", rows[1]["code"], "operator error")
    here.desk.finish("f", "enough")
    here.desk.request("r")
    assert "secret" not in export(here.desk)
    here.desk.unblind("u", here.desk.plan.commitment)
    named = list(csv.DictReader(io.StringIO(export(here.desk))))
    models = open_key(here.folder).allocation.models
    assert [row["model"] for row in named] == [models[row["code"]] for row in rows]
