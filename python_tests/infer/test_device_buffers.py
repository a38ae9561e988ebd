"""The device engine's memory and how inputs get there."""

import pytest
import torch

from vlakern.errors import InputError
from vlakern.infer.buffers import Limits
from vlakern.infer.device_buffers import (
    LINE,
    Inbox,
    chunk_inbox,
    device_buffers,
    led_inbox,
    prefix_inbox,
)
from vlakern.models import preset

CPU = torch.device("cpu")


def test_one_copy_sends_everything() -> None:
    """Arrays of any shape and dtype, each from a line on; nothing is there before it is sent."""
    shapes = {
        "a": ((3,), torch.uint8),
        "b": ((2, 5), torch.float32),
        "c": ((0, 4), torch.int32),
        "d": ((7,), torch.int32),
    }
    inbox = Inbox(shapes, CPU)
    host = inbox.open()
    for i, (name, (shape, dtype)) in enumerate(shapes.items(), start=1):
        assert (tuple(host[name].shape), host[name].dtype) == (shape, dtype)
        host[name].fill_(i)
    assert all(not one.any() for one in inbox.device.values())
    inbox.send()
    for name in shapes:
        assert torch.equal(inbox.device[name], host[name])
    places = [inbox.device[name].data_ptr() - inbox.device["a"].data_ptr() for name in "abd"]
    assert places == [0, LINE, 2 * LINE]
    assert host["a"].data_ptr() != inbox.device["a"].data_ptr()


def test_bytes_add_up() -> None:
    """All buffers are counted; keys and values grow with the tokens."""
    config = preset("tiny")
    one, two = (
        device_buffers(config, Limits(1, 2, tokens, 3), 4, torch.bfloat16, CPU)
        for tokens in (63, 127)
    )
    assert one.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in one.tensors)
    assert two.kv.nbytes == 2 * one.kv.nbytes
    assert {"x", "normed", "qkv", "hidden"} == set(one.semantic) == set(one.action)
    assert one.dtau.tolist() == [0.25] * 3
    assert one.kv.dtype == torch.bfloat16
    assert one.x.dtype == one.velocity.dtype == one.time.dtype == torch.float32


def test_memory_that_is_not_there_is_named() -> None:
    """One sentence with the megabytes and what they are for."""
    config = preset("tiny")
    with pytest.raises(InputError, match=r"needs \d+ MB for what its stages pass on, and they are"):
        device_buffers(config, Limits(1, 1, 1 << 30, 1 << 30), 4, torch.float32, CPU)


def test_inboxes_hold_the_largest_call() -> None:
    """One more document than observations, for the rows that fill a call up."""
    config, limits = preset("tiny"), Limits(2, 4, 80, 6)
    prefix, chunk = prefix_inbox(config, limits, CPU), chunk_inbox(config, limits, 8, CPU)
    shapes = {name: tuple(one.shape) for name, one in (prefix.host | chunk.host).items()}
    assert shapes == {
        "tokens": (80,),
        "order": (80,),
        "semantic_rows": (80,),
        "action_rows": (2,),
        "joint_order": (82,),
        "positions": (36,),
        "kv_end": (36,),
        "cu": (4,),
        "state": (2, 7),
        "noise": (6, 6, 5),
        "frozen": (6, 6, 5),
        "frozen_len": (6,),
        "slot_mask": (6, 5),
        "prefix_index": (6,),
        "cu_prefix": (3,),
        "times": (8, 36),
        "most": (6,),
    }
    led = led_inbox(config, limits, CPU).host
    assert {name: tuple(one.shape) for name, one in led.items()} == {
        "decided": (6, 6, 5),
        "weights": (6, 6, 5),
    }


def test_other_kinds_have_what_they_need_and_no_more() -> None:
    """Modulations and crossing layers have memory of their own; states rows where they belong."""
    limits = Limits(2, 4, 80, 6)
    made = {
        name: device_buffers(preset(name), limits, 4, torch.float32, CPU)
        for name in ("tiny-pi0", "tiny-pi05", "tiny-smolvla")
    }
    rows = {name: (len(b.group), len(b.added), b.cross.shape[1]) for name, b in made.items()}
    assert rows == {"tiny-pi0": (0, 0, 0), "tiny-pi05": (36, 36, 0), "tiny-smolvla": (0, 0, 80)}
    assert [b.kv.shape[2] for b in made.values()] == [82, 80, 80]
    assert [len(b.sources) - len(b.joined) - 80 for b in made.values()] == [0, 0, 2]
    ends = {name: chunk_inbox(preset(name), limits, 8, CPU).host for name in made}
    assert ["prefix_end" in one for one in ends.values()] == [False, False, True]
