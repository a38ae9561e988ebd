"""From prompts to packed documents: the one place where token order and masks are made.

Dimension letters: R documents, T joint rows, L text tokens, V views, S image side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.models.config import MaskConfig, PromptConfig, VLAConfig
from vlakern.models.mot import Layout
from vlakern.ops.shared_attention import KvEnd

__all__ = ["Batch", "Document", "Segment", "action_layout", "document", "join", "pack"]

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Segment:
    """A run of tokens of one kind; ``tokens`` are ids for text, empty otherwise.

    ``said`` tells the instruction from the words around it.
    """

    kind: Literal["text", "view", "state"]
    tokens: tuple[int, ...] = ()
    said: bool = False


Document = tuple[Segment, ...]


@dataclass(frozen=True)
class Batch:
    """The prefixes of R documents, packed: no padding token anywhere.

    Attributes:
        pixels_V3SS: all views of all documents, in document order, normalised to [-1, 1]; without
            elements, ``[V, 3, 0, 0]``, where an engine holds the images.
        tokens_L: int64, all text tokens in document order.
        said_L: bool, which of them are an instruction's.
        state_RS: one normalised proprioception vector per document.
        semantic_order: int64, row of ``[text | image tokens | states]`` for each semantic row;
            states are there where they are the semantic expert's.
        layout: of the prefix tokens.
        cu_prefix: int64 ``[R + 1]``, each document's joint rows.
    """

    pixels_V3SS: Tensor
    tokens_L: Tensor
    said_L: Tensor
    state_RS: Tensor
    semantic_order: Tensor
    layout: Layout
    cu_prefix: Tensor


def document(
    prompt: PromptConfig,
    encode: Encode,
    instruction: str | Sequence[int],
    views: int,
    state_words: str | None = None,
) -> Document:
    """The segments of one document in the prompt's order; the instruction is text or token ids.

    ``state_words`` stand for the state's token where a model reads its state in words.
    """
    segments: list[Segment] = []

    def text(words: str | Sequence[int], said: bool = False) -> None:
        if isinstance(words, str):
            words = encode(words) if words else ()
        ids = tuple(words)
        if ids:
            segments.append(Segment("text", ids, said))

    def images() -> None:
        each = prompt.wrap_views == "each"
        if not each:
            text(prompt.view_open)
        for _ in range(views):
            if each:
                text(prompt.view_open)
            segments.append(Segment("view"))
            if each:
                text(prompt.view_close)
        if not each:
            text(prompt.view_close)

    for part in prompt.template:
        if part == "{views}":
            images()
        elif part == "{state}" and state_words is not None:
            text(state_words)
        elif part == "{state}":
            segments.append(Segment("state"))
        elif part == "{instruction}":
            text(instruction, said=True)
        else:
            text(part)
    return tuple(segments)


def pack(
    config: VLAConfig, documents: Sequence[Document], pixels_V3SS: Tensor, state_RS: Tensor
) -> Batch:
    """Packs prefixes one after the other.

    Raises:
        InputError: no document, pixels or states that do not fit the documents or the model, or a
            state that has a token where the model reads it in words.
    """
    side, state_dim = config.vision.image_size, config.state_dim
    planes = tuple(pixels_V3SS.shape[1:])
    if planes not in ((3, side, side), (3, 0, 0)) or state_RS.shape[1:] != (state_dim,):
        raise InputError(
            f"found pixels {list(pixels_V3SS.shape)} and states {list(state_RS.shape)}; expected"
            f" [V, 3, {side}, {side}] and [R, {state_dim}]"
        )
    if not documents:
        raise InputError("a batch needs at least one document, found none")
    views = sum(segment.kind == "view" for doc in documents for segment in doc)
    if views != pixels_V3SS.shape[0] or len(documents) != state_RS.shape[0]:
        raise InputError(
            f"{len(documents)} documents with {views} views need as many states and images, found"
            f" {state_RS.shape[0]} states and {pixels_V3SS.shape[0]} images"
        )
    tokens: list[int] = []
    said: list[bool] = []
    for doc in documents:
        for segment in doc:
            tokens.extend(segment.tokens)
            said.extend([segment.said] * len(segment.tokens))
    said_states = sum(segment.kind == "state" for doc in documents for segment in doc)
    if said_states != (0 if config.state == "words" else len(documents)):
        raise InputError(
            f"{len(documents)} documents with {said_states} state tokens, but the model's state is"
            f" {config.state!r}; make documents with state_words if it is 'words', else without"
        )
    images = len(tokens)
    rows = _Rows(config.state, text=0, image=images, state=images + views * config.vision.tokens)
    for doc in documents:
        for segment in doc:
            rows.add(segment, config.vision.tokens)
        rows.close(config.mask)
    lengths = torch.tensor(rows.lengths)
    cu = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    device = pixels_V3SS.device
    layout = Layout(
        semantic_rows=torch.tensor(rows.semantic, dtype=torch.int64, device=device),
        action_rows=torch.tensor(rows.action, dtype=torch.int64, device=device),
        positions=torch.cat([torch.arange(n) for n in rows.lengths]).to(device),
        who=KvEnd(cu.to(device), cu.to(device), torch.tensor(rows.kv_end, device=device)),
    )
    return Batch(
        pixels_V3SS=pixels_V3SS,
        tokens_L=torch.tensor(tokens, dtype=torch.int64, device=device),
        said_L=torch.tensor(said, dtype=torch.bool, device=device),
        state_RS=state_RS,
        semantic_order=torch.tensor(rows.order, dtype=torch.int64, device=device),
        layout=layout,
        cu_prefix=cu.to(device),
    )


class _Rows:
    """The joint rows so far, and which of ``[text | image | state]`` the next of each kind are."""

    def __init__(self, owner: str, **first: int) -> None:
        self.owner, self.next = owner, first
        self.semantic: list[int] = []
        self.action: list[int] = []
        self.order: list[int] = []
        self.kv_end: list[int] = []
        self.lengths: list[int] = []
        self.kinds: list[str] = []

    def add(self, segment: Segment, view_tokens: int) -> None:
        row = sum(self.lengths) + len(self.kinds)
        count = {"text": len(segment.tokens), "view": view_tokens, "state": 1}[segment.kind]
        self.kinds += [segment.kind] * count
        if segment.kind == "state" and self.owner == "action":
            self.action.append(row)
            return
        self.semantic += range(row, row + count)
        kind = "image" if segment.kind == "view" else segment.kind
        self.order += range(self.next[kind], self.next[kind] + count)
        self.next[kind] += count

    def close(self, mask: MaskConfig) -> None:
        """Ends a document and states what its tokens see."""
        self.kv_end += prefix_kv_end(self.kinds, mask)
        self.lengths.append(len(self.kinds))
        self.kinds = []


def prefix_kv_end(kinds: Sequence[str], mask: MaskConfig) -> list[int]:
    """``kv_end`` of one document's prefix tokens, from the rule block(j) <= block(i)."""
    if mask.prefix == "causal":
        return [i + 1 for i in range(len(kinds))]
    if mask.state == "inline" or "state" not in kinds:
        return [len(kinds)] * len(kinds)
    state = kinds.index("state")
    return [state] * state + [state + 1] + [len(kinds)] * (len(kinds) - state - 1)


def action_layout(
    config: VLAConfig, cu_prefix: Tensor, prefix_index: Tensor, chunk: int | None = None
) -> Layout:
    """The layout of one chunk of action tokens per row, continuing cached prefixes.

    Args:
        cu_prefix: int64 ``[N + 1]``, rows of the prefixes.
        prefix_index: int64 ``[R]``, the prefix each row continues.
    """
    chunk = chunk or config.chunk
    device = cu_prefix.device
    step = torch.arange(chunk, device=device)
    begin_R1 = cu_prefix.diff()[prefix_index][:, None]
    seen = step + 1 if config.mask.actions == "causal" else torch.full_like(step, chunk)
    rows = len(prefix_index)
    cu = torch.arange(rows + 1, device=device) * chunk
    none, own = step.new_empty(0), torch.arange(rows * chunk, device=device)
    alone = None
    if config.mot.cross_every:
        ends = begin_R1.expand(-1, chunk).flatten()
        who = KvEnd(cu, torch.zeros_like(cu), ends, cu_prefix, prefix_index)
        alone = Layout(none, own, step.repeat(rows), who)
    return Layout(
        semantic_rows=none,
        action_rows=own,
        positions=(begin_R1 + step).flatten(),
        who=KvEnd(cu, cu, (begin_R1 + seen).flatten(), cu_prefix, prefix_index),
        alone=alone,
    )


def join(prefix: Layout, actions: Layout) -> Layout:
    """One layout in which every document holds its prefix and its actions, nothing cached.

    The experts' rows keep their order: all prefix rows of an expert before all action rows of it.
    ``actions`` has one row per prefix, in order.
    """
    cu_p, cu_a = prefix.who.cu_q, actions.who.cu_q
    cu = cu_p + cu_a
    p_doc = torch.repeat_interleave(torch.arange(len(cu_p) - 1, device=cu.device), cu_p.diff())
    a_doc = torch.repeat_interleave(torch.arange(len(cu_a) - 1, device=cu.device), cu_a.diff())
    p_rows = torch.arange(len(p_doc), device=cu.device) + cu_a[p_doc]
    a_rows = torch.arange(len(a_doc), device=cu.device) + cu_p[a_doc + 1]
    order = torch.cat([p_rows, a_rows]).argsort()
    return Layout(
        semantic_rows=p_rows[prefix.semantic_rows],
        action_rows=torch.cat([p_rows[prefix.action_rows], a_rows[actions.action_rows]]),
        positions=torch.cat([prefix.positions, actions.positions])[order],
        who=KvEnd(cu, cu, torch.cat([prefix.who.kv_end, actions.who.kv_end])[order]),
        apart=(prefix, actions),
    )
