"""openpi's protocol as its clients speak it, and every peer that does not."""

import contextlib
import http.client
import socket
import threading
import time
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import vlakern
from python_tests.serve.conftest import Echo, Start, message, wait_for
from vlakern.serve import Client, ServerError
from vlakern.serve.codec import decode, encode
from vlakern.serve.wire import Keys
from vlakern.types import ActionChunk

TOKEN = "a-token-that-is-long-enough"


def raw(url: str, **more: Any) -> ClientConnection:
    return connect(url, compression=None, max_size=None, **more)


def data(peer: ClientConnection) -> bytes:
    found = peer.recv()
    assert isinstance(found, bytes)
    return found


def test_a_recorded_exchange(start: Start) -> None:
    """Metadata first, then one binary reply per request; timings as openpi's clients read them."""
    with raw(start().url) as peer:
        metadata = decode(data(peer))
        assert metadata["policy"] == "secret-name"
        assert metadata["keys"]["state"][0] == "observation/state"
        for turn in range(2):
            peer.send(encode(message()))
            reply = msgpack.unpackb(peer.recv(), strict_map_key=False)
            actions = reply["actions"]
            assert actions[b"dtype"] == "<f4"
            assert actions[b"shape"] == [4, 3]
            assert np.frombuffer(actions[b"data"], "<f4")[:3].tolist() == [3.0, 180.0, 7.0]
            assert reply["policy_timing"]["infer_ms"] >= 0.0
            assert ("prev_total_ms" in reply["server_timing"]) == (turn == 1)


class Thinking:
    """A policy of matrix products, which let go of the interpreter, and loops, which do not."""

    def __init__(self) -> None:
        self.calls = 0

    def act_batch(self, observations: Any, seeds: Any = None) -> list[ActionChunk]:
        end = time.perf_counter() + 0.15
        weights, x = torch.full((512, 512), 0.001), torch.ones(512, 512)
        while time.perf_counter() < end:
            x = x @ weights
            sum(i * i for i in range(20_000))
        self.calls += 1
        return [ActionChunk(np.full((4, 3), float(x[0, 0]), np.float32)) for _ in observations]


def test_health_is_answered_while_the_policy_thinks(start: Start) -> None:
    """p99 of at most 50 ms, beside calls of 150 ms that compute and hold the interpreter."""
    thinking = Thinking()
    running, ending = start(thinking), threading.Event()

    def ask() -> None:
        with Client(running.url) as client:
            while not ending.is_set():
                client.infer(message())

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        took = [healthy(running.server.port) for _ in range(150)]
    finally:
        ending.set()
        thread.join()
    print(f"p50 {np.percentile(took, 50) * 1e3:.1f} ms, p99 {np.percentile(took, 99) * 1e3:.1f} ms")
    assert thinking.calls >= 3
    assert np.percentile(took, 99) < 0.05


def healthy(port: int) -> float:
    """How long a look at the server's health takes [s]."""
    begin = time.perf_counter()
    peer = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    peer.request("GET", "/healthz")
    reply = peer.getresponse()
    assert (reply.status, reply.read()) == (200, b"OK\n")
    peer.close()
    time.sleep(0.005)
    return time.perf_counter() - begin - 0.005


def test_requests_that_wait_together_share_a_call_and_keep_their_answers(
    start: Start, echo: Echo
) -> None:
    running = start()
    echo.takes = 0.2
    found: dict[int, Any] = {}

    def ask(i: int) -> None:
        with Client(running.url) as client:
            found[i] = client.infer(
                message(seed=i, **{"observation/state": np.array([i], np.float32)})
            )

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(echo.batches) > 1
    assert max(echo.batches) <= 4
    for i in range(6):
        assert found[i]["actions"][0].tolist() == [float(i), 180.0, float(i)]


def test_one_clients_mistake_is_not_the_others(start: Start, echo: Echo) -> None:
    running = start()
    echo.takes = 0.2
    good: list[Any] = []
    with Client(running.url) as first, Client(running.url) as second, Client(running.url) as third:
        busy = threading.Thread(target=first.infer, args=(message(),))
        asks = threading.Thread(target=lambda: good.append(second.infer(message())))
        for thread in (busy, asks):
            thread.start()
            time.sleep(0.05)
        with pytest.raises(ServerError, match="no view"):
            third.infer({"state": np.zeros(2), "prompt": "pick"})
        busy.join()
        asks.join()
    assert good[0]["actions"].shape == (4, 3)


def test_what_the_policy_raises_stays_in_the_log(
    start: Start, echo: Echo, caplog: pytest.LogCaptureFixture
) -> None:
    running = start()
    echo.fails = RuntimeError("/secret/path/model.bin has exploded")
    with Client(running.url) as client:
        with pytest.raises(ServerError, match=r"error [0-9a-f]{8}: the policy failed") as caught:
            client.infer(message())
        assert "secret" not in str(caught.value)
        assert "/secret/path" in caplog.text
        echo.fails = None
        assert client.infer(message())["actions"].shape == (4, 3)  # it has connected again


def test_an_error_is_a_text_frame_and_code_1011(start: Start) -> None:
    with raw(start().url) as peer:
        peer.recv()
        peer.send(b"\xc1")
        assert isinstance(peer.recv(), str)
        with pytest.raises(ConnectionClosed) as caught:
            peer.recv()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1011


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": 3}, "prompt is a int"),
        ({"observation/state": "x"}, "state that is a str"),
        ({"observation/state": ["x"]}, "no list of numbers"),
        ({"observation/front": [1, 2]}, "view 'front' is a list"),
        ({"front": np.zeros((1, 1, 3), np.uint8)}, "'front' is there twice"),
        ({"camera": 1}, "key 'camera' is unknown"),
        ({"seed": -1}, "seed is '-1'"),
    ],
)
def test_wrong_messages_are_refused(start: Start, change: dict[str, Any], said: str) -> None:
    with Client(start().url) as client, pytest.raises(ServerError, match=said):
        client.infer(message(**change))


def test_aloha_and_droid_spell_their_keys_otherwise(start: Start) -> None:
    """Nested images with channels first; a state in two parts."""
    keys = Keys(("cam_high",), {}, ("observation/joint_position", "observation/gripper_position"))
    with Client(start(keys=keys).url) as client:
        image = np.ones((3, 4, 5), np.uint8)
        parts = {"observation/joint_position": np.ones(7), "observation/gripper_position": [0.5]}
        found = client.infer({"images": {"cam_high": image}, "prompt": "pick", **parts})
        assert found["actions"][0, :2].tolist() == [7.5, 60.0]


def test_a_token_is_checked_before_the_upgrade(start: Start) -> None:
    running = start(token=TOKEN)
    words = ("Api-Key wrong", TOKEN, f"Api-Key {TOKEN}x")
    for headers in ({}, *({"Authorization": one} for one in words)):
        with (
            pytest.raises(InvalidStatus) as caught,
            raw(running.url, additional_headers=headers),
        ):
            pass
        assert caught.value.response.status_code == 401
    with Client(running.url, token=TOKEN) as client:
        assert client.infer(message())["actions"].shape == (4, 3)
    with pytest.raises(ServerError, match="401"):
        Client(running.url, token="another-token-of-length")


def test_a_token_of_other_bytes_is_a_wrong_token(start: Start) -> None:
    running = start(token=TOKEN)
    upgrade = (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    )
    with socket.create_connection(("127.0.0.1", running.server.port), timeout=5) as peer:
        peer.sendall(upgrade + b"Authorization: Api-Key \xff\xfe\r\n\r\n")
        assert peer.recv(12) in (b"HTTP/1.1 401", b"HTTP/1.1 400")


def test_web_pages_and_foreign_names_are_refused(start: Start) -> None:
    running = start()
    with (
        pytest.raises(InvalidStatus) as caught,
        raw(running.url, origin="http://evil.example"),
    ):
        pass
    assert caught.value.response.status_code == 403
    peer = http.client.HTTPConnection("127.0.0.1", running.server.port, timeout=5)
    peer.request("GET", "/healthz", headers={"Host": "evil.example"})
    assert peer.getresponse().status == 421


def test_the_ninth_connection_is_refused_and_a_place_becomes_free(start: Start) -> None:
    running = start()
    with contextlib.ExitStack() as eight:
        peers = [eight.enter_context(raw(running.url)) for _ in range(8)]
        with pytest.raises(InvalidStatus) as caught, raw(running.url):
            pass
        assert caught.value.response.status_code == 503
        peers[3].close()
        wait_for(lambda: len(running.server.statistics.open) == 7)
        with Client(running.url) as client:
            assert client.infer(message())["actions"].shape == (4, 3)


def test_handshakes_that_come_to_nothing_take_no_place(start: Start) -> None:
    """A plain GET passes every check of a request and is no websocket."""
    running = start(most_connections=2)
    for _ in range(5):
        peer = http.client.HTTPConnection("127.0.0.1", running.server.port, timeout=5)
        peer.request("GET", "/")
        assert peer.getresponse().status == 426
    with Client(running.url) as client:
        assert client.infer(message())["actions"].shape == (4, 3)


def test_requests_in_flight_are_answered_at_the_end(start: Start, echo: Echo) -> None:
    running = start()
    echo.takes = 0.4
    found: list[Any] = []
    with Client(running.url) as client, raw(running.url) as idle:
        idle.recv()
        thread = threading.Thread(target=lambda: found.append(client.infer(message())))
        thread.start()
        wait_for(lambda: running.server.statistics.requests == 1)
        running.close()
        thread.join(10)
        assert found[0]["actions"].shape == (4, 3)
        with pytest.raises(ConnectionClosed) as caught:
            idle.recv(timeout=5)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1001
    with pytest.raises(ServerError, match="cannot be reached"):
        Client(running.url, patience=0.2)


def test_large_messages_idle_and_half_open_peers_are_dropped(start: Start) -> None:
    running = start(most_bytes=2000, idle_timeout=0.3, open_timeout=0.3)
    with raw(running.url) as peer:
        peer.recv()
        peer.send(b"x" * 3000)
        with pytest.raises(ConnectionClosed) as caught:
            peer.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
    with raw(running.url) as peer:
        peer.recv()
        with pytest.raises(ConnectionClosed):
            peer.recv(timeout=5)
    half = socket.create_connection(("127.0.0.1", running.server.port))
    half.settimeout(5)
    half.sendall(b"GET / HTTP/1.1\r\n")
    assert half.recv(1) == b""
    with Client(running.url) as client:
        assert client.metadata["policy"] == "secret-name"


def test_a_blind_server_says_nothing_and_answers_at_its_time(start: Start, echo: Echo) -> None:
    running = start(blind=0.3)
    with raw(running.url) as peer:
        assert decode(data(peer)) == {}
        for echo.takes in (0.0, 0.15):
            begin = time.perf_counter()
            peer.send(encode(message()))
            assert set(decode(data(peer))) == {"actions"}
            assert 0.29 < time.perf_counter() - begin < 0.6
        peer.send(encode({"prompt": "pick"}))
        reply = peer.recv()
        assert isinstance(reply, str)
        assert len(reply) == len("error 01234567")


def test_a_served_policy_gives_the_bits_of_the_policy(start: Start) -> None:
    policy = vlakern.load("metaworld-small", device="cpu")
    rng = np.random.default_rng(3)
    images = {v: rng.integers(0, 256, (96, 96, 3), dtype=np.uint8) for v in policy.views}
    state = rng.normal(size=policy.robot.state_width).astype(np.float32)
    seen = vlakern.Observation(images, state, "push the puck to the goal")
    sent = {**{f"images/{v}": i for v, i in images.items()}, "state": state, "seed": 5}
    with Client(start(policy, Keys(policy.views)).url) as client:
        found = client.infer({**sent, "prompt": seen.instruction})["actions"]
    np.testing.assert_array_equal(found, policy.act(seen, seed=5).actions)
