"""The cases of ``qkv_prep``, for tests and benchmarks alike.

Shapes: rethink-2b (16 query heads, 8 key-value heads, head dim 128, prefix 220, suffix 16), pi0 (8,
1, 256, prefix 532, suffix 51, no QK-norm), SmolVLA (15, 5, 64), head dim 72, metaworld-small, and
odd ones. Letters: T joint rows, E rows of one expert, H query heads, G key-value heads, D head dim.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlakern.ops.qkv_prep.reference import split_heads

__all__ = [
    "BENCH",
    "CASES",
    "Case",
    "draw_case",
    "flat",
    "make_inputs",
    "operations",
    "plain_qkv_prep",
    "traffic",
    "written",
]

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SHORT = {F32: "fp32", BF16: "bf16", F16: "fp16"}


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        tokens: rows of each expert.
        apart: q, k and v of an expert are three tensors.
        weight_dtype: None for no QK-norm.
        gap: elements between the rows of qkv.
    """

    tokens: tuple[int, ...]
    heads: int
    groups: int
    head_dim: int
    dtype: torch.dtype = F32
    weight_dtype: torch.dtype | None = F32
    apart: bool = False
    plus_one: bool = False
    gap: int = 0

    def __str__(self) -> str:
        """An id such as ``E220+16-H16-G8-D128-bf16-norm_fp32``."""
        sizes = "E" + "+".join(map(str, self.tokens))
        words = [f"{sizes}-H{self.heads}-G{self.groups}-D{self.head_dim}", SHORT[self.dtype]]
        words += [f"norm_{SHORT[self.weight_dtype]}"] if self.weight_dtype else []
        words += ["apart"] * self.apart + ["plus_one"] * self.plus_one
        return "-".join(words + [f"gap{self.gap}"] * bool(self.gap))


CASES = (
    Case((220, 16), 16, 8, 128, BF16, BF16),
    Case((17,), 16, 8, 128, BF16, F32, apart=True),
    Case((30, 51), 8, 1, 256, BF16, None),
    Case((20, 50), 15, 5, 64, BF16, None, apart=True),
    Case((9, 12), 16, 16, 72, F32),
    Case((23, 20), 4, 2, 32, F32, F32, apart=True),
    Case((7, 5, 3), 3, 1, 10, F16, F16, plus_one=True),
    Case((40, 33), 2, 2, 34, BF16, F32, gap=5),
    Case((6, 5), 5, 1, 2, F32, BF16, apart=True, gap=1),
    Case((1,), 1, 1, 2),
    Case((4, 0), 2, 1, 8),
    Case((0,), 2, 1, 8, BF16, None),
)
BENCH = (
    Case((16,), 16, 8, 128, BF16, F32),
    Case((220,), 16, 8, 128, BF16, F32),
    Case((220, 16), 16, 8, 128, BF16, F32),
    Case((532, 51), 8, 1, 256, BF16, None),
    Case((968, 50), 8, 1, 256, BF16, None),
    Case((23, 20), 4, 2, 32, F32, F32, apart=True),
    Case((8192,), 16, 8, 128, BF16, F32),
    Case((8192,), 16, 8, 128, F32, F32),
)


def draw_case(generator: torch.Generator) -> Case:
    """A random small case."""

    def pick(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    groups = 1 + pick(3)
    return Case(
        tuple(pick(40) for _ in range(1 + pick(3))),
        groups * (1 + pick(3)),
        groups,
        2 * (1 + pick(40)),
        (F32, BF16, F16)[pick(3)],
        (None, F32, BF16, F16)[pick(4)],
        bool(pick(2)),
        bool(pick(2)),
        (0, 1, 8)[pick(3)],
    )


def make_inputs(case: Case, generator: torch.Generator) -> dict[str, Any]:
    """Random arguments of ``qkv_prep`` on the generator's device, by name."""
    device, half, count = generator.device, case.head_dim // 2, sum(case.tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def matrix(rows: int, heads: int) -> Tensor:
        width = heads * case.head_dim
        return draw(rows, width + case.gap).to(case.dtype)[:, :width]

    def weights() -> list[Tensor]:
        if case.weight_dtype is None:
            return []
        return [(1 + 0.3 * draw(case.head_dim)).to(case.weight_dtype) for _ in case.tokens]

    sizes = (case.heads, case.groups, case.groups)
    sizes = sizes if case.apart else (sum(sizes),)
    angle = 10 * draw(count, half)
    order = torch.randperm(count, generator=generator, device=device)
    rows = [one.sort().values.int() for one in order.split(list(case.tokens))]
    return {
        "qkv": [matrix(rows, heads) for rows in case.tokens for heads in sizes],
        "q_weight": weights(),
        "k_weight": weights(),
        "cos": angle.cos(),
        "sin": angle.sin(),
        "rows": rows,
        "heads": case.heads,
        "groups": case.groups,
        "eps": 1e-5,
        "plus_one": case.plus_one,
    }


def flat(inputs: dict[str, Any]) -> list[Tensor]:
    """The floating tensors of the arguments, in their order."""
    lists = (inputs["qkv"], inputs["q_weight"], inputs["k_weight"])
    return [*(one for many in lists for one in many), inputs["cos"], inputs["sin"]]


def plain_qkv_prep(
    qkv: list[Tensor],
    q_weight: list[Tensor],
    k_weight: list[Tensor],
    cos: Tensor,
    sin: Tensor,
    rows: list[Tensor],
    *,
    heads: int,
    groups: int,
    eps: float,
    plus_one: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """What one writes in plain PyTorch: torch's norm, rotation and everything in qkv's dtype."""
    dtype, made = qkv[0].dtype, []
    for i, (q, k, v) in enumerate(split_heads(qkv, len(rows), heads, groups)):
        at = rows[i].long()
        c, s = cos[at].to(dtype)[:, None], sin[at].to(dtype)[:, None]
        turned = []
        for x, weights in ((q, q_weight), (k, k_weight)):
            if weights:
                w = weights[i].to(dtype) + (1 if plus_one else 0)
                x = F.rms_norm(x, x.shape[-1:], w, eps)
            low, high = x.chunk(2, -1)
            turned.append(torch.cat([low * c - high * s, high * c + low * s], -1))
        made.append((*turned, v))
    q, k, v = (torch.cat(one) for one in zip(*made, strict=True))
    order = torch.cat(rows).argsort()
    return q, k[order], v[order]


def traffic(case: Case, backward: bool = False) -> int:
    """Bytes that the mathematics must move: qkv read and q, k, v written, and the angles; backward
    reads q, k and three gradients and writes three."""
    heads = case.heads + 2 * case.groups
    elements = 2 * heads + (case.heads + case.groups if backward else 0)
    return sum(case.tokens) * case.head_dim * (elements * case.dtype.itemsize + 4)


def written(case: Case, backward: bool = False) -> int:
    """Those of them that are written, in both directions as many."""
    heads = case.heads + 2 * case.groups
    return sum(case.tokens) * case.head_dim * heads * case.dtype.itemsize


def operations(case: Case, backward: bool = False) -> int:
    """Multiplications and additions: 3 an element of q and k for RoPE, 4 for the norm, thrice
    that backward."""
    turned = sum(case.tokens) * (case.heads + case.groups) * case.head_dim
    return turned * (7 if case.weight_dtype else 3) * (3 if backward else 1)
