"""Weights as the CPU engine reads them: folded, joined and packed, see csrc/engine/engine_model.h.

What is folded: weights of norms into the product that follows, residual scales into the product
before, the first action product into the half of the next one that sees actions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlakern.errors import CheckpointError, Unsupported
from vlakern.flow.solver import evaluation_times
from vlakern.models.config import VLAConfig
from vlakern.models.mot import rotary
from vlakern.models.vla import time_embedding
from vlakern.ops.linear import PackedLinear, pack_linear

__all__ = [
    "DTYPES",
    "PackedModel",
    "Weights",
    "engine_numbers",
    "pack_model",
    "position_table",
    "time_table",
]

DType = Literal["fp32", "bf16", "int8"]
DTYPES: tuple[DType, ...] = ("fp32", "bf16", "int8")
Weights = Callable[[str], Tensor]


@dataclass(frozen=True)
class PackedModel:
    """A policy network for the engine.

    Attributes:
        config: what it is.
        dtype: of the large products: ``int8`` quantises their weights per row and their inputs per
            token; small ones and what passes between layers are bf16 then.
        matrices, tensors: by the engine's names.
    """

    config: VLAConfig
    dtype: DType
    matrices: dict[str, PackedLinear]
    tensors: dict[str, Tensor]

    @property
    def activation_dtype(self) -> torch.dtype:
        """Of queries, keys, values and what else passes between products."""
        return torch.float32 if self.dtype == "fp32" else torch.bfloat16

    @property
    def nbytes(self) -> int:
        """Of all weights."""
        held = [one.data for one in self.matrices.values()] + list(self.tensors.values())
        return sum(one.nbytes for one in held)


def pack_model(
    config: VLAConfig, weights: Weights, dtype: str, seen: Callable[[str], None] | None = None
) -> PackedModel:
    """Folds and packs, one matrix after the other, so that few weights are in memory twice.

    Args:
        weights: a tensor of the model's state dict by its name.
        dtype: ``fp32``, ``bf16`` or ``int8``.
        seen: is told each finished matrix, for a progress bar.

    Raises:
        CheckpointError: a weight is not finite or has the wrong shape.
        Unsupported: another dtype.
    """
    if dtype not in DTYPES:
        raise Unsupported(f"dtype {dtype!r} is not supported; use {', '.join(DTYPES)}")
    packer = _Packer(config, weights, dtype, seen or (lambda _: None))
    packer.vision()
    packer.edges()
    for layer in range(config.mot.layers):
        packer.semantic_layer(layer)
        packer.action_layer(layer)
    return PackedModel(config, dtype, packer.matrices, packer.tensors)


class _Packer:
    def __init__(
        self, config: VLAConfig, weights: Weights, dtype: DType, seen: Callable[[str], None]
    ) -> None:
        self.config = config
        self.matrices: dict[str, PackedLinear] = {}
        self.tensors: dict[str, Tensor] = {}
        self._weights = weights
        self._seen = seen
        self._large: str = dtype
        self._small = "bf16" if dtype == "int8" else dtype

    def read(self, name: str) -> Tensor:
        tensor = self._weights(name).detach().float()
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"tensor {name!r} holds values that are not finite")
        return tensor

    def maybe(self, name: str, there: bool) -> Tensor | None:
        return self.read(name) if there else None

    def add(
        self,
        name: str,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        gate: bool = False,
        small: bool = False,
    ) -> None:
        dtype = self._small if small else self._large
        self.matrices[name] = pack_linear(weight, dtype, bias, gate)
        self._seen(name)

    def vision(self) -> None:
        config = self.config.vision
        for i in range(len(config.stem)):
            weight = self.read(f"vision.stem.{i}.weight").permute(0, 2, 3, 1).flatten(1)
            self.add(f"vision.stem.{i}", weight, self.read(f"vision.stem.{i}.bias"), small=True)
        patch = self.read("vision.patch.weight")
        # Pixels behind a stem lie channel by channel, those of images plane by plane.
        patch = (patch.permute(0, 2, 3, 1) if config.stem else patch).flatten(1)
        self.add("vision.patch", patch, self.read("vision.patch.bias"), small=True)
        place = self.read("vision.position").clone()
        if config.class_token:
            place[0] += self.read("vision.class_token")
        self.tensors["vision.place"] = place.contiguous()
        for i in range(config.layers):
            self._vision_layer(i, config.layer_scale is not None)
        norm = "vision.connector.0"
        self._after_layer_norm("connector.0", "vision.connector.1", norm)
        self.add(
            "connector.1", self.read("vision.connector.3.weight"), self.read("vision.connector.3.bias")
        )

    def _vision_layer(self, i: int, scaled: bool) -> None:
        block = f"vision.blocks.{i}"
        self._after_layer_norm(f"vision.{i}.qkv", f"{block}.qkv", f"{block}.norm1")
        self._scaled(f"vision.{i}.proj", f"{block}.proj", self.maybe(f"{block}.scale1", scaled))
        self._after_layer_norm(f"vision.{i}.fc1", f"{block}.fc1", f"{block}.norm2")
        self._scaled(f"vision.{i}.fc2", f"{block}.fc2", self.maybe(f"{block}.scale2", scaled))

    def _after_layer_norm(self, name: str, linear: str, norm: str) -> None:
        """W (w n + b) + c = (W w) n + (W b + c)."""
        weight = self.read(f"{linear}.weight")
        bias = self.read(f"{linear}.bias") + weight @ self.read(f"{norm}.bias")
        self.add(name, weight * self.read(f"{norm}.weight"), bias)

    def _scaled(self, name: str, linear: str, scale: Tensor | None) -> None:
        weight, bias = self.read(f"{linear}.weight"), self.read(f"{linear}.bias")
        if scale is not None:
            weight, bias = weight * scale[:, None], bias * scale
        self.add(name, weight, bias)

    def edges(self) -> None:
        """Everything that is neither tower nor trunk."""
        dtype = torch.float32 if self._small == "fp32" else torch.bfloat16
        table = self._weights("embed_tokens.weight").detach()
        self.tensors["embed"] = table.to(dtype).contiguous()
        for i, source in enumerate(("state_encoder.0", "state_encoder.2")):
            weight, bias = self.read(f"{source}.weight"), self.read(f"{source}.bias")
            self.add(f"state.{i}", weight, bias, small=True)
        width = self.config.mot.action.hidden
        w1, b1 = self.read("action_encoder.w1.weight"), self.read("action_encoder.w1.bias")
        w2, b2 = self.read("action_encoder.w2.weight"), self.read("action_encoder.w2.bias")
        self.add("action_in.first", _product(w2[:, :width], w1), small=True)
        self.tensors["action_in.time_weight"] = w2[:, width:].contiguous()
        self.tensors["action_in.time_bias"] = b2 + _product(w2[:, :width], b1[:, None])[:, 0]
        w3, b3 = self.read("action_encoder.w3.weight"), self.read("action_encoder.w3.bias")
        self.add("action_in.last", w3, b3, small=True)
        first = self.read("action_decoder.0.weight") * self.read("mot.action.norm.weight")
        self.add("action_out.first", first, self.read("action_decoder.0.bias"), small=True)
        last, bias = self.read("action_decoder.2.weight"), self.read("action_decoder.2.bias")
        self.add("action_out.last", last, bias, small=True)

    def semantic_layer(self, i: int) -> None:
        self._layer("semantic", i, with_rest=i < self.config.mot.layers - 1)

    def action_layer(self, i: int) -> None:
        self._layer("action", i, with_rest=True)

    def _layer(self, expert: str, i: int, with_rest: bool) -> None:
        source, name = f"mot.{expert}.layers.{i}", f"{expert}.{i}"
        norm = self.read(f"{source}.input_norm.weight")
        k, v = (self.read(f"{source}.{one}_proj.weight") * norm for one in "kv")
        for one in ("q_norm", "k_norm"):
            self.tensors[f"{name}.{one}"] = self.read(f"{source}.{one}.weight").contiguous()
        if i == self.config.mot.layers - 1:
            self.add(f"{name}.kv", torch.cat([k, v]))
        if not with_rest:
            return
        q = self.read(f"{source}.q_proj.weight") * norm
        self.add(f"{name}.qkv", torch.cat([q, k, v]))
        self.add(f"{name}.o", self.read(f"{source}.o_proj.weight"))
        norm = self.read(f"{source}.post_norm.weight")
        gate, up = (self.read(f"{source}.{one}_proj.weight") * norm for one in ("gate", "up"))
        self.add(f"{name}.gate_up", torch.cat([gate, up]), gate=True)
        self.add(f"{name}.down", self.read(f"{source}.down_proj.weight"))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """In fp64: the folded product is rounded once."""
    return (a.double() @ b.double()).float()


def time_table(model: PackedModel, steps: int, solver: str) -> Tensor:
    """What flow time adds to the first action product: a row per evaluation, last that of τ = 1.

    ``[evaluations + 1, M]`` fp32.
    """
    tau = torch.cat([evaluation_times(steps, solver), torch.ones(1)])
    width = model.config.mot.action.hidden
    embedded = time_embedding(tau, width, model.config.time)
    rows = _product(embedded, model.tensors["action_in.time_weight"].T)
    return (rows + model.tensors["action_in.time_bias"]).contiguous()


def position_table(config: VLAConfig, positions: int) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary embedding of positions from 0 on: ``[positions, D / 2]``."""
    cos, sin = rotary(torch.arange(positions), config.mot.head_dim, config.mot.rope_theta)
    return cos.contiguous(), sin.contiguous()


def engine_numbers(config: VLAConfig, steps: int) -> dict[str, float]:
    """The sizes under the names that native code asks for."""
    vision, mot = config.vision, config.mot
    return {
        "vision.image": vision.image_size,
        "vision.patch": vision.patch_size,
        "vision.hidden": vision.hidden,
        "vision.layers": vision.layers,
        "vision.heads": vision.heads,
        "vision.mlp": vision.mlp,
        "vision.shuffle": vision.pixel_shuffle,
        "vision.class_token": vision.class_token,
        "vision.eps": vision.eps,
        "vision.stem": len(vision.stem),
        **{f"vision.stem.{i}": width for i, width in enumerate(vision.stem)},
        "semantic.hidden": mot.semantic.hidden,
        "semantic.mlp": mot.semantic.mlp,
        "action.hidden": mot.action.hidden,
        "action.mlp": mot.action.mlp,
        "layers": mot.layers,
        "heads": mot.q_heads,
        "groups": mot.kv_heads,
        "head_dim": mot.head_dim,
        "vocab": config.vocab_size,
        "state": config.state_dim,
        "slots": config.action_dim,
        "chunk": config.chunk,
        "steps": steps,
        "causal_actions": config.mask.actions == "causal",
        "eps": mot.norm_eps,
    }
