"""What a model is made of, as frozen records that read and write plain JSON."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

from vlakern.errors import ConfigError

__all__ = [
    "ExpertConfig",
    "MaskConfig",
    "MoTConfig",
    "PromptConfig",
    "TimeConfig",
    "VLAConfig",
    "VisionConfig",
    "from_dict",
    "to_dict",
]

C = TypeVar("C")
Solver = Literal["euler", "midpoint", "heun"]


@dataclass(frozen=True)
class VisionConfig:
    """A pre-norm vision transformer, pixel shuffle and a two-layer connector.

    Attributes:
        image_size: side of the square input [px].
        patch_size: side of one patch [px]; with a stem, the stem's total stride.
        stem: widths of 3x3 stride-2 convolutions in front of the patch projection; empty for a
            plain patch projection. A stem learns from little data where plain patches do not.
        layers, hidden, heads, mlp: the transformer's depth and widths.
        class_token: a leading token that the connector drops (InternViT).
        layer_scale: initial value of the per-channel residual scales, None for no scales.
        pixel_shuffle: side of the square of patches that becomes one token.
        eps: of every LayerNorm.
    """

    image_size: int
    patch_size: int
    hidden: int
    layers: int
    heads: int
    mlp: int
    stem: tuple[int, ...] = ()
    class_token: bool = False
    layer_scale: float | None = None
    pixel_shuffle: int = 2
    eps: float = 1e-6

    def __post_init__(self) -> None:
        _divides("image_size", self.image_size, "patch_size", self.patch_size)
        _divides("image_size / patch_size", self.grid, "pixel_shuffle", self.pixel_shuffle)
        _divides("hidden", self.hidden, "heads", self.heads)
        _divides("patch_size", self.patch_size, "the stem's stride", 2 ** len(self.stem))

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens that one view becomes."""
        return (self.grid // self.pixel_shuffle) ** 2


@dataclass(frozen=True)
class ExpertConfig:
    """The widths in which one expert may differ from the other."""

    hidden: int
    mlp: int


@dataclass(frozen=True)
class MoTConfig:
    """Two transformers of one depth and one head shape that share attention in every layer."""

    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    semantic: ExpertConfig
    action: ExpertConfig
    rope_theta: float = 1e6
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _divides("q_heads", self.q_heads, "kv_heads", self.kv_heads)
        _divides("head_dim", self.head_dim, "the halves of RoPE", 2)


@dataclass(frozen=True)
class TimeConfig:
    """The sinusoidal embedding of flow time: angle = t * max_period ** (-i / half).

    Attributes:
        buckets: t is ``floor(τ * buckets)``; None feeds ``τ * scale`` unrounded.
        scale: multiplies τ when there are no buckets.
        max_period: the longest period over 2π.
        reverse: embeds 1 - τ, for checkpoints whose time runs the other way.
    """

    buckets: int | None = 1000
    scale: float = 1000.0
    max_period: float = 1e4
    reverse: bool = False


@dataclass(frozen=True)
class MaskConfig:
    """What a query sees, always a leading range of its document.

    Attributes:
        prefix: every prefix token sees the tokens up to itself, or the whole prefix.
        state: the state token belongs to the prefix, or is a block of its own that earlier tokens
            do not see; only a full prefix tells the two apart.
        actions: every action token sees the actions up to itself, or the whole chunk.
    """

    prefix: Literal["causal", "full"] = "causal"
    state: Literal["inline", "block"] = "inline"
    actions: Literal["causal", "full"] = "causal"


@dataclass(frozen=True)
class PromptConfig:
    """The order of a document's tokens.

    Attributes:
        template: literal text and the fields ``{views}``, ``{state}``, ``{instruction}``, in order;
            the action tokens follow the last part.
        view_open, view_close: literal text around images.
        wrap_views: text around each view, or once around all of them.
    """

    template: tuple[str, ...] = ("{views}", "{instruction}", "{state}")
    view_open: str = ""
    view_close: str = ""
    wrap_views: Literal["each", "all"] = "each"

    def __post_init__(self) -> None:
        for field in ("{views}", "{state}", "{instruction}"):
            if self.template.count(field) != 1:
                raise ConfigError(
                    f"prompt.template holds {field} {self.template.count(field)} times, expected"
                    " once: every document has views, one state and one instruction"
                )


@dataclass(frozen=True)
class VLAConfig:
    """A whole policy network.

    Attributes:
        state_dim, action_dim: widths of the (unified) state and action vectors.
        chunk: future actions per prediction.
        steps: ODE steps at inference.
        vocab_size: rows of the text embedding.
    """

    vision: VisionConfig
    mot: MoTConfig
    vocab_size: int
    state_dim: int
    action_dim: int
    chunk: int = 16
    steps: int = 4
    solver: Solver = "euler"
    time: TimeConfig = TimeConfig()
    mask: MaskConfig = MaskConfig()
    prompt: PromptConfig = PromptConfig()


def to_dict(config: Any) -> dict[str, Any]:
    """The record as plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(cls: type[C], values: Any, where: str = "config") -> C:
    """Builds ``cls`` from JSON values; every key must be known and every required one there.

    Raises:
        ConfigError: naming the key's full path, what was expected and what was found.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected an object, found {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(
            f"{where}: unknown key {unknown[0]!r}; the keys of {cls.__name__} are"
            f" {', '.join(sorted(fields))}"
        )
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise ConfigError(f"{where}: key {name!r} of {cls.__name__} is missing")
    return cls(
        **{name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    )


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as ``hint``, which is a JSON scalar, a record, a tuple, a Literal or a union."""
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # pyright: ignore[reportArgumentType]
    if origin is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{where}: expected one of {get_args(hint)}, found {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, found {value!r}")
        item = get_args(hint)[0]
        return tuple(_convert(item, entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in get_args(hint):
            return None
        return _convert(next(a for a in get_args(hint) if a is not type(None)), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value


def _divides(what: str, value: int, by_what: str, by: int) -> None:
    if value <= 0 or by <= 0 or value % by:
        raise ConfigError(f"{what} = {value} is not a positive multiple of {by_what} = {by}")
