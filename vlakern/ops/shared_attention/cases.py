"""The shapes of shared attention that tests and benchmarks use."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from vlakern.ops.shared_attention.kv_end import KvEnd

__all__ = ["CASES", "Case", "Inputs", "make"]


@dataclass(frozen=True)
class Case:
    """The documents of one call.

    Attributes:
        name: in words.
        heads, groups, head_dim: query heads, key-value heads and their width.
        blocks: per document, the sizes of its blocks; a token sees the cached prefix and every
            block up to its own.
        prefixes: rows of each cached prefix.
        index: the prefix that each document continues; empty for none.
        blind: how many leading queries of each document see nothing at all.
    """

    name: str
    heads: int
    groups: int
    head_dim: int
    blocks: tuple[tuple[int, ...], ...]
    prefixes: tuple[int, ...] = ()
    index: tuple[int, ...] = ()
    blind: int = 0


@dataclass(frozen=True)
class Inputs:
    """Arguments of ``shared_attention``; T = S, every own token asks."""

    q_THD: Tensor
    k_SGD: Tensor
    v_SGD: Tensor
    who: KvEnd
    prefix_k_PGD: Tensor | None
    prefix_v_PGD: Tensor | None


CASES = (
    Case("one token", 1, 1, 2, ((1,),)),
    Case("causal", 4, 2, 8, ((1,) * 7,)),
    Case("full", 4, 4, 8, ((5,), (3,))),
    Case("ragged causal documents", 4, 2, 8, ((1,) * 3, (1,) * 9, (1,))),
    Case("full prefix, state block, causal actions", 6, 2, 4, ((5, 1, 2, 1, 1, 1), (3, 1, 1, 1))),
    Case("full prefix, state block, full actions", 6, 3, 4, ((4, 1, 6), (7, 1, 2, 6))),
    Case("causal chunk on cached prefixes", 4, 1, 8, ((1,) * 6,) * 2, (9, 4), (0, 1)),
    Case("full chunk on cached prefixes", 4, 2, 8, ((6,),) * 3, (3, 8, 5), (2, 0, 1)),
    Case("one prefix shared by several rows", 4, 2, 8, ((1,) * 4,) * 4, (5, 7), (1, 1, 0, 1)),
    Case("an empty prefix", 2, 1, 4, ((1,) * 3,) * 2, (0, 6), (0, 1)),
    Case("queries that see nothing", 4, 2, 8, ((1,) * 4, (6,)), blind=2),
)


def make(case: Case, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Inputs:
    """Random inputs of a case, drawn in fp64 and rounded to ``dtype``."""
    own = [sum(blocks) for blocks in case.blocks]
    before = [case.prefixes[i] for i in case.index] or [0] * len(own)

    def draw(rows: int, heads: int) -> Tensor:
        shape = (rows, heads, case.head_dim)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    cu = torch.tensor([0, *accumulate(own)])
    ends = [
        0 if token < case.blind else begin + end
        for begin, blocks in zip(before, case.blocks, strict=True)
        for token, end in enumerate(_ends(blocks))
    ]
    cached = bool(case.index)
    return Inputs(
        q_THD=draw(sum(own), case.heads),
        k_SGD=draw(sum(own), case.groups),
        v_SGD=draw(sum(own), case.groups),
        who=KvEnd(
            cu,
            cu,
            torch.tensor(ends),
            torch.tensor([0, *accumulate(case.prefixes)]) if cached else None,
            torch.tensor(case.index) if cached else None,
        ),
        prefix_k_PGD=draw(sum(case.prefixes), case.groups) if cached else None,
        prefix_v_PGD=draw(sum(case.prefixes), case.groups) if cached else None,
    )


def _ends(blocks: tuple[int, ...]) -> list[int]:
    """For every token, how many own tokens its block and the blocks before it hold."""
    return [end for size, end in zip(blocks, accumulate(blocks), strict=True) for _ in range(size)]
