"""A client of openpi's protocol: numpy, msgpack and websockets, and no torch.

Dimension letters: H steps of a chunk, A action width.
"""

import contextlib
import itertools
import secrets
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from vlakern.errors import InputError, VlakernError
from vlakern.serve._websocket import Transport, opened
from vlakern.serve.codec import decode, pieces
from vlakern.serve.shared import SharedConnection
from vlakern.serve.wire import REQUEST

__all__ = ["ActionBroker", "Client", "ServerError", "actions_of"]

SHARED = "shm://"


class ServerError(VlakernError):
    """The server cannot be reached, does not answer in time, or answered with an error."""


class Client:
    """Asks a server for chunks; a lost connection is made anew at the next request.

    Args:
        url: ``ws://host:port``, ``host:port``, or ``shm:///path`` of a server on this machine.
        token: what the server wants to see; the one at a path wants none.
        timeout: of a request, its reply included [s].
        patience: how long to try to connect [s].

    Attributes:
        metadata: what the server said of itself.
        stale: replies to other requests, which were thrown away. This project's server repeats a
            request's number; of another one, what came before the request was sent is stale.
    """

    def __init__(
        self,
        url: str = "ws://127.0.0.1:8000",
        *,
        token: str | None = None,
        timeout: float = 10.0,
        patience: float = 10.0,
    ) -> None:
        self._url = url if "://" in url else f"ws://{url}"
        self._token, self._timeout, self._patience = token, timeout, patience
        self._open: Transport | None = None
        if not (timeout > 0 and patience > 0):
            raise InputError(f"timeout is {timeout} and patience {patience}, expected more than 0")
        self._turn = threading.Lock()
        self._numbers, self._numbered = itertools.count(secrets.randbits(60)), False
        self.stale = 0
        self.metadata: dict[str, Any] = {}
        with self._turn:
            self._open = self._connected()

    def infer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to an observation: ``actions [H, A]`` and timings.

        Raises:
            InputError: the message holds what cannot be sent.
            ServerError: no reply, or one that says what was wrong.
        """
        with self._turn:
            if self._open is not None and self._open.gone():
                self._abandon()
            if self._open is None:
                self._open = self._connected()
            try:
                return self._asked(self._open, message)
            except TimeoutError as error:
                self._abandon()
                raise ServerError(f"{self._url} did not answer in {self._timeout} s") from error
            except (ConnectionClosed, OSError) as error:
                self._abandon()
                raise ServerError(f"{self._url} closed the connection ({error})") from error
            except ServerError:
                self._abandon()
                raise

    def _asked(self, server: Transport, message: Mapping[str, Any]) -> dict[str, Any]:
        end = time.monotonic() + self._timeout
        number = next(self._numbers) if self._numbered else None
        if number is None:
            self.stale += server.drain()
        else:
            message = {**message, REQUEST: number}
        server.send(pieces(message), self._timeout)
        while True:
            reply = server.recv(max(end - time.monotonic(), 0.001))
            if isinstance(reply, str):
                raise ServerError(f"{self._url} answered: {reply[:400]}")
            found = _decoded(reply, self._url)
            if number is None or found.pop(REQUEST, None) == number:
                return found
            self.stale += 1  # of a request that was given up, or once more

    def close(self) -> None:
        """Closes the connection."""
        with self._turn:
            if self._open is not None:
                self._open.close()
            self._open = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connected(self) -> Transport:
        """After the server's first message."""
        end = time.monotonic() + self._patience
        while True:
            try:
                with contextlib.ExitStack() as failed:
                    found = self._opened(max(end - time.monotonic(), 0.1))
                    failed.callback(found.abandon)
                    self.metadata = _decoded(found.recv(self._timeout), self._url)
                    keys = self.metadata.get("keys")
                    self._numbered = isinstance(keys, dict) and keys.get("request") == REQUEST
                    failed.pop_all()
                    return found
            except (InvalidHandshake, InvalidURI, PermissionError) as error:
                raise ServerError(f"{self._url} refused the connection ({error})") from error
            except (OSError, ConnectionClosed) as error:
                if time.monotonic() > end:
                    raise ServerError(f"{self._url} cannot be reached ({error})") from error
            time.sleep(0.1)

    def _opened(self, timeout: float) -> Transport:
        if self._url.startswith(SHARED):
            return SharedConnection(self._url.removeprefix(SHARED), timeout)
        return opened(self._url, self._token, timeout)

    def _abandon(self) -> None:
        if self._open is not None:
            self._open.abandon()
        self._open = None


def _decoded(data: bytes | str, url: str) -> dict[str, Any]:
    try:
        if isinstance(data, str):
            raise InputError(data[:400])
        found = decode(data)
    except InputError as error:
        raise ServerError(f"{url} sent something else than the protocol: {error}") from error
    if not isinstance(found, dict):
        raise ServerError(f"{url} sent a {type(found).__name__}, expected a map")
    return found


def actions_of(reply: Mapping[str, Any]) -> np.ndarray:
    """``[H, A]``.

    Raises:
        ServerError: there are none.
    """
    actions = reply.get("actions")
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or not actions.size:
        raise ServerError("the reply holds no actions [steps, width]")
    return actions


class ActionBroker:
    """One action at a time; the next chunk is fetched in the background.

    Args:
        execute: actions of a chunk that are used, at most all.
        ahead: actions before the end of those at which the next chunk is asked for; it replaces the
            actions for the times after its observation.
    """

    def __init__(self, client: Client, execute: int, ahead: int = 0) -> None:
        if execute < 1 or not 0 <= ahead < execute:
            raise InputError(
                f"execute is {execute} and ahead {ahead}, expected at least 1 and 0 to execute - 1"
            )
        self._client, self._execute, self._ahead = client, execute, ahead
        self._chunk_HA = np.zeros((0, 0), np.float32)
        self._step = 0
        self._fetched: _Fetch | None = None

    def next(self, message: Mapping[str, Any]) -> np.ndarray:
        """The action ``[A]`` for now; ``message`` is the present observation.

        Raises:
            ServerError: as :meth:`Client.infer`, also for what was asked for in the background.
        """
        left = min(self._execute, len(self._chunk_HA)) - self._step
        if self._fetched is None and 0 < left <= self._ahead:
            self._fetched = _Fetch(self._client, message)
        if left <= 0:
            if self._fetched is None:
                self._take(self._client.infer(message), 0)
            else:
                self._take(self._fetched.result(), self._fetched.age)
                self._fetched = None
        elif self._fetched is not None:
            self._fetched.age += 1
        action_A = self._chunk_HA[self._step]
        self._step += 1
        return action_A

    def _take(self, reply: Mapping[str, Any], skip: int) -> None:
        self._chunk_HA = actions_of(reply)
        self._step = min(skip, len(self._chunk_HA) - 1)

    def reset(self) -> None:
        """Forgets what is left of the chunk, for a new episode."""
        if self._fetched is not None:
            self._fetched.wait()
        self._fetched, self._step = None, len(self._chunk_HA)


class _Fetch:
    """A request on a thread of its own.

    Attributes:
        age: actions that were taken since it was made.
    """

    def __init__(self, client: Client, message: Mapping[str, Any]) -> None:
        self.age = 0
        self._reply: dict[str, Any] | None = None
        self._error: VlakernError | None = None
        self._client, self._message = client, dict(message)
        self._thread = threading.Thread(target=self._run, name="vlakern-fetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._reply = self._client.infer(self._message)
        except VlakernError as error:
            self._error = error

    def wait(self) -> None:
        self._thread.join()

    def result(self) -> dict[str, Any]:
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._reply is not None
        return self._reply
