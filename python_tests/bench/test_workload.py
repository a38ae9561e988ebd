"""What one measured call consists of."""

import numpy as np
import pytest
import torch

from vlakern.bench.workload import PROMPT_TOKENS, PolicySource, PresetSource, Workload
from vlakern.errors import CheckpointError


def test_default_prompt_gives_220_tokens() -> None:
    """rethink-2b with 2 views: 128 image tokens, the state, and 91 of template and instruction."""
    work = Workload(PresetSource("rethink-2b", 0), views=2, prompt_tokens=PROMPT_TOKENS)
    assert work.shape.prefix == 220
    batch = work.call(0).batch
    assert len(batch.tokens_L) == 91
    assert int(batch.cu_prefix[-1]) == 220


def test_calls_differ_in_noise_alone() -> None:
    """The same call twice is the same; the next one has other noise and the same words."""
    work = Workload(PresetSource("tiny", 0), views=1, prompt_tokens=5, batch=2, candidates=3)
    first, again, next_one = work.call(0), work.call(0), work.call(1)
    assert torch.equal(first.noise_NHA, again.noise_NHA)
    assert not torch.equal(first.noise_NHA, next_one.noise_NHA)
    assert torch.equal(first.batch.tokens_L, next_one.batch.tokens_L)
    assert first.noise_NHA.shape == (6, 6, 5)
    assert work.actions(first.noise_NHA).shape == (6, 6, 5)
    assert len(work.images) == 2


def test_chunk_and_steps_replace_the_models() -> None:
    """The measured configuration is the preset's but for what was asked for."""
    work = Workload(PresetSource("tiny", 0), views=1, prompt_tokens=5, chunk=3, steps=2)
    assert (work.config.chunk, work.config.steps) == (3, 2)
    assert work.call(0).noise_NHA.shape == (1, 3, 5)


def test_a_shipped_policy_brings_its_own_robot() -> None:
    """Its tokenizer, statistics and action space surround the network."""
    work = Workload(PolicySource("metaworld-small"), views=2, prompt_tokens=9)
    call = work.call(0)
    assert call.batch.state_RS.shape == (1, 4)
    actions = work.actions(call.noise_NHA)
    assert actions.shape == (1, 16, 4)
    assert np.isfinite(actions).all()


def test_an_unknown_policy() -> None:
    """The sentence names those that ship."""
    with pytest.raises(CheckpointError, match="metaworld-small"):
        PolicySource("no-such-policy")
