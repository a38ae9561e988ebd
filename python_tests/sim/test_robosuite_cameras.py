"""Pictures of robosuite are real ones, whatever other environments of the process do."""

import gc

import numpy as np
import pytest

from vlakern.errors import InputError, RenderError
from vlakern.sim.robosuite import RobosuiteEnv
from vlakern.sim.robosuite_cameras import VIEWS, Cameras

WRIST = "robot0_eye_in_hand"
UP = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.5, -1.0])


def begun(arm: str = "Panda", task: str = "Lift") -> RobosuiteEnv:
    env = RobosuiteEnv(task, arm, views=tuple(VIEWS), image_size=48)
    env.reset(3)
    return env


def red(picture: np.ndarray) -> np.ndarray:
    """Where the cube is."""
    red, green, blue = np.moveaxis(picture.astype(int), -1, 0)
    return np.argwhere((red > 90) & (red > 2 * green) & (red > 2 * blue))


@pytest.mark.robosuite
def test_an_environment_that_ends_leaves_the_pictures_of_the_others() -> None:
    """Collected or closed, on this thread, before and between pictures: the same seed gives the
    same picture, and it is not what was in memory."""
    env = begun()
    alone = {view: env.render(view) for view in VIEWS}
    for view, picture in alone.items():
        assert (picture.shape, picture.dtype) == ((48, 48, 3), np.uint8)
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50, view
    for close in (True, False):
        other = begun("UR5e")
        assert np.abs(other.render(WRIST).astype(int) - alone[WRIST]).mean() > 5
        if close:
            other.close()
        del other
        gc.collect()
        for view, picture in alone.items():
            np.testing.assert_array_equal(env.render(view), picture)
    env.reset(4)
    moved = env.render(WRIST)
    env.reset(3)
    np.testing.assert_array_equal(env.render(WRIST), alone[WRIST])
    assert (moved != alone[WRIST]).any()
    env.close()


@pytest.mark.robosuite
def test_the_pictures_show_the_cube_the_right_way_up() -> None:
    """The cube is where camera and scene say: seen from the hand it falls as the hand rises and
    comes to the middle; before the table, a cube farther from the base lies lower."""
    env = begun()
    near = red(env.render(WRIST))
    for _ in range(10):
        env.step(UP)
    far = red(env.render(WRIST))
    assert 8 < len(far) < len(near)
    rows, depths = [], []
    for seed in range(6):
        env.reset(seed)
        rows.append(red(env.render("agentview"))[:, 0].mean())
        depths.append(env.scene().cube[0])
    assert np.corrcoef(rows, depths)[0, 1] > 0.6
    env.close()


@pytest.mark.robosuite
def test_a_lost_context_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context that is no longer current draws nothing, and nobody takes that for a picture."""
    env = begun()
    env.render(WRIST)
    monkeypatch.setattr(env._cameras._renderer, "render", lambda out: out)
    with pytest.raises(RenderError, match="never drawn"):
        env.render(WRIST)
    env.close()


@pytest.mark.robosuite
def test_drawing_changes_nothing() -> None:
    """An episode that is looked at is the episode that is not, to the last bit."""
    seen, unseen = begun(), begun()
    for _ in range(6):
        seen.observe()
        for env in (seen, unseen):
            env.step(UP)
    np.testing.assert_array_equal(seen._data.qpos, unseen._data.qpos)
    for env in (seen, unseen):
        env.close()


def test_refusals() -> None:
    """An unknown view and a size that is none are refused, before anything is built."""
    with pytest.raises(InputError, match=r"'moon'.*agentview, robot0_eye_in_hand"):
        Cameras(["moon"], 96)
    with pytest.raises(InputError, match="image_size is 0"):
        Cameras([WRIST], 0)
