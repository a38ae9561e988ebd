"""A policy over the device engine, on the CPU in the place of a GPU."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vlakern
from vlakern.errors import Unsupported
from vlakern.infer import _clock, backends, policy
from vlakern.infer.engine import Engine
from vlakern.infer.graph import run_all
from vlakern.infer.graph_engine import GraphEngine
from vlakern.infer.policy import shipped_policies
from vlakern.types import ActionPrefix, Observation, PrefixForm

HERE = "cpu:0"  # not "cpu": the way of a GPU is taken


@pytest.fixture
def as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU passes for a GPU, the ops' references for its kernels."""
    monkeypatch.setattr(policy, "choose_device", lambda name: HERE)
    for room in (policy, backends):
        monkeypatch.setattr(room, "graph_refusal", lambda device, dtype="bf16": None)
    monkeypatch.setattr(backends, "GraphEngine", partial(GraphEngine, ops="reference"))


def looks(known: vlakern.Policy) -> list[Observation]:
    """The second has one camera less, and other words."""
    draw = np.random.default_rng(1)
    found = []
    for words, views in (("push the puck", known.views), ("open the drawer", known.views[:1])):
        images = {view: draw.integers(0, 256, (80, 96, 3), dtype=np.uint8) for view in views}
        state = draw.normal(size=known.robot.state_width).astype(np.float32)
        found.append(Observation(images, state, words))
    return found


@pytest.mark.parametrize("name", shipped_policies())
def test_a_policy_on_the_device_engine(as_a_gpu: None, name: str) -> None:
    """Chunks near those of the CPU's policy: alone, in a batch and as candidates; then fp8."""
    known = vlakern.load(name, device=HERE, dtype="fp32")
    policy_fp8 = vlakern.load(name, device=HERE, dtype="fp8")
    with pytest.MonkeyPatch.context() as undo:
        undo.setattr(policy, "choose_device", lambda name: "cpu")
        plain = vlakern.load(name, device="cpu", dtype="fp32")
    seen = looks(plain)
    for one, seeds in ((known, [5, 6]), (known, [7, 8])):
        found = one.act_batch(seen, seeds)
        expected = plain.act_batch(seen, seeds)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a.actions, b.actions, atol=2e-3)
    engine: Any = known._engine
    assert isinstance(engine._stages, GraphEngine)
    alone = known.act(seen[1], seed=6).actions
    np.testing.assert_allclose(alone, plain.act(seen[1], seed=6).actions, atol=2e-3)
    several = known.act_candidates(seen[0], 3, [1, 2, 3])
    single = plain.act_candidates(seen[0], 3, [1, 2, 3])
    for a, b in zip(several, single, strict=True):
        np.testing.assert_allclose(a.actions, b.actions, atol=2e-3)
    assert known.act(seen[0], seed=1).actions.tobytes() == known.act(seen[0], 1).actions.tobytes()
    rough = policy_fp8.act(seen[0], seed=1).actions
    assert np.isfinite(rough).all()
    assert policy_fp8.dtype == policy_fp8._model.dtype == "fp8"


class Recorder:
    """Replays the calls that it was given, and counts; a CPU has nothing to warm up."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def warm_up(self, program: Any) -> None:
        pass

    def record(self, program: Any) -> Any:
        self.recorded += 1
        return lambda: self._replay(program)

    def _replay(self, program: Any) -> None:
        self.replayed += 1
        run_all(program)


def test_a_policys_call_is_one_launch(
    as_a_gpu: None, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From images of the sizes that its first call brought; to the bit what its stages give.

    Alone, as candidates and in a batch; images of other sizes go stage by stage, and so does a
    call without a camera.
    """
    recorder = Recorder()
    made = partial(GraphEngine, ops="reference", recorder=recorder)
    monkeypatch.setattr(backends, "GraphEngine", made)
    known = vlakern.load(directory, device=HERE)
    seen = looks(known)
    calls = {
        "alone": lambda: [known.act(seen[0], seed=1)],
        "candidates": lambda: known.act_candidates(seen[0], 3, [1, 2, 3]),
        "batch": lambda: known.act_batch([seen[0]] * 2, [7, 8]),
        "alone again": lambda: [known.act(seen[0], seed=1)],
    }
    whole = ("preprocess", "model", "postprocess", "total")
    stages = ("preprocess", "vision", "prefix", "ode", "postprocess", "total")
    for name, call in calls.items():
        call()  # builds the engine
        before = recorder.replayed
        found = call()
        assert (name, recorder.replayed - before) == (name, 1)
        assert tuple(found[0].latency_ms) == whole
        parts = [found[0].latency_ms[stage] for stage in whole[:-1]]
        assert 0 < min(parts) < sum(parts) <= found[0].latency_ms["total"]
        with pytest.MonkeyPatch.context() as undo:
            undo.setattr(Engine, "at_once", lambda *args: False)
            expected = call()
        assert tuple(expected[0].latency_ms) == stages
        for a, b in zip(found, expected, strict=True):
            assert a.actions.tobytes() == b.actions.tobytes()
    before = recorder.recorded
    small = replace(seen[0], images={v: i[:60] for v, i in seen[0].images.items()})
    assert tuple(known.act(small, seed=1).latency_ms) == stages
    assert tuple(known.act(seen[1], seed=1).latency_ms) == stages
    assert recorder.recorded == before


def test_a_policys_prefixes_are_one_launch(
    as_a_gpu: None, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen, led or none, by turns: near the CPU engine's chunks, from one recording."""
    recorder = Recorder()
    made = partial(GraphEngine, ops="reference", recorder=recorder)
    monkeypatch.setattr(backends, "GraphEngine", made)
    known = vlakern.load(directory, device=HERE, dtype="fp32")
    with pytest.MonkeyPatch.context() as undo:
        undo.setattr(policy, "choose_device", lambda name: "cpu")
        plain = vlakern.load(directory, device="cpu", dtype="fp32")
    seen = looks(plain)[0]
    known.act(seen, seed=3)
    recorded, free = recorder.recorded, plain.act(seen, seed=3).actions
    decided = plain.act(seen, seed=4).actions[1:5]
    forms: list[PrefixForm | None] = ["cheap", None, "frozen", "cheap", None]
    for form in forms:
        prefix = None if form is None else ActionPrefix(decided, 2, form)
        before = recorder.replayed
        found = known.act(seen, seed=3, prefix=prefix).actions
        assert (recorder.replayed - before, recorder.recorded) == (1, recorded)
        expected = plain.act(seen, seed=3, prefix=prefix).actions
        np.testing.assert_allclose(found, expected, atol=2e-3)
        assert form is None or np.abs(found - free).max() > 0.05
    with pytest.raises(Unsupported, match="no backward pass"):
        known.act(seen, seed=3, prefix=ActionPrefix(decided, 2, "exact"))


def test_a_dtype_that_this_gpu_lacks(as_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with the reason; the network's own modules have no such weights."""
    monkeypatch.setattr(policy, "graph_refusal", lambda device, dtype: "the GPU is sm_80")
    name = shipped_policies()[0]
    with pytest.raises(Unsupported, match="'fp8' needs vlakern's own engine: the GPU is sm_80"):
        vlakern.load(name, device=HERE, dtype="fp8")
    fallen = vlakern.load(name, device=HERE, dtype="bf16")
    assert isinstance(fallen._model, torch.nn.Module)


def test_stages_are_timed_on_the_policys_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which need not be torch's current one."""
    waited: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    with _clock.Clock("cuda:1").stage("ode"):
        pass
    assert waited == ["cuda:1"]
