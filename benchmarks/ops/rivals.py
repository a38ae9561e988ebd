"""What else computes a layer on a CPU: torch in several ways, OpenVINO and onnxruntime if there."""

import copy
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["QUICK", "RIVALS", "Rival", "Run", "exact", "verdict"]

Run = Callable[[], object]
Inputs = tuple[Tensor, ...]
BF16, F32 = torch.bfloat16, torch.float32
EVERY = ("bf16", "fp32", "int8")
# Largest relative error of all outputs together; int8 is each library's own.
ERROR = {"fp32": 1e-4, "bf16": 2e-2, "int8": 6e-2}


@dataclass(frozen=True)
class Rival:
    """One contender.

    Attributes:
        make: a call on a copy of the module's weights.
        precision: row of ``ERROR``.
        kinds: of the op's weights beside which it is timed.
        bytes_each: of a weight.
        needs: modules that it imports.
    """

    make: Callable[[nn.Module, Inputs], Run]
    precision: str
    bytes_each: int
    kinds: tuple[str, ...] = EVERY
    needs: tuple[str, ...] = ()


def exact(module: nn.Module, inputs: Inputs) -> Tensor:
    """The layer in fp64."""
    with torch.no_grad():
        return copy.deepcopy(module).double()(*(one.double() for one in inputs))


def verdict(rival: Rival, module: nn.Module, inputs: Inputs, right: Tensor) -> str:
    """Why it cannot be timed: absent, or wrong; empty if it can."""
    if any(importlib.util.find_spec(name) is None for name in rival.needs):
        return "not installed"
    with torch.no_grad():
        try:
            run = rival.make(module, inputs)
        except torch.onnx.errors.OnnxExporterError:
            return "cannot be exported"
        found = torch.as_tensor(run()).double()  # a copy: a library may own what it returns
    error = float((found.reshape(right.shape) - right).norm() / right.norm().clamp(min=1e-30))
    return "" if error <= ERROR[rival.precision] else f"wrong by {error:.1e}"


def eager(module: nn.Module, inputs: Inputs, dtype: torch.dtype) -> Run:
    """Plain PyTorch."""
    own = copy.deepcopy(module).to(dtype)
    given = [one.to(dtype) for one in inputs]
    return lambda: own(*given)


class Prepacked(nn.Module):
    """A linear layer of oneDNN with weights in its own layout, as inductor calls it when frozen."""

    def __init__(self, one: nn.Linear, rows: int):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(one.weight.detach().bfloat16(), rows)
        self.bias = None if one.bias is None else one.bias.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class Quantised(nn.Module):
    """A linear layer with int8 weights and a scale for each of their rows, for OpenVINO to fuse."""

    def __init__(self, one: nn.Linear):
        super().__init__()
        weight = one.weight.detach()
        self.scale = nn.Buffer(weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127)
        self.weight = nn.Buffer((weight / self.scale).round().to(torch.int8))
        self.bias = None if one.bias is None else nn.Buffer(one.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def replaced(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """A copy with every linear layer made anew."""
    own = copy.deepcopy(module)
    for name, one in list(own.named_modules()):
        if isinstance(one, nn.Linear):
            own.set_submodule(name, make(one))
    return own


def prepacked(module: nn.Module, inputs: Inputs) -> Run:
    """oneDNN with prepacked bf16 weights."""
    rows = inputs[0].numel() // inputs[0].shape[-1]
    own = replaced(copy.deepcopy(module).bfloat16(), lambda one: Prepacked(one, rows))
    given = [one.bfloat16() for one in inputs]
    return lambda: own(*given)


def frozen(module: nn.Module, inputs: Inputs) -> Run:
    """torch.compile with frozen weights."""
    config: Any = __import__("torch._inductor.config", fromlist=["config"])
    own = copy.deepcopy(module).bfloat16().eval()
    given = [one.bfloat16() for one in inputs]
    torch._dynamo.reset()
    with torch.no_grad(), config.patch(freezing=True):
        compiled = torch.compile(own, fullgraph=True)
        compiled(*given)
    return lambda: compiled(*given)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings of tracing and quantising."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


@cache
def core() -> Any:
    import openvino  # pyright: ignore[reportMissingImports]

    return openvino.Core()


def openvino_run(module: nn.Module, inputs: Inputs, precision: str) -> Run:
    """OpenVINO; int8 are its compressed weights with dynamic quantisation of whole rows."""
    import openvino  # pyright: ignore[reportMissingImports]

    own = replaced(module, Quantised) if precision == "int8" else copy.deepcopy(module)
    given = [one.float().contiguous() for one in inputs]
    with quietly(), torch.no_grad():
        model = openvino.convert_model(own, example_input=tuple(given))
    model.reshape({port: list(one.shape) for port, one in zip(model.inputs, given, strict=True)})
    config = {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    if precision == "int8":
        config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = given[0].shape[-1]
    compiled = core().compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    for port, one in zip(compiled.inputs, given, strict=True):
        request.set_tensor(port, openvino.Tensor(one.numpy(), shared_memory=True))

    def run(alive: Any = given) -> Any:
        request.infer()
        return request.get_output_tensor(0).data

    return run


def onnxruntime_run(module: nn.Module, inputs: Inputs, precision: str) -> Run:
    """onnxruntime, fp32 or its dynamic int8: it has no bf16 on a CPU."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    given = [one.float().contiguous() for one in inputs]
    names = [f"input{i}" for i in range(len(given))]
    with quietly(), tempfile.TemporaryDirectory() as folder:
        wide, narrow = Path(folder, "wide.onnx"), Path(folder, "narrow.onnx")
        own = copy.deepcopy(module)
        torch.onnx.export(own, tuple(given), wide, input_names=names, dynamo=False)
        if precision == "int8":
            _quantise(wide, narrow)
        model = (narrow if precision == "int8" else wide).read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    arrays = {name: one.numpy() for name, one in zip(names, given, strict=True)}
    return lambda: session.run(None, arrays)[0]


def _quantise(wide: Path, narrow: Path) -> None:
    from onnxruntime.quantization import (  # pyright: ignore[reportMissingImports]
        QuantType,
        quantize_dynamic,
    )

    quantize_dynamic(wide, narrow, weight_type=QuantType.QInt8, per_channel=True)


RIVALS = {
    "eager bf16": Rival(partial(eager, dtype=BF16), "bf16", 2),
    "eager fp32": Rival(partial(eager, dtype=F32), "fp32", 4),
    "prepacked bf16": Rival(prepacked, "bf16", 2),
    "torch.compile frozen bf16": Rival(frozen, "bf16", 2),
    "openvino bf16": Rival(
        partial(openvino_run, precision="bf16"), "bf16", 2, ("bf16",), ("openvino",)
    ),
    "openvino fp32": Rival(
        partial(openvino_run, precision="fp32"), "fp32", 4, ("fp32",), ("openvino",)
    ),
    "openvino int8": Rival(
        partial(openvino_run, precision="int8"), "int8", 1, ("int8",), ("openvino",)
    ),
    "onnxruntime fp32": Rival(
        partial(onnxruntime_run, precision="fp32"),
        "fp32",
        4,
        ("bf16", "fp32"),
        ("onnxruntime", "onnx"),
    ),
    "onnxruntime int8": Rival(
        partial(onnxruntime_run, precision="int8"), "int8", 1, ("int8",), ("onnxruntime", "onnx")
    ),
}
QUICK = tuple(name for name in RIVALS if "compile" not in name)
