"""Shared memory carries what the websocket carries, for one user, and harms no server."""

import gc
import mmap
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_tests.serve.conftest import Echo, Running, Start, message, wait_for
from vlakern.errors import ConfigError, InputError
from vlakern.serve import Client, ServerError
from vlakern.serve.codec import encode, pieces
from vlakern.serve.shared import PACKET, REPLY_BYTES, SharedConnection, sealed_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


def opened(path: str) -> SharedConnection:
    """After the metadata."""
    found = SharedConnection(path, 5.0)
    assert isinstance(found.recv(5.0), bytes)
    return found


def test_replies_are_the_websockets(start: Start, path: str) -> None:
    running = start(shared=path)
    with Client(running.url) as first, Client(f"shm://{path}") as second:
        assert first.metadata == second.metadata
        for seed in range(20):
            image = np.random.default_rng(seed).integers(0, 256, (90, 120, 3), np.uint8)
            asked = message(seed=seed, **{"observation/front": image})
            found = [client.infer(asked)["actions"] for client in (first, second)]
            np.testing.assert_array_equal(found[0], found[1])
        with pytest.raises(ServerError, match="key 'camera' is unknown"):
            second.infer(message(camera=1))
        assert second.infer(message())["actions"].shape == (4, 3)  # it has connected again


def test_only_its_user_may_open_it(start: Start, path: str) -> None:
    start(shared=path)
    found = os.stat(path).st_mode
    assert stat.S_ISSOCK(found)
    assert stat.S_IMODE(found) == 0o600
    if os.getuid() != 0:
        return
    code = f"import os, socket; os.setuid(65534); socket.socket(1, 5).connect({path!r})"
    os.chmod(os.path.dirname(path), 0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "PermissionError" in done.stderr


def test_the_memory_keeps_its_size() -> None:
    """A server that reads behind the end of a file that was cut would be killed by SIGBUS."""
    descriptor = sealed_memory(1 << 16)
    for size in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    os.close(descriptor)


@pytest.mark.parametrize(
    "packet",
    [
        PACKET.pack(0, (16 << 20) + 1),
        PACKET.pack(0, (1 << 64) - 1),
        PACKET.pack(1, 10),
        PACKET.pack(77, 10),
        b"x",
        PACKET.pack(0, 10) + b"x",
        b"x" * 4096,
    ],
)
def test_lengths_that_lie_end_a_session_and_no_other(
    start: Start, path: str, packet: bytes
) -> None:
    running = start(shared=path)
    with Client(f"shm://{path}") as good:
        bad = opened(path)
        bad._socket.send(packet)
        with pytest.raises(ConnectionResetError):  # after a word, where it was a packet
            [bad.recv(5.0) for _ in range(2)]
        bad.close()
        assert good.infer(message())["actions"].shape == (4, 3)
        wait_for(lambda: len(running.server.statistics.open) == 1)


def test_what_changes_while_it_is_read_is_read_once(start: Start, path: str, echo: Echo) -> None:
    """A client that writes on after its packet gets an answer or an error, and harms nobody."""
    start(shared=path)
    good, ending = Client(f"shm://{path}"), threading.Event()
    data = encode(message(**{"observation/front": np.ones((200, 200, 3), np.uint8)}))
    turns: list[str] = []

    def scribble(memory: mmap.mmap) -> None:
        rng = np.random.default_rng(0)
        while not ending.is_set():
            at = int(rng.integers(0, 200))
            memory[at : at + 8] = rng.bytes(8)

    for _ in range(20):
        bad = opened(path)
        thread = threading.Thread(target=scribble, args=(bad._memory,))
        ending.clear()
        thread.start()
        try:
            for _ in range(10):
                bad.send([data], 5.0)
                reply = bad.recv(5.0)
                turns.append(type(reply).__name__)
                if isinstance(reply, str):
                    break
        finally:
            ending.set()
            thread.join()
            bad.close()
        assert good.infer(message())["actions"].shape == (4, 3)
    good.close()
    assert "str" in turns


def test_a_killed_client_leaves_nothing(start: Start, path: str, echo: Echo) -> None:
    """Killed at rest, and while its request is being answered."""
    running = start(shared=path)
    echo.takes = 0.2
    code = (
        "import sys; from vlakern.serve.client import Client;"
        "from python_tests.serve.conftest import message\n"
        f"client = Client('shm://{path}'); print('there', flush=True)\n"
        "if sys.argv[1] == 'asks': client.infer(message())\n"
        "sys.stdin.read()"
    )
    with Client(f"shm://{path}") as good:
        gc.collect()
        before = len(os.listdir("/proc/self/fd")), mapped()
        for kind in ("rests", "asks"):
            asked = running.server.statistics.requests
            child = subprocess.Popen(
                [sys.executable, "-c", code, kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[2],
            )
            assert child.stdout is not None
            assert child.stdin is not None
            assert child.stdout.readline() == b"there\n"
            if kind == "asks":
                wait_for(lambda asked=asked: running.server.statistics.requests > asked)
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
            child.stdin.close()
            wait_for(lambda: len(running.server.statistics.open) == 1)
            assert good.infer(message())["actions"].shape == (4, 3)
        wait_for(lambda: (len(os.listdir("/proc/self/fd")), mapped()) == before)


def mapped() -> int:
    """Mappings of the server's memory in this process."""
    return Path("/proc/self/maps").read_text().count("memfd:vlakern-serve")


def test_places_are_shared_with_the_websocket(start: Start, path: str) -> None:
    running = start(shared=path, most_connections=2)
    with Client(running.url) as first, Client(f"shm://{path}") as second:
        with pytest.raises(ServerError, match="too many connections"):
            Client(f"shm://{path}", patience=0.2)
        with pytest.raises(ServerError, match="503"):
            Client(running.url)
        for client in (first, second):
            assert client.infer(message())["actions"].shape == (4, 3)


def test_silent_clients_are_dropped_and_slow_servers_given_up(
    start: Start, path: str, echo: Echo
) -> None:
    running = start(shared=path, idle_timeout=0.3)
    silent = opened(path)
    with pytest.raises(ConnectionResetError):
        silent.recv(5.0)
    silent.close()
    assert running.server.statistics.dropped == 1
    with Client(f"shm://{path}", timeout=0.1) as client:
        echo.takes = 0.4
        with pytest.raises(ServerError, match=r"did not answer in 0\.1 s"):
            client.infer(message())
        echo.takes = 0.0
        time.sleep(0.5)
        assert client.infer(message())["actions"].shape == (4, 3)


def test_the_end_answers_what_has_come_and_frees_the_rest(
    start: Start, path: str, echo: Echo
) -> None:
    before = mapped()
    running = start(shared=path)
    echo.takes = 0.4
    found: list[Any] = []
    with Client(f"shm://{path}") as client, Client(f"shm://{path}", patience=0.2) as idle:
        thread = threading.Thread(target=lambda: found.append(client.infer(message())))
        thread.start()
        wait_for(lambda: running.server.statistics.requests == 1)
        running.close()
        thread.join(10)
        assert found[0]["actions"].shape == (4, 3)
        with pytest.raises(ServerError, match="cannot be reached"):
            idle.infer(message())
    wait_for(lambda: mapped() == before)
    assert not [one for one in threading.enumerate() if one.name == "vlakern-client"]


def test_a_policy_that_hangs_is_left_behind_at_the_end(start: Start, path: str, echo: Echo) -> None:
    """Its client's memory is given back; when it answers at last nothing breaks."""
    running = start(shared=path, end_timeout=0.2)
    echo.takes = 1.5
    with Client(f"shm://{path}", timeout=5.0) as client:

        def ask() -> None:
            with pytest.raises(ServerError, match="closed"):
                client.infer(message())

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: running.server.statistics.requests == 1)
        running.close()
        thread.join(10)
        assert not thread.is_alive()


def test_a_message_or_reply_without_room_is_refused(start: Start, path: str, echo: Echo) -> None:
    start(shared=path, most_bytes=4096)
    with Client(f"shm://{path}") as client:
        big = message(**{"observation/front": np.ones((100, 100, 3), np.uint8)})
        with pytest.raises(InputError, match="expected at most 4096"):
            client.infer(big)
        assert client.infer(message())["actions"].shape == (4, 3)
        echo.steps = REPLY_BYTES
        with pytest.raises(ServerError, match="closed the connection"):
            client.infer(message())
        echo.steps = 4
        assert client.infer(message())["actions"].shape == (4, 3)


def test_a_path_of_something_else_is_refused_and_a_dead_socket_taken(
    start: Start, path: str
) -> None:
    left = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.bind(path)
    left.close()
    running = start(shared=path)
    with pytest.raises(ConfigError, match="another server listens"):
        Running(Echo(), running.server.config, running.keys).close()
    with Client(f"shm://{path}") as client:
        assert client.infer(message())["actions"].shape == (4, 3)
    running.close()
    assert not os.path.exists(path)
    Path(path).write_text("mine")
    with pytest.raises(ConfigError, match="is no socket"):
        Running(Echo(), running.server.config, running.keys).close()
    assert Path(path).read_text() == "mine"


@pytest.mark.parametrize("fault", ["size", "unsealed", "magic"])
def test_a_client_believes_no_server_that_lies(path: str, fault: str) -> None:
    """Memory that is smaller than said, or may become so, would kill the client."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(1)
    sizes = (4096, 4096) if fault != "size" else (4096, 1 << 20)

    def lie() -> None:
        peer, _ = listener.accept()
        if fault == "unsealed":
            descriptor = os.memfd_create("x")
            os.ftruncate(descriptor, 8192)
        else:
            descriptor = sealed_memory(8192)
        magic = b"nope" if fault == "magic" else b"vlak"
        socket.send_fds(peer, [struct.pack("<4sIQQ", magic, 1, *sizes)], [descriptor])
        peer.recv(1)

    thread = threading.Thread(target=lie, daemon=True)
    thread.start()
    with pytest.raises(ConnectionAbortedError, match=r"protocol|sealed"):
        SharedConnection(path, 5.0)
    thread.join(5)
    listener.close()


def test_pieces_are_written_in_order(start: Start, path: str) -> None:
    """What lies in the memory is the message, byte by byte."""
    start(shared=path)
    connection = opened(path)
    sent: Any = message()
    connection.send(pieces(sent), 5.0)
    assert connection._memory[: len(encode(sent))] == encode(sent)
    assert isinstance(connection.recv(5.0), bytes)
    connection.close()
