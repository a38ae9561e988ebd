"""The page needs nothing from outside, escapes every name and shows an interval at every rate."""

import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from vlakern.blind.report import report
from vlakern.blind.report_html import page, write_html
from vlakern.blind.results import Analysis, ClosedStudy, Model
from vlakern.errors import ConfigError

Make = Callable[..., ClosedStudy]


class Reader(HTMLParser):
    """Collects tags that fetch something and the text of table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "circle", "polyline"):
            assert self.open.pop() == tag


@pytest.mark.parametrize("design", ["fixed", "sequential"])
def test_page_is_whole_and_alone(closed_study: Make, design: Any) -> None:
    """Every tag is closed; nothing is fetched or run; the same report gives the same bytes."""
    found = report(closed_study(analysis=Analysis(design=design)))
    text = page(found)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.fetched == []
    assert "script" not in reader.tags
    assert "url(" not in text
    assert reader.tags.count("svg") == 1 + 2 + 1 + 1 + 1 + 2
    assert text == page(found)


def test_every_rate_shows_its_interval(closed_study: Make) -> None:
    """In the picture and in the table, also of ten trials without a failure."""
    found = report(closed_study({"anna": 1.0, "bert": 0.3}, (("anna", "bert"),), tasks=("pick",)))
    text = page(found)
    assert "10/10: 100 % (72–100 %)" in text
    for row in found.rates:
        assert row.wilson95 is not None
        low, high = row.wilson95
        assert text.count(f"<td>{100 * low:.0f}–{100 * high:.0f} %</td>") >= 1
    assert "about 60 points" in text


def test_names_are_text(closed_study: Make) -> None:
    """Names, tags, notes and reasons that look like markup stay text."""
    evil = "<img src=x onerror=alert(1)>{{ 7*7 }}"
    study = closed_study(
        {evil: 0.5, "bert": 0.5},
        ((evil, "bert"),),
        tasks=(evil + "t",),
        title=evil,
        notes=(evil,),
        versions={evil: evil},
        models=(Model(evil, evil, evil, {evil: evil}), Model("bert", "1", "p")),
    )
    text = page(report(study))
    assert "<img" not in text
    assert "&lt;img" in text
    assert "49" not in re.findall(r"onerror=alert\(1\)&gt;(.{0,6})", text)


def test_provenance_and_warnings_are_there(closed_study: Make) -> None:
    """Commitment, identities, versions; what is not verified stands on top."""
    text = page(report(closed_study(verified=False)))
    assert text.index("The commitment was not verified") < text.index("What this study shows")
    assert ", verified" not in text
    for words in ("ab" * 32, f"{3:064x}", "vlakern 0.1.0", "policies/carl"):
        assert words in text


def test_small_studies_have_a_page(closed_study: Make) -> None:
    """One model, no guess, one judge, no comparison: what is missing is said."""
    study = closed_study({"anna": 0.5}, (("anna",),), tasks=("pick",), guess_choices=("anna",))
    text = page(report(study))
    assert "was not asked for guesses" in text
    assert "Comparisons within groups" not in text


def test_written_in_one_step(closed_study: Make, tmp_path: Path) -> None:
    """The file is the page, in UTF-8."""
    found = report(closed_study())
    write_html(found, tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text("utf-8") == page(found)


def test_says_what_to_install(closed_study: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without jinja2 the sentence names the extra."""
    found = report(closed_study())
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ConfigError, match=r"pip install 'vlakern\[blind\]'"):
        page(found)
