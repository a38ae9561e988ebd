"""The laws of the policy network: caching, packing, batching, dropped views and shared prefixes."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.models import VLA, VLAConfig, preset
from vlakern.models.config import MaskConfig, TimeConfig
from vlakern.models.sequence import Batch, Document, pack
from vlakern.models.vla import time_embedding
from vlakern.testing import generator

Network = Callable[[VLAConfig], VLA]
MakeBatch = Callable[[VLAConfig, Sequence[tuple[str, int]]], Batch]
MakePrompts = Callable[[VLAConfig, Sequence[tuple[str, int]]], list[Document]]
Same = Callable[[Tensor, Tensor], None]
ASKED = [("go", 1), ("push it", 2), ("x", 1)]
TAU = torch.tensor([0.0, 0.3, 0.9])


def chunks(config: VLAConfig, rows: int = 3) -> Tensor:
    return torch.randn(rows, config.chunk, config.action_dim, generator=generator("chunks"))


def alone(config: VLAConfig, docs: list[Document], given: Batch, row: int) -> Batch:
    """Row ``row`` of a batch as a batch of its own."""
    views = [sum(part.kind == "view" for part in doc) for doc in docs]
    first = sum(views[:row])
    pixels = given.pixels_V3SS[first : first + views[row]]
    return pack(config, [docs[row]], pixels, given.state_RS[row : row + 1])


@torch.no_grad()
def test_cached_prefix_equals_uncached(
    config: VLAConfig, network: Network, batch: MakeBatch, same: Same
) -> None:
    """One pass over whole documents gives the velocity of the cached prefix, under every mask."""
    model, given, x = network(config), batch(config, ASKED), chunks(config)
    same(model.velocity(model.prefill(given), x, TAU), model.velocity_uncached(given, x, TAU))


@torch.no_grad()
def test_the_comparison_notices_another_mask(network: Network, batch: MakeBatch) -> None:
    """Every choice of mask changes the velocity by far more than the tolerance of this file."""
    config = preset("tiny")
    model, given, x = network(config), batch(config, ASKED), chunks(config)
    causal = model.velocity(model.prefill(given), x, TAU)
    for mask in (MaskConfig("full"), MaskConfig("full", "block"), MaskConfig(actions="full")):
        other = network(dataclasses.replace(config, mask=mask))
        given = batch(other.config, ASKED)
        moved = other.velocity(other.prefill(given), x, TAU) - causal
        assert moved.abs().max() > 1e-3 * causal.abs().max()


@torch.no_grad()
def test_a_batch_row_equals_the_row_alone(
    config: VLAConfig, network: Network, batch: MakeBatch, prompts: MakePrompts, same: Same
) -> None:
    """Packed with strangers of other lengths or by itself, cached and uncached."""
    model, given, x = network(config), batch(config, ASKED), chunks(config)
    docs = prompts(config, ASKED)
    together = model.velocity(model.prefill(given), x, TAU)
    packed = model.velocity_uncached(given, x, TAU)
    for row in range(3):
        one = alone(config, docs, given, row)
        part = slice(row, row + 1)
        same(model.velocity(model.prefill(one), x[part], TAU[part]), together[part])
        same(model.velocity_uncached(one, x[part], TAU[part]), packed[part])


@torch.no_grad()
def test_a_strangers_nan_stays_in_its_row(network: Network, batch: MakeBatch) -> None:
    """A broken picture, state or noise of one row leaves the bits of the others."""
    config = preset("tiny")
    model, given, x = network(config), batch(config, ASKED), chunks(config)
    clean = model.velocity(model.prefill(given), x, TAU)
    pixels, state = given.pixels_V3SS.clone(), given.state_RS.clone()
    pixels[0], state[0], x[0] = math.nan, math.nan, math.nan
    spoilt = dataclasses.replace(given, pixels_V3SS=pixels, state_RS=state)
    found = model.velocity(model.prefill(spoilt), x, TAU)
    assert bool(found[0].isnan().all())
    assert torch.equal(found[1:], clean[1:])


@torch.no_grad()
def test_a_dropped_view_equals_a_sample_that_never_had_it(
    config: VLAConfig, network: Network, batch: MakeBatch, prompts: MakePrompts, same: Same
) -> None:
    """Its tokens are absent and positions close up; a black picture would be something else."""
    model, x = network(config), chunks(config, 1)
    two = batch(config, [("go", 2)])
    dropped = pack(config, prompts(config, [("go", 1)]), two.pixels_V3SS[1:], two.state_RS)
    never = batch(config, [("go", 1)])
    never = dataclasses.replace(never, pixels_V3SS=two.pixels_V3SS[1:], state_RS=two.state_RS)
    black = pack(config, prompts(config, [("go", 2)]), two.pixels_V3SS.clone(), two.state_RS)
    black.pixels_V3SS[0] = -1.0
    found = [model.velocity(model.prefill(one), x, TAU[:1]) for one in (dropped, never, black, two)]
    assert torch.equal(found[0], found[1])
    for other in found[2:]:
        assert (found[0] - other).abs().max() > 1e-3 * other.abs().max()


@torch.no_grad()
def test_rows_may_share_a_prefix(
    config: VLAConfig, network: Network, batch: MakeBatch, prompts: MakePrompts, same: Same
) -> None:
    """Rows that continue one cached prefix equal rows with a copy of it each."""
    model, given = network(config), batch(config, ASKED)
    docs, index, x = prompts(config, ASKED), torch.tensor([1, 0, 1, 1]), chunks(config, 4)
    tau = torch.tensor([0.1, 0.4, 0.4, 0.8])
    shared = model.velocity(model.prefill(given), x, tau, index)
    for row, source in enumerate(index.tolist()):
        one = model.prefill(alone(config, docs, given, source))
        same(model.velocity(one, x[row : row + 1], tau[row : row + 1]), shared[row : row + 1])


@torch.no_grad()
def test_vision_tokens_may_be_made_before(network: Network, batch: MakeBatch) -> None:
    """prefill with the tower's tokens has the bits of prefill that runs the tower."""
    config = preset("tiny")
    model, given = network(config), batch(config, ASKED)
    one, two = model.prefill(given), model.prefill(given, model.vision(given.pixels_V3SS))
    for left, right in zip(one.layers, two.layers, strict=True):
        assert torch.equal(left.k_TGD, right.k_TGD)
        assert torch.equal(left.v_TGD, right.v_TGD)


@torch.no_grad()
def test_a_prefix_stops_at_its_last_keys_and_values(
    config: VLAConfig, network: Network, batch: MakeBatch
) -> None:
    """Its bits are those of a pass to the end, which has the semantic expert's rows as well."""
    model, given = network(config), batch(config, ASKED)
    one, (two, rows) = model.prefill(given), model.prefill_rows(given)
    for left, right in zip(one.layers, two.layers, strict=True):
        assert torch.equal(left.k_TGD, right.k_TGD)
        assert torch.equal(left.v_TGD, right.v_TGD)
    semantic, state = model.embed_prefix(given)
    assert torch.equal(rows, model.mot(semantic, state, given.layout)[0])


@torch.no_grad()
def test_flow_time_has_three_spellings(network: Network, batch: MakeBatch) -> None:
    """[R], [R, 1] and [R, H] of one value are the same bits; another value is another velocity."""
    config = preset("tiny")
    model, x = network(config), chunks(config)
    prefix = model.prefill(batch(config, ASKED))
    found = model.velocity(prefix, x, TAU)
    assert torch.equal(model.velocity(prefix, x, TAU[:, None]), found)
    everywhere = TAU[:, None].expand(-1, config.chunk)
    assert torch.equal(model.velocity(prefix, x, everywhere), found)
    assert not torch.equal(model.velocity(prefix, x, TAU + 0.05), found)


@torch.no_grad()
def test_causal_actions_see_no_later_action(network: Network, batch: MakeBatch) -> None:
    """Position 3's noise and time move velocities from 3 on; with a full block it moves all."""
    for actions in ("causal", "full"):
        config = dataclasses.replace(preset("tiny"), mask=MaskConfig(actions=actions))
        model, x = network(config), chunks(config)
        prefix = model.prefill(batch(config, ASKED))
        tau = TAU[:, None].repeat(1, config.chunk)
        before = model.velocity(prefix, x, tau)
        x[:, 3] += 1.0
        tau[:, 3] += 0.05
        moved = (model.velocity(prefix, x, tau) != before).flatten(2).any(2)
        assert bool(moved[:, 3:].all())
        assert bool(moved[:, :3].any()) == (actions == "full")


def test_rows_without_prefix_index_are_as_many_as_prefixes(
    network: Network, batch: MakeBatch
) -> None:
    """Two rows for three prefixes say nothing about which; refused."""
    config = preset("tiny")
    model = network(config)
    prefix = model.prefill(batch(config, ASKED))
    with pytest.raises(InputError, match="2 rows for 3 prefixes; say with prefix_index"):
        model.velocity(prefix, chunks(config, 2), TAU[:2])


def bucket(tau: float, config: TimeConfig) -> int:
    """The bucket of τ, read off the first sine and cosine, whose angle is t itself."""
    sine, cosine = time_embedding(torch.tensor([tau]), 2, config)[0].double().tolist()
    candidates = torch.arange(-2, 1002, dtype=torch.float64)
    distance = (candidates.sin() - sine).abs() + (candidates.cos() - cosine).abs()
    return int(candidates[distance.argmin()])


@pytest.mark.parametrize("steps", [3, 4, 7, 10, 1000])
def test_every_step_of_a_solver_lands_in_its_bucket(steps: int) -> None:
    """k / steps in fp32 is in bucket floor(1000 k / steps), though 0.7 is a hair below 0.7."""
    config = TimeConfig(buckets=1000)
    for k in range(0, steps + 1, max(1, steps // 100)):
        assert bucket(k / steps, config) == 1000 * k // steps


def test_time_between_edges_rounds_down() -> None:
    """Just below an edge is the bucket before it; slightly negative times have one of their own."""
    config = TimeConfig(buckets=1000)
    assert [bucket(t, config) for t in (0.1234, 0.12399, 0.124, -0.0005)] == [123, 123, 124, -1]


@pytest.mark.parametrize("width", [2, 8, 48])
def test_embedding_is_the_published_formula(width: int) -> None:
    """sin then cos of t · exp(-i · ln(1e4) / half), i from 0; divided by half, not by half - 1."""
    config, half = TimeConfig(buckets=None, scale=1000.0), width // 2
    found = time_embedding(torch.tensor([0.3337]), width, config)[0]
    t = float(torch.tensor(0.3337).double()) * 1000.0
    angle = [t * math.exp(-i * math.log(1e4) / half) for i in range(half)]
    expected = [math.sin(a) for a in angle] + [math.cos(a) for a in angle]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def test_reverse_time_embeds_one_minus_tau() -> None:
    """With and without buckets; the two conventions differ everywhere but at one half."""
    tau = torch.arange(11) / 10
    for config in (TimeConfig(), TimeConfig(buckets=None)):
        reverse = dataclasses.replace(config, reverse=True)
        there, back = time_embedding(1 - tau, 16, config), time_embedding(tau, 16, reverse)
        limit = 1e-6 if config.buckets else 2e-4
        torch.testing.assert_close(back, there, rtol=0, atol=limit)
        assert (time_embedding(tau, 16, config) - back).abs().amax(1)[0] > 0.1


def test_tau_keeps_its_shape() -> None:
    """[R, H] becomes [R, H, width]."""
    assert time_embedding(torch.zeros(2, 3), 8, TimeConfig()).shape == (2, 3, 8)
