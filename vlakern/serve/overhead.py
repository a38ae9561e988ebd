"""How much longer a served call takes than the same call in this process.

The policy answers at once, the server is a process of its own, and so nothing but the way is timed.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np

from vlakern.errors import VlakernError
from vlakern.serve._heap import keep_memory
from vlakern.serve.batcher import Batcher
from vlakern.serve.client import Client
from vlakern.serve.server import Server, ServerConfig
from vlakern.serve.wire import Keys, observation
from vlakern.types import ActionChunk, Observation

__all__ = ["Way", "main", "overhead"]

Way = Literal["websocket", "shared"]
WAYS: tuple[Way, ...] = ("websocket", "shared")
STEPS, WIDTH = 16, 32


class Prompt:
    """A policy that answers at once."""

    def act_batch(
        self, observations: Sequence[Observation], seeds: Sequence[int] | None = None
    ) -> list[ActionChunk]:
        return [ActionChunk(np.zeros((STEPS, WIDTH), np.float32)) for _ in observations]


def overhead(
    ways: Sequence[Way] = WAYS, *, views: int = 3, side: int = 224, calls: int = 1000
) -> dict[str, dict[str, float]]:
    """Percentiles [ms] per way: of a call, less the median of a call in this process.

    Args:
        views, side: images of a request, ``[side, side, 3]`` uint8.
        calls: of every way, in ten turns.

    Returns:
        Way -> ``p50_ms``, ``p95_ms``, ``p99_ms``, ``max_ms``, ``request_bytes``.

    Raises:
        VlakernError: the server does not start.
    """
    keys = Keys(tuple(f"view{i}" for i in range(views)))
    rng = np.random.default_rng(0)
    images = {f"images/{v}": rng.integers(0, 256, (side, side, 3), np.uint8) for v in keys.views}
    message = {**images, "state": np.zeros(WIDTH, np.float32), "prompt": "pick it up", "seed": 1}
    here = _InProcess(keys)
    took: dict[str, list[float]] = {name: [] for name in ("here", *ways)}
    with tempfile.TemporaryDirectory() as folder, _serving(views, f"{folder}/socket") as port:
        urls = {"websocket": f"ws://127.0.0.1:{port}", "shared": f"shm://{folder}/socket"}
        asked: dict[str, _Asked] = {"here": here}
        clients = {way: Client(urls[way]) for way in ways}
        asked.update(clients)
        for turn in range(11):  # the first is not counted
            for name, one in asked.items():
                times = _timed(one, message, max(calls // 10, 1))
                took[name] += times if turn else []
        for client in clients.values():
            client.close()
    base = float(np.median(took["here"]))
    size = float(sum(image.nbytes for image in images.values()))
    return {way: {**_percentiles(took[way], base), "request_bytes": size} for way in ways}


class _Asked(Protocol):
    def infer(self, message: Mapping[str, Any]) -> Any: ...


class _InProcess:
    def __init__(self, keys: Keys) -> None:
        self._policy, self._keys = Prompt(), keys

    def infer(self, message: Mapping[str, Any]) -> ActionChunk:
        seen, seed = observation(message, self._keys)
        return self._policy.act_batch([seen], [seed or 0])[0]


def _timed(one: _Asked, message: Mapping[str, Any], calls: int) -> list[float]:
    took = []
    for _ in range(calls):
        begin = time.perf_counter()
        one.infer(message)
        took.append(time.perf_counter() - begin)
    return took


def _percentiles(took: Sequence[float], base: float) -> dict[str, float]:
    over = (np.array(took) - base) * 1e3
    shares = (("p50_ms", 50), ("p95_ms", 95), ("p99_ms", 99), ("max_ms", 100))
    return {name: float(np.percentile(over, share)) for name, share in shares}


@contextmanager
def _serving(views: int, path: str) -> Iterator[int]:
    """The port of a server in another process."""
    code = f"from vlakern.serve.overhead import main; main({views}, {path!r})"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        said = child.stdout.readline()
        if not said.strip().isdigit():
            raise VlakernError("the server of the measurement does not start; its words are above")
        yield int(said)
    finally:
        child.stdin.close()  # it ends with this process, however that ends
        child.wait(20)
        child.stdout.close()


def main(views: int, path: str) -> None:
    """Serves until its standard input ends."""
    keep_memory()
    keys = Keys(tuple(f"view{i}" for i in range(views)))
    shared = path if sys.platform.startswith("linux") else None
    config = ServerConfig(port=0, shared=shared)

    async def life() -> None:
        async with Server(Batcher(Prompt()), keys, {}, config) as server:
            print(server.port, flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    asyncio.run(life())
