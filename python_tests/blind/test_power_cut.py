"""Power cuts: unsynced writes are dropped, torn or kept at random; what was acknowledged is there.

A writer runs once under a library that records every change of its files and every sync. A cut at
any point of that trace then leaves what was synced, and a random part of the rest: each write of
its own may be missing or torn at any byte, each new or removed name may have been kept or not.
"""

import os
import random
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vlakern.blind.store import Store, verify
from vlakern.errors import StudyError

pytestmark = pytest.mark.ci

SOURCE = Path(__file__).with_name("power_cut.cpp")
WRITER = """
import os, sys
from pathlib import Path
from vlakern.blind.store import Store
for part in range(3):
    with Store(Path(sys.argv[1])) as store:
        for number in range(20 * part, 20 * part + 20):
            store.append(f"key{number}", "operator", "started", {"code": "x" * (37 * number)})
            os.write(1, f"{number} ".encode())
"""


@dataclass(frozen=True)
class Step:
    """One record of the trace; see the library."""

    kind: str
    path: str
    number: int
    content: bytes


@dataclass
class File:
    """A file's content on the disk, and what was written since its last sync."""

    content: bytearray = field(default_factory=bytearray)
    waiting: list[Step] = field(default_factory=list)


@dataclass
class Disk:
    """What is safe, and what waits: files by an identity that outlives their names."""

    files: list[File] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)  # as the process sees them
    safe: dict[str, int] = field(default_factory=dict)
    waiting: list[tuple[str, int | None]] = field(default_factory=list)

    def apply(self, step: Step) -> None:
        """Takes one step of the process."""
        if step.kind == "C":
            self.files.append(File())
            self.names[step.path] = len(self.files) - 1
            self.waiting.append((step.path, self.names[step.path]))
        elif step.kind == "U":
            del self.names[step.path]
            self.waiting.append((step.path, None))
        elif step.kind == "S" and step.path == ".":
            rename(self.safe, self.waiting)
            self.waiting = []
        elif step.kind == "S":
            file = self.files[self.names[step.path]]
            for one in file.waiting:
                change(file.content, one)
            file.waiting = []
        elif step.kind in "WT":
            self.files[self.names[step.path]].waiting.append(step)

    def cut(self, folder: Path, source: random.Random) -> None:
        """Writes what a power cut leaves into ``folder``."""
        names = dict(self.safe)
        keep = source.choice((0.0, 0.5, 0.9, 1.0))
        rename(names, [one for one in self.waiting if source.random() < keep])
        for name, identity in names.items():
            content = bytearray(self.files[identity].content)
            for step in self.files[identity].waiting:
                if source.random() < keep:
                    change(content, torn(step, source))
            (folder / name).write_bytes(content)


def rename(names: dict[str, int], changes: list[tuple[str, int | None]]) -> None:
    for name, identity in changes:
        if identity is None:
            names.pop(name, None)
        else:
            names[name] = identity


def change(content: bytearray, step: Step) -> None:
    """A write, which may leave a hole of zeros before it, or a truncation."""
    if step.kind == "T":
        content[step.number :] = bytes(max(0, step.number - len(content)))
        return
    end = step.number + len(step.content)
    content.extend(bytes(max(0, end - len(content))))
    content[step.number : end] = step.content


def torn(step: Step, source: random.Random) -> Step:
    """The write, or a first part of it."""
    if step.kind == "T" or source.random() < 0.5:
        return step
    return Step(step.kind, step.path, step.number, step.content[: source.randrange(10_000)])


def steps(trace: Path) -> Iterator[Step]:
    data, at = trace.read_bytes(), 0
    while at < len(data):
        kind = chr(data[at])
        (length,) = struct.unpack_from("=I", data, at + 1)
        path = data[at + 5 : at + 5 + length].decode()
        number, size = struct.unpack_from("=QI", data, at + 5 + length)
        at += 17 + length
        yield Step(kind, path, number, data[at : at + size])
        at += size


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> list[Step]:
    """What a writer of 60 events in three openings does to its files."""
    there = tmp_path_factory.mktemp("trace")
    library = there / "power_cut.so"
    subprocess.run(
        ["g++", "-std=c++17", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True
    )
    (there / "record").mkdir()
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "POWER_CUT_FOLDER": str(there / "record"),
        "POWER_CUT_TRACE": str(there / "trace"),
    }
    ran = subprocess.run(
        [sys.executable, "-c", WRITER, str(there / "record")],
        env=environment,
        capture_output=True,
        check=True,
    )
    found = list(steps(there / "trace"))
    assert ran.stdout.split() == [str(number).encode() for number in range(60)]
    replayed = Disk()
    for step in found:
        replayed.apply(step)
    for name, identity in replayed.names.items():  # the recorder misses nothing
        file = replayed.files[identity]
        for step in file.waiting:
            change(file.content, step)
        assert (there / "record" / name).read_bytes() == file.content
    return found


def survives(steps: list[Step], folder: Path, source: random.Random) -> None:
    """A cut after ``steps``: opens, holds all that was acknowledged, verifies, and goes on."""
    disk = Disk()
    acknowledged = -1
    for step in steps:
        disk.apply(step)
        if step.kind == "A":
            acknowledged = int(step.content.split()[-1])
    folder.mkdir()
    disk.cut(folder, source)
    with Store(folder) as store:
        count = len(store.events)
        assert acknowledged < count <= acknowledged + 2
        assert [event.key for event in store.events] == [f"key{index}" for index in range(count)]
        store.append("after", "operator", "started", {"code": "on"})
    assert verify(folder) == count + 1


def test_two_hundred_power_cuts_lose_nothing(trace: list[Step], tmp_path: Path) -> None:
    """Anywhere in the trace, also while the record is opened for the first time."""
    source = random.Random(200)
    for index in range(200):
        survives(trace[: source.randrange(len(trace) + 1)], tmp_path / str(index), source)


def test_a_store_that_does_not_sync_would_be_caught(trace: list[Step], tmp_path: Path) -> None:
    """The same cuts on a trace without its syncs lose events: the proof can fail."""
    lost = 0
    source = random.Random(7)
    unsynced = [step for step in trace if step.kind != "S"]
    for index in range(20):
        try:
            survives(unsynced, tmp_path / str(index), source)
        except (AssertionError, StudyError, sqlite3.Error):
            lost += 1
    assert lost > 10
