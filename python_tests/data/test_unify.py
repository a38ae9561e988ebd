"""Robots share one slot map and one unit per slot, or are refused by dataset and slot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlakern.data.collate import Augment
from vlakern.data.corpus import open_corpus
from vlakern.data.dataset import open_dataset
from vlakern.data.mixture import DatasetEntry, Mixture
from vlakern.data.sampler import Sample
from vlakern.errors import ConfigError
from vlakern.models import preset
from vlakern.models.weights import Processing
from vlakern.space import Rotation

TINY = preset("tiny")
RELATIVE = Processing("zscore", "zscore", execute=2, frame="world_relative")
NATIVE = Processing("zscore", "zscore", execute=2)


def test_an_arm_of_joints_takes_part_in_a_frame_in_the_units_of_its_slots(
    robots: Path, mixture: Callable[..., Mixture], clip_batch: Callable[..., Any]
) -> None:
    """Degrees become radians and its gripper 0 to 1, like every other robot's."""
    corpus = open_corpus(mixture(robots, "panda", "so100"), TINY, RELATIVE)
    episode = open_dataset(robots / "so100").episode(1)
    clip = corpus.clip(Sample(1, 1, 0), 0, Augment(), np.random.default_rng(0))
    np.testing.assert_allclose(clip.state[:5], np.radians(episode.states[0, :5]), rtol=1e-5)
    np.testing.assert_allclose(clip.chunk[0, 5], episode.actions[0, 5] / 100, rtol=1e-5)
    records = corpus.records(1)
    assert (records.processing.frame, corpus.records(0).processing.frame) == (
        "native",
        "world_relative",
    )
    assert not any(field.degrees or field.closed for field in records.embodiment.action)
    batch = clip_batch(corpus, [Sample(0, 0, 0), Sample(1, 0, 0)])
    assert batch.slots_BA[1].nonzero().flatten().tolist() == [18, 50, 51, 52, 53, 54]


def test_weight_0_everywhere_is_refused(robots: Path, refused: Callable[..., None]) -> None:
    """Before a dataset is opened."""
    entry = DatasetEntry("set", str(robots / "gone"), weight=0.0)
    sentence = "mixture 'm': weight is 0 for every dataset"
    refused(lambda: open_corpus(Mixture("m", (entry,)), TINY, NATIVE), ConfigError, sentence)


def test_two_units_of_one_slot_are_refused(
    robots: Path,
    tmp_path: Path,
    collect: Callable[..., Path],
    mixture: Callable[..., Mixture],
    refused: Callable[..., None],
) -> None:
    """Native numbers of different controllers, and robots whose own maps differ."""
    refused(
        lambda: open_corpus(mixture(robots, "sawyer", "panda"), TINY, NATIVE),
        ConfigError,
        "action slot 'right_eef_position' is steps world_delta of 0.01 per number in dataset"
        " 'sawyer' and steps .* of 0.05 per number in dataset 'panda'; a slot has one unit",
    )
    numbers = (["x [m]", "y"], ["go [m]"])
    collect(tmp_path / "one", "mine", (2, 1), names=numbers)
    collect(tmp_path / "two", "mine", (2, 1), names=(["x [m]", "y [rad]"], ["go [m]"]))
    collect(tmp_path / "three", "other", (2, 1), names=(["x [m]", "z"], ["go [m]"]))
    refused(
        lambda: open_corpus(mixture(tmp_path, "one", "two"), TINY, NATIVE),
        ConfigError,
        "state slot 'y' is in unit '1' in dataset 'one' and in unit 'rad' in dataset 'two'",
    )
    refused(
        lambda: open_corpus(mixture(tmp_path, "one", "three"), TINY, NATIVE),
        ConfigError,
        "dataset 'one' fills slot map 'mine' and dataset 'three' 'other'; name one map",
    )


def test_a_named_map_must_have_the_robots_slots(
    robots: Path, mixture: Callable[..., Mixture], refused: Callable[..., None]
) -> None:
    """In the same unit."""
    build = mixture(robots, "sawyer", "panda", slot_map="pad-32")
    refused(
        lambda: open_corpus(build, TINY, RELATIVE),
        ConfigError,
        "mixture 'm', dataset 'sawyer': .*slot 'right_eef_position' is not in slot map 'pad-32'",
    )
    found = open_corpus(mixture(robots, "sawyer", slot_map="unified-200"), TINY, RELATIVE, memory=0)
    assert found.config.action_dim == 200


def test_a_named_map_may_have_rotations_of_another_kind(
    robots: Path, mixture: Callable[..., Mixture]
) -> None:
    """The same rotation in other numbers: six for the three of the robot's own map."""
    own, six = (
        open_corpus(mixture(robots, "panda", slot_map=name), TINY, RELATIVE, memory=0)
        for name in ("unified-200", "unified-200-6d")
    )
    states = own.recordings[0].episode(0).states
    plain = [corpus.recordings[0].body.plain_space().unify_state(states) for corpus in (own, six)]
    turns = Rotation.read(torch.from_numpy(plain[0][:, 3:6].astype(np.float64)), "axis_angle")
    np.testing.assert_allclose(plain[1][:, 3:9], turns.write("rotation_6d").numpy(), atol=1e-5)
    np.testing.assert_array_equal(plain[1][:, :3], plain[0][:, :3])
    np.testing.assert_array_equal(plain[1][:, 9:], plain[0][:, 9:])


def test_a_frame_that_no_robot_has_is_refused(robots: Path, refused: Callable[..., None]) -> None:
    """Joints alone have no poses to be relative."""
    for names in (("so100",), ("so100", "again")):
        entries = tuple(DatasetEntry(name, str(robots / "so100")) for name in names)
        refused(
            lambda entries=entries: open_corpus(Mixture("m", entries), TINY, RELATIVE),
            ConfigError,
            "frame world_relative needs a slot of kind position",
        )
