"""Speed of shared_attention, bound as an engine calls it; nothing is printed while it is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_shared_attention.py [--threads 1 2] [--json
FILE]``. Under pytest-benchmark: ``pytest benchmarks/ops/bench_shared_attention.py``.

The baseline is torch's scaled_dot_product_attention with a boolean mask over tensors that were
already laid out for it, [documents, heads, tokens, D], which the model would have to gather: with
key-value heads expanded before the clock starts and with enable_gqa, in bf16 and in fp32, masked
and, where every query sees everything, unmasked. The ratio is to the best of them.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlakern import ops
from vlakern.ops.shared_attention.cases import BENCH, Case, Inputs, make
from vlakern.ops.shared_attention.reference import shared_attention_reference
from vlakern.testing import assert_accurate, generator, interleave

BF16 = torch.bfloat16


@dataclass(frozen=True)
class Row:
    """One case; times are the best of interleaved runs."""

    op: str
    case: str
    backend: str
    dtype: str
    threads: int
    microseconds: float
    gflops_per_second: float
    fraction_of_matmul: float
    best_baseline: str
    torch_over_vlakern: float


@cache
def matmul_peak(dtype: torch.dtype, threads: int) -> float:
    """Operations per second [1/s] of torch's matmul at 1024 x 1024 x 1024, best of ten."""
    a, b = torch.randn(2, 1024, 1024).to(dtype)
    torch.set_num_threads(threads)
    return 2 * 1024**3 / interleave({"matmul": lambda: a @ b}, 10)["matmul"].best


def arguments(given: Inputs) -> tuple[Any, ...]:
    return (
        given.q_THD,
        given.k_SGD,
        given.v_SGD,
        given.who,
        given.prefix_k_PGD,
        given.prefix_v_PGD,
    )


def bound(given: Inputs, backend: str) -> Callable[[], None]:
    """The timed call, into memory of its own."""
    out, lse = torch.empty_like(given.q_THD), torch.empty(given.q_THD.shape[:2])
    return ops.shared_attention_out(*arguments(given), out=out, lse=lse, backend=backend)


def rectangle(case: Case, given: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v as [R, H or G, tokens, D] and the visible pairs [R, 1, Q, K]; documents are alike."""
    documents = len(case.blocks)
    q = given.q_THD.unflatten(0, (documents, -1)).transpose(1, 2).contiguous()
    sides = []
    cached = [given.prefix_k_PGD, given.prefix_v_PGD]
    for own, prefix in zip((given.k_SGD, given.v_SGD), cached, strict=True):
        side = own.unflatten(0, (documents, -1))
        if prefix is not None:
            before = prefix.unflatten(0, (len(case.prefixes), -1))[list(case.index)]
            side = torch.cat([before, side], dim=1)
        sides.append(side.transpose(1, 2).contiguous())
    end = given.who.kv_end.unflatten(0, (documents, -1))
    return q, *sides, (torch.arange(sides[0].shape[2]) < end[:, :, None])[:, None]


def baselines(case: Case, given: Inputs) -> dict[str, Callable[[], Tensor]]:
    """Name -> torch's attention on inputs that are ready for it."""
    found: dict[str, Callable[[], Tensor]] = {}
    for dtype in (BF16, torch.float32):
        q, k, v, visible = rectangle(case, given)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        share = case.heads // case.groups
        wide_k, wide_v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        attend = partial(F.scaled_dot_product_attention, q)
        name = str(dtype).removeprefix("torch.")
        masks: dict[str, Tensor | None] = {"": visible}
        if bool(visible.all()):
            masks[" unmasked"] = None
        for kind, mask in masks.items():
            found[f"{name} expanded{kind}"] = partial(attend, wide_k, wide_v, attn_mask=mask)
            if share > 1:
                found[f"{name} gqa{kind}"] = partial(attend, k, v, attn_mask=mask, enable_gqa=True)
    return found


def check(case: Case, given: Inputs, backend: str) -> None:
    """Raises AssertionError if the op is wrong on the very inputs that are timed."""
    found, _ = ops.shared_attention(*arguments(given), backend=backend)
    wide: list[Any] = [x.double() if isinstance(x, Tensor) else x for x in arguments(given)]
    q, k, v, visible = rectangle(case, given)
    plain = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
    exact, _ = shared_attention_reference(*wide)
    assert_accurate(found, exact, plain.transpose(1, 2).flatten(0, 1), str(case))


def measure(case: Case, dtype: torch.dtype, backend: str, threads: int, repeats: int) -> Row:
    """Checks, then times one case against every baseline, interleaved."""
    given = make(case, generator(str(case)), dtype)
    torch.set_num_threads(threads)
    check(case, given, backend)
    contenders = {"vlakern": bound(given, backend), **baselines(case, given)}
    medians = {name: timing.best for name, timing in interleave(contenders, repeats).items()}
    ours = medians.pop("vlakern")
    best = min(medians, key=lambda name: medians[name])
    speed = 4 * case.pairs * case.heads * case.head_dim / ours
    return Row(
        "shared_attention",
        str(case),
        backend,
        str(dtype).removeprefix("torch."),
        threads,
        ours * 1e6,
        speed / 1e9,
        speed / matmul_peak(dtype, threads),
        best,
        medians[best] / ours,
    )


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_shared_attention(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the ratio beside it."""
    row = measure(case, BF16, "auto", torch.get_num_threads(), repeats=5)
    benchmark.extra_info.update(asdict(row))
    benchmark(bound(make(case, generator(str(case)), BF16), "auto"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], choices=("bfloat16", "float32"))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, help="append JSON lines to this file")
    args = parser.parse_args()
    print(
        f"{'us':>9} {'GFLOP/s':>8} {'of mm':>6} {'x torch':>7}  thr dtype    case (best of torch)"
    )
    for case in (case for case in BENCH if args.only in str(case)):
        for name in args.dtype:
            for threads in args.threads:
                row = measure(case, getattr(torch, name), args.backend, threads, args.repeats)
                print(
                    f"{row.microseconds:9.1f} {row.gflops_per_second:8.1f}"
                    f" {row.fraction_of_matmul:6.2f} {row.torch_over_vlakern:7.2f}"
                    f"  {threads:<3} {name:<8} {case} ({row.best_baseline})"
                )
                if args.json:
                    with args.json.open("a") as file:
                        file.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
