"""Strengths of models that were only ever compared two at a time."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vlakern.errors import InputError
from vlakern.trials._check import check_level, normal_quantile

__all__ = ["BradleyTerry", "Strength", "bradley_terry"]

STEPS = 100
TOLERANCE = 1e-10


class Strength(NamedTuple):
    """A model's log-strength, relative to the mean of all models, with its interval."""

    name: str
    log_strength: float
    low: float
    high: float


class BradleyTerry(NamedTuple):
    """A fitted Bradley-Terry model.

    Attributes:
        strengths: best first; ``p(i beats j) = 1 / (1 + exp(s_j - s_i))`` among decided pairs.
        covariance: of the log-strengths in the order of the names that were given, ``[M, M]``.
        tie: Davidson's nu, 0 where no comparison was tied.
        prior: wins added each way between models that met.
    """

    strengths: tuple[Strength, ...]
    covariance: np.ndarray
    tie: float
    prior: float


def bradley_terry(
    names: Sequence[str],
    wins: Mapping[tuple[str, str], int],
    ties: Mapping[tuple[str, str], int] | None = None,
    confidence: float = 0.95,
    prior: float = 0.0,
) -> BradleyTerry:
    """Fits log-strengths to comparisons by Newton's method, with large-sample intervals.

    Source: R. A. Bradley and M. E. Terry, Biometrika 39 (1952) 324-345; ties as in R. R. Davidson,
    JASA 65 (1970) 317-328; when an estimate exists, L. R. Ford, American Mathematical Monthly 64
    (1957) 28-33.

    Args:
        names: the models, at least two.
        wins: ``(winner, loser)`` -> number of comparisons.
        ties: ``(one, other)`` -> number of comparisons without a winner.
        confidence: coverage aimed at, in (0, 1).
        prior: wins added each way between models that met; above 0 gives a finite estimate for a
            model that never lost, drawn towards the others.

    Raises:
        InputError: unknown names or impossible counts; models that no chain of comparisons
            connects; with ``prior`` 0, models that never lost to the rest; nothing but ties.
    """
    check_level(confidence)
    won, tied = _matrix(names, wins), _matrix(names, ties or {})
    tied = tied + tied.T
    if not 0 <= prior < math.inf:
        raise InputError(f"expected a prior of 0 or more wins, found {prior!r}")
    _check_connected(names, won + tied, prior)
    if not won.any():
        raise InputError("every comparison is a tie, so no strength can be told; report the ties")
    met = (won + won.T + tied) > 0
    strengths, covariance, tie = _newton(won + prior * met, tied)
    errors = np.sqrt(np.diag(covariance))
    half = normal_quantile(confidence) * errors
    rows = [
        Strength(name, float(s), float(s - h), float(s + h))
        for name, s, h in zip(names, strengths, half, strict=True)
    ]
    rows.sort(key=lambda row: -row.log_strength)
    return BradleyTerry(tuple(rows), covariance, tie, prior)


def _matrix(names: Sequence[str], counts: Mapping[tuple[str, str], int]) -> np.ndarray:
    if len(names) < 2 or len(set(names)) != len(names):
        raise InputError(f"expected at least two models, each once, found {list(names)!r}")
    place = {name: index for index, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names)))
    for (one, other), count in counts.items():
        if one == other or one not in place or other not in place or not 0 <= count < math.inf:
            raise InputError(
                f"expected counts of comparisons of two of the models, found {(one, other)!r}: "
                f"{count!r}"
            )
        matrix[place[one], place[other]] += count
    return matrix


def _check_connected(names: Sequence[str], beaten: np.ndarray, prior: float) -> None:
    """Refuses a graph in which some models never met, or never lost to, the rest."""
    undirected = _reached(beaten + beaten.T, 0)
    if not undirected.all():
        raise InputError(
            f"no chain of comparisons connects {_listed(names, undirected)} with "
            f"{_listed(names, ~undirected)}; compare them, or report the two apart"
        )
    if prior > 0:
        return
    for start in range(len(names)):
        inside = _reached(beaten.T, start)
        if not inside.all():
            raise InputError(
                f"{_listed(names, inside)} never lost to {_listed(names, ~inside)}, so their "
                "strength has no finite estimate; give a prior of half a win, or run more trials"
            )


def _reached(edges: np.ndarray, start: int) -> np.ndarray:
    """Which models a path of edges leads to from ``start``."""
    found = np.zeros(len(edges), dtype=bool)
    found[start] = True
    for _ in edges:
        found = found | (edges[found] > 0).any(axis=0)
    return found


def _listed(names: Sequence[str], chosen: np.ndarray) -> str:
    return ", ".join(name for name, here in zip(names, chosen, strict=True) if here)


def _newton(won: np.ndarray, tied: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Log-strengths [M] of mean 0, their covariance [M, M] and Davidson's nu."""
    models = len(won)
    one, other = np.triu_indices(models, 1)
    counts = np.stack([won[one, other], won[other, one], tied[one, other]], axis=1)
    met = counts.sum(axis=1) > 0
    one, other, counts = one[met], other[met], counts[met]
    features = np.zeros((len(one), 3, models + 1))
    rows = np.arange(len(one))
    features[rows, 0, one] = features[rows, 1, other] = 1
    features[rows, 2, one] = features[rows, 2, other] = 0.5
    features[:, 2, models] = 1
    outcomes = 3 if tied.any() else 2
    features, counts = features[:, :outcomes], counts[:, :outcomes]
    totals = counts.sum(axis=1)
    goal = np.einsum("po,pof->f", counts, features)
    parameters = np.zeros(models + 1)
    information = np.zeros((models + 1, models + 1))
    for _ in range(STEPS):
        logits = features @ parameters
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        mean = np.einsum("po,pof->pf", chances, features)
        gradient = goal - totals @ mean
        second = np.einsum("p,po,pof,pog->fg", totals, chances, features, features)
        information = second - np.einsum("p,pf,pg->fg", totals, mean, mean)
        step = np.linalg.pinv(information, hermitian=True) @ gradient
        # A damped step cannot run away before the curvature is that of the solution.
        parameters += step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < TOLERANCE:
            break
    covariance = np.linalg.pinv(information, hermitian=True)[:models, :models]
    strengths = parameters[:models] - parameters[:models].mean()
    return strengths, covariance, math.exp(parameters[models]) if outcomes == 3 else 0.0
