"""The report of a closed study: a pure function from its records to numbers and sentences."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from vlakern.blind.report_checks import (
    Agreement,
    Blinding,
    BridgeCheck,
    Drift,
    Ranking,
    Voids,
    agreement,
    blinding,
    bridge_check,
    drifts,
    rankings,
    voids,
)
from vlakern.blind.report_compare import Across, Comparison, across, compare, letters
from vlakern.blind.report_words import LARGEST, findings, warnings
from vlakern.blind.results import UNKNOWN, ClosedStudy, Result
from vlakern.errors import InputError
from vlakern.trials import PowerRow, beta, bounded_mean, confidence_sequence, power_table, wilson

__all__ = ["Rate", "Report", "report"]

SIZES = (5, 10, 20, 30, 50, 100)


@dataclass(frozen=True)
class Rate:
    """How often one model succeeded on one task, or on all of them.

    Attributes:
        task: None for all tasks together.
        planned: trials that were planned.
        wilson95, beta95: bounds of the success rate; None only where no trial was run.
        always95: bounds that hold at every look, in a sequential design.
        progress: mean over the trials that have one; progress95 its conservative bounds.
        seconds: median duration [s].
        failures: tag -> trials.
    """

    model: str
    task: str | None
    planned: int
    n: int
    successes: int
    rate: float | None
    wilson95: tuple[float, float] | None
    beta95: tuple[float, float] | None
    always95: tuple[float, float] | None
    progress: float | None
    progress95: tuple[float, float] | None
    seconds: float | None
    failures: Mapping[str, int]


@dataclass(frozen=True)
class Report:
    """Everything that can be said about a closed study.

    Attributes:
        warnings: what weakens the study, most serious first; findings: what it shows and what it
            cannot show, as sentences.
        rates: of each model on all tasks and on each.
        comparisons: within groups; across: between groups; letters: of each group.
        power: what so many trials of each model can show; the planned number is among them.
    """

    study: ClosedStudy
    warnings: tuple[str, ...]
    findings: tuple[str, ...]
    rates: tuple[Rate, ...]
    comparisons: tuple[Comparison, ...]
    across: tuple[Across, ...]
    letters: tuple[dict[str, str] | None, ...]
    rankings: tuple[Ranking, ...]
    bridge: BridgeCheck | None
    agreement: Agreement | None
    blinding: Blinding | None
    drifts: tuple[Drift, ...]
    voids: tuple[Voids, ...]
    power: tuple[PowerRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``; what is infinite or undefined is null."""
        study = _plain(self.study)
        study["trials"] = study.pop("results")
        own = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)[1:]}
        return {"study": study, **own}


def report(study: ClosedStudy) -> Report:
    """Computes the report; the same records give the same report.

    Raises:
        InputError: no result, a result that names an unknown model, task or group, an unknown
            guess, or an analysis plan of unknown models.
        ConfigError: scipy is not installed.
    """
    _check(study)
    comparisons = compare(study)
    made = {
        "rates": tuple(_rates(study)),
        "comparisons": comparisons,
        "across": across(study),
        "letters": letters(study, comparisons),
        "rankings": rankings(study),
        "bridge": bridge_check(study),
        "agreement": agreement(study),
        "blinding": blinding(study),
        "drifts": drifts(study),
        "voids": voids(study),
        "power": _power(study),
    }
    draft = Report(study=study, warnings=(), findings=(), **made)
    return dataclasses.replace(draft, warnings=warnings(draft), findings=findings(draft))


def _check(study: ClosedStudy) -> None:
    if not study.results:
        raise InputError(
            f"the study {study.title!r} has no result, so there is nothing to report; "
            "run at least one trial before it is closed"
        )
    names = {model.name for model in study.models}
    for row in study.results:
        _known("model", row.model, names, row.code)
        _known("task", row.task, study.tasks, row.code)
        _known("group", row.group, range(len(study.groups)), row.code)
        _known("model of its group", row.model, study.groups[row.group], row.code)
        if row.truth is not None:
            _known("guess to be right", row.truth, study.guess_choices, row.code)
            _known("guess", row.guess, (*study.guess_choices, UNKNOWN, None), row.code)
    for pair in study.analysis.pairs:
        if len(pair) != 2 or pair[0] == pair[1] or not names.issuperset(pair):
            raise InputError(
                f"expected pairs of two different models among {sorted(names)} in the analysis "
                f"plan, found {list(pair)!r}"
            )


def _known(what: str, value: object, among: Iterable[object], code: str) -> None:
    among = list(among)
    if value not in among:
        raise InputError(f"trial {code}: expected a {what} among {among}, found {value!r}")


def _rates(study: ClosedStudy) -> Iterable[Rate]:
    for model in study.models:
        groups = sum(model.name in group for group in study.groups)
        mine = [row for row in study.results if row.model == model.name]
        yield _rate(study, model.name, None, mine, study.planned * groups * len(study.tasks))
        for task in study.tasks:
            here = [row for row in mine if row.task == task]
            yield _rate(study, model.name, task, here, study.planned * groups)


def _rate(
    study: ClosedStudy, model: str, task: str | None, rows: list[Result], planned: int
) -> Rate:
    n, won = len(rows), sum(row.success for row in rows)
    progress = [row.progress for row in rows if row.progress is not None]
    tags = [row.failure for row in rows if row.failure is not None]
    sequential = study.analysis.design == "sequential" and n > 0
    return Rate(
        model=model,
        task=task,
        planned=planned,
        n=n,
        successes=won,
        rate=won / n if n else None,
        wilson95=wilson(won, n) if n else None,
        beta95=beta(won, n) if n else None,
        always95=confidence_sequence(won, n) if sequential else None,
        progress=fmean(progress) if progress else None,
        progress95=bounded_mean(progress) if progress else None,
        seconds=median(row.seconds for row in rows) if rows else None,
        failures={tag: tags.count(tag) for tag in sorted(set(tags))},
    )


def _power(study: ClosedStudy) -> tuple[PowerRow, ...]:
    sizes, analysis = sorted({*SIZES, min(study.planned, LARGEST)}), study.analysis
    table = power_table(sizes, alpha=analysis.alpha, sequential=analysis.design == "sequential")
    return tuple(table)


def _plain(value: Any) -> Any:
    """Records as objects, tuples as lists, and None for what JSON has no number for."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    named = getattr(value, "_asdict", None)
    if named is not None:
        return _plain(named())
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
