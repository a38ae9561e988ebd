"""What the tests of the device engine share: engines on a CPU, and a recorder that is strict.

Dimension letters: R observations, V views, T prefix tokens, N chunks, H positions, A slots.
"""

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from scenes import Made, Scene, index_of, network
from torch.utils._python_dispatch import TorchDispatchMode

from vlakern.infer.graph import Program, Run, run_all
from vlakern.infer.graph_engine import GraphEngine
from vlakern.infer.packing import PackedModel, pack_model
from vlakern.testing import poison

__all__ = ["PARTS", "Guard", "StrictRecorder", "device_engine", "packed_rows", "run_device"]

PARTS = ("image_tokens", "kv", "actions")
KERNELS = ("/vlakern/ops/", "/triton/")  # references allocate, and so does Triton's interpreter
SETTINGS = ("dtau", "tau")  # buffers with a content


@cache
@torch.inference_mode(False)
def packed_rows(name: str, dtype: str) -> PackedModel:
    """That network's weights as a GPU reads them."""
    model = network(name)
    return pack_model(model.config, model.state_dict().__getitem__, dtype, isa="rows")


class Guard(TorchDispatchMode):
    """Fails on memory that is allocated and on values that are read back outside of kernels."""

    def __init__(self, kernels: Sequence[str]) -> None:
        super().__init__()
        self._kernels = kernels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            self._refuse("reads a value back")
        known = {one.untyped_storage()._cdata for one in _tensors((args, kwargs))}
        made = func(*args, **kwargs)
        for one in _tensors(made):
            if one.numel() and one.untyped_storage()._cdata not in known:
                self._refuse(f"allocates through {func}")
        return made

    def _refuse(self, what: str) -> None:
        frame = sys._getframe(2)
        while frame is not None:
            if any(part in frame.f_code.co_filename for part in self._kernels):
                return
            frame = frame.f_back
        raise AssertionError(f"a recorded program {what}")


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for one in value for tensor in _tensors(one)]


class StrictRecorder:
    """Replays the very calls that it was given, under :class:`Guard`; fails where it is told to.

    Attributes:
        recorded, replayed: how often.
        fails: ``record`` or ``replay``, of which the ``after``-th from now on fails.
    """

    def __init__(
        self, fails: str = "", after: int = 0, kernels: Sequence[str] = KERNELS, strict: bool = True
    ) -> None:
        self.recorded = self.replayed = 0
        self.fails, self.after = fails, after
        self._kernels, self._strict = kernels, strict

    def warm_up(self, program: Program) -> None:
        run_all(program)

    def record(self, program: Program) -> Run:
        self._fail("record")
        self.recorded += 1
        kept = tuple(program)
        self._run(kept)
        return lambda: self._replay(kept)

    def _replay(self, program: Program) -> None:
        self._fail("replay", program)
        self.replayed += 1
        self._run(program)

    def _run(self, program: Program) -> None:
        if not self._strict:
            return run_all(program)
        with Guard(self._kernels):
            run_all(program)

    def _fail(self, what: str, program: Program = ()) -> None:
        if self.fails != what:
            return
        self.after -= 1
        if self.after < 0:
            run_all(program[: len(program) // 2])  # a failure midway leaves halves behind
            raise RuntimeError(f"injected: {what}")


def device_engine(
    scene: Scene, dtype: str, n: int = 1, spare: int = 0, **changes: Any
) -> GraphEngine:
    """An engine on the CPU over the ops' references, its memory full of NaN."""
    config = scene.config
    settings = {"steps": config.steps, "solver": config.solver, "ops": "reference"} | changes
    engine = GraphEngine(packed_rows(scene.name, dtype), scene.limits(n, spare), **settings)
    spoil(engine)
    return engine


def spoil(engine: GraphEngine) -> None:
    """NaN in everything that a call must not read before it is written."""
    kept = {id(getattr(engine.buffers, name)) for name in SETTINGS}
    for one in engine.buffers.tensors:
        if id(one) not in kept:
            poison(one)


def run_device(
    engine: GraphEngine, scene: Scene, n: int = 1, restricted: bool = False, led: bool = False
) -> Made:
    """The engine's stages, one after the other.

    ``restricted`` freezes positions and masks slots, ``led`` leads to what was decided.
    """
    batch, frozen, mask = scene.batch(), None, None
    if restricted:
        frozen, mask = scene.frozen(n), scene.slot_mask().expand(n * len(scene.asked), -1)
    engine.take_pixels(batch.pixels_V3SS)
    image_tokens = engine.vision(scene.views).clone()
    engine.prefix(batch, scene.views)
    kv = engine.kv[:, :, : int(batch.cu_prefix[-1])].clone()
    where = (engine.kv, batch.cu_prefix.int(), index_of(scene, n))
    guidance = scene.guidance(n) if led else None
    actions = engine.integrate(scene.noise(n), *where, frozen, mask, guidance)
    return Made(image_tokens, kv, torch.empty(0), actions)
