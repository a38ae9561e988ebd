"""What the published openpi-client 0.1.2 sent, byte by byte, is answered as it wants to read it.

``recorded/`` holds a whole connection of its broker over two chunks: upgrade, two masked requests,
goodbye. The client itself is in ``test_openpi_client.py``, where an older numpy allows it.
"""

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from python_tests.serve.conftest import Start, exactly, frame, wait_for
from vlakern.serve.wire import Keys

RECORDED = Path(__file__).parent / "recorded" / "openpi_client_0.1.2.bin"


def recorded() -> tuple[bytes, list[bytes]]:
    """The upgrade, and every frame."""
    upgrade, _, rest = RECORDED.read_bytes().partition(b"\r\n\r\n")
    frames = []
    while rest:
        size, head = rest[1] & 127, 6
        if size == 126:
            (size,), head = struct.unpack(">H", rest[2:4]), 8
        frames.append(rest[: head + size])
        rest = rest[head + size :]
    return upgrade + b"\r\n\r\n", frames


def unmasked(sent: bytes) -> bytes:
    head = 8 if sent[1] & 127 == 126 else 6
    mask = sent[head - 4 : head]
    return bytes(one ^ mask[i % 4] for i, one in enumerate(sent[head:]))


def array(found: Any) -> np.ndarray:
    assert set(found) == {b"__ndarray__", b"data", b"dtype", b"shape"}
    return np.frombuffer(found[b"data"], found[b"dtype"]).reshape(found[b"shape"])


def head_of(peer: socket.socket) -> Iterator[str]:
    found = b""
    while not found.endswith(b"\r\n\r\n"):
        found += exactly(peer, 1)
    yield from found.decode().split("\r\n")


def test_the_recorded_client_is_answered(start: Start) -> None:
    running = start(keys=Keys(("image", "wrist_image")))
    upgrade, frames = recorded()
    assert [one[0] & 15 for one in frames] == [2, 2, 8]
    with socket.create_connection(("127.0.0.1", running.server.port), timeout=10) as peer:
        peer.sendall(upgrade)
        head = list(head_of(peer))
        assert head[0] == "HTTP/1.1 101 Switching Protocols"
        assert not any("Extensions" in line for line in head)  # none is asked for
        opcode, said = frame(peer)
        assert opcode == 2
        assert msgpack.unpackb(said)["policy"] == "secret-name"
        for turn, sent in enumerate(frames[:2]):
            asked = msgpack.unpackb(unmasked(sent), strict_map_key=False)
            peer.sendall(sent)
            opcode, said = frame(peer)
            assert opcode == 2
            reply = msgpack.unpackb(said, strict_map_key=False)
            assert set(reply) == {"actions", "policy_timing", "server_timing"}
            pixels = sum(
                int(array(asked[f"observation/{v}"]).sum()) for v in ("image", "wrist_image")
            )
            state = float(array(asked["observation/state"]).sum())
            assert array(reply["actions"]).dtype == np.float32
            assert array(reply["actions"])[:, :2].tolist() == [[state, pixels]] * 4
            assert ("prev_total_ms" in reply["server_timing"]) == (turn == 1)
        peer.sendall(frames[2])
        opcode, said = frame(peer)
        assert (opcode, struct.unpack(">H", said[:2])) == (8, (1000,))
    wait_for(lambda: not running.server.statistics.open)


def test_a_byte_that_changes_is_noticed(start: Start) -> None:
    """The replay depends on what was recorded, and not on what this project encodes."""
    running = start(keys=Keys(("image", "wrist_image")))
    upgrade, frames = recorded()
    with socket.create_connection(("127.0.0.1", running.server.port), timeout=10) as peer:
        peer.sendall(upgrade)
        list(head_of(peer))
        frame(peer)
        peer.sendall(frames[0].replace(frames[0][8:12], bytes(4), 1))  # no map any more
        assert frame(peer)[0] == 1
        assert frame(peer)[0] == 8
