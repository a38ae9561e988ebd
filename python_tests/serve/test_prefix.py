"""Decided actions reach a served policy as they reach one in the process, or are refused."""

import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlakern
from python_tests.serve.conftest import Echo, Start, message
from vlakern.errors import ConfigError, InputError
from vlakern.ops import _native
from vlakern.robot import ExecutorConfig, Limits, Loop, LoopConfig, SimulatedArm
from vlakern.robot.ports import Seen
from vlakern.serve import Client, RemotePolicy, ServerError
from vlakern.serve.prefix import PrefixRule, prefix_message
from vlakern.serve.warm import describe, prefix_forms
from vlakern.serve.wire import Keys, asked
from vlakern.types import ActionChunk, ActionPrefix, Observation, PrefixForm

BUILT = pytest.mark.skipif(_native.missing() is not None, reason="no native module")
WAYS = ("websocket", "shared") if sys.platform == "linux" else ("websocket",)
DECIDED = np.random.default_rng(1).normal(size=(6, 4))
RULE = PrefixRule(("frozen", "cheap"), 4)
KEYS = Keys(("front",), prefix=RULE)


def with_prefix(**parts: Any) -> dict[str, Any]:
    there = {"actions": DECIDED, "frozen": 2, "form": "cheap", **parts}
    kept = {name: one for name, one in there.items() if one is not None}
    return {"state": [0.5], "prompt": "go", "prefix": kept}


def test_a_prefix_keeps_its_bits_and_its_form() -> None:
    found = asked(with_prefix(), KEYS).prefix
    assert found is not None
    assert (found.frozen, found.form, found.actions.dtype) == (2, "cheap", np.float64)
    np.testing.assert_array_equal(found.actions, DECIDED)
    assert asked({"state": [0.5], "prompt": "go"}, KEYS).prefix is None
    empty = asked(with_prefix(actions=np.zeros((0, 4), np.float32), frozen=0), KEYS).prefix
    assert empty is not None
    assert empty.actions.shape == (0, 4)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"form": None}, "prefix/form is missing"),
        ({"actions": None}, "prefix/actions is missing"),
        ({"form": "exact"}, r"form 'exact', which .* engine does not have; it has frozen, cheap"),
        ({"form": 7}, "form '7'"),
        ({"form": np.zeros(2)}, "form '.0. 0.."),
        ({"frozen": 7}, "prefix/frozen is '7', expected a whole number from 0 to 6"),
        ({"frozen": -1}, "prefix/frozen is '-1'"),
        ({"frozen": True}, "prefix/frozen is 'True'"),
        ({"frozen": 1.0}, "prefix/frozen is '1.0'"),
        ({"actions": [[0.0] * 4]}, "are a list"),
        ({"actions": DECIDED[:, :3]}, r"float64\[6, 3\], expected float32 or float64 \[steps, 4\]"),
        ({"actions": DECIDED[0]}, r"float64\[4\]"),
        ({"actions": DECIDED.astype(np.float16)}, "float16"),
        ({"actions": DECIDED.astype(np.int64)}, "int64"),
        ({"actions": np.zeros((4097, 4))}, "at most 4096 steps"),
        ({"actions": np.where(DECIDED > 1, np.nan, DECIDED)}, "not finite"),
        ({"other": 1}, "'prefix/other' is unknown"),
    ],
)
def test_what_is_no_prefix_is_refused_before_the_policy(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        asked(with_prefix(**parts), KEYS)


def test_a_policy_without_prefixes_announces_and_takes_none() -> None:
    plain = Keys(("front",))
    assert "prefix" not in plain.announced()
    assert KEYS.announced()["prefix"]["forms"] == ["frozen", "cheap"]
    with pytest.raises(InputError, match="takes no prefix"):
        asked(with_prefix(), plain)
    with pytest.raises(InputError, match="takes no prefix; give the loop prefix=False"):
        prefix_message(ActionPrefix(DECIDED, 1), {"keys": plain.announced()})
    for said in ({}, {"keys": 3}, {"keys": {"prefix": []}}, {"keys": {"prefix": {"forms": "xy"}}}):
        with pytest.raises(InputError, match="takes no prefix"):
            prefix_message(ActionPrefix(DECIDED, 1), said)


class Told(Echo):
    """Says how long each row's prefix is, and keeps the forms of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[str | None]] = []

    def act_batch(self, observations: Any, seeds: Any = None, prefixes: Any = None) -> Any:
        chunks = super().act_batch(observations, seeds)
        told = [None] * len(chunks) if prefixes is None else prefixes
        self.calls.append([None if one is None else one.form for one in told])
        counts = [-1.0 if one is None else float(one.actions.sum()) for one in told]
        return [
            ActionChunk(np.full_like(chunk.actions, count))
            for chunk, count in zip(chunks, counts, strict=True)
        ]


def test_rows_of_one_form_go_through_the_policy_together(start: Start) -> None:
    """And each client has its own prefix' answer."""
    policy = Told()
    running = start(policy, Keys(("front", "wrist"), prefix=RULE))
    policy.takes = 0.2
    forms: list[PrefixForm | None] = [None, "frozen", "cheap", None, "cheap", "frozen"]
    found: dict[int, float] = {}

    def ask(i: int, form: PrefixForm | None) -> None:
        with Client(running.url) as client:
            told = {} if form is None else with_prefix(form=form, actions=DECIDED * i)
            prefix = {"prefix": told["prefix"]} if told else {}
            found[i] = float(client.infer(message(**prefix))["actions"][0, 0])

    threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(forms)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, form in enumerate(forms):
        expected = -1.0 if form is None else (DECIDED * i).sum()
        assert found[i] == np.float32(expected)
    assert sum(map(len, policy.calls)) == len(forms)
    assert max(map(len, policy.calls)) > 1
    for call in policy.calls:
        assert set(call) <= {None, "frozen"} or set(call) == {"cheap"}


def test_a_form_that_is_not_there_is_the_clients_mistake(start: Start) -> None:
    """In a sentence that reaches it; the next request goes on."""
    running = start(Told(), Keys(("front", "wrist"), prefix=RULE))
    with Client(running.url) as client:
        with pytest.raises(ServerError, match="'exact', which this policy's engine does not have"):
            client.infer(message(prefix=with_prefix(form="exact")["prefix"]))
        assert client.infer(message())["actions"][0, 0] == -1.0
        seen = Observation({"front": np.zeros((2, 2, 3), np.uint8)}, np.zeros(1), "go")
        remote = RemotePolicy(client)
        with pytest.raises(InputError, match="form frozen or cheap, found 'exact'"):
            remote.act(seen, prefix=ActionPrefix(DECIDED, 1, "exact"))
        with pytest.raises(ServerError, match="expected a whole number from 0 to 6"):
            remote.act(seen, prefix=ActionPrefix(DECIDED, 9))
        assert remote.act(seen, prefix=ActionPrefix(DECIDED, 1)).actions.shape == (4, 3)
    assert (running.server.statistics.refused, running.server.statistics.failed) == (2, 0)


def look(policy: Any, seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    side = policy.image_size
    images = {v: rng.integers(0, 256, (side, side, 3), np.uint8) for v in policy.views}
    state = rng.normal(scale=0.1, size=4).astype(np.float32)
    return Observation(images, state, "push the puck to the goal")


@pytest.fixture(scope="module")
def policy() -> Any:
    return vlakern.load("metaworld-small", device="cpu")


@BUILT
@pytest.mark.parametrize("way", WAYS)
def test_a_served_prefix_gives_the_bits_of_the_policy(
    start: Start, policy: Any, way: str, tmp_path: Path
) -> None:
    assert prefix_forms(policy, 2) == ("frozen", "cheap")
    keys = Keys(policy.views, prefix=PrefixRule(prefix_forms(policy, 1), 4))
    running = start(policy, keys, shared=str(tmp_path / "s") if way == "shared" else None)
    url = running.url if way == "websocket" else f"shm://{tmp_path}/s"
    with Client(url) as client:
        remote = RemotePolicy(client)
        free = policy.act(look(policy, 0), 0).actions
        for form in ("frozen", "cheap"):
            prefix = ActionPrefix(np.clip(DECIDED, -1, 1), 3, form)
            found = remote.act(look(policy, 0), 0, prefix=prefix).actions
            np.testing.assert_array_equal(
                found, policy.act(look(policy, 0), 0, prefix=prefix).actions
            )
            assert np.abs(found - free).max() > 1e-2


def test_the_exact_form_is_served_through_torch(start: Start) -> None:
    led = vlakern.load("metaworld-small", device="cpu", backend="torch", steps=2)
    assert prefix_forms(led, 1) == ("frozen", "cheap", "exact")
    keys = Keys(led.views, prefix=PrefixRule(("frozen", "cheap", "exact"), 4))
    prefix = ActionPrefix(np.clip(DECIDED, -1, 1), 3, "exact")
    with Client(start(led, keys).url) as client:
        found = RemotePolicy(client).act(look(led, 0), 0, prefix=prefix).actions
    np.testing.assert_array_equal(found, led.act(look(led, 0), 0, prefix=prefix).actions)


class Looking(SimulatedArm):
    """An arm with cameras."""

    def observe(self) -> Seen | None:
        seen = super().observe()
        if seen is None:
            return None
        image = np.full((96, 96, 3), seen.time_ns >> 20 & 255, np.uint8)
        state = np.asarray(seen.observation.state, np.float32)
        return Seen(Observation({"left": image, "right": image}, state, "reach"), seen.time_ns)


@dataclass
class Kept:
    """A remote policy, and all that it was asked and answered."""

    policy: RemotePolicy
    asked: list[tuple[Observation, ActionPrefix | None, np.ndarray]] = field(default_factory=list)

    @property
    def frame(self) -> str | None:
        return self.policy.frame

    @property
    def robot(self) -> Any:
        return self.policy.robot

    @property
    def control(self) -> Any:
        return self.policy.control

    def act(self, observation: Observation, *, prefix: ActionPrefix | None = None) -> ActionChunk:
        chunk = self.policy.act(observation, len(self.asked), prefix=prefix)
        self.asked.append((observation, prefix, chunk.actions))
        return chunk


@BUILT
@pytest.mark.parametrize("form", ["frozen", "cheap"])
@pytest.mark.parametrize("way", WAYS)
def test_a_robot_is_led_by_a_policy_behind_a_server(
    start: Start, policy: Any, way: str, form: PrefixForm, tmp_path: Path
) -> None:
    """The asynchronous loop over the real way: every chunk has the bits of a call in process."""
    keys = Keys(policy.views, state_width=4, prefix=PrefixRule(prefix_forms(policy, 1), 4))
    shared = str(tmp_path / "s") if way == "shared" else None
    running = start(policy, keys, metadata=describe(policy), shared=shared)
    limits = Limits([-9.0] * 4, [9.0] * 4, [8.0] * 4, [400.0] * 4)
    rates = ExecutorConfig(policy_rate=10.0, tick_rate=200.0, held=(3,))
    config = LoopConfig(execute=4, prefix=True, form=form, patience=60.0)
    url = running.url if shared is None else f"shm://{shared}"
    with Client(url, timeout=30.0) as client:
        with pytest.raises(ConfigError, match="steps of 'mocap position'"):
            Loop(Looking((0.0,) * 4), RemotePolicy(client), limits, rates, config)
        kept = Kept(RemotePolicy(client, control=policy.control))
        exact, still = replace(config, form="exact", most_errors=1), Looking((0.0,) * 4)
        with pytest.raises(InputError, match="form frozen or cheap, found 'exact'"):
            Loop(still, kept, limits, rates, exact).run(5.0)
        assert not still.sent  # it has not moved
        kept.asked.clear()
        assert kept.frame == "native"
        loop, ending = Loop(Looking((0.0,) * 4), kept, limits, rates, config), time.monotonic() + 60
        report = loop.run(60.0, lambda: len(loop.begun) >= 3 or time.monotonic() > ending)
    assert (report.ended, report.errors, report.hung) == ("done", 0, ())
    assert report.executor.chunks >= 3
    assert sum(prefix is not None for _, prefix, _ in kept.asked) >= 2
    for i, (seen, prefix, actions) in enumerate(kept.asked):
        here = policy.act(seen, i, prefix=prefix).actions
        np.testing.assert_array_equal(actions, here)
        if prefix is not None:
            assert prefix.form == form
            plain = policy.act(seen, i, prefix=replace(prefix, frozen=0, form="frozen")).actions
            assert np.abs(plain - here).max() > 1e-3
