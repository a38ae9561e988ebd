"""What a call brings, filled up to the size of a program, in the host's half of an inbox.

Dimension letters: E semantic rows, R observations, J = E + R joint rows, T of them in use, L words,
N chunks, H positions of a chunk, A slots.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.flow.guidance import Guidance
from vlakern.flow.solver import Frozen
from vlakern.infer.device_buffers import Inbox
from vlakern.models.sequence import Batch

__all__ = ["Chunks", "Sources", "fill_chunks", "fill_led", "fill_nothing", "fill_prefix", "on_host"]


@dataclass(frozen=True)
class Chunks:
    """What one integration brings; see ``Engine.integrate``.

    Attributes:
        cu_prefix: int32 ``[R + 1]``.
        prefix_index: int32 ``[N]``.
        slot_mask: uint8 ``[N, A]``.
    """

    noise_NHA: Tensor
    cu_prefix: Tensor
    prefix_index: Tensor
    frozen: Frozen | None = None
    slot_mask: Tensor | None = None
    guidance: Guidance | None = None


def on_host(batch: Batch) -> Batch:
    """The same batch in the host's memory, from where one copy sends it; waits for a GPU."""
    if batch.tokens_L.device.type == "cpu":
        return batch
    layout = batch.layout
    return replace(
        batch,
        tokens_L=batch.tokens_L.cpu(),
        state_RS=batch.state_RS.cpu(),
        semantic_order=batch.semantic_order.cpu(),
        cu_prefix=batch.cu_prefix.cpu(),
        layout=replace(
            layout,
            semantic_rows=layout.semantic_rows.cpu(),
            action_rows=layout.action_rows.cpu(),
            positions=layout.positions.cpu(),
            who=layout.who.to("cpu"),
        ),
    )


def fill_nothing(inbox: Inbox, tokens: int) -> None:
    """No observation at all: every row of a prefill of ``tokens`` semantic rows is filled up."""
    host = inbox.open()
    joint = tokens + len(host["action_rows"])
    for one in host.values():
        one.zero_()
    host["semantic_rows"][:tokens] = torch.arange(tokens)
    host["action_rows"].copy_(torch.arange(tokens, joint))
    host["joint_order"][:joint] = torch.arange(joint)
    host["cu"][-1] = joint
    inbox.send()


@dataclass(frozen=True)
class Sources:
    """What semantic rows are made of, in the order of ``DeviceBuffers.sources``.

    Attributes:
        images, words: rows that there is room for; states follow.
        vocabulary: rows of the embedding.
        state: whose token the state is, as in a config.
    """

    images: int
    words: int
    vocabulary: int
    state: str


def fill_prefix(inbox: Inbox, batch: Batch, tokens: int, sources: Sources, image_rows: int) -> None:
    """A batch in a prefill of ``tokens`` semantic rows.

    Rows that fill it up belong to a document after all others, of which nobody sees a key.

    Args:
        image_rows: rows of this batch's image tokens.

    Raises:
        InputError: the batch does not fit itself or the model.
    """
    layout, words = batch.layout, batch.tokens_L
    semantic, states = layout.semantic_rows, layout.action_rows
    order, cu = batch.semantic_order, layout.who.cu_q
    _check(batch, image_rows, sources)
    host = inbox.open()
    most, count = len(host["action_rows"]), len(states)
    used, joint = len(semantic) + count, tokens + most
    spare = tokens - len(semantic)
    _put(host["tokens"], words, tokens)
    _put(host["order"], _in_sources(order, len(words), image_rows, sources), tokens)
    _put(host["state"], batch.state_RS, len(host["state"]))
    rows, more = host["semantic_rows"][:tokens], host["action_rows"]
    rows[: len(semantic)], more[:count] = semantic, states
    rows[len(semantic) :] = torch.arange(used, used + spare)
    more[count:] = torch.arange(used + spare, joint)
    host["joint_order"][torch.cat([rows, more]).long()] = torch.arange(joint, dtype=torch.int32)
    _put(host["positions"], layout.positions, joint)
    _put(host["kv_end"], layout.who.kv_end, joint)
    host["cu"][: len(cu)] = cu
    host["cu"][len(cu) : -1] = used
    host["cu"][-1] = joint
    inbox.send()


def _in_sources(order: Tensor, words: int, image_rows: int, sources: Sources) -> Tensor:
    """The batch counts text, images and states; the buffer images, text and states, with room."""
    first_state = words + image_rows
    states = order - first_state + sources.images + sources.words
    found = torch.where(order < words, order + sources.images, order - words)
    return torch.where(order < first_state, found, states)


def _put(to: Tensor, values: Tensor, count: int) -> None:
    """Values, and zeros up to ``count``."""
    to[: len(values)] = values
    to[len(values) : count] = 0


def _check(batch: Batch, image_rows: int, sources: Sources) -> None:
    words, order, layout = batch.tokens_L, batch.semantic_order, batch.layout
    vocabulary, states = sources.vocabulary, len(batch.state_RS)
    if len(words) and not 0 <= int(words.min()) <= int(words.max()) < vocabulary:
        raise InputError(
            f"engine: tokens must be in [0, {vocabulary}), got {int(words.min())} to"
            f" {int(words.max())}"
        )
    inline = states if sources.state == "semantic" else 0
    most = len(words) + image_rows + inline
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < most:
        more = (
            f", {image_rows} image tokens and {inline} states"
            if inline
            else (f" and {image_rows} image tokens")
        )
        raise InputError(
            f"engine: semantic_order must be in [0, {most}), of {len(words)} words{more}"
        )
    joint = torch.cat([layout.semantic_rows, layout.action_rows])
    own = states if sources.state == "action" else 0
    if len(order) != len(layout.semantic_rows) or own != len(layout.action_rows):
        raise InputError("engine: semantic_order and states must be as many as their rows")
    if not torch.equal(joint.sort().values, torch.arange(len(layout.positions))):
        raise InputError("engine: the experts' rows must be together a permutation of all rows")


def fill_chunks(inbox: Inbox, given: Chunks, rows: int, causal: bool) -> None:
    """An integration in a program of ``rows`` chunks; those that fill it up see nothing.

    Args:
        causal: an action sees the actions up to itself, else the whole chunk.

    Raises:
        InputError: a prefix that is not there.
    """
    noise, cu, index = given.noise_NHA, given.cu_prefix, given.prefix_index.long()
    count, chunk = noise.shape[:2]
    host = inbox.open()
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(cu) - 1:
        raise InputError("engine: prefix_index leads to a prefix that is not there")
    begin_N1 = cu.diff()[index][:, None]
    step = torch.arange(chunk)
    if len(cu) > len(host["cu_prefix"]):
        raise InputError(
            f"engine: {len(cu) - 1} prefixes, it is built for {len(host['cu_prefix']) - 1}"
        )
    _put(host["positions"], (begin_N1 + step).flatten(), rows * chunk)
    seen = step + 1 if causal else torch.full_like(step, chunk)
    _put(host["kv_end"], (begin_N1 + seen).flatten(), rows * chunk)
    if "prefix_end" in host:  # of layers in which actions see the prefix alone
        _put(host["prefix_end"], begin_N1.expand(-1, chunk).flatten(), rows * chunk)
    _put(host["prefix_index"], index, rows)
    _put(host["cu_prefix"], cu, len(cu))
    host["cu_prefix"][len(cu) :] = cu[-1]
    host["slot_mask"][:rows] = 1
    if given.slot_mask is not None:
        host["slot_mask"][:count] = given.slot_mask
    times = host["times"].view(len(host["times"]), -1, chunk)
    times[:, :rows] = torch.arange(len(times))[:, None, None]
    _put(host["noise"], noise, rows)
    host["most"][:rows] = 0
    if given.guidance is not None:
        host["most"][:count] = given.guidance.most
    host["frozen_len"][:rows] = 0
    if given.frozen is not None:
        action, length = given.frozen.action_RHA, given.frozen.length_R
        done = step < length[:, None].to(step.device)
        host["frozen"][:count] = action
        host["frozen_len"][:count] = length
        host["noise"][:count] = torch.where(done[..., None], host["frozen"][:count], noise.cpu())
        # Decided positions are actions: their flow time is 1 throughout, a table's last row.
        times[:, :count] = torch.where(done, len(times), times[:, :count])
    inbox.send()


def fill_led(inbox: Inbox, guidance: Guidance) -> None:
    """What chunks are led to; ``fill_chunks`` says which chunks are."""
    host, count = inbox.open(), len(guidance.decided_RHA)
    host["decided"][:count] = guidance.decided_RHA
    host["weights"][:count] = guidance.weights_RHA
    inbox.send()
