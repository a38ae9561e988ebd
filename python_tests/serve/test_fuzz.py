"""Whatever bytes come, the server lives, keeps its memory, and answers everybody else."""

import contextlib
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from python_tests.serve.fuzzing import Corpus, Frames, Fuzzer, answered, good
from python_tests.serve.hosted import Served, Session, serving
from python_tests.serve.wrong import KEYS, VALUES
from vlakern.errors import InputError
from vlakern.serve import Client
from vlakern.serve.codec import decode, encode
from vlakern.serve.shared import SharedConnection

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, sends to a memfd")

GROWTH = 48 << 20  # bytes


def attack(served: Served, count: int, threads: int, seed: int) -> tuple[Session, list[Fuzzer]]:
    """Sends ``count`` frames while a session goes on; checks both, and the server's memory."""
    session = Session(f"ws://127.0.0.1:{served.port}")
    session.start()
    corpus = Corpus(seed)
    corpus.grow(500)
    begin = time.perf_counter()
    warm = Fuzzer(served, Frames(corpus, {}), count // 10)
    warm.run()
    before = served.resident()
    fuzzers = [
        Fuzzer(served, Frames(corpus, {}), (count - count // 10) // threads) for _ in range(threads)
    ]
    for one in fuzzers:
        one.start()
    for one in fuzzers:
        one.join()
    session.ending.set()
    session.join()
    sent: dict[str, int] = {}
    for one in (warm, *fuzzers):
        assert one.error is None, one.error
        for kind, n in one.frames.sent.items():
            sent[kind] = sent.get(kind, 0) + n
    assert session.error is None, session.error
    assert served.resident() - before < GROWTH
    assert sum(sent.values()) >= count
    print(
        f"{sum(sent.values())} frames in {time.perf_counter() - begin:.1f} s over"
        f" {warm.connections + sum(f.connections for f in fuzzers)} connections: {sent};"
        f" memory +{(served.resident() - before) / 1e6:.1f} MB; the session's"
        f" {len(session.took)} calls p99 {np.percentile(session.took, 99) * 1e3:.1f} ms"
    )
    return session, fuzzers


def test_a_server_survives_frames_that_nobody_sends(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        session, _ = attack(served, 3_000, threads=1, seed=1)
        assert session.took


@pytest.mark.ci
def test_a_server_survives_50_000_frames_that_nobody_sends(tmp_path: Path) -> None:
    """Good ones among them, up to the one that ends a connection."""
    with serving(tmp_path) as served:
        session, _ = attack(served, 50_000, threads=2, seed=2)
        assert len(session.took) > 100
        assert np.percentile(session.took, 99) < 1.0


def changed_in_shared_memory(folder: Path, count: int) -> None:
    """Changed messages that all reach the decoder: here a new connection costs little."""
    corpus = Corpus(3)
    corpus.grow(500)
    with serving(folder) as served:
        refused, before, found = 0, 0, None
        for i in range(count):
            if i == count // 10:
                before = served.resident()
            if found is None:
                found = SharedConnection(served.shared, 30.0)
                assert isinstance(found.recv(30.0), bytes)
            found.send([corpus.mutant()], 30.0)
            if isinstance(found.recv(30.0), str):
                refused += 1
                found.close()
                found = None
        assert 0 < refused < count
        assert served.resident() - before < GROWTH
        with Client(f"shm://{served.shared}") as client:
            assert client.infer(decode(good(corpus.rng)))["actions"].shape == (16, 32)


def test_changed_messages_in_shared_memory(tmp_path: Path) -> None:
    changed_in_shared_memory(tmp_path, 500)


@pytest.mark.ci
def test_many_changed_messages_in_shared_memory(tmp_path: Path) -> None:
    changed_in_shared_memory(tmp_path, 20_000)


def test_the_corpus_finds_ways_that_its_first_messages_do_not_take() -> None:
    """Else nothing leads its changes anywhere."""
    corpus = Corpus(4)
    ways, refused, messages = len(corpus.edges), corpus.refused, len(corpus.messages)
    corpus.grow(3_000)
    assert len(corpus.edges) > ways + 30
    assert corpus.refused > refused + 1_000
    assert len(corpus.messages) > messages + 5


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_map_is_answered_or_refused(message: dict[str, object]) -> None:
    """Never another exception, and what is decoded is what was encoded."""
    data = encode(message)
    assert encode(decode(data)) == data
    with contextlib.suppress(InputError):
        answered(data)
