"""The robosuite environment: seeds, poses, settings, refusals.

What needs robosuite carries its marker; the refusals run everywhere.
"""

import functools
import importlib.util
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vlakern.errors import InputError, Unsupported
from vlakern.sim import robosuite
from vlakern.sim.robosuite import ARMS, Osc, RobosuiteEnv

needs_robosuite = pytest.mark.robosuite
UP = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0])


@functools.cache
def built(arm: str = "Panda", base_yaw: float = 0.0) -> RobosuiteEnv:
    """An environment that tests share; each begins its own episode."""
    return RobosuiteEnv(arm=arm, base_yaw=base_yaw)


def begun(arm: str = "Panda", base_yaw: float = 0.0, osc: Osc | None = None) -> RobosuiteEnv:
    env = built(arm, base_yaw)
    env.use(osc or Osc())
    env.reset(3)
    return env


def everything(env: RobosuiteEnv) -> np.ndarray:
    return np.concatenate([env._data.qpos, env._data.qvel, env.commanded_pose()])


def rotation(pose: np.ndarray) -> np.ndarray:
    return robosuite._read(pose)[1]


@needs_robosuite
def test_same_seed_same_episode():
    """A seed gives the same episode again, to the last bit, used or new, whatever numpy's global
    generator is; and that generator is left alone."""
    env = begun()
    start = everything(env)
    ends = []
    for again in (env, env, RobosuiteEnv()):
        np.random.seed(len(ends))
        state = np.random.get_state(legacy=False)
        again.reset(3)
        np.testing.assert_array_equal(everything(again), start)
        for _ in range(8):
            again.step(0.3 * UP)
        ends.append(everything(again))
        np.testing.assert_equal(np.random.get_state(legacy=False), state)
    np.testing.assert_array_equal(ends[1], ends[0])
    np.testing.assert_array_equal(ends[2], ends[0])


@needs_robosuite
def test_seeds_differ():
    """Another seed puts cube and arm elsewhere."""
    env = begun()
    cube, hand = env.scene().cube, env.measured_pose()
    env.reset(4)
    assert np.abs(env.scene().cube - cube).max() > 1e-3
    assert np.abs(env.measured_pose() - hand).max() > 1e-3


@needs_robosuite
@pytest.mark.parametrize("arm", ARMS)
def test_poses_are_in_the_base_frame(arm: str):
    """The base stands still while the first joint turns, and poses are those MuJoCo has."""
    env = begun(arm)
    before, joint = env.base_pose(), float(env._data.qpos[0])
    site = env._data.site("gripper0_right_grip_site")
    for _ in range(12):
        env.step(np.array([0.0, 0.8, 0.0, 0.0, 0.0, 0.5, -1.0]))
    assert abs(env._data.qpos[0] - joint) > 0.01
    np.testing.assert_array_equal(env.base_pose(), before)
    measured = env.measured_pose()
    np.testing.assert_allclose(measured[:3] + before[:3], site.xpos, atol=1e-12)
    np.testing.assert_allclose(rotation(measured), site.xmat.reshape(3, 3), atol=1e-9)
    np.testing.assert_allclose(env.state()[:7], measured, atol=1e-6)


@needs_robosuite
@pytest.mark.parametrize("arm", ARMS)
def test_turned_base(arm: str):
    """On a turned base the hand starts where it would without, as seen from the world."""
    straight, turned = begun(arm), begun(arm, 0.7)
    hands = []
    for env in (straight, turned):
        base, hand = env.base_pose(), env.measured_pose()
        matrix = rotation(base)
        hands.append((base[:3] + matrix @ hand[:3], matrix @ rotation(hand)))
    np.testing.assert_allclose(hands[1][0], hands[0][0], atol=1e-4)
    np.testing.assert_allclose(hands[1][1], hands[0][1], atol=1e-4)
    cosine = np.cos(0.7)
    assert rotation(turned.base_pose())[0, 0] == pytest.approx(cosine)
    assert rotation(straight.base_pose())[0, 0] == pytest.approx(1.0)


@needs_robosuite
@pytest.mark.parametrize("arm", ARMS)
def test_gripper(arm: str):
    """-1 opens the gripper, +1 closes it, and the state says so."""
    env = begun(arm)
    still = np.zeros(7)
    for action, opening in ((-1.0, 1.0), (1.0, 0.0)):
        still[6] = action
        step = [env.step(still) for _ in range(40)][-1]
        assert step.state[7] == pytest.approx(opening, abs=0.1)
        assert step.state[7] == np.float32(env.opening())


@needs_robosuite
@pytest.mark.parametrize("frame", ["base", "world"])
@pytest.mark.parametrize("update", ["achieved", "desired"])
def test_delta_goal(frame: Any, update: Any):
    """A delta of one unit is 0.05 m and 0.5 rad from the reference, along the stated axes."""
    env = begun("Panda", 0.7, Osc("delta", frame, update))
    env.step(np.array([0.4, 0.1, 0.2, 0.1, 0.2, 0.3, -1.0]))
    reference = env.commanded_pose() if update == "desired" else env.measured_pose()
    delta = np.array([0.2, -0.3, 0.5, 0.3, -0.2, 0.4])
    env.step(np.append(delta, -1.0))
    goal, axes = env.commanded_pose(), np.eye(3)
    if frame == "world":
        axes = rotation(env.base_pose()).T
    np.testing.assert_allclose(goal[:3] - reference[:3], 0.05 * axes @ delta[:3], atol=1e-7)
    turn = robosuite._rotation_vector(rotation(goal) @ rotation(reference).T)
    np.testing.assert_allclose(turn, 0.5 * axes @ delta[3:], atol=1e-7)


@needs_robosuite
@pytest.mark.parametrize(
    "osc",
    [
        Osc("delta", "base", "achieved"),
        Osc("delta", "base", "desired"),
        Osc("delta", "world", "desired"),
        Osc("absolute", "base"),
        Osc("absolute", "world"),
    ],
)
def test_aim(osc: Osc):
    """An aimed action makes the pose the goal and moves the hand to it, under any settings."""
    env = begun("UR5e", 0.5, osc)
    np.testing.assert_allclose(env.commanded_pose(), env.measured_pose(), atol=1e-12)
    goal = env.measured_pose()
    goal[:3] += (0.02, -0.03, 0.01)
    half = 0.1
    turn = np.array([0.6 * np.sin(half), 0.0, 0.8 * np.sin(half), np.cos(half)])
    matrix = robosuite._read(np.append(np.zeros(3), turn))[1] @ rotation(goal)
    goal = robosuite._write((goal[:3], matrix))
    for _ in range(25):
        env.step(env.aim(goal, -1.0))
        np.testing.assert_allclose(env.commanded_pose(), goal, atol=1e-9)
    np.testing.assert_allclose(env.measured_pose(), goal, atol=0.01)


@needs_robosuite
def test_actions_are_clipped():
    """Deltas beyond [-1, 1] act as the bounds."""
    env, ends = begun(), []
    for size in (1.0, 7.0):
        env.reset(3)
        env.step(size * UP)
        ends.append(everything(env))
    np.testing.assert_array_equal(ends[1], ends[0])


@needs_robosuite
@pytest.mark.parametrize(
    ("action", "what"), [(np.zeros(6), "shape"), (np.array([0, 0, np.nan, 0, 0, 0, 0]), "finite")]
)
def test_bad_action(action: np.ndarray, what: str):
    """A wrong shape and numbers that are none are refused, and nothing moves."""
    env = begun()
    before = everything(env)
    with pytest.raises(InputError, match=what):
        env.step(action)
    np.testing.assert_array_equal(everything(env), before)


@needs_robosuite
def test_use_before_reset():
    """Everything about an episode needs a reset first, also after other settings."""
    env = begun()
    env.use(Osc("absolute"))
    for use in (env.state, env.observe, env.commanded_pose, env.scene, lambda: env.step(UP)):
        with pytest.raises(InputError, match="reset"):
            use()
    with pytest.raises(InputError, match="seed is -1"):
        env.reset(-1)


@needs_robosuite
def test_close():
    """Closing twice is closing once, and a closed environment is refused."""
    env = RobosuiteEnv()
    env.reset(0)
    env.close()
    env.close()
    with pytest.raises(InputError, match="reset"):
        env.state()
    for use in (lambda: env.reset(0), lambda: env.use(Osc())):
        with pytest.raises(InputError, match="closed"):
            use()


@needs_robosuite
def test_observation_and_silence(capfd: pytest.CaptureFixture[str]):
    """The robot sees eight numbers and the sentence, and robosuite says nothing."""
    env = RobosuiteEnv()
    env.reset(0)
    seen = env.observe()
    assert (dict(seen.images), seen.state.shape, seen.state.dtype) == ({}, (8,), np.float32)
    assert "cube" in seen.instruction
    assert capfd.readouterr() == ("", "")


def test_unknown_names():
    """An unknown task, arm, setting or yaw is refused, naming the known ones."""
    with pytest.raises(InputError, match=r"'Fly'.*Lift"):
        RobosuiteEnv("Fly")
    with pytest.raises(InputError, match=r"'Jaco'.*Panda.*XArm7"):
        RobosuiteEnv(arm="Jaco")
    with pytest.raises(InputError, match="base_yaw is nan"):
        RobosuiteEnv(base_yaw=float("nan"))
    for bad in ({"input": "torque"}, {"frame": "hand"}, {"update": "never"}):
        with pytest.raises(InputError, match=next(iter(bad.values()))):
            Osc(**bad)  # pyright: ignore[reportArgumentType]


def test_not_installed(monkeypatch: pytest.MonkeyPatch):
    """Without robosuite the error says what to install."""
    robosuite._library.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"pip install 'vlakern\[robosuite\]'"):
        RobosuiteEnv()


def test_another_version(monkeypatch: pytest.MonkeyPatch):
    """Another robosuite, or one that does not import, is refused with the same advice."""
    robosuite._library.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(robosuite, "choose_renderer", lambda: "egl")
    old = SimpleNamespace(__version__="1.4.1")
    monkeypatch.setattr(robosuite.importlib, "import_module", lambda name: old)
    with pytest.raises(Unsupported, match=r"1\.4\.1 is installed.*vlakern\[robosuite\]"):
        RobosuiteEnv()

    def broken(name: str) -> Any:
        if name == "robosuite":
            raise ImportError("numba needs another numpy")
        return old

    monkeypatch.setattr(robosuite.importlib, "import_module", broken)
    with pytest.raises(Unsupported, match=r"another numpy.*vlakern\[robosuite\]"):
        RobosuiteEnv()
    robosuite._library.cache_clear()


def test_only_errors_are_heard():
    """Of robosuite's messages its errors remain."""
    record = logging.LogRecord("robosuite_logs", logging.WARNING, "", 0, "macros", None, None)
    assert not robosuite._is_error(record)
    record.levelno = logging.ERROR
    assert robosuite._is_error(record)
