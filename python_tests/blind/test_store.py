"""The record: what was acknowledged is there, once, in both copies; what was not is nowhere."""

import contextlib
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vlakern.blind.events import Event
from vlakern.blind.store import DATABASE, LOG, Store, backup, verify
from vlakern.errors import StudyError

WRITER = """
import os, sys
from pathlib import Path
from vlakern.blind.store import Store
with Store(Path(sys.argv[1])) as store:
    first = len(store.events)
    print("open", first, flush=True)
    for number in range(first, first + 100000):
        store.append(f"key{number}", "operator", "started", {"code": "x" * (number % 700)})
        os.write(1, f"{number}\\n".encode())
"""


def add(store: Store, number: int, **data: Any) -> Event:
    return store.append(f"key{number}", "operator", "started", {"number": number, **data})


def numbers(store: Store) -> list[int]:
    return [event.data["number"] for event in store.events]


def test_events_outlive_the_process(tmp_path: Path) -> None:
    """A record opened again holds what was written, and both copies verify."""
    with Store(tmp_path) as store:
        for number in range(5):
            add(store, number)
    with Store(tmp_path) as store:
        assert numbers(store) == list(range(5))
    assert verify(tmp_path) == 5


def test_a_form_sent_again_is_one_row(tmp_path: Path) -> None:
    """10,000 double posts of 50 forms leave 50 rows."""
    with Store(tmp_path) as store:
        source = random.Random(1)
        for _ in range(10_000):
            number = source.randrange(50)
            assert (
                store.append(f"key{number}", "operator", "guessed", {"guess": number}).key
                == f"key{number}"
            )
        assert len(store.events) == 50
        with pytest.raises(StudyError, match="saved before with another content"):
            store.append("key7", "operator", "guessed", {"guess": 8})
    assert verify(tmp_path) == 50


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """A second server on one study is refused, not interleaved."""
    with Store(tmp_path), pytest.raises(StudyError, match="another process"):
        Store(tmp_path)
    Store(tmp_path).close()


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_jumps_is_named(tmp_path: Path, jump: float) -> None:
    """Neither way is anything saved; when the clock is right again, it goes on."""
    now = [1e9, 50.0]
    with Store(tmp_path, lambda: now[0], lambda: now[1]) as store:
        add(store, 0)
        now[0] += jump
        with pytest.raises(StudyError, match="the clock"):
            add(store, 1)
        now[0] += 1.0 - jump
        now[1] += 1.0
        add(store, 1)
        assert numbers(store) == [0, 1]


def test_rows_cannot_be_edited_or_deleted(tmp_path: Path) -> None:
    """SQLite itself refuses what is not an append."""
    with Store(tmp_path) as store:
        add(store, 0)
    database = sqlite3.connect(tmp_path / DATABASE)
    for sentence in ("UPDATE events SET key = 'x'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            database.execute(sentence)
    database.close()


@pytest.mark.parametrize("damage", ["edit", "delete", "reorder", "cut", "row"])
def test_a_changed_record_is_refused(tmp_path: Path, damage: str) -> None:
    """Whatever is done to one copy, the study does not go on with it, and verify says so."""
    with Store(tmp_path) as store:
        for number in range(4):
            add(store, number)
    path = tmp_path / LOG
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "edit":
        lines[1] = lines[1].replace(b'"number":1', b'"number":9')
    elif damage == "delete":
        del lines[1]
    elif damage == "reorder":
        lines[1], lines[2] = lines[2], lines[1]
    elif damage == "cut":
        del lines[3]
    else:
        database = sqlite3.connect(tmp_path / DATABASE)
        database.executescript("DROP TRIGGER no_delete; DELETE FROM events WHERE number = 1;")
        database.close()
    path.write_bytes(b"".join(lines))
    with pytest.raises(StudyError, match=r"changed|different events"):
        Store(tmp_path)
    with pytest.raises(StudyError, match=r"changed|different events"):
        verify(tmp_path)


def test_half_a_line_was_never_acknowledged(tmp_path: Path) -> None:
    """A torn last line is cut off at the next opening, and the study goes on."""
    with Store(tmp_path) as store:
        add(store, 0)
    whole = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).write_bytes(whole + whole[:40])
    with pytest.raises(StudyError, match="half a line"):
        verify(tmp_path)
    with Store(tmp_path) as store:
        add(store, 1)
        assert numbers(store) == [0, 1]
    assert verify(tmp_path) == 2


def test_what_only_the_log_holds_is_taken_over(tmp_path: Path) -> None:
    """A crash between the two: the log's event is in SQLite after the next opening."""
    with Store(tmp_path) as store:
        add(store, 0)
        older = (tmp_path / DATABASE).read_bytes()
        add(store, 1)
    (tmp_path / DATABASE).write_bytes(older)
    with Store(tmp_path) as store:
        assert numbers(store) == [0, 1]
    assert verify(tmp_path) == 2


def test_a_backup_of_a_running_study_verifies(tmp_path: Path) -> None:
    """Both records, consistent, while the writer goes on."""
    with Store(tmp_path / "record") as store:
        for number in range(3):
            add(store, number)
        store.backup(tmp_path / "copy")
        add(store, 3)
    assert verify(tmp_path / "copy") == 3
    with Store(tmp_path / "copy") as restored:
        assert numbers(restored) == [0, 1, 2]


def test_a_full_disk_is_seen_and_survived(tmp_path: Path) -> None:
    """Files that may not grow: an error, nothing half-written, and on without a restart."""
    with Store(tmp_path) as store:
        add(store, 0)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            for room in range(0, 20_000, 613):
                size = (tmp_path / LOG).stat().st_size
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
                count = len(store.events)
                try:
                    add(store, count, filler="x" * 500)
                except (OSError, sqlite3.Error):
                    assert len(store.events) == count
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
                add(store, len(store.events))
                assert numbers(store) == list(range(len(store.events)))
                assert (tmp_path / LOG).stat().st_size > size
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        count = len(store.events)
    assert verify(tmp_path) == count


@pytest.mark.parametrize("which", ["log", "database", "commit"])
def test_a_disk_that_refuses_is_seen_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """An input/output error at the log's sync, in SQLite, or after its commit: none is half."""
    with Store(tmp_path) as store:
        add(store, 0)
        real = os.fsync

        def broken(handle: int) -> None:
            monkeypatch.setattr(os, "fsync", real)
            raise OSError(5, "Input/output error")

        if which == "log":
            monkeypatch.setattr(os, "fsync", broken)
            with pytest.raises(OSError, match="Input/output"):
                add(store, 1)
            assert numbers(store) == [0]
        elif which == "database":
            (tmp_path / DATABASE).chmod(0o400)
            other = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            store._database.execute("PRAGMA busy_timeout=10")
            with pytest.raises(sqlite3.Error):
                add(store, 1)
            other.close()
            assert numbers(store) == [0]
        else:
            store._database = Committed(store._database)  # pyright: ignore[reportAttributeAccessIssue]
            with pytest.raises(sqlite3.OperationalError):
                add(store, 1)
        add(store, 1)
        add(store, 2)
        assert numbers(store) == [0, 1, 2]
    assert verify(tmp_path) == 3


def test_a_read_only_disk_is_seen_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither copy can be written: an error each time, nothing changed, then on without restart."""
    with Store(tmp_path) as store:
        add(store, 0)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        real, path = os.write, f"{tmp_path / LOG}"

        def refused(handle: int, content: bytes) -> int:
            if os.readlink(f"/proc/self/fd/{handle}") == path:
                raise OSError(30, "Read-only file system", path)
            return real(handle, content)

        monkeypatch.setattr(os, "write", refused)
        for _ in range(3):
            with pytest.raises(OSError, match="Read-only file system"):
                add(store, 1)
        monkeypatch.setattr(os, "write", real)
        store._database.execute("PRAGMA query_only=1")
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            add(store, 1)
        assert numbers(store) == [0]
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        add(store, 1)  # a failed write opens the database anew
        assert numbers(store) == [0, 1]
    assert verify(tmp_path) == 2


class Committed:
    """A connection whose commit is done and then reported as failed."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def execute(self, sentence: str, *values: Any) -> Any:
        found = self._real.execute(sentence, *values)
        if sentence == "COMMIT":
            raise sqlite3.OperationalError("disk I/O error")
        return found


def killed(folder: Path, source: random.Random) -> tuple[int, int]:
    """Kills a writer at a random moment; events at its opening, and the last acknowledged."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        first = int(child.stdout.readline().split()[1])
        wanted = source.randrange(12)
        acknowledged = first - 1
        for _ in range(wanted):
            acknowledged = int(child.stdout.readline())
        if source.random() < 0.7:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(source.random() * 0.003)
        child.kill()
        rest = child.stdout.read().split(b"\n")[:-1]
        if rest:
            acknowledged = int(rest[-1])
    return first, acknowledged


def run_kills(tmp_path: Path, count: int) -> None:
    source = random.Random(count)
    last = -1
    for _ in range(count):
        first, acknowledged = killed(tmp_path, source)
        assert first > last, "an acknowledged event is gone"
        last = max(acknowledged, first - 1)
    with Store(tmp_path) as store:
        assert len(store.events) > last
        assert [event.key for event in store.events] == [
            f"key{number}" for number in range(len(store.events))
        ]
    assert verify(tmp_path) == last + 1 or verify(tmp_path) == last + 2


def test_kills_lose_nothing(tmp_path: Path) -> None:
    """30 times kill -9 at random points: every acknowledged event is there once."""
    run_kills(tmp_path, 30)


@pytest.mark.soak
def test_a_thousand_kills_lose_nothing(tmp_path: Path) -> None:
    """1,000 times kill -9 at random points."""
    run_kills(tmp_path, 1000)


def test_a_backup_needs_not_the_writers_place(tmp_path: Path) -> None:
    """Another process copies while the writer is open; a line that SQLite lacks stays out."""
    with Store(tmp_path / "record") as store:
        for number in range(3):
            add(store, number)
        with (tmp_path / "record" / LOG).open("ab") as file:
            file.write(b'{"half')
        backup(tmp_path / "record", tmp_path / "copy")
        assert verify(tmp_path / "copy") == 3
        add(store, 3)
    assert verify(tmp_path / "record") == 4
    with pytest.raises(StudyError, match="there already"):
        backup(tmp_path / "record", tmp_path / "copy")
    with pytest.raises(StudyError, match="holds no record"):
        backup(tmp_path / "nowhere", tmp_path / "other")


def test_ends_cut_off_alike_are_seen_by_an_earlier_head(tmp_path: Path) -> None:
    """Both copies end early, in one chain: only a hash that was noted tells."""
    with Store(tmp_path) as store:
        add(store, 0)
        older = (tmp_path / LOG).read_bytes(), (tmp_path / DATABASE).read_bytes()
        head = add(store, 1).hash
    assert verify(tmp_path, head[:16]) == 2
    for name, content in zip((LOG, DATABASE), older, strict=True):
        (tmp_path / name).write_bytes(content)
    assert verify(tmp_path) == 1
    with pytest.raises(StudyError, match="the ends of both copies were cut off"):
        verify(tmp_path, head[:16])


def test_a_machine_that_slept_is_no_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour asleep, in which only the clock that counts sleep has gone on with UTC."""
    now = {"utc": time.time(), "awake": 100.0}
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(time, "clock_gettime", lambda which: now["awake"])
    with Store(tmp_path, lambda: now["utc"]) as store:
        add(store, 0)
        now = {name: value + 3600.0 for name, value in now.items()}
        add(store, 1)
        assert numbers(store) == [0, 1]
