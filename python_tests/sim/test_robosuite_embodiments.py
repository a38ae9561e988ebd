"""The declared robosuite robots are the simulator's, and an action space drives them.

What the records in ``vlakern/space/robots`` say is compared with robosuite itself; then the whole
way of a policy's actions (commands, slots, normalisation, fused decoding, controller numbers)
lifts the cube.
"""

import numpy as np
import pytest
import torch

from vlakern.data.stats import SlotStats
from vlakern.sim.robosuite import ARMS, CONTROL_RATE, POSITION_SCALE, ROTATION_SCALE, RobosuiteEnv
from vlakern.sim.robosuite_experts import LiftExpert
from vlakern.space import (
    FRAMES,
    ActionSpace,
    Embodiment,
    Frame,
    Normalizer,
    Rotation,
    VectorStats,
    embodiment,
    slot_map,
)
from vlakern.space.controller import NativeControl
from vlakern.space.normalize import Mode

pytestmark = pytest.mark.robosuite

CHUNK = 16
SEED = 3


@pytest.fixture(scope="module", params=ARMS)
def env(request: pytest.FixtureRequest) -> RobosuiteEnv:
    """Each arm, its base turned so that base and world axes differ."""
    return RobosuiteEnv(arm=request.param, base_yaw=0.4)


def robot_of(env: RobosuiteEnv) -> Embodiment:
    return embodiment(f"robosuite_{env.arm.lower()}")


def episode(env: RobosuiteEnv) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States before each step, native actions and commanded vectors of the expert's episode."""
    expert = LiftExpert(env)
    env.reset(SEED)
    expert.begin()
    states, natives, commands, lifted = [], [], [], 0
    while len(states) < 160 and lifted < 5:
        states.append(env.state().astype(np.float64))
        natives.append(expert.action())
        lifted += env.step(natives[-1]).success
        commands.append(env.commanded_pose())
    assert lifted == 5
    return np.stack(states), np.stack(natives), np.stack(commands)


def test_the_record_says_what_the_simulator_is(env: RobosuiteEnv) -> None:
    """Rate, scales, joints and their limits, the state's gripper between its declared ends."""
    robot = robot_of(env)
    assert robot.control_rate == CONTROL_RATE
    assert robot.controller is not None
    assert robot.controller.position_scale == POSITION_SCALE
    assert robot.controller.rotation_scale == ROTATION_SCALE
    env.reset(0)
    names = [f"{env._robot.robot_model.naming_prefix}{joint.name}" for joint in robot.joints]
    assert names == list(env._robot.robot_joints)
    for joint, name in zip(robot.joints, names, strict=True):
        model = env._model.joint(name)
        lower, upper = model.range if model.limited[0] else (None, None)
        assert joint.lower == (None if lower is None else pytest.approx(lower, abs=1e-4))
        assert joint.upper == (None if upper is None else pytest.approx(upper, abs=1e-4))
    for sign in (-1.0, 1.0):
        for _ in range(15):
            env.step(np.array([0, 0, 0, 0, 0, 0, sign]))
        slot = slot_map(robot.slot_map).slot("right_gripper").start
        unit = VectorStats.units(slot_map(robot.slot_map).names())
        plain = Normalizer("state", "none", unit), Normalizer("action", "none", unit)
        maps = slot_map(robot.slot_map), slot_map(robot.slot_map)
        space = ActionSpace(robot, *maps, "native", *plain)
        opening = space.unify_state(env.state())[slot]
        assert opening == pytest.approx(1.0 if sign < 0 else 0.0, abs=0.1)


def test_recorded_numbers_become_the_poses_that_were_commanded(env: RobosuiteEnv) -> None:
    """``to_commands`` of the expert's native actions is what robosuite's controller aimed at, and
    ``to_native`` of that is what was recorded."""
    states, natives, commanded = episode(env)
    control = NativeControl(robot_of(env), slot_map("unified-200"))
    commands = control.to_commands(natives, states)
    # The state is float32.
    np.testing.assert_allclose(commands[:, :3], commanded[:, :3], atol=1e-6)
    turns = Rotation.read(torch.from_numpy(commands[:, 3:6]), "axis_angle")
    found = turns.write("quaternion_xyzw").numpy()
    gap = np.minimum(
        np.abs(found - commanded[:, 3:]).max(1), np.abs(found + commanded[:, 3:]).max(1)
    )
    assert gap.max() < 2e-6
    np.testing.assert_array_equal(commands[:, 6], natives[:, 6])
    np.testing.assert_allclose(control.to_native(commands, states), natives, atol=2e-5)


@pytest.mark.parametrize("frame", FRAMES)
def test_a_perfect_prediction_lifts_the_cube(env: RobosuiteEnv, frame: Frame) -> None:
    """Encoded as a model's training target, decoded by the fused op, turned into the controller's
    numbers step by step: the hand goes where it went and the cube is lifted."""
    states, natives, _ = episode(env)
    robot, slots = robot_of(env), slot_map("unified-200")
    control = NativeControl(robot, slots)
    commands = control.to_commands(natives, states)
    space = action_space(robot, frame, commands, states)
    env.reset(SEED)
    success, strayed, target = False, 0.0, np.zeros((0, 7))
    for step in range(len(commands)):
        if step % CHUNK == 0:
            x = space.encode(commands[None, step : step + CHUNK], states[None, step])
            target = space.decode(torch.from_numpy(x), env.state()[None].astype(np.float64))[0]
        state = env.state().astype(np.float64)
        strayed = max(strayed, float(np.abs(state[:3] - states[step, :3]).max()))
        command = target[step % CHUNK].astype(np.float64)
        native = control.to_native(command, state, limit="clip")
        success = env.step(native).success
    assert success
    assert strayed < 2e-3


def action_space(
    robot: Embodiment, frame: Frame, commands: np.ndarray, states: np.ndarray
) -> ActionSpace:
    """With statistics of this one episode, after the frame transform, and a binary gripper."""
    slots = slot_map(robot.slot_map)
    names, unit = slots.names(), VectorStats.units(slots.names())
    plain = Normalizer("state", "none", unit), Normalizer("action", "none", unit)
    raw = ActionSpace(robot, slots, slots, frame, *plain)
    state_stats, action_stats = SlotStats(names), SlotStats(names)
    state_stats.add(raw.unify_state(states), raw.state_mask)
    for start in range(len(commands) - CHUNK):
        chunk = raw.unify(commands[start : start + CHUNK], states[start])
        action_stats.add(chunk, raw.action_mask)
    modes: list[Mode] = ["quantile"] * slots.width
    modes[slots.slot("right_gripper").start] = "binary"
    state = Normalizer("state", "zscore", state_stats.result())
    return ActionSpace(
        robot, slots, slots, frame, state, Normalizer("action", modes, action_stats.result())
    )
