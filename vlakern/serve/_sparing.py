"""A log that nobody can fill: who may talk to a server may make mistakes as fast as it answers."""

import logging
import time

__all__ = ["Sparing"]

MOST, SECONDS = 50, 10.0


class Sparing(logging.Filter):
    """Lets ``most`` lines of each level pass in ``seconds`` [s]; a later one says how many did not.

    The errors of the policy are thus not lost among the mistakes of clients.
    """

    def __init__(self, most: int = MOST, seconds: float = SECONDS) -> None:
        super().__init__()
        self._most, self._seconds = most, seconds
        self._levels: dict[int, _Window] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        window = self._levels.setdefault(record.levelno, _Window())
        now = time.monotonic()
        if now - window.begin >= self._seconds:
            window.begin, window.passed = now, 0
        if window.passed >= self._most:
            window.left_out += 1
            return False
        window.passed += 1
        if window.left_out:
            record.msg = f"{record.getMessage()} ({window.left_out} lines before it were left out)"
            record.args = ()
            window.left_out = 0
        return True


class _Window:
    """Of time, and what was logged in it."""

    def __init__(self) -> None:
        self.begin, self.passed, self.left_out = 0.0, 0, 0
