"""What else computes an op: torch in several ways, OpenVINO and onnxruntime where installed.

Every rival but an op's own is made from one module in plain PyTorch (``plain.py``): torch runs it,
the others are given its graph. Nobody is timed whose result is not that of the definition.
"""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from engines import onnxruntime_run, openvino_run
from plain import Plain, Run, Task, called, cast, eager, flat, replaced
from torch import Tensor, nn

__all__ = ["COMPILED", "INEXPRESSIBLE", "QUICK", "RIVALS", "Rival", "verdict"]

BF16, F32 = torch.bfloat16, torch.float32
EVERY = ("bf16", "fp32", "int8")
# Largest relative error of an output; int8 is each library's own. Gradients are granted thrice it.
ERROR = {"fp32": 1e-4, "bf16": 2e-2, "int8": 6e-2}
# What a library raises at a graph, a dtype or a number of dimensions that it does not know.
REFUSALS = (RuntimeError, TypeError, ValueError, torch.onnx.errors.OnnxExporterError)
INEXPRESSIBLE, ABSENT, FORWARD = "inexpressible", "not installed", "no gradients"
HOST = "not on this device"


@dataclass(frozen=True)
class Rival:
    """One contender.

    Attributes:
        make: a call on operands of its own.
        precision: row of ``ERROR``.
        kinds: of entries beside which it is timed.
        needs: modules that it imports.
        linear: only for modules with linear layers.
        gradients: whether it has a backward pass, and runs where torch does.
        on_host: works on the CPU whatever the device.
    """

    make: Callable[[Task], Run]
    precision: str
    kinds: tuple[str, ...] = EVERY
    needs: tuple[str, ...] = ()
    linear: bool = False
    gradients: bool = False
    on_host: bool = False


def verdict(rival: Rival, plain: Plain, variant: str, device: str = "cpu") -> str:
    """Why it cannot be timed, a word before a colon and details after; empty if it can."""
    if any(importlib.util.find_spec(name) is None for name in rival.needs):
        return ABSENT
    backward = plain.passes != "forward"
    if backward and not rival.gradients:
        return FORWARD
    if device != "cpu" and not (rival.gradients or rival.on_host):
        return HOST
    task = plain.task(variant)
    exact = plain.exact
    with torch.set_grad_enabled(backward):
        try:
            run = rival.make(task)
            if plain.checked is not None:
                run()
                run = rival.make(Task(plain.checked, task.inputs, plain.passes))
            found = flat(run())
        except REFUSALS as error:
            return f"{INEXPRESSIBLE}: {type(error).__name__} {str(error).strip()[:200]}"
    allowed = ERROR[rival.precision] * (3 if backward else 1) + plain.rounding
    error = max(distance(one, right) for one, right in zip(found, exact, strict=True))
    return "" if error <= allowed else f"wrong by {error:.1e}"


def distance(found: Tensor, right: Tensor) -> float:
    """Relative error, in the Euclidean norm."""
    right = right.double().cpu()
    missed = found.detach().double().cpu().reshape(right.shape) - right
    return float(missed.norm() / right.norm().clamp(min=1e-30))


class Prepacked(nn.Module):
    """A linear layer of oneDNN with weights in its own layout, as inductor calls it when frozen."""

    def __init__(self, one: nn.Linear, rows: int):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(one.weight.detach().bfloat16(), rows)
        self.bias = None if one.bias is None else one.bias.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def prepacked(task: Task) -> Run:
    """oneDNN with prepacked bf16 weights."""
    rows = task.inputs[0].numel() // task.inputs[0].shape[-1]
    own = replaced(copy.deepcopy(task.module).bfloat16(), lambda one: Prepacked(one, rows))
    return called(own, cast(task.inputs, BF16))


@lru_cache(maxsize=1)
def inductor(module: nn.Module) -> Callable[..., Any]:
    """Compiled in bf16, once it is called."""
    torch._dynamo.reset()
    return torch.compile(copy.deepcopy(module).bfloat16().eval(), fullgraph=True, dynamic=False)


def compiled(task: Task) -> Run:
    """torch.compile, with frozen weights but for gradients; once for a module without weights."""
    config: Any = __import__("torch._inductor.config", fromlist=["config"])
    if any(True for _ in task.module.parameters()):
        inductor.cache_clear()
    with config.patch(freezing=task.passes == "forward"):
        run = called(inductor(task.module), cast(task.inputs, BF16), task.passes)
        run()
    return run


def _openvino(precision: str) -> Rival:
    return Rival(partial(openvino_run, precision=precision), precision, (precision,), ("openvino",))


def _onnxruntime(precision: str, *kinds: str) -> Rival:
    run = partial(onnxruntime_run, precision=precision)
    return Rival(run, precision, kinds, ("onnxruntime", "onnx"))


COMPILED = "torch.compile frozen bf16"
RIVALS = {
    "eager bf16": Rival(partial(eager, dtype=BF16), "bf16", gradients=True),
    "eager fp32": Rival(partial(eager, dtype=F32), "fp32", gradients=True),
    "prepacked bf16": Rival(prepacked, "bf16", linear=True),
    COMPILED: Rival(compiled, "bf16", gradients=True),
    "openvino bf16": _openvino("bf16"),
    "openvino fp32": _openvino("fp32"),
    "openvino int8": _openvino("int8"),
    "onnxruntime fp32": _onnxruntime("fp32", "bf16", "fp32"),
    "onnxruntime int8": _onnxruntime("int8", "int8"),
}
QUICK = tuple(name for name in RIVALS if name != COMPILED)
