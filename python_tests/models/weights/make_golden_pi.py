"""Writes golden/pi0*, golden/pi05* from LeRobot's implementation; see peers.py for the packages.

Reduced networks with weights from their names, in fp32 and as LeRobot runs them in bf16;
and the names and shapes of the full-size state dict, from the meta device.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from goldens import GOLDEN, drawn, state_dict, write_names
from peers import lerobot

ONES = ("layer_norm", "post_layernorm")
FAMILIES = {"pi0": "PI0Pytorch", "pi05": "PI05Pytorch"}
OUTPUTS = ("vision", "keys", "values", "velocity", "chunk")
TAUS = (0.0, 0.3125, 0.875)  # of both directions exactly
# Widths of the reduced network. SigLIP So400m's head is 72 wide, Gemma has one key-value head.
VISION = {"hidden_size": 144, "intermediate_size": 160, "num_hidden_layers": 2}
VISION |= {"num_attention_heads": 2}
GEMMA = {"gemma_2b": (64, 3, 96, 4, 1, 32), "gemma_300m": (48, 3, 80, 4, 1, 32)}
VOCABULARY, IMAGE, CHUNK, STATE, ACTION, STEPS = 640, 56, 6, 9, 7, 10
VIEWS, WORDS = 2, 5


def config(dtype: str, image: int, chunk: int, state: int, action: int) -> Any:
    return SimpleNamespace(
        paligemma_variant="gemma_2b",
        action_expert_variant="gemma_300m",
        dtype=dtype,
        image_resolution=(image, image),
        max_state_dim=state,
        max_action_dim=action,
        chunk_size=chunk,
        num_inference_steps=STEPS,
        min_period=4e-3,
        max_period=4.0,
        freeze_vision_encoder=False,
        train_expert_only=False,
        compile_model=False,
        rtc_config=None,
    )


def build(peer: Any, cls: str, *sizes: Any) -> Any:
    return getattr(peer, cls)(config(*sizes)).eval()


def reduced(peer: Any, dtype: str, make: Callable[[], Any]) -> Any:
    """The peer's network with other widths, and its words cut off."""
    mapping, variant = peer.CONFIG_MAPPING, peer.get_gemma_config

    class Smaller(dict):
        def __getitem__(self, key: str) -> Any:
            if key != "paligemma":
                return mapping[key]

            def make() -> Any:
                made = mapping[key]()
                for name, value in VISION.items():
                    setattr(made.vision_config, name, value)
                return made

            return make

    peer.CONFIG_MAPPING = Smaller()
    peer.get_gemma_config = lambda name: peer.GemmaConfig(*GEMMA[name])
    network = make()
    peer.CONFIG_MAPPING, peer.get_gemma_config = mapping, variant
    both = network.paligemma_with_expert
    words = both.paligemma.model.language_model.embed_tokens
    for module in (words, both.paligemma.lm_head, both.gemma_expert.lm_head):
        module.weight = torch.nn.Parameter(module.weight[:VOCABULARY].clone())
    both.paligemma.lm_head.weight = words.weight
    widths = VISION["hidden_size"], GEMMA["gemma_2b"][0]
    both.paligemma.model.multi_modal_projector.linear = torch.nn.Linear(*widths)
    both.to_bfloat16_for_selected_params(dtype)
    return network


@torch.no_grad()
def stages(network: Any, has_state: bool) -> dict[str, np.ndarray]:
    """Every stage on the same inputs."""
    both = network.paligemma_with_expert
    levels = (drawn("images", (VIEWS, IMAGE, IMAGE, 3), 0.0, 255.9)).to(torch.uint8)
    pixels = levels.permute(0, 3, 1, 2).float() / 255.0 * 2.0 - 1.0
    tokens = (drawn("tokens", (WORDS,), 0.0, 0.99) * VOCABULARY).long()
    state, noise = drawn("state", (1, STATE)), drawn("noise", (1, CHUNK, ACTION), -1.7, 1.7)
    images = [pixels[i : i + 1] for i in range(VIEWS)]
    seen = torch.ones(1, dtype=torch.bool)
    words = tokens[None], torch.ones(1, WORDS, dtype=torch.bool)
    given = (state,) if has_state else ()
    out: dict[str, Any] = {"images": levels, "tokens": tokens}
    out |= {"state": state[0], "noise": noise[0], "steps": torch.tensor(STEPS)}
    out["vision"] = torch.cat([both.embed_image(image) for image in images])

    found: dict[str, Any] = {}
    step = network.denoise_step

    def watched(**kwargs: Any) -> Any:
        found.update(kwargs)
        return step(**kwargs)

    network.denoise_step = watched
    chunk = network.sample_actions(images, [seen] * VIEWS, *words, *given, noise=noise)
    network.denoise_step = step
    caches = list(found["past_key_values"])
    out["keys"] = torch.stack([cache[0][0].transpose(0, 1) for cache in caches])
    out["values"] = torch.stack([cache[1][0].transpose(0, 1) for cache in caches])
    del found["x_t"], found["timestep"]
    x = drawn("x", (1, CHUNK, ACTION))
    velocities = [step(**found, x_t=x, timestep=torch.tensor([1.0 - tau])) for tau in TAUS]
    # dx/dτ from the noise to the action; theirs runs the other way.
    out |= {"x": x[0], "taus": torch.tensor(TAUS), "velocity": -torch.cat(velocities)}
    out["chunk"] = chunk[0]
    return {k: (v.float() if v.is_floating_point() else v).numpy() for k, v in out.items()}


def main(libs: Path, *only: str) -> None:
    GOLDEN.mkdir(exist_ok=True)
    for family, cls in FAMILIES.items():
        if only and family not in only:
            continue
        peer = lerobot(libs, f"policies.{family}.modeling_{family}")
        with torch.device("meta"):
            full = build(peer, cls, "float32", 224, 50, 32, 32)
        shapes = {name: tuple(w.shape) for name, w in full.state_dict().items()}
        write_names(GOLDEN / f"{family}_full.json", shapes)
        results: dict[str, np.ndarray] = {}
        for dtype in ("float32", "bfloat16"):
            sizes = dtype, IMAGE, CHUNK, STATE, ACTION
            network = reduced(peer, dtype, partial(build, peer, cls, *sizes))
            shapes = {name: tuple(w.shape) for name, w in network.state_dict().items()}
            network.load_state_dict(state_dict(shapes, ONES))
            found = stages(network, has_state=family == "pi0")
            kept = found if dtype == "float32" else {f"bf16_{k}": found[k] for k in OUTPUTS}
            results |= kept
        write_names(GOLDEN / f"{family}_names.json", shapes)
        np.savez_compressed(GOLDEN / f"{family}.npz", allow_pickle=False, **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
