"""The dispatch: first that does not refuse, refusals with a reason, nothing swallowed."""

import logging
import sys
from collections.abc import Iterator

import pytest
import torch

from vlakern import env, ops
from vlakern.errors import ConfigError, Unsupported
from vlakern.ops import _dispatch, _native, _refusals
from vlakern.ops._dispatch import Backend, Key, backends_of, made_by, resolve
from vlakern.ops._table import OPS


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """An op with three backends that counts how often each is loaded."""
    loaded = {"cuda": 0, "cpu": 0, "reference": 0}

    def load(name: str):
        def run() -> None:
            return None

        def once():
            loaded[name] += 1
            run.__name__ = name
            return run

        return once

    backends = (
        Backend("cuda", load("cuda"), _refusals.needs_cuda),
        Backend("cpu", load("cpu"), _refusals.only_dtypes("float32")),
        Backend("reference", load("reference"), _refusals.never),
    )
    module = type(sys)("toy")
    module.BACKENDS = backends  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy", module)
    monkeypatch.setitem(OPS, "toy", "toy")
    _forget()
    yield loaded
    _forget()


def _forget() -> None:
    _dispatch._resolve.cache_clear()
    _dispatch._resolve_under.cache_clear()


def test_auto_takes_the_first_that_serves(toy: dict[str, int]) -> None:
    """Auto skips what refuses and loads only what it takes."""
    assert resolve("toy", Key(dtypes=("float32",))).__name__ == "cpu"
    assert resolve("toy", Key(dtypes=("float64",))).__name__ == "reference"
    assert toy == {"cuda": 0, "cpu": 1, "reference": 1}


def test_resolved_and_logged_once(toy: dict[str, int], caplog: pytest.LogCaptureFixture) -> None:
    """The same key loads and logs one time."""
    with caplog.at_level(logging.INFO, "vlakern.ops"):
        kernels = {resolve("toy", Key()) for _ in range(3)}
    assert len(kernels) == 1
    assert toy["cpu"] == 1
    assert [record.message.split(" for ")[0] for record in caplog.records] == ["toy: cpu"]


def test_a_named_backend_that_refuses_is_an_error(toy: dict[str, int]) -> None:
    """No other backend steps in for one that was asked for by name."""
    with pytest.raises(Unsupported, match="backend cpu of toy refuses: takes float32, not bfloat"):
        resolve("toy", Key(dtypes=("float32", "bfloat16")), "cpu")
    assert toy == {"cuda": 0, "cpu": 0, "reference": 0}


def test_unknown_names(toy: dict[str, int]) -> None:
    """An unknown op or backend is named, with what there is."""
    with pytest.raises(ConfigError, match="toy has no backend 'gpu'; it has cuda, cpu, reference"):
        resolve("toy", Key(), "gpu")
    with pytest.raises(ConfigError, match="'atention' is not an op; the ops are "):
        backends_of("atention")


def test_environment_names_the_backend(
    toy: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """VLAKERN_BACKEND speaks where the argument is auto, and only there."""
    monkeypatch.setenv("VLAKERN_BACKEND", "reference")
    assert resolve("toy", Key()).__name__ == "reference"
    assert resolve("toy", Key(), "cpu").__name__ == "cpu"
    monkeypatch.setenv("VLAKERN_BACKEND", "cuda")
    with pytest.raises(Unsupported, match="needs an NVIDIA GPU, the tensors are on cpu"):
        resolve("toy", Key())


def test_environment_that_changes_is_seen(
    toy: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call goes by the environment of its own moment; what is meant alike loads once."""
    found = []
    for name in ("reference", "cpu", "reference", ""):
        monkeypatch.setenv("VLAKERN_BACKEND", name)
        found.append(resolve("toy", Key()).__name__)
    monkeypatch.delenv("VLAKERN_BACKEND")
    found.append(resolve("toy", Key()).__name__)
    assert found == ["reference", "cpu", "reference", "cpu", "cpu"]
    assert toy["reference"] == 1
    monkeypatch.setenv("VLAKERN_CPU_ISA", "sse")
    with pytest.raises(ConfigError, match="VLAKERN_CPU_ISA='sse' is not known"):
        resolve("toy", Key())


def test_a_broken_backend_is_an_error(toy: dict[str, int], monkeypatch) -> None:
    """What fails while loading is raised, not passed over for the next backend."""
    broken = Backend("cpu", made_by("vlakern.nowhere", "cpu"), _refusals.never)
    monkeypatch.setattr(sys.modules["toy"], "BACKENDS", (broken, *backends_of("toy")))
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        resolve("toy", Key())


def test_nobody_serves(toy: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a backend for the case every reason is told."""
    monkeypatch.setattr(sys.modules["toy"], "BACKENDS", backends_of("toy")[:1])
    with pytest.raises(Unsupported, match=r"no backend of toy serves.*cuda: needs an NVIDIA GPU"):
        resolve("toy", Key())


def test_hidden_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """VLAKERN_NO_NATIVE=1 makes the native backends refuse and the reference serve."""
    monkeypatch.setenv("VLAKERN_NO_NATIVE", "1")
    reason = "VLAKERN_NO_NATIVE=1 hides the native module"
    assert ops.verdicts()["ode_step"]["cpu"] == reason
    assert ops.native_info() == {
        "built": False,
        "reason": reason,
        "isa": None,
        "isas": [],
        "cuda": False,
        "cuda_archs": [],
    }
    zeros = torch.zeros(1, 2, 3)
    assert ops.ode_step(zeros, zeros, *torch.zeros(2, 1))[0].shape == zeros.shape
    with pytest.raises(Unsupported, match="hides the native module"):
        ops.ode_step(zeros, zeros, *torch.zeros(2, 1), backend="cpu")


def test_native_module_that_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is not there is a refusal that says how to build it."""
    monkeypatch.setattr(_native.importlib.util, "find_spec", lambda name: None)
    assert "is not built; run `pip install .`" in ops.verdicts()["ode_step"]["cpu"]
    with pytest.raises(Unsupported, match="pip install"):
        _native.cpu_module()


def test_forced_instruction_set_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for an instruction set that the CPU lacks is an error, not a slower kernel."""
    missing = "avx2" if "neon" in ops.native_info()["isas"] else "neon"
    monkeypatch.setenv("VLAKERN_CPU_ISA", missing)
    zeros = torch.zeros(1, 2, 3)
    with pytest.raises(Unsupported, match=f"instruction set {missing} is not available"):
        ops.ode_step(zeros, zeros, *torch.zeros(2, 1), backend="cpu")


@pytest.mark.parametrize(
    ("arch", "built", "runs"),
    [
        (90, (80, 90), True),
        (87, (80,), True),
        (80, (87,), False),
        (90, (80,), False),
        (103, (100,), True),
        (110, (100,), False),
    ],
)
def test_which_gpus_a_build_serves(arch: int, built: tuple[int, ...], runs: bool) -> None:
    """Machine code runs on its own major version, from its minor version on."""
    assert _native.runs_on(arch, built) is runs


@pytest.mark.parametrize(
    ("key", "built", "reason"),
    [
        (Key("cpu"), (90,), "needs an NVIDIA GPU"),
        (Key("cuda", 90), (), "has no CUDA kernels"),
        (Key("cuda", 100), (80, 90), "built for sm_80, sm_90, the GPU is sm_100"),
        (Key("cuda", 90), (80, 90), None),
    ],
)
def test_cuda_refusals(
    key: Key, built: tuple[int, ...], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CUDA backend says what is missing: a GPU, a build, or this GPU in the build."""
    monkeypatch.setattr(_native, "cuda_archs", lambda: built)
    found = _refusals.needs_cuda(key)
    assert found is None if reason is None else reason in str(found)


def test_triton_is_interpreted_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRITON_INTERPRET=1 never makes auto choose the interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("VLAKERN_NO_NATIVE", "1")
    key = Key(dtypes=("float32",))
    served = [b.name for b in backends_of("ode_step") if b.refuses(key) is None]
    assert served[0] == "reference"
    assert _dispatch.refusals("ode_step", key)["triton"] is None


def test_explain_prints_every_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    """Each op and backend has one line: ok, or why not."""
    found = ops.explain()
    lines = capsys.readouterr().out.splitlines()
    expected = [(op, name, verdict) for op in found for name, verdict in found[op].items()]
    assert len(lines) == len(expected) >= 4
    for line, words in zip(lines, expected, strict=True):
        assert all(word in line for word in words)
    assert found["ode_step"]["reference"] == "ok"


def test_an_op_is_a_function_whatever_was_imported_first() -> None:
    """The sub-package of the same name never hides the function."""
    import vlakern.ops.ode_step.reference

    assert callable(ops.ode_step)
    assert vlakern.ops.ode_step is ops.ode_step
    with pytest.raises(AttributeError, match="has no attribute 'od_step'"):
        ops.od_step  # type: ignore[attr-defined] # noqa: B018


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_reference_that_serves_all(op: str) -> None:
    """The definition is the last backend and refuses nothing."""
    last = backends_of(op)[-1]
    assert last.name == "reference"
    assert last.refuses(Key("meta", dtypes=("float64",))) is None
    assert env.backend() == "auto"
