"""Writes golden/smolvla* from LeRobot's implementation; see peers.py for the packages.

A reduced network with weights from their names, in fp32 and in bf16; and the names and shapes of
the full-size state dict, from the meta device.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from goldens import GOLDEN, drawn, state_dict, write_names
from peers import lerobot

ONES = ("layer_norm", "layernorm", "norm.weight")
OUTPUTS = ("vision", "keys", "values", "velocity", "chunk")
TAUS = (0.0, 0.3125, 0.875)  # of both directions exactly
# SmolVLM2-500M, and a smaller one of the same shape. Heads are 64 wide in all of them.
FULL = {
    "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    | {"num_attention_heads": 12, "patch_size": 16, "image_size": 512},
    "text": {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32}
    | {"num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280},
    "scale_factor": 4,
}
REDUCED = {
    "vision": {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2}
    | {"num_attention_heads": 2, "patch_size": 8, "image_size": 64},
    "text": {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 6}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 640},
    "scale_factor": 4,
}
CHUNK, STATE, ACTION, STEPS, VIEWS, WORDS = 6, 9, 7, 10, 2, 5


def build(libs: Path, sizes: dict[str, Any], layers: int, state: int, action: int) -> Any:
    """LeRobot's network on a SmolVLM of these sizes, which it would download."""
    inner = lerobot(libs, "policies.smolvla.smolvlm_with_expert")
    peer = lerobot(libs, "policies.smolvla.modeling_smolvla")
    transformers = sys.modules["transformers"]
    text = {"rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e5}
    config = transformers.SmolVLMConfig(
        vision_config=dict(sizes["vision"]),
        text_config={**text, **sizes["text"], "model_type": "llama"},
        scale_factor=sizes["scale_factor"],
        image_token_id=1,
        pad_token_id=2,
    )
    words = SimpleNamespace(fake_image_token_id=3, global_image_token_id=4)
    inner.AutoConfig = SimpleNamespace(from_pretrained=lambda _: config)
    inner.AutoProcessor = SimpleNamespace(
        from_pretrained=lambda _: SimpleNamespace(tokenizer=words)
    )
    inner.require_package = lambda *_, **__: None
    settings = SimpleNamespace(
        vlm_model_name="",
        freeze_vision_encoder=True,
        train_expert_only=True,
        train_state_proj=True,
        load_vlm_weights=False,
        attention_mode="cross_attn",
        num_expert_layers=-1,
        num_vlm_layers=layers,
        self_attn_every_n_layers=2,
        expert_width_multiplier=0.75,
        device="cpu",
        max_state_dim=state,
        max_action_dim=action,
        chunk_size=CHUNK,
        num_steps=STEPS,
        min_period=4e-3,
        max_period=4.0,
        use_cache=True,
        add_image_special_tokens=False,
        prefix_length=-1,
        compile_model=False,
        rtc_config=None,
    )
    return peer.VLAFlowMatching(settings).eval()


@torch.no_grad()
def stages(network: Any) -> dict[str, np.ndarray]:
    """Every stage on the same inputs."""
    both, dtype = network.vlm_with_expert, network.state_proj.weight.dtype
    side = REDUCED["vision"]["image_size"]
    levels = drawn("images", (VIEWS, side, side, 3), 0.0, 255.9).to(torch.uint8)
    pixels = levels.permute(0, 3, 1, 2).float() / 255.0 * 2.0 - 1.0
    tokens = (drawn("tokens", (WORDS,), 0.0, 0.99) * REDUCED["text"]["vocab_size"]).long()
    state, noise = drawn("state", (1, STATE)), drawn("noise", (1, CHUNK, ACTION), -1.7, 1.7)
    out: dict[str, Any] = {"images": levels, "tokens": tokens}
    out |= {"state": state[0], "noise": noise[0], "steps": torch.tensor(STEPS)}
    seen = torch.ones(1, dtype=torch.bool)
    images = [pixels[i : i + 1].to(dtype) for i in range(VIEWS)]
    scale = REDUCED["text"]["hidden_size"] ** 0.5
    out["vision"] = torch.cat([both.embed_image(image) for image in images]).float() * scale

    found: dict[str, Any] = {}
    step = network.denoise_step

    def watched(x_t: Any, timestep: Any, **others: Any) -> Any:
        found.update(others)
        return step(x_t=x_t.to(dtype), timestep=timestep, **others).to(x_t.dtype)

    network.denoise_step = watched
    network.action_out_proj.float()  # takes fp32 in either dtype
    chunk = network.sample_actions(
        images,
        [seen] * VIEWS,
        tokens[None],
        torch.ones(1, WORDS, dtype=torch.bool),
        state.to(dtype),
        noise=noise,
    )
    keys, values = [], []
    for i, layer in enumerate(found["past_key_values"].layers):
        one, other = layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)
        if i % 2:
            # What actions see of this layer is projected once more by the expert.
            expert = both.lm_expert.layers[i].self_attn
            one = expert.k_proj(one.flatten(1)).view(one.shape)
            other = expert.v_proj(other.flatten(1)).view(other.shape)
        keys.append(one)
        values.append(other)
    out |= {"keys": torch.stack(keys), "values": torch.stack(values)}
    x = drawn("x", (1, CHUNK, ACTION))
    velocities = [watched(x, torch.tensor([1.0 - tau]), **found) for tau in TAUS]
    # dx/dτ from the noise to the action; theirs runs the other way.
    out |= {"x": x[0], "taus": torch.tensor(TAUS), "velocity": -torch.cat(velocities)}
    out["chunk"] = chunk[0]
    return {k: (v.float() if v.is_floating_point() else v).numpy() for k, v in out.items()}


def main(libs: Path) -> None:
    with torch.device("meta"):
        full = build(libs, FULL, 16, 32, 32)
    shapes = {name: tuple(w.shape) for name, w in full.state_dict().items()}
    write_names(GOLDEN / "smolvla_full.json", shapes)
    results: dict[str, np.ndarray] = {}
    for dtype in (torch.float32, torch.bfloat16):
        network = build(libs, REDUCED, 4, STATE, ACTION)
        shapes = {name: tuple(w.shape) for name, w in network.state_dict().items()}
        network.load_state_dict(state_dict(shapes, ONES))
        found = stages(network.to(dtype))
        results |= found if dtype == torch.float32 else {f"bf16_{k}": found[k] for k in OUTPUTS}
    write_names(GOLDEN / "smolvla_names.json", shapes)
    np.savez_compressed(GOLDEN / "smolvla.npz", allow_pickle=False, **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
