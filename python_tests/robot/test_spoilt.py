"""Numbers that are none, put in at every place between the network and the sink, reach no robot.

In virtual time; beside each robot runs a twin that never met the spoilt chunk. Full counts: ``-m
soak``.
"""

import itertools
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from python_tests.robot.test_executor_proofs import Robot
from vlakern.errors import VlakernError
from vlakern.infer._prefix import decided_of
from vlakern.ops import _native
from vlakern.robot import (
    ExecutorConfig,
    Limits,
    Loop,
    LoopConfig,
    SimulatedArm,
)
from vlakern.robot.chunks import Ensemble, Placed
from vlakern.robot.native import NativeChunks
from vlakern.serve import codec
from vlakern.serve.client import actions_of
from vlakern.space import ActionSpace, Normalizer, VectorStats, robot_and_slots
from vlakern.space.controller import NativeControl
from vlakern.space.decoder import Decoders
from vlakern.types import ActionChunk, ActionPrefix, Observation

pytestmark = pytest.mark.skipif(_native.missing() is not None, reason="no native module")

ROOT = Path(__file__).parents[2]
H = 6
BAD = (np.nan, np.inf, -np.inf)
# Frames, robots and modes of their switches: one passes through, one is rounded, one is cut.
KINDS: tuple[tuple[str, Any, str], ...] = (
    ("metaworld_sawyer", "native", "zscore"),
    ("metaworld_sawyer", "world_delta", "binary"),
    ("robosuite_panda", "eef_delta", "binary"),
    ("libero_panda", "world_relative", "threshold"),
    ("so100", "native", "quantile"),
)


def made(name: str, frame: Any, switches: str) -> ActionSpace:
    """A robot with statistics, and its grippers in the mode that is asked for."""
    robot, slots = robot_and_slots(name)
    rows = [np.full(slots.width, v) for v in (0.1, 0.5, -0.9, 1.1, -0.8, 1.0)]
    stats = VectorStats(*(tuple(row.tolist()) for row in rows), names=slots.names())
    grippers = ["gripper" in n for n in slots.names()]
    modes: Any = [switches if grip or switches == "quantile" else "zscore" for grip in grippers]
    state = Normalizer("state", "zscore", stats)
    return ActionSpace(robot, slots, slots, frame, state, Normalizer("action", modes, stats))


@dataclass
class Way:
    """From a network's output to commands, for one robot, with a place that can be spoilt."""

    rng: np.random.Generator
    space: ActionSpace

    def __post_init__(self) -> None:
        robot = self.space.robot
        self.state = np.full(robot.state_width, 0.1)
        for field in robot.state:
            if field.rotation:  # none, in numbers of any kind
                turn = {"quaternion_xyzw": [0, 0, 0, 1], "quaternion_wxyz": [1, 0, 0, 0]}
                none = turn.get(field.rotation, [0] * (field.native[1] - field.native[0]))
                self.state[slice(*field.native)] = none
        width = len(self.space.action_mask)
        self.x = torch.from_numpy(self.rng.normal(size=(1, H, width)).astype(np.float32))

    def spoil(self, values: np.ndarray) -> np.ndarray:
        """One to three numbers of a copy."""
        out = np.array(values)
        for _ in range(int(self.rng.integers(1, 4))):
            out[tuple(self.rng.integers(out.shape))] = self.rng.choice(BAD)
        return out

    def commands(self) -> np.ndarray:
        return self.space.decode(self.x, self.state[None])[0]

    def network(self) -> np.ndarray:
        """What leaves the network, in any of its precisions, in any slot that the robot has."""
        dtype = [torch.float32, torch.bfloat16, torch.float16][self.rng.integers(3)]
        self.x = self.x.to(dtype)
        slots = np.flatnonzero(self.space.action_mask)
        at = int(self.rng.integers(H)), int(self.rng.choice(slots))
        self.x[0, at[0], at[1]] = float(self.rng.choice(BAD))
        return self.commands()

    def statistics(self) -> np.ndarray:
        """Scales and offsets that are none, and one whose product leaves fp32."""
        slots = self.space.action_mask & ~self.space._action.threshold & ~self.space._action.binary
        slot = int(self.rng.choice(np.flatnonzero(slots)))
        part = self.space._scale if self.rng.random() < 0.7 else self.space._offset
        kept, self.x[..., slot] = part.clone(), 3.0
        # A direction has no length, however long it is.
        turns = "rotation" in self.space._action_map.names()[slot]
        large = part is self.space._scale and not turns
        part[slot] = float(self.rng.choice((*BAD, 3.4e38) if large else BAD))
        try:
            self.space._decoders = Decoders(self.space._make_decoder)
            return self.commands()
        finally:
            part.copy_(kept)
            self.space._decoders = Decoders(self.space._make_decoder)

    def state_seen(self) -> np.ndarray:
        """The measured state that decoding starts from."""
        self.state = self.spoil(self.state)
        return self.commands()

    def decoding(self) -> np.ndarray:
        """What the fused call writes, before switches are cut."""
        kept = self.space._decoders
        try:
            self.space._decoders = lambda x, state: self.spoil(kept(x, state))  # pyright: ignore
            return self.commands()
        finally:
            self.space._decoders = kept

    def prefix(self) -> np.ndarray:
        """Decided actions that the network is told of."""
        form = str(self.rng.choice(["frozen", "cheap", "exact"]))
        known = self.commands()
        spoilt = self.spoil(known[:2])
        told = ActionPrefix(spoilt, 2, form)  # pyright: ignore[reportArgumentType]
        decided_of([told], [self.state], self.space, H)
        return known * np.nan  # it was taken: what comes of it would be as spoilt

    def steps(self) -> np.ndarray:
        """The numbers of a robot's own controller, and the command that they start from."""
        robot, slots = robot_and_slots("metaworld_sawyer")
        chunks = NativeChunks(NativeControl(robot, slots))
        native, last = self.rng.uniform(-1, 1, (H, 4)), self.rng.uniform(0, 1, 4)
        if self.rng.random() < 0.5:
            native = self.spoil(native)
        else:
            last[self.rng.integers(3)] = self.rng.choice(BAD)  # the gripper's does not add up
        return chunks.to_commands(native, np.zeros(4), last)

    def ensemble(self) -> np.ndarray:
        """A chunk that is averaged with those before it."""
        mean = Ensemble(0.1)
        mean.add(Placed(self.commands(), 0, 10))
        return mean.add(Placed(self.spoil(self.commands()), 10, 10))

    def wire(self) -> np.ndarray:
        """A server's reply."""
        dtype = [np.float16, np.float32, np.float64][self.rng.integers(3)]
        spoilt = self.spoil(self.commands()).astype(dtype)
        return actions_of(codec.decode(codec.encode({"actions": spoilt})))

    def conversion(self) -> np.ndarray:
        """Numbers that fp64 does not reach."""
        wide = self.commands().astype(np.longdouble)
        wide[tuple(self.rng.integers(wide.shape))] = np.longdouble("1e4000")
        return wide

    def arrival(self) -> np.ndarray:
        """What is handed in."""
        return self.spoil(self.commands())


LAYERS: tuple[Callable[[Way], np.ndarray], ...] = (
    Way.network, Way.statistics, Way.state_seen, Way.decoding, Way.prefix, Way.steps, Way.ensemble,
    Way.wire, Way.conversion, Way.arrival,
)  # fmt: skip


def injections(layer: Callable[[Way], np.ndarray], count: int, seed: int) -> dict[str, int]:
    """Spoilt chunks on their way to robots; returns how many ended where."""
    rng = np.random.default_rng(seed)
    spaces = [made(*kind) for kind in KINDS]
    ended = {"refused": 0, "not_finite": 0}
    while sum(ended.values()) < count:
        robots: dict[int, tuple[Robot, Any]] = {}
        for index in range(40):
            way = Way(rng, spaces[index % len(spaces)])
            sound = way.commands()
            width = 4 if layer is Way.steps else sound.shape[1]
            if width not in robots:
                robot = Robot(rng, dims=width)
                robots[width] = robot, robot.twin()
            robot, twin = robots[width]
            if rng.random() < 0.3:
                same = np.resize(sound, (H, width))
                assert np.isfinite(same).all()
                said = robot.submit(same, robot.now)
                assert said == robot.submit(same, robot.now, twin)
            with np.errstate(over="ignore", invalid="ignore"):
                ended[spoilt(layer, way, robot)] += 1
            found, wanted = robot.tick(), twin.tick(robot.now)
            assert robot.state == wanted[3]
            np.testing.assert_array_equal(found, wanted[4])  # the former chunk goes on, to the bit
    return ended


def spoilt(layer: Callable[[Way], np.ndarray], way: Way, robot: Robot) -> str:
    """Where one spoilt chunk ends: an error that the loop counts, or the executor's verdict."""
    try:
        actions = layer(way)
    except VlakernError as error:
        if "finite" in str(error) or "unit" in str(error):
            return "refused"
        raise
    said = robot.submit(actions, robot.now)
    assert said in ("not_finite", "fault"), (layer.__name__, said, actions)
    return "not_finite"


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_lets_a_spoilt_number_through(layer: Any) -> None:
    ended = injections(layer, 80, 41)
    assert sum(ended.values()) >= 80


@pytest.mark.soak
@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_lets_one_of_50000_through(layer: Any) -> None:
    """Ten layers; as many more strike inside the executor, in the test below."""
    print(layer.__name__, injections(layer, 5000, 42))


@pytest.mark.soak
def test_no_stage_of_the_executor_lets_one_of_50000_through(tmp_path: Path) -> None:
    """Waiting, interpolated, limited and made into a command: csrc/tests/executor_faults_test."""
    names = ("chunk_buffer", "command_queue", "core", "executor", "limiter", "realtime")
    sources = [str(ROOT / f"csrc/executor/{name}.cpp") for name in names]
    test = str(ROOT / "csrc/tests/executor_faults_test.cpp")
    flags = ["-std=c++17", "-O2", "-DVLAKERN_FAULT_POINTS", "-I", str(ROOT / "csrc"), "-pthread"]
    program = str(tmp_path / "test")
    subprocess.run(["g++", *flags, *sources, test, "-o", program], check=True)
    done = subprocess.run([program, "50000"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    print(done.stdout)


class Spoiling:
    """A policy whose chunks are sound or, at random, spoilt in one of the layers above."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.space = made(*KINDS[0])
        self.layers = itertools.cycle([one for one in LAYERS if one is not Way.steps])
        self.spoilt = self.calls = 0

    def act(self, observation: Observation, *, prefix: ActionPrefix | None = None) -> ActionChunk:
        time.sleep(0.005)
        self.calls += 1
        way = Way(self.rng, self.space)
        way.x = 0.2 * way.x
        if self.calls < 5 or self.calls % 2:
            return ActionChunk(way.commands())
        self.spoilt += 1
        with np.errstate(over="ignore", invalid="ignore"):
            return ActionChunk(next(self.layers)(way))


def test_the_loop_counts_what_every_layer_spoils() -> None:
    """A real one: half of the chunks are spoilt, and it drives on with the others."""
    limits = Limits([-2.0] * 4, [2.0] * 4, [20.0] * 4, [900.0] * 4)
    arm, policy = SimulatedArm((0.0,) * 4), Spoiling(3)
    rates = ExecutorConfig(policy_rate=20.0, stop_after=1.0, fault_after=10.0)
    config = LoopConfig(execute=3, patience=30.0, warm_up=1, probes=2, look_rate=100.0)
    loop = Loop(arm, policy, limits, rates, config)
    report = loop.run(60.0, until=lambda: policy.spoilt >= 18)
    assert report.ended == "done", report
    sent = np.stack([c.position_J for c in arm.sent])
    assert np.isfinite(sent).all()
    assert np.abs(sent).max() <= 2.0
    # The last one may be under way.
    counted = report.discarded.get("not_finite", 0) + report.errors
    assert policy.spoilt - 1 <= counted <= policy.spoilt
    assert report.executor.submitted["not_finite"] == report.discarded["not_finite"]
    assert report.executor.chunks >= 5
