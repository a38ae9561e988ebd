"""Which code runs an engine's stages: the one choice, and what it is asked to do."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import Unsupported
from vlakern.flow.guidance import Guidance
from vlakern.flow.solver import Frozen
from vlakern.infer.buffers import Limits, room
from vlakern.infer.graph_engine import GraphEngine
from vlakern.infer.native_engine import NativeEngine
from vlakern.infer.packing import PackedModel, not_packed, pack_model
from vlakern.infer.torch_engine import TorchEngine
from vlakern.models.config import Solver
from vlakern.models.processing import DEFAULT_IMAGES, ImageRule
from vlakern.models.sequence import Batch
from vlakern.models.vla import VLA
from vlakern.ops import _native
from vlakern.ops._dispatch import refusals
from vlakern.ops._torch import key_for
from vlakern.ops.linear.packed import ROWS

__all__ = ["EngineBackend", "Plan", "Stages", "graph_refusal", "make_stages"]

EngineBackend = Literal["auto", "native", "torch", "graph", "cuda"]


class Stages(Protocol):
    """What runs an engine's stages."""

    @property
    def kv(self) -> Tensor: ...
    @property
    def dtype(self) -> str: ...
    def prepare(self, images: Sequence[np.ndarray]) -> None: ...
    def take_pixels(self, pixels_V3SS: Tensor) -> None: ...
    def vision(self, views: int) -> Tensor: ...
    def prefix(self, batch: Batch, views: int) -> None: ...
    def integrate(
        self,
        noise_NHA: Tensor,
        kv: Tensor,
        cu_prefix: Tensor,
        prefix_index: Tensor,
        frozen: Frozen | None,
        slot_mask: Tensor | None,
        guidance: Guidance | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Plan:
    """What the stages are built for.

    Attributes:
        threads: of the CPU engine.
        image_sizes: height and width [px] of one observation's camera images, for the GPU engine.
        image: how camera images become pixels.
    """

    limits: Limits
    steps: int
    solver: Solver
    threads: int
    image_sizes: Sequence[tuple[int, int]] = ()
    image: ImageRule = DEFAULT_IMAGES


def graph_refusal(device: torch.device | str, dtype: str = "bf16") -> str | None:
    """Why the GPU engine does not run on a device, None if it does."""
    flags = frozenset({dtype, ROWS})
    return refusals("linear", key_for(device, flags=flags))["triton"]


def make_stages(model: PackedModel | VLA, plan: Plan, backend: str) -> Stages:
    """Packs a network if need be, and allocates everything.

    Raises:
        InputError: the memory is not there.
        Unsupported: the backend does not run this model here.
    """
    if backend not in get_args(EngineBackend):
        known = ", ".join(get_args(EngineBackend))
        raise Unsupported(f"backend {backend!r} of an engine is not known; use {known}")
    device = model.device if isinstance(model, PackedModel) else model.embed_tokens.weight.device
    chosen = _automatic(model, device) if backend == "auto" else backend
    if chosen == "native":
        return _native_stages(model, plan, device)
    if chosen in ("graph", "cuda"):
        return _graph_stages(model, plan, device, "cuda" if chosen == "cuda" else "auto")
    if isinstance(model, PackedModel):
        raise Unsupported("packed weights are for the CPU engine; give the network to torch")
    sizes = {"steps": plan.steps, "solver": plan.solver}
    return TorchEngine(model, plan.limits, image=plan.image, **sizes)


def _automatic(model: PackedModel | VLA, device: torch.device) -> str:
    if isinstance(model, PackedModel):
        return "graph" if model.isa == ROWS else "native"
    if device.type == "cpu":
        return "native" if (_native.missing() or not_packed(model.config)) is None else "torch"
    reason = graph_refusal(device) or not_packed(model.config, ROWS)
    if reason is None:
        return "graph"
    warnings.warn(
        f"the engine runs the network through torch, one kernel after the other: {reason}",
        RuntimeWarning,
        stacklevel=5,
    )
    return "torch"


def _native_stages(model: PackedModel | VLA, plan: Plan, device: torch.device) -> NativeEngine:
    reason = _native.missing() or not_packed(model.config)
    if reason or device.type != "cpu":
        reason = reason or f"weights are on {device.type}"
        raise Unsupported(f"the CPU engine cannot run: {reason}")
    if isinstance(model, VLA):
        model = _packed(model, None)
    sizes = {"steps": plan.steps, "solver": plan.solver, "threads": plan.threads}
    return NativeEngine(model, plan.limits, image=plan.image, **sizes)


def _graph_stages(
    model: PackedModel | VLA, plan: Plan, device: torch.device, loop: str
) -> GraphEngine:
    reason = graph_refusal(device, model.dtype if isinstance(model, PackedModel) else "bf16")
    reason = reason or not_packed(model.config, ROWS)
    if reason is None and isinstance(model, PackedModel) and model.isa != ROWS:
        reason = f"weights are packed for {model.isa}; pack them with isa={ROWS!r}"
    if reason is not None:
        raise Unsupported(f"the GPU engine cannot run: {reason}")
    if isinstance(model, VLA):
        model = _packed(model, ROWS)
    return GraphEngine(
        model,
        plan.limits,
        steps=plan.steps,
        solver=plan.solver,
        image_sizes=plan.image_sizes,
        image=plan.image,
        loop=loop,
    )


def _packed(model: VLA, isa: str | None) -> PackedModel:
    """The weights of a network once more, in its dtype and where it is."""
    weights = model.state_dict()
    fp32 = model.embed_tokens.weight.dtype == torch.float32
    size = sum(weight.numel() for weight in weights.values()) * (4 if fp32 else 2)
    with room(size, "packed weights"):
        dtype = "fp32" if fp32 else "bf16"
        return pack_model(model.config, weights.__getitem__, dtype, isa=isa)
