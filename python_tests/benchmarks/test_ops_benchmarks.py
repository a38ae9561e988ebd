"""Every benchmark of an op starts, and its cases pass through the contest."""

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlakern.ops.linear.limits import ColdMemory

FOLDER = Path(__file__).parents[2] / "benchmarks" / "ops"
sys.path.insert(0, str(FOLDER))
contest, engines, plain, rivals = map(import_module, ("contest", "engines", "plain", "rivals"))

SCRIPTS = sorted(
    path.name
    for path in FOLDER.glob("*.py")
    if path.name.startswith("bench_") or path.name == "gpu_baselines.py"
)
OPS = [name.removeprefix("bench_").removesuffix(".py") for name in SCRIPTS if "bench_" in name]
# Of CASES, one that is small and that the benchmark's module in plain PyTorch covers.
SMALL = {"linear": 1, "flow_loss": 2, "qkv_prep": 5, "norm": 3, "image_prep": 2}
SMALL |= {"shared_attention": 7, "ode_step": 3, "action_unembed": 1}
WITH_GRADIENTS = ("norm", "qkv_prep", "shared_attention")
EAGER = ("eager bf16", "eager fp32")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_says_how_it_is_used(script: str) -> None:
    """``--help`` ends with exit code 0 and prints the usage."""
    command = [sys.executable, str(FOLDER / script), "--help"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("usage:")


def small_entries(op: str) -> list[Callable[[Any], Any]]:
    """Makers of the entries of one small case."""
    make = import_module(f"bench_{op}").make_entry
    cases: Any = import_module(f"vlakern.ops.{op}.cases")
    if op == "action_decode":
        return [partial(make, *cases.BENCH[3])]
    case = cases.CASES[SMALL.get(op, 0)]
    if op == "flow_loss":
        return [partial(make, case, face) for face in cases.FACES]
    if op == "shared_attention":
        case = cases.Case("4 on 9", 4, 2, 8, ((1, 3),), (9,), (0,))
        return [partial(make, case, kind) for kind in ("bf16", "fp32")]
    return [partial(make, case)]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_a_small_case_of_every_op(op: str, backward: bool) -> None:
    """Each way of calling an op has a row in which torch's eager modes agree and are timed."""
    if backward and op not in WITH_GRADIENTS:
        pytest.skip("no gradients are timed")
    how = contest.How(backward=backward, repeats=1)
    for make in small_entries(op):
        entry = make(how)
        rows = contest.compare(entry, EAGER, how)
        assert [row.way for row in rows] == list(entry.ours)
        for row in rows:
            assert row.op == op
            assert {name for name in row.absent if name.startswith("eager fp32")} == set()
            assert any(name.startswith("eager fp32") for name in row.over)
            numbers = (row.microseconds, row.gigabytes_per_second, row.of_limit, *row.over.values())
            assert all(math.isfinite(one) and one > 0 for one in numbers), row
            assert row.case in contest.line(row)


@pytest.mark.parametrize("op", OPS)
def test_every_benchmark_takes_the_whole_table(op: str) -> None:
    """Every rival of the table takes part beside every op, or its absence has a reason."""
    how = contest.How(repeats=1)
    entry = small_entries(op)[0](how)
    _, absent = contest.contenders(
        entry, ("openvino bf16", "openvino fp32", "onnxruntime fp32"), how
    )
    for reason in absent.values():
        assert reason.split(":")[0] in (rivals.ABSENT, rivals.INEXPRESSIBLE)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def entry_of(**words: Any) -> Any:
    """x -> 2 x, with counts that a test chooses."""
    x = torch.linspace(-1, 1, 4096)
    given: dict[str, Any] = {"operations": 4096, "reads": x.nbytes, "writes": x.nbytes}
    task = plain.Plain({"": Twice()}, (x,))
    ours = {"vlakern": lambda: lambda: x + x}
    return contest.Entry("twice", "a case", "fp32", lambda: None, ours, task, **given | words)


def test_the_limit_is_the_larger_of_two() -> None:
    """Many operations: the peak's time; few: the memory's; never their sum or the smaller."""
    how = contest.How(repeats=1)
    few, many = (contest.compare(entry_of(operations=n), (), how)[0] for n in (1, 10**10))
    assert (few.limit, many.limit) == ("memory", "peak")
    assert few.of_limit == few.of_memory > few.of_peak
    assert many.of_limit == many.of_peak > many.of_memory


def test_a_wrong_op_is_not_timed() -> None:
    """The op's own check comes first."""

    def wrong() -> None:
        raise AssertionError("off by one")

    with pytest.raises(AssertionError, match="off by one"):
        contest.compare(replace(entry_of(), check=wrong), (), contest.How(repeats=1))


def rival(make: Callable[[Any], Any], **words: Any) -> Any:
    return rivals.Rival(make, "fp32", **words)


def test_a_rival_is_timed_only_if_it_is_right() -> None:
    """A wrong, an absent and an unable rival have a reason; details stand after a colon."""
    task = entry_of().plain
    x = task.inputs[0]

    def unable(task: Any) -> Any:
        raise RuntimeError("no such operation")

    assert rivals.verdict(rival(lambda task: lambda: 2 * x), task, "") == ""
    assert rivals.verdict(rival(lambda task: lambda: 2.1 * x), task, "") == "wrong by 5.0e-02"
    words = rivals.verdict(rival(unable), task, "")
    assert words == "inexpressible: RuntimeError no such operation"
    absent = rival(unable, needs=("a_module_that_nobody_has",))
    assert rivals.verdict(absent, task, "") == "not installed"
    backward = replace(task, passes="backward")
    assert rivals.verdict(rival(unable), backward, "") == "no gradients"
    line = contest.line(
        contest.compare(entry_of(others={"mine": rival(unable)}), (), contest.How(repeats=1))[0]
    )
    assert "mine: inexpressible)" in line


def test_gradients_are_compared() -> None:
    """The gradient of 2 x is 2 everywhere: a rival that gives x's is refused, torch's is taken."""
    task = replace(entry_of().plain, passes="backward")
    assert rivals.verdict(rivals.RIVALS["eager fp32"], task, "") == ""
    ones = rival(lambda task: lambda: torch.ones(4096), gradients=True)
    assert rivals.verdict(ones, task, "").startswith("wrong by")


def test_random_modules_are_checked_with_given_numbers() -> None:
    """A module that draws is judged by its twin that does not; both must run."""

    class Drawn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    task = plain.Plain({"": Drawn()}, (torch.ones(8),), checked=Twice())
    assert rivals.verdict(rivals.RIVALS["eager fp32"], task, "") == ""
    assert rivals.verdict(rivals.RIVALS["eager fp32"], replace(task, checked=None), "") != ""


@pytest.mark.parametrize("passes", ["forward", "both"])
def test_weights_are_frozen_while_compiling(passes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch compiles at the first call: until then freezing is on, but for gradients."""
    config: Any = import_module("torch._inductor.config")
    seen: list[bool] = []

    def compiled(module: nn.Module, **words: Any) -> Callable[..., Any]:
        def run(*given: Tensor) -> Any:
            seen.append(config.freezing)
            return module(*given)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    rivals.inductor.cache_clear()
    task = replace(entry_of().plain, passes=passes)
    assert rivals.verdict(rivals.RIVALS[rivals.COMPILED], task, "") == ""
    rivals.inductor.cache_clear()
    assert seen[0] == (passes == "forward")


class Failure(Exception):
    """What a stub raises for a graph that it does not know."""


def installed(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """A module of this name that can be found and imported."""
    module = ModuleType(name)
    module.__spec__ = import_module("importlib.machinery").ModuleSpec(name, None)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def with_onnxruntime(monkeypatch: pytest.MonkeyPatch, run: Callable[[Any], Any]) -> None:
    """onnxruntime that computes ``run`` of its first input instead of a graph."""

    class Session:
        def __init__(self, model: bytes, options: Any, providers: list[str]):
            if not model:
                raise Failure("an empty model")

        def run(self, names: None, arrays: dict[str, Any]) -> list[Any]:
            return [run(arrays["input0"])]

    class Options:
        def add_session_config_entry(self, name: str, value: str) -> None:
            assert (name, value) == ("session.intra_op.allow_spinning", "0")

    installed(monkeypatch, "onnx")
    installed(monkeypatch, "onnxruntime", SessionOptions=Options, InferenceSession=Session)
    state = {"Fail": Failure, "InvalidGraph": Failure, "NotImplemented": Failure}
    installed(monkeypatch, "onnxruntime.capi")
    installed(monkeypatch, "onnxruntime.capi.onnxruntime_pybind11_state", **state)


@pytest.mark.parametrize(
    ("model", "factor", "expected"),
    [(b"a graph", 2, ""), (b"a graph", 3, "wrong by 5.0e-01"), (b"", 2, "inexpressible")],
)
def test_onnxruntime(
    model: bytes, factor: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given the exported graph and fp32 arrays, and judged by what it computes."""

    def export(module: nn.Module, given: Any, path: Path, **words: Any) -> None:
        assert words["input_names"] == ["input0"]
        path.write_bytes(model)

    with_onnxruntime(monkeypatch, lambda x: factor * x)
    monkeypatch.setattr(torch.onnx, "export", export)
    found = rivals.verdict(rivals.RIVALS["onnxruntime fp32"], entry_of().plain, "")
    assert found.split(":")[0] == expected


class Port:
    """An input or output of a stub's model."""

    shape = (4096,)

    def get_element_type(self) -> "Port":
        return self

    def to_string(self) -> str:
        return "f32"


def with_openvino(monkeypatch: pytest.MonkeyPatch, factor: float) -> dict[str, Any]:
    """OpenVINO whose every model multiplies by ``factor``; returns the configuration it is told."""
    told: dict[str, Any] = {}

    class Model:
        inputs, outputs = (Port(),), (Port(),)

        def reshape(self, shapes: Any) -> None:
            assert list(shapes.values()) == [[4096]]

        def create_infer_request(self) -> "Request":
            return Request()

    class Request:
        def __init__(self) -> None:
            self.tensors: list[Any] = []

        def set_tensor(self, port: Port, tensor: Any) -> None:
            self.tensors.append(tensor)

        def infer(self) -> None:
            given, out = self.tensors
            out[:] = factor * given

    class Core:
        def compile_model(self, model: Model, device: str, config: dict[str, Any]) -> Model:
            told.update(config)
            return model

    def convert(module: nn.Module, example_input: Any) -> Model:
        if factor == 0:
            raise Failure("No conversion rule")
        return Model()

    frontend = ModuleType("frontend")
    vars(frontend)["OpConversionFailure"] = Failure
    installed(
        monkeypatch,
        "openvino",
        Core=Core,
        convert_model=convert,
        frontend=frontend,
        Tensor=lambda array, shared_memory: array,
    )
    engines.core.cache_clear()
    return told


@pytest.mark.parametrize(
    ("factor", "expected"), [(2, ""), (2.5, "wrong by 2.5e-01"), (0, "inexpressible")]
)
def test_openvino(factor: float, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shares memory with torch, uses torch's count of threads, and is judged like any other."""
    told = with_openvino(monkeypatch, factor)
    found = rivals.verdict(rivals.RIVALS["openvino fp32"], entry_of().plain, "")
    engines.core.cache_clear()
    assert found.split(":")[0] == expected
    if factor:
        assert told["INFERENCE_NUM_THREADS"] == torch.get_num_threads()
        assert told["INFERENCE_PRECISION_HINT"] == "f32"


def test_memory_is_written() -> None:
    """``ColdMemory.write`` says a speed, wraps round at the end, and touches what it says."""
    memory = ColdMemory(1 << 16)
    memory.data.zero_()
    assert memory.write(100) > 0
    assert memory.data.count_nonzero() == 100
    assert memory.write((1 << 16) - 10) > 0
    assert memory.read(1 << 20) > 0
