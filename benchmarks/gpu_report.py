"""The lines that ``gpu_check.py`` writes: JSON, one object a line, every kind with its fields."""

import json
import math
import re
from pathlib import Path
from typing import Any

__all__ = ["FIELDS", "SCHEMA", "Report", "device_slug", "problems", "read_rows"]

SCHEMA = 1
TEXT, NUMBER, WHOLE, LIST, TABLE = (str,), (int, float), (int,), (list,), (dict,)
MAYBE = (str, type(None))
STATUSES = ("ok", "failed", "timed out", "skipped", "unavailable")

# kind -> field -> types; a line may hold more fields than these
FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "environment": {
        "gpu": TEXT,
        "device": TEXT,
        "capability": TEXT,
        "driver": MAYBE,
        "clocks": TABLE,
        "torch": TEXT,
        "triton": MAYBE,
        "nvcc": MAYBE,
        "python": TEXT,
        "commit": MAYBE,
    },
    "stage": {"name": TEXT, "status": TEXT, "seconds": NUMBER, "limit_s": NUMBER, "reason": TEXT},
    "backends": {"op": TEXT, "verdicts": TABLE},
    "tests": {
        "op": TEXT,
        "file": TEXT,
        "status": TEXT,
        "passed": WHOLE,
        "failed": WHOLE,
        "skipped": WHOLE,
        "failures": LIST,
    },
    "sanitizer": {"op": TEXT, "tool": TEXT, "status": TEXT},
    "machine": {"name": TEXT, "value": NUMBER, "unit": TEXT, "method": TEXT},
    "speed": {"op": TEXT, "case": TEXT, "device": TEXT, "sanitizer": TEXT, "row": TABLE},
    "baseline": {"op": TEXT, "case": TEXT, "name": TEXT, "microseconds": NUMBER, "clock": TEXT},
    "engine": {
        "case": TEXT,
        "name": TEXT,
        "wall_ms": TABLE,
        "model_ms": TABLE,
        "stages_ms": TABLE,
        "error": NUMBER,
        "why_eager": MAYBE,
    },
    "train": {
        "preset": TEXT,
        "device": TEXT,
        "samples": WHOLE,
        "samples_per_s": TABLE,
        "ratios": TABLE,
        "backends": TABLE,
    },
    "summary": {"ok": (bool,), "red": LIST, "seconds": NUMBER, "speed_lines": WHOLE},
}


def problems(line: str) -> list[str]:
    """What is wrong with a line of the report, nothing if it is sound."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        return [f"not JSON: {error}"]
    if not isinstance(record, dict) or record.get("kind") not in FIELDS:
        return ["kind must be one of " + ", ".join(FIELDS)]
    wanted = {"schema": WHOLE} | FIELDS[record["kind"]]
    found = [f"{name} is missing" for name in wanted if name not in record]
    found += [
        f"{name} must be {' or '.join(one.__name__ for one in types)}, got {record[name]!r}"
        for name, types in wanted.items()
        if name in record and not _is(record[name], types)
    ]
    if record.get("schema") != SCHEMA:
        found.append(f"schema must be {SCHEMA}")
    if "status" in wanted and record.get("status") not in STATUSES:
        found.append("status must be one of " + ", ".join(STATUSES))
    return found + [f"{name} is not a finite number" for name in _not_finite(record)]


def _is(value: Any, types: tuple[type, ...]) -> bool:
    return isinstance(value, types) and (not isinstance(value, bool) or bool in types)


def _not_finite(value: Any, name: str = "line") -> list[str]:
    if isinstance(value, float):
        return [] if math.isfinite(value) else [name]
    if isinstance(value, dict):
        return [one for key, inner in value.items() for one in _not_finite(inner, str(key))]
    if isinstance(value, list):
        return [one for inner in value for one in _not_finite(inner, name)]
    return []


class Report:
    """A file of lines, each on disk as soon as it is known."""

    def __init__(self, path: Path):
        self.path = path
        self.path.write_text("")

    def add(self, kind: str, **fields: Any) -> list[str]:
        """Appends a line, or nothing and returns what is wrong with it."""
        line = json.dumps({"schema": SCHEMA, "kind": kind, **fields})
        wrong = problems(line)
        if not wrong:
            with self.path.open("a") as file:
                file.write(line + "\n")
        return wrong


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file that a benchmark may have left half written, or not at all."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def device_slug(name: str) -> str:
    """``nvidia-h200`` of ``NVIDIA H200``: the name of a baseline's file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
