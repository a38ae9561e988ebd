"""The baseline's network in other runtimes: each stage is handed over whole and compiled there.

Dimension letters: C positions of all chunks of an observation.
"""

import gc
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vlakern import ops
from vlakern.bench.torch_layers import by_group
from vlakern.bench.torch_model import Plan, TorchModel, make_plan
from vlakern.bench.workload import Call, Workload
from vlakern.flow.solver import integrate
from vlakern.models.config import Solver

__all__ = ["Compile", "Compiled", "CompiledContender"]

Compiled = Callable[[list[np.ndarray]], list[np.ndarray]]
Compile = Callable[[nn.Module, Sequence[Tensor]], Compiled]


class CompiledContender:
    """The stages of :class:`TorchModel` in fp32, as ``compile`` makes calls from arrays of them.

    What a call returns stays valid until it is called again.
    """

    def __init__(self, work: Workload, compile: Compile) -> None:
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
            self._vision = compile(_Vision(model), [self._pixels])
            model.blocks = nn.ModuleList()
            self.vision()
            semantic, state = model.embed(call.batch, self._views)
            model.semantic = nn.ModuleList(model.semantic)
            self._prefix = compile(_Prefix(model, plan), [semantic, state])
            model.semantic = nn.ModuleList()
            self.prefix(call)
            x_RCA = self._by_observation(call.noise_NHA)
            inputs = [x_RCA, self._times[0], *map(torch.from_numpy, self._made)]
            self._velocity = compile(_Velocity(model, plan), inputs)
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
