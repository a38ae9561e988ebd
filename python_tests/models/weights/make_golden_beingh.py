"""Writes golden/beingh* from the release's own classes, on a CPU.

    git clone https://github.com/BeingBeyond/Being-H SOURCE     (commit 594219e)
    pip install --target LIBS --no-deps transformers==4.55.4 huggingface_hub==0.34.4 \
        tokenizers==0.21.4 regex pyyaml packaging filelock requests urllib3 charset_normalizer \
        idna certifi fsspec typing_extensions einops
    python python_tests/models/weights/make_golden_beingh.py LIBS SOURCE

A reduced network with weights from their names, in fp32 and in bf16; and the names and shapes of
the full-size state dict, from the meta device. What needs a GPU and is not called is left out:
flash-attn, timm's path dropping, and compiled attention, whose plain form is the same sums.
"""

import importlib
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from goldens import GOLDEN, drawn, state_dict, write_names

ONES = ("norm1", "norm2", "layernorm", "norm.weight", "norm_mot_gen", ".ls1", ".ls2", "mlp1.0")
OUTPUTS = ("vision", "keys", "values", "velocity", "chunk")
TAUS = (0.0, 0.25, 0.875)
FULL = {
    "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    | {"num_attention_heads": 16, "patch_size": 14, "image_size": 448},
    "llm": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28}
    | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936},
    "expert": {"hidden_size": 1024, "intermediate_size": 3072},
    "image": 224,
}
REDUCED = {
    "vision": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    | {"num_attention_heads": 4, "patch_size": 14, "image_size": 112},
    "llm": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 640},
    "expert": {"hidden_size": 48, "intermediate_size": 80},
    "image": 56,
}
CHUNK, STEPS, VIEWS = 16, 4, 2


def stub(name: str, **content: Any) -> None:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__path__ = []
    for key, value in content.items():
        setattr(module, key, value)
    sys.modules[name] = module


def release(libs: Path, source: Path) -> Any:
    """The release's model file."""
    sys.path[:0] = [str(libs), str(source)]
    importlib.import_module("transformers.modeling_utils")
    stub("flash_attn", flash_attn_varlen_func=None)
    stub("timm")
    stub("timm.layers", DropPath=torch.nn.Identity)
    compiled, torch.compile = torch.compile, lambda function, *_, **__: function
    try:
        found: Any = importlib.import_module("BeingH.model.beingvla")
    finally:
        torch.compile = compiled
    found.Beta = lambda *_: None  # draws times in training
    plain = found.create_block_mask
    found.create_block_mask = lambda *args, **kwargs: plain(*args, **{**kwargs, "_compile": False})
    return found


def build(peer: Any, sizes: dict[str, Any]) -> Any:
    qwen = importlib.import_module("BeingH.model.llm.qwen3_navit")
    vit = importlib.import_module("BeingH.model.vit_model.internvit_navit")
    layers = importlib.import_module("BeingH.model.layers")
    shared = {key: sizes["llm"][key] for key in ("num_attention_heads", "num_key_value_heads")}
    shared |= {key: sizes["llm"][key] for key in ("head_dim", "num_hidden_layers")}
    common = {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "layer_module": "Qwen3MoTDecoderLayer"}
    llm = qwen.Qwen3Config(**sizes["llm"], **common)
    llm.use_mot = True
    llm.expert_config = qwen.Qwen3Config(**sizes["expert"], **shared, **common)
    tower = vit.InternVisionConfig(
        **sizes["vision"], qkv_bias=True, qk_normalization=False, norm_type="layer_norm"
    )
    config = peer.BeingHConfig(
        llm_config=llm,
        vit_config=tower,
        force_image_size=sizes["image"],
        template="being_h0",
        action_chunk_length=CHUNK,
        num_inference_timesteps=STEPS,
        use_flow_matching=True,
    )
    connector = layers.InternVLConnector(llm.hidden_size, tower.hidden_size, 0.5)
    network = peer.BeingH(
        qwen.Qwen3ForCausalLM(llm), vit.InternVisionModel(tower), connector, config, False
    )
    return network.eval()


@torch.no_grad()
def stages(network: Any) -> dict[str, np.ndarray]:
    """Every stage, through the release's ``get_action``."""
    dtype = network.language_model.model.embed_tokens.weight.dtype
    side, words = REDUCED["image"], REDUCED["llm"]["vocab_size"]
    levels = drawn("images", (VIEWS, side, side, 3), 0.0, 255.9).to(torch.uint8)
    pixels = (levels.permute(0, 3, 1, 2).float() / 255.0 * 2.0 - 1.0).to(dtype)
    tokens = (drawn("tokens", (12,), 0.0, 0.99) * words).long()
    state, noise = drawn("state", (200,)), drawn("noise", (1, CHUNK, 200), -1.7, 1.7)
    views = (side // 14 // 2) ** 2 * VIEWS
    # Words, views, words, the state, words, actions, and a last word that nothing sees.
    before, between = 5, 3
    at_state = before + views + between
    text = [*range(before), *range(before + views, at_state)]
    after = range(at_state + 1, at_state + 1 + 12 - before - between)
    actions = range(after.stop, after.stop + CHUNK)
    length = actions.stop + 1
    packed = {
        "sequence_length": length,
        "packed_text_ids": torch.cat([tokens, tokens[:1]]),
        "packed_text_indexes": torch.tensor([*text, *after, length - 1]),
        "sample_lens": [length, -length % 128],
        "packed_position_ids": torch.arange(length),
        "split_lens": [length, -length % 128],
        "attn_modes": ["causal", "causal"],
        "packed_vit_tokens": pixels,
        "packed_vit_token_indexes": torch.arange(before, before + views),
        "packed_action_indexes": torch.tensor(list(actions)),
        "padded_state": state[None].to(dtype),
        "packed_state_indexes": torch.tensor([at_state]),
        "embodiment_ids": torch.tensor([31]),
    }
    out: dict[str, Any] = {"images": levels, "tokens": tokens, "state": state, "noise": noise[0]}
    out |= {"steps": torch.tensor(STEPS), "parts": torch.tensor([before, between])}
    out["vision"] = network.extract_feature(pixels)
    draw, decode = torch.randn, network.action_decoder.forward

    def act(start: torch.Tensor, steps: int, first: float = 0.0) -> tuple[Any, list[Any]]:
        """The chunk from a noise, and the decoder's outputs; ``first`` shifts the only step's τ."""
        found: list[Any] = []
        network.num_inference_timesteps = steps
        buckets, network.num_timestep_buckets = network.num_timestep_buckets, 1000
        encode = network.action_encoder.forward
        torch.randn = lambda *_, **__: start.to(dtype)
        network.action_decoder.forward = lambda x: found.append(decode(x)) or found[-1]
        if first:
            network.action_encoder.forward = lambda x, t: encode(x, t + int(first * 1000))
        try:
            chunk = network.get_action(**packed)["action_pred"]
        finally:
            torch.randn, network.action_decoder.forward = draw, decode
            network.action_encoder.forward = encode
            network.num_timestep_buckets = buckets
        return chunk, found

    qwen: Any = sys.modules["BeingH.model.llm.qwen3_navit"]
    attend, seen = qwen.flex_attention, []

    def watched(q: Any, k: Any, v: Any, **rest: Any) -> Any:
        seen.append((k[0], v[0]))
        return attend(q, k, v, **rest)

    qwen.flex_attention = watched
    x = drawn("x", (1, CHUNK, 200))
    velocities = [act(x, 1, tau)[1][0].reshape(CHUNK, 200) for tau in TAUS]
    out |= {"x": x[0], "taus": torch.tensor(TAUS), "velocity": torch.stack(velocities)}
    out["chunk"] = act(noise, STEPS)[0].reshape(CHUNK, 200)
    qwen.flex_attention = attend
    layers = seen[: REDUCED["llm"]["num_hidden_layers"]]  # of the first pass, as of all
    for i, name in enumerate(("keys", "values")):
        rows = [layer[i][:, : actions.start].transpose(0, 1) for layer in layers]
        out[name] = torch.stack(rows)
    return {k: (v.float() if v.is_floating_point() else v).numpy() for k, v in out.items()}


def main(libs: Path, source: Path) -> None:
    peer = release(libs, source)
    line = torch.linspace
    torch.linspace = lambda *args: line(*args, device="cpu")  # of which numbers are asked
    with torch.device("meta"):
        full = build(peer, FULL)
    torch.linspace = line
    shapes = {name: tuple(w.shape) for name, w in full.state_dict().items()}
    write_names(GOLDEN / "beingh_full.json", shapes)
    results: dict[str, np.ndarray] = {}
    for dtype in (torch.float32, torch.bfloat16):
        network = build(peer, REDUCED)
        shapes = {name: tuple(w.shape) for name, w in network.state_dict().items()}
        network.load_state_dict(state_dict(shapes, ONES))
        found = stages(network.to(dtype))
        results |= found if dtype == torch.float32 else {f"bf16_{k}": found[k] for k in OUTPUTS}
    write_names(GOLDEN / "beingh_names.json", shapes)
    np.savez_compressed(GOLDEN / "beingh.npz", allow_pickle=False, **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
