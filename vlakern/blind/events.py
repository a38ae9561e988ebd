"""What happened in a study, as a chain: every event carries the hash of the one before it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vlakern.errors import ConfigError, StudyError
from vlakern.records import from_dict
from vlakern.untrusted import parse_json

__all__ = ["KINDS", "ROOT", "Event", "canonical", "check_chain", "decode", "encode", "link"]

ROOT = "0" * 64  # the hash before the first event
KINDS = (
    "locked",
    "started",
    "ended",
    "aborted",
    "guessed",
    "judged",
    "adjudicated",
    "corrected",
    "rested",
    "looked",
    "closed",
    "requested",
    "unblinded",
)


@dataclass(frozen=True)
class Event:
    """One thing that happened; it is never edited.

    Attributes:
        number: 0 first, without a gap.
        key: of idempotency: who sends the same form twice gives the same key twice.
        time: UTC [s since 1970].
        actor: role and opaque code of the person or program.
        kind: one of ``KINDS``; data: plain JSON values.
        previous, hash: of the event before, and SHA-256 of everything else here.
    """

    number: int
    key: str
    time: float
    actor: str
    kind: str
    data: Mapping[str, Any]
    previous: str
    hash: str


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def link(
    number: int,
    key: str,
    time: float,
    actor: str,
    kind: str,
    data: Mapping[str, Any],
    previous: str,
) -> Event:
    """The event with its hash."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {KINDS}")
    bare = Event(number, key, time, actor, kind, dict(data), previous, "")
    return Event(number, key, time, actor, kind, dict(data), previous, _hash(bare))


def encode(event: Event) -> bytes:
    """The event's one line."""
    return canonical(asdict(event)) + b"\n"


def decode(line: bytes) -> Event:
    """The event of a line, its hash not yet checked.

    Raises:
        StudyError: it is no event.
    """
    try:
        return from_dict(Event, parse_json(line), "event")
    except (ValueError, ConfigError) as error:
        raise StudyError(f"a line of the log is no event: {error}") from error


def check_chain(events: Iterable[Event], where: str, previous: str = ROOT, number: int = 0) -> None:
    """Refuses a chain in which anything was edited, left out, added or moved.

    Raises:
        StudyError: naming the first event that does not fit.
    """
    for event in events:
        if event.number != number or event.previous != previous or event.hash != _hash(event):
            raise StudyError(
                f"{where} was changed: event {number} does not follow from the one before it;"
                " restore both records from a backup"
            )
        previous, number = event.hash, number + 1


def _hash(event: Event) -> str:
    values = asdict(event)
    del values["hash"]
    return hashlib.sha256(canonical(values)).hexdigest()
