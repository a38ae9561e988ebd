"""The example compares two rollouts over the same scenes as the statistics say."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from vlakern.trials import mcnemar, stratified_exact

EXAMPLE = Path(__file__).parents[2] / "examples" / "compare_rollouts.py"


def rollout(folder: Path, name: str, solved: dict[str, set[int]], seed: int = 0) -> str:
    episodes = [
        {"task": task, "episode": e, "success": e in wins}
        for task, wins in solved.items()
        for e in range(10)
    ]
    path = folder / name
    path.write_text(json.dumps({"config": {"seed": seed, "tasks": None}, "episodes": episodes}))
    return str(path)


def test_numbers_are_those_of_the_rollouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nine against four of ten on one task and alike on the other, with every interval."""
    one = rollout(tmp_path, "a.json", {"pick": set(range(9)), "pour": {0, 1, 2}})
    other = rollout(tmp_path, "b.json", {"pick": {0, 1, 2, 9}, "pour": {0, 1, 2}})
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), one, other])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["pick", "9/10"]
    assert "+50 (" in lines[0]
    assert lines[2].split()[:2] == ["all", "12/20"]
    assert f"exact p {stratified_exact([(9, 10, 4, 10), (3, 10, 3, 10)]):.3f}" in lines[3]
    assert (
        f"only the first 6, only the second 1, McNemar's exact p {mcnemar(6, 1).exact:.3f}"
        in (lines[4])
    )
    assert "about 60 points" in lines[5]


def test_other_scenes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts from other seeds have other scenes."""
    one = rollout(tmp_path, "a.json", {"pick": {0}})
    other = rollout(tmp_path, "b.json", {"pick": {0}}, seed=5)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), one, other])
    with pytest.raises(SystemExit, match="differ in --seed"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
