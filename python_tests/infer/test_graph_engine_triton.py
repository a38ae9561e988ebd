"""The device engine over Triton's kernels: interpreted on the smallest network, and on a GPU."""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from vlakern import env
from vlakern.infer.engine import Engine
from vlakern.infer.graph_engine import GraphEngine
from vlakern.infer.packing import pack_model
from vlakern.models import VLA, preset
from vlakern.ops import _torch
from vlakern.ops.shared_attention import triton_launch
from vlakern.testing import assert_accurate

LOW = {"fp32": torch.float32, "bf16": torch.bfloat16}
INTERPRETED = env.triton_interpret()
interpreted = pytest.mark.skipif(not INTERPRETED, reason="see test_in_interpreter")
TRITON = ("/triton/",)  # the interpreter allocates; what launches its kernels must not


def test_in_interpreter(run_interpreted: Callable[[str], None]) -> None:
    """The tests below named ``triton``, in a process where Triton interprets."""
    run_interpreted(__file__)


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans as on a GPU with so many multiprocessors that products and attention are split."""
    monkeypatch.setattr(_torch, "processors", lambda device: 132)
    monkeypatch.setattr(triton_launch, "processors", lambda device: 132)


def check(device_lab: Any, found: Any, exact: Any, plain: Any) -> None:
    for part in device_lab.PARTS:
        one, right, usual = (getattr(made, part) for made in (found, exact, plain))
        assert_accurate(one, right, usual.to(one.dtype), part)


@interpreted
@pytest.mark.parametrize("dtype", LOW)
def test_triton_programs_are_as_accurate_as_torch(
    lab: ModuleType, device_lab: ModuleType, like_a_gpu: None, dtype: str
) -> None:
    """The 2x rule for a replay in which launches allocate nothing and read nothing back."""
    scene = lab.Scene("least").only(3)
    recorder = device_lab.StrictRecorder(kernels=TRITON)
    engine = device_lab.device_engine(scene, dtype, ops="triton", recorder=recorder)
    found = device_lab.run_device(engine, scene, 1, True)
    assert recorder.replayed == 3
    plain = lab.run_network(scene, LOW[dtype], 1, True)
    check(device_lab, found, lab.run_network(scene, torch.float64, 1, True), plain)
    assert_same(device_lab, device_lab.run_device(engine, scene, 1, True), found)


@interpreted
@pytest.mark.parametrize("name", ["least pi0", "least pi05", "least smolvla"])
def test_triton_programs_of_other_kinds_are_as_accurate_as_torch(
    lab: ModuleType, device_lab: ModuleType, like_a_gpu: None, name: str
) -> None:
    """The 2x rule in bf16, with frozen positions and masked slots, in memory that was NaN."""
    scene = lab.Scene(name).only(3)
    found = device_lab.run_device(
        device_lab.device_engine(scene, "bf16", ops="triton"), scene, 1, True
    )
    plain = lab.run_network(scene, torch.bfloat16, 1, True)
    check(device_lab, found, lab.run_network(scene, torch.float64, 1, True), plain)


def assert_same(device_lab: Any, one: Any, other: Any) -> None:
    for part in device_lab.PARTS:
        assert torch.equal(getattr(one, part), getattr(other, part)), part


@interpreted
def test_triton_programs_give_a_filled_up_call_the_bits_of_an_exact_one(
    lab: ModuleType, device_lab: ModuleType
) -> None:
    """An engine that is exactly as large as the call, and one with room for more of everything.

    Both in one size's tiles: a kernel's order of sums may change with the number of rows.
    """
    scene = lab.Scene("least").only(3)
    exact = device_lab.device_engine(scene, "fp32", ops="triton")
    larger = device_lab.device_engine(scene, "fp32", spare=1, ops="triton")
    one, other = (device_lab.run_device(engine, scene) for engine in (exact, larger))
    assert exact.sizes.tokens[-1] < larger.sizes.tokens[0]
    assert_same(device_lab, one, other)


def one_action_layer(name: str) -> Any:
    """A preset's action expert of one layer, everything else as small as it can be."""
    tiny, whole = preset("tiny"), preset(name)
    mot = dataclasses.replace(whole.mot, layers=1, semantic=tiny.mot.semantic)
    small = {"vision": tiny.vision, "vocab_size": 8, "prompt": tiny.prompt, "steps": 1}
    return dataclasses.replace(whole, mot=mot, **small)


@interpreted
@pytest.mark.parametrize(
    ("name", "splits", "count"),
    [("tiny", 1, 8), ("rethink-2b", 132, 9), ("pi0", 132, 9), ("pi05", 132, 9)],
)
def test_triton_kernels_of_a_layer_step_are_counted(
    monkeypatch: pytest.MonkeyPatch, name: str, splits: int, count: int
) -> None:
    """8 kernels; 9 as an H200 splits them for one chunk, where attention and two products are too
    small for its multiprocessors: attention adds its parts in a kernel more, and the kernel that
    adds those of a product normalises the sum, too. Adaptive norms take none more."""
    from triton.runtime import interpreter

    names: list[str] = []
    monkeypatch.setattr(_torch, "processors", lambda device: splits)
    monkeypatch.setattr(triton_launch, "processors", lambda device: splits)
    monkeypatch.setattr(
        interpreter.GridExecutor, "__call__", lambda self, *a, **k: names.append(self.fn.__name__)
    )
    config = one_action_layer(name)
    with torch.no_grad():
        weights = {key: torch.zeros(one.shape) for key, one in VLA(config).state_dict().items()}
    model = pack_model(config, weights.__getitem__, "bf16", isa="rows")
    limits = lab_limits(config)
    engine = GraphEngine(model, limits, steps=1, solver="euler", ops="triton")
    names.clear()
    engine.graphs.run(("integrate", 1))
    # After the first norm a layer begins, and ends with the norm before the decoder.
    begin = names.index("norm_kernel") + 1
    ends = [i for i, kernel in enumerate(names) if kernel in ("norm_kernel", "add_norm_kernel")]
    layer = names[begin : ends[-1] + 1]
    assert names[-1] == "ode_step_kernel"
    assert len(layer) == count, layer
    assert layer.count("add_norm_kernel" if splits > 1 else "norm_kernel") == 2
    assert layer.count("attend_kernel") == layer.count("qkv_prep_kernel") == 1


def lab_limits(config: Any) -> Any:
    from vlakern.infer.buffers import Limits

    return Limits(1, 1, config.vision.tokens + 200, 1)


@interpreted
def test_triton_is_what_the_engine_takes_by_name(lab: ModuleType) -> None:
    """``backend="graph"`` on a CPU where Triton interprets: the network's actions."""
    scene = lab.Scene("least").only(3)
    limits = scene.limits()
    sizes = {"max_views": limits.views, "max_prefix": limits.tokens}
    engine = Engine(lab.network("least"), backend="graph", **sizes)
    assert isinstance(engine._stages, GraphEngine)
    found = engine.integrate(engine.prefill(scene.batch()), scene.noise())
    exact = lab.run_network(scene, torch.float64).actions
    assert_accurate(found, exact, lab.run_network(scene, torch.float32).actions)


@pytest.fixture
def on_gpu(lab: ModuleType, device_lab: ModuleType) -> Callable[..., Any]:
    """Device engines on a GPU, with CUDA graphs unless ``recorder`` is a strict one."""

    def made(scene: Any, dtype: str, n: int = 1, **changes: Any) -> GraphEngine:
        network = lab.network(scene.name).cuda()
        weights = network.state_dict()
        model = pack_model(network.config, weights.__getitem__, dtype, isa="rows")
        lab.network(scene.name).cpu()
        config = scene.config
        settings = {"steps": config.steps, "solver": config.solver} | changes
        return GraphEngine(model, scene.limits(n, 2), **settings)

    return made


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tiny", "metaworld-small"])
@pytest.mark.parametrize("dtype", LOW)
def test_gpu_replays_are_eager_to_the_bit_and_accurate(
    lab: ModuleType, device_lab: ModuleType, on_gpu: Any, name: str, dtype: str
) -> None:
    """Graphs against the same kernels one by one, against the fp64 network, and twice."""
    scene = lab.Scene(name)
    recorded = on_gpu(scene, dtype, 2)
    assert recorded.graphs.why_eager is None
    eager = on_gpu(scene, dtype, 2, recorder=device_lab.StrictRecorder(strict=False))
    for kind in ((False, False), (True, True), (True, False)):
        found, other, again = (
            on_host(device_lab.run_device(engine, scene, 2, *kind))
            for engine in (recorded, eager, recorded)
        )
        assert_same(device_lab, found, other)
        assert_same(device_lab, found, again)
        plain = lab.run_network(scene, LOW[dtype], 2, *kind)
        check(device_lab, found, lab.run_network(scene, torch.float64, 2, *kind), plain)


def on_host(made: Any) -> Any:
    parts = {name: getattr(made, name).cpu() for name in ("image_tokens", "kv", "actions")}
    return dataclasses.replace(made, **parts)


@pytest.mark.gpu
def test_gpu_act_is_its_stages(lab: ModuleType, on_gpu: Any) -> None:
    """One graph from images to actions gives the bits of three, and of other memory."""
    scene = lab.Scene("tiny").only(1)
    engine = on_gpu(scene, "bf16", 2, image_sizes=[one.shape[:2] for one in scene.images()])
    batch, images, noise = scene.batch(), scene.images(), scene.noise(2)
    index = lab.index_of(scene, 2)
    engine.prepare(images)
    engine.vision(len(images))
    engine.prefix(batch, len(images))
    expected = engine.integrate(noise, engine.kv, batch.cu_prefix.int(), index)
    for _ in range(3):
        assert torch.equal(engine.act(images, batch, noise, index), expected)


@pytest.mark.gpu
def test_gpu_calls_on_several_streams_take_turns(lab: ModuleType, on_gpu: Any) -> None:
    """They share memory: each call's actions are what they are on one stream."""
    scenes = [lab.Scene("tiny").only(i) for i in (0, 1)]
    engine = on_gpu(lab.Scene("tiny"), "bf16")
    calls = [(s.images(), s.batch(), s.noise(), lab.index_of(s, 1)) for s in scenes]
    expected = [engine.act(*call) for call in calls]
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in calls], []
    for i in [0, 1] * 20:
        with torch.cuda.stream(streams[i]):
            found.append((i, engine.act(*calls[i])))
    torch.cuda.synchronize()
    assert all(torch.equal(actions, expected[i]) for i, actions in found)


@pytest.mark.gpu
def test_gpu_failed_capture_falls_back(
    lab: ModuleType, device_lab: ModuleType, on_gpu: Any
) -> None:
    """A program that waits for the GPU cannot be captured: one warning, and the right actions."""
    scene = lab.Scene("tiny")
    engine, stream = on_gpu(scene, "fp32"), torch.cuda.current_stream()
    expected = on_host(device_lab.run_device(engine, scene))
    with pytest.warns(RuntimeWarning, match="CUDA graphs are off"):
        engine.graphs.add("waits", [torch.cuda.synchronize])
    torch.cuda.synchronize()
    assert torch.cuda.current_stream() == stream
    assert engine.graphs.why_eager is not None
    assert_same(device_lab, on_host(device_lab.run_device(engine, scene)), expected)


@pytest.mark.gpu
def test_gpu_is_what_the_engine_takes_by_itself(lab: ModuleType) -> None:
    """A network on a GPU: ``auto`` is graphs, with the network's own actions."""
    scene = lab.Scene("tiny").only(0)
    network = VLA(scene.config).eval()
    network.load_state_dict(lab.network("tiny").state_dict())
    engine = Engine(network.cuda())
    assert isinstance(engine._stages, GraphEngine)
    found = engine.integrate(engine.prefill(scene.batch()), scene.noise()).cpu()
    plain = lab.run_network(scene, torch.float32).actions
    assert_accurate(found, lab.run_network(scene, torch.float64).actions, plain)
