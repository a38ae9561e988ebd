"""The study file: what is read, and one sentence for everything that is wrong."""

import dataclasses
import re
from pathlib import Path

import pytest

from vlakern.blind.results import Analysis
from vlakern.blind.study import Breaks, PoolModel, Study, Task, read_study
from vlakern.errors import ConfigError

TEXT = """
title = "Frames"
group_size = 2
trials = 4
[[models]]
name = "one"
policy = "metaworld-small"
[[models]]
name = "two"
policy = "metaworld-small"
steps = 1
[[models]]
name = "three"
policy = "metaworld-small"
drop_views = ["corner"]
[[models]]
name = "four"
policy = "metaworld-small"
dtype = "int8"
[[tasks]]
name = "reach"
criterion = "the hand is at the ball"
conditions = ["0", "1"]
"""


def study(tmp_path: Path, old: str = "", new: str = "") -> Study:
    assert old in TEXT
    path = tmp_path / "study.toml"
    path.write_text(TEXT.replace(old, new, 1) if old else TEXT)
    return read_study(path)


def test_a_study_is_read_with_defaults(tmp_path: Path) -> None:
    """Four models in pairs: two groups, 16 trials, a 5 % level, breaks."""
    found = study(tmp_path)
    assert found.group_sizes == (2, 2)
    assert found.total == 16
    assert found.analysis.alpha == 0.05
    assert found.breaks.every == 20


def test_a_bridge_is_in_every_group(tmp_path: Path) -> None:
    """Three others beside a bridge in pairs make three groups of two."""
    found = study(tmp_path, "trials = 4", 'trials = 4\nbridge = "one"')
    assert found.group_sizes == (2, 2, 2)
    assert found.total == 24


def test_policies_are_found_from_the_file(tmp_path: Path) -> None:
    """A directory beside the study file is meant by its relative name."""
    (tmp_path / "mine").mkdir()
    found = study(tmp_path, '"metaworld-small"', '"mine"')
    assert Path(found.models[0].policy) == (tmp_path / "mine").resolve()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("group_size = 2", "group_size = 5", "the pool has 4 models; expected 2 to 4"),
        ("group_size = 2", "group_size = 1", "expected 2 to 4"),
        ("group_size = 2", "group_size = 3", None),
        ("trials = 4", "trials = 0", "trials is 0"),
        ("trials = 4", 'trials = 4\nbridge = "five"', "bridge 'five' is none of the models"),
        ("trials = 4", "trials = 4\njudges = 3", "judges is 3"),
        ("trials = 4", "trials = 4\ntrails = 4", "unknown key 'trails'"),
        ("trials = 4", "trials = 1000000", "expected 1 to"),
        ("trials = 4", "trials = 4000", "more than"),
        ("trials = 4", "trials = 4\nfailure_tags = []", "failure tag"),
        ("trials = 4", "trials = 4\ndeadline_ms = 0", "deadline_ms is 0"),
        ('name = "two"', 'name = "one"', "model 'one' stands there twice"),
        ('name = "two"', 'name = " "', "needs a name"),
        ('name = "two"', 'name = "two"\nnickname = "blue"', "give all or none"),
        ("steps = 1", "steps = 0", "steps of 'two' is 0"),
        ('conditions = ["0", "1"]', "conditions = []", "has no initial condition"),
        ('conditions = ["0", "1"]', 'conditions = ["0", "0"]', "stands there twice"),
        ('conditions = ["0", "1"]', 'conditions = ["0"]\nseconds = -1.0', "seconds of task"),
        ("[[tasks]]", "[analysis]\nalpha = 0.9\n[[tasks]]", "analysis.alpha is 0.9"),
        ("[[tasks]]", '[analysis]\npairs = [["one", "six"]]\n[[tasks]]', "analysis.pairs"),
        ("[[tasks]]", "[breaks]\nevery = 0\n[[tasks]]", "breaks.every is 0"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, sentence: str | None) -> None:
    """A wrong study is refused in one sentence; four models in threes are two pairs instead."""
    if sentence is None:
        assert study(tmp_path, old, new).group_sizes == (2, 2)
        return
    with pytest.raises(ConfigError, match=sentence) as found:
        study(tmp_path, old, new)
    assert "\n" not in str(found.value)


def test_a_lonely_model_is_refused(tmp_path: Path) -> None:
    """Three models in pairs would leave one alone, who would then be known."""
    three = TEXT.replace(
        '[[models]]\nname = "four"\npolicy = "metaworld-small"\ndtype = "int8"', ""
    )
    path = tmp_path / "study.toml"
    path.write_text(three)
    with pytest.raises(ConfigError, match="alone"):
        read_study(path)


def test_the_example_shows_every_key() -> None:
    """It is read, and no key of the file is missing from it, set or as a comment."""
    path = Path(__file__).parents[2] / "examples" / "blind_study.toml"
    assert read_study(path).group_sizes == (3, 3)
    text = path.read_text()
    for kind in (Study, Breaks, Analysis, PoolModel, Task):
        for one in dataclasses.fields(kind):
            assert re.search(rf"^(# )?(\[+)?{one.name}(\]+| = )", text, re.MULTILINE), one.name
