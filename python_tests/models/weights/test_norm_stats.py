"""openpi's statistics give openpi's own numbers, and damaged ones are named.

``golden/processing`` is written by ``make_golden_processing.py`` with openpi's own transforms.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlakern.errors import CheckpointError, ConfigError
from vlakern.models.weights.norm_stats import delta_mask, find_norm_stats, read_norm_stats
from vlakern.space import ActionSpace, Embodiment, Field, Normalizer, slot_map
from vlakern.space.normalize import Mode

GOLDEN = Path(__file__).parent / "golden" / "processing"
CASE = json.loads((GOLDEN / "cases.json").read_text())["openpi"]
SLOTS = slot_map("pad-32")
NAMES = SLOTS.names()


@pytest.mark.parametrize("mode", ["zscore", "quantile"])
def test_numbers_are_openpis(mode: Mode) -> None:
    """States, commands, and commands that are deltas on all numbers but the gripper."""
    stats = read_norm_stats(find_norm_stats(GOLDEN / "openpi"), mode, NAMES, NAMES)
    both = Normalizer("state", mode, stats[0], "openpi"), Normalizer("x", mode, stats[1], "openpi")
    fields = (Field("vector", (0, 7)),)
    robot = Embodiment("arm", SLOTS.name, 10.0, ("top",), 7, 7, fields, fields)
    state, chunks = np.array(CASE["state"]), torch.tensor(CASE["chunks"])
    for relative, key in (((), "commands"), (delta_mask(6, -1), "absolute")):
        space = ActionSpace(robot, SLOTS, SLOTS, "native", *both, relative)
        seen = space.encode_state(state, np.float64)[:, :7]
        np.testing.assert_allclose(seen, CASE[mode]["normalised"], rtol=1e-12, atol=1e-12)
        commands = space.decode(chunks, state)
        np.testing.assert_allclose(commands, CASE[mode][key], rtol=2e-6, atol=2e-6)


def test_masks_are_openpis() -> None:
    """Runs of numbers that are deltas, and of those that are not."""
    assert delta_mask(2, -2, 2) == (0, 1, 4, 5)
    assert delta_mask(6, -1, 6, -1) == (*range(6), *range(7, 13))


def test_which_robots(tmp_path: Path) -> None:
    """One is found, of several one is asked for, and none leads out of the checkpoint."""
    with pytest.raises(CheckpointError, match=r"norm_stats.json is missing; copy the checkpoint"):
        find_norm_stats(tmp_path)
    for name in ("a", "b/c"):
        (tmp_path / "assets" / name).mkdir(parents=True)
        (tmp_path / "assets" / name / "norm_stats.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has statistics of a, b/c, expected one"):
        find_norm_stats(tmp_path)
    assert find_norm_stats(tmp_path, "b/c").parent.name == "c"
    for wrong in ("../../x", "/etc", "d"):
        with pytest.raises(CheckpointError, match=r"expected one inside|is missing"):
            find_norm_stats(tmp_path, wrong)


GOOD = {"mean": [0.0], "std": [1.0], "q01": [0.0], "q99": [1.0]}


@pytest.mark.parametrize(
    ("content", "mode", "sentence"),
    [
        ({}, "zscore", "norm_stats.json: key 'norm_stats' is missing"),
        ({"norm_stats": {"state": GOOD}}, "zscore", "norm_stats.actions is missing, there are st"),
        (
            {"state": {"mean": [0.0]}},
            "zscore",
            "norm_stats.state.std is missing, the normalisation",
        ),
        ({"state": GOOD | {"q01": None}}, "quantile", r"norm_stats.state.q01 is missing"),
        ({"state": GOOD | {"std": [float("nan")]}}, "zscore", r"norm_stats.json .* NaN is not a n"),
        ({"state": GOOD | {"std": [None]}}, "zscore", r"state.std is '\[None\]', expected a list"),
        (
            {"state": GOOD | {"std": [-1.0]}},
            "zscore",
            r"state.std\[0\] is -1, expected a deviation",
        ),
        ({"state": GOOD | {"mean": "abc"}}, "zscore", "state.mean is 'abc', expected a list"),
        ({"state": GOOD | {"q99": [-1.0]}}, "quantile", r"q01\[0\] is 0 and q99\[0\] is -1, exp"),
        ({"state": GOOD | {"std": [1.0, 2.0]}}, "zscore", "lists of one length expected"),
        ({"state": {k: v * 33 for k, v in GOOD.items()}}, "zscore", "has 33 numbers, .* the 32"),
        ({"state": GOOD}, "sigmoid", "no normalisation 'sigmoid'; use one of zscore"),
    ],
)
def test_damaged_statistics_are_named(
    content: dict[str, Any], mode: Any, sentence: str, tmp_path: Path
) -> None:
    """One sentence: the file, the field, what was expected."""
    if content and "norm_stats" not in content:
        content = {"norm_stats": {"actions": GOOD, **content}}
    path = tmp_path / "norm_stats.json"
    path.write_text(json.dumps(content))
    with pytest.raises((CheckpointError, ConfigError), match=sentence):
        read_norm_stats(path, mode, NAMES, NAMES)


def test_a_number_that_never_moves_is_no_error(tmp_path: Path) -> None:
    """openpi divides by 1e-6 there; the value itself becomes -1."""
    path = tmp_path / "norm_stats.json"
    still = GOOD | {"q01": [0.5], "q99": [0.5]}
    path.write_text(json.dumps({"norm_stats": {"state": still, "actions": still}}))
    stats, _ = read_norm_stats(path, "quantile", NAMES, NAMES)
    row = np.zeros(32)
    row[0] = 0.5
    assert Normalizer("state", "quantile", stats, "openpi").encode(row)[0] == -1.0
