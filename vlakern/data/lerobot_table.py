"""Rows of memory-mapped parquet files, decoded a row group at a time when they are asked for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vlakern.data.pool import Recent
from vlakern.errors import DatasetError

__all__ = ["CACHE_BYTES", "FrameTables", "read_table", "row_count"]

# Decoded rows that a dataset keeps in a process; an hour of 50 Hz and 40 numbers takes 30 MB.
CACHE_BYTES = 256 << 20
OPEN_FILES = 256
Value = TypeVar("Value")


class FrameTables:
    """Columns of the frame tables of one dataset, with the last row groups kept.

    Args:
        widths: vector -> numbers in it.
        scalars: columns of whole numbers, which must be there.
        others: columns that may be there, given as they are.
    """

    def __init__(
        self, widths: Mapping[str, int], scalars: Sequence[str], others: Sequence[str] = ()
    ) -> None:
        self._widths, self._scalars, self._others = dict(widths), tuple(scalars), tuple(others)
        self._groups: Recent[Any, Any] = Recent(CACHE_BYTES, _weight)
        self._footers: Recent[Path, Any] = Recent(OPEN_FILES)

    def rows(self, path: Path, first: int, count: int) -> dict[str, Any]:
        """Rows ``first`` to ``first + count - 1``, fewer at the end of the file.

        Vectors are float32 ``[count, width]``, scalars int64 ``[count]``, the others arrow arrays.

        Raises:
            DatasetError: a missing or damaged file or column, or numbers that are not finite.
        """
        parts: list[dict[str, Any]] = []
        for group, begin, rows in self._overlapping(path, first, count):
            table = self._group(path, group)
            part = slice(max(first - begin, 0), min(first + count - begin, rows))
            parts.append({key: value[part] for key, value in table.items()})
        keys = parts[0] if parts else ()
        found = {key: _joined([part[key] for part in parts]) for key in keys}
        # Only what was asked for: one bad row must not cost the episodes beside it.
        for key in self._widths if found else ():
            if not np.isfinite(found[key]).all():
                raise DatasetError(f"{path}: {key} has an entry that is not finite")
        return found

    def cell(self, path: Path, key: str, row: int) -> Any:
        """One entry of a column that no vector or scalar is, such as a picture."""
        for group, begin, _ in self._overlapping(path, row, 1):
            column = self._groups.get(
                (path, group, key), lambda g=group: self._read(path, g, [key])[key]
            )
            return column[row - begin].as_py()
        raise DatasetError(f"{path} has no row {row}")

    def count(self, path: Path) -> int:
        """Rows of a file, from its footer alone."""
        return self._footer(path).num_rows

    def columns(self, path: Path) -> list[str]:
        """Names of a file's columns, from its footer alone."""
        return list(self._footer(path).schema.to_arrow_schema().names)

    def _footer(self, path: Path) -> Any:
        return self._footers.get(
            path,
            lambda: _guarded(path, lambda parquet: parquet.read_metadata(path, memory_map=True)),
        )

    def _overlapping(self, path: Path, first: int, count: int) -> list[tuple[int, int, int]]:
        """Number, first row and rows of the groups that hold any of the rows."""
        footer, found, begin = self._footer(path), [], 0
        for group in range(footer.num_row_groups):
            rows = footer.row_group(group).num_rows
            if begin < first + count and first < begin + rows:
                found.append((group, begin, rows))
            begin += rows
        return found

    def _group(self, path: Path, group: int) -> dict[str, Any]:
        return self._groups.get((path, group), lambda: self._decode(path, group))

    def _read(self, path: Path, group: int, columns: Sequence[str]) -> dict[str, Any]:
        footer = self._footer(path)
        names = footer.schema.to_arrow_schema().names
        _require_columns(path, names, columns)

        def read(parquet: Any) -> dict[str, Any]:
            with _open(parquet, path, footer) as file:
                # One thread: loaders run many processes, and arrow's own may not live after a fork.
                table = file.read_row_group(group, columns=list(columns), use_threads=False)
                return {key: table[key].combine_chunks() for key in columns}

        return _guarded(path, read)

    def _decode(self, path: Path, group: int) -> dict[str, Any]:
        there = set(self._footer(path).schema.to_arrow_schema().names)
        others = [key for key in self._others if key in there]
        read = self._read(path, group, [*self._widths, *self._scalars, *others])
        found: dict[str, Any] = {key: read[key] for key in others}
        for key in self._scalars:
            found[key] = _numbers(path, key, read[key], np.int64)
        for key, width in self._widths.items():
            column = read[key].flatten() if hasattr(read[key], "flatten") else read[key]
            if len(column) != len(read[key]) * width or read[key].null_count:
                raise DatasetError(f"{path}: {key} is not {width} numbers a row everywhere")
            values = _numbers(path, key, column, np.float32).reshape(-1, width)
            found[key] = values
        return found


def _weight(value: Any) -> int:
    """Bytes of a column or of several."""
    return sum(part.nbytes for part in (value.values() if isinstance(value, dict) else [value]))


def read_table(path: Path, columns: Iterable[str] = (), prefix: str = "\0") -> Any:
    """Those columns of a small parquet file that are named or begin with ``prefix``; or all.

    Raises:
        DatasetError: a missing or damaged file, or a column that is named and not there.
    """

    def read(parquet: Any) -> Any:
        with _open(parquet, path) as file:
            names = file.schema_arrow.names
            wanted = list(columns)
            _require_columns(path, names, wanted)
            wanted += [name for name in names if name.startswith(prefix)]
            return file.read(columns=wanted or None, use_threads=False)

    return _guarded(path, read)


def row_count(path: Path) -> int:
    """Rows of a parquet file, from its footer alone; raises as :func:`read_table`."""
    return _guarded(path, lambda parquet: parquet.read_metadata(path).num_rows)


def _guarded(path: Path, read: Callable[[Any], Value]) -> Value:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        return read(parquet)
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is not a whole parquet file ({error})") from error


def _open(parquet: Any, path: Path, footer: Any = None) -> Any:
    """Checksums of pages are verified where the writer has left any."""
    return parquet.ParquetFile(
        path, memory_map=True, metadata=footer, page_checksum_verification=True
    )


def _require_columns(path: Path, names: Iterable[str], wanted: Iterable[str]) -> None:
    missing = [name for name in wanted if name not in set(names)]
    if missing:
        raise DatasetError(f"{path} lacks the column {missing[0]!r}")


def _numbers(path: Path, key: str, column: Any, dtype: type) -> np.ndarray:
    if column.null_count:
        raise DatasetError(f"{path}: {key} has an entry that is empty")
    try:
        values = column.to_numpy(zero_copy_only=False)
        if values.dtype == object:
            raise TypeError("not numbers")
        return values.astype(dtype)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path}: {key} holds {column.type}, expected numbers") from error


def _joined(parts: list[Any]) -> Any:
    import pyarrow as pa

    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else pa.concat_arrays(parts)
