"""The benchmark of a training step runs, and refuses to time what computes something else."""

import contextlib
import copy
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from vlakern.models import VLA, vla
from vlakern.ops import _dispatch
from vlakern.ops.shared_attention import KvEnd
from vlakern.train.learner import moved
from vlakern.train.optimizer import in_bf16
from vlakern.train.step import Draws, Objective, counts

FILE = Path(__file__).parents[2] / "benchmarks/train/bench_step.py"
OPS = {"norm", "qkv_prep", "shared_attention", "flow_loss"}


@pytest.fixture
def bench() -> Iterator[ModuleType]:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("bench_step", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_step"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_step"]


def _forget() -> None:
    """Lets the dispatch decide, and say, everything anew."""
    _dispatch._resolve_under.cache_clear()
    _dispatch._resolve.cache_clear()


def test_it_measures_every_form(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates and ratios of the packed step and the padded ones, on ragged documents."""
    out = tmp_path / "rows.jsonl"
    words = ["bench_step", "--presets", "tiny", "tiny", "--samples", "6", "--repeats", "1"]
    # The clock that a GPU is waited for: asked for each form and each preset.
    asked: list[str] = []
    monkeypatch.setattr(bench, "clock_of", lambda device: asked.append(device) or bench.time.time)
    monkeypatch.setattr(sys, "argv", [*words, "--json", str(out)])
    threads = torch.get_num_threads()
    _forget()
    bench.main()
    torch.set_num_threads(threads)
    row, again = map(json.loads, out.read_text().splitlines())
    assert asked == ["cpu", "cpu"]
    assert row["samples_per_s"].keys() == row["ratios"].keys() == again["ratios"].keys()
    assert {"packed", "padded"} < set(row["ratios"])
    assert row["ratios"]["packed"] == 1.0
    assert row["prefix_tokens"][0] < row["prefix_tokens"][2]
    assert row["device"] == "cpu"
    assert {"commit", "machine", "layers", "weights"} <= row.keys()
    assert row["machine"]["torch"] == torch.__version__
    assert row["backends"].keys() == OPS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cuda", "--clock", "cpu"], "does not see what a GPU does"),
        pytest.param(
            ["--device", "cuda"],
            "torch finds no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_words_that_cannot_be_measured(
    bench: ModuleType,
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A clock of the processor, and a GPU that is not there."""
    monkeypatch.setattr(sys, "argv", ["bench_step", *words])
    with pytest.raises(SystemExit):
        bench.main()
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny", "metaworld-small"])
def test_forms_are_one_computation(bench: ModuleType, name: str) -> None:
    """Loss and gradients agree in fp32 for both masks; a changed weight is seen."""
    bench.check(name, 3, "cpu")
    padded = bench.Contest.padded_loss

    def off(self: object, *args: object) -> torch.Tensor:
        return padded(self, *args) * 1.001

    bench.Contest.padded_loss = off
    with pytest.raises(AssertionError, match=r"padded: loss .* beside"):
        bench.check(name, 3, "cpu")


@pytest.mark.parametrize("bf16", [True, False])
def test_triton_would_serve_every_op_of_the_step(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    """The same cases with tensors on a GPU of sm_90, forward and backward: none falls back."""
    asked: set[tuple[str, _dispatch.Key]] = set()
    resolve = _dispatch._resolve_under

    def listens(written: Any, op: str, key: _dispatch.Key, backend: str) -> Any:
        asked.add((op, key))
        return resolve(written, op, key, backend)

    monkeypatch.setattr(_dispatch, "_resolve_under", listens)
    train = dataclasses.replace(bench.training_of("tiny"), bf16=bf16)
    contest = bench.Contest("tiny", train, 3)
    objective = contest.parts["packed"][0]
    if bf16:
        in_bf16(objective)
    contest.packed_loss(objective).backward()
    assert {op for op, _ in asked} == OPS
    assert any("backward" in key.flags for _, key in asked)
    for op, key in asked:
        there = dataclasses.replace(key, device="cuda", arch=90)
        assert _dispatch.refusals(op, there)["triton"] is None, (op, key)


def _elsewhere(value: Any, mode: FakeTensorMode) -> Any:
    """A record whose tensors have shapes alone and live on a device that is not the host."""
    if isinstance(value, torch.Tensor):
        return FakeTensor(mode, value.to("meta"), torch.device("meta"))
    if isinstance(value, KvEnd):
        other = copy.copy(value)
        for name, one in vars(value).items():
            object.__setattr__(other, name, _elsewhere(one, mode))
        return other
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        return type(value)(**{name: _elsewhere(one, mode) for name, one in fields.items()})
    return value


def test_a_step_mixes_no_tensor_of_the_host(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything on another device all forms come to their gradients, which no tensor made on
    the host in between would let them: torch refuses to compute on two devices."""
    config, train = bench.shape_of("tiny"), bench.training_of("tiny")
    train = dataclasses.replace(train, bf16=False)
    batch, padded = bench.make_batch(config, 3, 0), bench.padded()
    draws, samples = Draws(1, torch.arange(3)), train.flow_samples
    index = torch.arange(3).repeat_interleave(samples)
    layout = vla.action_layout(config, batch.prefix.cu_prefix, index, config.chunk)
    drawn = (torch.randn(3, samples, config.chunk, config.action_dim), torch.rand(3, samples))
    mode = FakeTensorMode()
    given = (batch, draws, counts(batch, train, draws))
    there = tuple(_elsewhere(one, mode) for one in given)
    dense = _elsewhere(padded.pad(config, batch, samples), mode)
    layout, *drawn = (_elsewhere(one, mode) for one in (layout, *drawn))
    objective = Objective(VLA(config), train)
    for module in objective.modules():
        for name, one in module._parameters.items():
            if one is not None:
                module._parameters[name] = torch.nn.Parameter(_elsewhere(one.detach(), mode))
    # Its values are checked on the host; autocast knows no device without arithmetic.
    monkeypatch.setattr(vla, "action_layout", lambda *_: layout)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    with mode:
        objective(*there)["loss"].backward()
        for explicit in (False, True):
            aside = (objective.foresight, train.foresight, explicit)
            padded.loss(objective.model, dense, *drawn, *aside).backward()
    # First and last on the way: the tower's patches and the decoder.
    assert objective.model.vision.patch.weight.grad is not None
    assert all(one.grad is not None for one in objective.model.action_decoder.parameters())
    host = moved(batch, torch.device("cpu"))
    with mode, pytest.raises((RuntimeError, AssertionError)):
        objective(host, *there[1:])
