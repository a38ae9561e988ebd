"""The few sizes that a device's calls are prepared for: what a call brings is filled up to one."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlakern.infer.buffers import Limits

__all__ = ["WHOLE", "Bucket", "Ladders", "ladders", "thinned", "whole_calls"]

MOST = 8  # sizes of a stage: each is a graph of up to thousands of kernels
WHOLE = 16  # sizes of whole calls
TOKENS = 64  # prefix tokens from one size to the next, where there are few


@dataclass(frozen=True)
class Bucket:
    """One size of a whole call.

    Attributes:
        views: images of all observations.
        tokens: rows of the semantic expert.
        rows: action chunks.
    """

    views: int
    tokens: int
    rows: int


@dataclass(frozen=True)
class Ladders:
    """The sizes of each stage, ascending; the last is the limit. See :class:`Bucket`."""

    views: tuple[int, ...]
    tokens: tuple[int, ...]
    rows: tuple[int, ...]

    def of(self, **counts: int) -> tuple[int, ...]:
        """For each named stage the smallest size that holds so many."""
        found = ((getattr(self, name), count) for name, count in counts.items())
        return tuple(sizes[bisect_left(sizes, count)] for sizes, count in found)


def ladders(limits: Limits) -> Ladders:
    """Steps of equal length up to 16 of them, beyond that of equal proportion; thinned to a few."""
    return Ladders(
        thinned(_steps(limits.views, 1)),
        thinned(_steps(limits.tokens, TOKENS)),
        thinned([*_powers(limits.rows), limits.rows]),
    )


def _steps(most: int, step: int) -> list[int]:
    if most <= 16 * step:
        return [*range(step, most, step), most]
    doubled = [step * power for power in _powers(most // step)]
    between = {*doubled, *(3 * one // 2 for one in doubled[1:])}
    return [*sorted(one for one in between if one < most), most]


def _powers(most: int) -> list[int]:
    """Powers of 2 below ``most``."""
    return [1 << i for i in range((most - 1).bit_length())]


def thinned(sizes: Sequence[int]) -> tuple[int, ...]:
    """At most 8 of ascending sizes, as evenly spread as their places allow, with both ends."""
    if len(sizes) <= MOST:
        return tuple(sizes)
    gaps = MOST - 1
    return tuple(sizes[(i * (len(sizes) - 1) + gaps // 2) // gaps] for i in range(MOST))


def whole_calls(sizes: Ladders, limits: Limits, view_tokens: int) -> tuple[Bucket, ...]:
    """The sizes of calls that are one graph, at most 16: what a policy is asked for often.

    All cameras of all observations or of one, with all chunks or one of each; a prompt has words
    besides its images.
    """
    most, chunks = limits.observations, limits.rows
    calls = [(most, chunks), (1, 1), (most, most), (1, chunks)]
    calls += [(observations, observations) for observations in range(most - 1, 1, -1)]
    found: dict[Bucket, None] = {}
    for observations, rows in calls:
        views = min(observations * limits.views // most, sizes.views[-1])
        tokens = min(observations * limits.tokens // most, sizes.tokens[-1])
        bucket = Bucket(*sizes.of(views=views, tokens=tokens, rows=min(rows, sizes.rows[-1])))
        prompts = [one for one in sizes.tokens if views * view_tokens < one <= bucket.tokens]
        found |= {replace(bucket, tokens=one): None for one in reversed(prompts)}
        if len(found) >= WHOLE:
            break
    return tuple(found)[:WHOLE]
