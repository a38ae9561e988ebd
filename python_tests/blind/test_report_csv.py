"""The tables read back as the report, and no cell is a formula."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

from vlakern.blind.report import report
from vlakern.blind.report_csv import tables, write_csv
from vlakern.blind.results import ClosedStudy

Make = Callable[..., ClosedStudy]


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_tables_are_the_report(closed_study: Make) -> None:
    """A row for each trial, rate and comparison with its tasks."""
    found = report(closed_study())
    rows = {name: read(text) for name, text in tables(found).items()}
    trials = rows["trials.csv"]
    assert [row["code"] for row in trials] == [one.code for one in found.study.results]
    assert [row["success"] == "1" for row in trials] == [r.success for r in found.study.results]
    assert {row["judge_1"][:3] for row in trials} == {"j1:"}
    for row, one in zip(rows["rates.csv"], found.rates, strict=True):
        assert one.wilson95 is not None
        assert float(row["wilson95_low"]) == one.wilson95[0]
        assert (row["model"], int(row["n"]), row["always95_low"]) == (one.model, one.n, "")
    assert len(rows["comparisons.csv"]) == sum(1 + len(one.tasks) for one in found.comparisons)
    assert float(rows["comparisons.csv"][0]["p_holm"]) == found.comparisons[0].p_holm
    assert len(rows["across.csv"]) == 4


def test_no_cell_is_a_formula(closed_study: Make) -> None:
    """A model named like one is quoted; negative numbers stay numbers."""
    study = closed_study({"=1+1": 0.2, "anna": 0.9}, (("=1+1", "anna"),), tasks=("pick",))
    rows = {name: read(text) for name, text in tables(report(study)).items()}
    assert rows["rates.csv"][0]["model"] == "'=1+1"
    assert float(rows["comparisons.csv"][0]["difference"]) < 0


def test_other_files_stay(closed_study: Make, tmp_path: Path) -> None:
    """The tables are put beside what is there; an empty one is an empty file with a line."""
    (tmp_path / "notes.txt").write_text("mine")
    write_csv(report(closed_study(groups=(("anna", "bert"),))), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "across.csv").read_text() == "\n"
