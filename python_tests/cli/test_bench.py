"""``vlakern bench`` from the command line: tables, files, and one sentence for what is wrong."""

import json
from pathlib import Path

import pytest

from vlakern.cli import main
from vlakern.ops import _native

QUICK = ["bench", "--preset", "tiny", "--runs", "3", "--threads", "1", "--no-cold"]
needs_native = pytest.mark.skipif(_native.missing() is not None, reason="no native module")


@needs_native
def test_tables_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stages, ratios and the configuration for people; the schema for programs; a picture."""
    file, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    words = ["--against", "torch-eager", "--json", str(file), "--plot", str(plot)]
    assert main([*QUICK, *words]) == 0
    shown = capsys.readouterr().out
    for part in ("vlakern-bf16", "torch-eager-bf16", "of floor", "p99-p50", "threads 1", "cold"):
        assert part in shown
    report = json.loads(file.read_text())
    assert report["schema"] == 1
    assert {"vlakern", "commit", "machine", "config", "variants", "ratios"} < set(report)
    assert set(report["variants"]) == {"vlakern-bf16", "torch-eager-bf16"}
    assert report["config"]["prefix"] == 82
    assert report["ratios"]["torch-eager-bf16"]["total"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_floor_that_was_beaten_is_said() -> None:
    """Two per cent more than the median is no measurement of a limit."""
    from vlakern.bench.latency import VariantResult, stage_times
    from vlakern.cli.bench import _beats_its_floor

    for floor, beaten in ((9.0, False), (10.1, False), (10.5, True), (None, False)):
        one = VariantResult({"ode": stage_times([10.0, 10.0], floor)}, {}, 0.0)
        assert _beats_its_floor(one) is beaten


@needs_native
def test_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bandwidth and the peak of each number format."""
    file = tmp_path / "machine.json"
    assert main(["bench", "--machine", "--threads", "1", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "GB/s" in shown
    assert "bf16" in shown
    limits = json.loads(file.read_text())["limits"]
    assert set(limits["peaks"]) == {"bf16", "fp32", "int8"}
    assert limits["bandwidth"] > 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--runs", "0"], "--runs is 0"),
        (["--preset", "huge"], "no preset 'huge'"),
        (["--steps", "0"], "--steps is 0"),
        (["--views", "100"], "--views is 100, expected 1 to 64"),
        (["--threads", "-1"], "--threads is -1"),
        (["--against", "torch-eager,slow"], "no variant 'slow'"),
        (["--device", "cuda:77"], "--device cuda:77"),
        (["--device", "abacus"], "--device abacus"),
        (["--preset", "tiny", "--policy", "metaworld-small"], "name one"),
        (["--plot", "picture.jpg"], "does not end in .png"),
        (["--json", "/"], "--json / is a directory"),
    ],
)
def test_what_is_wrong_in_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 and one line that names the option, before anything is measured."""
    assert main([*QUICK, *words]) == 1
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert "vlakern: " in shown.err
    assert len([line for line in shown.err.splitlines() if "bench:" not in line]) == 1


def test_a_directory_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Says which file is missing."""
    assert main(["bench", "--policy", str(tmp_path), "--runs", "1"]) == 1
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--dtype", "fp7"], ["--runs", "many"], ["--no-such-option"]])
def test_wrong_words(words: list[str]) -> None:
    """Exit with 2, like every verb."""
    with pytest.raises(SystemExit) as exit_info:
        main([*QUICK, *words])
    assert exit_info.value.code == 2
