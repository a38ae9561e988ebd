"""Whoever waits is answered, whatever becomes of the others."""

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from python_tests.serve.conftest import Echo, wait_for
from vlakern.errors import InputError
from vlakern.serve.batcher import Batcher, PolicyFailed
from vlakern.types import ActionChunk, Observation

IMAGE = {"front": np.ones((1, 1, 3), np.uint8)}


def seen(number: float, images: dict[str, np.ndarray] | None = None) -> Observation:
    return Observation(IMAGE if images is None else images, np.array([number], np.float32), "go")


def test_answers_find_who_asked(echo: Echo) -> None:
    async def ask() -> list[float]:
        answers = await asyncio.gather(*(batcher.act(seen(i), seed=i) for i in range(9)))
        return [float(answer.chunk.actions[0, 0]) for answer in answers]

    batcher = Batcher(echo, 4)
    echo.takes = 0.05
    assert asyncio.run(ask()) == list(range(9))
    assert sum(echo.batches) == 9
    assert max(echo.batches) == 4
    batcher.close()


def test_a_bad_row_is_refused_alone(echo: Echo) -> None:
    async def ask() -> list[object]:
        first = asyncio.create_task(batcher.act(seen(0)))
        await asyncio.sleep(0.02)
        rows = [batcher.act(seen(1)), batcher.act(seen(2, {})), batcher.act(seen(3))]
        return [await first, *await asyncio.gather(*rows, return_exceptions=True)]

    batcher = Batcher(echo, 4)
    echo.takes = 0.1
    _, first, bad, last = asyncio.run(ask())
    assert isinstance(bad, InputError)
    assert not isinstance(first, BaseException)
    assert not isinstance(last, BaseException)
    batcher.close()


def test_a_policy_that_breaks_breaks_no_thread(echo: Echo) -> None:
    batcher = Batcher(echo, 4)
    echo.fails = ZeroDivisionError("broken")
    with pytest.raises(PolicyFailed, match="broken") as caught:
        asyncio.run(batcher.act(seen(1)))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    echo.fails = None
    assert asyncio.run(batcher.act(seen(1))).rows == 1
    batcher.close()


def test_a_client_that_has_gone_hurts_nobody(echo: Echo) -> None:
    async def ask() -> float:
        task = asyncio.create_task(batcher.act(seen(1)))
        await asyncio.sleep(0.02)
        task.cancel()
        return float((await batcher.act(seen(2))).chunk.actions[0, 0])

    batcher = Batcher(echo, 4)
    echo.takes = 0.1
    assert asyncio.run(ask()) == 2.0
    batcher.close()


def test_a_loop_that_has_ended_hurts_nobody(echo: Echo) -> None:
    """Its requests are still in the policy's hands when it goes."""

    async def leave() -> None:
        task = asyncio.create_task(batcher.act(seen(1)))
        await asyncio.sleep(0.02)
        task.cancel()

    batcher = Batcher(echo, 4)
    echo.takes = 0.2
    asyncio.run(leave())
    assert asyncio.run(batcher.act(seen(2))).chunk.actions[0, 0] == 2.0
    assert batcher.close(5.0)


def test_a_policy_that_hangs_is_not_waited_for(echo: Echo) -> None:
    batcher = Batcher(echo, 4)
    echo.takes = 1.0
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(asyncio.wait_for(batcher.act(seen(1)), 0.05))
    assert not batcher.close(0.05)
    assert batcher.close(5.0)


class Alone(Echo):
    """Notes which threads called, and whether two did at once."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[str] = set()
        self.inside = self.together = 0

    def act_batch(self, observations: Any, seeds: Any = None) -> list[ActionChunk]:
        self.inside += 1
        self.together = max(self.together, self.inside)
        self.threads.add(threading.current_thread().name)
        try:
            return super().act_batch(observations, seeds)
        finally:
            self.inside -= 1


def test_a_thread_that_may_wait_calls_the_policy_itself() -> None:
    """Where nobody else does; errors are raised there, too."""
    policy = Alone()
    batcher = Batcher(policy, 4)
    assert batcher.act_here(seen(3), 5).chunk.actions[0].tolist() == [3.0, 3.0, 5.0]
    assert policy.threads == {threading.current_thread().name}
    with pytest.raises(InputError, match="no view"):
        batcher.act_here(seen(1, {}))
    policy.fails = ZeroDivisionError("broken")
    with pytest.raises(PolicyFailed, match="broken"):
        batcher.act_here(seen(1))
    assert batcher.close(5.0)


def test_threads_and_event_loops_share_calls() -> None:
    """One call at a time, each row's own answer, and a mistake is its client's alone."""
    policy = Alone()
    batcher, wrong = Batcher(policy, 3), []

    def ask(first: int) -> None:
        for i in range(first, first + 40):
            bad = i % 7 == 0
            try:
                answer = batcher.act_here(seen(i, {} if bad else None), i % 1000)
            except InputError:
                wrong.extend([] if bad else [i])
            else:
                right = answer.chunk.actions[0].tolist() == [i, 3.0, i % 1000]
                wrong.extend([] if right and not bad else [i])

    async def ask_too() -> list[float]:
        answers = [await batcher.act(seen(i)) for i in range(60)]
        return [float(answer.chunk.actions[0, 0]) for answer in answers]

    policy.takes = 0.0005
    threads = [threading.Thread(target=ask, args=(100 * i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    assert asyncio.run(ask_too()) == list(range(60))
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert (wrong, policy.together) == ([], 1)
    assert max(policy.batches) > 1
    assert batcher.close(5.0)


def test_the_end_waits_for_a_call_on_another_thread() -> None:
    policy = Alone()
    policy.takes = 0.5
    batcher = Batcher(policy, 3)
    thread = threading.Thread(target=batcher.act_here, args=(seen(1),))
    thread.start()
    wait_for(lambda: policy.inside == 1)
    assert not batcher.close(0.05)
    assert batcher.close(5.0)
    thread.join(5)
    assert not thread.is_alive()
