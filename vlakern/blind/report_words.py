"""What a study shows and cannot show, as sentences for people."""

import math
from collections.abc import Iterable
from itertools import combinations
from typing import TYPE_CHECKING

from vlakern.blind.report_compare import chosen_pairs
from vlakern.blind.results import ClosedStudy
from vlakern.trials import power_sentence

if TYPE_CHECKING:
    from vlakern.blind.report import Report
    from vlakern.blind.report_compare import Across, Comparison

__all__ = ["LARGEST", "findings", "gap", "p_value", "percent", "points", "warnings"]

# Larger tables of Boschloo's test take seconds; more trials only see smaller gaps.
LARGEST = 300


def percent(value: float | None) -> str:
    """``63 %``, a dash for None."""
    return "–" if value is None else f"{100 * value:.0f} %"


def points(value: float) -> str:
    """``+25`` percentage points, with a real minus."""
    rounded = round(100 * value)
    return f"{'−' if rounded < 0 else '+'}{abs(rounded)}"


def gap(value: float) -> str:
    """Whole percentage points, rounded up: a smaller gap would not be seen."""
    return f"{math.ceil(100 * value - 1e-9)}"


def p_value(p: float) -> str:
    """``0.031`` or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def warnings(report: "Report") -> tuple[str, ...]:
    """What weakens the study, most serious first."""
    study = report.study
    return (
        *_seal(study),
        *study.notes,
        *_incomplete(report),
        *_confounded(study),
        *_checks(report),
        *_voided(report),
        *_not_compared(report),
    )


def _seal(study: ClosedStudy) -> Iterable[str]:
    if not study.verified:
        yield (
            "The commitment was not verified: plan, allocation and salt do not give the digest "
            "that was shown at the lock, so nothing here is protected against a change afterwards."
        )
    identities: dict[str, str] = {}
    for model in study.models:
        other = identities.setdefault(model.identity, model.name)
        if other != model.name:
            yield f"{other} and {model.name} have the same identity: they are one model."


def _incomplete(report: "Report") -> Iterable[str]:
    whole = [row for row in report.rates if row.task is None]
    missing = [(row.model, row.planned - row.n) for row in whole if row.n < row.planned]
    if not missing:
        return
    listed = ", ".join(f"{name} {count}" for name, count in missing)
    planned = sum(row.planned for row in whole)
    yield (
        f"{sum(count for _, count in missing)} of {planned} planned trials are missing ({listed})."
        + (
            " A fixed design that ends early keeps its error rate only if the results had no part"
            " in ending it."
            if report.study.analysis.design == "fixed"
            else ""
        )
    )


def _confounded(study: ClosedStudy) -> Iterable[str]:
    if len(study.groups) > 1 and study.bridge is None:
        yield (
            "There is no bridge model: a difference between models of different groups cannot be "
            "told from a difference between the groups' days, operators or wear."
        )


def _checks(report: "Report") -> Iterable[str]:
    blind = report.blinding
    if blind is not None and blind.broken:
        i = blind.overall
        yield (
            f"The operator guessed better than chance (permutation test, p {p_value(blind.p)}; mean"
            f" of Bang's indices {i.index:.2f}, {i.low:.2f} to {i.high:.2f}): either the blinding"
            " leaked or the behaviour gave the model away."
        )
    for drift in report.drifts:
        if drift.p <= 0.05:
            yield (
                f"Success drifted with the {drift.along} (permutation test, p {p_value(drift.p)}): "
                "the shuffled queue protects the comparisons, but the rates are averages over it."
            )
    if report.bridge is not None and report.bridge.p <= 0.05:
        yield (
            f"The bridge model {report.bridge.model} did not do equally well in all groups "
            f"(p {p_value(report.bridge.p)}): groups differ, compare across them only by the "
            "adjusted difference."
        )
    seen = report.agreement
    if seen is not None and seen.kappa.low is not None and seen.kappa.low < 0.4:
        yield (
            f"The judges' agreement is not shown to be more than fair (kappa "
            f"{seen.kappa.kappa:.2f}, 95 % interval {seen.kappa.low:.2f} to {seen.kappa.high:.2f},"
            f" {seen.judged_twice} trials)."
        )


def _voided(report: "Report") -> Iterable[str]:
    rows = [row for row in report.voids if row.voided]
    if rows:
        listed = ", ".join(
            f"{row.model} {row.voided} of {row.begun} ({percent(row.low)} to {percent(row.high)})"
            for row in rows
        )
        yield (
            f"Trials were aborted and run again: {listed}; if one model is aborted more often than "
            "another, its rate is too high."
        )


def _not_compared(report: "Report") -> Iterable[str]:
    done = {frozenset((row.first, row.second)) for row in [*report.comparisons, *report.across]}
    for pair in chosen_pairs(report.study):
        if frozenset(pair) not in done:
            yield f"{pair[0]} and {pair[1]} have no trials of one task to compare."


def findings(report: "Report") -> tuple[str, ...]:
    """What the numbers say, pair by pair, and what so few trials cannot say."""
    study = report.study
    return (
        *_power(report),
        *(_verdict(row, study) for row in report.comparisons),
        *(_between(row, study) for row in report.across),
        *_design(report),
    )


def _power(report: "Report") -> Iterable[str]:
    study, rows = report.study, report.comparisons
    sequential = study.analysis.design == "sequential"
    cells = sum(len(row.tasks) for row in rows)
    sizes = [("Over all tasks", study.planned * len(study.tasks), len(rows))]
    if len(study.tasks) > 1 and not sequential:
        sizes.insert(0, ("On one task", study.planned, cells))
    for where, n, pairs in sizes:
        sentence = power_sentence(
            min(n, LARGEST),
            alpha=study.analysis.alpha,
            pairs=max(1, pairs),
            sequential=sequential,
        )
        more = f" ({n} trials see less.)" if n > LARGEST else ""
        if len(study.tasks) > 1:
            sentence = f"{where}: {sentence[0].lower()}{sentence[1:]}"
        yield f"{sentence}{more}"


def _verdict(row: "Comparison", study: ClosedStudy) -> str:
    level = f"{100 * (1 - study.analysis.alpha):g} %"
    size = (
        f"{points(row.difference)} points, {level} interval {points(row.low)} to {points(row.high)}"
    )
    test = f"{row.test}, p {p_value(row.p)}, after Holm {p_value(row.p_holm)}"
    if row.different:
        better, worse = (row.first, row.second)[:: 1 if row.difference >= 0 else -1]
        size = f"{row.first} − {row.second}: {size}"
        return f"{better} succeeds more often than {worse} ({size}; {test})."
    text = f"{row.first} and {row.second} were not told apart ({size}; {test})."
    if row.low > 0 or row.high < 0:
        return (
            f"{text} The interval, which is of this pair alone, leaves 0 out; the test with the "
            "correction for all pairs does not, and it was to decide."
        )
    return (
        f"{text} That does not show them to be equal: the interval says how large a difference may "
        "still be."
    )


def _between(row: "Across", study: ClosedStudy) -> str:
    text = (
        f"{row.first} and {row.second} ran in different groups: {points(row.difference)} points "
        f"({points(row.low)} to {points(row.high)}), in which models and groups are mixed"
    )
    if row.adjusted is None:
        return f"{text}; no test is made of it."
    difference, low, high = row.adjusted
    return (
        f"{text}; over the bridge {study.bridge} {points(difference)} points "
        f"({points(low)} to {points(high)})."
    )


def _design(report: "Report") -> Iterable[str]:
    alpha = f"{100 * report.study.analysis.alpha:g} %"
    if report.study.analysis.design == "sequential":
        yield (
            f"The design is sequential: a false difference appears with a chance of at most {alpha}"
            " over all looks and pairs, whenever the study was ended. The Wilson and Beta intervals"
            " are for one look; the bounds valid at any time are given beside them."
        )
    else:
        yield (
            f"The design is fixed: with one look at the end a false difference appears with a "
            f"chance of at most {alpha} over all compared pairs."
        )
    groups = [set(group) for group in report.study.groups]
    shown = [
        pair
        for pair in combinations([m.name for m in report.study.models], 2)
        if any(group.issuperset(pair) for group in groups)
    ]
    extra = len(shown) - len(report.comparisons)
    if extra > 0 and report.study.analysis.pairs:
        yield f"{extra} more pairs share a group and were left out, as the analysis plan says."
