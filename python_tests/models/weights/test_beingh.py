"""Being-H0.5: every tensor of its files is used, and the network computes what its release does."""

from types import ModuleType
from typing import Any

import pytest
import torch

from vlakern.errors import CheckpointError, ConfigError
from vlakern.infer.engine import Engine
from vlakern.infer.graph_engine import GraphEngine
from vlakern.infer.packing import pack_model
from vlakern.models.presets import preset
from vlakern.models.sequence import pack
from vlakern.models.vla import VLA
from vlakern.models.weights.beingh import beingh_config, beingh_table
from vlakern.models.weights.family import native_shapes
from vlakern.models.weights.golden import STAGES, compare, distance, document_of, read_golden
from vlakern.models.weights.names import Binding, bind

ONES = ("norm1", "norm2", "layernorm", "norm.weight", "norm_mot_gen", ".ls1", ".ls2", "mlp1.0")
Shapes = dict[str, tuple[int, ...]]


def settings(full: bool, **changes: Any) -> dict[str, Any]:
    """What the release's config.json says, as far as it is read."""
    llm: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    llm |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 640}
    vit = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "image_size": 112}
    vit |= {"num_attention_heads": 4, "patch_size": 14}
    expert = {"hidden_size": 48, "intermediate_size": 80}
    if full:
        llm |= {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28}
        llm |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
        llm |= {"vocab_size": 151936}
        vit |= {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
        vit |= {"num_attention_heads": 16, "image_size": 448}
        expert = {"hidden_size": 1024, "intermediate_size": 3072}
    llm |= {"expert_config": expert, "rope_theta": 1000000, "rms_norm_eps": 1e-6}
    return {
        "llm_config": llm,
        "vit_config": vit,
        "force_image_size": 224 if full else 56,
        "downsample_ratio": 0.5,
        "action_chunk_length": 16,
        "num_inference_timesteps": 4,
        "use_expert": True,
        "use_flow_matching": True,
        "attn_mode": "causal",
    } | changes


def bound(shapes: Shapes, values: dict[str, Any]) -> Binding:
    config, positions = beingh_config(values, "here")
    return bind(beingh_table(config, positions), native_shapes(config), shapes, "here")


@pytest.mark.parametrize(("name", "width"), [("rethink-2b", 3072), ("rethink-2b-wide", 6144)])
def test_full_size_names(name: str, width: int, goldens: ModuleType) -> None:
    """Every tensor of a full-size file is used, the head that would predict words is not.

    The wider one has the same names and an expert whose MLP is twice as wide.
    """
    shapes = {
        one: tuple(width if size == 3072 and ".mlp_mot_gen." in one else size for size in shape)
        for one, shape in goldens.read_names(goldens.GOLDEN / "beingh_full.json").items()
    }
    values = settings(True)
    values["llm_config"]["expert_config"]["intermediate_size"] = width
    config, _ = beingh_config(values, "here")
    ours = preset(name)
    assert (config.vision, config.mot) == (ours.vision, ours.mot)
    assert (config.vocab_size, config.chunk, config.steps) == (151936, 16, 4)
    found = bound(shapes, values)
    used = {name for sources, _ in found.made.values() for name in sources}
    assert set(shapes) - used == {"language_model.lm_head.weight"}
    refined = shapes | {"mpg.gate.weight": (3,), "action_to_vlm_proj.bias": (2048,)}
    assert len(bound(refined, values).skipped) == 3


def network(goldens: ModuleType, dtype: torch.dtype) -> VLA:
    """The reduced network of the golden run, through the table."""
    shapes = goldens.read_names(goldens.GOLDEN / "beingh_names.json")
    with torch.device("meta"):
        made = VLA(beingh_config(settings(False), "here")[0])
    weight = bound(shapes, settings(False)).weights(goldens.state_dict(shapes, ONES).__getitem__)
    made.load_state_dict({name: weight(name).to(dtype) for name in made.state_dict()}, assign=True)
    return made.eval()


def test_every_stage_agrees(goldens: ModuleType) -> None:
    """In fp32 to 1e-4 of the release's own numbers; its positions are those of larger images."""
    golden = read_golden(goldens.GOLDEN / "beingh.npz")
    errors = compare(network(goldens, torch.float32), golden)
    assert max(errors.values()) < 1e-4, errors


def test_bf16_is_as_good_as_theirs(goldens: ModuleType) -> None:
    """At most twice as far from fp32 as the release's own bf16."""
    golden = read_golden(goldens.GOLDEN / "beingh.npz")
    errors = compare(network(goldens, torch.bfloat16), golden)
    worst = {stage: errors[stage] / golden.gap[stage] for stage in STAGES}
    assert max(worst.values()) < 2.0, worst


@pytest.mark.parametrize("device", ["cpu", "as a gpu"], indirect=True)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_engines_agree(goldens: ModuleType, device: str, dtype: str) -> None:
    """Each engine's chunk is the release's: 1e-4 in fp32, twice its gap in bf16."""
    golden, made = read_golden(goldens.GOLDEN / "beingh.npz"), network(goldens, torch.float32)
    config, given = made.config, golden.given
    isa = "n16" if device == "cpu" else "rows"
    model = pack_model(config, made.state_dict().__getitem__, dtype, isa=isa)
    doc = document_of(given["tokens"], given["parts"], len(given["images"]))
    state = torch.zeros(1, config.state_dim)
    state[0, : given["state"].shape[-1]] = torch.from_numpy(given["state"])
    batch = pack(config, [doc], torch.empty(len(given["images"]), 3, 0, 0), state)
    engine = Engine(model, max_views=len(given["images"]), steps=int(given["steps"]))
    noise = torch.from_numpy(given["noise"])[None].float()
    chunk = engine.act(list(given["images"]), batch, noise)[0]
    assert isinstance(engine._stages, GraphEngine) == (device != "cpu")
    most = 1e-4 if dtype == "fp32" else 2 * golden.gap["chunk"]
    assert distance(chunk.float().numpy(), golden.found["chunk"]) < most


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_expert": False}, "use_expert is False, only True"),
        ({"use_mpg": True, "mpg_lambda": 0.1}, "use_mpg is true"),
        ({"attn_mode": "causal_actionfull"}, "attn_mode is 'causal_actionfull'"),
        ({"force_image_size": None}, "force_image_size is 'None', expected int"),
        ({"llm_config": {"hidden_size": 64}}, "llm_config.num_attention_heads is 'None'"),
        ({"vit_config": []}, "vit_config.patch_size is 'None'"),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], message: str) -> None:
    """A switch that would change the actions is never passed over."""
    with pytest.raises(ConfigError, match=message):
        beingh_config(settings(False, **changes), "here")


def test_another_model_is_refused(goldens: ModuleType) -> None:
    """By the name of the tensor."""
    shapes = goldens.read_names(goldens.GOLDEN / "beingh_names.json")
    with pytest.raises(CheckpointError, match=r"holds 'extra', which is unknown"):
        bound(shapes | {"extra": (1,)}, settings(False))
