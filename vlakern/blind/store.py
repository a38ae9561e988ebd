"""The record of a study: an append-only log of hashed lines, and SQLite with the same events.

An event is in the log and synced before SQLite commits it, and both are done before ``append``
returns: what was acknowledged is on disk twice. A line that SQLite lacks after a crash is taken
over at the next opening; a torn last line was never acknowledged and is cut off.
"""

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vlakern.blind.events import ROOT, Event, canonical, check_chain, decode, encode, link
from vlakern.errors import StudyError
from vlakern.files import atomic_directory, write_bytes

__all__ = ["DATABASE", "LOG", "Store", "awake", "backup", "read", "sync_folder", "verify"]

DATABASE, LOG, LOCK = "events.sqlite", "events.jsonl", "writer.lock"
MOST_BYTES = 1 << 16  # of a line
JUMP = 5.0  # of the clock between two events [s]
TABLE = """
CREATE TABLE IF NOT EXISTS events (
  number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, line BLOB NOT NULL
) STRICT;
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are never edited'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
"""


def awake() -> float:
    """Monotonic time that goes on while the machine sleeps [s]: waking up is no jump."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Store:
    """The one writer of a study's record.

    Args:
        folder: of the record; made if it is not there.
        clock, ticks: UTC and monotonic time [s].

    Raises:
        StudyError: another process writes it, or its two copies contradict each other.
    """

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = awake,
    ) -> None:
        self.folder, self._clock, self._ticks = folder, clock, ticks
        self._turn = threading.Lock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
        with ExitStack() as opened:  # closes what was opened if the rest fails
            self._lock = _exclusive(folder)
            opened.callback(os.close, self._lock)
            self._log = _own_file(folder / LOG)
            opened.callback(os.close, self._log)
            os.close(_own_file(folder / DATABASE))  # SQLite would make it for everyone to read
            sync_folder(folder)
            self._database = _connect(folder / DATABASE)
            opened.callback(lambda: self._database.close())
            self._events = self._recover()
            self._opened = opened.pop_all()
        self._seen = {event.key: event for event in self._events}
        self._end = os.fstat(self._log).st_size
        self._unsettled = False  # the last write failed, and what it left is not known
        self._offset: float | None = None

    @property
    def events(self) -> tuple[Event, ...]:
        """All events so far."""
        return tuple(self._events)

    @property
    def settled(self) -> bool:
        """Whether it is known what is on disk; after a write that failed it may not be."""
        return not self._unsettled

    def find(self, key: str) -> Event | None:
        """The event of a form that was saved before."""
        return self._seen.get(key)

    def append(self, key: str, actor: str, kind: str, data: Mapping[str, Any]) -> Event:
        """Writes an event to both records, synced, and returns it; twice the same is once.

        Raises:
            StudyError: the key was used for something else, or the clock has jumped.
            OSError, sqlite3.Error: the disk is full or gone; nothing was written.
        """
        with self._turn:
            self._settle()
            found = self._seen.get(key)
            if found is not None:
                same = (kind, actor, canonical(dict(data)))
                if (found.kind, found.actor, canonical(found.data)) != same:
                    raise StudyError(
                        f"form {key[:16]!r} was saved before with another content; open the page"
                        " again"
                    )
                return found
            now = self._now()
            previous = self._events[-1].hash if self._events else ROOT
            event = link(len(self._events), key, now, actor, kind, data, previous)
            self._write(event)
            self._events.append(event)
            self._seen[key] = event
            return event

    def backup(self, folder: Path) -> None:
        """A copy of both records into a folder that must not be there, while the study runs."""
        if folder.exists():
            raise StudyError(f"{folder} is there already; give a new folder for the backup")
        with self._turn:
            _copy(self._database, self._events, folder)

    def close(self) -> None:
        """Gives the record free for another writer."""
        self._opened.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _now(self) -> float:
        """The time of an event; a clock that jumped is refused."""
        now, ticks = self._clock(), self._ticks()
        last = self._events[-1].time if self._events else now
        offset = now - ticks
        if now < last - 1.0:
            raise StudyError(
                f"the clock stands {last - now:.0f} s before the last event; set it right, nothing"
                " was saved"
            )
        if self._offset is not None and abs(offset - self._offset) > JUMP:
            raise StudyError(
                f"the clock jumped by {offset - self._offset:+.0f} s since the last event; set it"
                " right, or restart the study's server if it is right now; nothing was saved"
            )
        self._offset = offset
        return max(now, last)

    def _write(self, event: Event) -> None:
        """Both records or none; SQLite commits only what the log holds."""
        line = encode(event)
        if len(line) > MOST_BYTES:
            raise StudyError(f"an event of {len(line)} bytes, expected at most {MOST_BYTES}")
        self._unsettled = True
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._insert(event, line)
            os.lseek(self._log, self._end, os.SEEK_SET)
            _write_all(self._log, line)
            os.fsync(self._log)
            self._database.execute("COMMIT")
            self._unsettled = False
        finally:
            if self._unsettled:
                with suppress(OSError, sqlite3.Error):  # else the next write settles it
                    self._settle()
        self._end += len(line)

    def _insert(self, event: Event, line: bytes) -> None:
        row = event.number, event.key, line
        self._database.execute("INSERT INTO events VALUES (?, ?, ?)", row)

    def _settle(self) -> None:
        """After a write that failed: SQLite decides whether the event is there, the log follows."""
        if not self._unsettled:
            return
        self._database.close()
        self._database = _connect(self.folder / DATABASE)
        stored = _stored(self._database)
        if len(stored) > len(self._events):
            self._end += len(encode(stored[-1]))
            self._events.append(stored[-1])
            self._seen[stored[-1].key] = stored[-1]
        self._cut(self._end)
        self._unsettled = False

    def _recover(self) -> list[Event]:
        """The events on which both records agree; what only the log has is taken over."""
        path = self.folder / LOG
        logged = list(_logged(path, self._cut))
        stored = _stored(self._database)
        check_chain(logged, str(path))
        check_chain(stored, str(self.folder / DATABASE))
        if len(stored) > len(logged) or logged[: len(stored)] != stored:
            raise StudyError(
                f"{path} and {DATABASE} hold different events ({len(logged)} and {len(stored)});"
                " restore both from one backup"
            )
        with _transaction(self._database):
            for event in logged[len(stored) :]:
                self._insert(event, encode(event))
        return logged

    def _cut(self, end: int) -> None:
        """Removes a line that was never finished."""
        os.ftruncate(self._log, end)
        os.fsync(self._log)


def backup(folder: Path, to: Path) -> None:
    """A copy of both records by another process than their writer, while the study is served.

    Raises:
        StudyError: ``to`` is there already, or the record is damaged.
    """
    if to.exists():
        raise StudyError(f"{to} is there already; give a new folder for the backup")
    with _read_only(folder) as database:
        _copy(database, _agreed(folder, database), to)


def read(folder: Path) -> list[Event]:
    """The events of a record, checked, by another process than its writer; writes nothing.

    Raises:
        StudyError: there is no record, or it is damaged.
    """
    with _read_only(folder) as database:
        return _agreed(folder, database)


def _agreed(folder: Path, database: sqlite3.Connection) -> list[Event]:
    """The events of both copies, while somebody may be writing the next one."""
    stored = _stored(database)
    # What SQLite holds is in the log already, so the log comes second.
    logged = list(islice(_logged(folder / LOG, lambda end: None), len(stored)))
    check_chain(stored, str(folder / DATABASE))
    if stored != logged:
        raise StudyError(f"{folder / LOG} and {DATABASE} hold different events; see verify")
    return stored


def _copy(database: sqlite3.Connection, events: Iterable[Event], folder: Path) -> None:
    with atomic_directory(folder) as there:
        there.chmod(0o700)
        os.close(_own_file(there / DATABASE))
        target = sqlite3.connect(there / DATABASE)
        try:
            database.backup(target)
        finally:
            target.close()
        write_bytes(there / LOG, b"".join(encode(event) for event in events))
        (there / LOG).chmod(0o600)


def verify(folder: Path, head: str = "") -> int:
    """Checks both records as they are and returns how many events they hold; writes nothing.

    Args:
        head: a hash that was noted earlier, or its beginning; without one nobody can tell whether
            the ends of both copies were cut off alike.

    Raises:
        StudyError: an event was edited, left out, added or moved, or the copies differ.
    """
    path = folder / LOG
    logged = list(_logged(path, _refuse_torn))
    check_chain(logged, str(path))
    with _read_only(folder) as database:
        stored = _stored(database)
    if stored != logged:
        raise StudyError(f"{path} and {DATABASE} hold different events; restore both")
    if head and not any(event.hash.startswith(head) for event in logged):
        raise StudyError(
            f"no event has the hash {head[:16]}, which was its last one once: the ends of both"
            " copies were cut off, or it is another study's; restore both from a backup"
        )
    return len(logged)


def _refuse_torn(end: int) -> None:
    raise StudyError(f"the log ends in half a line after {end} bytes; open the study to repair it")


def _exclusive(folder: Path) -> int:
    handle = _own_file(folder / LOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise StudyError(
            f"{folder} is written by another process; end that one, or wait for it"
        ) from error
    return handle


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        # EXTRA syncs the folder after the journal's removal, too.
        for line in ("journal_mode=DELETE", "synchronous=EXTRA", "trusted_schema=OFF"):
            database.execute(f"PRAGMA {line}").fetchone()
        if database.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("its pages do not fit together")
        database.executescript(TABLE)
    except sqlite3.DatabaseError as error:
        database.close()
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise StudyError(f"{path} is damaged ({error}); restore both records") from error
    return database


def _stored(database: sqlite3.Connection) -> list[Event]:
    """Events in SQLite, in their order."""
    try:
        rows = database.execute("SELECT number, key, line FROM events ORDER BY number").fetchall()
    except sqlite3.OperationalError as error:  # also a reader's, of what a crash left half done
        wanted = "`vlakern blind status` ends what a crash left"
        raise StudyError(f"{DATABASE} cannot be read now ({error}); {wanted}") from error
    except sqlite3.DatabaseError as error:
        raise StudyError(f"{DATABASE} is damaged ({error}); restore both records") from error
    found = []
    for number, key, line in rows:
        event = decode(line)
        if (event.number, event.key) != (number, key) or encode(event) != line:
            raise StudyError(f"{DATABASE} was changed: row {number} is not its event")
        found.append(event)
    return found


def _logged(path: Path, torn: Callable[[int], None]) -> Iterator[Event]:
    """Events of the log; ``torn`` receives where a last, unfinished line begins."""
    end = 0
    with path.open("rb") as file:
        while line := file.readline(MOST_BYTES + 1):
            if not line.endswith(b"\n"):
                if file.read(1):
                    raise StudyError(f"{path} holds a line beyond {MOST_BYTES} bytes; restore it")
                torn(end)
                return
            event = decode(line)
            if encode(event) != line:
                raise StudyError(f"{path} was changed: a line at byte {end} is not its event")
            yield event
            end += len(line)


@contextmanager
def _read_only(folder: Path) -> Iterator[sqlite3.Connection]:
    """One view of the database; the writer's commit waits for its end, for milliseconds."""
    if not (folder / DATABASE).is_file():
        raise StudyError(f"{folder} holds no record; give the folder of a locked study")
    database = sqlite3.connect(f"file:{quote(str(folder / DATABASE))}?mode=ro", uri=True)
    try:
        database.execute("BEGIN")
        yield database
    finally:
        database.close()


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")


def _own_file(path: Path) -> int:
    """A handle of a file that its owner alone reads, made if it is not there."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.fchmod(handle, 0o600)
    return handle


def _write_all(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]


def sync_folder(folder: Path) -> None:
    """Names in it are on disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
