"""From averaged weights to the policy of each robot, and what makes two runs the same."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vlakern.data.corpus import Corpus, open_corpus
from vlakern.data.lerobot import LeRobotWriter
from vlakern.data.mixture import DatasetEntry, Mixture, single
from vlakern.errors import CheckpointError
from vlakern.models import VLA, preset
from vlakern.models.weights import Processing, read
from vlakern.train import Recipe, TrainConfig
from vlakern.train.policy import check_targets, identity, targets, write_policies

PROCESSING = Processing("none", "none", execute=2, frame="world_delta")
RECIPE = Recipe("tiny", TrainConfig(steps=2), PROCESSING)


def record(root: Path, robot: str, state: int, action: int, seed: int = 0) -> Path:
    """One short episode of noise."""
    draw = np.random.default_rng(seed)
    names = [f"s{i}" for i in range(state)], [f"a{i}" for i in range(action)]
    kinds = {"state_names": names[0], "action_names": names[1], "robot_type": robot}
    with LeRobotWriter(root, fps=10, views={"left": (32, 32)}, **kinds) as writer:
        frames = {"left": draw.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)}
        states = draw.normal(size=(8, state)).astype(np.float32)
        writer.add_episode(frames, states, draw.normal(size=(8, action)).astype(np.float32), "push")
    return root


@pytest.fixture(scope="module")
def panda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("one") / "panda", "libero_panda", 8, 7)


@pytest.fixture(scope="module")
def two(panda: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two robots in one map."""
    sawyer = record(tmp_path_factory.mktemp("two") / "sawyer", "metaworld_sawyer", 4, 4)
    entries = (DatasetEntry("panda", str(panda)), DatasetEntry("sawyer", str(sawyer)))
    mixture = Mixture("two", entries, slot_map="unified-200")
    return open_corpus(mixture, preset("tiny"), PROCESSING)


def one(path: Path) -> Corpus:
    return open_corpus(single(path), preset("tiny"), PROCESSING)


def test_one_robot_is_the_directory_itself(panda: Path, tmp_path: Path) -> None:
    """Its weights, rounded, and its records."""
    corpus = one(panda)
    assert targets(corpus, tmp_path / "out") == [tmp_path / "out"]
    torch.manual_seed(0)
    weights = VLA(corpus.config).state_dict()
    write_policies(corpus, tmp_path / "out", weights)
    files = read(tmp_path / "out")
    assert files.embodiment == corpus.embodiments[0]
    found = files.model.state_dict()
    assert all(torch.equal(found[name], weights[name].bfloat16().float()) for name in weights)


def test_each_of_several_robots_has_its_own(two: Corpus, tmp_path: Path) -> None:
    """Below the directory by name; something else there is refused before the work."""
    out = tmp_path / "out"
    assert [path.name for path in targets(two, out)] == ["libero_panda", "metaworld_sawyer"]
    write_policies(two, out, VLA(two.config).state_dict())
    for robot, path in zip(two.embodiments, targets(two, out), strict=True):
        assert read(path).embodiment == robot
    check_targets(two, out)
    shutil.rmtree(out / "libero_panda")
    (out / "libero_panda").mkdir()
    (out / "libero_panda/thesis.tex").write_text("")
    with pytest.raises(CheckpointError, match="libero_panda exists and is not a policy"):
        check_targets(two, out)


def test_what_decides_the_result_is_compared(panda: Path, tmp_path: Path) -> None:
    """Moved data are the same data; another seed, field, number or episode is another run."""
    first = identity(one(panda), RECIPE, 0)
    shutil.copytree(panda, tmp_path / "moved/panda")
    assert identity(one(tmp_path / "moved/panda"), RECIPE, 0) == first
    assert identity(one(panda), RECIPE, 1) != first
    longer = dataclasses.replace(RECIPE, train=TrainConfig(steps=3))
    assert identity(one(panda), longer, 0) != first
    other = record(tmp_path / "panda", "libero_panda", 8, 7, seed=1)
    found = identity(one(other), RECIPE, 0)
    assert found["records"] != first["records"]
    assert found["data"] == first["data"]
