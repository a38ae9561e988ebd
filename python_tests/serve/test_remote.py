"""A robot driven by a policy behind a server, over a network in which everything goes wrong."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from python_tests.serve.conftest import Running, Start
from python_tests.serve.proxy import Proxy, Weather
from vlakern.errors import InputError, VlakernError
from vlakern.ops import _native
from vlakern.robot import ExecutorConfig, Limits, Loop, LoopConfig, SimulatedArm
from vlakern.robot.ports import Seen
from vlakern.serve import Client, RemotePolicy, ServerError
from vlakern.serve.prefix import PrefixRule
from vlakern.serve.wire import Keys
from vlakern.types import ActionChunk, ActionPrefix, Observation

pytestmark = pytest.mark.skipif(_native.missing() is not None, reason="no native module")

LIMITS = Limits([-1.0, -1.0], [1.0, 1.0], [8.0, 8.0], [400.0, 400.0])
RATES = ExecutorConfig(policy_rate=20.0, tick_rate=200.0)
CONFIG = LoopConfig(execute=8, patience=20.0, warm_up=1, probes=2, most_errors=25)
H, STEP_NS = 24, 50_000_000
WEATHERS = {
    "clean": Weather(),
    "20±5 ms": Weather(delay=0.02, jitter=0.005),
    "150±40 ms": Weather(delay=0.15, jitter=0.04),
    "congested": Weather(delay=0.05, jitter=0.03, burst=0.12, rate=1e5),
    "20 % lost": Weather(delay=0.01, loss=0.2),
    "20 % errors": Weather(delay=0.01, errors=0.2),
    "duplicates": Weather(delay=0.01, twice=0.5),
    "reordering": Weather(delay=0.02, jitter=0.01, held=0.3),
}
# Of each weather's troubles, which must have come.
TROUBLES = {
    "congested": "burst",
    "20 % lost": "lost",
    "20 % errors": "errors",
    "duplicates": "twice",
    "reordering": "held",
}


def wave(times_ns: np.ndarray) -> np.ndarray:
    """Where the joints are to be at a time ``[N, 2]``: a stale chunk says something else."""
    phase = np.pi * (np.asarray(times_ns, np.int64) % 4_000_000_000) * 1e-9
    return 0.5 * np.stack([np.sin(phase), np.cos(phase)], axis=-1)


def answer(state: np.ndarray, prefix: ActionPrefix | None) -> np.ndarray:
    """The chunk for an observation and a prefix, which leaves a mark of a thousandth."""
    mark = 0.0 if prefix is None else 1e-3 * np.tanh(prefix.actions.sum() + prefix.frozen)
    return (wave(time_of(state) + np.arange(H) * STEP_NS) + mark).astype(np.float32)


class Waves:
    """The policy behind the server: its observation's state is a time, split to survive float32."""

    def act_batch(
        self, observations: Any, seeds: Any = None, prefixes: Any = None
    ) -> list[ActionChunk]:
        told = prefixes or [None] * len(observations)
        return [
            ActionChunk(answer(seen.state, prefix))
            for seen, prefix in zip(observations, told, strict=True)
        ]


def stamp(time_ns: int) -> np.ndarray:
    return np.array([time_ns >> 40, time_ns >> 20 & 0xFFFFF, time_ns & 0xFFFFF], np.float32)


def time_of(state: np.ndarray) -> int:
    high, middle, low = (int(one) for one in state)
    return high << 40 | middle << 20 | low


class Stamping(SimulatedArm):
    def observe(self) -> Seen | None:
        seen = super().observe()
        if seen is None:
            return None
        shown = seen.observation
        return Seen(Observation(shown.images, stamp(seen.time_ns), "wave"), seen.time_ns)


@dataclass
class Watched:
    """The remote policy, and whether every chunk is for its own observation and prefix.

    Attributes:
        foreign: how many chunks were not.
        chunks: how many came, ``led`` of them with a prefix.
    """

    policy: RemotePolicy
    foreign: int = 0
    chunks: int = 0
    led: int = 0
    errors: list[str] = field(default_factory=list)

    def act(self, observation: Observation, *, prefix: ActionPrefix | None = None) -> ActionChunk:
        try:
            chunk = self.policy.act(observation, prefix=prefix)
        except VlakernError as error:
            self.errors.append(str(error))
            raise
        self.chunks += 1
        self.led += prefix is not None
        self.foreign += not np.array_equal(chunk.actions, answer(observation.state, prefix))
        return chunk


def check_commands(loop: Loop, robot: Stamping, late: float) -> int:
    """Limits, freshness and rest at the end; how many chunks were executed."""
    sent = robot.sent
    positions = np.stack([c.position_J for c in sent])
    steps = np.diff(positions, axis=0)
    assert np.isfinite(positions).all()
    assert np.abs(positions).max() <= 1.0 + 1e-9
    assert np.abs(steps).max(initial=0.0) <= 8.0 / 200 + 1e-9
    assert np.abs(np.diff(steps, axis=0)).max(initial=0.0) <= 400.0 / 200**2 + 1e-9
    np.testing.assert_allclose(sent[-1].velocity_J, 0.0, atol=1e-9)
    begun = {one.chunk: one for one in loop.begun}
    order = list(dict.fromkeys(c.chunk for c in sent if c.chunk))
    observed = [begun[i].observed_ns for i in order if i in begun]
    assert order == sorted(order)
    assert observed == sorted(set(observed))
    for command in sent:
        if command.state == "running" and command.chunk in begun:
            one = begun[command.chunk]
            # A tick that comes late has the newest chunk, made of a look after it was due.
            assert -late * 1e9 <= one.begin_ns - one.observed_ns < H * STEP_NS
            assert one.begin_ns - late * 1e9 <= command.time_ns < one.begin_ns + H * STEP_NS
    return len(order)


def drive(
    running: Running, name: str, seed: int, seconds: float, led: bool = False
) -> tuple[str, int]:
    """How a run ended, and how often something went wrong in it; with prefixes if it is led."""
    now, slow = time.monotonic_ns(), name in ("150±40 ms", "congested")
    robot = Stamping(tuple(wave(np.array(now))), seed=seed)
    with Proxy(running.url, WEATHERS[name], seed) as proxy:
        client = Client(f"ws://127.0.0.1:{proxy.port}", timeout=0.35, patience=0.35)
        watched = Watched(RemotePolicy(client))
        form = "cheap" if led else "frozen"
        config = replace(CONFIG, execute=8 if slow else 4, prefix=led, form=form)
        loop = Loop(robot, watched, LIMITS, RATES, config)
        report = loop.run(seconds)
        client.close()
    assert watched.foreign == 0, (watched, report)
    assert check_commands(loop, robot, report.executor.late["max"]) >= 1, report
    assert (report.executor.sink_failures, report.hung) == (0, ())
    assert (watched.led > 0) == led, report
    assert report.ended in ("time", "fault"), report
    if name in ("20 % lost", "20 % errors"):
        assert report.errors == len(watched.errors)
    print(
        f"{name} seed {seed}: {report.ended}, {watched.chunks} chunks ({watched.led} led),"
        f" {report.errors} errors,"
        f" {client.stale} stale replies thrown away, {report.executor.starved} of"
        f" {report.executor.ticks} ticks starved; {proxy.counts}"
    )
    return report.ended, proxy.counts.get(TROUBLES.get(name, "requests"), 0)


@pytest.fixture
def running(start: Start) -> Running:
    return start(Waves(), Keys(("front",), state_width=3, prefix=PrefixRule(("cheap",), 2)))


@pytest.mark.parametrize("led", [False, True])
def test_a_robot_follows_a_policy_behind_a_server(running: Running, led: bool) -> None:
    assert drive(running, "duplicates", 1, 1.2, led)[0] == "time"


@pytest.mark.ci
@pytest.mark.parametrize("name", WEATHERS)
def test_a_robot_stays_safe_in(running: Running, name: str) -> None:
    """0 stale actions, 0 limits passed, at rest at the end; the second time with prefixes."""
    for seed in range(2):
        drive(running, name, seed, 2.0, led=seed == 1)


@pytest.mark.soak
@pytest.mark.parametrize("name", WEATHERS)
def test_a_robot_stays_safe_25_times_in(running: Running, name: str) -> None:
    assert sum(drive(running, name, seed, 3.0, seed % 5 == 4)[1] for seed in range(25)) > 25


def asking(client: Client, count: int) -> list[bool]:
    """Whether each reply is that of its own observation."""
    policy, right = RemotePolicy(client), []
    for i in range(count):
        now = 10**12 + i * 10**8
        seen = Observation({"front": np.zeros((2, 2, 3), np.uint8)}, stamp(now), "go")
        try:
            chunk = policy.act(seen)
        except ServerError:
            continue
        right.append(bool(np.abs(chunk.actions[0] - wave(np.array(now))).max() < 1e-5))
    return right


def test_replies_that_come_twice_or_late_are_thrown_away(running: Running) -> None:
    """Else the robot would execute what was meant for an earlier observation."""
    with (
        Proxy(running.url, Weather(twice=0.5, held=0.2), seed=3) as proxy,
        Client(f"ws://127.0.0.1:{proxy.port}", timeout=0.1) as client,
    ):
        right = asking(client, 60)
        assert proxy.counts["twice"] > 5
        assert proxy.counts["held"] > 2
        assert client.stale > 5
    assert len(right) > 20
    assert all(right)


def test_a_server_that_repeats_no_numbers_is_asked_with_an_empty_mailbox(running: Running) -> None:
    with (
        Proxy(running.url, Weather(twice=0.7), seed=4) as proxy,
        Client(f"ws://127.0.0.1:{proxy.port}", timeout=5.0) as client,
    ):
        client._numbered = False
        policy, right = RemotePolicy(client), []
        for i in range(20):
            now = 10**12 + i * 10**8
            chunk = policy.act(
                Observation({"front": np.zeros((2, 2, 3), np.uint8)}, stamp(now), "go")
            )
            right.append(bool(np.abs(chunk.actions[0] - wave(np.array(now))).max() < 1e-5))
            time.sleep(0.05)  # the copy has come by then
        assert proxy.counts["twice"] > 5
        assert client.stale > 5
    assert all(right)


def test_prefixes_and_replies_without_actions_are_refused(start: Start) -> None:
    with Client(start(Waves(), Keys(("front",), state_width=3)).url) as client:
        seen = Observation({"front": np.zeros((2, 2, 3), np.uint8)}, stamp(10**12), "go")
        with pytest.raises(InputError, match="takes no prefix; give"):
            RemotePolicy(client).act(seen, prefix=ActionPrefix(np.zeros((2, 2)), 1))
        client.infer = lambda message: {"actions": np.zeros(3)}
        with pytest.raises(ServerError, match="no actions"):
            RemotePolicy(client).act(seen)
