"""A survey counts frames, shares and slots as they are, and says what looks odd."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vlakern.data.mixture import DatasetEntry, Mixture
from vlakern.data.survey import Survey, survey
from vlakern.errors import DatasetError


@pytest.fixture(scope="module")
def found(robots: Path) -> Survey:
    """Three robots in two groups, one dataset left out."""
    entries = (
        DatasetEntry("sawyer", str(robots / "sawyer"), group="eef", stride=2),
        DatasetEntry("panda", str(robots / "panda"), group="eef"),
        DatasetEntry("so100", str(robots / "so100"), group="joint"),
        DatasetEntry("gone", str(robots / "gone"), weight=0.0),
    )
    return survey(Mixture("m", entries), "world_relative", 6, 0)


def test_frames_and_shares(found: Survey) -> None:
    """Raw, effective, and what each dataset and group gets; all of it adds up."""
    rows = {row.name: row for row in found.rows}
    assert [(row.raw, row.effective) for row in found.rows] == [(28, 14), (32, 32), (18, 18)]
    assert rows["sawyer"].share == pytest.approx(14 / 64)
    assert found.groups == pytest.approx({"eef": 46 / 64, "joint": 18 / 64})
    assert (rows["sawyer"].rate, rows["so100"].rate) == (10.0, 30.0)
    assert rows["sawyer"].span == pytest.approx(0.6)
    assert found.left_out == ("gone",)


def test_slots_are_counted_by_share_and_missing_ones_named(found: Survey) -> None:
    """The gripper is everybody's, joints are one robot's."""
    assert found.slots["right_gripper"] == pytest.approx(1.0)
    assert found.slots["right_eef_position"] == pytest.approx(46 / 64)
    assert found.slots["right_arm_joints"] == pytest.approx(18 / 64)
    assert found.missing == {
        "sawyer": ("right_eef_rotation", "right_arm_joints"),
        "panda": ("right_arm_joints",),
        "so100": ("right_eef_position", "right_eef_rotation"),
    }


def test_ranges_are_of_present_slots_after_the_transform(found: Survey) -> None:
    """Joints in radians, as the model sees them."""
    assert set(found.ranges) == {"metaworld_sawyer", "libero_panda", "so100"}
    arm = found.ranges["so100"]["action"]
    assert len(arm) == 6
    assert abs(arm["right_arm_joints.0"]["max"]) < np.radians(1.0)
    assert found.to_json()["ranges"]["so100"]["action"] == arm


def test_short_episodes_stillness_and_outliers_are_flagged(
    tmp_path: Path, collect: Callable[..., Path]
) -> None:
    """Each by name; a dataset without them has no flag."""
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(2, 300, 4))
    entry = DatasetEntry("a", str(tmp_path / "a"))
    collect(tmp_path / "a", lengths=[300], vectors=[(states, actions)])
    assert survey(Mixture("m", (entry,)), "native", 8, 0).flags == ()
    states[5, 3], actions[:, 1] = 5000.0, 0.25
    collect(
        tmp_path / "b", lengths=[300, 5], vectors=[(states, actions), (states[:5], actions[:5])]
    )
    entry = DatasetEntry("b", str(tmp_path / "b"))
    flags = survey(Mixture("m", (entry,)), "native", 8, 0).flags
    assert any(f.startswith("b: 1 episodes have fewer steps than a chunk") for f in flags)
    assert any("action never moves in right_eef_position.1" in f for f in flags)
    assert any("state right_gripper goes from" in f and "outliers" in f for f in flags)


def test_what_cannot_be_opened_is_refused_by_name(tmp_path: Path) -> None:
    """As training would."""
    entry = DatasetEntry("gone", str(tmp_path / "gone"))
    with pytest.raises(DatasetError, match="mixture 'm', dataset 'gone'"):
        survey(Mixture("m", (entry,)), "native", 8, 0)


def test_a_video_that_ends_early_is_flagged(tmp_path: Path, collect: Callable[..., Path]) -> None:
    """Before a training refuses its frames one by one."""
    root = collect(tmp_path / "a", lengths=[40, 40])
    entry = DatasetEntry("a", str(root))
    assert not any(
        "cannot be read" in f for f in survey(Mixture("m", (entry,)), "native", 8, 0).flags
    )
    video = next(iter(sorted(root.rglob("*.mp4"))))
    video.write_bytes(video.read_bytes()[:3000])
    flags = survey(Mixture("m", (entry,)), "native", 8, 0).flags
    said = [flag for flag in flags if "cannot be read" in flag]
    assert len(said) == 1
    assert said[0].startswith("a: view ")
    assert video.name in said[0]


def test_a_feature_that_no_file_holds_is_flagged(
    tmp_path: Path, collect: Callable[..., Path]
) -> None:
    """By name; the features of a whole dataset are all there."""
    root = collect(tmp_path / "a", lengths=[40])
    mixture = Mixture("m", (DatasetEntry("a", str(root)),))
    assert not [flag for flag in survey(mixture, "native", 8, 0).flags if "declares" in flag]
    info = root / "meta/info.json"
    fields = json.loads(info.read_text())
    fields["features"]["observation.force"] = {"dtype": "float32", "shape": [6], "names": None}
    info.write_text(json.dumps(fields))
    (said,) = [flag for flag in survey(mixture, "native", 8, 0).flags if "declares" in flag]
    assert said == (
        "a: meta/info.json declares the feature observation.force, which no data file holds; write"
        " it, or remove it from meta/info.json"
    )
