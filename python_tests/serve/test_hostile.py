"""Clients that mean harm, or cannot do better, cost themselves their connection and nobody else."""

import contextlib
import resource
import socket
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

from python_tests.serve.conftest import Start, message, shaken, wait_for
from vlakern.errors import ConfigError
from vlakern.serve import Client, ServerError
from vlakern.serve.settings import ServerConfig


def raw(url: str, **more: Any) -> ClientConnection:
    return connect(url, compression=None, max_size=None, **more)


def test_handshakes_that_are_not_finished_make_room_for_who_comes(start: Start) -> None:
    running = start(most_opening=4, open_timeout=30.0)
    port = running.server.port
    with contextlib.ExitStack() as many:
        half = [many.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(9)]
        half[0].settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert half[0].recv(1) == b""
        wait_for(lambda: len(running.server.opening) == 4)
        with Client(running.url) as client:
            assert client.infer(message())["actions"].shape == (4, 3)


def test_who_sends_a_message_in_endless_empty_pieces_is_dropped(start: Start) -> None:
    running = start()
    with Client(running.url) as good, shaken(running.server.port, timeout=30.0) as peer:
        with pytest.raises(OSError, match=r"reset|pipe"):
            peer.sendall(b"\x02\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 1_000_000)
        assert good.infer(message())["actions"].shape == (4, 3)


def test_what_a_client_says_makes_no_lines_of_the_log(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor of other clients' errors, and it is cut off."""
    with Client(start().url) as client:
        for key in ("x\n2026-01-01 ERROR all is lost\x1b[2J", "\u2028" * 250):
            with pytest.raises(ServerError) as caught:
                client.infer(message(**{key: 1}))
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 500
    assert caplog.messages
    assert all(one.isprintable() and len(one) < 500 for one in caplog.messages)


def test_garbage_does_not_stop_other_sessions(start: Start) -> None:
    running = start()
    rng = np.random.default_rng(0)
    with Client(running.url) as good:
        for _ in range(30):
            with raw(running.url) as peer:
                peer.recv()
                peer.send(rng.bytes(int(rng.integers(1, 200))))
                assert isinstance(peer.recv(), str)
            with socket.create_connection(("127.0.0.1", running.server.port)) as other:
                other.sendall(rng.bytes(100))
            assert good.infer(message())["actions"].shape == (4, 3)


def test_a_message_that_swells_is_refused_at_once(start: Start) -> None:
    """Sixteen megabytes of empty maps would be a gigabyte, and names times names a terabyte."""
    running = start()
    wide = b"\xdd\x00\xf0\0\0" + b"\x80" * (15 << 20)
    names = b"".join(b"\xa4%04d\xc0" % i for i in range(10_000))
    fan = b"\x81\xdb\x00\x80\x00\x00" + b"x" * (8 << 20) + b"\xde\x27\x10" + names
    with Client(running.url) as good:
        for sent in (wide, fan):
            before = resident()
            with raw(running.url) as peer:
                peer.recv()
                peer.send(sent)
                assert "exceeds max" in str(peer.recv())
            assert resident() - before < 64 << 20
            assert good.infer(message())["actions"].shape == (4, 3)


def resident() -> int:
    """Of this process, the most so far [bytes]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("token", ["a token\nof two lines", "päpstliche-Losung-lang", "x" * 15])
def test_a_token_that_no_header_can_hold_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="token"):
        ServerConfig(token=token)


def test_a_taken_port_is_said_in_a_sentence(start: Start) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 127.0.0.1, port \d+ .*give another"):
        start(port=start().server.port)
