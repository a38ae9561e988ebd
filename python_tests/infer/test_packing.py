"""Packed weights: what is folded, how precisely, and what cannot be packed."""

import dataclasses
from types import ModuleType

import pytest
import torch

from vlakern.errors import CheckpointError, Unsupported
from vlakern.flow.solver import evaluation_times
from vlakern.infer.packing import (
    DTYPES,
    engine_numbers,
    modulation_table,
    not_looped,
    pack_arrays,
    pack_model,
    position_table,
    time_table,
)
from vlakern.models.mot import rotary
from vlakern.models.vla import time_embedding
from vlakern.ops.linear import PackedLinear
from vlakern.ops.linear.packed import ISA, ROWS

CONFIGS = ("tiny", "tiny, scales and full masks", "metaworld-small")


FAMILIES = ("tiny-pi0", "tiny-pi05", "tiny-smolvla")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tiny", *FAMILIES])
def test_large_products_have_the_dtype_and_small_ones_stay_bf16(
    lab: ModuleType, name: str, dtype: str
) -> None:
    """int8 is for the towers' and trunks' products alone; the edges keep bf16 or fp32."""
    model, small = lab.packed(name, dtype), "fp32" if dtype == "fp32" else "bf16"
    edges = ("vision.patch", "vision.stem", "state.", "action_in.", "action_out.")
    for key, matrix in model.matrices.items():
        assert matrix.kind == (small if key.startswith(edges) else dtype), key
    assert model.activation_dtype == (torch.float32 if dtype == "fp32" else torch.bfloat16)
    assert model.tensors["embed"].dtype == model.activation_dtype


def test_one_array_at_a_time_is_the_whole_model(lab: ModuleType) -> None:
    """The iterator gives each name once, and `seen` hears them in that order."""
    weights, config = lab.network("tiny").state_dict(), lab.network("tiny").config
    names = [name for name, _ in pack_arrays(config, weights.__getitem__, "bf16")]
    heard: list[str] = []
    model = pack_model(config, weights.__getitem__, "bf16", heard.append)
    assert heard == names
    assert sorted(names) == sorted([*model.matrices, *model.tensors])
    assert len(set(names)) == len(names)
    held = [
        one.data if isinstance(one, PackedLinear) else one
        for one in [*model.matrices.values(), *model.tensors.values()]
    ]
    assert model.nbytes == sum(one.numel() * one.element_size() for one in held)


@pytest.mark.parametrize("name", CONFIGS)
def test_folding_norms_and_scales_changes_no_product(lab: ModuleType, name: str) -> None:
    """W (w n + b) + c and s (W x + c), packed in fp32, against the modules in fp64."""
    network, model = lab.network_as(name, torch.float64), lab.packed(name, "fp32")
    block, linear = network.vision.blocks[0], network.vision.blocks[0].norm1.weight.shape[0]
    n = torch.randn(3, linear, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight, _, bias = model.matrices["vision.0.qkv"].unpack()
    assert bias is not None
    right = block.qkv(block.norm1.weight * n + block.norm1.bias)
    torch.testing.assert_close(n @ weight.double().T + bias.double(), right, rtol=0, atol=1e-5)
    weight, _, bias = model.matrices["vision.0.proj"].unpack()
    assert bias is not None
    scale = 1.0 if block.scale1 is None else block.scale1
    right = scale * block.proj(n)
    torch.testing.assert_close(n @ weight.double().T + bias.double(), right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*CONFIGS, "tiny-pi0", "tiny-smolvla"])
def test_in_bf16_norms_stay_apart_and_weights_keep_their_bits(lab: ModuleType, name: str) -> None:
    """A product of two numbers of bf16 is none: folded, every weight would be rounded once more."""
    network = lab.network_as(name, torch.bfloat16)
    model = pack_model(network.config, network.state_dict().__getitem__, "bf16", isa=ISA)
    action, block = network.mot.action.layers[0], network.vision.blocks[0]
    gate_up = torch.cat([action.gate_proj.weight, action.up_proj.weight])
    kept = {"vision.0.qkv": block.qkv.weight, "action.0.gate_up": gate_up}
    for key, weight in kept.items():
        assert torch.equal(model.matrices[key].unpack().weight, weight), key
    norms = {"vision.0.norm1": block.norm1, "vision.0.norm2": block.norm2}
    norms |= {"action.0.input_norm": action.input_norm, "action.0.post_norm": action.post_norm}
    norms |= {"action.norm": network.mot.action.norm}
    norms["semantic.1.input_norm"] = network.mot.semantic.layers[1].input_norm
    for key, norm in norms.items():
        assert torch.equal(model.tensors[key], norm.weight.float()), key
    rows = pack_model(network.config, network.state_dict().__getitem__, "bf16", isa=ROWS)
    kept = norms.keys() & rows.tensors.keys()
    # The kernel of a whole integration has norms without weights.
    looped = {key for key in norms if key.startswith("action.") and not not_looped(network.config)}
    assert kept == norms.keys() - looped


def test_the_first_action_product_is_folded_into_the_second(lab: ModuleType) -> None:
    """W2 [W1 x + b1, t] + b2 from the folded product and the time table, at every evaluation."""
    network, model = lab.network_as("tiny", torch.float64), lab.packed("tiny", "fp32")
    encoder = network.action_encoder
    x = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    folded, _, _ = model.matrices["action_in.first"].unpack()
    for solver, steps in (("euler", 4), ("midpoint", 3), ("heun", 7)):
        taus = torch.cat([evaluation_times(steps, solver), torch.ones(1)])
        table = time_table(model, steps, solver)
        assert table.shape == (len(taus), encoder.width)
        for tau, row in zip(taus, table, strict=True):
            t = time_embedding(tau.expand(5), encoder.width, encoder.time).double()
            right = encoder.w2(torch.cat([encoder.w1(x), t], 1))
            found = x @ folded.double().T + row.double()
            torch.testing.assert_close(found, right, rtol=0, atol=1e-5)


def test_the_modulation_table_is_what_the_norms_make_of_time(lab: ModuleType) -> None:
    """Scale, shift and gate of every norm at every evaluation and at τ = 1."""
    network, model = lab.network_as("tiny-pi05", torch.float64), lab.packed("tiny-pi05", "fp32")
    table = modulation_table(model, 3, "midpoint")
    norms = [
        norm for layer in network.mot.action.layers for norm in (layer.input_norm, layer.post_norm)
    ]
    norms.append(network.mot.action.norm)
    taus = torch.cat([evaluation_times(3, "midpoint"), torch.ones(1)])
    right = torch.stack([norm.dense(network.condition(taus)) for norm in norms], 1)
    torch.testing.assert_close(table.flatten(2).double(), right, rtol=0, atol=1e-5)
    assert table.shape == (7, 5, 3, 48)


def test_the_final_norm_of_vision_is_in_the_connector(lab: ModuleType) -> None:
    """Its weights and bias, once for each of the four patches of a token."""
    network = lab.network_as("tiny-smolvla", torch.float64)
    weight, _, bias = lab.packed("tiny-smolvla", "fp32").matrices["connector.0"].unpack()
    n = torch.randn(3, 4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm, assumed = network.vision.final_norm, bias.double()
    right = network.vision.connector((norm.weight * n + norm.bias).flatten(1))
    torch.testing.assert_close(n.flatten(1) @ weight.double().T + assumed, right, rtol=0, atol=1e-5)


def test_a_norm_before_a_norm_is_refused(lab: ModuleType) -> None:
    """A final norm of vision and a connector with one of its own: no engine has both."""
    network = lab.network("tiny")
    vision = dataclasses.replace(network.config.vision, final_norm=True)
    config = dataclasses.replace(network.config, vision=vision)
    with pytest.raises(Unsupported, match=r"final_norm before a connector.*through torch"):
        pack_model(config, network.state_dict().__getitem__, "bf16")


def test_the_class_token_is_in_its_place(lab: ModuleType) -> None:
    """Added to its own position alone; the weights it came from stay as they are."""
    network = lab.network("tiny")
    before = network.vision.position.detach().clone()
    place = lab.packed("tiny", "fp32").tensors["vision.place"]
    assert torch.equal(place[0], before[0] + network.vision.class_token.detach())
    assert torch.equal(place[1:], before[1:])
    assert torch.equal(network.vision.position, before)


def test_the_last_layer_of_a_prefix_has_keys_and_values_alone(lab: ModuleType) -> None:
    """Of the semantic expert no queries, output or MLP; of the action expert both."""
    matrices = lab.packed("tiny", "bf16").matrices
    last = {name for name in matrices if name.split(".")[1:2] == ["1"]} - {"connector.1", "state.1"}
    assert {name for name in last if name.startswith("semantic")} == {"semantic.1.kv"}
    rest = ("kv", "qkv", "o", "gate_up", "down")
    assert {name for name in last if name.startswith("action")} == {f"action.1.{r}" for r in rest}
    kv, qkv = (matrices[f"action.1.{one}"].unpack().weight for one in ("kv", "qkv"))
    assert torch.equal(qkv[-len(kv) :], kv)


def test_the_position_table_holds_every_position(lab: ModuleType) -> None:
    """Row p has the angles of position p, whatever the length of the table."""
    config = lab.network("tiny").config
    cos, sin = position_table(config, 40)
    right = rotary(torch.tensor([0, 7, 39]), config.mot.head_dim, config.mot.rope_theta)
    assert torch.equal(cos[[0, 7, 39]], right[0])
    assert torch.equal(sin[[0, 7, 39]], right[1])
    assert torch.equal(position_table(config, 8)[0], cos[:8])


def test_every_size_goes_to_native_code(lab: ModuleType) -> None:
    """Numbers alone, and those that a network may have in both forms are told apart."""
    tiny, small = (lab.network(name).config for name in ("tiny", "metaworld-small"))
    numbers = engine_numbers(tiny, 9)
    assert (numbers["steps"], numbers["vision.class_token"], numbers["causal_actions"]) == (9, 1, 1)
    other = engine_numbers(small, 4)
    assert (other["vision.class_token"], other["causal_actions"]) == (0, 0)
    assert [other[f"vision.stem.{i}"] for i in range(3)] == [32, 64, 128]
    assert all(isinstance(one, (bool, int, float)) for one in [*numbers.values(), *other.values()])


@pytest.mark.parametrize("name", ["vision.patch.bias", "mot.semantic.layers.1.q_norm.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(lab: ModuleType, name: str, value: float) -> None:
    """Wherever in the tensor."""
    network = lab.network("tiny")
    weights = dict(network.state_dict())
    spoilt = weights[name].clone()
    spoilt.view(-1)[-1] = value
    weights[name] = spoilt
    with pytest.raises(CheckpointError, match=f"tensor '{name}' holds values"):
        pack_model(network.config, weights.__getitem__, "bf16")


def test_an_unknown_dtype_is_refused(lab: ModuleType) -> None:
    """With the ones that there are."""
    network = lab.network("tiny")
    with pytest.raises(Unsupported, match="dtype 'fp8' is not supported; use fp32, bf16, int8"):
        pack_model(network.config, network.state_dict().__getitem__, "fp8")


def test_bf16_checkpoints_pack_to_the_same_bits(lab: ModuleType) -> None:
    """Weights that are bf16 already and the same numbers in fp32."""
    half = lab.network_as("tiny", torch.bfloat16)
    wide = {name: one.float() for name, one in half.state_dict().items()}
    one = pack_model(half.config, half.state_dict().__getitem__, "bf16")
    other = pack_model(half.config, wide.__getitem__, "bf16")
    for name, matrix in one.matrices.items():
        assert torch.equal(matrix.data, other.matrices[name].data), name
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name
