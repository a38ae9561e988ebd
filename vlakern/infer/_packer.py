"""How each part of a network is folded and packed, one array after the other."""

from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor

from vlakern.errors import CheckpointError
from vlakern.models.config import VLAConfig
from vlakern.models.weights.names import origin
from vlakern.ops.linear import PackedLinear, pack_linear
from vlakern.ops.linear.packed import ROWS

__all__ = ["Array", "Packer", "Weights", "not_looped", "product"]

Weights = Callable[[str], Tensor]
Array = tuple[str, PackedLinear | Tensor]
LINE = 64  # bytes of a cache line, where torch's own tensors begin


class Packer:
    """Arrays by the engine's names, from weights by the network's."""

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
        if tensor.data_ptr() % LINE:
            # Products of numbers that lie otherwise, as in a mapped file, may be summed otherwise.
            tensor = tensor.clone()
        # Both pass a NaN on, and need no memory.
        if tensor.numel() and not torch.isfinite(tensor.amax() - tensor.amin()):
            raise CheckpointError(
                f"{origin(self._weights, name)} holds values that are not finite; copy the file"
                " again, or use a checkpoint of another step"
            )
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
        if config.connector == "linear":
            yield from self._linear_connector()
            return
        yield from self._after_layer_norm(
            "connector.0", "vision.connector.1", "vision.connector.0", "connector.norm"
        )
        last = "vision.connector.3"
        yield self.large("connector.1", self.read(f"{last}.weight"), self.read(f"{last}.bias"))

    def _linear_connector(self) -> Iterator[Array]:
        """With the final norm, the same for every patch that a token joins."""
        weight, bias = self.read("vision.connector.weight"), self.read("vision.connector.bias")
        if self._config.vision.final_norm:
            patches = self._config.vision.pixel_shuffle**2
            scale, shift = (self.read(f"vision.final_norm.{one}") for one in ("weight", "bias"))
            bias = bias + _product(weight, shift.repeat(patches))
            if self._stays("vision.final_norm", scale):
                yield "vision.final_norm", scale.contiguous()
            else:
                weight = weight * scale.repeat(patches)
        yield self.large("connector.0", weight, bias)

    def _vision_layer(self, i: int, scaled: bool) -> Iterator[Array]:
        block, name = f"vision.blocks.{i}", f"vision.{i}"
        scales = [self.read(f"{block}.scale{j}") if scaled else None for j in (1, 2)]
        norms = [(f"{block}.norm{j}", f"{name}.norm{j}") for j in (1, 2)]
        yield from self._after_layer_norm(f"{name}.qkv", f"{block}.qkv", *norms[0])
        yield self._scaled(f"{name}.proj", f"{block}.proj", scales[0])
        yield from self._after_layer_norm(f"{name}.fc1", f"{block}.fc1", *norms[1])
        yield self._scaled(f"{name}.fc2", f"{block}.fc2", scales[1])

    def _after_layer_norm(self, name: str, linear: str, norm: str, kept: str) -> Iterator[Array]:
        """W (w n + b) + c = (W w) n + (W b + c); ``kept`` is w's name where it stays apart."""
        weight = self.read(f"{linear}.weight")
        bias = self.read(f"{linear}.bias") + _product(weight, self.read(f"{norm}.bias"))
        factor = yield from self._factor(kept, norm)
        yield self.large(name, _times(weight, factor), bias)

    def _factor(self, kept: str, norm: str) -> Generator[Array, None, Tensor | None]:
        """What is folded of a norm's weight; the whole of it or nothing."""
        weight = self.read(f"{norm}.weight")
        if not self._stays(kept, weight):
            return weight
        yield kept, weight.contiguous()
        return None

    def _stays(self, kept: str, norm: Tensor) -> bool:
        """Whether a norm's weight stays apart: bf16 would round its product a second time."""
        if self._large != "bf16":
            return False
        rows = self._isa == ROWS or (self._isa is None and norm.device.type != "cpu")
        # That kernel has norms without weights.
        return not (rows and kept.startswith("action.") and not not_looped(self._config))

    def _scaled(self, name: str, linear: str, scale: Tensor | None) -> Array:
        weight, bias = self.read(f"{linear}.weight"), self.read(f"{linear}.bias")
        if scale is not None:
            weight, bias = weight * scale[:, None], bias * scale
        return self.large(name, weight, bias)

    def edges(self) -> Iterator[Array]:
        """Everything that is neither tower nor trunk."""
        config = self._config
        yield "embed", self.raw("embed_tokens.weight").to(self._small_dtype).contiguous()
        if config.state != "words":
            yield from self._edge("state", "state_encoder", config.state_encoder)
        yield from self._time_norms() if config.mot.action.adaptive else self._mixed_actions()
        norm = None
        if not config.mot.action.adaptive:
            norm = yield from self._factor("action.norm", "mot.action.norm")
        if config.action_decoder == "linear":
            last, bias = self.read("action_decoder.weight"), self.read("action_decoder.bias")
            yield self.small("action_out.last", _times(last, norm), bias)
            return
        first = _times(self.read("action_decoder.0.weight"), norm)
        yield self.small("action_out.first", first, self.read("action_decoder.0.bias"))
        last, bias = self.read("action_decoder.2.weight"), self.read("action_decoder.2.bias")
        yield self.small("action_out.last", last, bias)

    @property
    def _small_dtype(self) -> torch.dtype:
        return torch.float32 if self._small == "fp32" else torch.bfloat16

    def _edge(self, name: str, source: str, kind: str) -> Iterator[Array]:
        parts = [source] if kind == "linear" else [f"{source}.0", f"{source}.2"]
        for i, part in enumerate(parts):
            weight, bias = self.read(f"{part}.weight"), self.read(f"{part}.bias")
            yield self.small(f"{name}.{i}", weight, bias)

    def _mixed_actions(self) -> Iterator[Array]:
        width = self._config.mot.action.hidden
        w1, b1 = self.read("action_encoder.w1.weight"), self.read("action_encoder.w1.bias")
        w2, b2 = self.read("action_encoder.w2.weight"), self.read("action_encoder.w2.bias")
        w3, b3 = self.read("action_encoder.w3.weight"), self.read("action_encoder.w3.bias")
        yield self.small("action_in.first", product(w2[:, :width], w1))
        yield "action_in.time_weight", w2[:, width:].contiguous()
        yield "action_in.time_bias", b2 + _product(w2[:, :width], b1)
        yield self.small("action_in.last", w3, b3)

    def _time_norms(self) -> Iterator[Array]:
        """Actions without time, and what makes scales, shifts and gates of time."""
        w1, b1 = self.read("action_encoder.w1.weight"), self.read("action_encoder.w1.bias")
        yield self.small("action_in.first", w1, b1)
        sources = [(f"time.{i}", f"time_mlp.{i}") for i in (0, 2)]
        sources += [
            (f"time.norm.{i}", f"{norm}.dense")
            for i, norm in enumerate(_action_norms(self._config.mot.layers))
        ]
        for name, source in sources:
            weight = self.raw(f"{source}.weight").to(self._small_dtype)
            yield f"{name}.weight", weight.contiguous()
            yield f"{name}.bias", self.read(f"{source}.bias").contiguous()

    def layer(self, expert: str, i: int, with_rest: bool) -> Iterator[Array]:
        """One layer of one expert; without the rest, what keys and values need."""
        config = self._config
        source, name = f"mot.{expert}.layers.{i}", f"{expert}.{i}"
        adaptive = expert == "action" and config.mot.action.adaptive
        if config.mot.qk_norm:
            for one in ("q_norm", "k_norm"):
                yield f"{name}.{one}", self.read(f"{source}.{one}.weight").contiguous()
        k, v = (self.read(f"{source}.{one}_proj.weight") for one in "kv")
        norm = None
        if not adaptive:
            norm = yield from self._factor(f"{name}.input_norm", f"{source}.input_norm")
        if expert == "action" and config.mot.crosses(i):
            yield self.large(f"{name}.cross_k", k)
            yield self.large(f"{name}.cross_v", v)
            yield self.large(f"{name}.q", _times(self.read(f"{source}.q_proj.weight"), norm))
        else:
            k, v = _times(k, norm), _times(v, norm)
            # The last layer of a prefix; the action expert has no rows there without states.
            if i == config.mot.layers - 1 and (expert == "semantic" or config.state == "action"):
                yield self.large(f"{name}.kv", torch.cat([k, v]))
            if not with_rest:
                return
            q = _times(self.read(f"{source}.q_proj.weight"), norm)
            yield self.large(f"{name}.qkv", torch.cat([q, k, v]))
        yield self.large(f"{name}.o", self.read(f"{source}.o_proj.weight"))
        norm = None
        if not adaptive:
            norm = yield from self._factor(f"{name}.post_norm", f"{source}.post_norm")
        gate, up = (
            _times(self.read(f"{source}.{one}_proj.weight"), norm) for one in ("gate", "up")
        )
        both = pack_linear(torch.cat([gate, up]), self._large, gate=True, isa=self._isa)
        yield f"{name}.gate_up", both
        yield self.large(f"{name}.down", self.read(f"{source}.down_proj.weight"))


def not_looped(config: VLAConfig) -> list[str]:
    """What of an action expert the kernel csrc/ode_loop does not compute, by its field's name."""
    mot = config.mot
    known = {
        "qk_norm": mot.qk_norm,
        "activation": mot.activation == "silu",
        "cross_every": not mot.cross_every,
        "adaptive": not mot.action.adaptive,
        "action_decoder": config.action_decoder == "mlp",
    }
    return [name for name, computed in known.items() if not computed]


def _product(weight: Tensor, vector: Tensor) -> Tensor:
    """Rounded once: the sum's order leaves no trace, so that other languages pack the same bits."""
    return product(weight, vector[:, None])[:, 0]


def _times(weight: Tensor, norm: Tensor | None) -> Tensor:
    return weight if norm is None else weight * norm


def _action_norms(layers: int) -> list[str]:
    """The action expert's norms in the order in which an evaluation needs them."""
    inside = [
        f"mot.action.layers.{i}.{part}"
        for i in range(layers)
        for part in ("input_norm", "post_norm")
    ]
    return [*inside, "mot.action.norm"]


def product(a: Tensor, b: Tensor) -> Tensor:
    """In fp64: the folded product is rounded once."""
    return (a.double() @ b.double()).float()
