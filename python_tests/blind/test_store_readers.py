"""Who reads a record: its owner alone, and without harm while a crash is not yet cleared up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlakern.blind.store import DATABASE, Store, backup, read, verify
from vlakern.errors import StudyError


def test_a_record_is_its_owners_alone(tmp_path: Path) -> None:
    """Folder and files of record and backup, whatever the umask; an older record is closed up."""
    before = os.umask(0)
    try:
        with Store(tmp_path / "record") as store:
            store.append("key0", "operator", "started", {"code": "A"})
            store.backup(tmp_path / "copy")
        backup(tmp_path / "record", tmp_path / "other")
        assert open_to_others(tmp_path) == []
        for path in (tmp_path / "record", *(tmp_path / "record").iterdir()):
            path.chmod(0o755)
        Store(tmp_path / "record").close()
        assert open_to_others(tmp_path) == []
    finally:
        os.umask(before)


def open_to_others(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.stat().st_mode & 0o077]


CRASH = """
import os, signal, sys
from pathlib import Path
from vlakern.blind.store import Store
store, real = Store(Path(sys.argv[1])), os.fsync
def die(handle):
    real(handle)
    store._database.execute("PRAGMA cache_size=1")
    store._database.execute("CREATE TABLE filler(x)")
    store._database.execute("INSERT INTO filler VALUES (zeroblob(300000))")
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = die
store.append("key1", "operator", "started", {"code": "A"})
"""


def test_what_a_crash_left_is_no_damage(tmp_path: Path) -> None:
    """A reader meets SQLite's journal of a killed writer: it says what to do, and that helps."""
    with Store(tmp_path) as store:
        store.append("key0", "operator", "started", {"code": "A"})
    subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], check=False)
    assert (tmp_path / f"{DATABASE}-journal").is_file()
    for look in (verify, read):
        with pytest.raises(StudyError, match=r"cannot be read now.*`vlakern blind status`"):
            look(tmp_path)
    with Store(tmp_path) as store:
        assert len(store.events) == 2
    assert verify(tmp_path) == len(read(tmp_path)) == 2


def test_a_folder_with_odd_letters(tmp_path: Path) -> None:
    """What means something in an address of SQLite's means nothing in a folder's name."""
    folder = tmp_path / "50%41 ?a#b"
    with Store(folder) as store:
        store.append("key0", "operator", "started", {"code": "A"})
    assert verify(folder) == len(read(folder)) == 1
