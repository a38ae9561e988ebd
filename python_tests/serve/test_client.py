"""A client waits no longer than it said, connects again, and hands actions out one by one."""

import base64
import contextlib
import hashlib
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from python_tests.serve.conftest import Echo, Start, exactly, message, wait_for
from vlakern.errors import InputError
from vlakern.serve import ActionBroker, Client, ServerError, _websocket
from vlakern.serve.codec import encode


def test_the_client_needs_no_torch() -> None:
    code = "import vlakern.serve.client, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_server_that_does_not_answer_is_given_up(start: Start, echo: Echo) -> None:
    with Client(start().url, timeout=0.2) as client:
        echo.takes = 0.6
        with pytest.raises(ServerError, match=r"did not answer in 0\.2 s"):
            client.infer(message())
        echo.takes = 0.0
        time.sleep(0.6)
        assert client.infer(message())["actions"].shape == (4, 3)


def shaken_server(listener: socket.socket) -> socket.socket:
    """A connection after the handshake."""
    peer, _ = listener.accept()
    asked = b""
    while not asked.endswith(b"\r\n\r\n"):
        asked += peer.recv(1)
    key = asked.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    peer.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )
    return peer


def frozen(listener: socket.socket) -> None:
    """Shakes hands, sends metadata, and does nothing ever after."""
    peer = shaken_server(listener)
    peer.sendall(b"\x82\x01\x80")
    with contextlib.suppress(OSError):
        listener.accept()  # until the test closes it


@pytest.mark.parametrize("side", [4, 2000])
def test_a_server_that_hangs_is_waited_for_as_long_as_was_said(side: int) -> None:
    """It reads nothing: 12 MB do not even go out, and it says no goodbye."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=frozen, args=(listener,), daemon=True)
        thread.start()
        client = Client(f"127.0.0.1:{listener.getsockname()[1]}", timeout=0.5, patience=5.0)
        begin = time.monotonic()
        with pytest.raises(ServerError, match=r"did not answer in 0\.5 s"):
            client.infer({"front": np.zeros((side, side, 3), np.uint8)})
        assert time.monotonic() - begin < 4.0
        client.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_no_server_is_one_sentence() -> None:
    with pytest.raises(ServerError, match="cannot be reached"):
        Client("127.0.0.1:9", patience=0.3)


def test_the_broker_hands_out_one_action_at_a_time(start: Start, echo: Echo) -> None:
    with Client(start().url) as client:
        broker = ActionBroker(client, execute=3)
        states = [
            broker.next(message(**{"observation/state": np.array([i], np.float32)}))[0]
            for i in range(7)
        ]
        assert states == [0, 0, 0, 3, 3, 3, 6]
        broker.reset()
        assert broker.next(message(**{"observation/state": np.array([9], np.float32)}))[0] == 9


def test_the_broker_fetches_ahead_and_skips_what_is_past(start: Start, echo: Echo) -> None:
    """Asked at the step before the end, the new chunk begins at its second action."""
    with Client(start().url) as client:
        broker = ActionBroker(client, execute=3, ahead=1)
        states = [
            broker.next(message(**{"observation/state": np.array([i], np.float32)}))[0]
            for i in range(6)
        ]
        assert states == [0, 0, 0, 2, 2, 4]


def test_an_error_in_the_background_is_raised(start: Start, echo: Echo) -> None:
    with Client(start().url) as client:
        broker = ActionBroker(client, execute=2, ahead=1)
        broker.next(message())
        echo.fails = ValueError("broken")
        broker.next(message())
        with pytest.raises(ServerError, match="the policy failed"):
            broker.next(message())


def test_wrong_settings_are_refused(start: Start) -> None:
    with Client(start().url) as client:
        for execute, ahead in ((0, 0), (2, 2), (2, -1)):
            with pytest.raises(InputError, match="execute is"):
                ActionBroker(client, execute, ahead)
        with pytest.raises(InputError, match="cannot be sent"):
            client.infer({"x": object()})


def unmasked(peer: socket.socket) -> tuple[int, bytes]:
    """Opcode and payload of a client's frame."""
    first, size = exactly(peer, 2)
    assert size & 0x80, "a client masks"
    size &= 127
    if size > 125:
        size = int.from_bytes(exactly(peer, 2 if size == 126 else 8), "big")
    key, data = np.frombuffer(exactly(peer, 4), np.uint8), exactly(peer, size)
    return first, bytes(np.frombuffer(data, np.uint8) ^ np.resize(key, size))


@pytest.mark.parametrize("count", [0, 1, 90, 101, 126, 60_000, 65_530, 70_001])
def test_frames_are_those_of_the_protocol(count: int) -> None:
    """One masked frame a message, with a key of its own; pings between the parts of a reply."""
    found: list[tuple[int, bytes]] = []
    message = {"front": np.random.default_rng(count).integers(0, 256, count, np.uint8)}
    reply = encode({"actions": np.arange(6, dtype=np.float32).reshape(2, 3)})

    def serve() -> None:
        peer = shaken_server(listener)
        peer.sendall(b"\x82\x01\x80")
        for _ in range(2):
            found.append(unmasked(peer))
            parts = (reply[:10], reply[10:20], reply[20:])
            for first, part in zip((0x02, 0x00, 0x80), parts, strict=True):
                peer.sendall(b"\x89\x03abc" + bytes([first, len(part)]) + part)
                assert unmasked(peer) == (0x8A, b"abc")
        found.append(unmasked(peer))
        peer.sendall(b"\x88\x02\x03\xe8")
        peer.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with Client(f"127.0.0.1:{listener.getsockname()[1]}", timeout=5.0) as client:
            for _ in range(2):
                np.testing.assert_array_equal(client.infer(message)["actions"].ravel(), range(6))
        thread.join(5)
    assert not thread.is_alive()
    assert found == [(0x82, encode(message))] * 2 + [(0x88, b"\x03\xe8")]


@pytest.mark.parametrize("way", ["local", "library", "shared"])
def test_a_connection_that_was_closed_meanwhile_is_made_anew(
    start: Start, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A robot that rested asks as if nothing had been."""
    if way == "shared" and sys.platform != "linux":
        pytest.skip("memfd is Linux's")
    monkeypatch.setattr(_websocket, "loopback", lambda host: way == "local")
    running = start(idle_timeout=0.2, shared=str(tmp_path / "s") if way == "shared" else None)
    url = running.url if way != "shared" else f"shm://{tmp_path}/s"
    with Client(url) as client:
        for _ in range(2):
            assert client.infer(message())["actions"].shape == (4, 3)
            dropped = running.server.statistics.dropped
            wait_for(lambda dropped=dropped: running.server.statistics.dropped > dropped)
            wait_for(lambda: not running.server.statistics.open)
        assert client.infer(message())["actions"].shape == (4, 3)
        with pytest.raises(ServerError, match="'camera' is unknown"):
            client.infer(message(camera=1))
