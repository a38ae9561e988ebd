"""``vlakern doctor``: what it finds, what it advises, and when it says that nothing can run."""

import json
import sys
from pathlib import Path

import pytest

import vlakern
from vlakern import cli, env
from vlakern.cli import doctor
from vlakern.ops._table import OPS

X86 = "processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\nprocessor : 1\nflags : fpu\n"
ARM = "processor : 0\nFeatures\t: fp asimd bf16\n"
SMI = "NVIDIA H200, 570.10, 9.0, 143771 MiB\nOrin, 540.4, 8.7, 30697 MiB\n"


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine that can run a policy: exit code 0, every op has a reference, in JSON too."""
    path = tmp_path / "doctor.json"
    assert cli.main(["doctor", "--json", str(path)]) == 0
    shown, report = capsys.readouterr().out, json.loads(path.read_text())
    assert report["native"]["built"] is True, "build the native module before testing"
    assert report["native"]["isa"] in report["native"]["isas"]
    assert isinstance(report["native"]["cuda"], bool)
    assert set(report["backends"]) == set(OPS)
    for op, verdicts in report["backends"].items():
        assert verdicts["reference"] == "ok"
        assert all(isinstance(reason, str) and reason for reason in verdicts.values())
        assert op in shown
    assert report["packages"]["torch"] in shown
    assert set(report["cpu_features"]) == {"avx2", "avx512f", "avx512_bf16", "vnni", "neon"}
    assert set(report["renderers"]) == {"egl", "osmesa"}
    for variable in env.VARIABLES:
        assert variable.name in shown


def test_what_int8_costs_a_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every layer and the actions, in the table and in JSON; an unknown policy is one sentence."""
    path = tmp_path / "doctor.json"
    assert cli.main(["doctor", "--policy", "metaworld-small", "--json", str(path)]) == 0
    shown, report = capsys.readouterr().out, json.loads(path.read_text())["quantisation"]
    assert (report["policy"], report["dtype"]) == ("metaworld-small", "int8")
    assert "mot.action.layers.0.down_proj" in shown
    assert "int8 against bf16" in shown
    assert 0 < report["bf16"]["mean"] < report["actions"]["mean"] < 0.2
    assert {"name", "weight", "product", "bf16"} == set(report["layers"][0])
    assert cli.main(["doctor", "--policy", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err


def test_hidden_native_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the native module hidden, the CPU backend says why not and the reference still runs."""
    monkeypatch.setenv("VLAKERN_NO_NATIVE", "1")
    path = tmp_path / "doctor.json"
    assert cli.main(["doctor", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["native"]["built"] is False
    assert report["backends"]["ode_step"]["cpu"] != "ok"
    assert report["environment"]["VLAKERN_NO_NATIVE"] == "1"


def test_package_that_does_not_import(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broken installation is exit code 1 and a sentence, after everything that is known."""
    monkeypatch.delattr(vlakern, "ops", raising=False)
    monkeypatch.setitem(sys.modules, "vlakern.ops", None)
    assert cli.main(["doctor"]) == 1
    streams = capsys.readouterr()
    assert "Versions" in streams.out
    assert streams.err.startswith("vlakern: no policy can run here: ")
    assert "vlakern.ops" in streams.err


def test_problem_names_the_op() -> None:
    """An op without a usable reference is the problem; other backends are not."""
    fine = {"backends": {"a": {"cuda": "no GPU", "reference": "ok"}}}
    assert doctor._problem(fine) == ""
    broken = {"backends": {"a": {"reference": "ok"}, "b": {"reference": "torch is too old"}}}
    assert doctor._problem(broken) == "the reference of b says 'torch is too old'"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("VLAKERN_BACKEND", "cuda", "VLAKERN_BACKEND=cuda, but a says 'no GPU'"),
        ("VLAKERN_BACKEND", "fast", "VLAKERN_BACKEND='fast' is not known"),
        ("MUJOCO_GL", "vulkan", "MUJOCO_GL='vulkan' is not known"),
        ("VLAKERN_BACKEND", "reference", ""),
    ],
)
def test_a_forced_choice_that_cannot_be_kept_is_a_problem(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would stop every policy is not called healthy."""
    monkeypatch.setenv(name, value)
    problem = doctor._problem({"backends": {"a": {"cuda": "no GPU", "reference": "ok"}}})
    assert problem.startswith(said)
    assert bool(problem) == bool(said)


@pytest.mark.parametrize(
    ("text", "has"),
    [(X86, {"avx2", "avx512f", "vnni"}), (ARM, {"neon"}), ("", set())],
)
def test_cpu_features(text: str, has: set[str]) -> None:
    """The flags of the first processor, on x86 and on ARM."""
    assert {name for name, found in doctor._cpu_features(text).items() if found} == has


def test_gpus() -> None:
    """One row per line of the driver's answer."""
    first, second = doctor._parse_gpus(SMI)
    assert first == {
        "name": "NVIDIA H200",
        "driver": "570.10",
        "capability": "9.0",
        "memory": "143771 MiB",
    }
    assert second["capability"] == "8.7"
    assert doctor._gpu_line(first) == "NVIDIA H200, driver 570.10, capability 9.0, 143771 MiB"
    assert doctor._parse_gpus("") == []


def test_missing_package_names_its_extra() -> None:
    """A package that is absent says which extra brings it."""
    absent = "vlakern-no-such-package"
    assert doctor._package(absent, "sim") == "not installed (pip install 'vlakern[sim]')"
    assert doctor._package(absent, "") == f"not installed (pip install '{absent}')"


@pytest.mark.parametrize("name", ["egl", "osmesa"])
def test_missing_renderer_names_its_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renderer whose library is absent says what to install."""
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda _: None)
    assert "is not on this machine (apt install lib" in doctor._renderer(name)


def test_failing_renderer_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renderer that loads and then fails gives the last line of its complaint."""
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda _: "lib.so")
    monkeypatch.setattr(doctor, "RENDER_ONCE", "raise ValueError('{name} is out of paint')")
    assert doctor._renderer("egl").startswith("ValueError: egl is out of paint (apt install")


def test_reasons_with_brackets_are_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """A reason in brackets is text, not markup."""
    doctor._table("T", ("a", "b"), [("op", "needs [bold] H in [1, 64]")])
    assert "needs [bold] H in [1, 64]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "shown"),
    [(True, "yes"), (False, "no"), ([], "none"), (["80", "90"], "80, 90"), ("", "none"), (3, "3")],
)
def test_words(value: object, shown: str) -> None:
    """A finding in words."""
    assert doctor._words(value) == shown
