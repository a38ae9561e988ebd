"""What every verb shares: the JSON envelope, the progress bar and the console."""

import dataclasses
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO, TypeVar

from rich.console import Console
from tqdm import tqdm

import vlakern
from vlakern.errors import InputError
from vlakern.files import write_json

__all__ = [
    "Progress",
    "check_json",
    "check_writable",
    "commit",
    "console",
    "machine",
    "progress",
    "write_report",
]

T = TypeVar("T")
SCHEMA = 1
LINE_EVERY_S = 10.0


def console() -> Console:
    """A console that writes tables for people to standard output."""
    return Console(file=sys.stdout, highlight=False)


class Progress:
    """A progress bar moved by hand; off a terminal one plain line every 10 s and one at the end.

    Args:
        total: the count that means done.
        label: what is counted, in a word or two.
        stream: where it is written, standard error by default.
    """

    def __init__(self, total: int, label: str, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._total, self._label = total, label
        self._done, self._shown, self._note = 0, -1, ""
        self._start = self._last = time.monotonic()
        terminal = self._stream.isatty()
        self._bar = tqdm(total=total, desc=label, file=self._stream) if terminal else None

    def update(self, count: int = 1, note: str = "", at_once: bool = False) -> None:
        """Counts ``count`` more; ``note`` (a loss, a rate) is shown behind the count.

        ``at_once``: whenever the last was shown, because what begins may take minutes.
        """
        self._done += count
        self._note = note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
            if at_once:
                self._bar.refresh()
        elif at_once or time.monotonic() - self._last >= LINE_EVERY_S:
            self._line()

    def close(self) -> None:
        """Writes the last state; nothing more is written after it."""
        if self._bar is not None:
            self._bar.close()
        elif self._shown != self._done:
            self._line()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _line(self) -> None:
        self._last, self._shown = time.monotonic(), self._done
        note = f", {self._note}" if self._note else ""
        seconds = self._last - self._start
        text = f"{self._label}: {self._done}/{self._total} in {seconds:.0f} s{note}"
        print(text, file=self._stream, flush=True)


def progress(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Passes ``items`` on under a :class:`Progress` that counts them."""
    with Progress(total, label) as bar:
        for item in items:
            yield item
            bar.update()


def check_writable(path: Path) -> None:
    """Finds out before the work, not after it, that ``path`` cannot be created.

    Raises:
        InputError: naming the directory that cannot be written to.
    """
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        # Asking is not enough: to root every directory claims to be writable.
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise InputError(f"cannot write {path}: {parent}: {error.strerror or error}") from error


def check_json(path: Path | None) -> None:
    """Refuses a ``--json`` that is a directory or cannot be created."""
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"--json {path} is a directory; name a file")
    check_writable(path)


def write_report(path: Path, config: Any, payload: Mapping[str, Any]) -> None:
    """Writes one object: schema, version, commit, machine, the verb's options and its results.

    Args:
        path: the file; replaced in one step.
        config: a dataclass instance, or a mapping.
        payload: the verb's own keys; paths and tuples inside become strings and lists.
    """
    options = config if isinstance(config, Mapping) else dataclasses.asdict(config)
    head = {
        "schema": SCHEMA,
        "vlakern": vlakern.__version__,
        "commit": commit(),
        "machine": machine(),
        "config": options,
    }
    write_json(path, _plain({**head, **payload}))


def commit() -> str | None:
    """The commit of the checkout this package runs from, ``-dirty`` if it was edited, else None."""
    root = Path(vlakern.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    words = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def machine() -> dict[str, Any]:
    """The computer in words: processor, cores, memory [GiB], load, system, Python and torch."""
    facts = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    versions = {name: _version(name) for name in ("torch", "numpy")}
    gpus = {"gpu": _gpu_name()}
    return facts | {key: value for key, value in (versions | gpus).items() if value is not None}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    for key in ("model name", "Model", "Hardware"):
        for line in lines:
            if line.split(":")[0].strip() == key:
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu_name() -> str | None:
    """The first GPU's name, if this run already uses torch; a report alone does not load it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(0)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
