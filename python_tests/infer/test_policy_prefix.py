"""A policy's chunk begins with the actions that are decided, and goes on from them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlakern.errors import InputError
from vlakern.flow import Frozen
from vlakern.infer import Policy, load
from vlakern.types import ActionPrefix, Observation, PrefixForm

DECIDED = np.random.default_rng(5).normal(size=(5, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def policy(directory: Path) -> Policy:
    return load(directory, device="cpu")


def look() -> Observation:
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
    return Observation({"front": image}, rng.normal(size=7).astype(np.float32), "open")


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_chunk_begins_with_what_is_frozen(policy: Policy, count: int) -> None:
    """In the robot's numbers; what comes after depends on it, and not on what is not frozen."""
    found = policy.act(look(), seed=4, prefix=ActionPrefix(DECIDED, count)).actions
    np.testing.assert_allclose(found[:count], DECIDED[:count], atol=1e-5)
    free = policy.act(look(), seed=4).actions
    assert np.abs(found[count:] - free[count:]).max() > 1e-3
    short = policy.act(look(), seed=4, prefix=ActionPrefix(DECIDED[:count], count)).actions
    assert np.array_equal(short, found)


def test_nothing_frozen_is_a_chunk_of_its_own(policy: Policy) -> None:
    free = policy.act(look(), seed=4).actions
    none = policy.act(look(), seed=4, prefix=ActionPrefix(DECIDED, 0)).actions
    assert np.array_equal(none, free)


def test_the_network_gets_them_in_its_own_numbers(policy: Policy) -> None:
    """The engine with (action - mean) / std frozen gives the same chunk."""
    found = policy.act(look(), seed=4, prefix=ActionPrefix(DECIDED, 3)).actions
    known = torch.zeros(1, 6, 5)
    known[0, :3] = torch.from_numpy((DECIDED[:3] - 0.1 * np.arange(5)) / 2.0)
    engine, seen = policy._engine, look()
    assert engine is not None
    frozen = Frozen(known, torch.tensor([3], dtype=torch.int32))
    with torch.inference_mode():
        batch = policy._prompts([seen], [seen.state])
        x = engine.act(policy._images(seen), batch, policy._noise([4]), frozen=frozen)
    np.testing.assert_allclose(found, x[0].numpy() * 2.0 + 0.1 * np.arange(5), atol=1e-4)


@pytest.mark.parametrize(
    ("prefix", "sentence"),
    [
        (ActionPrefix(DECIDED, 6), "at most its steps"),
        (ActionPrefix(np.zeros((9, 5), np.float32), 7), "the chunk's 6 frozen"),
        (ActionPrefix(DECIDED, -1), "-1 frozen"),
        (ActionPrefix(DECIDED[0], 1), r"prefix is \[5\]"),
        (ActionPrefix(DECIDED[:, :4], 1), "action is"),
        (ActionPrefix(DECIDED * np.nan, 1), "not finite"),
    ],
)
def test_a_prefix_that_does_not_fit_is_refused(
    policy: Policy, prefix: ActionPrefix, sentence: Any
) -> None:
    with pytest.raises(InputError, match=sentence):
        policy.act(look(), prefix=prefix)


@pytest.mark.parametrize("form", ["frozen", "cheap"])
def test_a_row_of_a_batch_has_the_bits_that_it_has_alone(policy: Policy, form: PrefixForm) -> None:
    """Beside longer and shorter prefixes, and rows without."""
    decided = DECIDED.astype(np.float64)
    told = [ActionPrefix(decided, 2, form), None, ActionPrefix(0.5 * decided[:3], 1, form), None]
    seen = [replace(look(), state=(i + 1.0) * look().state) for i in range(len(told))]
    found = policy.act_batch(seen, range(len(told)), told)
    for i, (one, prefix) in enumerate(zip(seen, told, strict=True)):
        alone = policy.act(one, seed=i, prefix=prefix).actions
        assert np.array_equal(found[i].actions, alone), i
        if prefix is not None:
            assert np.abs(alone - policy.act(one, seed=i).actions).max() > 1e-3


def test_a_call_has_prefixes_of_one_form_and_one_a_row(policy: Policy) -> None:
    told = [ActionPrefix(DECIDED, 2), ActionPrefix(DECIDED, 2, "cheap")]
    with pytest.raises(InputError, match="'frozen' and 'cheap'"):
        policy.act_batch([look()] * 2, [0, 1], told)
    with pytest.raises(InputError, match="2 prefixes for 3 observations"):
        policy.act_batch([look()] * 3, [0, 1, 2], told)
