"""The names of SmolVLA, as LeRobot writes them, and its sizes.

Source: lerobot/policies/smolvla/modeling_smolvla.py and smolvlm_with_expert.py (0.6.1).
"""

import math
import re
from dataclasses import replace

from vlakern.errors import CheckpointError
from vlakern.models.config import ExpertConfig, PromptConfig, VLAConfig
from vlakern.models.presets import preset
from vlakern.models.weights._stacks import both, count, siglip_rules, size_of, trunk_rules
from vlakern.models.weights.names import NEGATE, SAME, Rule, Shapes, Table, scaled, zeros

__all__ = ["smolvla_config", "smolvla_table"]

VLM = "vlm_with_expert.vlm."
TOWER = f"{VLM}model.vision_model."
PROJECTOR = f"{VLM}model.connector.modality_projection.proj.weight"
TRUNK = f"{VLM}model.text_model."
EXPERT = "vlm_with_expert.lm_expert."
# Width of a head in SigLIP base and in SmolLM2; no tensor tells it.
HEAD = 64

ALIASES = (
    (r"^(?:_orig_mod\.)?model\.(?=vlm_with_expert\.|action_|state_proj\.)", ""),
    # Before LeRobot 0.2 the inner model had no name of its own.
    (r"\bvlm\.(?=(?:vision_model|connector|text_model)\.)", "vlm.model."),
)
SKIPPED = (
    (re.escape(f"{VLM}lm_head.weight"), "no word is predicted"),
    (r".*\.rotary_emb\.inv_freq", "follows from the head's width"),
    (r"(normalize|unnormalize)_\w+\.buffer_.*", "statistics, read with the processing"),
)


def smolvla_table(config: VLAConfig) -> Table:
    """The names of a model of these sizes."""
    # Images and words are multiplied by this before the trunk, the state is not.
    scale = scaled(math.sqrt(config.mot.semantic.hidden))
    rules = (
        *siglip_rules(TOWER, config.vision.layers),
        Rule("vision.connector.weight", (PROJECTOR,), scale),
        Rule("vision.connector.bias", (), zeros()),
        Rule("embed_tokens.weight", (f"{TRUNK}embed_tokens.weight",), scale),
        *trunk_rules("mot.semantic.", TRUNK, config.mot.layers, SAME),
        *trunk_rules("mot.action.", EXPERT, config.mot.layers, SAME),
        *both("state_encoder", "state_proj"),
        *both("action_encoder.w1", "action_in_proj"),
        *both("action_encoder.w2", "action_time_mlp_in"),
        *both("action_encoder.w3", "action_time_mlp_out"),
        *both("action_decoder", "action_out_proj", NEGATE),
    )
    return Table(rules, ALIASES, skipped=SKIPPED)


def smolvla_config(shapes: Shapes, where: str) -> VLAConfig:
    """The sizes of a checkpoint from its tensors' shapes; chunk and steps are the preset's.

    Raises:
        CheckpointError: a tensor that tells a size is missing or has too few dimensions, or the
            expert has fewer layers than the trunk.
        ConfigError: sizes that no model can have.
    """
    names = Table((), ALIASES)
    found = {names.canonical(name): tuple(shape) for name, shape in shapes.items()}

    def size(name: str, axis: int) -> int:
        return size_of(found, name, axis, where)

    base = preset("smolvla")
    patch = f"{TOWER}embeddings.patch_embedding.weight"
    side, width = size(patch, 2), size(patch, 0)
    grid = math.isqrt(size(f"{TOWER}embeddings.position_embedding.weight", 0))
    layers = count(found, f"{TRUNK}layers.")
    own = count(found, f"{EXPERT}layers.")
    if own != layers:
        raise CheckpointError(
            f"{where}: the expert has {own} layers, the trunk {layers}; only models with one expert"
            " layer per trunk layer can be run"
        )
    vision = replace(
        base.vision,
        image_size=grid * side,
        patch_size=side,
        hidden=width,
        layers=count(found, f"{TOWER}encoder.layers."),
        heads=max(width // HEAD, 1),
        mlp=size(f"{TOWER}encoder.layers.0.mlp.fc1.weight", 0),
        pixel_shuffle=math.isqrt(size(PROJECTOR, 1) // max(width, 1)),
    )
    first, expert = f"{TRUNK}layers.0.", f"{EXPERT}layers.0."
    kv_width = size(f"{first}self_attn.k_proj.weight", 0)
    # A layer that takes the trunk's keys has a square product; the others take the expert's rows.
    crossing = layers > 1 and size(f"{EXPERT}layers.1.self_attn.k_proj.weight", 1) == kv_width
    mot = replace(
        base.mot,
        layers=layers,
        q_heads=size(f"{first}self_attn.q_proj.weight", 0) // HEAD,
        kv_heads=kv_width // HEAD,
        head_dim=HEAD,
        semantic=ExpertConfig(
            size(f"{first}mlp.up_proj.weight", 1), size(f"{first}mlp.up_proj.weight", 0)
        ),
        action=ExpertConfig(
            size(f"{expert}mlp.up_proj.weight", 1), size(f"{expert}mlp.up_proj.weight", 0)
        ),
        cross_every=2 if crossing else 0,
    )
    return replace(
        base,
        vision=vision,
        mot=mot,
        vocab_size=size(f"{TRUNK}embed_tokens.weight", 0),
        state_dim=size("state_proj.weight", 1),
        action_dim=size("action_in_proj.weight", 1),
        prompt=PromptConfig(("{views}", "{instruction}", "{state}")),
    )
