"""What libraries reach on this GPU: SDPA, FlexAttention and flash-attn for the cases of
shared_attention, cuBLASLt for those of linear.

``python benchmarks/ops/gpu_baselines.py [--vlakern OP ...] [--json FILE]``. Every contender is
first compared with fp64; one that is wrong or cannot run is said and left out. Attention's inputs
are already laid out as the library wants them, which a model would have to do. ``--vlakern OP ...``
puts vlakern's own beside them, interleaved, for after its tests.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from shared_attention_baselines import rectangle
from torch import Tensor

from vlakern import ops
from vlakern.ops.linear.cases import SHORT as LINEAR
from vlakern.ops.shared_attention.cases import BENCH as ATTENTION
from vlakern.ops.shared_attention.cases import Case, Inputs, make
from vlakern.testing import generator, interleave_on

BF16 = torch.bfloat16
TOLERANCE = 3e-2  # of bf16 results against fp64, relative to the largest
QUANTISED = {"vlakern fp8": 8e-2}  # 3 bits after the point, of weights and of x
KINDS = ("bf16", "int8", "fp8")
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Row:
    """One contender on one case; the time is the median of interleaved runs."""

    op: str
    case: str
    name: str
    device: str
    microseconds: float
    gigaflops_per_second: float
    clock: str


def with_sdpa(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> dict[str, Run]:
    """torch's scaled_dot_product_attention, masked and, where everything is seen, unmasked."""
    share = q.shape[1] // k.shape[1]
    wide_k, wide_v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    attend = F.scaled_dot_product_attention
    found: dict[str, Run] = {
        "sdpa": lambda: attend(q, k, v, attn_mask=visible, enable_gqa=True),
        "sdpa expanded": lambda: attend(q, wide_k, wide_v, attn_mask=visible),
    }
    if bool(visible.all()):
        found["sdpa unmasked"] = lambda: attend(q, k, v, enable_gqa=True)
        found["sdpa unmasked expanded"] = lambda: attend(q, wide_k, wide_v)
    return found


def with_flex(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> dict[str, Run]:
    """FlexAttention, compiled on a GPU, with the block mask made before."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    ends = visible.sum(dim=-1)[:, 0]  # visible keys are leading ones

    def sees(b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        return k_index < ends[b, q_index]

    sizes = (visible.shape[0], None, visible.shape[2], visible.shape[3])
    mask = create_block_mask(sees, *sizes, device=q.device.type)
    attend: Any = flex_attention
    if q.device.type == "cuda":
        torch.compiler.reset()  # every case its own compilation, past the limit of recompilations
        attend = torch.compile(flex_attention, dynamic=False)
    return {"flex_attention": lambda: attend(q, k, v, block_mask=mask, enable_gqa=True)}


def with_flash(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> dict[str, Run]:
    """flash-attn where it is installed, for the two masks that it knows: all, and causal to the
    last key."""
    if importlib.util.find_spec("flash_attn") is None or q.device.type != "cuda":
        return {}
    attend = import_module("flash_attn").flash_attn_func
    whole = bool(visible.all())
    causal = torch.ones_like(visible).tril(visible.shape[3] - visible.shape[2])
    if not whole and not torch.equal(visible, causal):
        return {}
    rows = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    return {"flash_attn": lambda: attend(*rows, causal=not whole).transpose(1, 2)}


def with_vlakern(given: Inputs) -> dict[str, Run]:
    """The op, bound as an engine calls it."""
    arguments = (given.q_THD, given.k_SGD, given.v_SGD, given.who)
    cached = (given.prefix_k_PGD, given.prefix_v_PGD)
    out = torch.empty_like(given.q_THD)
    lse = torch.empty(given.q_THD.shape[:2], device=out.device)
    call = ops.shared_attention_out(*arguments, *cached, out=out, lse=lse)
    documents = len(given.who.cu_q) - 1

    def run() -> Tensor:
        call()
        return out.unflatten(0, (documents, -1)).transpose(1, 2)

    return {"vlakern": run}


def moved(given: Inputs, device: str) -> Inputs:
    parts: dict[str, Any] = {name: getattr(given, name) for name in given.__dataclass_fields__}
    far: dict[str, Any] = {n: v if v is None else v.to(device) for n, v in parts.items()}
    return Inputs(**far)


def attention_contenders(case: Case, device: str, ours: bool, flex: bool) -> dict[str, Run]:
    """Those that can run this case and give its result."""
    given = make(case, generator(str(case)), BF16)
    q, k, v, visible = (x.to(device) for x in rectangle(case, given))
    wide = (x.double() for x in (q, k, v))
    exact = F.scaled_dot_product_attention(*wide, attn_mask=visible, enable_gqa=True)
    makers: dict[str, Callable[[], dict[str, Run]]] = {
        "sdpa": lambda: with_sdpa(q, k, v, visible),
        "flash_attn": lambda: with_flash(q, k, v, visible),
    }
    if flex:
        makers["flex_attention"] = lambda: with_flex(q, k, v, visible)
    if ours:
        makers["vlakern"] = lambda: with_vlakern(moved(given, device))
    return sound(makers, exact, str(case))


def sound(
    makers: dict[str, Callable[[], dict[str, Run]]], exact: Tensor, case: str
) -> dict[str, Run]:
    """The contenders that run and agree with fp64; says why the others are not among them."""
    found: dict[str, Run] = {}
    for family, maker in makers.items():
        try:
            for name, run in maker().items():
                error = float((run().double() - exact).abs().max() / exact.abs().max())
                if error <= QUANTISED.get(name, TOLERANCE):
                    found[name] = run
                else:
                    print(f"{case}: {name} is wrong by {error:.3g} of the largest")
        except (RuntimeError, ImportError, ValueError, TypeError) as error:
            print(f"{case}: {family} cannot run: {str(error).splitlines()[0][:200]}")
    return found


def with_linear(x: Tensor, weight: Tensor, kind: str) -> dict[str, Run]:
    """The op on packed weights, bound as an engine calls it; its quantisation is in the error."""
    isa = "rows" if x.device.type == "cuda" else None
    out = torch.empty(x.shape[0], weight.shape[0], dtype=BF16, device=x.device)
    call = ops.linear_out(x, ops.pack_linear(weight, kind, isa=isa), out=out)

    def run() -> Tensor:
        call()
        return out

    return {f"vlakern {kind}": run}


def linear_contenders(m: int, n: int, k: int, device: str, ours: bool) -> dict[str, Run]:
    """torch's matmul through each of its libraries, and vlakern's."""
    rng = generator(f"{m} {n} {k}")
    x, weight = torch.randn(m, k, generator=rng), torch.randn(n, k, generator=rng) / k**0.5
    x, weight = x.to(device, BF16), weight.to(device, BF16)
    out = torch.empty(m, n, dtype=BF16, device=device)

    def through(library: str) -> Run:
        def run() -> Tensor:
            if device == "cuda":
                torch.backends.cuda.preferred_blas_library(library)
            return torch.mm(x, weight.T, out=out)

        return run

    libraries = ("cublaslt", "cublas") if device == "cuda" else ("torch",)
    makers: dict[str, Callable[[], dict[str, Run]]] = {
        name: (lambda name=name: {name: through(name)}) for name in libraries
    }
    if ours:
        kinds = KINDS if device == "cuda" else KINDS[:2]
        makers |= {kind: (lambda kind=kind: with_linear(x, weight, kind)) for kind in kinds}
    return sound(makers, x.double() @ weight.T.double(), f"M{m}-N{n}-K{k}")


def rows_of(
    op: str, case: str, operations: float, runs: dict[str, Run], device: str, repeats: int
) -> Iterator[Row]:
    with torch.no_grad():
        timings = interleave_on(device, runs, repeats) if runs else {}
    for name, timing in timings.items():
        seconds = timing.median
        speed = operations / seconds / 1e9
        yield Row(op, case, name, device, seconds * 1e6, speed, timing.clock)


def measure(args: argparse.Namespace) -> Iterator[Row]:
    """Row by row until the time is over; compiling FlexAttention may take half of it."""
    begin = time.monotonic()

    def used() -> float:
        return (time.monotonic() - begin) / args.limit

    sizes = dict.fromkeys((one.m, one.n, one.k) for one in LINEAR)
    for m, n, k in sizes:
        name = f"M{m}-N{n}-K{k}"
        if args.only in name and used() < 0.4:
            runs = linear_contenders(m, n, k, args.device, "linear" in args.vlakern)
            yield from rows_of("linear", name, 2 * m * n * k, runs, args.device, args.repeats)
    for case in ATTENTION:
        if args.only not in str(case):
            continue
        if used() > 0.9:
            print(f"{case}: no time is left")
            continue
        ours = "shared_attention" in args.vlakern
        runs = attention_contenders(case, args.device, ours, flex=used() < 0.7)
        work = 4 * case.pairs * case.heads * case.head_dim
        yield from rows_of("shared_attention", str(case), work, runs, args.device, args.repeats)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    ours = ("linear", "shared_attention")
    parser.add_argument("--vlakern", nargs="+", default=[], choices=ours, help="vlakern's as well")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--limit", type=float, default=120.0, help="[s] for everything")
    parser.add_argument("--json", type=Path, help="append JSON lines to this file")
    args = parser.parse_args()
    count = 0
    for row in measure(args):
        count += 1
        print(f"{row.microseconds:10.1f} us {row.gigaflops_per_second:10.1f} GFLOP/s  ", end="")
        print(f"{row.op:<17} {row.name:<24} {row.case}", flush=True)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
