"""What a model is made of, as frozen records that read and write plain JSON."""

from dataclasses import dataclass
from typing import Any, Literal

from vlakern.errors import ConfigError

__all__ = [
    "ExpertConfig",
    "MaskConfig",
    "MoTConfig",
    "PromptConfig",
    "TimeConfig",
    "VLAConfig",
    "VisionConfig",
]

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
    """A pre-norm vision transformer, pixel shuffle and a connector.

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
        activation: of the blocks' MLPs: the exact GELU or its tanh form.
        final_norm: a LayerNorm after the last block (SigLIP).
        connector: LayerNorm, Linear, GELU, Linear; or one Linear.
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
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    final_norm: bool = False
    connector: Literal["mlp", "linear"] = "mlp"

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
    """In what one expert may differ from the other.

    Attributes:
        hidden, mlp: its widths.
        adaptive: its norms are ``n(x) * (1 + scale) + shift`` and what follows each is added to the
            residual stream times a gate, all three from flow time (arXiv 2212.09748): the action
            expert alone.
    """

    hidden: int
    mlp: int
    adaptive: bool = False

    def __post_init__(self) -> None:
        _counts(self, hidden=MOST_WIDTH, mlp=MOST_WIDTH)


@dataclass(frozen=True)
class MoTConfig:
    """Two transformers of one depth and one head shape that share attention in every layer.

    Attributes:
        qk_norm: queries and keys are RMS-normed per head.
        activation: of the gated MLPs.
        cross_every: 0, or in every n-th layer (1, 3, ... for 2) the actions see the prefix alone,
            its keys and values projected once more by the action expert; their positions count from
            0 there (SmolVLA, arXiv 2506.01844).
    """

    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    semantic: ExpertConfig
    action: ExpertConfig
    rope_theta: float = 1e6
    norm_eps: float = 1e-6
    qk_norm: bool = True
    activation: Literal["silu", "gelu_tanh"] = "silu"
    cross_every: int = 0

    def __post_init__(self) -> None:
        _counts(self, layers=MOST_LAYERS, q_heads=MOST_HEADS, kv_heads=MOST_HEADS)
        _counts(self, head_dim=MOST_HEADS)
        _positive(self, "rope_theta", "norm_eps")
        _divides("q_heads", self.q_heads, "kv_heads", self.kv_heads)
        _divides("head_dim", self.head_dim, "the halves of RoPE", 2)
        if self.semantic.adaptive:
            raise ConfigError(
                "MoTConfig.semantic.adaptive is true; flow time reaches the action expert alone"
            )
        if self.cross_every:
            _count("MoTConfig.cross_every", self.cross_every, self.layers)
        if self.cross_every and self.qk_norm:
            raise ConfigError("MoTConfig.cross_every goes with qk_norm = false alone")

    def crosses(self, layer: int) -> bool:
        """Whether the actions see the prefix alone in a layer."""
        return self.cross_every > 0 and (layer + 1) % self.cross_every == 0


@dataclass(frozen=True)
class TimeConfig:
    """The sinusoidal embedding of flow time: angle = t * max_period ** (-i / half).

    With a ``min_period`` it is 2π t / (min_period * (max_period / min_period) ** (i / (half - 1))).

    Attributes:
        buckets: t is ``floor(τ * buckets)``; None feeds ``τ * scale`` unrounded.
        scale: multiplies τ when there are no buckets.
        max_period: the longest period over 2π; with a ``min_period`` the longest one.
        reverse: embeds 1 - τ, for checkpoints whose time runs the other way.
    """

    buckets: int | None = 1000
    scale: float = 1000.0
    max_period: float = 1e4
    reverse: bool = False
    min_period: float | None = None

    def __post_init__(self) -> None:
        if self.buckets is not None:
            _count("TimeConfig.buckets", self.buckets, 1 << 30)
        _positive(self, "scale", "max_period")
        if self.min_period is not None:
            _positive(self, "min_period")


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
        unused_slots: what x_τ holds in slots that a robot does not have: their ``noise``, in
            training and at inference as the released code of this model family does it, or
            ``zero``.
        state: whose token the state is; with ``words`` the prompt says it and it has no token.
        state_encoder, action_decoder: Linear, ReLU, Linear; or one Linear.
        action_encoder: W3 silu(W2 [W1 x, time]); or W1 x, where time goes through an MLP of its own
            to the adaptive norms.
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
    unused_slots: Literal["noise", "zero"] = "noise"
    state: Literal["action", "semantic", "words"] = "action"
    state_encoder: Literal["mlp", "linear"] = "mlp"
    action_decoder: Literal["mlp", "linear"] = "mlp"
    action_encoder: Literal["mixed", "plain"] = "mixed"

    def __post_init__(self) -> None:
        _counts(self, vocab_size=1 << 24, state_dim=MOST_WIDTH, action_dim=MOST_WIDTH)
        _counts(self, chunk=MOST_WIDTH, steps=MOST_WIDTH)
        _divides("mot.action.hidden", self.mot.action.hidden, "the halves of the time embedding", 2)
        adaptive = self.mot.action.adaptive
        if adaptive != (self.action_encoder == "plain"):
            raise ConfigError(
                f"action_encoder is {self.action_encoder!r} and mot.action.adaptive is {adaptive};"
                " flow time enters once: 'plain' with adaptive norms, or 'mixed' without"
            )
        if self.state == "action" and (adaptive or self.mot.cross_every):
            raise ConfigError(
                "state is 'action', but with adaptive norms or cross_every the action expert has"
                " no token of the prefix; use 'semantic' or 'words'"
            )
