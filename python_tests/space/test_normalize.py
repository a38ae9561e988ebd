"""Normalisation has an exact inverse, known images of its statistics, and names bad slots."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlakern.errors import ConfigError, InputError
from vlakern.space import Normalizer, VectorStats
from vlakern.space.normalize import Mode

STATS = VectorStats(
    mean=(1.0, -2.0, 0.5),
    std=(0.5, 4.0, 0.0),
    min=(0.0, -10.0, 0.5),
    max=(3.0, 6.0, 0.5),
    q01=(0.1, -8.0, 0.5),
    q99=(2.1, 5.0, 0.5),
)
MODES: tuple[Mode, ...] = ("zscore", "quantile", "min_max", "none")
EVERY = pytest.mark.parametrize("mode", MODES)
ROW = st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3)


@EVERY
@given(rows=st.lists(ROW, min_size=1, max_size=4))
def test_decode_undoes_encode(mode: Mode, rows: list[list[float]]) -> None:
    """Within the roundings of fp32, also for a slot that never moved in the dataset."""
    normalizer, x = Normalizer("state", mode, STATS), np.array(rows, np.float32)
    back = normalizer.decode(normalizer.encode(x))
    assert back.dtype == np.float32
    # Three roundings: of the code, of its product with the scale and of the sum with the offset.
    np.testing.assert_allclose(back, x, rtol=0, atol=4 * 2.0**-24 * 120)


@pytest.mark.parametrize(
    ("mode", "names", "image"),
    [
        ("zscore", ("mean",), (0.0,)),
        ("quantile", ("q01", "q99"), (-1.0, 1.0)),
        ("min_max", ("min", "max"), (-1.0, 1.0)),
    ],
)
def test_statistics_have_known_images(mode: Mode, names: list[str], image: list[float]) -> None:
    """The mean goes to 0; quantiles and extremes to -1 and 1; one std to one."""
    normalizer = Normalizer("state", mode, STATS)
    for name, value in zip(names, image, strict=True):
        code = normalizer.encode(np.array(getattr(STATS, name)))
        np.testing.assert_allclose(code[:2], value, atol=1e-6)
    if mode == "zscore":
        above = np.array(STATS.mean) + np.array(STATS.std)
        np.testing.assert_allclose(normalizer.encode(above)[:2], 1.0, atol=1e-6)


@EVERY
def test_a_slot_that_never_moved_has_a_finite_code(mode: Mode) -> None:
    """Its scale of zero is replaced; its own value becomes 0 (or stays, without normalisation)."""
    code = Normalizer("state", mode, STATS).encode(np.array([0.0, 0.0, 0.5]))
    assert code[2] == (0.5 if mode == "none" else 0.0)
    assert np.isfinite(code).all()


def test_without_normalisation_nothing_changes() -> None:
    """Both ways are the identity."""
    x = np.array([[1.5, -3.0, 0.1]], np.float32)
    normalizer = Normalizer("state", "none", STATS)
    assert np.array_equal(normalizer.encode(x), x)
    assert np.array_equal(normalizer.decode(x), x)


@pytest.mark.parametrize("shape", [(2,), (4,), (5, 2), (3, 1), ()])
def test_another_width_is_refused(shape: tuple[int, ...]) -> None:
    """Also where numpy would broadcast it."""
    normalizer, x = Normalizer("state", "zscore", STATS), np.zeros(shape)
    for call in (normalizer.encode, normalizer.decode):
        with pytest.raises(InputError, match=r"state has \d slots, expected 3"):
            call(x)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_names_its_slot(value: float) -> None:
    """In the second of two rows, slot 2."""
    x = np.zeros((2, 3), np.float32)
    x[1, 2] = value
    for call in (
        Normalizer("action", "zscore", STATS).encode,
        Normalizer("a", "none", STATS).decode,
    ):
        with pytest.raises(InputError, match="slot 2 is not finite"):
            call(x)


def test_a_number_that_leaves_fp32_names_its_slot() -> None:
    """Finite before, it must not become infinite unseen."""
    x = np.array([0.0, 0.0, 3e38])
    with pytest.raises(InputError, match="state slot 2 is too large"):
        Normalizer("state", "zscore", STATS).encode(x)


def test_an_unknown_mode_is_refused() -> None:
    """A misspelt name does not become another mode."""
    mode: Any = "z-score"
    with pytest.raises(ConfigError, match="state: no normalisation 'z-score'; use one of zscore"):
        Normalizer("state", mode, STATS)


def test_statistics_survive_json() -> None:
    """Written as text and read again they are equal."""
    text = json.dumps(STATS.to_json())
    assert VectorStats.from_json(json.loads(text), "stats") == STATS


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("mean", ..., r"stats\.json\.state\.mean: expected a list of finite numbers"),
        ("q99", None, r"stats\.json\.state\.q99: expected a list"),
        ("std", [1.0, 2.0, math.nan], r"stats\.json\.state\.std: expected a list of finite"),
        ("std", [1.0, 2.0, 10**400], r"stats\.json\.state\.std: expected a list of finite"),
        ("min", [1.0, 2.0, True], r"stats\.json\.state\.min: expected a list of finite"),
        ("max", "123", r"stats\.json\.state\.max: expected a list of finite"),
        ("max", [1.0, 2.0], r"stats\.json\.state: lists of one length expected"),
    ],
)
def test_damaged_statistics_are_named(key: str, value: Any, sentence: str) -> None:
    """Missing, of another type or length, or not finite."""
    values: dict[str, Any] = STATS.to_json()
    if value is ...:
        del values[key]
    else:
        values[key] = value
    with pytest.raises(ConfigError, match=sentence):
        VectorStats.from_json(values, "stats.json.state")


@pytest.mark.parametrize("values", [None, [], 3])
def test_statistics_are_an_object(values: Any) -> None:
    """Any other JSON value is refused."""
    with pytest.raises(ConfigError, match="stats: expected an object with mean, std"):
        VectorStats.from_json(values, "stats")
