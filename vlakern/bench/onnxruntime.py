"""The baseline's network in onnxruntime, in fp32: its CPU kernels have no bf16 products.

Each stage is exported through a file, which takes 9 GB of the temporary directory for rethink-2b,
and is removed when the session has read it.
"""

import tempfile
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlakern.bench.compiled import Compiled, CompiledContender
from vlakern.bench.workload import Workload
from vlakern.errors import Unsupported
from vlakern.models.config import VLAConfig
from vlakern.models.vla import VLA

__all__ = ["make_onnxruntime"]

# Of all fp32 weights while the prefix is exported: the module's, the graph's and the session's.
COPIES = 3


def make_onnxruntime(work: Workload, device: str, threads: int) -> CompiledContender:
    """The network's stages as onnxruntime runs them.

    Raises:
        Unsupported: the device is no CPU, or the memory is not there.
    """
    if device != "cpu":
        raise Unsupported(f"onnxruntime is compared on CPUs, not on {device}")
    need, free = _need(work.config), _free()
    if free is not None and need > free:
        raise Unsupported(
            f"onnxruntime needs some {need / 1e9:.0f} GB for this model, {free / 1e9:.0f} are free;"
            " compare a smaller one with it"
        )
    return CompiledContender(work, lambda module, inputs: _compiled(module, inputs, threads))


def _need(config: VLAConfig) -> int:
    """The most memory that its stages take while they are made [bytes]."""
    with torch.device("meta"):
        count = sum(weight.numel() for weight in VLA(config).state_dict().values())
    return COPIES * 4 * count


def _free(facts: Path = Path("/proc/meminfo")) -> int | None:
    """Memory that may be had without swapping [bytes]; None where the system does not say."""
    lines = facts.read_text().splitlines() if facts.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _compiled(module: nn.Module, inputs: Sequence[Tensor], threads: int) -> Compiled:
    runtime: Any = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads would hold the cores while another variant has its turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "stage.onnx"
        with warnings.catch_warnings():
            # The newer exporter needs a package more and gives the same graph.
            warnings.simplefilter("ignore")
            torch.onnx.export(module, tuple(inputs), str(path), dynamo=False)
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return session.run(None, dict(zip(names, arrays, strict=True)))

    return call
