"""The names of pi0 and pi0.5, as LeRobot and openpi's PyTorch code write them, and their sizes.

Sources: lerobot/policies/pi0/modeling_pi0.py and pi05/modeling_pi05.py (0.6.1), openpi
models_pytorch/pi0_pytorch.py; the names inside PaliGemma moved with transformers' versions.
"""

import math
import re
from dataclasses import replace

from vlakern.errors import CheckpointError
from vlakern.models.config import ExpertConfig, PromptConfig, VLAConfig
from vlakern.models.presets import preset
from vlakern.models.weights._stacks import both, count, siglip_rules, size_of, trunk_rules
from vlakern.models.weights.names import NEGATE, PLUS_ONE, Rule, Shapes, Table, scaled

__all__ = ["canonical_shapes", "pi_config", "pi_is_adaptive", "pi_table"]

BOTH = "paligemma_with_expert."
TOWER = f"{BOTH}paligemma.model.vision_tower.vision_model."
PROJECTOR = f"{BOTH}paligemma.model.multi_modal_projector.linear"
TRUNK = f"{BOTH}paligemma.model.language_model."
EXPERT = f"{BOTH}gemma_expert.model."
# Width of a head of SigLIP So400m, the tower of every PaliGemma; no tensor tells it.
SIGLIP_HEAD = 72

ALIASES = (
    (r"^(?:_orig_mod\.)?model\.(?=paligemma_with_expert\.|action_|state_proj\.|time_mlp_)", ""),
    (r"\bpaligemma\.vision_tower\.", "paligemma.model.vision_tower."),
    (r"\bvision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
    (r"\bpaligemma\.multi_modal_projector\.", "paligemma.model.multi_modal_projector."),
    (r"\bpaligemma\.language_model\.lm_head\.", "paligemma.lm_head."),
    (r"\bpaligemma\.language_model\.model\.", "paligemma.model.language_model."),
)
SKIPPED = (
    (re.escape(f"{BOTH}paligemma.lm_head.weight"), "no word is predicted, tied to the embedding"),
    (re.escape(f"{BOTH}gemma_expert.lm_head.weight"), "the expert predicts no word"),
    (re.escape(f"{EXPERT}embed_tokens.weight"), "the expert reads no word"),
    (r".*\.rotary_emb\.inv_freq", "follows from the head's width"),
    (r"(normalize|unnormalize)_\w+\.buffer_.*", "statistics, read with the processing"),
)


def pi_is_adaptive(shapes: Shapes) -> bool:
    """Whether these names are pi0.5's: its expert's norms are made of flow time."""
    return any("input_layernorm.dense." in name for name in shapes)


def pi_table(config: VLAConfig) -> Table:
    """The names of a model of these sizes."""
    vision, mot, adaptive = config.vision, config.mot, config.mot.action.adaptive
    rules = [
        *siglip_rules(TOWER, vision.layers),
        *both("vision.connector", PROJECTOR),
        Rule(
            "embed_tokens.weight",
            (f"{TRUNK}embed_tokens.weight",),
            scaled(math.sqrt(mot.semantic.hidden)),
        ),
        *trunk_rules("mot.semantic.", TRUNK, mot.layers, PLUS_ONE),
        *trunk_rules("mot.action.", EXPERT, mot.layers, None if adaptive else PLUS_ONE),
        *both("action_encoder.w1", "action_in_proj"),
        *both("action_decoder", "action_out_proj", NEGATE),
    ]
    aliases, skipped = list(ALIASES), list(SKIPPED)
    if adaptive:
        rules += both("time_mlp.0", "time_mlp_in") + both("time_mlp.2", "time_mlp_out")
        aliases.append((r"^action_time_mlp_", "time_mlp_"))
        skipped.append((r"state_proj\.(weight|bias)", "the prompt says the state"))
    else:
        rules += both("state_encoder", "state_proj")
        rules += both("action_encoder.w2", "action_time_mlp_in")
        rules += both("action_encoder.w3", "action_time_mlp_out")
        aliases.append((r"^time_mlp_", "action_time_mlp_"))
    words = f"{TRUNK}embed_tokens.weight", f"{BOTH}paligemma.lm_head.weight"
    return Table(tuple(rules), tuple(aliases), (words,), tuple(skipped))


def canonical_shapes(shapes: Shapes, where: str) -> dict[str, tuple[int, ...]]:
    """Shapes by the names that the rules use, whichever version wrote the file.

    Raises:
        CheckpointError: a tensor from which a size is read is not there.
    """
    table = Table((), ALIASES)
    found = {table.canonical(name): tuple(shape) for name, shape in shapes.items()}
    words, tied = f"{TRUNK}embed_tokens.weight", f"{BOTH}paligemma.lm_head.weight"
    if words not in found and tied in found:
        found[words] = found[tied]
    return found


def pi_config(shapes: Shapes, where: str) -> VLAConfig:
    """The sizes of a checkpoint from its tensors' shapes; chunk and steps are the preset's.

    Raises:
        CheckpointError: a tensor that tells a size is missing or has too few dimensions.
        ConfigError: sizes that no model can have.
    """
    found = canonical_shapes(shapes, where)

    def size(name: str, axis: int) -> int:
        return size_of(found, name, axis, where)

    adaptive = pi_is_adaptive(found)
    base = preset("pi05" if adaptive else "pi0")
    patch = f"{TOWER}embeddings.patch_embedding.weight"
    side, width = size(patch, 2), size(patch, 0)
    grid = math.isqrt(size(f"{TOWER}embeddings.position_embedding.weight", 0))
    first = f"{TRUNK}layers.0."
    head_dim = size(f"{first}self_attn.k_proj.weight", 0)
    layers, own = count(found, f"{TRUNK}layers."), count(found, f"{EXPERT}layers.")
    if own != layers:
        raise CheckpointError(
            f"{where}: the expert has {own} layers, the trunk {layers}, expected as many; copy the"
            " whole checkpoint"
        )
    vision = replace(
        base.vision,
        image_size=grid * side,
        patch_size=side,
        hidden=width,
        layers=count(found, f"{TOWER}encoder.layers."),
        heads=max(width // SIGLIP_HEAD, 1),
        mlp=size(f"{TOWER}encoder.layers.0.mlp.fc1.weight", 0),
    )
    mot = replace(
        base.mot,
        layers=layers,
        q_heads=size(f"{first}self_attn.q_proj.weight", 0) // max(head_dim, 1),
        kv_heads=1,
        head_dim=head_dim,
        semantic=ExpertConfig(
            size(f"{first}mlp.up_proj.weight", 1), size(f"{first}mlp.up_proj.weight", 0)
        ),
        action=ExpertConfig(
            size(f"{EXPERT}layers.0.mlp.up_proj.weight", 1),
            size(f"{EXPERT}layers.0.mlp.up_proj.weight", 0),
            adaptive,
        ),
    )
    action_dim = size("action_in_proj.weight", 1)
    return replace(
        base,
        vision=vision,
        mot=mot,
        vocab_size=size(f"{TRUNK}embed_tokens.weight", 0),
        action_dim=action_dim,
        state_dim=action_dim if adaptive else size("state_proj.weight", 1),
        prompt=PromptConfig(("{views}", "{instruction}", "{state}")),
    )
