"""The device engine computes what the network says; on the CPU, over the ops' references."""

import dataclasses
import itertools
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vlakern.errors import InputError
from vlakern.flow.solver import Frozen
from vlakern.infer.buckets import WHOLE, Bucket, whole_calls
from vlakern.infer.engine import Engine
from vlakern.infer.graph import run_all
from vlakern.testing import assert_accurate

LOW = {"fp32": torch.float32, "bf16": torch.bfloat16}
FAMILIES = ("tiny-pi0", "tiny-pi05", "tiny-smolvla")
CONFIGS = ("tiny", "tiny, scales and full masks", "tiny, state block last", "metaworld-small")
F64 = torch.float64
SIZE = (37, 42)  # of the scenes' camera images of "tiny" [px]


def check(lab: Any, found: Any, exact: Any, plain: Any, parts: Any = None) -> None:
    """Each layer's keys and values on their own."""
    for part in parts or lab.PARTS:
        one, right, usual = (getattr(made, part) for made in (found, exact, plain))
        for at in itertools.product(*map(range, one.shape[: 2 * (part == "kv")])):
            assert_accurate(one[at], right[at], usual[at].to(one.dtype), f"{part}{list(at)}")


def assert_same_bits(lab: Any, one: Any, other: Any) -> None:
    for part in lab.PARTS:
        assert torch.equal(getattr(one, part), getattr(other, part)), part


@pytest.mark.parametrize("restricted", [False, True], ids=["free", "frozen and masked"])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", [*CONFIGS, *FAMILIES])
def test_every_stage_is_as_accurate_as_torch(
    lab: ModuleType, device_lab: ModuleType, name: str, dtype: str, restricted: bool
) -> None:
    """Ragged prefixes, two candidates each: all results obey the 2x rule; memory was NaN before."""
    scene = lab.Scene(name)
    found = device_lab.run_device(device_lab.device_engine(scene, dtype, 2), scene, 2, restricted)
    exact = lab.run_network(scene, F64, 2, restricted)
    check(device_lab, found, exact, lab.run_network(scene, LOW[dtype], 2, restricted))


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_every_solver_is_as_accurate_as_torch(
    lab: ModuleType, device_lab: ModuleType, solver: str, steps: int
) -> None:
    """One step and an odd number of them, with frozen positions and masked slots."""
    scene = lab.Scene("tiny", steps=steps, solver=solver)
    found = device_lab.run_device(device_lab.device_engine(scene, "fp32"), scene, 1, True)
    exact, plain = (lab.run_network(scene, one, restricted=True) for one in (F64, torch.float32))
    check(device_lab, found, exact, plain, ("actions",))


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_quantised_weights_stay_near_the_network(
    lab: ModuleType, device_lab: ModuleType, dtype: str
) -> None:
    """int8 and fp8 are within a tenth of what they approximate, and not it."""
    scene = lab.Scene("tiny")
    found = device_lab.run_device(device_lab.device_engine(scene, dtype, 2), scene, 2)
    exact = lab.run_network(scene, F64, 2)
    for part in device_lab.PARTS:
        one, right = getattr(found, part).double(), getattr(exact, part)
        assert 1e-4 < (one - right).norm() / right.norm() < 0.1


def test_a_replay_is_the_programs_run_one_by_one(lab: ModuleType, device_lab: ModuleType) -> None:
    """The same bits; three replays, in which nothing is allocated and nothing read back."""
    scene, recorder = lab.Scene("tiny"), device_lab.StrictRecorder()
    recorded = device_lab.device_engine(scene, "bf16", 2, recorder=recorder)
    sizes = recorded.sizes
    parts = len(sizes.views) + len(sizes.tokens) + len(sizes.rows)
    assert (recorder.recorded, recorder.replayed) == (parts, 0)
    eager = device_lab.device_engine(scene, "bf16", 2)
    for restricted in (False, True):
        made = device_lab.run_device(recorded, scene, 2, restricted)
        assert_same_bits(device_lab, made, device_lab.run_device(eager, scene, 2, restricted))
    assert recorder.replayed == 6
    assert recorded.graphs.why_eager is None


@pytest.mark.parametrize("dtype", LOW)
def test_what_fills_a_size_up_changes_no_bit(
    lab: ModuleType, device_lab: ModuleType, dtype: str
) -> None:
    """One observation of four after all four, after other memory, and in an engine of its own."""
    scene = lab.Scene("tiny")
    engine, little = device_lab.device_engine(scene, dtype, 2, spare=3), scene.only(2)
    before = device_lab.run_device(engine, little, 2, True)
    device_lab.run_device(engine, scene, 2, True)
    assert_same_bits(device_lab, device_lab.run_device(engine, little, 2, True), before)
    device_lab.spoil(engine)
    assert_same_bits(device_lab, device_lab.run_device(engine, little, 2, True), before)
    alone = device_lab.run_device(device_lab.device_engine(little, dtype, 2), little, 2, True)
    exact = lab.run_network(little, F64, 2, True)
    check(device_lab, before, exact, lab.run_network(little, LOW[dtype], 2, True))
    check(device_lab, alone, exact, lab.run_network(little, LOW[dtype], 2, True))


def test_rows_that_fill_up_see_nothing_and_are_not_seen(
    lab: ModuleType, device_lab: ModuleType
) -> None:
    """Whatever stands in them: other words, states, noise and positions there, the same bits."""
    scene = lab.Scene("tiny").only(0)
    engine = device_lab.device_engine(scene, "fp32", spare=4)
    more = scene.batch()
    used = {"tokens": len(more.tokens_L), "order": len(more.semantic_order), "state": 1}
    values = {"tokens": 3, "order": 5, "state": 1e3}
    expected = device_lab.run_device(engine, scene)
    send, inbox = engine._prefix.send, engine._prefix

    def spoilt() -> None:
        for name, first in used.items():
            inbox.host[name][first:] = values[name]
        send()

    inbox.send = spoilt
    found = device_lab.run_device(engine, scene)
    assert bool((inbox.device["state"][1:] == 1e3).all())
    assert engine.sizes.of(tokens=used["order"])[0] > used["order"]
    assert_same_bits(device_lab, found, expected)


@pytest.mark.parametrize("where", ["record", "replay"])
def test_a_failure_falls_back_in_the_same_call_and_stays(
    lab: ModuleType, device_lab: ModuleType, where: str
) -> None:
    """One warning that names the error; the same bits, now and later, without another attempt."""
    scene = lab.Scene("tiny")
    expected = device_lab.run_device(device_lab.device_engine(scene, "fp32"), scene)
    recorder = device_lab.StrictRecorder(where, after=1)

    def build_and_run() -> Any:
        engine = device_lab.device_engine(scene, "fp32", recorder=recorder)
        return engine, device_lab.run_device(engine, scene)

    with pytest.warns(RuntimeWarning, match=f"CUDA graphs are off .*injected: {where}") as seen:
        engine, made = build_and_run()
    assert len([one for one in seen if "graphs" in str(one.message)]) == 1
    assert_same_bits(device_lab, made, expected)
    count = recorder.replayed
    assert_same_bits(device_lab, device_lab.run_device(engine, scene), expected)
    assert recorder.replayed == count == int(where == "replay")
    assert f"injected: {where}" in str(engine.graphs.why_eager)


def test_a_kernel_that_fails_is_not_a_recording_that_fails(
    lab: ModuleType, device_lab: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails without a recording, too, is raised at construction."""
    recorder = device_lab.StrictRecorder()
    monkeypatch.setattr(recorder, "warm_up", lambda program: [][0])
    with pytest.raises(IndexError):
        device_lab.device_engine(lab.Scene("tiny").only(0), "fp32", recorder=recorder)


def engine_over(lab: ModuleType, device_lab: ModuleType, scene: Any, **changes: Any) -> Engine:
    """The engine's calls over the device engine's stages, on a CPU."""
    limits = scene.limits(2)
    engine = Engine(
        lab.network(scene.name),
        max_batch=limits.observations,
        max_candidates=2,
        max_views=2,
        max_prefix=-(-limits.tokens // limits.observations),
        backend="torch",
    )
    engine._stages = device_lab.device_engine(scene, "fp32", 2, **changes)
    return engine


def without_pixels(scene: Any) -> Any:
    return dataclasses.replace(scene.batch(), pixels_V3SS=torch.empty(scene.views, 3, 0, 0))


def test_act_of_known_images_is_one_replay(lab: ModuleType, device_lab: ModuleType) -> None:
    """The bits of prepare, prefill and integrate; images of another size are prepared before."""
    scene = lab.Scene("tiny").only(1)
    recorder = device_lab.StrictRecorder()
    engine = engine_over(lab, device_lab, scene, recorder=recorder, image_sizes=[SIZE, (20, 40)])
    batch, noise = without_pixels(scene), scene.noise(2)
    first = scene.images()[0]
    other = np.ascontiguousarray(first[:20, :40])
    for images, launches in (([first, other], 1), ([other, first], 3)):
        engine.prepare(images)
        expected = engine.integrate(engine.prefill(batch), noise, n=2)
        before = recorder.replayed
        device_lab.spoil(engine._stages)
        assert engine.at_once(images, batch, 2) == (launches == 1)
        assert torch.equal(engine.act(images, batch, noise, n=2), expected)
        assert recorder.replayed - before == launches


def test_act_without_known_images_is_its_stages(lab: ModuleType, device_lab: ModuleType) -> None:
    """Every image is prepared by a kernel of its own; frozen positions and masks are data."""
    scene = lab.Scene("tiny").only(1)
    recorder = device_lab.StrictRecorder()
    engine = engine_over(lab, device_lab, scene, recorder=recorder)
    batch, images = without_pixels(scene), scene.images()
    rest = {"n": 2, "frozen": scene.frozen(2), "slot_mask": scene.slot_mask()}
    engine.prepare(images)
    expected = engine.integrate(engine.prefill(batch), scene.noise(2), **rest)
    before = recorder.replayed
    assert not engine.at_once(images, batch, 2)
    assert torch.equal(engine.act(images, batch, scene.noise(2), **rest), expected)
    assert recorder.replayed - before == 3


def test_recordings_are_few_and_counted(lab: ModuleType, device_lab: ModuleType) -> None:
    """Whole calls of images of known sizes alone, at most 16, and how long all of them took."""
    scene = lab.Scene("tiny").only(1)
    engines = [
        device_lab.device_engine(scene, "fp32", recorder=recorder, image_sizes=sizes)
        for recorder, sizes in ((Counter(), ()), (Counter(), [SIZE]))
    ]
    sizes = engines[0].sizes
    parts = len(sizes.views) + len(sizes.tokens) + len(sizes.rows)
    whole = len(whole_calls(sizes, engines[0].limits, scene.config.vision.tokens))
    assert 0 < whole <= WHOLE
    assert [one.graphs.recorded for one in engines] == [parts, parts + whole]
    assert all(one.graphs.recording_s > 0 for one in engines)


class Counter:
    """Records without running anything."""

    def warm_up(self, program: Any) -> None:
        pass

    def record(self, program: Any) -> Any:
        return lambda: run_all(program)


def test_act_of_a_size_that_is_no_whole_call(lab: ModuleType, device_lab: ModuleType) -> None:
    """Then its parts are replayed, to the same bits."""
    scene = lab.Scene("tiny").only(1)
    recorder = device_lab.StrictRecorder()
    engine = engine_over(lab, device_lab, scene, recorder=recorder, image_sizes=[SIZE])
    stages: Any = engine._stages
    args = (scene.images(), without_pixels(scene), scene.noise(2))
    expected = engine.act(*args, n=2)
    stages.graphs._programs.pop(next(k for k in stages.graphs._programs if isinstance(k, Bucket)))
    for key in [k for k in stages.graphs._programs if isinstance(k, Bucket)]:
        del stages.graphs._programs[key]
    before = recorder.replayed
    assert torch.equal(engine.act(*args, n=2), expected)
    assert recorder.replayed - before == 3


def test_pixels_that_are_given_are_not_images(lab: ModuleType, device_lab: ModuleType) -> None:
    """``act`` of a batch with pixels is the calls one by one, as in every engine."""
    scene = lab.Scene("tiny").only(1)
    engine = engine_over(lab, device_lab, scene)
    expected = engine.integrate(engine.prefill(scene.batch()), scene.noise(2), n=2)
    assert torch.equal(engine.act(scene.images(), scene.batch(), scene.noise(2), n=2), expected)


def test_another_prefix_does_not_overwrite_the_engines_own(
    lab: ModuleType, device_lab: ModuleType
) -> None:
    """A clone of an earlier prefix serves, and the last prefill's serves after it."""
    scene = lab.Scene("tiny")
    engine = engine_over(lab, device_lab, scene)
    first = engine.prefill(scene.batch()).clone()
    expected = engine.integrate(first, scene.noise())
    other = scene.only(3, 1)
    second = engine.prefill(other.batch())
    right = engine.integrate(second, other.noise())
    assert torch.equal(engine.integrate(first, scene.noise()), expected)
    assert torch.equal(engine.integrate(second, other.noise()), right)
    halves = dataclasses.replace(first, kv=first.kv.bfloat16())
    with pytest.raises(InputError, match=r"kv is torch\.bfloat16.*expected torch\.float32"):
        engine.integrate(halves, scene.noise())


def test_an_integration_that_fails_leaves_the_engines_own_prefix(
    lab: ModuleType, device_lab: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another prefix had its place meanwhile."""
    scene = lab.Scene("tiny")
    engine = engine_over(lab, device_lab, scene)
    other = engine.prefill(scene.batch()).clone()
    scene = scene.only(3, 1)
    own = engine.prefill(scene.batch())
    expected = engine.integrate(own, scene.noise())

    def fail(name: object) -> None:
        raise RuntimeError("no kernel")

    with monkeypatch.context() as broken:
        broken.setattr(engine._stages.graphs, "run", fail)  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match="no kernel"):
            engine.integrate(other, lab.Scene("tiny").noise())
    assert torch.equal(engine.integrate(own, scene.noise()), expected)


def test_a_prefix_longer_than_any_of_the_engines_own_is_refused(
    lab: ModuleType, device_lab: ModuleType
) -> None:
    """Its memory has a row for each state, too, but the tables of positions end before."""
    scene = lab.Scene("tiny").only(0)
    engine = engine_over(lab, device_lab, scene)
    own = engine.prefill(scene.batch()).clone()
    most = engine._stages.limits.tokens + 1  # type: ignore[attr-defined]
    kv = own.kv.new_zeros((*own.kv.shape[:2], most, own.kv.shape[3]))
    longer = dataclasses.replace(own, kv=kv, cu=torch.tensor([0, most], dtype=torch.int32))
    with pytest.raises(InputError, match=f"prefixes of {most} tokens"):
        engine.integrate(longer, scene.noise())


def test_calls_wait_for_each_other_on_any_stream(lab: ModuleType, device_lab: ModuleType) -> None:
    """Each begins after the end of the one before and marks its own, also if it is refused."""
    scene, said = lab.Scene("tiny").only(1), []
    engine = device_lab.device_engine(scene, "fp32")
    wait, record = (lambda: said.append("wait")), (lambda: said.append("record"))
    engine._done = SimpleNamespace(wait=wait, record=record)
    device_lab.run_device(engine, scene)
    assert said == ["wait", "record"] * 4
    with pytest.raises(InputError):
        engine.prepare([np.zeros((2, 2), np.uint8)])
    assert said == ["wait", "record"] * 5


def test_the_callers_tensors_stay_and_results_are_their_own(
    lab: ModuleType, device_lab: ModuleType
) -> None:
    """Noise and frozen actions are not written; a later call leaves an earlier result alone."""
    scene = lab.Scene("tiny")
    engine = engine_over(lab, device_lab, scene)
    prefix, noise, frozen = engine.prefill(scene.batch()), scene.noise(), scene.frozen()
    done = torch.arange(scene.config.chunk) < frozen.length_R[:, None]
    spoilt = frozen.action_RHA.masked_fill(~done[..., None], float("nan"))
    kept = [noise.clone(), spoilt.clone()]
    found = engine.integrate(prefix, noise, frozen=Frozen(spoilt, frozen.length_R.long()))
    copy = found.clone()
    engine.integrate(prefix, scene.noise(2), n=2)
    assert torch.equal(found, copy)
    assert torch.equal(noise, kept[0])
    assert torch.equal(spoilt.nan_to_num(7.0), kept[1].nan_to_num(7.0))
    assert torch.equal(found, engine.integrate(prefix, noise, frozen=frozen))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens_L": 500}, r"tokens must be in \[0, 512\)"),
        ({"semantic_order": 9999}, r"semantic_order must be in \[0, \d+\), of \d+ words and"),
        ({"semantic_order": -9999}, r"semantic_order must be in"),
        ({"state_RS": float("nan")}, "a state holds a value that is not finite"),
    ],
)
def test_a_refused_batch_leaves_no_trace(
    lab: ModuleType, device_lab: ModuleType, changes: dict[str, Any], message: str
) -> None:
    """One sentence, and the next good call gives the bits that it gave before."""
    scene = lab.Scene("tiny")
    engine = engine_over(lab, device_lab, scene)
    images, batch = scene.images(), without_pixels(scene)
    expected = engine.act(images, batch, scene.noise())
    bad = {name: getattr(batch, name) + value for name, value in changes.items()}
    with pytest.raises(InputError, match=message):
        engine.act(images, dataclasses.replace(batch, **bad), scene.noise())
    with pytest.raises(InputError, match=r"must be torch\.uint8"):
        engine.act([images[0] * 1.0, *images[1:]], batch, scene.noise())
    with pytest.raises(InputError, match="a prefix of 6 views, but found 5 images"):
        engine.act(images[1:], batch, scene.noise())
    assert torch.equal(engine.act(images, batch, scene.noise()), expected)
