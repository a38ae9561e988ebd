"""What int8 and fp8 cost: by hand, layer by layer as the engines pack, and in the actions."""

import dataclasses
from pathlib import Path

import pytest
import torch

import vlakern
from vlakern.errors import InputError, Unsupported
from vlakern.infer import quantisation
from vlakern.infer.directories import policy_directory
from vlakern.infer.packing import pack_model
from vlakern.infer.quantisation import (
    QuantisationReport,
    measure_quantisation,
    product_errors,
    quantised_products,
    seeded_observations,
)
from vlakern.models.presets import preset
from vlakern.models.vla import VLA
from vlakern.models.weights import read
from vlakern.ops.linear.packed import ROWS

NAME = "metaworld-small"


def test_a_product_by_hand() -> None:
    """Weights [1, 0.5] are 127 and 64 steps of 1/127, inputs [127, 63.4] are 127 and 63 of 1."""
    x, weight = torch.tensor([[127.0, 63.4]]), torch.tensor([[1.0, 0.5]])
    of_weight, of_product, of_bf16 = product_errors(x, weight, "int8")
    assert of_weight == pytest.approx((64 / 127 - 0.5) / 1.25**0.5, rel=1e-4)
    found, exact = (127 * 127 + 63 * 64) / 127, 127 + 31.7
    assert of_product == pytest.approx((found - exact) / exact, rel=1e-3)
    # 63.4 is 63.5 in bf16, and 158.75 is 159.
    assert of_bf16 == pytest.approx((159 - exact) / exact, rel=1e-3)


def test_what_fits_the_steps_costs_nothing() -> None:
    """Integers whose largest is 127, and powers of two in e4m3."""
    x = torch.tensor([[127.0, -3.0, 0.0], [0.0, 0.0, 0.0], [127.0, 1.0, 5.0]])
    assert product_errors(x, torch.tensor([[-127.0, 2.0, 9.0]]), "int8")[:2] == (0.0, 0.0)
    powers = torch.tensor([[448.0, 2.0, 0.5]])
    assert product_errors(powers, powers, "fp8")[:2] == (0.0, 0.0)


@pytest.mark.parametrize(("dtype", "isa"), [("int8", None), ("fp8", ROWS)])
def test_layers_are_quantised_as_the_engines_pack_them(dtype: str, isa: str | None) -> None:
    """The integers and scales of every product are those of the packed weights, norms folded."""
    network = read(policy_directory(NAME)).model
    packed = pack_model(network.config, network.state_dict().__getitem__, dtype, isa=isa)
    ours = {product.name: product for product in quantised_products(network, dtype)}
    joined = {
        "vision.1.fc1": ["vision.blocks.1.fc1"],
        "vision.0.qkv": ["vision.blocks.0.qkv"],
        "connector.0": ["vision.connector.1"],
        "connector.1": ["vision.connector.3"],
        "semantic.0.qkv": [f"mot.semantic.layers.0.{one}_proj" for one in "qkv"],
        "semantic.1.gate_up": [f"mot.semantic.layers.1.{one}_proj" for one in ("gate", "up")],
        "action.2.o": ["mot.action.layers.2.o_proj"],
        "action.3.down": ["mot.action.layers.3.down_proj"],
    }
    for name, parts in joined.items():
        levels, scale, _ = packed.matrices[name].unpack()
        assert scale is not None
        assert torch.equal(levels.float(), torch.cat([ours[one].levels.float() for one in parts]))
        assert torch.equal(scale, torch.cat([ours[one].w_scale for one in parts]))


@pytest.fixture(scope="module")
def reports() -> dict[str, QuantisationReport]:
    """Both dtypes on the same two observations."""
    seen = seeded_observations(vlakern.load(NAME, device="cpu"), 2, 5)
    return {one: measure_quantisation(NAME, one, seen, noises=2) for one in ("int8", "fp8")}


def test_every_large_layer_is_reported(reports: dict[str, QuantisationReport]) -> None:
    """Each once; int8 is worse than bf16 and better than fp8, and none is nonsense."""
    config = vlakern.load(NAME, device="cpu")._records.config
    # The semantic expert's last layer makes keys and values alone.
    count = 4 * config.vision.layers + 2 + 2 * 7 * config.mot.layers
    unused = {f"mot.semantic.layers.{config.mot.layers - 1}.{one}" for one in UNUSED}
    for report in reports.values():
        assert len({layer.name for layer in report.layers}) == len(report.layers) == count
        for layer in report.layers:
            if layer.name in unused:
                assert layer.product is None
            else:
                assert layer.product is not None
                assert layer.bf16 is not None
                assert 0 < layer.bf16 < layer.product < 0.1, layer
                assert 0 < layer.weight < 0.05
    for eight, float8 in zip(reports["int8"].layers, reports["fp8"].layers, strict=True):
        assert eight.weight < float8.weight


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
@pytest.mark.parametrize("name", ["tiny-pi0", "tiny-pi05", "tiny-smolvla"])
def test_other_families_are_quantised_as_they_are_packed(name: str, dtype: str) -> None:
    """Every large matrix of their packed weights is some of the report's layers, bit by bit."""
    torch.manual_seed(0)
    network = VLA(preset(name)).eval()
    for one in network.parameters():
        one.data += 0.1 * torch.randn_like(one)  # norms that are not 1
    isa = ROWS if dtype == "fp8" else None
    packed = pack_model(network.config, network.state_dict().__getitem__, dtype, isa=isa)
    ours = {
        tuple(product.levels.float().flatten()[:64].tolist()): product
        for product in quantised_products(network, dtype)
    }
    found = 0
    for matrix in packed.matrices.values():
        if matrix.kind != dtype:
            continue
        levels, scale, _ = matrix.unpack()
        assert scale is not None
        product = ours[tuple(levels.float().flatten()[:64].tolist())]
        rows = len(product.levels)
        assert torch.equal(levels.float()[:rows], product.levels.float())
        assert torch.equal(scale[:rows], product.w_scale)
        found += 1
    assert found > 4 * network.config.vision.layers + 4 * network.config.mot.layers


UNUSED = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_actions_move_a_little(reports: dict[str, QuantisationReport]) -> None:
    """More than by bf16, in units of the data's spread; where the numbers come from is said."""
    assert (reports["int8"].engine, reports["fp8"].engine) == ("native", "emulated")
    for report in reports.values():
        assert (report.observations, report.noises) == (2, 2)
        assert 0 < report.bf16.mean < report.actions.mean < 0.2
        assert report.actions.mean < report.actions.p99 <= report.actions.max < 2


def test_the_emulation_is_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the engine int8 is emulated, and its error is that of the engine."""
    seen = seeded_observations(vlakern.load(NAME, device="cpu"), 2, 5)
    native = measure_quantisation(NAME, "int8", seen, noises=2)
    whole = quantisation.load

    def without(directory: str | Path, device: str, dtype: str) -> object:
        if dtype == "int8":
            raise Unsupported("no engine")
        return whole(directory, device=device, dtype=dtype)

    monkeypatch.setattr(quantisation, "load", without)
    emulated = measure_quantisation(NAME, "int8", seen, noises=2)
    assert (native.engine, emulated.engine) == ("native", "emulated")
    assert emulated.actions.mean == pytest.approx(native.actions.mean, rel=0.4)
    assert dataclasses.astuple(emulated)[-1] == dataclasses.astuple(native)[-1]


def test_what_cannot_be_measured_is_refused() -> None:
    """One sentence each."""
    with pytest.raises(InputError, match="dtype is 'bf16', expected one of int8, fp8"):
        measure_quantisation(NAME, "bf16")
    with pytest.raises(InputError, match="noises is 0"):
        measure_quantisation(NAME, noises=0)
