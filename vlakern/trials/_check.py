"""What the statistics share: refusing impossible counts, the normal quantile, scipy on demand."""

from importlib import import_module
from numbers import Integral
from statistics import NormalDist
from typing import Any

from vlakern.errors import ConfigError, InputError

__all__ = ["check_counts", "check_level", "check_pairs", "need", "normal_quantile", "whole"]


def whole(value: object) -> bool:
    """Whether ``value`` is an integer; True and 2.0 are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_counts(successes: int, n: int) -> None:
    """Refuses counts that are not whole numbers with ``0 <= successes <= n`` and ``n >= 1``."""
    if whole(successes) and whole(n) and n >= 1 and 0 <= successes <= n:
        return
    raise InputError(
        f"expected whole numbers with 0 <= successes <= n and n >= 1, "
        f"found successes={successes!r} and n={n!r}"
    )


def check_pairs(both: int, first: int, second: int, neither: int) -> None:
    """Refuses the four cells of a table of pairs unless they are whole, not negative, not all 0."""
    cells = (both, first, second, neither)
    if not all(whole(cell) and cell >= 0 for cell in cells) or sum(cells) < 1:
        raise InputError(
            "expected four whole counts of pairs (both succeeded, only the first, only the second, "
            f"neither), none below 0 and at least one pair, found {cells!r}"
        )


def check_level(value: float, name: str = "confidence") -> None:
    """Refuses a confidence, an alpha or a power outside (0, 1); percents are caught that way."""
    if not 0.0 < value < 1.0:
        raise InputError(f"expected a {name} between 0 and 1, found {value!r}")


def normal_quantile(confidence: float) -> float:
    """How many standard deviations hold ``confidence`` of a normal distribution."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def need(part: str) -> Any:
    """``scipy.<part>``, imported when a test first asks for it.

    Raises:
        ConfigError: scipy is not installed.
    """
    try:
        return import_module(f"scipy.{part}")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "this statistic needs the package 'scipy', which is not installed; "
            "run: pip install 'vlakern[blind]'"
        ) from error
