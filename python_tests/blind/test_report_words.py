"""The sentences say what weakens a study and never take silence for equality."""

import dataclasses
from collections.abc import Callable

import pytest

from vlakern.blind.report import report
from vlakern.blind.report_words import gap, p_value, percent, points
from vlakern.blind.results import Analysis, ClosedStudy, Model

Make = Callable[..., ClosedStudy]


def test_what_ten_trials_can_show_comes_first(closed_study: Make) -> None:
    """The power of the planned number on one task, then over all tasks."""
    found = report(closed_study()).findings
    assert "With N = 10".lower() in found[0].lower()
    assert "about 60 points" in found[0]
    assert "as one of 12 comparisons" in found[0]
    assert "n = 20" in found[1].lower()
    assert "as one of 6 comparisons" in found[1]
    first = report(closed_study(analysis=Analysis(design="sequential"))).findings[0]
    assert "e-process looked at after every pair" in first


def test_not_told_apart_is_not_equal(closed_study: Make) -> None:
    """Every pair has its sentence with an interval; the ones not told apart say what that means."""
    study = closed_study()
    found = report(study)
    for row in found.comparisons:
        (line,) = [
            one
            for one in found.findings
            if row.first in one and row.second in one and "different groups" not in one
        ]
        assert "95 % interval" in line
        assert ("succeeds more often" in line) == row.different
        meaning = ("does not show them to be equal", "leaves 0 out")
        assert any(words in line for words in meaning) != row.different
    assert "anna succeeds more often than bert" in " ".join(found.findings)


def test_a_seal_that_was_not_verified_is_said_first(closed_study: Make) -> None:
    """Before any other warning; a verified one is not mentioned there."""
    study = closed_study(verified=False, notes=("The clock jumped.",))
    assert report(study).warnings[1] == "The clock jumped."
    assert report(study).warnings[0].startswith("The commitment was not verified")
    assert not any("commitment" in one for one in report(closed_study()).warnings)


def test_groups_without_a_bridge_are_confounded(closed_study: Make) -> None:
    """Said as a warning, and no verdict is given across groups."""
    groups = (("anna", "bert"), ("carl", "dora"))
    found = report(closed_study(groups=groups))
    assert any(line.startswith("There is no bridge model") for line in found.warnings)
    between = [line for line in found.findings if "different groups" in line]
    assert len(between) == 4
    assert all("no test is made of it" in line for line in between)


def test_what_went_wrong_is_listed(closed_study: Make) -> None:
    """Missing trials, aborted trials, guesses above chance, twins."""
    study = closed_study(guess_skill=0.6)
    twin = Model("bert", study.models[0].identity, "elsewhere")
    study = dataclasses.replace(
        study, results=study.results[:-3], models=(study.models[0], twin, *study.models[2:])
    )
    text = "\n".join(report(study).warnings)
    assert "3 of 120 planned trials are missing" in text
    assert "keeps its error rate only if" in text
    assert "bert 1 of 21" in text
    assert "guessed better than chance" in text
    assert "anna and bert have the same identity" in text


def test_designs_are_told_apart(closed_study: Make) -> None:
    """One look, or any number of looks."""
    assert "with one look" in report(closed_study()).findings[-1]
    sequential = report(closed_study(analysis=Analysis(design="sequential"))).findings
    assert "over all looks and pairs" in sequential[-1]
    few = report(closed_study(analysis=Analysis(pairs=(("anna", "bert"),)))).findings
    assert few[-1].startswith("5 more pairs share a group and were left out")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (percent(0.634), "63 %"),
        (percent(None), "–"),
        (points(-0.254), "−25"),
        (points(0.0), "+0"),
        (p_value(0.0004), "< 0.001"),
        (p_value(0.0312), "0.031"),
        (p_value(0.25), "0.25"),
        (gap(0.6), "60"),
        (gap(0.445), "45"),
    ],
)
def test_numbers_in_words(found: str, expected: str) -> None:
    """No more digits than the data carry."""
    assert found == expected
