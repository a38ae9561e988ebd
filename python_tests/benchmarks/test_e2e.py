"""The benchmark of the whole engine, on the CPU at the smallest size: what it says and refuses."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vlakern.errors import Unsupported
from vlakern.models.presets import preset

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from e2e import bench_engine

TINY = bench_engine.Case("tiny", lambda: preset("tiny"), 2, 5, batch=2, candidates=2)


def on_cpu(work: Any, name: str) -> Any:
    """Ours over the ops' references; theirs as on a GPU."""
    if name == "vlakern-fp64":
        raise Unsupported("no such dtype")
    if name.startswith("vlakern"):
        ours = bench_engine.Ours(work, name.removeprefix("vlakern-"), "cpu", ops="reference")
        if name == "vlakern-fp32":  # the rows below need a wrong one
            ours.engine.model.tensors["action.0.q_norm"].mul_(-3)
        return ours
    return bench_engine.contender(work, name, "cpu")


def test_rows_of_what_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    """Ours and PyTorch's have rows; one that is wrong and one that cannot run are said."""
    names = ["vlakern-bf16", "vlakern-fp32", "vlakern-fp64", "torch-eager-bf16"]
    rows = bench_engine.measure(TINY, names, on_cpu, "cpu", 2, time.monotonic() + 60)
    assert [row.name for row in rows] == ["vlakern-bf16", "torch-eager-bf16"]
    said = capsys.readouterr().out
    assert "vlakern-fp32 is wrong" in said
    assert "vlakern-fp64 cannot run: no such dtype" in said
    ours = dataclasses.asdict(rows[0])
    assert (ours["batch"], ours["candidates"], ours["chunk"], ours["steps"]) == (2, 2, 6, 4)
    assert set(ours["stages_ms"]) == {"vision", "prefix", "ode"}
    assert all(value > 0 for value in ours["stages_ms"].values())
    assert ours["wall_ms"]["p99"] >= ours["wall_ms"]["p50"] >= ours["wall_ms"]["min"] > 0
    assert ours["model_ms"]["p50"] < 2 * ours["wall_ms"]["p50"]
    bench_engine.show(rows[0])
    assert "(vision" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tiny-pi05", "tiny-smolvla"])
def test_other_kinds_are_as_right_as_pytorch(name: str) -> None:
    """Programs of exactly the call's size, without a row for states that are not the actions'."""
    case = bench_engine.Case(name, lambda: preset(name), 1, 5)
    rows = bench_engine.measure(case, ["vlakern-bf16"], on_cpu, "cpu", 1, time.monotonic() + 60)
    assert [row.name for row in rows] == ["vlakern-bf16"]


def test_without_time_nothing_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    """A deadline that has passed: no row, and it is said."""
    rows = bench_engine.measure(TINY, ["vlakern-bf16"], on_cpu, "cpu", 2, time.monotonic() - 1)
    assert rows == []
    assert "no time is left for vlakern-bf16" in capsys.readouterr().out


def test_the_sizes_of_the_cases() -> None:
    """Prefixes of each model's usual length; 16 and 50 actions; 4 and 10 steps."""
    found = {}
    for name, case in bench_engine.CASES.items():
        work = bench_engine.workload(case)
        config = work.config
        found[name] = (work.shape.prefix, config.chunk, config.steps, case.batch * case.candidates)
    assert found == {
        "rethink-2b": (220, 16, 4, 1),
        "pi0": (788, 50, 10, 1),
        "smolvla": (241, 50, 10, 1),
        "pi05": (827, 50, 10, 1),
        "rethink-2b candidates": (220, 16, 4, 8),
        "rethink-2b robots": (220, 16, 4, 8),
        "pi0 candidates": (788, 50, 10, 8),
    }


def test_words() -> None:
    """Every case by default; a name that there is not is refused."""
    assert bench_engine.parse([]).case == list(bench_engine.CASES)
    assert bench_engine.parse(["--case", "pi0", "--build"]).build
    with pytest.raises(SystemExit):
        bench_engine.parse(["--case", "pi1"])


def test_a_build_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling beforehand ends at its limit."""
    popen, started = bench_engine.subprocess.Popen, []

    def sleeps(command: list[str]) -> Any:
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[-1]

    monkeypatch.setattr(bench_engine.subprocess, "Popen", sleeps)
    begin = time.monotonic()
    bench_engine.compile_all(["rethink-2b", "pi0"], 0.3)
    assert time.monotonic() - begin < 30
    assert [child.poll() is not None for child in started] == [True, True]
