"""Requests that wait together go through the policy in one call."""

import asyncio
import queue
import secrets
import threading
import time
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


@dataclass(frozen=True)
class _Waiting:
    observation: Observation
    seed: int
    future: "asyncio.Future[Answer]"
    loop: asyncio.AbstractEventLoop
    deliver: Callable[[Answer], None] | None
    prefix: ActionPrefix | None

    @property
    def kind(self) -> str:
        """Rows of a kind go through the policy together; one without prefix is beside frozen ones
        what it is alone."""
        return "frozen" if self.prefix is None else self.prefix.form


class Batcher:
    """One thread that calls the policy; the event loop never does.

    On the CPU a row's bits do not depend on the rows beside it.

    Args:
        most: rows of a call.
    """

    def __init__(self, policy: Actor, most: int = 8) -> None:
        self._policy, self._most = policy, most
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
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
        drawn = secrets.randbits(63) if seed is None else seed
        self._waiting.put(_Waiting(observation, drawn, future, loop, deliver, prefix))
        return await future

    def close(self, timeout: float | None = None) -> bool:
        """Ends the thread after the requests that wait; whether it ended in time [s]."""
        self._waiting.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            rows = self._rows()
            there = [row for row in rows if row is not None]
            for kind in dict.fromkeys(row.kind for row in there):
                self._answer([row for row in there if row.kind == kind])
            if not rows or rows[-1] is None:
                return

    def _rows(self) -> list[_Waiting | None]:
        """All that wait, at least one."""
        rows = [self._waiting.get()]
        while rows[-1] is not None and len(rows) < self._most:
            try:
                rows.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return rows

    def _act(self, rows: list[_Waiting]) -> list[ActionChunk]:
        asked = ([row.observation for row in rows], [row.seed for row in rows])
        prefixes = [row.prefix for row in rows]
        if not any(prefixes):  # a policy that knows of none is never told
            return self._policy.act_batch(*asked)
        return cast(PrefixActor, self._policy).act_batch(*asked, prefixes)

    def _answer(self, rows: list[_Waiting]) -> None:
        begin = time.perf_counter()
        outcome = _Outcome()
        with outcome:
            chunks = self._act(rows)
            took = (time.perf_counter() - begin) * 1e3
            for row, chunk in zip(rows, chunks, strict=True):
                answer = Answer(chunk, took, len(rows))
                if row.deliver is not None:
                    row.deliver(answer)
                _tell(row, _give, answer)
        if outcome.error is None:
            return
        if isinstance(outcome.error, InputError) and len(rows) > 1:
            for row in rows:  # one client's mistake is not the others'
                self._answer([row])
            return
        for row in rows:
            _tell(row, _fail, outcome.error)


class _Outcome:
    """Keeps whatever is raised inside the block: it belongs to those who wait."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.error = error
        return error is not None


def _tell(row: _Waiting, how: Callable[..., None], what: Answer | BaseException) -> None:
    try:
        row.loop.call_soon_threadsafe(how, row.future, what)
    except RuntimeError:  # its event loop has ended without it
        if not row.loop.is_closed():
            raise


def _give(future: "asyncio.Future[Answer]", answer: Answer) -> None:
    if not future.done():  # the client may have gone
        future.set_result(answer)


def _fail(future: "asyncio.Future[Answer]", error: BaseException) -> None:
    if future.done():
        return
    if not isinstance(error, InputError):
        failed = PolicyFailed(f"the policy failed: {error}")
        failed.__cause__ = error
        error = failed
    future.set_exception(error)
