"""Token order, positions and visible ranges of packed documents, from the prompt's words."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch

from vlakern.errors import InputError
from vlakern.models import VLAConfig, preset
from vlakern.models.config import PromptConfig
from vlakern.models.sequence import (
    Batch,
    Document,
    Segment,
    action_layout,
    document,
    join,
    pack,
    prefix_kv_end,
)

MakeBatch = Callable[[VLAConfig, Sequence[tuple[str, int]]], Batch]
MakePrompts = Callable[[VLAConfig, Sequence[tuple[str, int]]], list[Document]]
ASKED = [("go", 1), ("push it", 2), ("x", 1)]


def letters(text: str) -> list[int]:
    return [ord(character) for character in text]


def read(doc: Document) -> str:
    """A document as words: text as it is, ``V`` for a view, ``S`` for the state."""
    signs = {"view": "V", "state": "S"}
    return "".join(signs.get(part.kind) or "".join(map(chr, part.tokens)) for part in doc)


@pytest.mark.parametrize(
    ("prompt", "views", "expected"),
    [
        (PromptConfig(), 2, "VVgoS"),
        (PromptConfig(("a ", "{views}", "{state}", "{instruction}"), "<", ">"), 2, "a <V><V>Sgo"),
        (PromptConfig(view_open="<", view_close=">", wrap_views="all"), 2, "<VV>goS"),
        (PromptConfig(("{instruction}", "{state}", "{views}"), view_close="|"), 1, "goSV|"),
    ],
)
def test_a_document_follows_its_template(prompt: PromptConfig, views: int, expected: str) -> None:
    """Text around each view or once around all; literals and fields in the template's order."""
    assert read(document(prompt, letters, "go", views)) == expected


def kinds_and_order(config: VLAConfig, docs: list[Document]) -> list[tuple[str, int]]:
    """(kind, id) of every joint row: token id, image row or document of the state."""
    rows, image = [], 0
    for index, doc in enumerate(docs):
        for part in doc:
            if part.kind == "text":
                rows += [("text", token) for token in part.tokens]
            elif part.kind == "view":
                rows += [("view", image + i) for i in range(config.vision.tokens)]
                image += config.vision.tokens
            else:
                rows.append(("state", index))
    return rows


def test_experts_own_their_tokens_in_joint_order(
    config: VLAConfig, prompts: MakePrompts, batch: MakeBatch
) -> None:
    """Text and image go to the semantic expert, states to their owner, none twice."""
    docs, given = prompts(config, ASKED), batch(config, ASKED)
    expected = kinds_and_order(config, docs)
    text, views = len(given.tokens_L), sum(kind == "view" for kind, _ in expected)
    found: dict[int, tuple[str, int]] = {}
    for row, source in zip(
        given.layout.semantic_rows.tolist(), given.semantic_order.tolist(), strict=True
    ):
        if source < text:
            found[row] = ("text", int(given.tokens_L[source]))
        elif source < text + views:
            found[row] = ("view", source - text)
        else:
            found[row] = ("state", source - text - views)
    for index, row in enumerate(given.layout.action_rows.tolist()):
        assert row not in found
        found[row] = ("state", index)
    assert [found[row] for row in range(len(expected))] == expected
    assert given.layout.semantic_rows.tolist() == sorted(given.layout.semantic_rows.tolist())


def test_positions_count_from_each_documents_start(config: VLAConfig, batch: MakeBatch) -> None:
    """Joint order, from 0 in every document; actions go on where their prefix ended."""
    given = batch(config, ASKED)
    lengths = given.cu_prefix.diff().tolist()
    assert given.layout.positions.tolist() == [i for n in lengths for i in range(n)]
    actions = action_layout(config, given.cu_prefix, torch.tensor([2, 0, 2]))
    expected = [lengths[p] + i for p in (2, 0, 2) for i in range(config.chunk)]
    assert actions.positions.tolist() == expected


def blocks(config: VLAConfig, kinds: list[str]) -> list[int]:
    """Block of every token of a joined document; a token sees all blocks up to its own."""
    block, out, previous = 0, [], ""
    for kind in kinds:
        mask = config.mask
        if kind == "action":
            new = mask.actions == "causal" or previous != "action"
        elif mask.prefix == "causal":
            new = True
        else:
            new = mask.state == "block" and "state" in (kind, previous)
        block += new
        out.append(block)
        previous = kind
    return out


def test_ranges_follow_the_block_rule(
    config: VLAConfig, prompts: MakePrompts, batch: MakeBatch
) -> None:
    """kv_end of prefixes, of cached actions and of joined documents is block(j) <= block(i)."""
    docs, given = prompts(config, ASKED), batch(config, ASKED)
    actions = action_layout(config, given.cu_prefix, torch.arange(3))
    whole = join(given.layout, actions)
    prefix_end, action_end, joined_end = [], [], []
    for index, doc in enumerate(docs):
        kinds = [kind for kind, _ in kinds_and_order(config, [doc])]
        block = blocks(config, kinds + ["action"] * config.chunk)
        ends = [sum(other <= mine for other in block) for mine in block]
        prefix_end += ends[: len(kinds)]
        action_end += ends[len(kinds) :]
        joined_end += ends
        assert int(given.cu_prefix[index + 1] - given.cu_prefix[index]) == len(kinds)
    assert given.layout.who.kv_end.tolist() == prefix_end
    assert actions.who.kv_end.tolist() == action_end
    assert whole.who.kv_end.tolist() == joined_end


def test_ranges_never_decrease_within_a_document(config: VLAConfig, batch: MakeBatch) -> None:
    """The kernels' backward relies on it: a key is seen by a trailing range of queries."""
    given = batch(config, ASKED)
    whole = join(given.layout, action_layout(config, given.cu_prefix, torch.arange(3)))
    begin = whole.who.cu_q.tolist()
    for first, last in itertools.pairwise(begin):
        ends = whole.who.kv_end[first:last]
        assert bool((ends.diff() >= 0).all())
        assert int(ends[-1]) == last - first


def test_joined_documents_hold_prefix_then_actions(config: VLAConfig, batch: MakeBatch) -> None:
    """Every joint row belongs to one expert row, and positions run through each document."""
    given = batch(config, ASKED)
    whole = join(given.layout, action_layout(config, given.cu_prefix, torch.arange(3)))
    lengths = (given.cu_prefix.diff() + config.chunk).tolist()
    assert whole.positions.tolist() == [i for n in lengths for i in range(n)]
    rows = torch.cat([whole.semantic_rows, whole.action_rows])
    assert rows.sort().values.tolist() == list(range(sum(lengths)))
    actions = whole.action_rows[len(given.layout.action_rows) :].unflatten(0, (3, config.chunk))
    ends = torch.tensor(lengths).cumsum(0)
    assert actions[:, -1].tolist() == (ends - 1).tolist()
    assert bool((actions.diff(dim=1) == 1).all())


def test_a_state_block_is_hidden_from_what_comes_before_it_only() -> None:
    """Before it: itself excluded. The state: itself included. After it: everything."""
    mask = dataclasses.replace(preset("metaworld-small").mask)
    kinds = ["view", "view", "state", "text"]
    assert prefix_kv_end(kinds, mask) == [2, 2, 3, 4]
    assert prefix_kv_end(kinds, dataclasses.replace(mask, state="inline")) == [4, 4, 4, 4]
    assert prefix_kv_end(kinds, dataclasses.replace(mask, prefix="causal")) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("views", "state", "side", "sentence"),
    [
        (2, (1, 7), 28, "1 documents with 1 views .* found 1 states and 2 images"),
        (1, (2, 7), 28, "found 2 states and 1 images"),
        (1, (1, 6), 28, r"states \[1, 6\]; expected .* \[R, 7\]"),
        (1, (1, 7), 27, r"pixels \[1, 3, 27, 27\].*expected \[V, 3, 28, 28\]"),
    ],
)
def test_documents_that_do_not_fit_are_refused(
    views: int, state: tuple[int, int], side: int, sentence: str
) -> None:
    """Counts and widths of pictures and states are checked against documents and model."""
    config = preset("tiny")
    docs = [document(config.prompt, letters, "go", 1)]
    with pytest.raises(InputError, match=sentence):
        pack(config, docs, torch.zeros(views, 3, side, side), torch.zeros(state))


def test_an_empty_batch_is_refused() -> None:
    """No document at all is one sentence, not an error of some kernel."""
    with pytest.raises(InputError, match="at least one document"):
        pack(preset("tiny"), [], torch.zeros(0, 3, 28, 28), torch.zeros(0, 7))


def test_views_are_optional_in_a_document() -> None:
    """A document whose every camera dropped out is text and state."""
    config = dataclasses.replace(preset("tiny"), prompt=PromptConfig())
    doc = document(config.prompt, letters, "go", 0)
    assert doc == (Segment("text", (103, 111), said=True), Segment("state"))
    given = pack(config, [doc], torch.zeros(0, 3, 28, 28), torch.zeros(1, 7))
    assert given.cu_prefix.tolist() == [0, 3]


def test_a_state_in_words_has_no_token() -> None:
    """Its words stand where the template has it; a model of the other kind refuses either."""
    words, token = preset("tiny-pi05"), preset("tiny")
    doc = document(words.prompt, letters, "go", 1, "3 4")
    assert read(doc) == "V<bos>Task: go, State: 3 4;\nAction: "
    assert [part.said for part in doc].count(True) == 1
    pixels, state = torch.zeros(1, 3, 28, 28), torch.zeros(1, 7)
    assert len(pack(words, [doc], pixels, state).layout.action_rows) == 0
    with pytest.raises(InputError, match=r"1 documents with 0 state tokens.*is 'action'"):
        pack(token, [doc], pixels, state)
    with pytest.raises(InputError, match=r"1 documents with 1 state tokens.*is 'words'"):
        pack(words, [document(words.prompt, letters, "go", 1)], pixels, state)


def test_actions_alone_with_the_prefix_count_from_it(batch: MakeBatch) -> None:
    """Where layers cross, a query sees its prefix whole, no action, and its place is from 0."""
    config = preset("tiny-smolvla")
    given, index = batch(config, ASKED), torch.tensor([2, 0])
    alone = action_layout(config, given.cu_prefix, index).alone
    assert alone is not None
    lengths = given.cu_prefix.diff().tolist()
    assert alone.who.kv_end.tolist() == [lengths[2]] * config.chunk + [lengths[0]] * config.chunk
    assert alone.who.cu_k.tolist() == [0, 0, 0]
    assert alone.positions.tolist() == [*range(config.chunk)] * 2
