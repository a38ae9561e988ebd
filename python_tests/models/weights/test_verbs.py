"""What measures a policy takes the directories of every family."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import vlakern
from vlakern.bench.accuracy import check, reference
from vlakern.bench.contenders import Place, make, variant_of
from vlakern.bench.latency import BenchConfig, workload
from vlakern.cli import doctor, main
from vlakern.errors import CheckpointError, Unsupported
from vlakern.infer import quantisation
from vlakern.infer.quantisation import measure_quantisation
from vlakern.models.weights.convert import to_native

ONES = ("layernorm", "norm.weight", "norm_mot_gen", "lambda_", "mlp1.0")


def openpi(goldens: ModuleType, directory: Path) -> Path:
    """openpi's pi0.5: LeRobot's tensors without its prefix, and other files around them."""
    goldens.lerobot_directory(directory, "pi05", prefix="")
    for path in directory.glob("policy_*"):
        path.unlink()
    shutil.copytree(goldens.GOLDEN / "processing/openpi/assets", directory / "assets")
    (directory / "config.json").write_text(json.dumps({"action_dim": 7, "action_horizon": 6}))
    return directory


def port(goldens: ModuleType, directory: Path) -> Path:
    """Being-H0.5 as LeRobot's port writes it."""
    shutil.copytree(goldens.GOLDEN / "processing" / "lerobot_being_h05", directory)
    shapes = goldens.read_names(goldens.GOLDEN / "lerobot_being_h05_names.json")
    save_file(goldens.state_dict(shapes, ONES), directory / "model.safetensors")
    return directory


DIRECTORIES: dict[str, Callable[[ModuleType, Path], Path]] = {
    "pi0": lambda goldens, path: goldens.lerobot_directory(path, "pi0", dtype=torch.bfloat16),
    "pi05": lambda goldens, path: goldens.lerobot_directory(path, "pi05", recent=True),
    "smolvla": lambda goldens, path: goldens.lerobot_directory(path, "smolvla"),
    "openpi": openpi,
    "port": port,
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_doctor_measures_int8(name: str, goldens: ModuleType, tmp_path: Path) -> None:
    """The network's own modules agree with the engine, so that int8 of the one is int8 of the
    other: quantised alike, its actions are as far from bf16 in both."""
    report = measure_quantisation(DIRECTORIES[name](goldens, tmp_path / name), "int8", noises=2)
    assert report.policy == name
    assert report.engine == "native"
    assert len(report.layers) > 20
    for layer in report.layers:
        assert 1e-3 < layer.weight < 2e-2, layer
        if layer.product is not None and layer.bf16 is not None:
            assert layer.bf16 < layer.product < 0.1, layer
    assert report.bf16.mean < report.actions.mean < 0.1


def test_doctor_says_it_in_a_table(
    goldens: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the verb itself, fp8 by emulation where there is no GPU; JSON beside it."""
    monkeypatch.setattr(doctor, "diagnose", lambda: {"backends": {}})
    monkeypatch.setattr(doctor, "_show", lambda found: None)
    source, report = DIRECTORIES["smolvla"](goldens, tmp_path / "mine"), tmp_path / "report.json"
    words = ["doctor", "--policy", str(source), "--dtype", "fp8", "--json", str(report)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "error of fp8 in mine" in said
    assert "emulated" in said
    found = json.loads(report.read_text())["quantisation"]
    assert (found["engine"], found["dtype"]) == ("emulated", "fp8")
    assert main(["doctor", "--policy", "lerobot/pi0_base"]) == 1
    assert "hf download lerobot/pi0_base" in capsys.readouterr().err


def test_too_little_memory_is_said_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of seven gigabytes in bf16 takes four times as much here."""
    monkeypatch.setattr(quantisation, "free_memory", lambda: 1 << 20)
    with pytest.raises(Unsupported, match=r"takes about \d+ GiB of memory, and 0 GiB are free"):
        measure_quantisation("metaworld-small")


@pytest.mark.parametrize("name", ["pi0", "openpi", "port"])
def test_bench_takes_it(name: str, goldens: ModuleType, tmp_path: Path) -> None:
    """Its calls, PyTorch's answer to the first, and the engine's, which is as exact from there as
    from a native directory."""
    source = DIRECTORIES[name](goldens, tmp_path / name)
    to_native(source, tmp_path / "native")
    errors, variant = [], variant_of("vlakern-fp32")
    for directory in (source, tmp_path / "native"):
        config = BenchConfig(preset=None, policy=str(directory), prompt_tokens=5, dtype="fp32")
        work = workload(config)
        made = make(variant, work, Place())
        errors.append(check(variant, made, work, reference(work)))
        assert work.actions(work.call(0).noise_NHA).shape[1] == work.config.chunk
    assert errors[0] == errors[1] < 1e-5


@pytest.mark.parametrize("where", ["load", "convert"])
def test_a_weight_that_is_not_finite_is_named_as_in_the_file(
    where: str, goldens: ModuleType, tmp_path: Path
) -> None:
    """Its own name and file, not the name that it has here."""
    source = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    weights = load_file(source / "model.safetensors")
    weights["model.action_in_proj.weight"][3, 2] = np.nan
    save_file(weights, source / "model.safetensors")
    calls: dict[str, Callable[[], Any]] = {
        "load": lambda: vlakern.load(source, device="cpu"),
        "convert": lambda: to_native(source, tmp_path / "native"),
    }
    with pytest.raises(CheckpointError) as refusal:
        calls[where]()
    said = f"{source / 'model.safetensors'}: tensor 'model.action_in_proj.weight' holds values"
    assert str(refusal.value).startswith(said)
    assert not (tmp_path / "native").exists()
