"""Open files and decoders that wait for their next use: bounded, for threads and after forks."""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from vlakern.errors import DatasetError

__all__ = ["Pool"]

T = TypeVar("T")


class Pool(Generic[T]):
    """At most ``limit`` idle objects, each of one file; the least recently used are dropped first.

    A borrowed object is used by nobody else, so threads decode side by side. A child process starts
    with an empty pool: what its parent opened shares its place in the file with the parent.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._empty()

    @contextmanager
    def borrow(self, path: Path, make: Callable[[], T], *more: Hashable) -> Iterator[T]:
        """An object that ``make`` has made of ``path`` as it is now, with the same ``more``.

        It is kept for the next call, unless the block fails.

        Raises:
            DatasetError: no such file.
        """
        try:
            facts = path.stat()
        except OSError as error:
            raise DatasetError(f"{path} cannot be read ({error.strerror})") from error
        # A file that was replaced is another file.
        key = (str(path), facts.st_ino, facts.st_size, facts.st_mtime_ns, *more)
        lock, idle = self._lock, self._idle
        with lock:
            waiting = idle.get(key)
            found = waiting.pop() if waiting else None
        found = make() if found is None else found
        yield found
        with lock:
            idle.setdefault(key, []).append(found)
            idle.move_to_end(key)
            self._trim(idle)

    def __len__(self) -> int:
        return sum(map(len, self._idle.values()))

    def _trim(self, idle: "OrderedDict[Hashable, list[T]]") -> None:
        spare = sum(map(len, idle.values())) - self.limit
        while spare > 0:
            oldest = next(iter(idle))
            dropped = idle[oldest][:spare]
            del idle[oldest][:spare]
            spare -= len(dropped)
            if not idle[oldest]:
                del idle[oldest]

    def _empty(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[Hashable, list[T]] = OrderedDict()
        _pools.add(self)


# Closing what a parent opened may wait for ever for one of its threads.
_inherited: list[object] = []
_pools: "weakref.WeakSet[Pool]" = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        _inherited.append(pool._idle)
        pool._empty()


os.register_at_fork(after_in_child=_after_fork)
