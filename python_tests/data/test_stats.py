"""Statistics are exact: equal to numpy's over all values at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlakern.data.stats import QUANTILES, PictureStats, vector_stats
from vlakern.errors import InputError


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
