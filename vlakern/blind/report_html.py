"""The report as one page without external resources."""

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from vlakern.blind.report import Rate, Report
from vlakern.blind.report_plots import Bar, curves, intervals, strips
from vlakern.blind.report_words import gap, p_value, percent, points
from vlakern.errors import ConfigError
from vlakern.files import write_bytes

__all__ = ["page", "write_html"]

PERCENTS = tuple((i / 4, f"{25 * i} %") for i in range(5))
DIFFERENCES = tuple((i / 2, points(i / 2) if i else "0") for i in range(-2, 3))


def write_html(report: Report, path: Path) -> None:
    """Writes :func:`page` to ``path``, replacing it in one step.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    write_bytes(path, page(report).encode())


def page(report: Report) -> str:
    """The whole page; the same report gives the same text. Every name in it is escaped.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the HTML report needs the package 'jinja2', which is not installed; "
            "run: pip install 'vlakern[blind]'"
        ) from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = {"percent": percent, "points": points, "p": p_value, "range": _range, "gap": gap}
    environment.filters |= filters
    text = resources.files("vlakern.blind").joinpath("report.html.jinja").read_text("utf-8")
    plots = {name: Markup(svg) for name, svg in _plots(report).items()}
    return environment.from_string(text).render(report=report, study=report.study, plots=plots)


def _range(bounds: Iterable[float] | None) -> str:
    """``24–76 %``."""
    if bounds is None:
        return "–"
    low, high = bounds
    return f"{100 * low:.0f}–{100 * high:.0f} %"


def _plots(report: Report) -> dict[str, str]:
    """Name -> SVG; names that the study has nothing for are absent."""
    found = {
        "rates": intervals(
            "Success over all tasks with 95 % Wilson intervals",
            [_rate_bar(row, row.model) for row in report.rates if row.task is None],
            (0, 1),
            PERCENTS,
        )
    }
    for task in report.study.tasks:
        bars = [_rate_bar(row, row.model) for row in report.rates if row.task == task]
        found[f"task {task}"] = intervals(
            f"Success on {task} with 95 % Wilson intervals", bars, (0, 1), PERCENTS
        )
    if report.comparisons:
        found["differences"] = intervals(
            "Differences of success rates within groups",
            [
                Bar(f"{row.first} − {row.second}", *_difference(row), row.different)
                for row in report.comparisons
            ],
            (-1, 1),
            DIFFERENCES,
            zero=0,
        )
        found |= _sequences(report)
    for index, ranking in enumerate(report.rankings):
        if ranking.strengths:
            edge = max(2.0, *(min(6.0, abs(v)) for _, *rest in ranking.strengths for v in rest))
            found[f"ranking {index}"] = intervals(
                "Bradley-Terry log-strengths with 95 % intervals",
                [
                    Bar(name, value, low, high, f"{_one(value)} ({_one(low)} to {_one(high)})")
                    for name, value, low, high in ranking.strengths
                ],
                (-edge, edge),
                [(v, f"{v:+g}" if v else "mean") for v in range(-int(edge), int(edge) + 1)],
                zero=0,
            )
    for index, group in enumerate(report.study.groups):
        here = [row for row in report.study.results if row.group == index]
        rows = [
            (name, [(row.position, row.success) for row in here if row.model == name])
            for name in group
        ]
        found[f"order {index}"] = strips(f"Outcomes of group {index + 1} in the order run", rows)
    return found


def _sequences(report: Report) -> dict[str, str]:
    series = [
        (f"{row.first} / {row.second}", row.sequence.e_values)
        for row in report.comparisons
        if row.sequence is not None
    ]
    if not series:
        return {}
    threshold = 1 / report.study.analysis.alpha
    return {"sequences": curves("E-values after each matched pair", series, threshold, "pairs")}


def _one(value: float) -> str:
    """One decimal with its sign; what rounds to 0 has none."""
    return f"{value:+.1f}" if abs(value) >= 0.05 else "0.0"


def _rate_bar(row: Rate, label: str) -> Bar:
    if row.rate is None or row.wilson95 is None:
        return Bar(label, 0.5, 0.0, 1.0, "no trial")
    words = f"{row.successes}/{row.n}: {percent(row.rate)} ({_range(row.wilson95)})"
    return Bar(label, row.rate, *row.wilson95, words)


def _difference(row: Any) -> tuple[float, float, float, str]:
    words = f"{points(row.difference)} ({points(row.low)} to {points(row.high)})"
    return row.difference, row.low, row.high, words
