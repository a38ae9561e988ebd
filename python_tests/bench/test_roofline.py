"""Counts of operations and bytes, derived by hand from the shapes of the paper's model."""

from dataclasses import replace

import pytest

from vlakern.bench.roofline import Shape, floors_ms, training, work
from vlakern.models.presets import preset

RETHINK = preset("rethink-2b")
CALL = Shape(views=2, prefix=220)


def test_vision_of_two_views() -> None:
    """257 tokens a view; 12,582,912 weights a block; 327 GFLOP with patches and connector."""
    blocks = 24 * (2 * 514 * 12_582_912 + 2 * 4 * 257**2 * 1024)
    patches, connector = 2 * 512 * 588 * 1024, 2 * 128 * 12_582_912
    found = work(RETHINK, CALL, "bf16")["vision"]
    assert found.operations == blocks + patches + connector == 327_269_154_816
    assert found.bytes == 2 * (24 * 12_582_912 + 588 * 1024 + 12_582_912)


def test_prefix_of_220_tokens() -> None:
    """219 rows of the trunk and one of the expert; keys and values alone in the last layer."""
    trunk = 27 * 2 * 219 * 50_331_648 + 2 * 219 * 2048 * 2048
    state = 27 * 2 * 15_728_640 + 2 * 1024 * 2048 + 2 * (200 * 1024 + 1024**2)
    attention = 27 * 4 * (220 * 221 // 2) * 16 * 128
    found = work(RETHINK, CALL, "bf16")["prefix"]
    assert found.operations == trunk + state + attention == 603_292_205_056
    weights = 27 * (50_331_648 + 15_728_640) + 2048 * 2048 + 1024 * 2048 + 200 * 1024 + 1024**2
    cache, words = 28 * 220 * 2 * 1024, 91 * 2048
    assert found.bytes == 2 * (weights + cache + words)


def test_ode_of_four_steps() -> None:
    """16 rows, each weight once per step, every key and value once per step."""
    layer = 2 * 16 * 15_728_640 + 4 * (16 * 220 + 16 * 17 // 2) * 16 * 128
    edges = 2 * 16 * (2 * 200 * 1024 + 2 * 1024**2)
    found = work(RETHINK, CALL, "bf16")["ode"]
    assert found.operations == 4 * (28 * layer + edges) == 60_046_704_640
    weights = 28 * 15_728_640 + 2 * 200 * 1024 + 2 * 1024**2
    assert found.bytes == 4 * 2 * (weights + 28 * 220 * 2 * 1024)


def test_seventeen_rows_need_64_gflop() -> None:
    """With the state among the actions the expert needs what others report: 63.6 GFLOP."""
    found = work(replace(RETHINK, chunk=17), CALL, "bf16")["ode"]
    assert found.operations == pytest.approx(63.6e9, rel=0.01)


def test_candidates_share_weights_and_keys() -> None:
    """Eight candidates are eight times the operations and not one byte more."""
    one, eight = (work(RETHINK, replace(CALL, candidates=n), "bf16")["ode"] for n in (1, 8))
    assert eight.operations == 8 * one.operations
    assert eight.bytes == one.bytes


def test_robots_share_weights_alone() -> None:
    """Eight observations have eight times the operations and keys, and the same weights."""
    one, eight = (work(RETHINK, replace(CALL, batch=n), "bf16") for n in (1, 8))
    cache = 4 * 28 * 220 * 2 * 1024 * 2
    assert {stage: eight[stage].operations / one[stage].operations for stage in one} == {
        "vision": 8,
        "prefix": 8,
        "ode": 8,
    }
    assert eight["ode"].bytes - one["ode"].bytes == 7 * cache
    assert eight["vision"].bytes == one["vision"].bytes


def test_int8_counts_large_products_apart() -> None:
    """Attention and the small products of int8 run at the rate of bf16, with bf16 weights."""
    found = work(RETHINK, CALL, "int8")["ode"]
    assert found.products == 4 * 28 * 2 * 16 * 15_728_640
    assert found.others == work(RETHINK, CALL, "bf16")["ode"].operations - found.products


def test_midpoint_evaluates_twice_a_step() -> None:
    """A solver of two stages doubles the ODE and nothing else."""
    euler, midpoint = (
        work(replace(RETHINK, solver=one), CALL, "bf16") for one in ("euler", "midpoint")
    )
    assert midpoint["ode"] == euler["ode"].times(2)
    assert midpoint["prefix"] == euler["prefix"]


def test_full_prefix_sees_all_but_the_state() -> None:
    """With a state block the other tokens see one key less than with an inline state."""
    small = preset("metaworld-small")
    inline = replace(small, mask=replace(small.mask, state="inline"))
    call = Shape(views=2, prefix=14)
    fewer = work(inline, call, "fp32")["prefix"].others - work(small, call, "fp32")["prefix"].others
    assert fewer == 3 * 4 * 13 * 4 * 64


def test_floor_is_the_larger_of_computing_and_reading() -> None:
    """A stage is bound by arithmetic on a slow processor, by memory on a fast one."""
    slow = floors_ms(RETHINK, CALL, "bf16", {"bf16": 1e9}, 1e15)
    fast = floors_ms(RETHINK, CALL, "bf16", {"bf16": 1e18}, 1e9)
    needed = work(RETHINK, CALL, "bf16")
    for stage, one in needed.items():
        assert slow[stage] == pytest.approx(one.operations / 1e6)
        assert fast[stage] == pytest.approx(one.bytes / 1e6)
    assert slow["total"] == pytest.approx(sum(slow[stage] for stage in needed))


def test_training_is_three_times_forward() -> None:
    """One evaluation of the velocity per draw instead of four steps; backward is two forwards."""
    one = work(RETHINK, CALL, "bf16")
    forward = one["vision"].operations + one["prefix"].operations + one["ode"].operations / 4
    assert training(RETHINK, CALL, views=2, samples=1) == pytest.approx(3 * forward)
    more = training(RETHINK, CALL, views=2, samples=5) - training(RETHINK, CALL, 2, 1)
    assert more == pytest.approx(3 * 4 * one["ode"].operations / 4)
    batch = training(RETHINK, replace(CALL, batch=8), views=16, samples=1)
    assert batch == pytest.approx(8 * 3 * forward)
    fewer = training(RETHINK, replace(CALL, batch=8), views=12, samples=1)
    assert batch - fewer == pytest.approx(3 * 2 * one["vision"].operations)


def test_frozen_parts_cost_less() -> None:
    """No gradient of weights; below what trains no gradient at all."""
    one = work(RETHINK, CALL, "bf16")
    full = training(RETHINK, CALL, views=2, samples=1)
    passed = training(RETHINK, CALL, views=2, samples=1, semantic="frozen")
    constant = training(RETHINK, CALL, views=2, samples=1, semantic="constant")
    vision, prefix = one["vision"].operations, one["prefix"].operations
    assert full - passed == pytest.approx(2 * vision + prefix)
    assert passed - constant == pytest.approx(prefix)


PI_CALL = Shape(views=3, prefix=788)


def test_vision_of_siglip() -> None:
    """256 tokens a view and no more; one product of the connector."""
    block = 4 * 1152**2 + 2 * 1152 * 4304
    found = work(preset("pi0"), PI_CALL, "bf16")["vision"]
    blocks = 27 * (2 * 768 * block + 3 * 4 * 256**2 * 1152)
    assert found.operations == blocks + 2 * 768 * (588 * 1152 + 1152 * 2048) == 660_529_741_824
    assert found.bytes == 2 * (27 * block + 588 * 1152 + 1152 * 2048)


def test_prefix_and_ode_of_pi0() -> None:
    """One key-value head of 256; a state that the others do not see; linear edges."""
    trunk = 2048 * (2 * 2048 + 512) + 3 * 2048 * 16384
    expert = 1024 * (2 * 2048 + 512) + 3 * 1024 * 4096
    found = work(preset("pi0"), PI_CALL, "bf16")
    pairs = 788 * 788 - 787
    prefix = 17 * 2 * (787 * trunk + expert + 2 * pairs * 2048)
    prefix += 2 * 512 * (787 * 2048 + 1024) + 2 * 32 * 1024
    assert found["prefix"].operations == prefix
    layer = 2 * 50 * expert + 4 * 50 * (788 + 50) * 2048
    edges = 2 * 50 * (2 * 32 * 1024 + 1024**2)
    assert found["ode"].operations == 10 * (18 * layer + edges)
    weights = 18 * (expert + 788 * 2 * 256) + 2 * 32 * 1024 + 1024**2
    assert found["ode"].bytes == 10 * 2 * weights


def test_words_have_no_state_token_and_time_is_a_table() -> None:
    """pi0.5: the trunk alone before the actions, and no square product at the entrance."""
    zero, five = (work(preset(name), PI_CALL, "bf16") for name in ("pi0", "pi05"))
    assert five["vision"] == zero["vision"]
    assert zero["ode"].operations - five["ode"].operations == 10 * 2 * 50 * 1024**2
    trunk = 2048 * (2 * 2048 + 512) + 3 * 2048 * 16384
    expected = 17 * 2 * (788 * trunk + 2 * 788**2 * 2048) + 2 * 512 * 788 * 2048
    assert five["prefix"].operations == expected


def test_layers_that_cross_have_no_keys_of_actions() -> None:
    """SmolVLA: eight of 16 layers; the prefix's keys and values are projected once."""
    found = work(preset("smolvla"), Shape(views=2, prefix=200), "bf16")
    trunk = 960 * (2 * 960 + 640) + 3 * 960 * 2560
    prefix = 15 * 2 * (200 * trunk + 2 * (200**2 - 199) * 960) + 2 * 200 * 960 * 640
    prefix += 8 * 2 * 200 * 2 * 320**2 + 2 * 32 * 960
    assert found["prefix"].operations == prefix
    shared = 720 * 2 * 960 + 3 * 720 * 2048
    itself = 2 * 50 * 720 * 640 + 4 * (50 * 51 // 2) * 960
    layers = 16 * (2 * 50 * shared + 4 * 50 * 200 * 960) + 8 * itself
    assert found["ode"].operations == 10 * (layers + 2 * 50 * (2 * 32 * 720 + 720**2))
    vision = 12 * (2 * 2048 * (4 * 768**2 + 2 * 768 * 3072) + 2 * 4 * 1024**2 * 768)
    vision += 2 * 2048 * 768 * 768 + 2 * 128 * 12288 * 960
    assert found["vision"].operations == vision
