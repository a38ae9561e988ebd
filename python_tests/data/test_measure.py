"""Statistics are of what was read, and damaged episodes are refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlakern.data import measure as measuring
from vlakern.data.corpus import open_corpus
from vlakern.data.lerobot import LeRobotDataset
from vlakern.data.mixture import Mixture, single
from vlakern.data.survey import survey
from vlakern.errors import DatasetError
from vlakern.models import preset
from vlakern.models.weights import Processing

TINY = preset("tiny")
RELATIVE = Processing("zscore", "zscore", execute=2, frame="world_relative")
NATIVE = Processing("zscore", "zscore", execute=2)


def test_large_datasets_are_measured_at_even_distances(
    robots: Path, monkeypatch: pytest.MonkeyPatch, mixture: Callable[..., Mixture]
) -> None:
    """Every second episode where there are twice as many frames as enough, and it is said."""
    monkeypatch.setattr(measuring, "MEASURED", 14)
    corpus = open_corpus(mixture(robots, "sawyer", "panda"), TINY, RELATIVE, memory=0)
    assert corpus.measured.state.level("metaworld_sawyer").rows == 12 + 9
    assert set(corpus.measured.words[0]) == {0, 2}
    assert corpus.measured.sampled[0] == (
        "sawyer: statistics and words are those of 2 of 3 episodes, one in 2: 21 of 28 frames"
    )
    told = survey(mixture(robots, "sawyer", "panda"), "world_relative", 6, 0)
    assert told.sampled == tuple(corpus.measured.sampled)


def test_a_damaged_episode_among_few_is_refused_and_named(
    robots: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]
) -> None:
    """More than 0.1 % of the frames, whether its vectors or its pictures are damaged."""
    for name in ("episode", "frames"):
        whole = getattr(LeRobotDataset, name)

        def damaged(self: LeRobotDataset, i: int, *rest: Any, whole: Any = whole) -> Any:
            if i == 1:
                raise DatasetError(f"{self.root}: row 3 of episode 1 is damaged")
            return whole(self, i, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(LeRobotDataset, name, damaged)
            refused(
                lambda: open_corpus(single(robots / "sawyer"), TINY, NATIVE),
                DatasetError,
                "dataset 'sawyer': 7 of 28 frames are in damaged episodes, more than 0.1%; the"
                " first is sawyer/1: .*row 3",
            )
