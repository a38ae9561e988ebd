"""The Meta-World environment: seeds, pictures, proprioception, refusals."""

import gc
from collections.abc import Iterator

import numpy as np
import pytest

from vlakern.errors import InputError, RenderError
from vlakern.sim import metaworld
from vlakern.sim.metaworld import SUITES, MetaWorldEnv


@pytest.fixture
def push() -> Iterator[MetaWorldEnv]:
    env = MetaWorldEnv("push-v3", image_size=48)
    env.reset(3)
    yield env
    env.close()


def full(env: MetaWorldEnv) -> np.ndarray:
    """The simulator's own observation: hand, objects and goal."""
    return env._full().copy()


def test_same_seed_same_start(push: MetaWorldEnv):
    """A seed gives the same episode again, in a used environment as in a new one."""
    first, picture = full(push), push.render("left")
    for _ in range(30):
        push.step(push.expert_action())
    push.reset(3)
    np.testing.assert_array_equal(full(push), first)
    other = MetaWorldEnv("push-v3", image_size=48)
    other.reset(3)
    np.testing.assert_array_equal(full(other), first)
    np.testing.assert_array_equal(other.render("left"), picture)
    other.close()


@pytest.mark.parametrize("task", SUITES["mw5"])
def test_seeds_differ(task: str):
    """Different seeds move objects or goals of every task of the suite, never the arm."""
    env = MetaWorldEnv(task)
    starts = []
    for number in range(4):
        env.reset(number)
        starts.append((full(env), env.state()))
    scenes = {start.tobytes() for start, _ in starts}
    assert len(scenes) == 4
    assert np.ptp([state for _, state in starts], axis=0).max() < 1e-6


def test_global_random_state_is_irrelevant(push: MetaWorldEnv):
    """Only the seed counts, not numpy's global generator."""
    first = full(push)
    np.random.seed(1)
    push.reset(3)
    np.testing.assert_array_equal(full(push), first)


@pytest.mark.parametrize("task", SUITES["mw5"])
def test_expert_solves(task: str):
    """The expert sees the goal and solves every task of the suite."""
    env = MetaWorldEnv(task)
    for number in range(3):
        env.reset(number)
        assert any(env.step(env.expert_action()).success for _ in range(250))


def test_observation(push: MetaWorldEnv):
    """Two pictures, four numbers and the sentence."""
    seen = push.observe()
    assert sorted(seen.images) == ["left", "right"]
    assert all(f.shape == (48, 48, 3) and f.dtype == np.uint8 for f in seen.images.values())
    assert not np.array_equal(seen.images["left"], seen.images["right"])
    assert seen.state.shape == (4,)
    assert seen.state.dtype == np.float32
    assert seen.instruction == push.task.instruction


def test_state_is_proprioception_only(push: MetaWorldEnv):
    """The state is the hand's position and the gripper, whatever lies on the table."""
    before = push.state()
    push.reset(4)
    np.testing.assert_array_equal(push.state(), before)
    hand = push._sim.get_endeff_pos()
    np.testing.assert_allclose(push.state()[:3], hand, atol=1e-6)
    assert 0.0 <= push.state()[3] <= 1.0


def test_gripper_closes(push: MetaWorldEnv):
    """Effort +1 closes the gripper, which the state shows."""
    opened = push.state()[3]
    step = [push.step(np.array([0, 0, 0, 1])) for _ in range(20)][-1]
    assert step.state[3] < opened - 0.3
    np.testing.assert_array_equal(step.state, push.state())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_actions_move_the_hand(push: MetaWorldEnv, axis: int):
    """Entry k of the action moves the hand along axis k."""
    start = push.state()
    action = np.zeros(4)
    action[axis] = 1.0
    for _ in range(10):
        push.step(action)
    moved = push.state()[:3] - start[:3]
    assert np.argmax(np.abs(moved)) == axis
    assert moved[axis] > 0.03


def test_pictures_show_the_scene(push: MetaWorldEnv):
    """A moved hand and another seed each change the picture of both views."""
    before = push.observe().images
    push.reset(8)
    other = push.observe().images
    for _ in range(10):
        push.step(np.array([1, 0, 0, 0]))
    after = push.observe().images
    for view in ("left", "right"):
        assert not np.array_equal(before[view], other[view])
        assert not np.array_equal(other[view], after[view])


def test_actions_are_clipped(push: MetaWorldEnv):
    """Entries beyond [-1, 1] act as the bounds."""
    push.step(np.array([5.0, 0, 0, -7.0]))
    big = full(push)
    push.reset(3)
    push.step(np.array([1.0, 0, 0, -1.0]))
    np.testing.assert_array_equal(full(push), big)


@pytest.mark.parametrize(
    ("action", "what"),
    [
        (np.zeros(3), "shape"),
        (np.zeros((1, 4)), "shape"),
        (np.array([0, np.nan, 0, 0]), "not finite"),
        (np.array([0, 0, np.inf, 0]), "not finite"),
    ],
)
def test_bad_action(push: MetaWorldEnv, action: np.ndarray, what: str):
    """A wrong shape and numbers that are none are refused, and nothing moves."""
    before = full(push)
    with pytest.raises(InputError, match=what):
        push.step(action)
    np.testing.assert_array_equal(full(push), before)


def test_unknown_names():
    """An unknown task or view names the known ones."""
    with pytest.raises(InputError, match=r"'fly-v3'.*push-v3"):
        MetaWorldEnv("fly-v3")
    with pytest.raises(InputError, match=r"'top'.*left, right"):
        MetaWorldEnv("push-v3", views=("top",))
    with pytest.raises(InputError, match="image_size is 0"):
        MetaWorldEnv("push-v3", image_size=0)


def test_use_before_reset():
    """Everything about an episode needs a reset first."""
    env = MetaWorldEnv("push-v3")
    for use in (env.observe, env.state, env.expert_action, lambda: env.step(np.zeros(4))):
        with pytest.raises(InputError, match="reset"):
            use()
    with pytest.raises(InputError, match="seed is -1"):
        env.reset(-1)


def test_environments_take_turns(push: MetaWorldEnv):
    """Environments render in turns, and the end of one leaves the others' pictures intact."""
    alone = push.render("left")
    other = MetaWorldEnv("reach-v3", image_size=32)
    other.reset(0)
    assert other.render("left").shape == (32, 32, 3)
    np.testing.assert_array_equal(push.render("left"), alone)
    other.close()
    np.testing.assert_array_equal(push.render("left"), alone)
    other = MetaWorldEnv("reach-v3", image_size=32)
    other.reset(0)
    other.render("left")
    del other
    gc.collect()
    np.testing.assert_array_equal(push.render("left"), alone)


def test_lost_picture_raises(push: MetaWorldEnv, monkeypatch: pytest.MonkeyPatch):
    """A renderer that leaves the buffer as it was, or repeats an old one, is caught."""
    old = push.render("left").copy()
    monkeypatch.setattr(push._renderer, "render", lambda out: out)
    with pytest.raises(RenderError, match="never drawn"):
        push.render("left")
    for _ in range(20):
        push.step(np.array([1, 0, 0, 0]))
    monkeypatch.setattr(push._renderer, "render", lambda out: old)
    with pytest.raises(RenderError, match="same as before"):
        push.render("left")


def test_lost_context_raises(push: MetaWorldEnv, monkeypatch: pytest.MonkeyPatch):
    """Without a current OpenGL context the frame is refused instead of being noise."""
    egl = pytest.importorskip("mujoco.egl.egl_ext")
    push.render("left")
    monkeypatch.setattr(push._renderer._gl_context, "make_current", lambda: None)
    egl.eglReleaseThread()
    with pytest.raises(RenderError, match="never drawn"):
        push.render("left")


def test_renderer_chosen_too_late(monkeypatch: pytest.MonkeyPatch):
    """MuJoCo imported with another renderer than the one that works is an error that says so."""
    metaworld._library.cache_clear()
    monkeypatch.setattr(metaworld, "choose_renderer", lambda: "another")
    with pytest.raises(RenderError, match="MUJOCO_GL=another"):
        MetaWorldEnv("push-v3")
    metaworld._library.cache_clear()


@pytest.mark.parametrize(
    ("task", "axis", "side"),
    [("reach-v3", 0, 1), ("reach-v3", 1, -1), ("reach-v3", 2, -1), ("lever-pull-v3", 2, 1)],
)
def test_the_hand_goes_as_far_as_its_range_says(task: str, axis: int, side: int):
    """To within a centimetre of the bound and not beyond it, however long it is pushed there; and
    as many steps as the range says move the point that drags it, no more."""
    env = MetaWorldEnv(task, views=())
    env.reset(0)
    bound = env.hand_range()[side > 0][axis]
    step, start = np.zeros(4), env.state()
    step[axis] = side
    steps = round(abs(bound - start[axis]) / 0.01)
    assert steps > 5
    dragged = [env._sim.data.mocap_pos[0, axis]]
    for _ in range(steps + 20):
        env.step(step)
        dragged.append(env._sim.data.mocap_pos[0, axis])
    moved = np.abs(np.diff(dragged))
    np.testing.assert_allclose(moved[: steps - 1], 0.01)
    np.testing.assert_array_equal(moved[steps + 1 :], 0.0)
    assert env.state()[axis] == pytest.approx(bound, abs=0.01)


def test_the_range_of_the_hand_is_the_tasks_own():
    """Some tasks let it below the table; none is asked before its episode."""
    ranges = {}
    for task in ("reach-v3", "faucet-open-v3"):
        env = MetaWorldEnv(task, views=())
        with pytest.raises(InputError, match="has not begun"):
            env.hand_range()
        env.reset(0)
        ranges[task] = env.hand_range()
        sim = env._sim
        np.testing.assert_allclose(np.diff(ranges[task], axis=0)[0], sim.hand_high - sim.hand_low)
    assert ranges["faucet-open-v3"][0][2] == pytest.approx(ranges["reach-v3"][0][2] - 0.2, abs=1e-3)
