"""Weights as the engines read them: folded, joined and packed, see csrc/engine/engine_model.h.

What is folded: biases of norms into the product that follows, and their weights but in bf16, where
they stay apart (for GPUs not those of an action expert that csrc/ode_loop can run); residual scales
into the product before, the first action product into the half of the next one that sees actions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vlakern.errors import InputError, Unsupported
from vlakern.flow.solver import evaluation_times
from vlakern.infer._packer import Array, Packer, Weights, not_looped, product
from vlakern.models.config import VLAConfig
from vlakern.models.mot import rotary
from vlakern.models.vla import time_embedding
from vlakern.ops.linear import PackedLinear
from vlakern.ops.linear.packed import ROWS

__all__ = [
    "DTYPES",
    "PackedModel",
    "Weights",
    "engine_numbers",
    "modulation_table",
    "not_looped",
    "not_packed",
    "pack_arrays",
    "pack_model",
    "position_table",
    "time_table",
]

DTYPES = ("fp32", "bf16", "int8")
ROWS_DTYPES = (*DTYPES, "fp8")  # of weights that lie row after row, for GPUs


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
    if config.vision.final_norm and config.vision.connector == "mlp":
        engine = "GPU" if isa == ROWS else "CPU"
        return f"vision.final_norm before a connector with a norm is not in the {engine} engine"
    return None


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
    packer = Packer(config, weights, dtype, isa)
    yield from packer.vision()
    yield from packer.edges()
    for layer in range(config.mot.layers):
        yield from packer.layer("semantic", layer, with_rest=layer < config.mot.layers - 1)
        yield from packer.layer("action", layer, with_rest=True)


def time_table(model: PackedModel, steps: int, solver: str) -> Tensor:
    """What flow time adds to the first action product: a row per evaluation, last that of τ = 1.

    ``[evaluations + 1, M]`` fp32.

    Raises:
        InputError: naming a tensor that is missing or does not fit the model's sizes.
    """
    embedded, width = _embedded_times(model, steps, solver), model.config.mot.action.hidden
    weight = _of_shape(model, "action_in.time_weight", (width, width))
    bias = _of_shape(model, "action_in.time_bias", (width,))
    return (product(embedded.to(weight.device), weight.T) + bias).contiguous()


def modulation_table(model: PackedModel, steps: int, solver: str) -> Tensor:
    """Scale, shift and gate of the action expert's norms, for each evaluation, last for τ = 1.

    ``[evaluations + 1, 2 · layers + 1, 3, M]`` fp32, norms in the order in which they are needed.

    Raises:
        As :func:`time_table`.
    """
    config = model.config
    width, norms = config.mot.action.hidden, 2 * config.mot.layers + 1
    kind = model.activation_dtype

    def linear(name: str, x: Tensor, rows: int) -> Tensor:
        weight = _of_shape(model, f"{name}.weight", (rows, width), kind)
        return product(x.to(weight.device), weight.T) + _of_shape(model, f"{name}.bias", (rows,))

    condition = _embedded_times(model, steps, solver)
    for name in ("time.0", "time.2"):
        condition = torch.nn.functional.silu(linear(name, condition, width))
    made = [linear(f"time.norm.{i}", condition, 3 * width) for i in range(norms)]
    return torch.stack(made, 1).unflatten(-1, (3, width)).contiguous()


def _embedded_times(model: PackedModel, steps: int, solver: str) -> Tensor:
    """``[evaluations + 1, M]`` fp32, last that of τ = 1."""
    tau = torch.cat([evaluation_times(steps, solver), torch.ones(1)])
    return time_embedding(tau, model.config.mot.action.hidden, model.config.time)


def _of_shape(
    model: PackedModel, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    found = model.tensors.get(name)
    if found is None or found.shape != shape or found.dtype != dtype:
        what = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
        kind = "fp32" if dtype == torch.float32 else str(dtype).removeprefix("torch.")
        raise InputError(f"the weights hold {what} as {name}, expected {kind} {list(shape)}")
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
        "vision.gelu_tanh": vision.activation == "gelu_tanh",
        "vision.final_norm": vision.final_norm,
        "vision.linear": vision.connector == "linear",
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
        "qk_norm": mot.qk_norm,
        "gelu_gate": mot.activation == "gelu_tanh",
        "adaptive": mot.action.adaptive,
        "state_owner": ("action", "semantic", "words").index(config.state),
        "linear_state": config.state_encoder == "linear",
        "linear_out": config.action_decoder == "linear",
        "cross_every": mot.cross_every,
    }
