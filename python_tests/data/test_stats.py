"""Statistics equal numpy's over all values at once, however the rows arrived."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlakern.data.sketch import EXACT
from vlakern.data.stats import ABSENT, QUANTILES, PictureStats, SlotStats, vector_stats
from vlakern.errors import ConfigError, InputError
from vlakern.space.normalize import Normalizer, VectorStats

NAMES = ("hand_x", "hand_y", "gripper", "joint")


def test_vector_stats(seed: int):
    """Every statistic equals its definition."""
    rows = np.random.default_rng(seed).normal(2.0, 3.0, (101, 5)).astype(np.float32)
    stats = vector_stats(rows)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(stats["mean"], wide.sum(0) / 101, rtol=1e-12)
    np.testing.assert_allclose(stats["std"] ** 2, ((wide - stats["mean"]) ** 2).sum(0) / 101)
    np.testing.assert_array_equal(stats["min"], wide.min(0))
    np.testing.assert_array_equal(stats["max"], wide.max(0))
    np.testing.assert_allclose(stats["q50"], np.sort(wide, axis=0)[50])
    np.testing.assert_allclose(stats["q01"], np.sort(wide, axis=0)[1])
    np.testing.assert_allclose(stats["q99"], np.sort(wide, axis=0)[99])
    assert stats["count"].tolist() == [101]


@pytest.mark.parametrize(
    "rows", [np.zeros((0, 3)), np.zeros(3), np.array([[np.nan]]), np.array([[np.inf]])]
)
def test_bad_rows(rows: np.ndarray):
    """No rows, no columns, no numbers: refused."""
    with pytest.raises(InputError, match="statistics need"):
        vector_stats(rows)


@given(st.integers(1, 7), st.integers(0, 2**32 - 1), st.integers(1, 256))
def test_picture_stats(frames: int, number: int, levels: int):
    """Frames added in two parts give numpy's statistics of all pixels."""
    random = np.random.default_rng(number)
    pictures = random.integers(0, levels, (frames, 3, 2, 3), dtype=np.uint8)
    stats = PictureStats()
    stats.add(pictures[: frames // 2])
    stats.add(pictures[frames // 2 :])
    found = stats.result()
    pixels = pictures.reshape(-1, 3) / 255.0
    expected = {
        "mean": pixels.mean(0),
        "std": pixels.std(0),
        "min": pixels.min(0),
        "max": pixels.max(0),
        **{name: np.quantile(pixels, q, axis=0) for name, q in QUANTILES.items()},
    }
    for name, value in expected.items():
        assert found[name].shape == (3, 1, 1)
        np.testing.assert_allclose(found[name].ravel(), value, atol=1e-7, err_msg=name)
    assert found["count"].tolist() == [frames]


def test_bad_pictures():
    """Only uint8 [T, H, W, 3] counts, and something must have been counted."""
    with pytest.raises(InputError, match="expected uint8"):
        PictureStats().add(np.zeros((1, 2, 2, 3)))
    with pytest.raises(InputError, match="expected uint8"):
        PictureStats().add(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(InputError, match="at least one"):
        PictureStats().result()


def rows_of(count: int, seed: int) -> np.ndarray:
    """A far mean, a small one, two values and a constant."""
    random = np.random.default_rng(seed)
    x = random.normal((1e4, -0.01, 0.0, 0.0), (0.1, 2.0, 1.0, 0.0), (count, 4))
    x[:, 2] = np.where(x[:, 2] > 0, 0.04, 0.0)
    x[:, 3] = 0.7
    return x


def stats_of(parts: list[np.ndarray], masks: list[np.ndarray] | None = None) -> SlotStats:
    found = SlotStats(NAMES)
    for i, part in enumerate(parts):
        found.add(part, masks[i] if masks else None)
    return found


@pytest.mark.parametrize("count", [1, 2, 500, EXACT, 5 * EXACT + 3])
def test_slots_equal_numpy(count: int, seed: int):
    """Moments to 1e-12 of the largest number, extremes exactly, quantiles as the sketch says."""
    x = rows_of(count, seed)
    found, expected = stats_of(np.array_split(x, 5)).summary(), vector_stats(x)
    size = np.abs(x).max(axis=0)
    for name in ("mean", "std"):
        assert (np.abs(found[name] - expected[name]) <= 1e-12 * size).all(), name
    for name in ("min", "max"):
        np.testing.assert_array_equal(found[name], expected[name])
    for name in QUANTILES:
        bound = 0.0 if count <= EXACT else 2.0**-10
        np.testing.assert_allclose(found[name], expected[name], rtol=bound, atol=bound * 1e-2)
    assert found["count"].tolist() == [count] * 4
    assert (found["mean"][3], found["std"][3]) == (0.7, 0.0)


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 900), min_size=1, max_size=6),
    st.booleans(),
)
def test_slots_do_not_depend_on_order(seed: int, sizes: list[int], per_row: bool):
    """Any partition, order and tree of merges: moments to 1e-12, all else the same bits."""
    random = np.random.default_rng(seed)
    x = rows_of(sum(sizes) + 1, seed)
    mask = random.random((len(x), 4)) < 0.6 if per_row else np.ones((len(x), 4), dtype=bool)
    cuts = np.cumsum(sizes)
    parts, masks = np.split(x, cuts), np.split(mask, cuts)
    one = stats_of([x], [mask]).summary()
    left, right = stats_of(parts[::2], masks[::2]), stats_of(parts[1::2], masks[1::2])
    right.merge(left)
    size = np.abs(x).max(axis=0)
    for found in (right.summary(), stats_of(parts[::-1], masks[::-1]).summary()):
        for name, value in one.items():
            bound = 1e-12 * size if name in ("mean", "std") else 0.0
            assert (np.abs(found[name] - value) <= bound).all(), name
    assert (left.rows, right.rows) == (sum(map(len, parts[::2])), len(x))


def test_only_present_slots_count(seed: int):
    """What stands elsewhere may even be NaN; a slot that no row had gets placeholders."""
    x = rows_of(50, seed)
    mask = np.ones((50, 4), dtype=bool)
    mask[10:, 1] = False
    mask[:, 2] = False
    x[~mask] = np.nan
    found = stats_of([x], [mask])
    assert found.rows == 50
    assert found.count.tolist() == [50, 10, 0, 50]
    summary, expected = found.summary(), vector_stats(x[:10, :2])
    np.testing.assert_allclose(summary["q10"][1], expected["q10"][1])
    np.testing.assert_allclose(summary["mean"][1], expected["mean"][1])
    assert {name: summary[name][2] for name in ABSENT} == ABSENT
    same = stats_of([x[:10], x[10:]], [np.array([True, True, False, True]), mask[10:]])
    np.testing.assert_array_equal(same.summary()["q99"], summary["q99"])


def test_result_feeds_a_normaliser(seed: int):
    """With names and presence; presence is left out where every slot has rows."""
    x = rows_of(200, seed)
    found = stats_of([x]).result()
    assert isinstance(found, VectorStats)
    assert (found.names, found.present) == (NAMES, ())
    modes = ("zscore", "quantile", "binary", "none")
    code = Normalizer("state", modes, found).encode(x)
    assert abs(code[:, 0].mean()) < 1e-5
    assert abs(code[:, 0].std() - 1) < 1e-5
    assert 0.97 <= (np.abs(code[:, 1]) <= 1).mean() <= 0.99
    assert set(code[:, 2]) == {-1.0, 1.0}
    part = stats_of([x], [np.array([True, False, True, True])]).result()
    assert part.present == (True, False, True, True)
    assert (part.mean[1], part.std[1], part.min[1], part.max[1]) == (0.0, 1.0, -1.0, 1.0)
    assert (part.q01[1], part.q99[1]) == (-1.0, 1.0)


def test_statistics_come_after_the_frame_transform(seed: int):
    """A turned hand: the quantiles of the transformed rows are not the transformed quantiles."""
    random = np.random.default_rng(seed)
    world = random.normal(0.0, (0.3, 0.01), (1000, 2))
    angle = random.uniform(-np.pi, np.pi, 1000)
    cos, sin = np.cos(angle), np.sin(angle)
    hand = np.stack([cos * world[:, 0] + sin * world[:, 1], cos * world[:, 1] - sin * world[:, 0]])
    names = NAMES[:2]
    before, after = SlotStats(names), SlotStats(names)
    before.add(world)
    after.add(hand.T)
    right = Normalizer("action", "quantile", after.result()).encode(hand.T)
    wrong = Normalizer("action", "quantile", before.result()).encode(hand.T)
    assert (np.abs(right) <= 1).mean() > 0.97
    assert np.abs(wrong[:, 1]).max() > 10


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_names_its_slot(value: float):
    """And nothing of it is counted."""
    found, x = SlotStats(NAMES), np.zeros((3, 4))
    x[1, 2] = value
    with pytest.raises(InputError, match=r"slot 2 \(gripper\) is not finite in row 1"):
        found.add(x)
    assert (found.rows, found.count.tolist()) == (0, [0, 0, 0, 0])


@pytest.mark.parametrize(
    ("rows", "present", "sentence"),
    [
        (np.zeros((2, 3)), None, r"rows are \(2, 3\), expected \[N, 4\]"),
        (np.zeros(4), None, r"rows are \(4,\)"),
        (np.zeros((2, 4)), np.ones(4), "presence is float64"),
        (np.zeros((2, 4)), np.ones((3, 4), dtype=bool), r"presence is bool \(3, 4\)"),
        (np.zeros((2, 4)), np.ones(2, dtype=bool), r"presence is bool \(2,\)"),
    ],
)
def test_bad_slot_rows(rows: np.ndarray, present: np.ndarray | None, sentence: str):
    """Another width, rank, or presence of another shape or type."""
    with pytest.raises(InputError, match=sentence):
        SlotStats(NAMES).add(rows, present)


def test_statistics_that_cannot_be():
    """Without names, without rows, of other slots, or beyond float64."""
    for names in ((), ("a", "a")):
        with pytest.raises(InputError, match="slots with different names"):
            SlotStats(names)
    with pytest.raises(InputError, match="at least one row"):
        SlotStats(NAMES).result()
    with pytest.raises(ConfigError, match=r"merging statistics: slot 1 .* 'b', expected 'hand_y'"):
        SlotStats(NAMES).merge(SlotStats(("hand_x", "b", "gripper", "joint")))
    found = SlotStats(NAMES)
    found.add(np.array([[0.0, 1e308, 0.0, 0.0], [0.0, -1e308, 0.0, 0.0]]))
    with pytest.raises(InputError, match="slot hand_y has numbers too large"):
        found.result()


def test_recording_needs_no_torch():
    """The writer of datasets imports this module in every process that simulates."""
    code = "import sys, vlakern.data.lerobot_writer\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
