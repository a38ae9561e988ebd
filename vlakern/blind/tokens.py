"""Tokens of a study's roles: shown once, kept as salted hashes, and they expire."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlakern.blind.seal import SEALED
from vlakern.errors import ConfigError, StudyError
from vlakern.files import write_json
from vlakern.records import from_dict, to_dict
from vlakern.untrusted import read_json

__all__ = ["Tokens", "draw_tokens", "read_tokens", "roles", "seats"]

FILE = "tokens.json"
DAY = 86_400.0  # s


@dataclass(frozen=True)
class _Kept:
    """SHA-256 of salt and token, and until when it holds, UTC [s]."""

    salt: str
    sha256: str
    expires: float


@dataclass(frozen=True)
class Tokens:
    """Role -> what is kept of its token."""

    kept: Mapping[str, _Kept]

    def role(self, token: str, now: float | None = None) -> str:
        """Whose token it is.

        Raises:
            StudyError: nobody's, or it has expired.
        """
        found = None
        for role, one in self.kept.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(_hash(one.salt, token), one.sha256):
                found = role
        if found is None:
            raise StudyError("this token is not known; copy it again from the runner's terminal")
        now = time.time() if now is None else now
        if now >= self.kept[found].expires:
            raise StudyError(
                f"this token expired {(now - self.kept[found].expires) / DAY:.1f} days ago;"
                " `vlakern blind tokens` draws new ones"
            )
        return found


def roles(judges: int) -> tuple[str, ...]:
    """Who takes part in a study of that many judges."""
    return ("operator", *seats(judges), "analyst")


def seats(judges: int) -> tuple[str, ...]:
    """Who judges there."""
    settle = ("adjudicator",) if judges > 1 else ()
    return (*(f"judge-{index + 1}" for index in range(judges)), *settle)


def draw_tokens(folder: Path, judges: int, days: float, now: float | None = None) -> dict[str, str]:
    """New tokens of all roles of a study's folder, by role; earlier ones are void."""
    tokens = {role: secrets.token_urlsafe(18) for role in roles(judges)}
    expires = (time.time() if now is None else now) + days * DAY
    kept = {}
    for role, token in tokens.items():
        salt = secrets.token_hex(16)
        kept[role] = _Kept(salt, _hash(salt, token), expires)
    path = folder / SEALED / FILE
    write_json(path, to_dict(Tokens(kept)))
    path.chmod(0o600)
    return tokens


def read_tokens(folder: Path) -> Tokens:
    """What is kept of a study's tokens.

    Raises:
        StudyError: there are none, or the file is damaged.
    """
    path = folder / SEALED / FILE
    values = read_json(path, needed="`vlakern blind tokens` draws them", error=StudyError)
    try:
        return from_dict(Tokens, values, str(path))
    except ConfigError as error:
        raise StudyError(f"{error}; `vlakern blind tokens` draws new ones") from error


def _hash(salt: str, token: str) -> str:
    return hashlib.sha256(f"{salt}\n{token}".encode()).hexdigest()
