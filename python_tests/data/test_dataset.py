"""The door to datasets of any kind: what is there is recognised, what is not is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlakern.data.dataset import Dataset, open_dataset
from vlakern.data.lerobot import LeRobotDataset, LeRobotWriter
from vlakern.errors import ConfigError, DatasetError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    names: dict[str, Any] = {"state_names": ("x",), "action_names": ("dx",)}
    with LeRobotWriter(tmp_path / "set", fps=20, views={}, robot_type="arm", **names) as out:
        for length in (4, 2):
            out.add_episode({}, np.ones((length, 1), "f4"), np.ones((length, 1), "f4"), "push")
    return tmp_path / "set"


def test_lerobot_is_recognised(root: Path):
    """A directory with meta/info.json is LeRobot's, and is what the protocol says."""
    dataset = open_dataset(root)
    assert isinstance(dataset, LeRobotDataset)
    assert isinstance(dataset, Dataset)
    assert list(dataset.lengths) == [4, 2]
    assert dataset.episode(1).instructions == {"task": "push"}


def test_nothing_to_open(tmp_path: Path):
    """A directory without a dataset says what was looked for."""
    with pytest.raises(DatasetError, match=r"neither meta/info\.json.*hdf5.*features\.json"):
        open_dataset(tmp_path)
    (tmp_path / "set/1.0.0").mkdir(parents=True)
    (tmp_path / "set/1.0.0/features.json").touch()
    with pytest.raises(DatasetError, match=r"\(RLDS\); did you mean set/1\.0\.0\?"):
        open_dataset(tmp_path / "set")
    with pytest.raises(DatasetError, match="gone is no dataset"):
        open_dataset(tmp_path / "gone")


def test_wrong_words(root: Path):
    """Unknown kinds and options are named, with what there is."""
    with pytest.raises(ConfigError, match="'zarr'"):
        open_dataset(root, kind="zarr")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="lerobot dataset takes no option 'speed'"):
        open_dataset(root, speed=3)
    with pytest.raises(ConfigError, match="option state is 3, expected a name or a list of names"):
        open_dataset(root, state=3)
