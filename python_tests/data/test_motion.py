"""Steps that are declared as poses are found, and poses declared as steps, in every frame."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vlakern.data import motion
from vlakern.data.mixture import single
from vlakern.data.motion import growth, looks_like, motion_flags
from vlakern.data.recording import Recording
from vlakern.data.unify import open_recordings
from vlakern.space import Frame

FRAMES = get_args(Frame)
LENGTH, H = 60, 16
Poses = tuple[np.ndarray, Rotation]


def moves(seed: int) -> Poses:
    """A smooth path of a hand that turns: metres and rotations, LENGTH + 1 of them."""
    rng = np.random.default_rng(seed)
    times = np.linspace(0, 1, LENGTH + 1)[:, None]
    waves = (np.sin(2 * np.pi * (k * times * 0.7 + rng.random(6))) / k for k in (1, 2, 3))
    path = sum(wave * rng.uniform(0.05, 0.15, 6) for wave in waves)
    assert isinstance(path, np.ndarray)
    return path[:, :3] + (0.4, 0.1, 0.3), Rotation.from_rotvec(2 * path[:, 3:] + (2.0, 0.5, 0.0))


def panda(path: Poses, steps: bool) -> tuple[np.ndarray, np.ndarray]:
    """Franka's numbers, declared absolute: the next pose, or by mistake the step to it."""
    p, r = path
    state = np.concatenate([p, r.as_quat(), np.zeros((LENGTH + 1, 8))], 1)[:-1]
    goal = (p[1:], r[1:])
    if steps:
        goal = (p[1:] - p[:-1], r[1:] * r[:-1].inv())
    return state, np.concatenate([goal[0], goal[1].as_quat(), np.zeros((LENGTH, 1))], 1)


def libero(path: Poses, poses: bool) -> tuple[np.ndarray, np.ndarray]:
    """LIBERO's numbers, declared as steps: those, or by mistake the next pose."""
    p, r = path
    state = np.concatenate([p, r.as_rotvec(), np.zeros((LENGTH + 1, 2))], 1)[:-1]
    goal = ((p[1:] - p[:-1]) / 0.05, (r[1:] * r[:-1].inv()).as_rotvec() / 0.5)
    if poses:
        goal = (p[1:], r[1:].as_rotvec())
    return state, np.concatenate([*goal, np.zeros((LENGTH, 1))], 1)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, collect: Callable[..., Path]) -> Path:
    """Both robots, right and wrong."""
    root = tmp_path_factory.mktemp("motion")
    for name, robot, widths, make, wrong in (
        ("panda-right", "franka_panda", (15, 8), panda, False),
        ("panda-wrong", "franka_panda", (15, 8), panda, True),
        ("libero-right", "libero_panda", (8, 7), libero, False),
        ("libero-wrong", "libero_panda", (8, 7), libero, True),
    ):
        vectors = [make(moves(seed), wrong) for seed in range(4)]
        collect(root / name, robot, widths, ("front",), [LENGTH] * 4, vectors=vectors)
    return root


def opened(sets: Path, name: str, frame: Any) -> Recording:
    return open_recordings(single(sets / name), frame, 0, H)[0]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", ["panda-right", "libero-right"])
def test_what_is_as_declared_is_not_flagged(sets: Path, name: str, frame: Frame) -> None:
    """In no frame."""
    assert motion_flags(opened(sets, name, frame), H) == []


@pytest.mark.parametrize("frame", FRAMES)
def test_steps_declared_as_poses_are_flagged(sets: Path, frame: Frame) -> None:
    """By the recorded numbers in every frame, by the statistics where it is relative."""
    flags = motion_flags(opened(sets, "panda-wrong", frame), H)
    assert "declared as absolute poses by robot 'franka_panda', but look like steps" in flags[0]
    relative = [flag for flag in flags if f"declared {frame}, but looks like deltas" in flag]
    assert len(relative) == frame.endswith("relative")


@pytest.mark.parametrize("frame", ["native", *FRAMES])
def test_poses_declared_as_steps_are_flagged(sets: Path, frame: Any) -> None:
    """The reverse, and with native numbers too."""
    flags = motion_flags(opened(sets, "libero-wrong", frame), H)
    assert "declared as steps (deltas) by robot 'libero_panda', but look like absolute" in flags[0]


@pytest.mark.parametrize("frame", FRAMES)
def test_the_growth_of_a_chunk_is_held_against_its_frame(
    sets: Path, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat is wrong for a relative frame, growing for a delta frame; between them is neither."""
    recording = opened(sets, "panda-right", frame)
    found = {}
    for value in (-0.5, 0.0, 0.2, 0.5, 1.0):
        monkeypatch.setattr(motion, "growth", lambda *rest, value=value: value)
        found[value] = motion_flags(recording, H)
    wrong = {value for value, flags in found.items() if flags}
    assert wrong == ({-0.5, 0.0} if frame.endswith("relative") else {0.5, 1.0})
    word = "looks like deltas" if frame.endswith("relative") else "looks relative"
    assert all(word in found[value][0] for value in wrong)


def test_growth_is_1_for_steady_motion_half_for_a_walk_and_0_for_deltas() -> None:
    """Steps that do not exist do not count; what does not move has none."""
    rng = np.random.default_rng(0)
    speeds = rng.normal(size=(500, 1, 3))
    steady = speeds * np.arange(1, H + 1)[:, None]
    walk = rng.normal(size=(500, H, 3)).cumsum(1)
    all_valid = np.ones((500, H), bool)
    assert growth(steady, all_valid) == pytest.approx(1.0)
    assert growth(walk, all_valid) == pytest.approx(0.5, abs=0.05)
    assert growth(rng.normal(size=(500, H, 3)), all_valid) == pytest.approx(0.0, abs=0.05)
    cut = all_valid.copy()
    cut[:400, 8:] = False
    wild = steady.copy()
    wild[:400, 8:] = 1e6
    assert growth(wild, cut) == pytest.approx(1.0, abs=0.1)
    assert growth(np.zeros((5, H, 3)), np.ones((5, H), bool)) is None
    assert growth(steady[:, :3], all_valid[:, :3]) is None


@pytest.mark.parametrize("frame", FRAMES)
def test_recorded_numbers_of_each_frame_are_told_apart(frame: Frame) -> None:
    """Relative to the episode's start they follow the positions, as deltas their running sum."""
    numbers, positions, rotations = [], [], []
    for seed in range(3):
        p, r = moves(seed)
        delta = frame.endswith("delta")
        step = p[1:] - (p[:-1] if delta else p[0])
        base = r[:-1] if delta else r[0]
        x = base.inv().apply(step) if frame.startswith("eef") else step
        numbers.append(np.concatenate([x, x[-1:]])[:LENGTH])
        positions.append(p[:-1])
        rotations.append(r[:-1].as_matrix())
    expected = "steps" if frame.endswith("delta") else "poses"
    assert looks_like(numbers, positions, rotations) == expected


def approach(seed: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """A P controller's steps, and positions of a hand that is slowly pushed about meanwhile."""
    rng = np.random.default_rng(seed)
    p, goal, push = rng.normal(size=3), rng.normal(size=3), np.zeros(3)
    steps, positions = [], []
    for _ in range(LENGTH):
        positions.append(p)
        steps.append(np.clip(gain * (goal - p), -1, 1))
        push = 0.9 * push + rng.normal(scale=0.03, size=3)
        p = p + 0.1 * steps[-1] + push
    return np.array(steps), np.array(positions)


@pytest.mark.parametrize("gain", [0.4, 0.5])
def test_steps_towards_a_goal_are_not_called_poses(gain: float) -> None:
    """They fit positions, too, turned round; the same numbers forward are poses."""
    numbers, positions = zip(*(approach(i, gain) for i in range(5)), strict=True)
    assert looks_like(numbers, positions) != "poses"
    half_turn = Rotation.from_euler("z", 180, degrees=True)
    reached = [half_turn.apply(p[1:]) for p in positions]
    assert looks_like(reached, [p[:-1] for p in positions]) == "poses"


def test_noise_and_standing_still_are_neither() -> None:
    """No flag without evidence; episodes too short to tell are none."""
    rng = np.random.default_rng(0)
    noise, still = [rng.normal(size=(60, 3))], [np.zeros((60, 3))]
    assert looks_like(noise, [rng.normal(size=(60, 3))]) is None
    assert looks_like(noise, still) is None
    short = [moves(0)[0][:8]]
    assert looks_like(short, short) is None
