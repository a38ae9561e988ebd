"""The report as tables for spreadsheets: one row a trial, a rate, a comparison."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlakern.blind.report import Report
from vlakern.blind.tables import table
from vlakern.files import write_bytes

__all__ = ["tables", "write_csv"]


def write_csv(report: Report, folder: Path) -> None:
    """Writes ``trials.csv``, ``rates.csv``, ``comparisons.csv`` and ``across.csv`` into ``folder``.

    Each replaces an older one in one step; other files there stay.
    """
    for name, text in tables(report).items():
        write_bytes(folder / name, text.encode())


def tables(report: Report) -> dict[str, str]:
    """File name -> its content; a comma separates, the first row names the columns."""
    return {
        "trials.csv": _table(map(_trial, report.study.results)),
        "rates.csv": _table(map(_rate, report.rates)),
        "comparisons.csv": _table(_comparisons(report)),
        "across.csv": _table(_across(report)),
    }


def _trial(row: Any) -> dict[str, Any]:
    verdicts = {f"judge_{i + 1}": "" for i in range(3)}
    for i, given in enumerate(row.judgements[:3]):
        verdicts[f"judge_{i + 1}"] = f"{given.judge}: {int(given.success)}"
    return {
        "code": row.code,
        "model": row.model,
        "task": row.task,
        "condition": row.condition,
        "group": row.group,
        "order": row.order,
        "position": row.position,
        "started_unix_s": row.started,
        "seconds": row.seconds,
        "success": int(row.success),
        "progress": row.progress,
        "failure": row.failure,
        "guess": row.guess,
        "truth": row.truth,
        **verdicts,
    }


def _rate(row: Any) -> dict[str, Any]:
    return {
        "model": row.model,
        "task": row.task or "(all)",
        "planned": row.planned,
        "n": row.n,
        "successes": row.successes,
        "rate": row.rate,
        **_bounds("wilson95", row.wilson95),
        **_bounds("beta95", row.beta95),
        **_bounds("always95", row.always95),
        "progress": row.progress,
        **_bounds("progress95", row.progress95),
        "median_seconds": row.seconds,
    }


def _comparisons(report: Report) -> Iterable[dict[str, Any]]:
    for row in report.comparisons:
        pairs, sequence = row.pairs, row.sequence
        yield {
            "first": row.first,
            "second": row.second,
            "task": "(all)",
            "difference": row.difference,
            "low": row.low,
            "high": row.high,
            "test": row.test,
            "p": row.p,
            "p_holm": row.p_holm,
            "different": int(row.different),
            "mcnemar_exact": pairs.mcnemar_exact if pairs else None,
            "mcnemar_mid_p": pairs.mcnemar_mid_p if pairs else None,
            "e_value": sequence.e_values[-1] if sequence else None,
        }
        for task in row.tasks:
            yield {
                "first": row.first,
                "second": row.second,
                "task": task.task,
                "difference": task.difference,
                "low": task.low,
                "high": task.high,
                "test": task.test,
                "p": task.p,
                "p_holm": task.p_holm,
            }


def _across(report: Report) -> Iterable[dict[str, Any]]:
    for row in report.across:
        bridge = row.adjusted or (None, None, None)
        yield {
            "first": row.first,
            "second": row.second,
            "difference": row.difference,
            "low": row.low,
            "high": row.high,
            "over_bridge": bridge[0],
            "over_bridge_low": bridge[1],
            "over_bridge_high": bridge[2],
        }


def _bounds(name: str, bounds: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = bounds or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _table(rows: Iterable[Mapping[str, Any]]) -> str:
    found = list(rows)
    return table(list(found[0]) if found else [], found)
