"""Rows of parquet files: any range, any way of storing numbers, in threads and after a fork."""

import copy
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from vlakern.data.lerobot_table import FrameTables, read_table, row_count
from vlakern.errors import DatasetError

ROWS = 25


@pytest.fixture
def path(tmp_path: Path) -> Path:
    vectors = np.arange(ROWS * 3, dtype=np.float64).reshape(ROWS, 3)
    table = pa.table(
        {
            "fixed": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 3),
            "list": pa.array(vectors.astype("f4").tolist()),
            "bare": pa.array(np.arange(ROWS) % 2 == 0),
            "index": pa.array(np.arange(ROWS)),
            "text": pa.array([f"row {k}" for k in range(ROWS)]),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    return tmp_path / "a.parquet"


def tables() -> FrameTables:
    return FrameTables({"fixed": 3, "list": 3, "bare": 1}, ["index"], ["text", "gone"])


def check(found: dict, first: int, count: int) -> None:
    expected = np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 3)[first : first + count]
    np.testing.assert_array_equal(found["fixed"], expected)
    np.testing.assert_array_equal(found["list"], expected)
    np.testing.assert_array_equal(found["bare"][:, 0], expected[:, 0] % 2 == 0)
    np.testing.assert_array_equal(found["index"], np.arange(first, first + count))
    assert found["text"].to_pylist() == [f"row {k}" for k in range(first, first + count)]
    assert found["fixed"].dtype == np.float32


@pytest.mark.parametrize(("first", "count"), [(0, 7), (0, 25), (6, 2), (13, 9), (24, 1), (7, 7)])
def test_any_range(path: Path, first: int, count: int):
    """Rows come from as many row groups as they lie in."""
    check(tables().rows(path, first, count), first, count)


def test_only_what_is_there(path: Path):
    """A range past the end gives the rows that are there."""
    assert len(tables().rows(path, 23, 9)["index"]) == 2
    assert tables().rows(path, 30, 2) == {}
    assert tables().count(path) == row_count(path) == ROWS


def test_cells(path: Path):
    """Single entries of a column that is no vector."""
    assert [tables().cell(path, "text", k) for k in (0, 7, 24)] == ["row 0", "row 7", "row 24"]
    with pytest.raises(DatasetError, match="no row 25"):
        tables().cell(path, "text", 25)
    with pytest.raises(DatasetError, match="lacks the column 'image'"):
        tables().cell(path, "image", 0)


def test_little_is_kept(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only as many row groups stay as the bytes allow; files are not read twice within them."""
    reads = []
    decode = FrameTables._decode
    monkeypatch.setattr(
        FrameTables, "_decode", lambda *args: reads.append(args[2]) or decode(*args)
    )
    found = tables()
    for first in (0, 1, 7, 0):
        found.rows(path, first, 1)
    assert reads == [0, 1]
    found._groups.limit = 1
    for first in (14, 15, 0):
        found.rows(path, first, 1)
    assert reads == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("list", [[1.0, 2.0, 3.0]] * 24 + [[1.0]], "list is not 3 numbers a row"),
        ("list", [[1.0, 2.0, 3.0]] * 24 + [None], "list is not 3 numbers a row"),
        ("list", [[1.0, 2.0, None]] * 25, "list has an entry that is empty"),
        ("list", [[1.0, 2.0, np.inf]] * 25, "list has an entry that is not finite"),
        ("list", [["1", "2", "3"]] * 25, "list holds .*string.*, expected numbers"),
        ("index", [None] + [1] * 24, "index has an entry that is empty"),
    ],
)
def test_rows_that_are_no_numbers(path: Path, column: str, values: list, message: str):
    """What is not as wide as declared, empty or no number is refused by file and column."""
    table = parquet.read_table(path)
    place = table.column_names.index(column)
    parquet.write_table(table.set_column(place, column, pa.array(values)), path)
    with pytest.raises(DatasetError, match=rf"a\.parquet: {message}"):
        tables().rows(path, 0, ROWS)


def test_missing_column_and_file(path: Path):
    """A column or a file that is not there is named."""
    with pytest.raises(DatasetError, match=r"a\.parquet lacks the column 'speed'"):
        FrameTables({"speed": 1}, []).rows(path, 0, 1)
    with pytest.raises(DatasetError, match=r"gone\.parquet is missing"):
        tables().rows(path.with_name("gone.parquet"), 0, 1)
    assert read_table(path, ["index"], prefix="te").column_names == ["index", "text"]


def test_threads_and_copies(path: Path):
    """Many threads read the right rows, and so does a copy."""
    found = tables()
    with ThreadPoolExecutor(4) as pool:
        for first, rows in enumerate(pool.map(lambda k: found.rows(path, k, 3), range(20))):
            check(rows, first, 3)
    check(copy.deepcopy(found).rows(path, 4, 9), 4, 9)


def test_after_a_fork(path: Path):
    """A child reads although its parent's other thread held the lock when it was made."""
    found = tables()
    found.rows(path, 0, 3)
    with found._groups._lock:
        child = multiprocessing.get_context("fork").Process(target=_read, args=(found, path))
        child.start()
    child.join(30)
    alive = child.is_alive()
    child.kill()
    assert (alive, child.exitcode) == (False, 0)


def _read(found: FrameTables, path: Path) -> None:
    check(found.rows(path, 5, 12), 5, 12)
