"""Interim looks: aliases alone, along the order of trials, in the record, and none if fixed."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlakern.blind.look import look
from vlakern.blind.protocol import Conduct
from vlakern.blind.results import Judgement
from vlakern.blind.seal import lock, open_key, read_plan
from vlakern.blind.store import Store, verify
from vlakern.errors import StudyError

from .conftest import write_study


class Running:
    """A sequential study in which one model always succeeds, judged as it goes."""

    def __init__(self, folder: Path, store: Store, conduct: Conduct) -> None:
        self.folder, self.store, self.conduct = folder, store, conduct
        self.key = open_key(folder)

    def look(self) -> dict[str, bool]:
        return look(self.conduct.plan, self.key, self.conduct.state)

    def trial(self, *, judged: bool = True) -> str:
        turn = self.conduct.state.next
        assert turn is not None
        code = turn.trial.code
        self.conduct.start(f"s{code}", "operator", code)
        (self.folder / "videos" / f"{code}.mp4").write_bytes(code.encode())
        self.conduct.end(f"e{code}", "operator", code, f"{code}.mp4")
        if judged:
            self.judge(code)
        return code

    def judge(self, code: str) -> None:
        won = self.key.allocation.models[code] == self.key.allocation.groups[0][0]
        steps = None if self.conduct.state.trials[code].trial.task == "reach" else float(won)
        verdict = Judgement("judge-1", won, steps, None if won else "stuck")
        self.conduct.judge(f"j{code}", "judge-1", code, verdict)


@pytest.fixture
def running(tmp_path: Path) -> Any:
    """Two groups of two models, 12 trials of each at each of two tasks, no breaks in the way."""
    file = write_study(tmp_path, trials=12, every=1000)
    text = file.read_text().replace("between_groups = 10.0", "between_groups = 0.0")
    file.write_text(f'{text}[analysis]\ndesign = "sequential"\n')
    lock(file, tmp_path / "s", random.Random(1))
    with Store(tmp_path / "s/record") as store:
        spares = open_key(tmp_path / "s").allocation.spares
        plan = read_plan(tmp_path / "s")
        yield Running(tmp_path / "s", store, Conduct(plan, store, spares, tmp_path / "s/videos"))


def test_what_is_decided_is_said_without_names(running: Running) -> None:
    """Nothing before the first trial; one of two comparisons after a group; no name anywhere."""
    aliases = {"comparison 1", "comparison 2"}
    assert running.look() == dict.fromkeys(aliases, False)
    first_group = [t for t in running.conduct.plan.plan.queue if t.group == 0]
    seen = []
    for _ in first_group:
        running.trial()
        seen.append(sum(running.look().values()))
    assert seen == sorted(seen)  # everything that was decided stays so here
    assert seen[0] == 0
    assert seen[-1] == 1
    # One of two planned comparisons: decided at 1 / 40, though the other has no trial yet.
    pairs = 1 + seen.index(1)
    assert pairs >= 16


def test_a_look_goes_to_the_record_and_the_report(running: Running) -> None:
    """The event holds what was said; after the end nobody looks; the notes count it."""
    running.trial()
    event = running.conduct.look("l", "analyst", running.look())
    assert event.data == {"decided": {"comparison 1": False, "comparison 2": False}}
    assert running.conduct.state.looks == 1
    running.conduct.close("c", "analyst", "enough was decided")
    with pytest.raises(StudyError, match="the study is closed"):
        running.conduct.look("m", "analyst", running.look())
    assert verify(running.folder / "record") == len(running.store.events)


def test_a_gap_in_the_judgements_ends_what_counts(running: Running) -> None:
    """Trials after one without an outcome do not count: their order would be the judge's."""
    waiting = running.trial(judged=False)
    for _ in range(39):
        running.trial()
    assert not any(running.look().values())
    running.judge(waiting)
    assert any(running.look().values())


def test_a_fixed_design_is_not_looked_at(site: Callable[..., Any]) -> None:
    """The refusal says which design may."""
    here = site()
    with pytest.raises(StudyError, match=r'locked with design = "sequential"'):
        look(here.public, here.key, here.conduct.state)
