"""Several robots become one corpus, or are refused by dataset and field."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlakern.data.corpus import Corpus, open_corpus
from vlakern.data.dataset import open_dataset
from vlakern.data.mixture import DatasetEntry, Group, Mixture, single
from vlakern.data.sampler import Sample
from vlakern.errors import ConfigError
from vlakern.models import preset
from vlakern.models.processing import ImageRule, PromptRule
from vlakern.models.weights import Processing

TINY = preset("tiny")
RELATIVE = Processing("zscore", "zscore", execute=2, frame="world_relative")
NATIVE = Processing("zscore", "zscore", execute=2)


@pytest.fixture(scope="module")
def both(robots: Path, mixture: Callable[..., Mixture]) -> Corpus:
    """Two arms in the map that their records name."""
    return open_corpus(mixture(robots, "sawyer", "panda"), TINY, RELATIVE)


def test_two_robots_train_in_the_map_that_both_name(
    both: Corpus, robots: Path, clip_batch: Callable[..., Any]
) -> None:
    """The model is as wide; each sample has its robot's slots, words, pictures and numbers."""
    assert (both.config.state_dim, both.config.action_dim) == (200, 200)
    assert [one.name for one in both.embodiments] == ["metaworld_sawyer", "libero_panda"]
    batch = clip_batch(both, [Sample(0, 1, 2), Sample(1, 0, 3)])
    assert batch.robots_B.tolist() == [0, 1]
    assert batch.numbers_B.tolist() == [0, 1]
    assert batch.sample_ids == ("sawyer/1/2", "panda/0/3")
    filled = [row.nonzero().flatten().tolist() for row in batch.slots_BA]
    assert filled == [[0, 1, 2, 18], [0, 1, 2, 3, 4, 5, 18]]
    assert batch.mask_BHA[0, :, 0].tolist() == [1.0] * 5 + [0.0]
    assert batch.view_rows.tolist() == [0, 0, 1, 1]
    found = open_dataset(robots / "panda").frames(0, "wrist")[3]
    pixels = ((batch.prefix.pixels_V3SS[3] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels, found)


def test_each_robot_is_normalised_by_its_own_statistics(both: Corpus, robots: Path) -> None:
    """States of a robot have mean 0 and deviation 1; a policy directory of each can be written."""
    for robot, name in enumerate(("sawyer", "panda")):
        dataset = open_dataset(robots / name)
        states = np.concatenate([dataset.episode(i).states for i in range(3)])
        records = both.records(robot)
        encoded = records.space.encode_state(states)[:, :3]
        np.testing.assert_allclose(encoded.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(encoded.std(0), 1, atol=1e-5)
        assert records.embodiment.views == tuple(dataset.views)
        assert records.config.action_dim == 200
    assert {key for key in both.measured.state.known() if key[1]} == {
        ("metaworld_sawyer", "sawyer"),
        ("libero_panda", "panda"),
    }


def test_all_robots_may_share_statistics(robots: Path, mixture: Callable[..., Mixture]) -> None:
    """As a robot that was held out needs them."""
    found = open_corpus(
        mixture(robots, "sawyer", "panda", statistics="all"), TINY, RELATIVE, memory=0
    )
    one, other = found.records(0), found.records(1)
    assert one.action_stats == other.action_stats
    assert one.state_stats.mean[0] == other.state_stats.mean[0]


def test_one_robot_is_as_compact_as_before(robots: Path) -> None:
    """The vectors of a dataset of its own, and tasks drawn equally often."""
    corpus = open_corpus(single(robots / "sawyer"), TINY, NATIVE)
    assert (corpus.config.state_dim, corpus.state_map.name) == (4, "unified-200/metaworld_sawyer")
    sampler = corpus.sampler(0)
    drawn = Counter(sampler.sample(i).episode for i in range(400))
    assert abs(drawn[1] - 200) <= 1
    assert corpus.records().embodiment.control_rate == 20.0


def test_weights_decide_the_shares(robots: Path) -> None:
    """A dataset of weight 0 is not even opened."""
    entries = (
        DatasetEntry("sawyer", str(robots / "sawyer"), group="x"),
        DatasetEntry("gone", str(robots / "gone"), group="x", weight=0.0),
        DatasetEntry("panda", str(robots / "panda"), group="y"),
    )
    groups = (Group("x", weight=3.0), Group("y"))
    corpus = open_corpus(
        Mixture("m", entries, groups, weights="explicit"), TINY, RELATIVE, memory=0
    )
    assert corpus.shares == pytest.approx((0.75, 0.25))
    assert [row.name for row in corpus.frames.rows] == ["sawyer", "panda"]


def test_rules_that_training_does_not_follow_are_refused(robots: Path) -> None:
    """Images or prompts of other families: the policy would see in training what it never sees."""
    for rule in ({"image": ImageRule("stretch")}, {"prompt": PromptRule(ending="\n")}):
        with pytest.raises(ConfigError, match="rules for images or prompts"):
            open_corpus(single(robots / "sawyer"), TINY, replace(NATIVE, **rule))
