"""Damaged samples: set aside with a name and a reason, counted, and a stop if they are many."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vlakern.errors import DatasetError

__all__ = ["ALLOWED", "GRACE", "Damage", "Quarantine"]

# Of what was drawn.
ALLOWED = 0.001
# Before so many draws a share means little: the count that they would allow holds.
GRACE = 10_000


@dataclass(frozen=True)
class Damage:
    """A sample that cannot be used.

    Attributes:
        name: ``dataset/episode/frame``, or ``dataset/episode``.
        reason: a sentence that names file and field.
    """

    name: str
    reason: str


class Quarantine:
    """What was set aside so far.

    Attributes:
        drawn: samples drawn, damaged ones included.
        count: draws that met a damaged sample.
        reasons: name of every damaged sample -> why, in the order in which they were met.
    """

    def __init__(self) -> None:
        self.drawn = self.count = 0
        self.reasons: dict[str, str] = {}

    def add(self, drawn: int, damages: Iterable[Damage]) -> None:
        """Counts ``drawn`` more samples, of which ``damages`` were set aside.

        Raises:
            DatasetError: more than 0.1 % of ``max(drawn, 10000)`` samples, naming the first.
        """
        self.drawn += drawn
        for damage in damages:
            self.count += 1
            self.reasons.setdefault(damage.name, damage.reason)
        if self.count > ALLOWED * max(self.drawn, GRACE):
            name, reason = next(iter(self.reasons.items()))
            raise DatasetError(
                f"{self.count} of {self.drawn} samples are damaged, more than {ALLOWED:.1%}:"
                f" {len(self.reasons)} of them differ, the first is {name} ({reason}); repair the"
                " dataset or leave it out"
            )

    def include(self, found: Mapping[str, Any]) -> None:
        """Counts what another one wrote with :meth:`to_json`, before this one or beside it."""
        self.drawn += found["drawn"]
        self.count += found["damaged"]
        for name, reason in found["reasons"].items():
            self.reasons.setdefault(name, reason)

    def to_json(self) -> dict[str, Any]:
        """Counts and reasons for programs."""
        return {"drawn": self.drawn, "damaged": self.count, "reasons": dict(self.reasons)}
