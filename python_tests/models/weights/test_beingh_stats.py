"""Being-H's statistics give its own numbers, and a part that is missing is named.

``golden/processing`` is written by ``make_golden_processing.py`` with Being-H's own normaliser.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from vlakern.errors import CheckpointError, ConfigError
from vlakern.models.weights.beingh_stats import MODES, read_metadata, unified_stats
from vlakern.space import Normalizer, slot_map

GOLDEN = Path(__file__).parent / "golden" / "processing"
CASE = json.loads((GOLDEN / "cases.json").read_text())["beingh"]
SLOTS = slot_map("unified-200")
STATISTICS = {"state": {"eef_position": CASE["statistics"]}}
RANGES = {"eef_position": (0, 3)}


@pytest.mark.parametrize("mode", MODES)
def test_numbers_are_beinghs(mode: str) -> None:
    """Clipped quantiles, what never moved, and a threshold; both ways."""
    stats = unified_stats(STATISTICS, "state", RANGES, {"eef_position": mode}, SLOTS, "file")
    assert sum(stats.present) == 3
    rule = Normalizer("state", MODES[mode], stats, "beingh")
    rows = np.zeros((6, 200))
    rows[:, :3] = CASE["x"]
    rows[:, 7] = 5.0
    encoded, decoded = rule.encode(rows, np.float64), rule.decode(rows, np.float64)
    np.testing.assert_allclose(encoded[:, :3], CASE[mode]["encoded"], rtol=0, atol=2e-7)
    np.testing.assert_allclose(decoded[:, :3], CASE[mode]["decoded"], rtol=0, atol=2e-7)
    assert (encoded[:, 7] == 5.0).all()


def test_without_normalisation_numbers_stay() -> None:
    """As in the released configurations: a part without a mode needs no statistics."""
    stats = unified_stats({}, "state", RANGES, {}, SLOTS, "file")
    assert stats.present[:4] == (True, True, True, False)


def write(folder: Path, content: object) -> None:
    (folder / "libero_metadata.json").write_text(json.dumps(content))


def test_variants(tmp_path: Path) -> None:
    """The first of them, one by name, or all together."""
    made = {name: {"statistics": {"of": name}} for name in ("merged", "first", "second")}
    variants = {name: made[name] for name in ("first", "second")}
    write(tmp_path, {"libero": made["merged"], "libero_variants": variants})
    for asked, found in ((None, "first"), ("second", "second"), ("merged", "merged")):
        assert read_metadata(tmp_path, "libero", asked) == {"of": found}
    with pytest.raises(ConfigError, match=r"no variant 'third'; use merged or first, second"):
        read_metadata(tmp_path, "libero", "third")


def test_wrong_files_are_named(tmp_path: Path) -> None:
    """No file, another dataset, no statistics, an unknown mode, a part too short or missing."""
    with pytest.raises(CheckpointError, match=r"libero_metadata.json is missing"):
        read_metadata(tmp_path, "libero")
    with pytest.raises(CheckpointError, match=r"expected one inside"):
        read_metadata(tmp_path, "../libero")
    write(tmp_path, {"robocasa": {}})
    with pytest.raises(ConfigError, match=r"key 'libero' is missing; found robocasa"):
        read_metadata(tmp_path, "libero")
    write(tmp_path, {"libero": {}})
    with pytest.raises(ConfigError, match=r"key 'statistics' of 'libero' is missing"):
        read_metadata(tmp_path, "libero")
    for statistics, mode, sentence in (
        (STATISTICS, "scale", "state.eef_position has the normalisation 'scale', expected one of"),
        ({"state": {}}, "q99", "file: statistics.state.eef_position is missing; q99 needs it"),
        (
            {"state": {"eef_position": {"q01": [0.0], "q99": [1.0]}}},
            "q99",
            r"eef_position has 1 numbers, expected the 3 of \[0, 3\)",
        ),
    ):
        with pytest.raises(ConfigError, match=sentence):
            unified_stats(statistics, "state", RANGES, {"eef_position": mode}, SLOTS, "file")
