"""The baseline's network in OpenVINO, which computes in bf16 where the processor has it.

Each stage is traced in fp32 and compiled by OpenVINO, which keeps what it was given as well: 16 GB
for rethink-2b.

Dimension letters: C positions of all chunks of an observation.
"""

import gc
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlakern import ops
from vlakern.bench.torch_layers import by_group
from vlakern.bench.torch_model import Plan, TorchModel, make_plan
from vlakern.bench.workload import Call, Workload
from vlakern.errors import Unsupported
from vlakern.flow.solver import integrate
from vlakern.models.config import Solver

__all__ = ["OpenVinoContender"]

PRECISIONS = {"bf16": "bf16", "fp32": "f32"}


class OpenVinoContender:
    """The stages of :class:`TorchModel` as OpenVINO compiles them."""

    def __init__(self, work: Workload, dtype: str, device: str, threads: int) -> None:
        if device != "cpu":
            raise Unsupported(f"openvino is compared on CPUs, not on {device}")
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._side = work.config.vision.image_size
        self._steps = work.config.steps
        self._solver: Solver = work.config.solver
        self._observations = work.shape.batch
        model = TorchModel(work.config, work.weights, torch.float32, keep=False)
        self._times = model.times.detach().clone()
        self._embed = model.embed
        plan, call = make_plan(work, torch.float32, "cpu"), work.call(0)
        self.prepare(work)
        with torch.no_grad():
            model.blocks = nn.ModuleList(model.blocks)
            self._vision = _compiled(_Vision(model), [self._pixels], settings)
            model.blocks = nn.ModuleList()
            self.vision()
            semantic, state = model.embed(call.batch, self._views)
            model.semantic = nn.ModuleList(model.semantic)
            self._prefix = _compiled(_Prefix(model, plan), [semantic, state], settings)
            model.semantic = nn.ModuleList()
            self.prefix(call)
            x_RCA = self._by_observation(call.noise_NHA)
            inputs = [x_RCA, self._times[0], *map(torch.from_numpy, self._made)]
            self._velocity = _compiled(_Velocity(model, plan), inputs, settings)
            model.action = nn.ModuleList()
        gc.collect()

    def prepare(self, work: Workload) -> None:
        self._pixels = ops.image_prep(work.images, size=self._side)

    def vision(self) -> None:
        (views,) = self._vision([self._pixels.numpy()])
        self._views = torch.from_numpy(views)

    @torch.no_grad()
    def prefix(self, call: Call) -> None:
        semantic, state = self._embed(call.batch, self._views)
        self._made = self._prefix([semantic.numpy(), state.numpy()])

    @torch.no_grad()
    def ode(self, call: Call) -> Tensor:
        evaluation = iter(self._times)

        def velocity(x_NHA: Tensor, tau: Tensor) -> Tensor:
            x_RCA = self._by_observation(x_NHA)
            (out,) = self._velocity([x_RCA.numpy(), next(evaluation).numpy(), *self._made])
            return torch.from_numpy(out).view(x_NHA.shape)

        return integrate(velocity, call.noise_NHA, steps=self._steps, solver=self._solver)

    def _by_observation(self, x_NHA: Tensor) -> Tensor:
        return x_NHA.view(self._observations, -1, x_NHA.shape[-1])


class _Vision(nn.Module):
    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.vision(pixels)


class _Prefix(nn.Module):
    def __init__(self, model: TorchModel, plan: Plan) -> None:
        super().__init__()
        self.model, self.plan = model, plan

    def forward(self, semantic: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        return tuple(by_group(one) for one in self.model.prefix(semantic, state, self.plan))


class _Velocity(nn.Module):
    def __init__(self, model: TorchModel, plan: Plan) -> None:
        super().__init__()
        self.model, self.plan = model, plan

    def forward(self, x_RCA: Tensor, time_M: Tensor, *made: Tensor) -> Tensor:
        return self.model.velocity_behind(x_RCA, time_M, made, self.plan)


def _compiled(
    module: nn.Module, inputs: Sequence[Tensor], settings: dict[str, Any]
) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """A call from arrays to arrays, which stay valid until the next call."""
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
