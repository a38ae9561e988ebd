"""A network of bad luck between a websocket client and a server, seeded."""

import asyncio
import random
import threading
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

__all__ = ["Proxy", "Weather"]


@dataclass(frozen=True)
class Weather:
    """What goes wrong, at random.

    Attributes:
        delay, jitter: of a request and its reply together, mean and standard deviation [s].
        burst: share of messages that come 0.3 s later, with all behind them.
        rate: bytes per second in either direction; 0 for any.
        loss, errors, twice: shares of requests and replies that are lost, of requests that end in
            an error, and of replies that come twice.
        held: share of replies that come only with the next one, before or behind it, and on
            whatever connection the client has then.
    """

    delay: float = 0.0
    jitter: float = 0.0
    burst: float = 0.0
    rate: float = 0.0
    loss: float = 0.0
    errors: float = 0.0
    twice: float = 0.0
    held: float = 0.0


class Proxy:
    """Forwards to a server from a thread of its own, between ``with`` and its end.

    Attributes:
        port: where clients connect.
        counts: what went wrong, by kind.
    """

    def __init__(self, url: str, weather: Weather, seed: int, calm: int = 3) -> None:
        """Args: calm: replies at the start with which nothing goes wrong."""
        self._url, self.weather, self._calm = url, weather, calm
        self._rng = random.Random(seed)
        self._held: bytes | str | None = None
        kinds = ("requests", "lost", "errors", "twice", "held", "burst")
        self.counts: dict[str, int] = dict.fromkeys(kinds, 0)
        self.port = 0
        self._ready, self._ending = threading.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        self._loop.run_until_complete(self._life())

    async def _life(self) -> None:
        async with serve(
            self._client, "127.0.0.1", 0, compression=None, max_size=None, close_timeout=0.2
        ) as server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            self._ready.set()
            await self._ending.wait()

    async def _client(self, client: ServerConnection) -> None:
        try:
            async with connect(self._url, compression=None, max_size=None, close_timeout=0.2) as up:
                await client.send(await up.recv())
                while True:
                    await self._exchange(client, up)
        except (ConnectionClosed, OSError):
            await client.close(1011)

    def _bad(self, kind: str, share: float) -> bool:
        found = self._rng.random() < share and self.counts["requests"] > self._calm
        self.counts[kind] += found
        return found

    async def _exchange(self, client: ServerConnection, server: ClientConnection) -> None:
        weather = self.weather
        request = await client.recv()
        self.counts["requests"] += 1
        if self._bad("lost", weather.loss / 2):
            return
        if self._bad("errors", weather.errors):
            await client.send("error: 500")
            await client.close(1011)
            return
        await self._way(len(request))
        await server.send(request)
        reply = await server.recv()
        await self._way(len(reply))
        if self._bad("lost", weather.loss / 2):
            return
        for one in self._delivered(reply):
            await client.send(one)

    async def _way(self, size: int) -> None:
        weather = self.weather
        took = max(0.0, self._rng.gauss(weather.delay, weather.jitter)) / 2
        took += 0.3 * self._bad("burst", weather.burst)
        took += size / weather.rate if weather.rate else 0.0
        await asyncio.sleep(took)

    def _delivered(self, reply: bytes | str) -> list[bytes | str]:
        """The reply, with what was held back, in an order of chance; or nothing yet."""
        if self._held is None and self._bad("held", self.weather.held):
            self._held = reply
            return []
        found = [reply, *([] if self._held is None else [self._held])]
        self._held = None
        self._rng.shuffle(found)
        return found + found * self._bad("twice", self.weather.twice)
