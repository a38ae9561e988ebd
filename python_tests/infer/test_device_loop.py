"""The integration as one CUDA kernel: when it is taken, and that its code computes what the network
says, on the host with its warps as threads, and on a GPU.
"""

import importlib.util
import itertools
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vlakern.errors import InputError, Unsupported
from vlakern.infer import device_loop
from vlakern.infer.device_loop import BoundLoop, bind_loop, chosen_loop, loop_refusal
from vlakern.infer.engine import Engine
from vlakern.infer.graph_engine import GraphEngine
from vlakern.infer.packing import pack_model
from vlakern.ops import _native
from vlakern.ops._dispatch import Key
from vlakern.testing import assert_accurate, poison

ROOT = Path(__file__).parents[2]
SMALL = "metaworld-small"
STREAM = ("x", "velocity", "input", "embedded", "stream", "rounded", "qkv", "attended", "hidden")
WRITTEN = (*STREAM, "parts", "part_rows")


def unused(tensors: Any, numbers: Any) -> Callable[[int], object]:
    raise AssertionError("bound")


def test_nothing_that_was_not_measured_is_taken(
    device_lab: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``auto`` takes the kernel up to the table's rows of an architecture; the table is empty."""
    model = device_lab.packed_rows(SMALL, "bf16")
    assert device_loop.FASTER == {}
    assert chosen_loop("auto", model, 1) is None
    monkeypatch.setattr(device_loop, "FASTER", {90: 32})
    monkeypatch.setattr(device_loop, "key_for", lambda device: Key("cuda", 90))
    monkeypatch.setattr(device_loop, "needs_cuda", lambda key: None)
    assert [chosen_loop("auto", model, rows) is not None for rows in (1, 2, 3)] == [
        True,
        True,
        False,
    ]
    assert chosen_loop("graph", model, 1) is None
    assert chosen_loop("cuda", model, 4) is not None
    monkeypatch.setattr(device_loop, "needs_cuda", lambda key: "no GPU")
    assert chosen_loop("auto", model, 1) is None


@pytest.mark.parametrize(
    ("name", "dtype", "rows", "reason"),
    [
        (SMALL, "bf16", 5, "5 chunks of 16 positions are more than 64 rows"),
        (SMALL, "fp32", 1, "action.0.qkv is fp32 for rows; it takes bf16"),
        (SMALL, "int8", 1, "action.0.qkv is int8"),
        (SMALL, "fp8", 1, "action.0.qkv is fp8"),
        ("tiny", "bf16", 1, "head dim 16 is not one of"),
        (SMALL, "bf16", 4, None),
    ],
)
def test_what_it_does_not_do_is_refused(
    device_lab: ModuleType, name: str, dtype: str, rows: int, reason: str | None
) -> None:
    """With the reason; asked for by name that is an error."""
    model = device_lab.packed_rows(name, dtype)
    found = loop_refusal(model, rows)
    if reason is None:
        assert found is None
        return
    assert found is not None
    assert reason in found
    with pytest.raises(Unsupported, match="backend cuda of the integration refuses"):
        chosen_loop("cuda", model, rows)


def test_a_model_of_another_kind_is_refused(device_lab: ModuleType) -> None:
    """More layers than fit, widths that are no multiples of 16, and a GPU that is not there."""
    model = device_lab.packed_rows(SMALL, "bf16")
    config, mot = model.config, model.config.mot
    for changed, reason in (
        (replace(mot, layers=65), "65 layers are more than 64"),
        (replace(mot, activation="gelu_tanh"), "does not compute this model's activation"),
        (replace(mot, action=replace(mot.action, hidden=136)), "widths 136 and 512"),
    ):
        other = replace(model, config=replace(config, mot=changed))
        assert reason in str(loop_refusal(other, 1))
    with pytest.raises(Unsupported, match="needs an NVIDIA GPU, the tensors are on cpu"):
        chosen_loop("cuda", model, 1)


def test_the_engine_takes_it_by_name_alone(lab: ModuleType, device_lab: ModuleType) -> None:
    """An engine with the kernel has one call for an integration, one without has many."""
    scene = lab.Scene(SMALL).only(0)
    bound: list[dict[str, float]] = []

    def bind(tensors: Any, numbers: dict[str, float]) -> Callable[[int], object]:
        bound.append(numbers)
        return lambda stream: None

    engine = device_lab.device_engine(scene, "bf16", 2, loop=bind)
    for rows in engine.sizes.rows:
        assert [type(one) for one in engine.graphs._programs["integrate", rows]] == [BoundLoop]
    assert [one["chunks"] for one in bound] == list(engine.sizes.rows)
    plain = device_lab.device_engine(scene, "bf16", 2)
    assert len(plain.graphs._programs["integrate", 1]) > 50
    with pytest.raises(Unsupported, match=r"cannot run|refuses"):
        Engine(lab.network(SMALL), backend="cuda")


def test_it_leads_no_chunk_to_decided_actions(lab: ModuleType, device_lab: ModuleType) -> None:
    """Such calls are refused with the reason, and no others; sizes without it lead."""
    scene = lab.Scene(SMALL, steps=1).only(0)
    engine = device_lab.device_engine(scene, "bf16", loop=lambda *_: lambda stream: None)
    device_lab.run_device(engine, scene, 1, True)
    with pytest.raises(Unsupported, match="leads no chunk to decided actions; build the engine"):
        device_lab.run_device(engine, scene, 1, led=True)
    assert set(engine._not_led.values()) == {device_loop.NOT_LED}
    plain = device_lab.device_engine(scene, "bf16")
    assert set(plain._not_led.values()) == {None}


@pytest.mark.parametrize(
    ("tokens", "rows", "head_dim", "splits"),
    [(10, 1, 64, 1), (220, 1, 128, 2), (8 * 128, 1, 64, 8), (8 * 128, 4, 64, 8), (968, 1, 256, 8)],
)
def test_keys_are_divided_where_warps_have_many(
    device_lab: ModuleType, tokens: int, rows: int, head_dim: int, splits: int
) -> None:
    """Parts in which a warp has 16 keys, but no more than blocks are busy with, or 8."""
    model = device_lab.packed_rows(SMALL, "bf16")
    config = model.config
    other = replace(model, config=replace(config, mot=replace(config.mot, head_dim=head_dim)))
    assert device_loop.splits_of(other, rows, tokens) == splits
    many = replace(config.mot, q_heads=32, head_dim=head_dim)
    busy = replace(model, config=replace(config, mot=many))
    assert device_loop.splits_of(busy, rows, tokens) == min(splits, 128 // (32 * rows))


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kernel's code over threads, under the very face that the CUDA module gives it."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    import nanobind

    folder = Path(nanobind.__file__).parent
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    path = tmp_path_factory.mktemp("ode_loop") / f"_ode_loop_host{suffix}"
    sources = ["tests/ode_loop_module", "ode_loop/ode_loop_params", "common/tensor"]
    places = [ROOT / "csrc", folder / "include", folder / "ext/robin_map/include"]
    places.append(Path(sysconfig.get_paths()["include"]))
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"]
    command += [f"-I{place}" for place in places] + ["-o", str(path)]
    command += [str(ROOT / f"csrc/{source}.cpp") for source in sources]
    done = subprocess.run(
        [*command, str(folder / "src/nb_combined.cpp"), "-pthread"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("_ode_loop_host", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.OdeLoop


def spoil(device_lab: Any, engine: GraphEngine) -> None:
    """NaN in what a launch writes before it reads."""
    device_lab.spoil(engine)
    for rows in engine.sizes.rows:
        for name in WRITTEN:
            poison(engine.graphs._programs["integrate", rows][0].tensors[name])  # type: ignore


def check(lab: Any, found: Any, scene: Any, n: int, restricted: bool) -> None:
    exact = lab.run_network(scene, torch.float64, n, restricted).actions
    plain = lab.run_network(scene, torch.bfloat16, n, restricted).actions
    assert_accurate(found.actions.cpu(), exact, plain.to(torch.float32), "actions")


@pytest.mark.ci
@pytest.mark.parametrize(("solver", "steps"), [("euler", 4), ("midpoint", 2), ("heun", 1)])
def test_its_code_is_as_accurate_as_torch(
    lab: ModuleType, device_lab: ModuleType, on_host: Any, solver: Any, steps: int
) -> None:
    """Ragged prefixes, two candidates each, filled-up chunks, frozen positions, masked slots."""
    scene = lab.Scene(SMALL, steps=steps, solver=solver).only(1, 3)
    engine = device_lab.device_engine(scene, "bf16", 2, loop=on_host)
    for restricted in (False, True):
        spoil(device_lab, engine)
        found = device_lab.run_device(engine, scene, 2, restricted)
        check(lab, found, scene, 2, restricted)
    spoil(device_lab, engine)
    again = device_lab.run_device(engine, scene, 2, True)
    assert torch.equal(again.actions, found.actions)


@pytest.mark.ci
def test_one_observation_in_a_larger_size(
    lab: ModuleType, device_lab: ModuleType, on_host: Any
) -> None:
    """One chunk in room for three, whose other rows see nothing; and what Python hands over wrong
    is refused by name."""
    scene = lab.Scene(SMALL, steps=1).only(0)
    engine = device_lab.device_engine(scene, "bf16", 1, spare=2, loop=on_host)
    spoil(device_lab, engine)
    check(lab, device_lab.run_device(engine, scene), scene, 1, False)
    loop: Any = engine.graphs._programs["integrate", 1][0]
    rest = {name: one for name, one in loop.tensors.items() if not name.startswith("layer.")}
    for name in ("noise", "kv", "times"):
        turned = {**rest, name: loop.tensors[name].transpose(0, -1)}
        with pytest.raises(InputError, match=f"ode_loop: {name} must be"):
            bind_loop(on_host, engine.model, turned, 1, 1, "euler")
    with pytest.raises(InputError, match="ode_loop: the number chunks is missing"):
        on_host({name: _native.view(one) for name, one in loop.tensors.items()}, {})


@pytest.mark.gpu
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_gpu_kernel_is_accurate_and_repeats_its_bits(
    lab: ModuleType, device_lab: ModuleType, solver: Any
) -> None:
    """Recorded and by itself, against the fp64 network and beside the recorded kernels."""
    scene = lab.Scene(SMALL, solver=solver).only(1, 3)
    network = lab.network(SMALL).cuda()
    model = pack_model(network.config, network.state_dict().__getitem__, "bf16", isa="rows")
    lab.network(SMALL).cpu()
    settings = {"steps": scene.config.steps, "solver": solver}
    engine = GraphEngine(model, scene.limits(2), loop="cuda", **settings)
    graph = GraphEngine(model, scene.limits(2), loop="graph", **settings)
    alone = GraphEngine(
        model,
        scene.limits(2),
        loop="cuda",
        recorder=device_lab.StrictRecorder(strict=False),
        **settings,
    )
    assert engine.graphs.why_eager is None
    for restricted in (False, True):
        made = [
            device_lab.run_device(one, scene, 2, restricted)
            for one in (engine, alone, engine, graph)
        ]
        for found in made:
            check(lab, found, scene, 2, restricted)
        for one, other in itertools.pairwise(made[:3]):
            assert torch.equal(one.actions, other.actions)
