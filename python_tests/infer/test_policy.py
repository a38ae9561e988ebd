"""A policy turns observations into chunks, repeats exactly, and refuses what it cannot take."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vlakern
from vlakern.errors import CheckpointError, ConfigError, InputError, Unsupported
from vlakern.infer import Policy, load, shipped_policies
from vlakern.infer._choices import choose_device, choose_dtype
from vlakern.models.weights import Processing
from vlakern.types import STAGES, Observation

VIEWS = ("front", "wrist")


@pytest.fixture(scope="module")
def policy(directory: Path) -> Policy:
    """That policy, loaded on the CPU."""
    return load(directory, device="cpu")


def look(row: int = 0, words: str = "push the puck", views: tuple[str, ...] = VIEWS) -> Observation:
    rng = np.random.default_rng(row)
    images = {view: rng.integers(0, 256, (28, 28, 3), dtype=np.uint8) for view in VIEWS}
    state = rng.normal(size=7).astype(np.float32)
    return Observation({view: images[view] for view in views}, state, words)


def test_a_policy_says_what_it_is(policy: Policy) -> None:
    """Views in its order, chunk, how much to execute and how fast."""
    assert (policy.name, policy.views) == ("tiny-arm", VIEWS)
    assert (policy.chunk, policy.execute) == (6, 3)
    assert (policy.control_rate, policy.image_size) == (20.0, 28)


def test_act_gives_a_chunk_with_every_stage(policy: Policy) -> None:
    """float32 [H, A], finite, the seed in its info and wall times that add up to the total."""
    chunk = policy.act(look(), seed=3)
    assert chunk.actions.dtype == np.float32
    assert chunk.actions.shape == (6, 5)
    assert np.isfinite(chunk.actions).all()
    stages = tuple(stage for stage in STAGES if stage != "model")  # of one launch on a GPU
    assert tuple(chunk.latency_ms) == stages
    parts = [chunk.latency_ms[stage] for stage in stages[:-1]]
    assert min(parts) > 0
    assert sum(parts) <= chunk.latency_ms["total"] < sum(parts) + 100
    assert chunk.info["seed"] == 3


def test_the_same_seed_gives_the_same_bits(policy: Policy, directory: Path) -> None:
    """Again, and from a second copy of the policy; another seed gives other actions."""
    found = policy.act(look(), seed=7).actions
    assert np.array_equal(policy.act(look(), seed=7).actions, found)
    assert np.array_equal(load(directory, device="cpu").act(look(), seed=7).actions, found)
    assert not np.array_equal(policy.act(look(), seed=8).actions, found)


def test_without_a_seed_every_call_draws_its_own(policy: Policy) -> None:
    """The seed that was drawn is in the info and gives the chunk again."""
    one, two = policy.act(look()), policy.act(look())
    assert one.info["seed"] != two.info["seed"]
    assert np.array_equal(policy.act(look(), seed=one.info["seed"]).actions, one.actions)


def test_threads_that_act_at_once_take_turns(policy: Policy) -> None:
    """Each sees its own images, words and noise: the bits of calls one after the other."""
    looks = [look(0), look(1, words="open", views=("front",))]
    expected = [policy.act(one, seed=i).actions for i, one in enumerate(looks)]

    def act(i: int) -> bool:
        return np.array_equal(policy.act(looks[i % 2], seed=i % 2).actions, expected[i % 2])

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(act, range(60)))


def test_global_generators_neither_matter_nor_move(policy: Policy) -> None:
    """torch's and numpy's global random state are not the policy's business."""
    torch.manual_seed(0)
    found, before = policy.act(look(), seed=1).actions, torch.get_rng_state()
    torch.manual_seed(99)
    assert np.array_equal(policy.act(look(), seed=1).actions, found)
    torch.manual_seed(0)
    policy.act(look())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "change",
    ["front", "wrist", "state", "words"],
)
def test_every_part_of_an_observation_matters(policy: Policy, change: str) -> None:
    """Another picture of either view, state or instruction gives other actions."""
    seen, other = look(0), look(1)
    if change in VIEWS:
        moved = dataclasses.replace(seen, images={**seen.images, change: other.images[change]})
    elif change == "state":
        moved = dataclasses.replace(seen, state=other.state)
    else:
        moved = dataclasses.replace(seen, instruction="open")
    difference = policy.act(seen, seed=0).actions - policy.act(moved, seed=0).actions
    assert np.abs(difference).max() > 1e-4


def test_a_batch_row_equals_the_row_alone(policy: Policy) -> None:
    """Rows with other words and fewer views beside it change nothing, not even the last bit."""
    rows = [look(0), look(1, "open"), look(2, views=("wrist",)), look(3)]
    seeds = [5, 6, 7, 2**63 - 1]
    together = policy.act_batch(rows, seeds)
    for row, seed, chunk in zip(rows, seeds, together, strict=True):
        alone = policy.act(row, seed).actions
        assert np.array_equal(chunk.actions, alone)
        assert chunk.info["seed"] == seed


def test_no_observation_gives_no_chunk(policy: Policy) -> None:
    """An empty batch is legal."""
    assert policy.act_batch([]) == []


def test_a_missing_camera_is_a_dropped_view(policy: Policy) -> None:
    """One view is enough, and which one matters; the mapping's order does not."""
    seen = look()
    front = policy.act(look(views=("front",)), seed=0).actions
    wrist = policy.act(look(views=("wrist",)), seed=0).actions
    both = policy.act(seen, seed=0).actions
    assert not np.array_equal(front, wrist)
    assert not np.array_equal(front, both)
    turned = dataclasses.replace(seen, images=dict(reversed(list(seen.images.items()))))
    assert np.array_equal(policy.act(turned, seed=0).actions, both)


def test_candidates_are_the_chunks_of_their_seeds(policy: Policy, directory: Path) -> None:
    """Several chunks from one prefix, each to the last bit what its seed gives alone."""
    seeds = [5, 6, 2**62]
    fresh = load(directory, device="cpu")
    for one in (policy, fresh):
        found = one.act_candidates(look(), 3, seeds)
        assert [chunk.info["seed"] for chunk in found] == seeds
        for chunk, seed in zip(found, seeds, strict=True):
            assert np.array_equal(chunk.actions, policy.act(look(), seed).actions)
    drawn = policy.act_candidates(look(), 2)
    assert not np.array_equal(drawn[0].actions, drawn[1].actions)


@pytest.mark.parametrize(("n", "seeds"), [(0, None), (-1, None), (2, [1]), (1, [-1])])
def test_candidates_that_cannot_be_are_refused(
    policy: Policy, n: int, seeds: list[int] | None
) -> None:
    """None at all, or other seeds than candidates."""
    with pytest.raises(InputError):
        policy.act_candidates(look(), n, seeds)


def test_actions_are_in_native_units(policy: Policy) -> None:
    """The chunk is the decoded end of the flow: mean plus std times the normalised value."""
    records = policy._records
    chunk = policy.act(look(), seed=0).actions
    recoded = records.space.encode(chunk, look().state)
    unscaled = dataclasses.replace(records, processing=Processing("zscore", "none", execute=3))
    raw = Policy(unscaled, policy._model, "raw", "cpu", "fp32").act(look(), seed=0).actions
    np.testing.assert_allclose(recoded, raw, rtol=0, atol=1e-5)
    assert np.abs(recoded - chunk).max() > 0.1


def image(change: Callable[[np.ndarray], Any]) -> Callable[[Observation], Observation]:
    def wrong(seen: Observation) -> Observation:
        return dataclasses.replace(
            seen, images={**seen.images, "wrist": change(seen.images["wrist"])}
        )

    return wrong


def state(change: Callable[[np.ndarray], Any]) -> Callable[[Observation], Observation]:
    return lambda seen: dataclasses.replace(seen, state=change(seen.state))


def words(value: Any) -> Callable[[Observation], Observation]:
    return lambda seen: dataclasses.replace(seen, instruction=value)


def with_nan(values: np.ndarray, slot: int, value: float) -> np.ndarray:
    out = values.copy()
    out[slot] = value
    return out


WRONG = {
    "float image": (image(lambda i: i / 255.0), r"view 'wrist' is float64\[28, 28, 3\], expected"),
    "grey image": (image(lambda i: i[..., 0]), r"view 'wrist' is uint8\[28, 28\], expected uint8"),
    "planes first": (image(lambda i: i.transpose(2, 0, 1)), r"is uint8\[3, 28, 28\], expected"),
    "with alpha": (image(lambda i: np.dstack([i, i[..., :1]])), r"is uint8\[28, 28, 4\]"),
    "empty image": (image(lambda i: i[:0]), r"is uint8\[0, 28, 3\]"),
    "no image": (image(lambda i: None), r"view 'wrist' is object\[\], expected uint8"),
    "short state": (state(lambda s: s[:6]), r"state is float32\[6\], expected .* \[7\] \(hand, jo"),
    "state row": (state(lambda s: s[None]), r"state is float32\[1, 7\], expected floating-point"),
    "whole state": (state(lambda s: s.astype(int)), r"state is int64\[7\], expected floating"),
    "words state": (state(lambda s: ["a"] * 7), r"state is <U1\[7\], expected floating-point"),
    "NaN state": (
        state(lambda s: with_nan(s, 4, math.nan)),
        r"state number 4 \(slot 'joints'\) is not finite",
    ),
    "infinite state": (
        state(lambda s: with_nan(s, 0, -math.inf)),
        r"state number 0 \(slot 'hand'\) is not finite",
    ),
    "huge state": (
        state(lambda s: with_nan(s.astype(float), 2, 1e300)),
        r"state slot 2 \(hand\.2\) is too large for the policy's statistics",
    ),
    "unknown view": (
        lambda seen: dataclasses.replace(seen, images={**seen.images, "top": seen.images["front"]}),
        "view 'top' is unknown to policy tiny-arm; its views are front, wrist",
    ),
    "no view": (
        lambda seen: dataclasses.replace(seen, images={}),
        "the observation has no view; expected front, wrist",
    ),
    "no words": (words(""), "instruction is '', expected words"),
    "blank words": (words(" \n"), "instruction is ' .n', expected words"),
    "no text": (words(None), "instruction is None, expected words"),
    "endless words": (words("go " * 2000), "instruction has 6000 characters, expected at most"),
    "broken text": (words("push \ud83e"), "half a surrogate pair"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_observations_are_refused(policy: Policy, name: str) -> None:
    """One sentence naming the thing, the expected and the found, also beside good rows."""
    change, sentence = WRONG[name]
    for rows in ([change(look())], [look(1), change(look())]):
        with pytest.raises(InputError, match=sentence) as caught:
            policy.act_batch(rows, list(range(len(rows))))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "1", True, None, math.nan])
def test_bad_seeds_are_refused(policy: Policy, seed: Any) -> None:
    """A whole number from 0 to 2^63 - 1; numpy's integers are whole numbers too."""
    with pytest.raises(InputError, match=r"seed is .*, expected a whole number from 0"):
        policy.act_batch([look()], [seed])
    one = policy.act_batch([look()], [np.uint64(2**62)])  # pyright: ignore[reportArgumentType]
    assert np.array_equal(one[0].actions, policy.act(look(), seed=2**62).actions)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_there_is_one_seed_for_each_observation(policy: Policy, count: int) -> None:
    """Neither fewer nor more."""
    with pytest.raises(InputError, match=f"found {count} seeds for 2 observations; give one each"):
        policy.act_batch([look(), look(1)], list(range(count)))


def test_a_camera_buffer_may_be_read_only_or_mirrored(policy: Policy) -> None:
    """Neither warns, fails nor changes the result of the same pixels."""
    seen = look()
    plain = policy.act(seen, seed=0).actions
    locked = seen.images["front"].copy()
    locked.flags.writeable = False
    mirrored = np.ascontiguousarray(seen.images["wrist"][:, ::-1])[:, ::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved = dataclasses.replace(seen, images={"front": locked, "wrist": mirrored})
        assert np.array_equal(policy.act(moved, seed=0).actions, plain)


def test_other_sizes_are_resized_with_black_borders(policy: Policy) -> None:
    """A grey 2:1 picture is seen as a grey band over the full width between black bands."""
    seen = look()
    band = np.zeros((28, 28, 3), np.uint8)
    band[7:21] = 128
    wide = np.full((20, 40, 3), 128, np.uint8)
    banded, resized = (
        policy.act(dataclasses.replace(seen, images={"front": one}), seed=0).actions
        for one in (band, wide)
    )
    assert np.array_equal(banded, resized)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (29, 28), (27, 31)])
def test_any_size_becomes_the_policys(policy: Policy, size: tuple[int, int]) -> None:
    """Extreme and odd shapes included."""
    seen = look()
    picture = np.zeros((*size, 3), np.uint8)
    moved = dataclasses.replace(seen, images={**seen.images, "front": picture})
    assert np.isfinite(policy.act(moved, seed=0).actions).all()


def test_bfloat16_is_near_fp32(policy: Policy, directory: Path) -> None:
    """On the CPU too; the same weights, so only rounding differs."""
    low = load(directory, device="cpu", dtype="bf16").act(look(), seed=0).actions
    exact = policy.act(look(), seed=0).actions
    assert 0 < np.abs(low - exact).max() < 0.1 * np.abs(exact).max()


def test_an_unknown_policy_is_refused() -> None:
    """Neither a directory nor a shipped name."""
    with pytest.raises(CheckpointError, match="no policy 'no-such': neither a directory nor one"):
        load("no-such")


def test_shipped_policies_load_by_name() -> None:
    """Every policy inside the package is whole."""
    for name in shipped_policies():
        assert vlakern.load(name, device="cpu").name == name


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:-1", "", "CPU"])
def test_an_unknown_device_is_refused(directory: Path, name: str) -> None:
    """The sentence names those there are."""
    with pytest.raises(Unsupported, match=r"is not supported; use auto, cpu, cuda"):
        load(directory, device=name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, and with fewer than asked for; one without a number is torch's current."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(Unsupported, match="'cuda:1' was asked for, but torch sees no NVIDIA GPU"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert (choose_device("auto"), choose_device("cuda"), choose_device("cuda:0")) == (
        "cuda:1",
        "cuda:1",
        "cuda:0",
    )
    with pytest.raises(Unsupported, match="'cuda:2' is not there; torch sees 2"):
        choose_device("cuda:2")


def test_dtypes_follow_the_device() -> None:
    """fp32 on the CPU and bf16 on a GPU unless asked otherwise; unknown names are refused."""
    assert choose_dtype("auto", choose_device("cpu:0")) == "fp32"
    assert choose_dtype("auto", "cuda:0") == "bf16"
    assert choose_dtype("bf16", "cpu") == "bf16"
    assert choose_dtype("int8", "cpu") == "int8"
    assert (choose_dtype("int8", "cuda:0"), choose_dtype("fp8", "cuda:0")) == ("int8", "fp8")
    with pytest.raises(
        Unsupported, match=r"'fp8' needs an NVIDIA GPU of sm_89 .* on cpu use .*int8"
    ):
        choose_dtype("fp8", "cpu")
    with pytest.raises(
        Unsupported, match="dtype 'fp64' is not supported on cpu; use auto, fp32, bf16"
    ):
        choose_dtype("fp64", "cpu")


def test_steps_are_the_callers_to_choose(directory: Path) -> None:
    """Another count gives other actions, the same one the same; a count below 1 is refused."""
    own, one = load(directory), load(directory, steps=1)
    assert (own.steps, one.steps) == (own._records.config.steps, 1)
    seen = look()
    assert not np.array_equal(own.act(seen, seed=1).actions, one.act(seen, seed=1).actions)
    again = load(directory, steps=own.steps).act(seen, seed=1)
    np.testing.assert_array_equal(again.actions, own.act(seen, seed=1).actions)
    with pytest.raises(ConfigError, match="steps is 0"):
        load(directory, steps=0)
