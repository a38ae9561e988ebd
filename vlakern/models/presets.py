"""Model shapes by name. Sizes follow arXiv 2602.09722 and the public checkpoints it starts from."""

from dataclasses import replace

from vlakern.errors import ConfigError
from vlakern.models.config import (
    ExpertConfig,
    MaskConfig,
    MoTConfig,
    PromptConfig,
    TimeConfig,
    VisionConfig,
    VLAConfig,
)

__all__ = ["PRESETS", "preset"]


def _tiny() -> VLAConfig:
    """Every part of the real thing at the smallest useful size; runs in milliseconds."""
    return VLAConfig(
        vision=VisionConfig(28, 7, hidden=32, layers=2, heads=2, mlp=64, class_token=True),
        mot=MoTConfig(
            layers=2,
            q_heads=4,
            kv_heads=2,
            head_dim=16,
            semantic=ExpertConfig(hidden=64, mlp=96),
            action=ExpertConfig(hidden=48, mlp=80),
        ),
        vocab_size=512,
        state_dim=7,
        action_dim=5,
        chunk=6,
        prompt=PromptConfig(("Robot. ", "{views}", "{state}", "{instruction}"), "<img>", "</img>"),
    )


def _metaworld_small() -> VLAConfig:
    """Small enough to train on a CPU and to ship in the wheel; two 96 px views, one token each.

    With the whole grid shuffled into one token the connector has a weight per place, so "where" is
    one product away; from several tokens it would have to be learnt through attention.
    """
    return VLAConfig(
        vision=VisionConfig(
            96,
            16,
            hidden=192,
            layers=3,
            heads=6,
            mlp=768,
            stem=(32, 64, 128),
            pixel_shuffle=6,
            layer_scale=0.1,
        ),
        mot=MoTConfig(
            layers=4,
            q_heads=4,
            kv_heads=2,
            head_dim=64,
            semantic=ExpertConfig(hidden=192, mlp=384),
            action=ExpertConfig(hidden=128, mlp=512),
        ),
        vocab_size=512,
        state_dim=4,
        action_dim=4,
        chunk=16,
        mask=MaskConfig(prefix="full", state="block", actions="full"),
    )


def _arms_small() -> VLAConfig:
    """Half the work of ``metaworld-small``, for one 96 px view of a camera on the hand."""
    whole = _metaworld_small()
    vision = replace(whole.vision, hidden=128, layers=2, heads=4, mlp=384, stem=(24, 48, 96))
    mot = replace(whole.mot, layers=3)
    return replace(whole, vision=vision, mot=mot, state_dim=200, action_dim=200)


def _rethink(expert_mlp: int) -> VLAConfig:
    """InternViT-300M, a Qwen3-1.7B trunk and an action expert of the same depth."""
    return VLAConfig(
        vision=VisionConfig(
            224, 14, hidden=1024, layers=24, heads=16, mlp=4096, class_token=True, layer_scale=0.1
        ),
        mot=MoTConfig(
            layers=28,
            q_heads=16,
            kv_heads=8,
            head_dim=128,
            semantic=ExpertConfig(hidden=2048, mlp=6144),
            action=ExpertConfig(hidden=1024, mlp=expert_mlp),
        ),
        vocab_size=151936,
        state_dim=200,
        action_dim=200,
        chunk=16,
        steps=4,
        prompt=PromptConfig(
            template=(
                "<|im_start|>system\nYou control a robot.<|im_end|>\n<|im_start|>user\n",
                "{views}",
                "<state>",
                "{state}",
                "</state>",
                "{instruction}",
                "<|im_end|>\n<|im_start|>assistant\n",
            ),
            view_open="<img>",
            view_close="</img>",
        ),
    )


# openpi's: sinusoids of periods 4e-3 to 4 of a time that runs from 1 to 0.
_OPENPI_TIME = TimeConfig(buckets=None, scale=1.0, max_period=4.0, min_period=4e-3, reverse=True)
_BLOCK_AT_END = MaskConfig(prefix="full", state="block", actions="full")


def _pi0() -> VLAConfig:
    """SigLIP So400m, Gemma 2B and a Gemma expert of 300 M (arXiv 2410.24164)."""
    return VLAConfig(
        vision=_siglip(VisionConfig(224, 14, hidden=1152, layers=27, heads=16, mlp=4304)),
        mot=_gemma(18, 8, 256, ExpertConfig(2048, 16384), ExpertConfig(1024, 4096)),
        vocab_size=257152,
        state_dim=32,
        action_dim=32,
        chunk=50,
        steps=10,
        time=_OPENPI_TIME,
        mask=_BLOCK_AT_END,
        prompt=PromptConfig(("{views}", "<bos>", "{instruction}", "\n", "{state}")),
        state_encoder="linear",
        action_decoder="linear",
    )


def _tiny_pi0() -> VLAConfig:
    return replace(
        _pi0(),
        vision=_siglip(VisionConfig(28, 7, hidden=48, layers=2, heads=2, mlp=72)),
        mot=_gemma(2, 4, 32, ExpertConfig(64, 96), ExpertConfig(48, 80)),
        vocab_size=512,
        state_dim=7,
        action_dim=5,
        chunk=6,
        steps=4,
    )


def _pi05(of: VLAConfig) -> VLAConfig:
    """pi0 with the state in words and flow time in the expert's norms (arXiv 2504.16054)."""
    return replace(
        of,
        mot=replace(of.mot, action=replace(of.mot.action, adaptive=True)),
        mask=MaskConfig(prefix="full", state="inline", actions="full"),
        prompt=PromptConfig(
            ("{views}", "<bos>Task: ", "{instruction}", ", State: ", "{state}", ";\nAction: ")
        ),
        state="words",
        action_encoder="plain",
    )


def _siglip(vision: VisionConfig) -> VisionConfig:
    return replace(
        vision, pixel_shuffle=1, activation="gelu_tanh", final_norm=True, connector="linear"
    )


def _gemma(
    layers: int, heads: int, head_dim: int, semantic: ExpertConfig, action: ExpertConfig
) -> MoTConfig:
    """One key-value head and GELU gates."""
    return MoTConfig(
        layers,
        heads,
        1,
        head_dim,
        semantic,
        action,
        rope_theta=1e4,
        qk_norm=False,
        activation="gelu_tanh",
    )


def _smolvla() -> VLAConfig:
    """SigLIP, half of SmolLM2's layers and an expert of 0.75 times the width (arXiv 2506.01844)."""
    vision = _siglip(VisionConfig(512, 16, hidden=768, layers=12, heads=12, mlp=3072))
    return VLAConfig(
        vision=replace(vision, pixel_shuffle=4),
        mot=_smollm(16, 15, 5, 64, ExpertConfig(960, 2560), ExpertConfig(720, 2048)),
        vocab_size=49280,
        state_dim=32,
        action_dim=32,
        chunk=50,
        steps=10,
        time=_OPENPI_TIME,
        mask=MaskConfig(prefix="full", state="block", actions="causal"),
        prompt=PromptConfig(("{views}", "{instruction}", "\n", "{state}")),
        state="semantic",
        state_encoder="linear",
        action_decoder="linear",
    )


def _tiny_smolvla() -> VLAConfig:
    vision = _siglip(VisionConfig(28, 7, hidden=32, layers=2, heads=2, mlp=64))
    return replace(
        _smolvla(),
        vision=replace(vision, pixel_shuffle=2),
        mot=_smollm(4, 6, 2, 16, ExpertConfig(64, 96), ExpertConfig(48, 80)),
        vocab_size=512,
        state_dim=7,
        action_dim=5,
        chunk=6,
        steps=4,
    )


def _smollm(
    layers: int, q_heads: int, kv_heads: int, dim: int, semantic: ExpertConfig, action: ExpertConfig
) -> MoTConfig:
    return MoTConfig(
        layers,
        q_heads,
        kv_heads,
        dim,
        semantic,
        action,
        rope_theta=1e4,
        norm_eps=1e-5,
        qk_norm=False,
        cross_every=2,
    )


PRESETS = {
    "tiny": _tiny,
    "metaworld-small": _metaworld_small,
    "arms-small": _arms_small,
    "rethink-2b": lambda: _rethink(3072),
    "rethink-2b-wide": lambda: _rethink(6144),
    "tiny-pi0": _tiny_pi0,
    "tiny-pi05": lambda: _pi05(_tiny_pi0()),
    "tiny-smolvla": _tiny_smolvla,
    "pi0": _pi0,
    "pi05": lambda: _pi05(_pi0()),
    "smolvla": _smolvla,
}


def preset(name: str) -> VLAConfig:
    """The configuration called ``name``.

    Raises:
        ConfigError: naming the presets there are.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]()
