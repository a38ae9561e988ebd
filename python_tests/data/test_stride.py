"""Strides: chunks span like times, every frame is used equally often, and the report adds up."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlakern.data.stride import (
    Source,
    Stride,
    chunk_index,
    draw_offset,
    effective_frames,
    start_frames,
    suggest_stride,
)
from vlakern.errors import InputError

RATE = st.floats(0.1, 1000.0)
LENGTH = st.integers(1, 200)
STRIDE = st.integers(1, 30)


@given(RATE, RATE)
def test_the_suggested_stride_is_the_best(rate: float, target: float) -> None:
    """No other whole stride comes nearer to the target in ratio."""

    def distance(stride: int) -> float:
        return abs(math.log(rate / stride / target))

    stride = suggest_stride(rate, target)
    assert stride >= 1
    near = {1, max(stride - 1, 1), stride + 1, max(round(rate / target), 1)}
    assert distance(stride) <= min(map(distance, near)) + 1e-12


@pytest.mark.parametrize(
    ("rate", "target", "stride"),
    [
        (30.0, 30.0, 1),
        (5.0, 30.0, 1),
        (1e-300, 1e300, 1),
        (30.0, 10.0, 3),
        (30.0, 4.3, 7),
        (30.0, 20.0, 2),  # 15 Hz is off by 1.33, 30 Hz by 1.5
        (14.0, 10.0, 1),  # 14 Hz is off by 1.4, 7 Hz by 1.43
        (200.0, 20.0, 10),
    ],
)
def test_suggested_strides(rate: float, target: float, stride: int) -> None:
    """Nearest as a ratio, which is not always the nearest whole number of the quotient."""
    assert suggest_stride(rate, target) == stride


def test_aligned_datasets_span_like_times() -> None:
    """Six rates from 5 to 60 Hz: without strides spans differ 12-fold, with them less than 2."""
    rates = (5.0, 10.0, 15.0, 20.0, 30.0, 60.0)
    raw = [Stride(rate).span(16) for rate in rates]
    aligned = [Stride(rate, suggest_stride(rate, 6.0)).span(16) for rate in rates]
    assert max(raw) / min(raw) == pytest.approx(12.0)
    assert max(aligned) / min(aligned) < 2.0
    assert Stride(30.0, 7).span(16) == pytest.approx(16 * 7 / 30)
    assert Stride(30.0, 5).effective_rate == 6.0


@given(st.data(), LENGTH, st.integers(1, 40), STRIDE)
def test_chunk_index(data: st.DataObject, length: int, chunk: int, stride: int) -> None:
    """Every stride-th frame from the first; past the end, the last frame, marked."""
    frame = data.draw(st.integers(0, length - 1))
    index, valid = chunk_index(frame, length, chunk, stride)
    expected = [frame + k * stride for k in range(chunk)]
    assert index.tolist() == [min(i, length - 1) for i in expected]
    assert valid.tolist() == [i < length for i in expected]
    assert (index.dtype, valid.dtype, valid[0]) == (np.int64, np.bool_, True)


@given(LENGTH, STRIDE)
def test_offsets_share_the_frames(length: int, stride: int) -> None:
    """Over all offsets that can be drawn, every frame of the episode is a start exactly once."""
    offsets = range(min(stride, length))
    starts = [start_frames(length, stride, offset) for offset in offsets]
    assert sorted(np.concatenate(starts).tolist()) == list(range(length))
    assert min(map(len, starts)) >= 1


@given(st.integers(0, 2**32 - 1), LENGTH, STRIDE)
def test_drawn_offsets_are_valid_and_repeat(seed: int, length: int, stride: int) -> None:
    """The generator decides alone; what it draws is an offset that start_frames takes."""
    first, again = (
        [draw_offset(length, stride, rng) for _ in range(8)]
        for rng in (np.random.default_rng(seed), np.random.default_rng(seed))
    )
    assert first == again
    assert all(len(start_frames(length, stride, offset)) for offset in first)


def test_every_offset_is_drawn() -> None:
    """Uniformly: 7000 draws of 7 offsets, each within six deviations of 1000."""
    rng = np.random.default_rng(0)
    counts = np.bincount([draw_offset(100, 7, rng) for _ in range(7000)], minlength=7)
    assert counts.shape == (7,)
    assert np.abs(counts - 1000).max() < 6 * math.sqrt(7000 * 1 / 7 * 6 / 7)


@given(st.lists(LENGTH, min_size=1, max_size=6), STRIDE)
def test_effective_frames_are_the_mean_over_offsets(lengths: list[int], stride: int) -> None:
    """Counted over every offset that can be drawn."""
    mean = 0.0
    for length in lengths:
        offsets = range(min(stride, length))
        mean += sum(len(start_frames(length, stride, o)) for o in offsets) / len(offsets)
    report = effective_frames([Source("a", lengths, Stride(30.0, stride))], 16)
    assert report.raw == sum(lengths)
    assert abs(report.effective - mean) <= 0.5 + 1e-9


SOURCES = (
    Source("gripper arms", (700, 1400), Stride(30.0, 7)),
    Source("simulation", (400,), Stride(30.0, 4)),
    Source("many robots", (1234567,), Stride(5.0)),
)


def test_the_report_for_programs() -> None:
    """Plain JSON with units in the names, and totals that add up."""
    report = effective_frames(SOURCES, 16)
    values = json.loads(json.dumps(report.to_json()))
    assert values["chunk"] == 16
    assert values["datasets"][0] == {
        "name": "gripper arms",
        "raw_frames": 2100,
        "effective_frames": 300,
        "rate_hz": 30.0,
        "stride": 7,
        "effective_rate_hz": 30.0 / 7,
        "chunk_span_s": 16 * 7 / 30.0,
    }
    assert values["total"] == {"raw_frames": 1237067, "effective_frames": 300 + 100 + 1234567}


def test_the_report_for_people() -> None:
    """Aligned columns with a total."""
    assert effective_frames(SOURCES, 16).table().splitlines() == [
        "dataset       raw frames  effective  rate [Hz]  stride  effective [Hz]  16 steps [s]",
        "gripper arms       2,100        300         30       7            4.29          3.73",
        "simulation           400        100         30       4             7.5          2.13",
        "many robots    1,234,567  1,234,567          5       1               5           3.2",
        "total          1,237,067  1,234,967",
    ]


HALF: Any = 1.5
WORD: Any = "a"
NOTHING: Any = None
BAD: tuple[tuple[Any, str], ...] = (
    (lambda: Stride(0.0), "the rate is 0.0 Hz, expected a positive number"),
    (lambda: Stride(-5.0), "the rate is -5.0 Hz"),
    (lambda: Stride(math.nan), "the rate is nan Hz"),
    (lambda: Stride(math.inf), "the rate is inf Hz"),
    (lambda: Stride(30.0, 0), "the stride is 0, expected a whole number of at least 1"),
    (lambda: Stride(30.0, HALF), "the stride is 1.5, expected a whole number"),
    (lambda: Stride(30.0, True), "the stride is True"),
    (lambda: Stride(WORD), "the rate is 'a', expected a positive number of Hz"),
    (lambda: Stride(30.0, WORD), "the stride is 'a', expected a whole number"),
    (lambda: Stride(30.0, 10**30), "the stride is 10{30}, expected a whole number of at most"),
    (lambda: suggest_stride(NOTHING, 3), "the rate is None, expected a positive number of Hz"),
    (lambda: suggest_stride(3, 10**400), "the target rate is 10{30,}, expected a positive"),
    (lambda: Stride(30.0).span(0), "the chunk is 0"),
    (
        lambda: chunk_index(0, 10, 4, 10**30),
        "the stride is 10{30}, expected a whole number of at m",
    ),
    (lambda: chunk_index(0, 10, 10**9, 1), "the chunk is 10{9}, expected a whole number of at mos"),
    (lambda: chunk_index(0, 10**30, 4, 1), "the length is 10{30}, expected"),
    (lambda: start_frames(NOTHING, 1), "the length is None, expected a whole number"),
    (lambda: suggest_stride(0.0, 10.0), "the rate is 0.0 Hz"),
    (lambda: suggest_stride(10.0, 0.0), "the target rate is 0.0 Hz"),
    (lambda: suggest_stride(1e300, 1e-300), "has no stride"),
    (lambda: chunk_index(5, 5, 4, 1), "frame 5 is outside an episode of 5 frames"),
    (lambda: chunk_index(-1, 5, 4, 1), "the frame is -1"),
    (lambda: chunk_index(0, 0, 4, 1), "the length is 0"),
    (lambda: chunk_index(0, 5, 0, 1), "the chunk is 0"),
    (lambda: chunk_index(0, 5, 4, 0), "the stride is 0"),
    (lambda: start_frames(0, 1), "the length is 0"),
    (lambda: start_frames(10, 3, 3), r"offset 3 is outside \[0, 3\)"),
    (lambda: start_frames(2, 3, 2), r"offset 2 is outside \[0, 2\)"),
    (lambda: start_frames(10, 3, -1), "the offset is -1"),
    (lambda: draw_offset(10, 0, np.random.default_rng(0)), "the stride is 0"),
    (lambda: effective_frames([], 16), "at least one dataset"),
    (lambda: effective_frames(SOURCES, 0), "the chunk is 0"),
    (lambda: effective_frames([*SOURCES, SOURCES[0]], 4), "two datasets are called 'gripper arms'"),
    (lambda: effective_frames([Source("a", (3, 0), Stride(1.0))], 4), "an episode of a is 0"),
)


@pytest.mark.parametrize(("call", "sentence"), BAD)
def test_bad_numbers_are_refused(call: Any, sentence: str) -> None:
    """Rates, strides, lengths and offsets that mean nothing."""
    with pytest.raises(InputError, match=sentence):
        call()
