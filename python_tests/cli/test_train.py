"""``vlakern train``: from a dataset to a policy that loads, and what it says when it cannot."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import vlakern
from vlakern.cli import main
from vlakern.data.lerobot import LeRobotWriter

SIDE, FRAMES = 96, 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short episodes of noise in the shape that ``metaworld-small`` takes."""
    root = tmp_path_factory.mktemp("data") / "noise"
    random = np.random.default_rng(0)
    writer = LeRobotWriter(
        root,
        fps=80.0,
        views={"left": (SIDE, SIDE), "right": (SIDE, SIDE)},
        state_names=("x [m]", "y [m]", "z [m]", "grip"),
        action_names=("dx", "dy", "dz", "effort"),
        robot_type="noise_arm",
    )
    with writer:
        for task in ("push the puck", "open the drawer"):
            images = {
                view: random.integers(0, 255, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
                for view in ("left", "right")
            }
            vectors = random.normal(size=(2, FRAMES, 4)).astype(np.float32)
            writer.add_episode(images, vectors[0], vectors[1], task)
    return root


def run(*words: str | Path) -> int:
    """The command line's exit code."""
    return main(["train", *map(str, words)])


def test_two_steps_leave_a_policy_that_acts(dataset: Path, tmp_path: Path) -> None:
    """The directory loads, knows its embodiment, and the log and report say what happened."""
    out, report = tmp_path / "policy", tmp_path / "train.json"
    words = ("--steps", "2", "--batch-size", "2", "--json", report)
    assert run("--data", dataset, "--out", out, *words) == 0
    policy = vlakern.load(out)
    assert policy.views == ("left", "right")
    assert policy.control_rate == 80.0
    images = {view: np.zeros((SIDE, SIDE, 3), np.uint8) for view in policy.views}
    observation = vlakern.Observation(images, np.zeros(4, np.float32), "push the puck")
    assert policy.act(observation, seed=0).actions.shape == (policy.chunk, 4)
    slots = json.loads((out / "config.json").read_text())["state_map"]["slots"]
    assert [slot["unit"] for slot in slots] == ["m", "m", "m", "1"]
    summary = json.loads(report.read_text())["train"]
    assert (summary["steps"], summary["samples"]) == (2, 4)
    rows = (tmp_path / "policy.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["train"]["steps"] == 2


def test_a_robot_and_a_frame_are_named(dataset: Path, tmp_path: Path) -> None:
    """The policy speaks in commands of that robot, and its chunks are relative to the hand."""
    out = tmp_path / "policy"
    words = ("--steps", "1", "--batch-size", "2", "--save-every", "0")
    named = ("--embodiment", "metaworld_sawyer", "--frame", "world_relative", "--stride", "4")
    report = tmp_path / "report.json"
    assert run("--data", dataset, "--out", out, *words, *named, "--json", report) == 0
    policy = vlakern.load(out)
    assert (policy.robot.name, policy.frame) == ("metaworld_sawyer", "world_relative")
    assert policy.control_rate == 20.0
    frames = json.loads(report.read_text())["frames"]["datasets"][0]
    assert (frames["raw_frames"], frames["effective_frames"]) == (24, 6)
    images = {view: np.zeros((SIDE, SIDE, 3), np.uint8) for view in policy.views}
    here, far = np.zeros(4, np.float32), np.array([50, 0, 0, 0], np.float32)
    seen = vlakern.Observation(images, here, "push the puck")
    x = policy.space.encode(policy.act(seen, seed=0).actions, here)
    moved = policy.space.decode(torch.from_numpy(x)[None], far[None])[0]
    np.testing.assert_allclose(moved[:, 0] - policy.act(seen, seed=0).actions[:, 0], 50, atol=1e-3)
    assert (
        json.loads((tmp_path / "policy.jsonl").read_text().splitlines()[0])["processing"]["frame"]
        == "world_relative"
    )


def test_a_robot_of_ones_own_is_a_file(dataset: Path, tmp_path: Path) -> None:
    """With its own slot map beside it, too."""
    (tmp_path / "map.toml").write_text(
        'name = "mine"\nwidth = 4\n'
        'slots = [{ name = "tip_position", unit = "m", start = 0, stop = 3, kind = "position" },\n'
        '{ name = "claw", unit = "1", start = 3, stop = 4, kind = "gripper" }]\n'
    )
    fields = (
        '[{ slot = "tip_position", native = [0, 3] }, { slot = "claw", native = [3, 4], '
        "closed = -1.0, open = 1.0 }]"
    )
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\nslot_map = "map.toml"\ncontrol_rate = 80\nviews = ["left"]\n'
        f"state_width = 4\naction_width = 4\nstate = {fields}\naction = {fields}\n"
    )
    words = ("--steps", "1", "--batch-size", "2", "--embodiment", tmp_path / "mine.toml")
    out = tmp_path / "policy"
    assert run("--data", dataset, "--out", out, *words, "--frame", "world_delta") == 0
    policy = vlakern.load(out)
    assert (policy.robot.name, policy.robot.slot_map) == ("mine", "mine")
    assert policy.views == ("left", "right")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--embodiment", "sawyer"), "no embodiment 'sawyer'; use franka_panda"),
        (("--frame", "eef_delta"), "frame eef_delta cannot be made; name a robot with"),
        (
            ("--frame", "eef_delta", "--embodiment", "metaworld_sawyer"),
            "frame eef_delta needs slot 'right_eef_rotation' in the action",
        ),
        (("--embodiment", "libero_panda"), "has 4 numbers, robot libero_panda has 8"),
        (("--recipe", "huge"), "no recipe 'huge'; the recipes are metaworld-small"),
        (("--steps", "0"), "train.steps is 0, expected at least 1"),
        (("--batch-size", "-3"), "train.batch_size is -3"),
    ],
)
def test_a_wrong_wish_is_one_sentence(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    """It is refused before the dataset is decoded, and nothing is written."""
    assert run("--data", dataset, "--out", tmp_path / "policy", *words) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_dataset_and_an_existing_policy_are_refused(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the path and what to do."""
    assert run("--data", tmp_path / "nowhere", "--out", tmp_path / "policy") == 1
    assert "nowhere" in capsys.readouterr().err
    out = tmp_path / "kept"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    assert run("--data", dataset, "--out", out) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "mine.txt").read_text() == "keep me"


def test_nothing_of_the_users_is_overwritten(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a file where the curve goes, nor by --overwrite a directory that is no policy."""
    (tmp_path / "policy.jsonl").write_text("mine")
    assert run("--data", dataset, "--out", tmp_path / "policy") == 1
    assert "policy.jsonl exists" in capsys.readouterr().err
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("mine")
    assert run("--data", dataset, "--out", tmp_path / "thesis", "--overwrite") == 1
    said = capsys.readouterr().err
    assert "is not a policy directory" in said
    assert "decode" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.jsonl", "thesis"]
    assert (tmp_path / "policy.jsonl").read_text() == "mine"


def test_any_robot_trains_in_any_frame(tmp_path: Path) -> None:
    """A robot that a user declares: the example's file, its own widths, rate and picture size."""
    root, example = tmp_path / "mine", Path(__file__).parents[2] / "examples/my_robot.toml"
    writer = LeRobotWriter(
        root,
        fps=25.0,
        views={"front": (40, 60), "wrist": (32, 32)},
        state_names=tuple("abcdefgh"),
        action_names=tuple("abcdefgh"),
        robot_type="my_robot",
    )
    rng = np.random.default_rng(0)
    with writer:
        vectors = rng.normal(size=(12, 8)).astype(np.float32)
        vectors[:, 3:7] /= np.linalg.norm(vectors[:, 3:7], axis=1, keepdims=True)
        vectors[:, 7] = np.where(np.arange(12) < 6, 0.0, 255.0)
        sizes = {"front": (12, 40, 60, 3), "wrist": (12, 32, 32, 3)}
        images = {view: rng.integers(0, 255, size, dtype=np.uint8) for view, size in sizes.items()}
        writer.add_episode(images, vectors, vectors, "pour the tea")
    out = tmp_path / "policy"
    words = ("--steps", "1", "--batch-size", "2", "--save-every", "0", "--action-norm", "quantile")
    named = ("--embodiment", example, "--frame", "eef_relative", "--binary", "right_gripper")
    assert run("--data", root, "--out", out, *words, *named, "--stride", "2") == 0
    policy = vlakern.load(out)
    assert (policy.robot.name, policy.frame) == ("my_robot", "eef_relative")
    assert policy.control_rate == 12.5
    pictures = {view: images[view][0] for view in sizes}
    seen = vlakern.Observation(pictures, vectors[0], "pour the tea")
    chunk = policy.act(seen, seed=0).actions
    np.testing.assert_allclose(np.linalg.norm(chunk[:, 3:7], axis=1), 1.0, atol=1e-6)
    # Binary: the model's number is one of the two that the robot knows.
    assert set(chunk[:, 7].tolist()) <= {0.0, 255.0}
