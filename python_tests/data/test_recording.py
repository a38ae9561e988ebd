"""A dataset of a mixture: its views, words, rate and pictures, and what it may lack."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlakern.data.collate import Augment
from vlakern.data.corpus import Corpus, open_corpus
from vlakern.data.dataset import open_dataset
from vlakern.data.lerobot import LeRobotDataset
from vlakern.data.mixture import DatasetEntry, Mixture, single
from vlakern.data.sampler import Sample
from vlakern.errors import ConfigError, DatasetError
from vlakern.models import preset
from vlakern.models.weights import Processing

TINY = preset("tiny")
RELATIVE = Processing("zscore", "zscore", execute=2, frame="world_relative")
NATIVE = Processing("zscore", "zscore", execute=2)


def test_memory_and_disk_give_the_same_samples(
    robots: Path, mixture: Callable[..., Mixture], clip_batch: Callable[..., Any]
) -> None:
    """A budget takes the smallest first, and says what it did."""
    names = ("sawyer", "panda")
    memory = (12 + 7 + 9) * 2 * 28 * 28 * 3
    corpora = [
        open_corpus(mixture(robots, *names), TINY, RELATIVE, memory=size)
        for size in (1 << 30, memory, 0)
    ]
    assert [[one.in_memory for one in corpus.recordings] for corpus in corpora] == [
        [True, True],
        [True, False],
        [False, False],
    ]
    assert corpora[1].placement[0].endswith("in memory")
    assert corpora[1].placement[1].endswith("read from disk frame by frame")
    samples = [Sample(0, 2, 8), Sample(1, 0, 15), Sample(1, 1, 0)]
    whole, *others = (clip_batch(corpus, samples) for corpus in corpora)
    for other in others:
        assert torch.equal(whole.prefix.pixels_V3SS, other.prefix.pixels_V3SS)
        assert torch.equal(whole.action_BHA, other.action_BHA)
        assert torch.equal(whole.prefix.state_RS, other.prefix.state_RS)


def test_views_are_chosen_renamed_and_ordered(robots: Path) -> None:
    """Those the mixture names, under its names."""
    entry = DatasetEntry("panda", str(robots / "panda"), views={"wrist": "hand", "agent": "main"})
    corpus = open_corpus(Mixture("m", (entry,)), TINY, NATIVE)
    assert corpus.embodiments[0].views == ("hand", "main")
    clip = corpus.clip(Sample(0, 1, 2), 0, Augment(), np.random.default_rng(0))
    dataset = open_dataset(robots / "panda")
    np.testing.assert_array_equal(clip.pictures[0], dataset.picture(1, "wrist", 2))
    np.testing.assert_array_equal(clip.pictures[1], dataset.picture(1, "agent", 2))


def test_instructions_come_from_the_fields_that_are_named(
    robots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every field equally often; without fields it is the task."""
    episode = LeRobotDataset.episode

    def with_more(self: LeRobotDataset, i: int) -> Any:
        found = episode(self, i)
        return dataclasses.replace(found, instructions={"task": found.task, "long": "do it now"})

    monkeypatch.setattr(LeRobotDataset, "episode", with_more)
    entry = DatasetEntry("a", str(robots / "sawyer"), instructions=("task", "long"))
    corpus = open_corpus(Mixture("m", (entry,)), TINY, NATIVE)
    words = Counter(
        corpus.clip(Sample(0, 0, 0), i, Augment(), np.random.default_rng(i)).words
        for i in range(200)
    )
    assert words.keys() == {"push", "do it now"}
    assert 70 < words["push"] < 130
    plain = open_corpus(single(robots / "sawyer"), TINY, NATIVE)
    assert plain.clip(Sample(0, 0, 0), 0, Augment(), np.random.default_rng(0)).words == "push"


def test_a_dropped_view_is_not_decoded(robots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From disk, only what stays is read."""
    corpus = open_corpus(single(robots / "sawyer"), TINY, NATIVE, memory=0)
    read: list[str] = []
    picture = LeRobotDataset.picture

    def counting(self: LeRobotDataset, i: int, view: str, frame: int) -> np.ndarray:
        read.append(view)
        return picture(self, i, view, frame)

    monkeypatch.setattr(LeRobotDataset, "picture", counting)
    for i in range(40):
        clip = corpus.clip(Sample(0, 0, 1), i, Augment(drop_view=0.5), np.random.default_rng(i))
        assert len(clip.pictures) == len(read) > 0
        read.clear()


def test_a_rate_becomes_a_stride(robots: Path) -> None:
    """The dataset's own, or the mixture's."""
    entries = (
        DatasetEntry("sawyer", str(robots / "sawyer"), target_rate=5.0),
        DatasetEntry("panda", str(robots / "panda")),
    )
    corpus = open_corpus(Mixture("m", entries, target_rate=10.0), TINY, RELATIVE, memory=0)
    assert [one.body.stride for one in corpus.recordings] == [4, 2]
    assert [one.control_rate for one in corpus.embodiments] == [5.0, 10.0]


def test_what_a_dataset_lacks_is_named(robots: Path, refused: Callable[..., None]) -> None:
    """Files, rate, views, instruction fields, a robot, a map, and short episodes if they count."""

    def build(**more: Any) -> Callable[[], Corpus]:
        settings = {"path": str(robots / "sawyer"), **more}
        entry = DatasetEntry("set", **settings)
        whole = Mixture("m", (entry,), short_episodes="refuse")
        return lambda: open_corpus(whole, TINY, NATIVE)

    at = "^mixture 'm', dataset 'set': "
    refused(build(path=str(robots / "gone")), DatasetError, at + ".*gone")
    refused(build(rate=30.0), DatasetError, at + ".*sawyer has fps 20, the mixture says rate 30")
    refused(build(views={"top": "a"}), ConfigError, at + "views names 'top'.* it has left, right")
    refused(build(instructions=("goal",)), ConfigError, at + "instructions names the field 'goal'")
    refused(build(embodiment="nobody"), ConfigError, at + "no embodiment 'nobody'")
    refused(build(embodiment="libero_panda"), DatasetError, at + ".*has 4 numbers, robot libero")
    refused(build(options={"nonsense": 1}), ConfigError, at + ".*takes no option 'nonsense'")
    long = dataclasses.replace(TINY, chunk=8)
    short = Mixture("m", (DatasetEntry("set", str(robots / "sawyer")),), short_episodes="refuse")
    refused(
        lambda: open_corpus(short, long, NATIVE),
        DatasetError,
        at + r".*episode 1 has 7 frames, 7 steps at stride 1, a chunk has 8.*short_episodes",
    )
    assert open_corpus(dataclasses.replace(short, short_episodes="mask"), long, NATIVE, memory=0)
