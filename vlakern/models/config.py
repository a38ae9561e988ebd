"""What a model is made of, as frozen records that read and write plain JSON."""

import dataclasses
import sys
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
# A damaged file must fail here, not by filling the memory or overflowing a product of sizes.
MOST_LAYERS = 1 << 10
MOST_HEADS = 1 << 12
MOST_PIXELS = 1 << 13
MOST_WIDTH = 1 << 16


def _counts(config: Any, **most: int) -> None:
    """Refuses fields of ``config`` that are not counts from 1 to the given number."""
    for name, limit in most.items():
        _count(f"{type(config).__name__}.{name}", getattr(config, name), limit)


def _count(what: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise ConfigError(f"{what} is {value}, expected 1 to {most}")


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            found = getattr(config, name)
            raise ConfigError(f"{type(config).__name__}.{name} is {found}, expected more than 0")


def _divides(what: str, value: int, by_what: str, by: int) -> None:
    if value <= 0 or by <= 0 or value % by:
        raise ConfigError(f"{what} = {value} is not a positive multiple of {by_what} = {by}")


@dataclass(frozen=True)
class VisionConfig:
    """A pre-norm vision transformer, pixel shuffle and a two-layer connector.

    Attributes:
        image_size: side of the square input [px].
        patch_size: side of one patch [px]; with a stem, the stem's total stride.
        stem: widths of 3x3 stride-2 convolutions with ReLU before the patch projection; empty for a
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
        _counts(self, hidden=MOST_WIDTH, mlp=MOST_WIDTH, heads=MOST_WIDTH, layers=MOST_LAYERS)
        _counts(self, image_size=MOST_PIXELS, patch_size=MOST_PIXELS, pixel_shuffle=MOST_PIXELS)
        _positive(self, "eps")
        for i, width in enumerate(self.stem):
            _count(f"VisionConfig.stem[{i}]", width, MOST_WIDTH)
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

    def __post_init__(self) -> None:
        _counts(self, hidden=MOST_WIDTH, mlp=MOST_WIDTH)


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
        _counts(self, layers=MOST_LAYERS, q_heads=MOST_HEADS, kv_heads=MOST_HEADS)
        _counts(self, head_dim=MOST_HEADS)
        _positive(self, "rope_theta", "norm_eps")
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

    def __post_init__(self) -> None:
        if self.buckets is not None:
            _count("TimeConfig.buckets", self.buckets, 1 << 30)
        _positive(self, "scale", "max_period")


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

    def __post_init__(self) -> None:
        _counts(self, vocab_size=1 << 24, state_dim=MOST_WIDTH, action_dim=MOST_WIDTH)
        _counts(self, chunk=MOST_WIDTH, steps=MOST_WIDTH)
        _divides("mot.action.hidden", self.mot.action.hidden, "the halves of the time embedding", 2)


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
    found = {name: _convert(hints[name], values[name], f"{where}.{name}") for name in values}
    try:
        return cls(**found)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


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
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        # JSON's integers have no limit, and Python's reader takes NaN and Infinity.
        if not -sys.float_info.max <= value <= sys.float_info.max:
            raise ConfigError(f"{where}: expected a finite number, found {str(value)[:20]}")
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value
