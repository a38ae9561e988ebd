"""Whoever waits is answered, whatever becomes of the others."""

import asyncio

import numpy as np
import pytest

from python_tests.serve.conftest import Echo
from vlakern.errors import InputError
from vlakern.serve.batcher import Batcher, PolicyFailed
from vlakern.types import Observation

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
