"""Tables of names: every tensor of a file is used or skipped with a reason; folds are undone."""

import pytest
import torch

from vlakern.errors import CheckpointError
from vlakern.models.weights.names import (
    NEGATE,
    PLUS_ONE,
    SAME,
    Fold,
    Rule,
    Table,
    bind,
    joined,
    scaled,
    zeros,
)

TABLE = Table(
    rules=(
        Rule("layers.{n}.qkv", ("l.{n}.q", "l.{n}.k", "l.{n}.v"), joined(3), layers=2),
        Rule("norm", ("n",), PLUS_ONE),
        Rule("words", ("embed",), scaled(4.0)),
        Rule("bias", (), zeros()),
    ),
    aliases=((r"^model\.", ""), (r"^net\.", "")),
    stand_ins=(("embed", "head"),),
    skipped=((r"head", "tied with embed"), (r"dead\..*", "never used")),
)
NATIVE = {"layers.0.qkv": (6, 3), "layers.1.qkv": (6, 3), "norm": (3,), "words": (5, 3)}
NATIVE |= {"bias": (4,)}


def source(**changes: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    """Shapes of a good file but for the changes; None takes a tensor away."""
    names = {f"model.l.{n}.{part}": (2, 3) for n in range(2) for part in "qkv"}
    names |= {"model.n": (3,), "model.embed": (5, 3)}
    given = {name.replace("__", "."): shape for name, shape in changes.items()}
    return {name: shape for name, shape in (names | given).items() if shape is not None}  # type: ignore[misc]


def test_tensors_are_made_when_asked_for() -> None:
    """Joined, shifted and scaled by their rules; nothing else of the file is touched."""
    tensors = {name: torch.randn(shape).bfloat16() for name, shape in source().items()}
    asked: list[str] = []

    def get(name: str) -> torch.Tensor:
        asked.append(name)
        return tensors[name]

    weight = bind(TABLE, NATIVE, source(), "here").weights(get)
    assert asked == []
    parts = [tensors[f"model.l.1.{part}"] for part in "qkv"]
    assert torch.equal(weight("layers.1.qkv"), torch.cat(parts))
    assert torch.equal(weight("norm"), 1 + tensors["model.n"].float())
    assert torch.equal(weight("words"), 4 * tensors["model.embed"])
    assert torch.equal(weight("bias"), torch.zeros(4))
    assert len(asked) == 5


def test_a_tied_tensor_takes_the_place_of_a_missing_one() -> None:
    """And is skipped with its reason where both are there."""
    alone = bind(TABLE, NATIVE, source(model__embed=None, net__head=(5, 3)), "here")
    assert alone.made["words"][0] == ("net.head",)
    assert alone.skipped == {}
    both = bind(TABLE, NATIVE, source(head=(5, 3), dead__x=(9,)), "here")
    assert both.made["words"][0] == ("model.embed",)
    assert both.skipped == {"head": "tied with embed", "dead.x": "never used"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__n": None}, "lacks 'n'.*1 tensors missing, 0 unknown"),
        ({"model__more": (1,)}, "holds 'model.more', which is unknown"),
        ({"model__l__1__k": (4, 3)}, r"'model.l.1.k' has shape \(4, 3\).* needs \(2, 3\)"),
        ({"n": (3,)}, "'model.n' and 'n' are one tensor under two names"),
    ],
)
def test_another_file_is_refused(changes: dict, message: str) -> None:
    """By the name of the tensor, before anything is read."""
    with pytest.raises(CheckpointError, match=message):
        bind(TABLE, NATIVE, source(**changes), "here")


def test_a_table_that_forgets_a_tensor_is_refused() -> None:
    """A native tensor that no rule makes would be left as it was in memory."""
    with pytest.raises(CheckpointError, match="no rule makes 'gate'"):
        bind(TABLE, NATIVE | {"gate": (1,)}, source(), "here")


@pytest.mark.parametrize("fold", [SAME, NEGATE, PLUS_ONE, scaled(45.2548), joined(3)])
def test_folds_are_undone(fold: Fold) -> None:
    """To the bit, or within one rounding of the sum or product where digits were dropped."""
    shapes = fold.shapes((6, 4))
    parts = [torch.randn(shape) * 0.1 for shape in shapes]
    folded = fold.apply(parts)
    assert tuple(folded.shape) == (6, 4)
    back = fold.undo(folded)
    for left, right in zip(parts, back, strict=True):
        if fold.exact:
            assert torch.equal(left, right)
        torch.testing.assert_close(left, right, rtol=2.4e-7, atol=1.2e-7)
