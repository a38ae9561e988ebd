"""Normalisation has an exact inverse, known images of its statistics, and names bad slots."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlakern.errors import ConfigError, InputError
from vlakern.space.normalize import Epsilon, Mode, Normalizer, VectorStats, check_names

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
EPSILONS: tuple[Epsilon, ...] = ("vlakern", "openpi", "lerobot")
NAMES = ("hand_x", "hand_y", "gripper")
NAMED = dataclasses.replace(STATS, names=NAMES, max=(3.0, 6.0, 0.75), std=(0.5, 4.0, 0.1))
NUMBER = st.floats(-1e6, 1e6)


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


@st.composite
def vector_stats(draw: st.DrawFn, width: int = 4) -> VectorStats:
    """Any statistics that a dataset could have; spans from 1e-3 up, as epsilons are absolute."""
    low, q01, q99, high = (draw(st.lists(NUMBER, min_size=width, max_size=width)) for _ in "abcd")
    rows = [sorted(column) for column in zip(low, q01, q99, high, strict=True)]
    spread = [(a, b, c + 1e-3, d + 2e-3) for a, b, c, d in rows]
    low, q01, q99, high = zip(*spread, strict=True)
    std = draw(st.lists(st.floats(1e-3, 1e6), min_size=width, max_size=width))
    return VectorStats(mean=q01, std=tuple(std), min=low, max=high, q01=q01, q99=q99)


@pytest.mark.parametrize("epsilon", EPSILONS)
@given(data=st.data(), stats=vector_stats())
def test_the_inverse_is_exact_to_rounding(
    epsilon: Epsilon, data: st.DataObject, stats: VectorStats
) -> None:
    """Four roundings of the numbers involved, in float64, for any mixture of modes."""
    # LeRobot's z-score has no exact inverse, on purpose.
    choices: list[Mode] = [m for m in MODES if (epsilon, m) != ("lerobot", "zscore")]
    modes = data.draw(st.lists(st.sampled_from(choices), min_size=4, max_size=4))
    x = np.array(data.draw(st.lists(NUMBER, min_size=4, max_size=4)))
    normalizer = Normalizer("state", modes, stats, epsilon)
    back = normalizer.decode(normalizer.encode(x, np.float64), np.float64)
    offset, scale = normalizer.affine()
    bound = 4 * 2.0**-52 * (np.abs(x) + np.abs(offset) + scale)
    assert (np.abs(back - x) <= bound).all()


@pytest.mark.parametrize("epsilon", EPSILONS)
@given(stats=vector_stats(), numbers=st.lists(st.floats(-5, 5), min_size=4, max_size=4))
def test_affine_is_decode(epsilon: Epsilon, stats: VectorStats, numbers: list[float]) -> None:
    """Offset and scale are all that a fused decode needs; a binary slot is given its sign."""
    normalizer = Normalizer("a", ("zscore", "quantile", "binary", "none"), stats, epsilon)
    offset, scale = normalizer.affine()
    assert normalizer.binary.tolist() == [False, False, True, False]
    x = np.array(numbers)
    signs = np.where(normalizer.binary, np.where(x > 0, 1.0, -1.0), x)
    found = normalizer.decode(x, np.float64)
    np.testing.assert_allclose(found, signs * scale + offset, rtol=0, atol=1e-9)


def test_openpi_formulas() -> None:
    """``+ 1e-6`` in the denominator, both ways."""
    x, code = np.array([0.7, 3.0, 0.6]), np.array([0.5, -1.5, 2.0])
    stats = {key: np.array(getattr(STATS, key)) for key in ("mean", "std", "q01", "q99")}
    z = Normalizer("state", "zscore", STATS, "openpi")
    divisor = stats["std"] + 1e-6
    np.testing.assert_allclose(z.encode(x, np.float64), (x - stats["mean"]) / divisor, rtol=1e-14)
    np.testing.assert_allclose(
        z.decode(code, np.float64), code * divisor + stats["mean"], rtol=1e-14
    )
    q, span = Normalizer("state", "quantile", STATS, "openpi"), stats["q99"] - stats["q01"] + 1e-6
    np.testing.assert_allclose(
        q.encode(x, np.float64), (x - stats["q01"]) / span * 2 - 1, rtol=1e-12
    )
    np.testing.assert_allclose(
        q.decode(code, np.float64), (code + 1) / 2 * span + stats["q01"], rtol=1e-14
    )


def test_lerobot_formulas() -> None:
    """z-score divides by std + 1e-8 but multiplies by std; ranges use 1e-8 only instead of 0."""
    x, code = np.array([0.7, 3.0, 0.6]), np.array([0.5, -1.5, 2.0])
    mean, std = np.array(STATS.mean), np.array(STATS.std)
    z = Normalizer("state", "zscore", STATS, "lerobot")
    np.testing.assert_allclose(z.encode(x, np.float64), (x - mean) / (std + 1e-8), rtol=1e-14)
    np.testing.assert_array_equal(z.decode(code, np.float64), code * std + mean)
    ranges: tuple[tuple[Mode, tuple[float, ...], tuple[float, ...]], ...] = (
        ("quantile", STATS.q01, STATS.q99),
        ("min_max", STATS.min, STATS.max),
    )
    for mode, low, high in ranges:
        r, low = Normalizer("state", mode, STATS, "lerobot"), np.array(low)
        span = np.where(np.array(high) == low, 1e-8, np.array(high) - low)
        np.testing.assert_allclose(r.encode(x, np.float64), 2 * (x - low) / span - 1, rtol=1e-12)
        np.testing.assert_allclose(
            r.decode(code, np.float64), (code + 1) / 2 * span + low, rtol=1e-14
        )
        assert r.encode(low)[2] == -1.0


def test_each_slot_has_its_mode() -> None:
    """A mixture equals each mode alone."""
    modes: tuple[Mode, ...] = ("quantile", "zscore", "none")
    x = np.array([[0.7, 3.0, 0.6], [0.1, 5.0, -0.6]])
    mixed = Normalizer("state", modes, NAMED).encode(x)
    for slot, mode in enumerate(modes):
        alone = Normalizer("state", mode, NAMED).encode(x)
        np.testing.assert_array_equal(mixed[:, slot], alone[:, slot])


def test_a_binary_slot_has_two_values() -> None:
    """low and high to -1 and +1, and any number back to exactly one of them by its sign."""
    normalizer = Normalizer("action", ("none", "none", "binary"), NAMED)
    x = np.array([[9.0, 9.0, 0.5], [9.0, 9.0, 0.75]])
    assert normalizer.encode(x)[:, 2].tolist() == [-1.0, 1.0]
    assert np.array_equal(normalizer.decode(normalizer.encode(x)), x)
    code = np.array([[0.0, 0.0, value] for value in (-3.0, -1e-9, 0.0, 1e-9, 0.4)])
    assert normalizer.decode(code)[:, 2].tolist() == [0.5, 0.5, 0.5, 0.75, 0.75]


@pytest.mark.parametrize("value", [0.6, 0.4, 0.76, 0.501, -0.5])
def test_another_value_of_a_binary_slot_is_refused(value: float) -> None:
    """Between the two, outside them, or close to one; storage in half precision is close enough."""
    normalizer = Normalizer("action", ("none", "none", "binary"), NAMED)
    x = np.array([[1.0, 2.0, 0.5], [1.0, 2.0, value]])
    sentence = rf"action slot 2 \(gripper\) is {value:g}, expected 0\.5 or 0\.75"
    with pytest.raises(InputError, match=sentence):
        normalizer.encode(x)
    assert normalizer.encode(np.array([1.0, 2.0, 0.5 + 0.25 * 5e-4]))[2] == -1.0


@pytest.mark.parametrize(
    ("stats", "mode", "sentence"),
    [
        (STATS, "binary", r"slot 2 has one value \(min is max\)"),
        (
            dataclasses.replace(NAMED, std=(1.0, -1.0, 1.0)),
            "zscore",
            r"slot 1 \(hand_y\) has a neg",
        ),
        (
            dataclasses.replace(NAMED, q01=(3.0, 0.0, 0.0)),
            "quantile",
            r"slot 0 \(hand_x\) has a neg",
        ),
        (
            dataclasses.replace(NAMED, min=(0.0, 0.0, 9.0)),
            "binary",
            r"slot 2 \(gripper\) has a neg",
        ),
        (
            dataclasses.replace(NAMED, min=(-1.7e308,) * 3, max=(1.7e308,) * 3),
            "min_max",
            r"slot 0 \(hand_x\) has statistics whose range leaves float64",
        ),
    ],
)
def test_statistics_without_a_scale_are_refused(
    stats: VectorStats, mode: Mode, sentence: str
) -> None:
    """When the normaliser is made, not when it is used."""
    with pytest.raises(ConfigError, match="state " + sentence):
        Normalizer("state", mode, stats)


def test_wrong_options_are_refused() -> None:
    """As many modes as slots, and an epsilon that exists."""
    with pytest.raises(ConfigError, match="state: 2 modes for 3 slots"):
        Normalizer("state", ("none", "none"), STATS)
    other: Any = "groot"
    with pytest.raises(ConfigError, match="no epsilon 'groot'; use one of vlakern, openpi"):
        Normalizer("state", "none", STATS, other)
    with pytest.raises(ConfigError, match="no normalisation 'groot'"):
        Normalizer("state", ("none", other, "none"), STATS)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("mode", [*MODES, "binary"])
def test_an_absent_slot_stays_as_it_is(mode: Mode, epsilon: Epsilon) -> None:
    """Whatever the mode and the placeholders are."""
    stats = dataclasses.replace(NAMED, present=(True, False, True), std=(1.0, -7.0, 1.0))
    normalizer = Normalizer("state", mode, stats, epsilon)
    x = np.array([[0.0, 0.0, 0.5], [3.0, -4.25, 0.75]])
    assert normalizer.encode(x)[:, 1].tolist() == [0.0, -4.25]
    assert normalizer.decode(x)[:, 1].tolist() == [0.0, -4.25]
    offset, scale = normalizer.affine()
    assert (offset[1], scale[1], normalizer.binary[1]) == (0.0, 1.0, False)


def test_messages_name_the_slot() -> None:
    """With its index and its name."""
    normalizer = Normalizer("state", "zscore", NAMED)
    with pytest.raises(InputError, match=r"slot 1 \(hand_y\) is not finite"):
        normalizer.encode(np.array([0.0, np.nan, 0.0]))
    with pytest.raises(InputError, match=r"slot 0 \(hand_x\) is too large"):
        normalizer.encode(np.array([3e38, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("expected", "sentence"),
    [
        (("hand_x", "arm_y", "gripper"), "slot 1 of the statistics is 'hand_y', expected 'arm_y'"),
        (("hand_x", "hand_y"), "slot 2 of the statistics is 'gripper', expected no such slot"),
        ((*NAMES, "waist"), "slot 3 of the statistics is missing, expected 'waist'"),
    ],
)
def test_statistics_of_another_slot_map(expected: tuple[str, ...], sentence: str) -> None:
    """The first slot that differs is named; statistics without names have only a width."""
    NAMED.check_names(NAMES, "stats.json")
    check_names(NAMES, list(NAMES), "stats.json")
    STATS.check_names(("a", "b", "c"), "stats.json")
    with pytest.raises(ConfigError, match="stats.json: " + sentence):
        NAMED.check_names(expected, "stats.json")
    with pytest.raises(ConfigError, match=r"the statistics have 3 slots, expected 2 \(a, b\)"):
        STATS.check_names(("a", "b"), "stats.json")


def test_names_and_presence_survive_json() -> None:
    """And their absence too."""
    stats = dataclasses.replace(NAMED, present=(True, False, True))
    text = json.dumps(stats.to_json())
    assert VectorStats.from_json(json.loads(text), "stats") == stats
    assert set(STATS.to_json()) == {"mean", "std", "min", "max", "q01", "q99"}


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("names", ["a", "b"], r"stats\.names: expected 3 of them, found 2"),
        ("names", ["a", "b", "a"], r"stats\.names: two slots are called 'a'"),
        ("names", ["a", "b", 3], r"stats\.names: expected a list of str"),
        ("names", "abc", r"stats\.names: expected a list of str"),
        ("present", [True], r"stats\.present: expected 3 of them, found 1"),
        ("present", [1, 0, 1], r"stats\.present: expected a list of bool"),
    ],
)
def test_damaged_labels_are_named(key: str, value: Any, sentence: str) -> None:
    """Another length or type, or a name twice."""
    with pytest.raises(ConfigError, match=sentence):
        VectorStats.from_json({**STATS.to_json(), key: value}, "stats")


@pytest.mark.parametrize("mode", MODES)
def test_units_change_nothing(mode: Mode) -> None:
    """Statistics of slots that nobody has measured, named like any other."""
    stats, x = VectorStats.units(NAMES), np.array([[1.5, -3.0, 0.25]], np.float32)
    stats.check_names(NAMES, "units")
    assert np.array_equal(Normalizer("state", mode, stats).encode(x), x)
    assert np.array_equal(Normalizer("state", mode, stats).decode(x), x)
