"""The shapes of shared attention that tests and benchmarks use, real ones and random ones."""

import random
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from vlakern.ops.shared_attention.kv_end import KvEnd

__all__ = [
    "BENCH",
    "CASES",
    "Case",
    "Inputs",
    "make",
    "operations",
    "random_case",
    "traffic",
    "written",
]


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
        shuffled: q and the results are in another order than the joint one.
        strided: heads and rows of every input lie further apart than they must.
    """

    name: str
    heads: int
    groups: int
    head_dim: int
    blocks: tuple[tuple[int, ...], ...]
    prefixes: tuple[int, ...] = ()
    index: tuple[int, ...] = ()
    blind: int = 0
    shuffled: bool = False
    strided: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def pairs(self) -> int:
        """How many (query, visible key) pairs there are; each costs 4 · H · D operations."""
        return sum(map(sum, _ends(self)))


@dataclass(frozen=True)
class Inputs:
    """Arguments of ``shared_attention``; T = S, every own token asks."""

    q_THD: Tensor
    k_SGD: Tensor
    v_SGD: Tensor
    who: KvEnd
    prefix_k_PGD: Tensor | None
    prefix_v_PGD: Tensor | None
    rows_T: Tensor | None = None


ONES = (1,) * 64
CASES = (
    Case("one token", 1, 1, 8, ((1,),)),
    Case("causal", 4, 2, 8, (ONES[:7],)),
    Case("full", 4, 4, 16, ((5,), (3,)), shuffled=True),
    Case("ragged causal documents", 4, 2, 8, (ONES[:3], ONES[:9], (1,))),
    Case(
        "full prefix, state block, causal actions",
        6,
        2,
        24,
        ((5, 1, 2, 1, 1, 1), (3, 1, 1, 1)),
        shuffled=True,
    ),
    Case(
        "full prefix, state block, full actions", 6, 3, 8, ((4, 1, 6), (7, 1, 2, 6)), strided=True
    ),
    Case("causal chunk on cached prefixes", 4, 1, 8, (ONES[:6],) * 2, (9, 4), (0, 1)),
    Case("full chunk on cached prefixes", 4, 2, 8, ((6,),) * 3, (3, 8, 5), (2, 0, 1)),
    Case("one prefix shared by several rows", 4, 2, 8, (ONES[:4],) * 4, (5, 7), (1, 1, 0, 1)),
    Case("an empty prefix", 2, 1, 40, (ONES[:3],) * 2, (0, 6), (0, 1), strided=True),
    Case("queries that see nothing", 4, 2, 8, (ONES[:4], (6,)), blind=2),
    Case(
        "a prefix that nobody continues", 3, 1, 8, ((2,), (1, 2)), (2, 3, 1), (2, 0), shuffled=True
    ),
    Case("longer than a block, D 72", 2, 2, 72, ((*ONES, 9), (70,)), shuffled=True, strided=True),
    Case("longer than a block on a prefix, D 64", 6, 2, 64, ((5,), ONES[:17]), (131, 70), (0, 1)),
    Case("queries of many tiles, D 128", 8, 1, 128, (ONES[:37],), (33,), (0,), shuffled=True),
    Case("D 256", 3, 1, 256, ((3, 1, 2),), (7,), (0,)),
)

# The suffix of an ODE step on its cached prefix, then whole prefixes, then the vision tower.
BENCH = (
    Case("rethink-2b: 16 on 220", 16, 8, 128, ((16,),), (220,), (0,)),
    Case("rethink-2b: 16 on 220, 4 rows", 16, 8, 128, ((16,),) * 4, (220,), (0,) * 4),
    Case("rethink-2b: 17 on 604", 16, 8, 128, ((17,),), (604,), (0,)),
    Case("smolvla: 50 on 241", 15, 5, 64, (ONES[:50],), (241,), (0,)),
    Case("pi0: 51 on 532", 8, 1, 256, ((1, 50),), (532,), (0,)),
    Case("pi0: 51 on 788", 8, 1, 256, ((1, 50),), (788,), (0,)),
    Case("pi0.5: 50 on 968", 8, 1, 256, ((50,),), (968,), (0,)),
    Case("metaworld-small: 16 on 20, 8 rows", 4, 2, 64, ((16,),) * 8, (20,) * 8, tuple(range(8))),
    Case("rethink-2b: prefix of 220", 16, 8, 128, ((219, 1),)),
    Case("pi0: prefix of 532", 8, 1, 256, ((532,),)),
    Case("rethink-2b: 300 causal", 16, 8, 128, ((1,) * 300,)),
    Case("SigLIP: 2 views of 256", 16, 16, 72, ((256,),) * 2),
)


def make(case: Case, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Inputs:
    """Random inputs of a case, drawn in fp64 and rounded to ``dtype``."""
    own = [sum(blocks) for blocks in case.blocks]

    def draw(rows: int, heads: int) -> Tensor:
        shape = (rows, heads, case.head_dim)
        if case.strided:  # a part of a wider projection, as a packed q, k and v would be
            shape = (rows, heads + 1, case.head_dim + 8)
        full = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return full[:, :heads, : case.head_dim]

    cu = torch.tensor([0, *accumulate(own)], dtype=torch.int32)
    cached = bool(case.index)
    ends = [end for document in _ends(case) for end in document]
    order = torch.randperm(sum(own), generator=generator, dtype=torch.int32)
    return Inputs(
        q_THD=draw(sum(own), case.heads),
        k_SGD=draw(sum(own), case.groups),
        v_SGD=draw(sum(own), case.groups),
        who=KvEnd(
            cu,
            cu,
            torch.tensor(ends, dtype=torch.int32),
            torch.tensor([0, *accumulate(case.prefixes)]) if cached else None,
            torch.tensor(case.index) if cached else None,
        ),
        prefix_k_PGD=draw(sum(case.prefixes), case.groups) if cached else None,
        prefix_v_PGD=draw(sum(case.prefixes), case.groups) if cached else None,
        rows_T=order if case.shuffled else None,
    )


def random_case(seed: int) -> Case:
    """A small case drawn from a seed: ragged, empty and shared documents in every mixture."""
    draw = random.Random(seed)
    groups = draw.choice((1, 1, 2, 3))
    documents = draw.choice((0, 1, 1, 2, 3, 5))
    most = draw.choice((1, 4, 20, 80))
    blocks = tuple(
        tuple(draw.choice((1, 1, 2, draw.randint(1, most))) for _ in range(draw.randint(0, 5)))
        for _ in range(documents)
    )
    prefixes = tuple(draw.choice((0, 1, draw.randint(0, 2 * most))) for _ in range(3))
    cached = draw.random() < 0.6
    return Case(
        f"seed {seed}",
        groups * draw.choice((1, 2, 3, 8)),
        groups,
        draw.choice((8, 16, 24, 64, 72, 128)),
        blocks,
        prefixes if cached else (),
        tuple(draw.randrange(3) for _ in blocks) if cached else (),
        draw.choice((0, 0, 0, 1, 3)),
        draw.random() < 0.5,
        draw.random() < 0.3,
    )


def _ends(case: Case) -> list[list[int]]:
    """For every document and token, how many keys it sees: cached, its block, those before it."""
    before = [case.prefixes[i] for i in case.index] or [0] * len(case.blocks)
    ends = [
        [
            begin + end
            for size, end in zip(blocks, accumulate(blocks), strict=True)
            for _ in range(size)
        ]
        for begin, blocks in zip(before, case.blocks, strict=True)
    ]
    return [[0] * min(case.blind, len(seen)) + seen[case.blind :] for seen in ends]


def operations(case: Case, backward: bool = False) -> int:
    """Of the products, for every pair of a query and a key that it sees, 2 · D a head and product.

    Forward q·k and p·v; backward q·k again, dp, dv, dq and dk.
    """
    return (10 if backward else 4) * case.pairs * case.heads * case.head_dim


def traffic(given: Inputs, backward: bool = False) -> int:
    """Bytes that must move once: keys, values, queries and outputs, or all those and gradients."""
    queries = given.q_THD.nbytes
    return _sides(given) * (1 + backward) + queries * (4 if backward else 2)


def written(given: Inputs, backward: bool = False) -> int:
    """Those of them that are written: the outputs, or the gradients of queries, keys and values."""
    return given.q_THD.nbytes + _sides(given) * backward


def _sides(given: Inputs) -> int:
    """Bytes of own and cached keys and values."""
    found = (given.k_SGD, given.v_SGD, given.prefix_k_PGD, given.prefix_v_PGD)
    return sum(side.nbytes for side in found if side is not None)
