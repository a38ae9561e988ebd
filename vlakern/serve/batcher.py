"""Requests that wait together go through the policy in one call."""

import asyncio
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from vlakern.errors import InputError, VlakernError
from vlakern.types import ActionChunk, ActionPrefix, Observation

__all__ = ["Actor", "Answer", "Batcher", "PolicyFailed", "PrefixActor"]


class PolicyFailed(VlakernError):
    """The policy raised something else than a refusal of its input; its cause is the context."""


class Actor(Protocol):
    """What a policy is to a server."""

    def act_batch(
        self, observations: Sequence[Observation], seeds: Sequence[int] | None = None
    ) -> list[ActionChunk]: ...


class PrefixActor(Protocol):
    """A policy that takes prefixes, all of a call in one form."""

    def act_batch(
        self,
        observations: Sequence[Observation],
        seeds: Sequence[int] | None = None,
        prefixes: Sequence[ActionPrefix | None] | None = None,
    ) -> list[ActionChunk]: ...


@dataclass(frozen=True)
class Answer:
    """A chunk, the time of the call that made it [ms], and how many rows that call had."""

    chunk: ActionChunk
    infer_ms: float
    rows: int


class _Asker(Protocol):
    """Whoever waits for a row."""

    def give(self, answer: Answer) -> None: ...

    def fail(self, error: BaseException) -> None: ...


@dataclass(frozen=True)
class _Row:
    observation: Observation
    seed: int
    prefix: ActionPrefix | None
    asker: _Asker

    @property
    def kind(self) -> str:
        """Rows of a kind go through the policy together; one without prefix is beside frozen ones
        what it is alone."""
        return "frozen" if self.prefix is None else self.prefix.form


class Batcher:
    """Calls the policy, one call at a time, and never on an event loop's thread.

    Requests of event loops wait for a thread of its own. One that came on a thread which may wait
    calls the policy there, if nobody does: that saves the way from thread to thread. Whatever comes
    during a call waits for the next one. On the CPU a row's bits do not depend on the rows beside
    it.

    Args:
        most: rows of a call.
    """

    def __init__(self, policy: Actor, most: int = 8) -> None:
        self._policy, self._most = policy, most
        self._lock = threading.Lock()  # of the next three
        self._rows: deque[_Row] = deque()
        self._busy = self._ending = False
        self._nudges: queue.SimpleQueue[None] = queue.SimpleQueue()  # for the thread
        self._thread = threading.Thread(target=self._run, name="vlakern-infer", daemon=True)
        self._thread.start()

    async def act(
        self,
        observation: Observation,
        seed: int | None = None,
        deliver: Callable[[Answer], None] | None = None,
        prefix: ActionPrefix | None = None,
    ) -> Answer:
        """The next chunk.

        Args:
            prefix: for a policy that is a :class:`PrefixActor`.
            deliver: called with it before anyone else, on the policy's thread: it raises nothing
                and waits for nobody.

        Raises:
            InputError: the observation does not suit the policy.
            PolicyFailed: anything else that the policy raised.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        row = _Row(observation, _drawn(seed), prefix, _OnLoop(future, loop, deliver))
        with self._lock:
            self._rows.append(row)
            waits = self._busy
        if not waits:
            self._nudges.put(None)
        return await future

    def act_here(
        self, observation: Observation, seed: int | None = None, prefix: ActionPrefix | None = None
    ) -> Answer:
        """:meth:`act` on a thread that may wait; it may call the policy, for others, too."""
        asker = _OnThread()
        with self._lock:
            self._rows.append(_Row(observation, _drawn(seed), prefix, asker))
            waits = self._busy
        if not waits:
            self._lead()
        return asker.result()

    def close(self, timeout: float | None = None) -> bool:
        """Ends the thread after the requests that wait; whether it ended in time [s]."""
        with self._lock:
            self._ending = True
        self._nudges.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._nudges.get()
            self._lead()
            with self._lock:
                if self._ending and not self._rows and not self._busy:
                    return

    def _lead(self) -> None:
        """One call for the rows that wait, if nobody makes one."""
        with self._lock:
            if self._busy or not self._rows:
                return
            self._busy = True
            rows = [self._rows.popleft() for _ in range(min(len(self._rows), self._most))]
        try:
            for kind in dict.fromkeys(row.kind for row in rows):
                self._answer([row for row in rows if row.kind == kind])
        finally:
            with self._lock:
                self._busy = False
                more = bool(self._rows) or self._ending
            if more:
                self._nudges.put(None)

    def _act(self, rows: list[_Row]) -> list[ActionChunk]:
        asked = ([row.observation for row in rows], [row.seed for row in rows])
        prefixes = [row.prefix for row in rows]
        if not any(prefixes):  # a policy that knows of none is never told
            return self._policy.act_batch(*asked)
        return cast(PrefixActor, self._policy).act_batch(*asked, prefixes)

    def _answer(self, rows: list[_Row]) -> None:
        begin = time.perf_counter()
        outcome = _Outcome()
        with outcome:
            chunks = self._act(rows)
            took = (time.perf_counter() - begin) * 1e3
            for row, chunk in zip(rows, chunks, strict=True):
                row.asker.give(Answer(chunk, took, len(rows)))
        if outcome.error is None:
            return
        if isinstance(outcome.error, InputError) and len(rows) > 1:
            for row in rows:  # one client's mistake is not the others'
                self._answer([row])
            return
        for row in rows:
            row.asker.fail(_refusal(outcome.error))


class _Outcome:
    """Keeps whatever is raised inside the block: it belongs to those who wait."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.error = error
        return error is not None


class _OnLoop:
    """A coroutine of an event loop that waits."""

    def __init__(
        self,
        future: "asyncio.Future[Answer]",
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[Answer], None] | None,
    ) -> None:
        self._future, self._loop, self._deliver = future, loop, deliver

    def give(self, answer: Answer) -> None:
        if self._deliver is not None:
            self._deliver(answer)
        self._tell(lambda: self._future.set_result(answer))

    def fail(self, error: BaseException) -> None:
        self._tell(lambda: self._future.set_exception(error))

    def _tell(self, what: Callable[[], None]) -> None:
        def told() -> None:
            if not self._future.done():  # the client may have gone
                what()

        try:
            self._loop.call_soon_threadsafe(told)
        except RuntimeError:  # its event loop has ended without it
            if not self._loop.is_closed():
                raise


class _OnThread:
    """A thread that waits."""

    def __init__(self) -> None:
        self._there = threading.Lock()  # a tenth of the time of an event
        self._there.acquire()
        self._answer: Answer | None = None
        self._error: BaseException | None = None

    def give(self, answer: Answer) -> None:
        self._answer = answer
        self._there.release()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._there.release()

    def result(self) -> Answer:
        self._there.acquire()
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer


def _drawn(seed: int | None) -> int:
    return secrets.randbits(63) if seed is None else seed


def _refusal(error: BaseException) -> BaseException:
    if isinstance(error, InputError):
        return error
    failed = PolicyFailed(f"the policy failed: {error}")
    failed.__cause__ = error
    return failed
