"""Weights as the engines read them: folded, joined and packed, see csrc/engine/engine_model.h.

What is folded: weights of norms into the product that follows, residual scales into the product
before, the first action product into the half of the next one that sees actions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vlakern.errors import CheckpointError, InputError, Unsupported
from vlakern.flow.solver import evaluation_times
from vlakern.models.config import VLAConfig
from vlakern.models.mot import rotary
from vlakern.models.vla import time_embedding
from vlakern.ops.linear import PackedLinear, pack_linear
from vlakern.ops.linear.packed import ROWS

__all__ = [
    "DTYPES",
    "PackedModel",
    "Weights",
    "engine_numbers",
    "not_packed",
    "pack_arrays",
    "pack_model",
    "position_table",
    "time_table",
]

DTYPES = ("fp32", "bf16", "int8")
ROWS_DTYPES = (*DTYPES, "fp8")  # of weights that lie row after row, for GPUs
Weights = Callable[[str], Tensor]
Array = tuple[str, PackedLinear | Tensor]


@dataclass(frozen=True)
class PackedModel:
    """A policy network for the engine.

    Attributes:
        config: what it is.
        dtype: of the large products: ``int8`` quantises their weights per row and their inputs per
            token, ``fp8`` likewise (few rows stay bf16); small ones and what passes between layers
            are bf16 then.
        matrices, tensors: by the engine's names.
    """

    config: VLAConfig
    dtype: str
    matrices: dict[str, PackedLinear]
    tensors: dict[str, Tensor]

    @property
    def activation_dtype(self) -> torch.dtype:
        """Of queries, keys, values and what else passes between products."""
        return torch.float32 if self.dtype == "fp32" else torch.bfloat16

    @property
    def isa(self) -> str:
        """The family of kernels that the matrices are packed for."""
        return next(iter(self.matrices.values())).isa

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.matrices.values())).data.device

    @property
    def nbytes(self) -> int:
        """Of all weights."""
        held = [one.data for one in self.matrices.values()] + list(self.tensors.values())
        return sum(one.nbytes for one in held)


def pack_model(
    config: VLAConfig,
    weights: Weights,
    dtype: str,
    seen: Callable[[str], None] | None = None,
    isa: str | None = None,
) -> PackedModel:
    """Folds and packs all weights of a model, on the device of each.

    Args:
        weights: a tensor of the model's state dict by its name.
        dtype: ``fp32``, ``bf16`` or ``int8``; with ``isa="rows"`` also ``fp8``.
        seen: is told the name of each finished array, for a progress bar.
        isa: as ``pack_linear`` takes it: ``rows`` for GPUs, by default what the device takes.

    Raises:
        CheckpointError: a weight is not finite or has the wrong shape.
        Unsupported: another dtype.
    """
    matrices: dict[str, PackedLinear] = {}
    tensors: dict[str, Tensor] = {}
    for name, one in pack_arrays(config, weights, dtype, isa):
        if isinstance(one, PackedLinear):
            matrices[name] = one
        else:
            tensors[name] = one
        if seen is not None:
            seen(name)
    return PackedModel(config, dtype, matrices, tensors)


def not_packed(config: VLAConfig, isa: str | None = None) -> str | None:
    """What of a model the engines of packed weights do not run, None if they run it all.

    Args:
        isa: ``rows`` for the GPU engine, else the CPU engine.
    """
    vision, mot = config.vision, config.mot
    plain = {
        "vision.activation": vision.activation == "gelu",
        "vision.final_norm": not vision.final_norm,
        "vision.connector": vision.connector == "mlp",
        "mot.qk_norm": mot.qk_norm,
        "mot.activation": mot.activation == "silu",
        "mot.cross_every": not mot.cross_every,
        "mot.action.adaptive": not mot.action.adaptive,
        "state": config.state == "action",
        "state_encoder": config.state_encoder == "mlp",
        "action_decoder": config.action_decoder == "mlp",
    }
    found = [name for name, known in plain.items() if not known]
    where = "GPU" if isa == ROWS else "CPU"
    return f"this model's {', '.join(found)} are not in the {where} engine yet" if found else None


def pack_arrays(
    config: VLAConfig, weights: Weights, dtype: str, isa: str | None = None
) -> Iterator[Array]:
    """Name and content of each array, one after the other, so that none need stay in memory.

    Raises:
        As :func:`pack_model`.
    """
    known = ROWS_DTYPES if isa == ROWS else DTYPES
    if dtype not in known:
        raise Unsupported(f"dtype {dtype!r} is not supported; use {', '.join(known)}")
    reason = not_packed(config, isa)
    if reason is not None:
        raise Unsupported(f"{reason}; run the network through torch")
    packer = _Packer(config, weights, dtype, isa)
    yield from packer.vision()
    yield from packer.edges()
    for layer in range(config.mot.layers):
        yield from packer.layer("semantic", layer, with_rest=layer < config.mot.layers - 1)
        yield from packer.layer("action", layer, with_rest=True)


class _Packer:
    def __init__(self, config: VLAConfig, weights: Weights, dtype: str, isa: str | None) -> None:
        self._config = config
        self._weights = weights
        self._isa = isa
        self._large = dtype
        self._small = "fp32" if dtype == "fp32" else "bf16"

    def read(self, name: str) -> Tensor:
        """A weight in fp32."""
        return self.raw(name).float()

    def raw(self, name: str) -> Tensor:
        tensor = self._weights(name).detach()
        # Both pass a NaN on, and need no memory.
        if tensor.numel() and not torch.isfinite(tensor.amax() - tensor.amin()):
            raise CheckpointError(f"tensor {name!r} holds values that are not finite")
        return tensor

    def large(self, name: str, weight: Tensor, bias: Tensor | None = None) -> Array:
        return name, pack_linear(weight, self._large, bias, isa=self._isa)

    def small(self, name: str, weight: Tensor, bias: Tensor | None = None) -> Array:
        return name, pack_linear(weight, self._small, bias, isa=self._isa)

    def vision(self) -> Iterator[Array]:
        config = self._config.vision
        for i in range(len(config.stem)):
            weight = self.read(f"vision.stem.{i}.weight").permute(0, 2, 3, 1).flatten(1)
            yield self.small(f"vision.stem.{i}", weight, self.read(f"vision.stem.{i}.bias"))
        patch = self.read("vision.patch.weight")
        # Pixels behind a stem lie channel by channel, those of images plane by plane.
        patch = (patch.permute(0, 2, 3, 1) if config.stem else patch).flatten(1)
        yield self.small("vision.patch", patch, self.read("vision.patch.bias"))
        place = self.read("vision.position").clone()
        if config.class_token:
            place[0] += self.read("vision.class_token")
        yield "vision.place", place.contiguous()
        for i in range(config.layers):
            yield from self._vision_layer(i, config.layer_scale is not None)
        yield self._after_layer_norm("connector.0", "vision.connector.1", "vision.connector.0")
        last = "vision.connector.3"
        yield self.large("connector.1", self.read(f"{last}.weight"), self.read(f"{last}.bias"))

    def _vision_layer(self, i: int, scaled: bool) -> Iterator[Array]:
        block, name = f"vision.blocks.{i}", f"vision.{i}"
        scales = [self.read(f"{block}.scale{j}") if scaled else None for j in (1, 2)]
        yield self._after_layer_norm(f"{name}.qkv", f"{block}.qkv", f"{block}.norm1")
        yield self._scaled(f"{name}.proj", f"{block}.proj", scales[0])
        yield self._after_layer_norm(f"{name}.fc1", f"{block}.fc1", f"{block}.norm2")
        yield self._scaled(f"{name}.fc2", f"{block}.fc2", scales[1])

    def _after_layer_norm(self, name: str, linear: str, norm: str) -> Array:
        """W (w n + b) + c = (W w) n + (W b + c)."""
        weight = self.read(f"{linear}.weight")
        bias = self.read(f"{linear}.bias") + weight @ self.read(f"{norm}.bias")
        return self.large(name, weight * self.read(f"{norm}.weight"), bias)

    def _scaled(self, name: str, linear: str, scale: Tensor | None) -> Array:
        weight, bias = self.read(f"{linear}.weight"), self.read(f"{linear}.bias")
        if scale is not None:
            weight, bias = weight * scale[:, None], bias * scale
        return self.large(name, weight, bias)

    def edges(self) -> Iterator[Array]:
        """Everything that is neither tower nor trunk."""
        dtype = torch.float32 if self._small == "fp32" else torch.bfloat16
        yield "embed", self.raw("embed_tokens.weight").to(dtype).contiguous()
        for i, source in enumerate(("state_encoder.0", "state_encoder.2")):
            weight, bias = self.read(f"{source}.weight"), self.read(f"{source}.bias")
            yield self.small(f"state.{i}", weight, bias)
        width = self._config.mot.action.hidden
        w1, b1 = self.read("action_encoder.w1.weight"), self.read("action_encoder.w1.bias")
        w2, b2 = self.read("action_encoder.w2.weight"), self.read("action_encoder.w2.bias")
        w3, b3 = self.read("action_encoder.w3.weight"), self.read("action_encoder.w3.bias")
        yield self.small("action_in.first", _product(w2[:, :width], w1))
        yield "action_in.time_weight", w2[:, width:].contiguous()
        yield "action_in.time_bias", b2 + _product(w2[:, :width], b1[:, None])[:, 0]
        yield self.small("action_in.last", w3, b3)
        first = self.read("action_decoder.0.weight") * self.read("mot.action.norm.weight")
        yield self.small("action_out.first", first, self.read("action_decoder.0.bias"))
        last, bias = self.read("action_decoder.2.weight"), self.read("action_decoder.2.bias")
        yield self.small("action_out.last", last, bias)

    def layer(self, expert: str, i: int, with_rest: bool) -> Iterator[Array]:
        """One layer of one expert; without the rest, what keys and values need."""
        source, name = f"mot.{expert}.layers.{i}", f"{expert}.{i}"
        norm = self.read(f"{source}.input_norm.weight")
        k, v = (self.read(f"{source}.{one}_proj.weight") * norm for one in "kv")
        for one in ("q_norm", "k_norm"):
            yield f"{name}.{one}", self.read(f"{source}.{one}.weight").contiguous()
        if i == self._config.mot.layers - 1:
            yield self.large(f"{name}.kv", torch.cat([k, v]))
        if not with_rest:
            return
        q = self.read(f"{source}.q_proj.weight") * norm
        yield self.large(f"{name}.qkv", torch.cat([q, k, v]))
        yield self.large(f"{name}.o", self.read(f"{source}.o_proj.weight"))
        norm = self.read(f"{source}.post_norm.weight")
        gate, up = (self.read(f"{source}.{one}_proj.weight") * norm for one in ("gate", "up"))
        both = pack_linear(torch.cat([gate, up]), self._large, gate=True, isa=self._isa)
        yield f"{name}.gate_up", both
        yield self.large(f"{name}.down", self.read(f"{source}.down_proj.weight"))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """In fp64: the folded product is rounded once."""
    return (a.double() @ b.double()).float()


def time_table(model: PackedModel, steps: int, solver: str) -> Tensor:
    """What flow time adds to the first action product: a row per evaluation, last that of τ = 1.

    ``[evaluations + 1, M]`` fp32.

    Raises:
        InputError: naming a tensor that is missing or does not fit the model's sizes.
    """
    tau = torch.cat([evaluation_times(steps, solver), torch.ones(1)])
    width = model.config.mot.action.hidden
    embedded = time_embedding(tau, width, model.config.time)
    weight = _of_shape(model, "action_in.time_weight", (width, width))
    bias = _of_shape(model, "action_in.time_bias", (width,))
    return (_product(embedded.to(weight.device), weight.T) + bias).contiguous()


def _of_shape(model: PackedModel, name: str, shape: tuple[int, ...]) -> Tensor:
    found = model.tensors.get(name)
    if found is None or found.shape != shape or found.dtype != torch.float32:
        what = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
        raise InputError(f"the weights hold {what} as {name}, expected fp32 {list(shape)}")
    return found


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
