"""What a call brings, filled up to the size of a program."""

import dataclasses
from types import ModuleType
from typing import Any

import pytest
import torch

from vlakern.errors import InputError
from vlakern.flow.guidance import Guidance
from vlakern.flow.solver import Frozen
from vlakern.infer.buffers import Limits
from vlakern.infer.device_buffers import chunk_inbox, led_inbox, prefix_inbox
from vlakern.infer.device_inputs import (
    Chunks,
    Sources,
    fill_chunks,
    fill_led,
    fill_nothing,
    fill_prefix,
    on_host,
)

CPU = torch.device("cpu")
TOKENS, MOST, IMAGES = 96, 5, 40  # of the program; rows of image tokens in the sources


@pytest.fixture
def filled(lab: ModuleType) -> tuple[Any, dict[str, torch.Tensor]]:
    """Two observations in a program for more of everything, after another call."""
    scene = lab.Scene("tiny").only(3, 0)
    config, batch = scene.config, scene.batch()
    inbox = prefix_inbox(config, Limits(MOST, 9, TOKENS + 8, 4), CPU)
    for one in inbox.host.values():
        one.fill_(77)
    sources = Sources(IMAGES, TOKENS + 8, 512, config.state)
    fill_prefix(inbox, batch, TOKENS, sources, scene.views * config.vision.tokens)
    return batch, inbox.device


def test_rows_are_a_permutation_of_all(filled: Any) -> None:
    """Those of the batch as it has them, then those that fill up; and the inverse."""
    batch, found = filled
    joint = TOKENS + MOST
    rows = torch.cat([found["semantic_rows"][:TOKENS], found["action_rows"]])
    assert rows.sort().values.tolist() == list(range(joint))
    semantic = batch.layout.semantic_rows
    assert torch.equal(rows[: len(semantic)], semantic.int())
    assert torch.equal(found["action_rows"][:2], batch.layout.action_rows.int())
    assert torch.equal(rows[found["joint_order"][:joint].long()], torch.arange(joint).int())


def test_what_fills_up_sees_nothing_and_is_a_document_of_its_own(filled: Any) -> None:
    """Documents that there are not have no rows; the last has all that are left, and no keys."""
    batch, found = filled
    used, joint = int(batch.cu_prefix[-1]), TOKENS + MOST
    assert found["cu"].tolist() == [*batch.cu_prefix.tolist(), used, used, used, joint]
    assert torch.equal(found["kv_end"][:used], batch.layout.who.kv_end)
    assert not found["kv_end"][used:joint].any()
    assert not found["positions"][used:joint].any()
    assert not found["state"][2:].any()
    assert torch.equal(found["state"][:2], batch.state_RS)


def test_sources_are_images_and_then_words(filled: Any) -> None:
    """The batch's order says text first; both lead to the same token."""
    batch, found = filled
    words, order = len(batch.tokens_L), batch.semantic_order
    sources = torch.full((IMAGES + TOKENS,), -1)
    sources[:8] = torch.arange(1000, 1008)  # image tokens
    sources[IMAGES : IMAGES + words] = batch.tokens_L
    expected = torch.cat([batch.tokens_L, torch.arange(1000, 1008)])[order]
    assert torch.equal(sources[found["order"][: len(order)].long()], expected)
    assert torch.equal(found["tokens"][:words], batch.tokens_L.int())
    assert not found["tokens"][words:TOKENS].any()


def test_nothing_is_a_call_too(lab: ModuleType) -> None:
    """Programs are bound and recorded on it: every index is in range."""
    config = lab.Scene("tiny").config
    inbox = prefix_inbox(config, Limits(MOST, 9, TOKENS, 4), CPU)
    fill_nothing(inbox, 32)
    found = inbox.device
    assert found["cu"].tolist() == [0] * (MOST + 1) + [32 + MOST]
    assert found["joint_order"][: 32 + MOST].tolist() == list(range(32 + MOST))
    assert found["action_rows"].tolist() == list(range(32, 32 + MOST))


def chunks(lab: ModuleType, **changes: Any) -> Any:
    """Two chunks of the second of two prefixes, in a program of four."""
    scene = lab.Scene("tiny").only(0, 1)
    given = Chunks(scene.noise(), torch.tensor([0, 30, 70]), torch.tensor([1, 1]))
    inbox = chunk_inbox(scene.config, Limits(3, 9, 99, 8), 4, CPU)
    for one in inbox.host.values():
        one.fill_(7)
    fill_chunks(inbox, dataclasses.replace(given, **changes), 4, causal=True)
    return given.noise_NHA, inbox.device


def test_chunks_that_fill_up_see_nothing(lab: ModuleType) -> None:
    """They have no noise, position or frozen action; every slot is there."""
    noise, found = chunks(lab)
    assert found["kv_end"][:24].tolist() == [*range(41, 47), *range(41, 47)] + [0] * 12
    assert found["positions"][:24].tolist() == [*range(40, 46), *range(40, 46)] + [0] * 12
    assert found["cu_prefix"].tolist() == [0, 30, 70, 70]
    assert found["prefix_index"][:4].tolist() == [1, 1, 0, 0]
    assert torch.equal(found["noise"][:2], noise)
    assert not found["noise"][2:4].any()
    assert not found["frozen_len"][:4].any()
    assert bool((found["slot_mask"][:4] == 1).all())
    assert found["times"][:, :24].tolist() == [[i] * 24 for i in range(4)]


def test_frozen_positions_are_where_they_end(lab: ModuleType) -> None:
    """Their noise is the action, their time the table's last row; NaN behind them is not read."""
    action = torch.full((2, 6, 5), float("nan"))
    action[1, :2] = 5.0
    mask = torch.tensor([[1, 0, 1, 1, 1], [1, 1, 1, 1, 0]], dtype=torch.uint8)
    frozen = Frozen(action, torch.tensor([0, 2]))
    noise, found = chunks(lab, frozen=frozen, slot_mask=mask)
    assert bool((found["noise"][1, :2] == 5.0).all())
    assert torch.equal(found["noise"][1, 2:], noise[1, 2:])
    assert torch.equal(found["noise"][0], noise[0])
    assert found["frozen_len"][:4].tolist() == [0, 2, 0, 0]
    assert found["times"][:, 6:12].tolist() == [[4, 4, i, i, i, i] for i in range(4)]
    assert torch.equal(found["slot_mask"][:2], mask)
    assert bool((found["slot_mask"][2:4] == 1).all())


def test_chunks_are_led_one_by_one(lab: ModuleType) -> None:
    """Those that fill up are not, and none is without guidance, whatever was sent before."""
    decided, weights = torch.randn(2, 6, 5), torch.rand(2, 6, 5)
    guidance = Guidance(decided, weights, 2.5)
    assert chunks(lab, guidance=guidance)[1]["most"][:4].tolist() == [2.5, 2.5, 0, 0]
    assert not chunks(lab)[1]["most"][:4].any()
    inbox = led_inbox(lab.Scene("tiny").config, Limits(3, 9, 99, 8), CPU)
    fill_led(inbox, guidance)
    assert torch.equal(inbox.device["decided"][:2], decided)
    assert torch.equal(inbox.device["weights"][:2], weights)


def test_a_prefix_that_is_not_there_is_refused(lab: ModuleType) -> None:
    """Whichever way it is not."""
    for index in (2, -1):
        with pytest.raises(InputError, match="prefix_index leads to a prefix that is not there"):
            chunks(lab, prefix_index=torch.tensor([0, index]))


def test_more_prefixes_than_there_is_room_for_are_refused(lab: ModuleType) -> None:
    """As of a clone from an engine for more observations."""
    with pytest.raises(InputError, match="4 prefixes, it is built for 3"):
        chunks(lab, cu_prefix=torch.tensor([0, 10, 20, 30, 40], dtype=torch.int32))


def test_rows_that_are_no_permutation_are_refused(lab: ModuleType) -> None:
    """A joint row twice, or states that are not as many as their rows."""
    scene = lab.Scene("tiny").only(0)
    config, batch = scene.config, scene.batch()
    inbox = prefix_inbox(config, Limits(MOST, 9, TOKENS, 4), CPU)
    twice = dataclasses.replace(batch.layout, semantic_rows=batch.layout.semantic_rows * 0)
    bad = [
        (dataclasses.replace(batch, layout=twice), "together a permutation of all rows"),
        (dataclasses.replace(batch, state_RS=batch.state_RS[:0]), "as many as their rows"),
        (dataclasses.replace(batch, semantic_order=batch.semantic_order[1:]), "as many as their"),
    ]
    for one, message in bad:
        with pytest.raises(InputError, match=message):
            fill_prefix(inbox, one, TOKENS, Sources(IMAGES, TOKENS, 512, config.state), 4)


def test_states_of_the_semantic_expert_are_sources_after_the_words(lab: ModuleType) -> None:
    """Of rows of their own there are none, and no state after the last."""
    scene = lab.Scene("tiny-smolvla").only(3, 0)
    config, batch = scene.config, scene.batch()
    inbox = prefix_inbox(config, Limits(MOST, 9, TOKENS, 4), CPU)
    sources = Sources(IMAGES, TOKENS, 512, config.state)
    seen = scene.views * config.vision.tokens
    fill_prefix(inbox, batch, TOKENS, sources, seen)
    found, first = inbox.device, len(batch.tokens_L) + seen
    assert len(found["action_rows"]) == 0
    order, given = found["order"][: len(batch.semantic_order)], batch.semantic_order
    assert order[given >= first].tolist() == [IMAGES + TOKENS, IMAGES + TOKENS + 1]
    assert order[given < first].max() < IMAGES + len(batch.tokens_L)
    bad = dataclasses.replace(batch, semantic_order=given + 1)
    with pytest.raises(InputError, match="words, 8 image tokens and 2 states"):
        fill_prefix(inbox, bad, TOKENS, sources, seen)


def test_a_batch_elsewhere_is_brought_whole(
    lab: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One on the host stays; of one on a device no tensor but the pixels stays behind."""
    batch = lab.Scene("tiny").batch()
    assert on_host(batch) is batch
    asked: list[int] = []
    elsewhere = dataclasses.replace(batch, tokens_L=batch.tokens_L.to("meta"))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda one: asked.append(id(one)) or one)
    found = on_host(elsewhere)
    layout = elsewhere.layout
    given = (elsewhere.tokens_L, batch.state_RS, batch.semantic_order, batch.cu_prefix)
    given += (layout.semantic_rows, layout.action_rows, layout.positions)
    assert asked == [id(one) for one in given]
    assert torch.equal(found.layout.who.kv_end, layout.who.kv_end)
