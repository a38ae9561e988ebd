"""Writes golden/export_*: what LeRobot makes of a directory that ``to_lerobot`` wrote.

LeRobot's own classes read its config, weights and processor files, and act on an observation; only
the network's sizes, which its configuration cannot say, and the tokenizer's place, which it would
download, are given to it. See peers.py for the packages.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from goldens import EXPORTS, GOLDEN, contents, exported_observation, lerobot_directory
from make_golden_pi import reduced
from make_golden_smolvla import REDUCED
from peers import whole_lerobot
from safetensors.torch import load_file
from tokenizers import Tokenizer, processors

from vlakern.models.weights.export import to_lerobot

NETWORKS = {"pi0": "PI0Pytorch", "pi05": "PI05Pytorch"}


def small(peer: Any, kind: str) -> None:
    """Makes LeRobot build the reduced network where it builds its own."""
    if kind == "smolvla":
        small_smolvlm()
        return
    make: Callable[..., Any] = getattr(peer, NETWORKS[kind])

    def build(config: Any, **options: Any) -> Any:
        return reduced(peer, config.dtype, partial(make, config, **options))

    setattr(peer, NETWORKS[kind], build)


def small_smolvlm() -> None:
    inner = sys.modules["lerobot.policies.smolvla.smolvlm_with_expert"]
    transformers = sys.modules["transformers"]
    text = {"rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e5}
    config = transformers.SmolVLMConfig(
        vision_config=dict(REDUCED["vision"]),
        text_config={**text, **REDUCED["text"], "model_type": "llama"},
        scale_factor=REDUCED["scale_factor"],
        image_token_id=1,
        pad_token_id=2,
    )
    words = SimpleNamespace(
        tokenizer=SimpleNamespace(fake_image_token_id=3, global_image_token_id=4)
    )
    inner.__dict__["AutoConfig"] = SimpleNamespace(from_pretrained=lambda _: config)
    inner.__dict__["AutoProcessor"] = SimpleNamespace(from_pretrained=lambda _: words)


def strictly(policy: Any, directory: Path) -> None:
    """Every tensor of the file is in the policy, and nothing of the policy is not in the file."""
    held = policy.state_dict(keep_vars=True)
    stored = load_file(directory / "model.safetensors")
    for name, weight in stored.items():
        if not torch.equal(held[name].float(), weight.float()):
            raise ValueError(f"{name} is not what the file holds")
    there = {held[name].data_ptr() for name in stored}
    missing = [name for name, weight in held.items() if weight.data_ptr() not in there]
    if missing:
        raise ValueError(f"the file lacks {', '.join(missing)}")


@torch.no_grad()
def run(kind: str, directory: Path) -> dict[str, np.ndarray]:
    """LeRobot's actions from an exported directory."""
    from lerobot.configs.policies import PreTrainedConfig  # pyright: ignore
    from lerobot.policies.factory import (  # pyright: ignore
        get_policy_class,
        make_pre_post_processors,
    )

    transformers = sys.modules["transformers"]
    config = PreTrainedConfig.from_pretrained(directory)
    cls = get_policy_class(kind)
    small(sys.modules[cls.__module__], kind)
    policy = cls.from_pretrained(directory, config=config, strict=True)
    strictly(policy, directory)
    made = Tokenizer.from_file(str(directory / "tokenizer.json"))
    if kind == "smolvla":  # whose tokenizer puts nothing first
        made.post_processor = processors.TemplateProcessing(single="$A")
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")
    before, after = make_pre_post_processors(
        config,
        str(directory),
        preprocessor_overrides={"tokenizer_processor": {"tokenizer": words}},
    )
    observation, noise = exported_observation(kind)
    batch: dict[str, Any] = {
        f"observation.images.{view}": torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        for view, image in observation["images"].items()
    }
    batch["observation.state"] = torch.from_numpy(observation["state"])[None]
    batch["task"] = [observation["instruction"]]
    policy.model.sample_noise = lambda *_: noise[None].clone()
    chunk = after(policy.predict_action_chunk(before(dict(batch))))
    policy.reset()
    first = after(policy.select_action(before(dict(batch))))
    return {"chunk": chunk[0].numpy(), "first": first[0].numpy()}


def main(libs: Path, *only: str) -> None:
    whole_lerobot(libs)
    for name, (kind, relative) in EXPORTS.items():
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            exported = Path(folder) / "exported"
            source = Path(folder) / "source"
            lerobot_directory(source, kind, recent=True, relative=relative)
            to_lerobot(source, exported)
            found = run(kind, exported)
            read = np.array(contents(exported))
        path = GOLDEN / f"export_{name}.npz"
        np.savez_compressed(path, allow_pickle=False, **found, read=read)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
