"""The CPU engine: one native call per stage, over packed weights and fixed memory.

Dimension letters: R observations, V views, T prefix tokens, N action chunks, H chunk, A slots, K
tokens of a view, M width of the semantic expert.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vlakern import env, ops
from vlakern.errors import InputError
from vlakern.flow.guidance import Guidance
from vlakern.flow.solver import Frozen
from vlakern.infer._checks import check_cheap
from vlakern.infer.buffers import Buffers, Limits, arena, room, vacant
from vlakern.infer.packing import (
    PackedModel,
    engine_numbers,
    modulation_table,
    position_table,
    time_table,
)
from vlakern.models.processing import DEFAULT_IMAGES, ImageRule
from vlakern.models.sequence import Batch
from vlakern.ops import _native
from vlakern.ops.image_prep.reference import rows_of_patches
from vlakern.ops.linear import PackedLinear
from vlakern.ops.linear.packed import ISA, LAYOUT
from vlakern.ops.linear.reference import KINDS

__all__ = ["NativeEngine"]

View = _native.View


class NativeEngine:
    """Vision, prefix and integration of packed weights on the CPU.

    Attributes:
        model: the packed weights.
        steps, solver: of the integration.
        limits: the most that one call may bring.
        threads: that share the work; the results do not depend on it.
    """

    def __init__(
        self,
        model: PackedModel,
        limits: Limits,
        *,
        steps: int,
        solver: str,
        threads: int,
        image: ImageRule = DEFAULT_IMAGES,
    ) -> None:
        native, config = _native.cpu_module(), model.config
        self.model, self.limits = model, limits
        self.steps, self.solver = steps, solver
        self.threads = threads
        self._image = image.settings
        mot, positions = config.mot, limits.tokens + config.chunk
        kv_shape = (mot.layers, 2, limits.tokens, mot.kv_heads * mot.head_dim)
        # First what grows most: absurd limits fail here, before anything is computed for them.
        what = f"keys and values of {limits.tokens} prefix tokens"
        kv = vacant(kv_shape, model.activation_dtype, what)
        x_shape = (limits.rows, config.chunk, config.action_dim)
        x = vacant(x_shape, torch.float32, f"{limits.rows} action chunks")
        with room(4 * positions * mot.head_dim, f"the angles of {positions} positions"):
            cos, sin = position_table(config, positions)
        tables = {"rope.cos": cos, "rope.sin": sin}
        if mot.action.adaptive:
            tables["action.modulation"] = modulation_table(model, steps, solver).flatten(0, 2)
        else:
            tables["action_in.time"] = time_table(model, steps, solver)
        kept = {
            name: tensor
            for name, tensor in model.tensors.items()
            if not name.startswith(("action_in.", "time."))
        }
        self._tensors = kept | tables
        facts = native.EngineModel(
            {name: float(value) for name, value in engine_numbers(config, steps).items()},
            {"solver": solver},
            {name: _tensor(name, one) for name, one in self._tensors.items()},
            {name: _packed(name, one) for name, one in model.matrices.items()},
            "fp32" if model.dtype == "fp32" else "bf16",
            env.cpu_isa(),
            threads,
        )
        sizes = (limits.views, limits.observations, limits.tokens, limits.rows)
        self.buffers = Buffers(arena(facts.bytes(*sizes)), kv, x)
        self._engine = native.Engine(facts, *sizes, self.buffers.arena.data_ptr())

    @property
    def kv(self) -> Tensor:
        """Keys and values of the prefixes: ``[layers, 2, T, G · D]``."""
        return self.buffers.kv

    @property
    def dtype(self) -> str:
        """Of the large products."""
        return self.model.dtype

    def prepare(self, images: Sequence[np.ndarray]) -> None:
        """Camera images to the patches of the first views."""
        side = self.model.config.vision.image_size
        for slot, image in zip(self.patches(len(images)), images, strict=True):
            # A bound call reads memory that it may keep: mirrored or locked images are copied.
            plain = image.flags.writeable and min(image.strides) >= 0
            seen = image if plain else image.copy()
            out = slot[None]
            ops.image_prep_out(seen, out=out, size=side, patch=self.patch, **self._image)

    def take_pixels(self, pixels_V3SS: Tensor) -> None:
        """Normalised pixels to the patches of the first views."""
        self.patches(len(pixels_V3SS)).copy_(rows_of_patches(pixels_V3SS, self.patch))

    def patches(self, views: int) -> Tensor:
        """Where the pixels of ``views`` images belong, see :attr:`patch`: ``[V, rows, 3·P·P]``."""
        address, size = self._engine.patches(views)
        rows = (self.model.config.vision.image_size // self.patch) ** 2
        return self._at(address, size, self.model.activation_dtype).view(
            views, rows, 3 * self.patch**2
        )

    @property
    def patch(self) -> int:
        """Side of the patches that images come in [px]; 1 before a stem of convolutions."""
        vision = self.model.config.vision
        return 1 if vision.stem else vision.patch_size

    def vision(self, views: int) -> Tensor:
        """Image tokens ``[V · K, M]`` fp32 of the pixels in :meth:`patches`; a view of memory."""
        self._engine.vision(views)
        width = self.model.config.mot.semantic.hidden
        address, size = self._engine.image_tokens(views)
        return self._at(address, size, torch.float32).view(-1, width)

    def prefix(self, batch: Batch, views: int) -> None:
        """Keys and values of the prefixes after :meth:`vision`, into :attr:`kv`."""
        layout = batch.layout
        semantic, action = layout.semantic_rows.int(), layout.action_rows.int()
        given = (
            batch.tokens_L.int(),
            batch.semantic_order.int(),
            batch.state_RS.float().contiguous(),
            semantic,
            action,
            torch.cat([semantic, action]).argsort().int(),
            layout.positions.int(),
            layout.who.cu_q.int(),
            layout.who.kv_end.int(),
            self.kv,
        )
        self._engine.prefix(views, *map(_native.view, given))

    def integrate(
        self,
        noise_NHA: Tensor,
        kv: Tensor,
        cu_prefix: Tensor,
        prefix_index: Tensor,
        frozen: Frozen | None = None,
        slot_mask: Tensor | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Noise to actions, a copy of the engine's own memory.

        Raises:
            Unsupported: guidance through the Jacobian.
        """
        x_NHA = self.buffers.x[: len(noise_NHA)].copy_(noise_NHA)
        given = (x_NHA, prefix_index, cu_prefix, kv, *_frozen(frozen), slot_mask)
        if guidance is None:
            self._engine.integrate(*map(_native.view, given))
        else:
            led = _guidance(guidance)
            views = map(_native.view, (*given, *led))
            self._engine.integrate_guided(*views, float(guidance.most))
        return x_NHA.clone()

    def velocity(
        self,
        x_NHA: Tensor,
        kv: Tensor,
        cu_prefix: Tensor,
        prefix_index: Tensor,
        evaluation: int,
        frozen: Frozen | None = None,
    ) -> Tensor:
        """dx/dτ ``[N, H, A]`` at ``x`` and the τ of one of the solver's evaluations."""
        out = torch.empty_like(x_NHA)
        given = (x_NHA, prefix_index, cu_prefix, kv, *_frozen(frozen))
        self._engine.velocity(*map(_native.view, given), evaluation, _native.view(out))
        return out

    def _at(self, address: int, size: int, dtype: torch.dtype) -> Tensor:
        begin = address - self.buffers.arena.data_ptr()
        return self.buffers.arena[begin : begin + size].view(dtype)


def _tensor(name: str, tensor: Tensor) -> View | None:
    if tensor.dtype not in (torch.float32, torch.bfloat16):
        raise InputError(f"{name} is {tensor.dtype}, expected fp32 or bf16; pack the weights again")
    return _native.view(tensor)


def _packed(name: str, weights: PackedLinear) -> tuple[object, ...]:
    known = (weights.layout, weights.isa) == (LAYOUT, ISA) and weights.kind in KINDS
    if not known or weights.gate != name.endswith(".gate_up") or not _is_whole(weights):
        raise InputError(
            f"{name} is not packed as {weights.kind} in layout {LAYOUT} for {ISA}; pack the weights"
            " again"
        )
    views: Sequence[View | None] = [_native.view(one) for one in weights.sections()]
    return (*views, weights.n, weights.k, weights.kind)


def _is_whole(weights: PackedLinear) -> bool:
    """The flat tensor has the length that follows from its facts."""
    scales = weights.rows if weights.kind == "int8" else 0
    return weights.data.numel() == weights.rows * weights.steps + scales + weights.n


def _frozen(frozen: Frozen | None) -> tuple[Tensor | None, Tensor | None]:
    if frozen is None:
        return None, None
    return frozen.action_RHA.float().contiguous(), frozen.length_R.int().contiguous()


def _guidance(guidance: Guidance) -> tuple[Tensor, Tensor]:
    check_cheap(guidance)
    return guidance.decided_RHA.float().contiguous(), guidance.weights_RHA.float().contiguous()
