"""A reference clamp of acceleration and jerk: arrays of axes whose stops are simulated by ticks.

Per tick: q' = q + v', v' = v + a', with |v'| <= V, |a'| <= A, |a' - a| <= J. Nothing here is taken
from the executor: the hardest stop is the least of a family of lines, its end is where a loop ends.

Dimension letters: N axes.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["Axes", "Stop", "hardest", "stop"]

MOST_TICKS = 3000
RAMPS = 80  # ticks from the largest acceleration to none, at most


@dataclass(frozen=True)
class Axes:
    """Limits ``[N]`` in units per tick; the jerk may be infinite."""

    low: np.ndarray
    high: np.ndarray
    V: np.ndarray
    A: np.ndarray
    J: np.ndarray


@dataclass(frozen=True)
class Stop:
    """Of a stop ``[N]``: where it rests, and the least and greatest q and speed on its way."""

    rest: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    fastest: np.ndarray


def hardest(v: np.ndarray, a: np.ndarray, A: np.ndarray, J: np.ndarray) -> np.ndarray:
    """The next acceleration ``[N]`` of the hardest stop that ends with neither speed nor it.

    Braking by x, x - J, x - 2J, ... takes away the sum of what is positive, which is the greatest
    of the lines (m + 1) x - J m (m + 1) / 2: so x is the least of what they give for the speed.
    """
    speed = np.abs(v)
    x = speed.copy()
    if np.isfinite(J).all():
        for m in range(1, RAMPS):
            x = np.minimum(x, (speed + J * (m * (m + 1) / 2)) / (m + 1))
    return np.clip(np.where(v >= 0, -1.0, 1.0) * np.minimum(x, A), a - J, a + J)


def stop(q: np.ndarray, v: np.ndarray, a: np.ndarray, axes: Axes) -> Stop:
    """Simulates it for every axis."""
    q, v, a = q.copy(), v.copy(), a.copy()
    lowest, highest, fastest = q.copy(), q.copy(), np.abs(v)
    left = np.arange(len(q))
    for _ in range(MOST_TICKS):
        A, J = axes.A[left], axes.J[left]
        a[left] = hardest(v[left], a[left], A, J)
        v[left] += a[left]
        still = (np.abs(v[left]) <= 1e-11 * axes.V[left]) & (np.abs(a[left]) <= J)
        q[left] += np.where(still, 0.0, v[left])
        lowest[left] = np.minimum(lowest[left], q[left])
        highest[left] = np.maximum(highest[left], q[left])
        fastest[left] = np.maximum(fastest[left], np.abs(v[left]))
        left = left[~still]
        if not len(left):
            return Stop(q, lowest, highest, fastest)
    raise AssertionError(f"{len(left)} axes have not stopped after {MOST_TICKS} ticks")
