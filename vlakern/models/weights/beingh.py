"""The names of Being-H0.5, as its release writes them, and its sizes from its config.json.

Source: BeingH/model (beingvla.py, llm/qwen3_navit.py, vit_model/internvit_navit.py, layers.py).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
from vlakern.models.weights._stacks import both
from vlakern.models.weights.names import Fold, Rule, Table

__all__ = ["CLASS_TOKEN", "beingh_config", "beingh_table", "position_fold"]

LAYER = "language_model.model.layers.{n}."
TOWER = "vit_model.encoder.layers.{n}."
INSIDE = "language_model|vit_model|connector|proprio_|action_|vlm_|mpg"
ALIASES = ((rf"^(?:_orig_mod\.|module\.|model\.(?={INSIDE}))", ""),)
SKIPPED = (
    (r"language_model\.lm_head\.weight", "no word is predicted"),
    (r"(action_to_vlm_proj|vlm_to_action_proj|mpg)\..*", "of the refinement, which is not run"),
    (r".*\.rotary_emb\.inv_freq", "follows from the head's width"),
)


def beingh_table(config: VLAConfig, positions: int, tower: Sequence[Rule] | None = None) -> Table:
    """The names of a model of these sizes.

    Args:
        positions: patches along a side for which the file has positions; others are interpolated,
            as the release does it in every call.
        tower: rules of another implementation's vision tower.
    """
    layers = config.mot.layers
    rules = list(_tower(config, positions) if tower is None else tower)
    for i in (0, 1, 3):
        rules += both(f"vision.connector.{i}", f"connector.mlp1.{i}")
    rules.append(Rule("embed_tokens.weight", ("language_model.model.embed_tokens.weight",)))
    for expert, mark in (("semantic", ""), ("action", "_mot_gen")):
        rules += _expert_rules(f"mot.{expert}.", mark, layers)
    for ours, theirs in (("state_encoder", "proprio_encoder_robot"), ("action_decoder",) * 2):
        rules += both(f"{ours}.0", f"{theirs}.layer1") + both(f"{ours}.2", f"{theirs}.layer2")
    for i in (1, 2, 3):
        rules += both(f"action_encoder.w{i}", f"action_encoder.W{i}")
    return Table(tuple(rules), ALIASES, skipped=SKIPPED)


def _tower(config: VLAConfig, positions: int) -> list[Rule]:
    vision = config.vision
    block = "vision.blocks.{n}."
    rules = [
        *both("vision.patch", "vit_model.embeddings.patch_embedding"),
        Rule("vision.class_token", ("vit_model.embeddings.class_embedding",), CLASS_TOKEN),
        Rule(
            "vision.position",
            ("vit_model.embeddings.position_embedding",),
            position_fold(positions, vision.grid),
        ),
    ]
    parts = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    parts |= {"norm1": "norm1", "norm2": "norm2"}
    for ours, theirs in parts.items():
        rules += both(f"{block}{ours}", f"{TOWER}{theirs}", layers=vision.layers)
    for i in (1, 2):
        rules.append(Rule(f"{block}scale{i}", (f"{TOWER}ls{i}",), layers=vision.layers))
    return rules


def _expert_rules(native: str, mark: str, layers: int) -> list[Rule]:
    ours = f"{native}layers.{{n}}."
    names = {f"{part}_proj": f"self_attn.{part}_proj{mark}" for part in "qkvo"}
    names |= {f"{part}_norm": f"self_attn.{part}_norm{mark}" for part in "qk"}
    names |= {f"{part}_proj": f"mlp{mark}.{part}_proj" for part in ("gate", "up", "down")}
    names["input_norm"] = f"input_layernorm{mark}"
    names["post_norm"] = f"post_attention_layernorm{mark}"
    rules = [
        Rule(f"{ours}{mine}.weight", (f"{LAYER}{theirs}.weight",), layers=layers)
        for mine, theirs in names.items()
    ]
    return [*rules, Rule(f"{native}norm.weight", (f"language_model.model.norm{mark}.weight",))]


CLASS_TOKEN = Fold(
    lambda parts: parts[0].flatten(), lambda w: [w.view(1, 1, -1)], lambda shape: [(1, 1, *shape)]
)


def position_fold(there: int, here: int) -> Fold:
    """Positions without the batch's axis, the patches' resized from one grid to another."""

    def apply(parts: Any) -> Tensor:
        table: Tensor = parts[0][0]
        return table if there == here else _resized(table, there, here)

    def undo(weight: Tensor) -> list[Tensor]:
        return [weight[None]]

    def shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [(1, there**2 + 1, shape[-1])]

    return Fold(apply, undo, shapes, exact=there == here)


def _resized(table: Tensor, there: int, here: int) -> Tensor:
    first, rest = table[:1].float(), table[1:].float()
    grid = rest.view(1, there, there, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(here, here), mode="bicubic", align_corners=False)
    return torch.cat([first, grid.flatten(2)[0].T])


def beingh_config(values: dict[str, Any], where: str) -> tuple[VLAConfig, int]:
    """The network from config.json, and along a side how many positions its tower has.

    Raises:
        ConfigError: naming a key that is missing, of another type, or that asks for what is not
            supported.
    """
    get = _reader(values, where)
    for key, wanted in (("use_expert", True), ("use_flow_matching", True), ("select_layer", -1)):
        if values.get(key, wanted) != wanted:
            raise ConfigError(f"{where}.{key} is {values[key]!r}, only {wanted!r} is supported")
    if values.get("use_mpg") and values.get("mpg_lambda", 0.0) > 0:
        raise ConfigError(
            f"{where}.use_mpg is true: the release then makes every chunk twice, the second time"
            " with projections drawn at random in each step, which is not run here; set it to false"
            " for the chunk of its first pass, which is the release's without the option"
        )
    side, patch = get("force_image_size", int), get("vit_config.patch_size", int)
    tower = get("vit_config.image_size", int)
    shuffle = round(1 / max(get("downsample_ratio", float, 0.5), 1e-6))
    mode = values.get("attn_mode", "causal")
    if mode not in ("causal",):
        raise ConfigError(
            f"{where}.attn_mode is {mode!r}; at inference the release masks causally whatever it"
            " was trained with; set it to 'causal' for the same actions"
        )
    llm, expert = "llm_config.", "llm_config.expert_config."
    heads = get(f"{llm}num_attention_heads", int)
    config = VLAConfig(
        vision=VisionConfig(
            side,
            patch,
            hidden=get("vit_config.hidden_size", int),
            layers=get("vit_config.num_hidden_layers", int),
            heads=get("vit_config.num_attention_heads", int),
            mlp=get("vit_config.intermediate_size", int),
            class_token=True,
            layer_scale=0.1,
            pixel_shuffle=shuffle,
            eps=get("vit_config.layer_norm_eps", float, 1e-6),
        ),
        mot=MoTConfig(
            layers=get(f"{llm}num_hidden_layers", int),
            q_heads=heads,
            kv_heads=get(f"{llm}num_key_value_heads", int, heads),
            head_dim=get(f"{llm}head_dim", int, 128),
            semantic=ExpertConfig(
                get(f"{llm}hidden_size", int), get(f"{llm}intermediate_size", int)
            ),
            action=ExpertConfig(
                get(f"{expert}hidden_size", int), get(f"{expert}intermediate_size", int)
            ),
            rope_theta=get(f"{llm}rope_theta", float, 1e6),
            norm_eps=get(f"{llm}rms_norm_eps", float, 1e-6),
        ),
        vocab_size=get(f"{llm}vocab_size", int),
        state_dim=200,
        action_dim=200,
        chunk=get("action_chunk_length", int, 16),
        steps=get("num_inference_timesteps", int, 4),
        time=TimeConfig(buckets=get("num_timestep_buckets", int, 1000)),
        mask=MaskConfig(),
        prompt=_prompt(get("system_message", str, "")),
    )
    return replace(config), math.isqrt((tower // max(patch, 1)) ** 2)


def _prompt(system: str) -> PromptConfig:
    """One conversation; at inference one pair of tags is around all views."""
    return PromptConfig(
        template=(
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
            "{views}",
            "<|state_start|>",
            "{state}",
            "<|state_end|>",
            "{instruction}",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        view_open="<img>",
        view_close="</img>",
        wrap_views="all",
    )


def _reader(values: dict[str, Any], where: str) -> Callable[..., Any]:
    def get(path: str, kind: type, default: Any = None) -> Any:
        found: Any = values
        for key in path.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        found = default if found is None else found
        if kind is float and type(found) is int:
            found = float(found)
        if not isinstance(found, kind) or isinstance(found, bool):
            raise ConfigError(
                f"{where}.{path} is {str(found)[:40]!r}, expected {kind.__name__}; copy the"
                " checkpoint's config again"
            )
        return found

    return get
