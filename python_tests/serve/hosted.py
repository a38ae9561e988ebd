"""A server in a process of its own, whose policy tells what it saw."""

import asyncio
import itertools
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlakern.errors import VlakernError
from vlakern.serve import Client
from vlakern.serve.batcher import Batcher
from vlakern.serve.prefix import PrefixRule
from vlakern.serve.server import Server, ServerConfig
from vlakern.serve.settings import Statistics
from vlakern.serve.wire import Keys
from vlakern.types import ActionChunk, Observation

__all__ = ["KEYS", "VIEWS", "Served", "Session", "Tells", "main", "serving"]

VIEWS = ("front",)
KEYS = Keys(VIEWS, prefix=PrefixRule(("frozen", "cheap"), 2))


@dataclass(frozen=True)
class Served:
    """A server in a process of its own.

    Attributes:
        counted: once it has ended, what it counted itself.
    """

    port: int
    shared: str
    pid: int
    counted: dict[str, int]

    def resident(self) -> int:
        """Its memory [bytes]."""
        return self._status("VmRSS:")

    def peak(self) -> int:
        """The most of it so far [bytes]."""
        return self._status("VmHWM:")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def _status(self, name: str) -> int:
        words = Path(f"/proc/{self.pid}/status").read_text().split(name)[1].split()
        return int(words[0]) << 10


class Tells:
    """A policy that answers at once, with what it saw."""

    def act_batch(
        self,
        observations: Sequence[Observation],
        seeds: Sequence[int] | None = None,
        prefixes: object = None,
    ) -> list[ActionChunk]:
        assert seeds is not None
        return [
            ActionChunk(np.full((16, 32), (one.state.sum() + seed) % 1009, np.float32))
            for one, seed in zip(observations, seeds, strict=True)
        ]


@contextmanager
def serving(folder: Path, **config: Any) -> Iterator[Served]:
    """By default one that allows more clients, so that those who fuzz do not wait for each other.

    Its log is ``folder / "log"``, as verbose as that of ``vlakern serve``.
    """
    path = str(folder / "fuzzed")
    config = {"shared": path, **(config or {"most_connections": 32, "close_timeout": 0.2})}
    code = f"from python_tests.serve.hosted import main; main({config!r})"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "log").open("w"),
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdin is not None
    assert child.stdout is not None
    counted: dict[str, int] = {}
    try:
        yield Served(int(child.stdout.readline()), path, child.pid, counted)
        assert child.poll() is None, "the server has ended"
    finally:
        child.stdin.close()
        child.wait(30)
        counted.update(json.loads(child.stdout.read() or "{}"))
        child.stdout.close()
    assert child.returncode == 0
    log = (folder / "log").read_text()
    assert "Traceback" not in log, log[:4000]


def main(settings: dict[str, Any]) -> None:
    """Serves until its standard input ends, then prints what it counted."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    config = ServerConfig(port=0, **settings)

    async def life() -> Statistics:
        async with Server(Batcher(Tells()), KEYS, {}, config) as server:
            print(server.port, flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        return server.statistics

    found = asyncio.run(life())
    print(
        json.dumps({"requests": found.requests, "refused": found.refused, "failed": found.failed})
    )


class Session(threading.Thread):
    """A client of good manners meanwhile.

    Attributes:
        took: of its calls [s].
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.ending = threading.Event()
        self.took: list[float] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        image = np.zeros((224, 224, 3), np.uint8)
        sent = {"front": image, "state": np.ones(8, np.float32), "prompt": "pick"}
        try:
            with Client(self._url, timeout=90.0) as client:
                for seed in itertools.count():
                    if self.ending.wait(0.02):
                        break
                    begin = time.perf_counter()
                    found = client.infer({**sent, "seed": seed})["actions"]
                    self.took.append(time.perf_counter() - begin)
                    np.testing.assert_array_equal(found, np.full((16, 32), (8 + seed) % 1009))
        except (AssertionError, OSError, VlakernError) as error:
            self.error = error
