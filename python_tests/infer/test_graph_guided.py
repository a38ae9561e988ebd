"""Chunks that are led to decided actions on the device engine; on the CPU, over the ops' references
and, at last, Triton's interpreter."""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from vlakern import env
from vlakern.errors import InputError, Unsupported
from vlakern.infer.engine import Engine
from vlakern.ops.ode_step import BoundStep
from vlakern.testing import assert_accurate

F64 = torch.float64
LOW = {"fp32": torch.float32, "bf16": torch.bfloat16}
interpreted = pytest.mark.skipif(not env.triton_interpret(), reason="see test_in_interpreter")


def check(lab: Any, found: Any, scene: Any, dtype: str, n: int, restricted: bool) -> None:
    """The 2x rule, and far from where nothing leads."""
    exact, plain, free = (
        lab.run_network(scene, one, n, restricted, led).actions
        for one, led in ((F64, True), (LOW[dtype], True), (F64, False))
    )
    assert_accurate(found.actions, exact, plain.float(), "actions")
    assert (exact - free).abs().max() > 0.1


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize(
    ("name", "solver", "restricted"),
    [("tiny", "euler", False), ("tiny", "midpoint", True), ("tiny", "heun", True),
     ("tiny-pi05", "euler", True), ("tiny-smolvla", "euler", False)],
)  # fmt: skip
def test_guidance_is_as_accurate_as_torch(
    lab: ModuleType, device_lab: ModuleType, name: str, solver: Any, dtype: str, restricted: bool
) -> None:
    """Rows with prefixes of their own, filled up, with and without frozen positions and masks."""
    scene = lab.Scene(name, steps=3, solver=solver)
    engine = device_lab.device_engine(scene, dtype, spare=1)
    found = device_lab.run_device(engine, scene, 1, restricted, led=True)
    check(lab, found, scene, dtype, 1, restricted)


def test_calls_of_every_kind_alternate(lab: ModuleType, device_lab: ModuleType) -> None:
    """Free, frozen and led calls in any order have the bits of an engine of their own, from one
    recording; a call that is not led sends nothing of guidance."""
    scene, recorder = lab.Scene("tiny"), device_lab.StrictRecorder()
    engine = device_lab.device_engine(scene, "bf16", recorder=recorder)
    count, sent, send = recorder.recorded, [], engine._led.send
    engine._led.send = lambda: (sent.append(1), send())
    kinds = [(restricted, led) for restricted in (False, True) for led in (False, True)]
    alone = {
        kind: device_lab.run_device(device_lab.device_engine(scene, "bf16"), scene, 1, *kind)
        for kind in kinds
    }
    for kind in (*kinds, *kinds[::-1], kinds[1], kinds[0], kinds[3]):
        before = len(sent)
        found = device_lab.run_device(engine, scene, 1, *kind)
        assert torch.equal(found.actions, alone[kind].actions), kind
        assert len(sent) - before == kind[1]
    assert recorder.recorded == count


def test_only_the_rows_that_are_led_are(lab: ModuleType, device_lab: ModuleType) -> None:
    """A row of weight 0 has the bits of a free one; where guidance is 0 at most, all rows do."""
    scene = lab.Scene("tiny")
    engine = device_lab.device_engine(scene, "fp32")
    free = device_lab.run_device(engine, scene)
    led = device_lab.run_device(engine, scene, led=True)
    assert [bool((a == b).all()) for a, b in zip(led.actions, free.actions, strict=True)] == [
        False,
        False,
        True,
        False,
    ]
    none = dataclasses.replace(scene.guidance(), most=0.0)
    batch, index = scene.batch(), lab.index_of(scene, 1)
    where = (engine.kv, batch.cu_prefix.int(), index)
    found = engine.integrate(scene.noise(), *where, guidance=none)
    assert torch.equal(found, free.actions)


def test_nothing_leads_where_nothing_is_left(lab: ModuleType, device_lab: ModuleType) -> None:
    """Each evaluation but Heun's last, at tau = 1, is led, by how much its time says."""
    scene = lab.Scene("tiny", steps=2, solver="heun").only(0)
    engine = device_lab.device_engine(scene, "fp32")
    runs: Any = engine.graphs._programs["integrate", 1]
    led: list[Any] = [one.tensors.led for one in runs if isinstance(one, BoundStep)]
    assert [one and one.left for one in led] == [1.0, 0.5, 0.5, None]
    x, stage_x = (one[:1].data_ptr() for one in (engine.buffers.x, engine.buffers.stage_x))
    noise = engine._chunk.device["noise"].data_ptr()
    assert [one.at.data_ptr() for one in led[:3]] == [noise, stage_x, x]


def engine_over(lab: ModuleType, device_lab: ModuleType, scene: Any, **changes: Any) -> Engine:
    """The engine's calls over the device engine's stages, on a CPU."""
    limits = scene.limits(2)
    each = -(-limits.tokens // limits.observations)
    sizes = {"max_batch": limits.observations, "max_candidates": 2, "max_prefix": each}
    engine = Engine(lab.network(scene.name), backend="torch", **sizes)
    engine._stages = device_lab.device_engine(scene, "fp32", 2, **changes)
    return engine


def test_act_of_known_images_is_one_launch_with_guidance(
    lab: ModuleType, device_lab: ModuleType
) -> None:
    """The bits of prepare, prefill and integrate; stage by stage the same."""
    scene = lab.Scene("tiny").only(1)
    recorder, images = device_lab.StrictRecorder(), scene.images()
    sizes = [image.shape[:2] for image in images]
    engine = engine_over(lab, device_lab, scene, recorder=recorder, image_sizes=sizes)
    batch = dataclasses.replace(scene.batch(), pixels_V3SS=torch.empty(scene.views, 3, 0, 0))
    rest = {"n": 2, "guidance": scene.guidance(2)}
    engine.prepare(images)
    expected = engine.integrate(engine.prefill(batch), scene.noise(2), **rest)
    before = recorder.replayed
    assert torch.equal(engine.act(images, batch, scene.noise(2), **rest), expected)
    assert recorder.replayed - before == 1
    free = engine.act(images, batch, scene.noise(2), n=2)
    assert (free - expected).abs().max() > 0.05
    engine._stages._cameras.knows = lambda images: False  # type: ignore[attr-defined]
    assert torch.equal(engine.act(images, batch, scene.noise(2), **rest), expected)
    assert recorder.replayed - before == 5


def test_guidance_that_cannot_lead_is_refused(lab: ModuleType, device_lab: ModuleType) -> None:
    """Infinite weights, decisions and strength in one sentence; the exact form with its reason."""
    scene = lab.Scene("tiny").only(1)
    engine, good = engine_over(lab, device_lab, scene), scene.guidance()
    batch, images = scene.batch(), scene.images()
    without = dataclasses.replace(batch, pixels_V3SS=torch.empty(scene.views, 3, 0, 0))
    prefix, noise = engine.prefill(batch), scene.noise()
    expected = engine.integrate(prefix, noise, guidance=good)
    infinite = torch.full_like(noise, torch.inf)
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"weights_RHA": infinite}, InputError, "not from 0 to 1"),
        ({"decided_RHA": infinite}, InputError, "not finite"),
        ({"most": float("inf")}, InputError, "at most inf, expected a number"),
        ({"weights_RHA": good.weights_RHA[:, 1:]}, InputError, "expected the noise's"),
        ({"exact": True}, Unsupported, "have no backward pass"),
    ]
    for changes, kind, sentence in bad:
        guidance = dataclasses.replace(good, **changes)
        with pytest.raises(kind, match=sentence):
            engine.integrate(prefix, noise, guidance=guidance)
        with pytest.raises(kind, match=sentence):
            engine.act(images, without, noise, guidance=guidance)
    prefix = engine.prefill(batch)
    assert torch.equal(engine.integrate(prefix, noise, guidance=good), expected)


def test_in_interpreter(run_interpreted: Callable[[str], None]) -> None:
    """The tests below named ``triton``, in a process where Triton interprets."""
    run_interpreted(__file__)


@interpreted
def test_triton_guidance_is_as_accurate_as_torch(lab: ModuleType, device_lab: ModuleType) -> None:
    """The 2x rule for replays that allocate nothing and read nothing back; led, and then not."""
    scene = lab.Scene("least", solver="midpoint").only(3)
    recorder = device_lab.StrictRecorder(kernels=("/triton/",))
    engine = device_lab.device_engine(scene, "bf16", ops="triton", recorder=recorder)
    found = device_lab.run_device(engine, scene, 1, True, led=True)
    check(lab, found, scene, "bf16", 1, True)
    free = device_lab.run_device(engine, scene, 1, True).actions
    right, plain = (lab.run_network(scene, one, 1, True).actions for one in (F64, LOW["bf16"]))
    assert_accurate(free, right, plain.float(), "free actions")
