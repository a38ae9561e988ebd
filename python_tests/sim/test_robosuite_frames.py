"""The four parametrisations, proved by physics: six arms, robosuite's own controller.

A scripted expert lifts the cube. The poses it commanded are encoded, written as numbers, read,
decoded against the pose measured at the replay, and replayed from the same seed: the hand must
follow the replay of the original actions. Any consistently wrong pair of encode and decode would
pass that too, so World-Delta numbers also drive the controller as they are, and numbers read in a
wrong frame must not pass.

    pytest -m robosuite -s python_tests/sim/test_robosuite_frames.py      prints the table of errors
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from vlakern.sim.robosuite import POSITION_SCALE, ROTATION_SCALE, Osc, RobosuiteEnv
from vlakern.sim.robosuite_experts import LiftExpert
from vlakern.space.frames import FRAMES, Frame, Pose, decode, encode
from vlakern.space.rotation import Kind

pytestmark = pytest.mark.robosuite

CHUNK = 16
SEEDS = (0, 1)
MILLIMETRES, DEGREES = 2.0, 0.5
# Two chunks show a wrong frame.
WRONG_STEPS = 2 * CHUNK
# Each arm stands as robosuite puts it, and two stand on a turned base [rad].
STANDS = {
    "Panda": 0.0,
    "Sawyer": 0.0,
    "UR5e": 0.0,
    "IIWA": 0.0,
    "Kinova3": 0.0,
    "XArm7": 0.0,
    "Panda turned": 0.7,
    "IIWA turned": -0.6,
}
TURNED = [name for name, yaw in STANDS.items() if yaw]
KINDS: dict[Frame, Kind] = {
    "world_relative": "axis_angle",
    "world_delta": "rotation_6d",
    "eef_relative": "quaternion_xyzw",
    "eef_delta": "axis_angle",
}
# What reads an action of a frame with the rotation multiplied from the other side.
OTHER_SIDE: dict[Frame, Frame] = {
    "world_relative": "eef_relative",
    "world_delta": "eef_delta",
    "eef_relative": "world_relative",
    "eef_delta": "world_delta",
}


@dataclass(frozen=True)
class Trajectory:
    """One episode of T steps: float64 ``[T, 7]`` measured poses after each, quaternion xyzw."""

    measured: np.ndarray
    success: bool


@dataclass(frozen=True)
class Recording:
    """An expert's episode: float64 actions, commanded poses and the pose measured before each."""

    seed: int
    base: np.ndarray
    actions: np.ndarray
    commanded: np.ndarray
    before: np.ndarray
    original: Trajectory

    @property
    def gripper(self) -> np.ndarray:
        return self.actions[:, 6]


class Stand:
    """One arm on one base: its recordings, and replays of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.env = RobosuiteEnv(arm=name.split()[0], base_yaw=STANDS[name])
        self.recordings = {seed: self._record(seed) for seed in SEEDS}

    def _record(self, seed: int) -> Recording:
        env, expert = self.env, LiftExpert(self.env)
        env.reset(seed)
        expert.begin()
        base = env.base_pose()
        actions, commanded, before, lifted = [], [], [], 0
        # Half a second more after the cube is up: holding must be followed too.
        while len(actions) < 160 and lifted < 10:
            before.append(env.measured_pose())
            actions.append(expert.action())
            lifted += env.step(actions[-1]).success
            commanded.append(env.commanded_pose())
        native = np.stack(actions)
        original = self.replay(seed, Osc(), lambda step, _: native[step], len(native))
        return Recording(seed, base, native, np.stack(commanded), np.stack(before), original)

    def replay(
        self, seed: int, osc: Osc, act: Callable[[int, RobosuiteEnv], np.ndarray], steps: int
    ) -> Trajectory:
        self.env.use(osc)
        self.env.reset(seed)
        measured, success = [], False
        for step in range(steps):
            success = self.env.step(act(step, self.env)).success
            measured.append(self.env.measured_pose())
        self.env.use(Osc())
        return Trajectory(np.stack(measured), success)


@functools.cache
def stand_called(name: str) -> Stand:
    return Stand(name)


@pytest.fixture(params=STANDS)
def stand(request: pytest.FixtureRequest) -> Stand:
    return stand_called(request.param)


@pytest.fixture(params=TURNED)
def turned(request: pytest.FixtureRequest) -> Stand:
    return stand_called(request.param)


Table = dict[str, tuple[float, float]]


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """The largest error [mm] and [deg] of what was measured, printed at the end."""
    rows: Table = {}
    yield rows
    print(f"\n{'':52}{'mm':>10}{'deg':>10}")
    for name, (millimetres, degrees) in sorted(rows.items()):
        print(f"{name:52}{millimetres:10.4f}{degrees:10.4f}")


def pose(values: np.ndarray) -> Pose:
    """Poses ``[..., 7]`` as a policy computes with them, in float32."""
    return Pose.read(torch.from_numpy(values).float(), "quaternion_xyzw")


def outside(base: np.ndarray | None, poses: Pose) -> Pose:
    """Poses in the base frame as seen from the world, where ``base`` is; unchanged without."""
    return poses if base is None else pose(np.broadcast_to(base, (*poses.shape, 7)).copy()) @ poses


def written(
    recording: Recording,
    frame: Frame,
    *,
    base: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    kind: Kind | None = None,
) -> list[Tensor]:
    """The numbers of each chunk; by default of the commanded poses in the base frame."""
    targets = recording.commanded if targets is None else targets
    chunks = []
    for start in range(0, len(targets), CHUNK):
        goals = outside(base, pose(targets[start : start + CHUNK]))
        first = outside(base, pose(recording.before[start]))
        chunks.append(encode(goals, first, frame).write(kind or KINDS[frame]))
    return chunks


def decoded(
    stand: Stand,
    recording: Recording,
    chunks: list[Tensor],
    frame: Frame,
    *,
    kind: Kind | None = None,
    turns: Frame | None = None,
    steps: int | None = None,
) -> Trajectory:
    """Replays targets decoded, in the base frame, from where the hand is at each chunk's start;
    their rotations as of the frame ``turns`` if it is given."""
    targets: list[np.ndarray] = []

    def act(step: int, env: RobosuiteEnv) -> np.ndarray:
        if step % CHUNK == 0:
            actions = Pose.read(chunks[step // CHUNK], kind or KINDS[frame], project=True)
            hand = pose(env.measured_pose())
            goals = decode(actions, hand, frame)
            if turns is not None:
                goals = Pose(goals.position, decode(actions, hand, turns).rotation)
            targets[:] = goals.write("quaternion_xyzw").double().numpy()
        return env.aim(targets[step % CHUNK], recording.gripper[step])

    return stand.replay(recording.seed, Osc("absolute"), act, steps or len(recording.actions))


def driven(
    stand: Stand,
    recording: Recording,
    osc: Osc,
    *,
    base: np.ndarray | None = None,
    frame: Frame = "world_delta",
    steps: int | None = None,
) -> Trajectory:
    """Replays the numbers themselves: differences of consecutive commanded poses, scaled."""
    goals = outside(base, pose(recording.commanded))
    first = outside(base, pose(recording.before[0]))
    numbers = encode(goals, first, frame).write("axis_angle").double().numpy()
    numbers /= np.array([POSITION_SCALE] * 3 + [ROTATION_SCALE] * 3)
    # Beyond 1 the controller would clip, and the replay would say nothing about frames.
    assert np.abs(numbers).max() < 1.0 + 1e-5
    native = np.column_stack([numbers, recording.gripper])
    return stand.replay(recording.seed, osc, lambda step, _: native[step], steps or len(native))


def errors(original: Trajectory, other: Trajectory) -> tuple[float, float]:
    """Largest distance [mm] and angle [deg] between the hands over the steps both have."""
    steps = min(len(original.measured), len(other.measured))
    one, two = original.measured[:steps], other.measured[:steps]
    distance = np.linalg.norm(one[:, :3] - two[:, :3], axis=1)
    # |q1 - q2| of unit quaternions is 2 sin(angle / 4); the acos of their product loses digits.
    gap = np.minimum(
        np.linalg.norm(one[:, 3:] - two[:, 3:], axis=1),
        np.linalg.norm(one[:, 3:] + two[:, 3:], axis=1),
    )
    angle = 4.0 * np.arcsin(np.minimum(gap / 2.0, 1.0))
    return 1000.0 * float(distance.max()), float(np.degrees(angle.max()))


def check_follows(original: Trajectory, other: Trajectory, table: Table, name: str) -> None:
    """The one check: within 2 mm and 0.5 degrees of the original at every step."""
    millimetres, degrees = errors(original, other)
    known = table.get(name, (0.0, 0.0))
    table[name] = (max(known[0], millimetres), max(known[1], degrees))
    assert millimetres <= MILLIMETRES, f"{name} strays by {millimetres:.3f} mm"
    assert degrees <= DEGREES, f"{name} strays by {degrees:.3f} deg"


def check_strays(original: Trajectory, other: Trajectory, table: Table, name: str) -> None:
    """What is read in a wrong frame must not pass the check."""
    with pytest.raises(AssertionError, match="strays"):
        check_follows(original, other, table, f"{name} (wrong)")


def check_lifts(stand: Stand, replays: list[Trajectory]) -> None:
    """The task succeeds as often as with the original actions."""
    original = sum(recording.original.success for recording in stand.recordings.values())
    assert sum(replay.success for replay in replays) == original


def test_original(stand: Stand):
    """The expert lifts the cube every time and turns the hand about every axis, and a replay of
    its actions is the same episode to the last bit."""
    for recording in stand.recordings.values():
        assert recording.original.success
        np.testing.assert_array_equal(recording.original.measured[:-1], recording.before[1:])
        turns = np.abs(recording.actions[:, 3:6]).max(0) * ROTATION_SCALE
        assert (turns > 0.1).all()


@pytest.mark.parametrize("frame", FRAMES)
def test_decoded(stand: Stand, frame: Frame, table: Table):
    """Encoded, written, read, decoded and replayed, the commanded poses lead the hand along."""
    replays = []
    for recording in stand.recordings.values():
        replays.append(decoded(stand, recording, written(recording, frame), frame))
        check_follows(recording.original, replays[-1], table, f"{stand.name} {frame}")
    check_lifts(stand, replays)


@pytest.mark.parametrize("axes", ["base", "world"])
def test_world_delta_is_what_the_controller_takes(
    stand: Stand, axes: Literal["base", "world"], table: Table
):
    """World-Delta numbers, scaled, drive the controller without our decoder, in both its frames."""
    recording = stand.recordings[SEEDS[-1]]
    base = recording.base if axes == "world" else None
    replay = driven(stand, recording, Osc("delta", axes, "desired"), base=base)
    name = f"{stand.name} world_delta driven in {axes} axes"
    check_follows(recording.original, replay, table, name)
    assert replay.success


@pytest.mark.parametrize("frame", ["eef_relative", "eef_delta"])
def test_hand_frames_need_no_base(turned: Stand, frame: Frame, table: Table):
    """EEF numbers of poses seen from the world are those of poses seen from the base."""
    recording = turned.recordings[SEEDS[0]]
    replay = decoded(turned, recording, written(recording, frame, base=recording.base), frame)
    check_follows(recording.original, replay, table, f"{turned.name} {frame} from the world")


@pytest.mark.parametrize("frame", ["world_relative", "world_delta"])
def test_wrong_base(turned: Stand, frame: Frame, table: Table):
    """World numbers of poses seen from the world, read as of the base frame, lead elsewhere."""
    recording = turned.recordings[SEEDS[0]]
    chunks = written(recording, frame, base=recording.base)
    replay = decoded(turned, recording, chunks, frame, steps=WRONG_STEPS)
    check_strays(recording.original, replay, table, f"{turned.name} {frame} world for base")


@pytest.mark.parametrize("axes", ["base", "world"])
def test_wrong_axes(turned: Stand, axes: Literal["base", "world"], table: Table):
    """World-Delta numbers in the axes that the controller does not take lead elsewhere."""
    recording = turned.recordings[SEEDS[0]]
    base = None if axes == "world" else recording.base
    replay = driven(turned, recording, Osc("delta", axes, "desired"), base=base, steps=WRONG_STEPS)
    check_strays(recording.original, replay, table, f"{turned.name} driven in wrong {axes} axes")


@pytest.mark.parametrize("frame", FRAMES)
def test_wrong_frame(stand: Stand, frame: Frame, table: Table):
    """Hand numbers read as those of the fixed frame, and the reverse, lead elsewhere."""
    recording, wrong = stand.recordings[SEEDS[0]], OTHER_SIDE[frame]
    chunks = written(recording, frame, kind="axis_angle")
    replay = decoded(stand, recording, chunks, wrong, kind="axis_angle", steps=WRONG_STEPS)
    check_strays(recording.original, replay, table, f"{stand.name} {frame} as {wrong}")


@pytest.mark.parametrize("frame", FRAMES)
def test_wrong_side(stand: Stand, frame: Frame, table: Table):
    """Left for right multiplication, and the reverse, with right positions, turns elsewhere."""
    recording, wrong = stand.recordings[SEEDS[0]], OTHER_SIDE[frame]
    replay = decoded(
        stand, recording, written(recording, frame), frame, turns=wrong, steps=WRONG_STEPS
    )
    check_strays(recording.original, replay, table, f"{stand.name} {frame} from the other side")


def test_wrong_side_driven(stand: Stand, table: Table):
    """EEF-Delta numbers are not what the controller takes."""
    recording = stand.recordings[SEEDS[0]]
    osc = Osc("delta", "base", "desired")
    replay = driven(stand, recording, osc, frame="eef_delta", steps=WRONG_STEPS)
    check_strays(recording.original, replay, table, f"{stand.name} driven by eef_delta")


@pytest.mark.parametrize("frame", FRAMES)
def test_wrong_order(stand: Stand, frame: Frame, table: Table):
    """Quaternions written x, y, z, w and read w, x, y, z lead elsewhere."""
    recording = stand.recordings[SEEDS[0]]
    chunks = written(recording, frame, kind="quaternion_xyzw")
    replay = decoded(stand, recording, chunks, frame, kind="quaternion_wxyz", steps=WRONG_STEPS)
    check_strays(recording.original, replay, table, f"{stand.name} {frame} xyzw as wxyz")


@pytest.mark.parametrize("frame", ["world_relative", "eef_delta"])
def test_achieved_targets(stand: Stand, frame: Frame, table: Table):
    """The poses that were achieved are no targets: a hand sent there lags behind."""
    recording = stand.recordings[SEEDS[0]]
    chunks = written(recording, frame, targets=recording.original.measured)
    replay = decoded(stand, recording, chunks, frame, steps=WRONG_STEPS)
    check_strays(recording.original, replay, table, f"{stand.name} {frame} achieved")
