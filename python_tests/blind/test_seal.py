"""The lock: what is public holds no name, what is sealed proves itself."""

import json
import os
import random
import stat
from pathlib import Path

import pytest

from vlakern.blind.seal import lock, open_key, read_plan
from vlakern.blind.tokens import draw_tokens
from vlakern.errors import StudyError


def test_a_locked_study_opens_with_its_commitment(study_file: Path, tmp_path: Path) -> None:
    """The sealed key gives the commitment that the lock showed, and the public plan's queue."""
    public = lock(study_file, tmp_path / "s")
    key = open_key(tmp_path / "s")
    assert read_plan(tmp_path / "s") == public
    assert key.commitment == public.commitment
    assert set(key.allocation.models.values()) == {f"secret-{index}" for index in range(4)}


def test_what_is_public_names_nothing(study_file: Path, tmp_path: Path) -> None:
    """No model name, policy path or identity outside the sealed folder; that is its owner's."""
    lock(study_file, tmp_path / "s")
    key = open_key(tmp_path / "s")
    public = (tmp_path / "s/plan.json").read_text()
    assert not any(name in public for name in (*key.identities, *key.identities.values(), "policy"))
    for name in ("sealed", "sealed/key.json", "sealed/study.toml"):
        assert stat.S_IMODE((tmp_path / "s" / name).stat().st_mode) & 0o077 == 0


def test_two_locks_share_nothing(study_file: Path, tmp_path: Path) -> None:
    """Salt, aliases and commitment come from the system's entropy: twice is never the same."""
    first, second = (lock(study_file, tmp_path / name) for name in ("a", "b"))
    assert first.commitment != second.commitment
    assert first.analysis != second.analysis
    assert {one.code for one in first.plan.queue}.isdisjoint(
        one.code for one in second.plan.queue
    ) or first.plan.queue != second.plan.queue


def test_the_commitment_is_salted(study_file: Path, tmp_path: Path) -> None:
    """The same draw twice has two commitments: nobody finds the allocation by trying seeds."""
    first, second = (lock(study_file, tmp_path / name, random.Random(7)) for name in ("a", "b"))
    assert first.plan == second.plan
    assert first.commitment != second.commitment


@pytest.mark.parametrize("change", ["model", "condition", "salt", "seconds"])
def test_a_changed_key_is_refused(study_file: Path, tmp_path: Path, change: str) -> None:
    """Swapping two models, or anything else in the sealed key, no longer gives the commitment."""
    lock(study_file, tmp_path / "s")
    path = tmp_path / "s/sealed/key.json"
    key = json.loads(path.read_text())
    models = key["allocation"]["models"]
    code = key["plan"]["queue"][0]["code"]
    if change == "model":
        models[code] = next(name for name in models.values() if name != models[code])
    elif change == "condition":
        key["plan"]["queue"][0]["condition"] = "elsewhere"
    elif change == "salt":
        key["salt"] = "0" * 64
    else:
        key["study"]["tasks"][0]["seconds"] = 1.0
    path.write_text(json.dumps(key))
    with pytest.raises(StudyError, match="does not give the commitment"):
        open_key(tmp_path / "s")


def test_a_changed_public_plan_is_refused(study_file: Path, tmp_path: Path) -> None:
    """Reordering the public queue does not go unseen."""
    lock(study_file, tmp_path / "s")
    path = tmp_path / "s/plan.json"
    plan = json.loads(path.read_text())
    plan["plan"]["queue"].reverse()
    path.write_text(json.dumps(plan))
    with pytest.raises(StudyError, match="does not give the commitment"):
        open_key(tmp_path / "s")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("break_minutes", 0.0),
        ("judges", 2),
        ("trials", 1),
        ("abort_reasons", ["it was losing"]),
        ("analysis", "0" * 64),
        ("tasks", None),
    ],
)
def test_a_changed_public_rule_is_refused(
    study_file: Path, tmp_path: Path, field: str, value: object
) -> None:
    """Breaks, judges, criteria and the rest of the public plan follow from the sealed study."""
    lock(study_file, tmp_path / "s")
    path = tmp_path / "s/plan.json"
    plan = json.loads(path.read_text())
    if field == "tasks":
        plan["tasks"][0]["criterion"] = "near enough"
    else:
        plan[field] = value
    path.write_text(json.dumps(plan))
    with pytest.raises(StudyError, match=rf"was changed after the lock: its {field} differ"):
        open_key(tmp_path / "s")


def test_a_study_is_its_runners_alone(study_file: Path, tmp_path: Path) -> None:
    """No other account reads any file of it, whatever the umask."""
    before = os.umask(0)
    try:
        lock(study_file, tmp_path / "s")
        draw_tokens(tmp_path / "s", 1, 1.0)
    finally:
        os.umask(before)
    found = [tmp_path / "s", *(tmp_path / "s").rglob("*")]
    assert len(found) == 11
    assert [path for path in found if path.stat().st_mode & 0o077] == []


def test_a_changed_study_file_is_refused(study_file: Path, tmp_path: Path) -> None:
    """More trials after the lock: the file is named."""
    lock(study_file, tmp_path / "s")
    study_file.write_text(study_file.read_text().replace("trials = 2", "trials = 3"))
    with pytest.raises(StudyError, match=r"study\.toml was changed after the lock"):
        open_key(tmp_path / "s")


def test_a_key_that_others_may_read_is_refused(study_file: Path, tmp_path: Path) -> None:
    """The allocation is the runner's alone."""
    lock(study_file, tmp_path / "s")
    (tmp_path / "s/sealed/key.json").chmod(0o644)
    with pytest.raises(StudyError, match="other users may read"):
        open_key(tmp_path / "s")


def test_two_names_for_one_checkpoint_are_refused(study_file: Path, tmp_path: Path) -> None:
    """The same bytes under two names cannot be told apart by any number of trials."""
    (tmp_path / "policy1/model.safetensors").write_bytes(bytes([0]))
    with pytest.raises(StudyError, match="'secret-0' and 'secret-1' have one checkpoint hash"):
        lock(study_file, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_study_is_locked_once(study_file: Path, tmp_path: Path) -> None:
    """A second lock into the same folder would draw the allocation again."""
    lock(study_file, tmp_path / "s")
    with pytest.raises(StudyError, match="there already"):
        lock(study_file, tmp_path / "s")


def test_a_policy_that_is_not_there_is_named(study_file: Path, tmp_path: Path) -> None:
    """Nothing is locked with a model that cannot run."""
    study_file.write_text(study_file.read_text().replace('policy = "policy3"', 'policy = "lost"'))
    with pytest.raises(StudyError, match="policy 'lost' of model 'secret-3'"):
        lock(study_file, tmp_path / "s")
