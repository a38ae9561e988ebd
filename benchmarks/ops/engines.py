"""OpenVINO and onnxruntime, where installed, given the graph of a module."""

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from plain import Run, Task, cast, replaced
from torch import Tensor, nn
from torch.nn import functional
from torch.onnx import utils

__all__ = ["onnxruntime_run", "openvino_run"]

BF16, F32 = torch.bfloat16, torch.float32
OPSET = 20  # the last that torch's exporter of traces writes


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


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings of tracing and quantising, and the graphs that native code prints."""
    logging.disable(logging.WARNING)
    kept = [os.dup(stream) for stream in (1, 2)]
    try:
        with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere:
            warnings.simplefilter("ignore")
            for stream in (1, 2):
                os.dup2(nowhere.fileno(), stream)
            yield
    finally:
        for stream, one in zip((1, 2), kept, strict=True):
            os.dup2(one, stream)
            os.close(one)
        logging.disable(logging.NOTSET)


@cache
def core() -> Any:
    import openvino  # pyright: ignore[reportMissingImports]

    return openvino.Core()


def openvino_run(task: Task, precision: str) -> Run:
    """OpenVINO; int8 are its compressed weights with dynamic quantisation of whole rows."""
    import openvino  # pyright: ignore[reportMissingImports]

    own = task.module
    own = replaced(own, Quantised) if precision == "int8" else copy.deepcopy(own)
    given = [one.contiguous() for one in cast(task.inputs, F32)]
    with quietly(), torch.no_grad():
        try:
            model = openvino.convert_model(own, example_input=tuple(given))
        except openvino.frontend.OpConversionFailure as error:
            raise ValueError(str(error).split("Summary:")[-1].strip()) from error
    model.reshape({port: list(one.shape) for port, one in zip(model.inputs, given, strict=True)})
    config = {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    if precision == "int8":
        config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = given[0].shape[-1]
    if precision != "fp32":
        model, given = narrowed(model, given)
    compiled = core().compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    for port, one in zip(compiled.inputs, given, strict=True):
        request.set_tensor(port, shared(one))
    out = [empty(port) for port in compiled.outputs]
    for port, one in zip(compiled.outputs, out, strict=True):
        request.set_tensor(port, shared(one))

    def run(alive: Any = given) -> list[Tensor]:
        request.infer()
        return out

    return run


def narrowed(model: Any, given: list[Tensor]) -> tuple[Any, list[Tensor]]:
    """With bf16 instead of fp32 coming in and going out, as between the layers of a model."""
    from openvino import Type, preprocess  # pyright: ignore[reportMissingImports]

    border = preprocess.PrePostProcessor(model)
    for i, one in enumerate(given):
        if one.is_floating_point():
            border.input(i).tensor().set_element_type(Type.bf16)
    for i, port in enumerate(model.outputs):
        if port.get_element_type() == Type.f32:
            border.output(i).tensor().set_element_type(Type.bf16)
    return border.build(), cast(tuple(given), BF16)


def shared(one: Tensor) -> Any:
    """OpenVINO's tensor over the same memory; numpy has no bf16."""
    import openvino  # pyright: ignore[reportMissingImports]

    if one.dtype != BF16:
        return openvino.Tensor(one.numpy(), shared_memory=True)
    bits = one.view(torch.uint16).numpy()
    return openvino.Tensor(bits, openvino.Shape(list(one.shape)), openvino.Type.bf16)


def empty(port: Any) -> Tensor:
    """Memory for an output."""
    name = port.get_element_type().to_string()
    return torch.empty(list(port.shape), dtype={"bf16": BF16, "f32": F32}[name])


def onnxruntime_run(task: Task, precision: str) -> Run:
    """onnxruntime, fp32 or its dynamic int8: it has no bf16 on a CPU."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    state: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    given = [one.contiguous() for one in cast(task.inputs, F32)]
    names = [f"input{i}" for i in range(len(given))]
    with quietly(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        wide, narrow = Path(folder, "wide.onnx"), Path(folder, "narrow.onnx")
        own = copy.deepcopy(task.module)
        utils.register_custom_op_symbolic("aten::rms_norm", _rms_norm, OPSET)
        try:
            torch.onnx.export(
                own, tuple(given), wide, input_names=names, dynamo=False, opset_version=OPSET
            )
        except AssertionError as error:  # what its exporter says of arguments that it lacks
            raise ValueError(str(error)) from error
        if precision == "int8":
            _quantise(wide, narrow)
        model = (narrow if precision == "int8" else wide).read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    except (state.Fail, state.InvalidGraph, state.NotImplemented) as error:
        raise ValueError(str(error)) from error
    arrays = {name: one.numpy() for name, one in zip(names, given, strict=True)}
    return lambda: session.run(None, arrays)


def _rms_norm(graph: Any, x: Any, shape: Any, weight: Any, eps: Any) -> Any:
    """What torch's exporter lacks, written out for onnxruntime to fuse; over the last dimension."""
    constant = partial(graph.op, "Constant")
    square = graph.op("Pow", x, constant(value_t=torch.tensor(2.0)))
    mean = graph.op("ReduceMean", square, constant(value_t=torch.tensor([-1])))
    root = graph.op("Sqrt", graph.op("Add", mean, eps))
    y = graph.op("Div", x, root)
    return y if weight.node().mustBeNone() else graph.op("Mul", y, weight)


def _quantise(wide: Path, narrow: Path) -> None:
    from onnxruntime.quantization import (  # pyright: ignore[reportMissingImports]
        QuantType,
        quantize_dynamic,
    )

    quantize_dynamic(wide, narrow, weight_type=QuantType.QInt8, per_channel=True)
