"""Many comparisons at once: Holm's correction and the compact letter display."""

import string
from collections.abc import Iterable, Sequence

from vlakern.errors import InputError

__all__ = ["compact_letters", "holm"]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: comparing them with alpha keeps the family's error at alpha.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65-70. It needs no independence.

    Raises:
        InputError: a p-value outside [0, 1].
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise InputError(f"expected p-values in [0, 1], found {p!r}")
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def compact_letters(names: Sequence[str], different: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Letters such that two names share one exactly if they were not told apart.

    The insert-and-absorb algorithm of H.-P. Piepho, Journal of Computational and Graphical
    Statistics 13 (2004) 456-466.

    Args:
        names: best first; letters are given out in this order.
        different: the pairs that a test told apart, in either order.

    Returns:
        The letters of each name, such as ``"ab"``.

    Raises:
        InputError: a name twice, or a pair that is not of two of the names.
    """
    if len(set(names)) != len(names):
        raise InputError(f"expected every name once, found {list(names)!r}")
    columns = [frozenset(names)] if names else []
    for one, other in different:
        if one == other or one not in names or other not in names:
            raise InputError(f"expected pairs of two of the names, found {(one, other)!r}")
        split: list[frozenset[str]] = []
        for column in columns:
            both = one in column and other in column
            split += [column - {one}, column - {other}] if both else [column]
        columns = _absorb(split)
    rank = {name: index for index, name in enumerate(names)}
    columns.sort(key=lambda column: sorted(rank[name] for name in column))
    return {
        name: "".join(_letter(i) for i, column in enumerate(columns) if name in column)
        for name in names
    }


def _absorb(columns: list[frozenset[str]]) -> list[frozenset[str]]:
    """Without columns that another contains."""
    unique = list(dict.fromkeys(columns))
    return [one for one in unique if not any(one < other for other in unique)]


def _letter(index: int) -> str:
    """a to z, then a2 to z2 and so on."""
    turn, place = divmod(index, 26)
    return string.ascii_lowercase[place] + (str(turn + 1) if turn else "")
