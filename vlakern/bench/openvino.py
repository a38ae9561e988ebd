"""The baseline's network in OpenVINO, which computes in bf16 where the processor has it.

Each stage is traced in fp32 and compiled by OpenVINO, which keeps what it was given as well: 16 GB
for rethink-2b.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from torch import Tensor, nn

from vlakern.bench.compiled import Compiled, CompiledContender
from vlakern.bench.workload import Workload
from vlakern.errors import Unsupported

__all__ = ["make_openvino"]

PRECISIONS = {"bf16": "bf16", "fp32": "f32"}


def make_openvino(work: Workload, dtype: str, device: str, threads: int) -> CompiledContender:
    """The network's stages as OpenVINO compiles them.

    Raises:
        Unsupported: the device is no CPU.
    """
    if device != "cpu":
        raise Unsupported(f"openvino is compared on CPUs, not on {device}")
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    return CompiledContender(work, lambda module, inputs: _compiled(module, inputs, settings))


def _compiled(module: nn.Module, inputs: Sequence[Tensor], settings: dict[str, Any]) -> Compiled:
    openvino: Any = import_module("openvino")
    traced = openvino.convert_model(module, example_input=tuple(inputs))
    for port, one in zip(traced.inputs, inputs, strict=True):
        port.get_node().set_partial_shape(openvino.PartialShape(list(one.shape)))
    traced.validate_nodes_and_infer_types()
    request = openvino.Core().compile_model(traced, "CPU", settings).create_infer_request()

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        request.infer(arrays, share_inputs=True)
        return [tensor.data for tensor in request.output_tensors]

    return call
