"""A few small cases of every op, each once, for compute-sanitizer: forward and, where an op has
one, backward, on every GPU backend that serves it.

``python benchmarks/sanitize.py [--op NAME ...] [--device cuda]`` prints ``begin OP`` and
``clean OP`` around each op's cases. Inputs are drawn on the CPU, so that almost every kernel that
the sanitizer watches is an op's own.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from vlakern import ops
from vlakern.errors import Unsupported
from vlakern.ops import verdicts
from vlakern.ops._table import OPS
from vlakern.testing import generator

CASES_EACH = 5
GPU_BACKENDS = ("cuda", "triton")
Call = Callable[[str], Any]  # a backend's name -> results


def reduced(cases: tuple[Any, ...], count: int = CASES_EACH) -> tuple[Any, ...]:
    """So many cases, evenly from first to last."""
    if len(cases) <= count:
        return cases
    return tuple(cases[position * (len(cases) - 1) // (count - 1)] for position in range(count))


def moved(value: Any, device: str) -> Any:
    """The same with every tensor inside on ``device``, strides kept; floats become leaves that want
    gradients."""
    if isinstance(value, Tensor):
        far = value.detach().to(device)
        return far.requires_grad_(far.is_floating_point())
    if isinstance(value, dict):
        return {name: moved(inner, device) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(moved(inner, device) for inner in value)
    if hasattr(value, "to") and not isinstance(value, type):
        return value.to(device)
    if is_dataclass(value) and not isinstance(value, type):
        # Packed weights are for inference: no gradients.
        tensors = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        far = {n: v.to(device) for n, v in tensors.items() if isinstance(v, Tensor)}
        return replace(value, **far)
    return value


def by_name(op: str, case: Any, device: str) -> Iterator[Call]:
    """Most ops: ``make_inputs`` gives the arguments by name."""
    inputs = import_module(f"{OPS[op]}.cases").make_inputs(case, generator(str(case)))
    given = moved(inputs, device)
    yield lambda backend: getattr(ops, op)(**given, backend=backend)


def image_prep(op: str, case: Any, device: str) -> Iterator[Call]:
    images = import_module(f"{OPS[op]}.cases").make_inputs(case, generator(str(case))).to(device)
    yield lambda backend: ops.image_prep(images, **case.settings, backend=backend)


def packed_for(device: str) -> str | None:
    """Weights are packed on the CPU, for the device that they are moved to."""
    return "rows" if device == "cuda" else None


def packed(op: str, case: Any, device: str) -> Iterator[Call]:
    """Ops on packed weights, which come first."""
    make_inputs = import_module(f"{OPS[op]}.cases").make_inputs
    made = make_inputs(case, generator(str(case)), packed_for(device))
    weights, inputs = [moved(one, device) for one in made[:-1]], moved(made[-1], device)
    names = ("weight",) if op == "linear" else ("gate_up", "down")
    given = inputs | dict(zip(names, weights, strict=True))

    def call(backend: str) -> Any:
        with torch.no_grad():
            return getattr(ops, op)(**given, backend=backend)

    yield call


def bound_arguments(op: str, case: Any, device: str) -> Iterator[Call]:
    """Ops whose cases fold and pack weights."""
    module = import_module(f"{OPS[op]}.cases")
    inputs = module.make_inputs(case, generator(str(case)))
    made = module.op_arguments(case, inputs, packed_for(device))
    given = moved(made, device)

    def call(backend: str) -> Any:
        with torch.no_grad():
            return getattr(ops, op)(**given, backend=backend)

    yield call


def shared_attention(op: str, case: Any, device: str) -> Iterator[Call]:
    made = import_module(f"{OPS[op]}.cases").make(case, generator(str(case)))
    names = ("q_THD", "k_SGD", "v_SGD", "who", "prefix_k_PGD", "prefix_v_PGD")
    given = [moved(getattr(made, name), device) for name in names]
    rows = moved(made.rows_T, device)
    yield lambda backend: ops.shared_attention(*given, rows=rows, backend=backend)


def flow_loss(op: str, case: Any, device: str) -> Iterator[Call]:
    module = import_module(f"{OPS[op]}.cases")
    inputs = module.make_inputs(case, generator(str(case)))
    wanted = {"velocity": moved(inputs["velocity"], device)}  # the only one with a gradient
    with torch.no_grad():
        given = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        } | wanted
    yield lambda backend: ops.flow_mix(**module.mix_arguments(case, given), backend=backend)
    yield lambda backend: ops.flow_loss(**module.loss_arguments(case, given), backend=backend)


HOW: dict[str, Callable[[str, Any, str], Iterator[Call]]] = {
    "action_embed": bound_arguments,
    "action_unembed": bound_arguments,
    "flow_loss": flow_loss,
    "gated_mlp": packed,
    "image_prep": image_prep,
    "linear": packed,
    "shared_attention": shared_attention,
}


def run_once(call: Call, backend: str) -> int:
    """Forward and, where the results have gradients, backward; the number of passes."""
    found = call(backend)
    results = list(found) if isinstance(found, (tuple, list)) else [found]
    wanted = [one for one in results if isinstance(one, Tensor) and one.requires_grad]
    if not wanted:
        return 1
    torch.autograd.backward([one.float().sum() for one in wanted])
    return 2


def run_accepted(call: Call, backend: str) -> int:
    """``run_once``, without gradients where the op refuses those, and 0 where it refuses all."""
    for enabled in (True, False):
        try:
            with torch.set_grad_enabled(enabled):
                return run_once(call, backend)
        except Unsupported as refusal:
            print(f"refused: {refusal}", flush=True)
    return 0


def run_op(op: str, device: str, backends: list[str]) -> int:
    """Runs the cases of one op, and returns the number of passes."""
    passes = 0
    module = import_module(f"{OPS[op]}.cases")
    cases = module.CASES if device == "cpu" else getattr(module, "REDUCED", module.CASES)
    for case in reduced(cases):
        for backend in backends:
            # Inputs anew for each: gradients add up in their leaves.
            for call in HOW.get(op, by_name)(op, case, device):
                passes += run_accepted(call, backend)
                if device != "cpu":
                    torch.cuda.synchronize()
    return passes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", nargs="+", default=list(OPS), choices=tuple(OPS))
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--backend", nargs="*", help="those of a GPU that serve it, by default")
    args = parser.parse_args(arguments)
    served, clean = verdicts(args.device), 0
    for op in args.op:
        usable = [name for name in GPU_BACKENDS if served[op].get(name) == "ok"]
        names = usable if args.backend is None else args.backend
        print(f"begin {op}: {', '.join(names)}", flush=True)
        passes = run_op(op, args.device, names)
        clean += passes > 0
        print(f"clean {op}" if passes else f"nothing of {op} ran", flush=True)
    return 0 if clean == len(args.op) else 1


if __name__ == "__main__":
    sys.exit(main())
