"""Writes golden/lerobot_being_h05*: Being-H0.5 by LeRobot's port, with its own files around it.

    git -C LEROBOT archive c34d6d176 src/lerobot | tar -x -C PORT --strip-components=1
    python python_tests/models/weights/make_golden_beingh_lerobot.py PORT LIBS

LEROBOT is a clone with pull request 4193; LIBS is that of peers.py. A reduced network with weights
from their names, in fp32, saved by LeRobot; the names of the full-size one, from the meta device.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from goldens import GOLDEN, beingh_observation, drawn, state_dict, write_names
from make_golden_export import strictly
from peers import whole_lerobot
from PIL import Image
from tokenizers import Tokenizer

from vlakern.models.tokenizer import fit_tokenizer

SPECIAL = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<|state_start|>", "<|state_end|>"]
ONES = ("layernorm", "norm.weight", "norm_mot_gen", "lambda_", "mlp1.0")
SYSTEM = "You are a robot.\nBe careful."
EXPERT = {"hidden_size": 48, "intermediate_size": 80}
LLM = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 16}
LLM |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 640, "qk_norm": True}
VIT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "image_size": 448}
VIT |= {"num_attention_heads": 4, "patch_size": 56}
FULL_EXPERT = {"hidden_size": 1024, "intermediate_size": 3072}
FULL_LLM = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28}
FULL_LLM |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
FULL_LLM |= {"vocab_size": 151936, "qk_norm": True}
FULL_VIT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
FULL_VIT |= {"num_attention_heads": 16, "patch_size": 14, "image_size": 448}
STATES = {"eef_position": 3, "eef_rotation": 3, "gripper_qpos": 2}
STATES |= {"base_position": 3, "base_rotation": 3}


def author(llm: dict[str, Any], expert: dict[str, Any], vit: dict[str, Any]) -> dict[str, Any]:
    """The release's config.json."""
    heads = {name: llm[name] for name in llm if "head" in name}
    shared = {"rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "attention_bias": False}
    shared |= {"model_type": "qwen3"}
    expert = shared | heads | {"num_hidden_layers": llm["num_hidden_layers"]} | expert
    told = {"qkv_bias": True, "qk_normalization": False, "dropout": 0.0, "layer_norm_eps": 1e-6}
    layer = {"layer_module": "Qwen3MoTDecoderLayer", "use_mot": True}
    return {
        "model_type": "beingh",
        "llm_config": shared | layer | llm | {"expert_config": expert},
        "vit_config": told | vit | {"initializer_factor": 0.1},
        "template": "said",
        "system_message": SYSTEM,
        "use_expert": True,
        "use_flow_matching": True,
        "force_image_size": 224,
        "downsample_ratio": 0.5,
        "select_layer": -1,
        "action_chunk_length": 16,
    }


def words() -> Any:
    """A byte-level BPE with the chat's special tokens, as Qwen's is."""
    texts = [SYSTEM, "According to the instruction", "system\n user\n assistant\n\n open the door"]
    made = Tokenizer.from_str(fit_tokenizer(texts, 400).to_json())
    made.add_special_tokens(SPECIAL)
    return sys.modules["transformers"].PreTrainedTokenizerFast(tokenizer_object=made)


def configuration(values: dict[str, Any], mode: str = "IDENTITY") -> Any:
    from lerobot.configs import (  # pyright: ignore
        FeatureType,
        NormalizationMode,
        PolicyFeature,
    )
    from lerobot.policies.being_h05.configuration_being_h05 import (  # pyright: ignore
        ROBOCASA_CAMERA_KEYS,
        BeingH05Config,
    )

    image = PolicyFeature(FeatureType.VISUAL, (3, 224, 224))
    taken = dict.fromkeys(ROBOCASA_CAMERA_KEYS, image)
    for name, width in STATES.items():
        taken[f"observation.state.{name}"] = PolicyFeature(FeatureType.STATE, (width,))
    given = {"action": PolicyFeature(FeatureType.ACTION, (12,))}
    modes = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    return BeingH05Config(
        author_config=values,
        input_features=taken,
        output_features=given,
        normalization_mapping={kind: NormalizationMode[name] for kind, name in modes.items()},
        device="cpu",
    )


def statistics() -> dict[str, dict[str, torch.Tensor]]:
    """Of a data set, with all that LeRobot has."""
    widths = {f"observation.state.{name}": width for name, width in STATES.items()}
    found = {}
    for name, width in (widths | {"action": 12}).items():
        low, size = drawn(f"{name} low", (width,)), drawn(f"{name} size", (width,), 0.5, 2.0)
        found[name] = {"min": low, "max": low + size, "mean": low + 0.5 * size, "std": 0.3 * size}
        found[name] |= {"q01": low + 0.1 * size, "q99": low + 0.8 * size}
    return found


def square(image: Image.Image, side: int, **_: Any) -> Image.Image:
    """torchvision's ``resize`` of an image: the shorter side."""
    width, height = image.size
    short = min(width, height)
    sizes = [int(side * one / short) for one in (width, height)]
    return image.resize((sizes[0], sizes[1]), Image.Resampling.BICUBIC)


def middle(image: Image.Image, sides: list[int]) -> Image.Image:
    """torchvision's ``center_crop``."""
    left, top = (round((one - side) / 2.0) for one, side in zip(image.size, sides, strict=True))
    return image.crop((left, top, left + sides[0], top + sides[1]))


def planes(image: Image.Image) -> torch.Tensor:
    """torchvision's ``to_tensor``."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def modules() -> tuple[Any, Any]:
    """The port's, without compiling and with what it would download or has no package for."""
    import lerobot.policies.being_h05.modeling_being_h05 as modeling  # pyright: ignore
    import lerobot.policies.being_h05.processor_being_h05 as processing  # pyright: ignore

    fast = words()
    flex, mask = modeling.flex_attention, modeling.create_block_mask
    modeling._compiled_flex_attention = lambda *args, **options: flex(
        *args, **options | {"kernel_options": None}
    )
    modeling.create_block_mask = lambda *args, **options: mask(
        *args, **options | {"_compile": False}
    )
    both: tuple[Any, ...] = (modeling, processing)
    for module in both:
        module.AutoTokenizer = SimpleNamespace(from_pretrained=lambda *_, **__: fast)
        module.require_package = lambda *_, **__: None
    processing.InterpolationMode = SimpleNamespace(BICUBIC=None)
    processing.tvf = SimpleNamespace(resize=square, center_crop=middle, to_tensor=planes)
    return modeling, processing


@torch.no_grad()
def run(
    modeling: Any, processing: Any, directory: Path, mode: str = "IDENTITY"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Saves a policy, reads it again and acts; arrays, and shapes by name."""
    from lerobot.policies.factory import make_pre_post_processors  # pyright: ignore

    config = configuration(author(LLM, EXPERT, VIT), mode)
    policy = modeling.BeingH05Policy(config)
    shapes = {name: tuple(w.shape) for name, w in policy.state_dict().items()}
    policy.load_state_dict(state_dict(shapes, ONES))
    policy.save_pretrained(directory)
    given = None if mode == "IDENTITY" else statistics()
    for pipeline in processing.make_being_h05_pre_post_processors(config, given):
        pipeline.save_pretrained(directory)
    policy = modeling.BeingH05Policy.from_pretrained(directory, config=config, strict=True)
    strictly(policy, directory)
    before, after = make_pre_post_processors(config, str(directory))
    given, noise = beingh_observation()
    batch: dict[str, Any] = {
        f"observation.images.{view}": torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        for view, image in given["images"].items()
    }
    parts = torch.from_numpy(given["state"]).split(list(STATES.values()))
    for name, part in zip(STATES, parts, strict=True):
        batch[f"observation.state.{name}"] = part[None]
    batch["task"] = [given["instruction"]]
    draw = torch.randn
    modeling.torch.randn = lambda *_, **__: noise[None].clone()
    ready = before(batch)
    del ready["action"]  # an action of None would be taken for one to learn
    chunk = policy.predict_action_chunk(ready)
    modeling.torch.randn = draw
    return {"unified": chunk[0].numpy(), "chunk": after(chunk)[0].numpy()}, shapes


def main(port: Path, libs: Path) -> None:
    whole_lerobot(port, libs)
    modeling, processing = modules()
    for name, mode in (("", "IDENTITY"), ("_quantiles", "QUANTILES")):
        kept = GOLDEN / "processing" / f"lerobot_being_h05{name}"
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            arrays, shapes = run(modeling, processing, Path(folder), mode)
            for path in Path(folder).iterdir():
                if path.name not in ("model.safetensors", "tokenizer_config.json"):
                    shutil.copy(path, kept)
        write_names(GOLDEN / "lerobot_being_h05_names.json", shapes)
        np.savez_compressed(GOLDEN / f"lerobot_being_h05{name}.npz", allow_pickle=False, **arrays)
    with torch.device("meta"):
        full = modeling.BeingH05Policy(configuration(author(FULL_LLM, FULL_EXPERT, FULL_VIT)))
    shapes = {name: tuple(w.shape) for name, w in full.state_dict().items()}
    write_names(GOLDEN / "lerobot_being_h05_full.json", shapes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
