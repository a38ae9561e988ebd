"""Clients that take nothing, or take their time: dropped, or answered whole and in order."""

import socket
import struct
import threading
import time

import numpy as np
import pytest

from python_tests.serve.conftest import Echo, Start, frame, message, shaken, wait_for
from vlakern.serve import Client, server
from vlakern.serve.codec import decode, encode


def test_who_floods_and_reads_nothing_is_dropped(start: Start) -> None:
    """Every ping wants a pong, and a message's limits do not see them."""
    running = start()
    with Client(running.url) as good:
        peer = shaken(running.server.port, timeout=30.0)
        ping = b"\x89\xfd" + b"\0" * 4 + b"x" * 125
        with pytest.raises(OSError, match=r"reset|pipe"):
            peer.sendall(ping * 400_000)  # the pongs would be kept for it
        peer.close()
        assert good.infer(message())["actions"].shape == (4, 3)


def test_who_takes_no_reply_is_dropped(start: Start, echo: Echo) -> None:
    running = start(send_timeout=0.3, close_timeout=0.3)
    echo.steps = 2_000_000  # 24 MB, which no socket holds
    peer = shaken(running.server.port)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sent = encode(message())
    peer.sendall(b"\x82\xfe" + struct.pack(">H", len(sent)) + b"\0" * 4 + sent)
    wait_for(lambda: running.server.statistics.dropped == 1)
    wait_for(lambda: not running.server.statistics.open)
    peer.close()


@pytest.mark.parametrize(
    ("steps", "count", "direct"), [(3000, 300, 1 << 16), (40_000, 25, 1 << 30)]
)
def test_replies_that_wait_for_room_stay_whole_and_in_order(
    start: Start, echo: Echo, monkeypatch: pytest.MonkeyPatch, steps: int, count: int, direct: int
) -> None:
    """11 MB, which no socket holds: some of the second kind go out in two parts."""
    monkeypatch.setattr(server, "MOST_DIRECT", direct)
    running = start(send_timeout=20.0)
    echo.steps = steps
    peer = shaken(running.server.port)

    def ask() -> None:
        for seed in range(count):
            sent = encode(message(seed=seed))
            peer.sendall(b"\x82\xfe" + struct.pack(">H", len(sent)) + b"\0" * 4 + sent)
            peer.sendall(b"\x89\x80" + b"\0" * 4)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.5)
    seeds = []
    while len(seeds) < count:
        opcode, reply = frame(peer)
        assert opcode in (2, 10)
        if opcode == 2:
            actions = decode(reply)["actions"]
            assert actions.shape == (steps, 3)
            seeds += np.unique(actions[:, 2]).tolist()
    assert seeds == list(range(count))
    thread.join()
    peer.close()
