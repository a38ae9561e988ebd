"""Model shapes by name. Sizes follow arXiv 2602.09722 and the public checkpoints it starts from."""

from vlakern.errors import ConfigError
from vlakern.models.config import (
    ExpertConfig,
    MaskConfig,
    MoTConfig,
    PromptConfig,
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


PRESETS = {
    "tiny": _tiny,
    "metaworld-small": _metaworld_small,
    "rethink-2b": lambda: _rethink(3072),
    "rethink-2b-wide": lambda: _rethink(6144),
}


def preset(name: str) -> VLAConfig:
    """The configuration called ``name``.

    Raises:
        ConfigError: naming the presets there are.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]()
