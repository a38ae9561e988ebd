"""What is kept for its next use, open files and decoded rows: bounded, for threads and forks."""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from vlakern.errors import DatasetError

__all__ = ["Pool", "Recent"]

K = TypeVar("K", bound=Hashable)
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
        _kept.add(self)

    def _after_fork(self) -> None:
        _inherited.append(self._idle)
        self._empty()


def _one(_: Any) -> int:
    return 1


class Recent(Generic[K, T]):
    """Values by key; the least recently used go when all together weigh more than ``limit``.

    Threads may share it. A copy or a pickle of it is empty.
    """

    def __init__(self, limit: int, weigh: Callable[[T], int] = _one) -> None:
        self.limit, self._weigh = limit, weigh
        self._empty()

    def get(self, key: K, make: Callable[[], T]) -> T:
        """The value of ``key``, made if it is not kept; two threads may make it at once."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value = make()
        weight = self._weigh(value)
        with self._lock:
            self._weight += weight - self._values.pop(key, (value, 0))[1]
            self._values[key] = value, weight
            while self._weight > self.limit and len(self._values) > 1:
                self._weight -= self._values.popitem(last=False)[1][1]
        return value

    def __len__(self) -> int:
        return len(self._values)

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit, "_weigh": self._weigh}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._empty()

    def _empty(self) -> None:
        self._values: OrderedDict[K, tuple[T, int]] = OrderedDict()
        self._weight = 0
        self._after_fork()

    def _after_fork(self) -> None:
        # A thread that is not in the child may have held the lock.
        self._lock = threading.Lock()
        _kept.add(self)


# Closing what a parent opened may wait for ever for one of its threads.
_inherited: list[object] = []
_kept: "weakref.WeakSet[Pool | Recent]" = weakref.WeakSet()


def _after_fork() -> None:
    for kept in list(_kept):
        kept._after_fork()


os.register_at_fork(after_in_child=_after_fork)
