"""Programs under a time limit: killed with all that they started, their output kept."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Result", "Runner"]

KEPT = 300_000  # last characters of a program's output that the log keeps
GRACE = 3.0  # [s] between being asked to end and being killed


@dataclass(frozen=True)
class Result:
    """What became of a program; ``code`` is -1 where it did not start."""

    code: int
    seconds: float
    timed_out: bool
    output: str

    @property
    def status(self) -> str:
        """``ok``, ``failed``, ``timed out`` or ``unavailable``."""
        if self.timed_out:
            return "timed out"
        return {0: "ok", -1: "unavailable"}.get(self.code, "failed")

    @property
    def reason(self) -> str:
        """Why it is not ok, without anything of this machine in it."""
        if self.timed_out:
            return f"killed after {self.seconds:.0f} s"
        return {0: "", -1: "could not be started"}.get(self.code, f"exit code {self.code}")


class Runner:
    """Runs programs in one environment and folder, and logs them one after another."""

    def __init__(self, folder: Path, environment: Mapping[str, str], log: Path):
        self.folder, self.environment, self.log = folder, dict(environment), log
        self._lock = threading.Lock()
        self._count = 0
        log.write_text("")

    def run(self, title: str, command: Sequence[str], limit: float, **extra: str) -> Result:
        """Runs one program for at most ``limit`` seconds.

        Args:
            title: of its part of the log.
            extra: environment variables for it alone.
        """
        with self._lock:
            self._count += 1
            path = self.folder / f"output_{self._count}.txt"
        begin = time.monotonic()
        code, timed_out = -1, False
        with path.open("wb") as output:
            try:
                child = subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=self.environment | extra,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                output.write(f"{error}\n".encode())
            else:
                code, timed_out = _wait(child, limit)
        text = path.read_text(errors="replace")
        result = Result(code, time.monotonic() - begin, timed_out, text)
        with self._lock, self.log.open("a") as log:
            head = f"=== {title}: {result.status}, {result.seconds:.1f} of {limit:.0f} s"
            log.write(f"{head}\n$ {' '.join(command)}\n{text[-KEPT:]}\n")
        return result


def _wait(child: "subprocess.Popen[bytes]", limit: float) -> tuple[int, bool]:
    """Exit code, and whether the limit ended it; it never outlives this call."""
    try:
        return _code(child.wait(max(limit, 0.0))), False
    except subprocess.TimeoutExpired:
        return _end(child), True
    finally:
        if child.poll() is None:  # an interrupt from the keyboard
            _end(child)


def _code(code: int) -> int:
    """As a shell gives it: 128 + the signal that ended it."""
    return 128 - code if code < 0 else code


def _end(child: "subprocess.Popen[bytes]") -> int:
    """Ends a program and all that it started, which share its process group."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, signal_number)
        except ProcessLookupError:
            break
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
    return _code(child.wait())
