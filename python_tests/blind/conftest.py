"""A small locked study, its record, and a clock that tests move."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vlakern.blind.protocol import Conduct
from vlakern.blind.seal import Key, PublicPlan, lock, open_key
from vlakern.blind.store import Store

TEXT = """
title = "A small study"
group_size = {size}
trials = {trials}
judges = {judges}
failure_tags = ["dropped", "stuck"]
abort_reasons = ["hardware fault", "operator error"]
[breaks]
every = {every}
minutes = 5.0
between_groups = 10.0
[[tasks]]
name = "reach"
criterion = "the hand is at the ball"
conditions = ["left", "right"]
[[tasks]]
name = "push"
criterion = "the puck is at the goal"
conditions = ["left"]
milestones = ["touched", "half way", "there"]
"""


class Clock:
    """UTC and monotonic time that a test moves together, or apart."""

    def __init__(self) -> None:
        self.utc, self.ticks = 1.7e9, 100.0

    def pass_by(self, seconds: float) -> None:
        self.utc += seconds
        self.ticks += seconds


@dataclass
class Site:
    """A locked study with its conduct."""

    folder: Path
    public: PublicPlan
    key: Key
    store: Store
    conduct: Conduct
    clock: Clock

    def video(self, name: str = "") -> str:
        found = name or f"{random.randbytes(6).hex()}.mp4"
        (self.folder / "videos" / found).write_bytes(found.encode())
        return found

    def run(self, code: str | None = None) -> str:
        """Runs the next trial, taking the break before it, and returns its code."""
        if self.conduct.rest() is not None:
            self.conduct.pause(f"rest {self.clock.utc}", "operator")
            self.clock.pass_by(601.0)
            self.conduct.pause(f"rest {self.clock.utc}", "operator")
        turn = self.conduct.state.next
        assert turn is not None
        found = turn.trial.code
        self.conduct.start(f"start {found}", "operator", found)
        self.clock.pass_by(10.0)
        self.conduct.end(f"end {found}", "operator", found, self.video())
        return found


def write_study(
    folder: Path, models: int = 4, size: int = 2, trials: int = 2, judges: int = 1, every: int = 5
) -> Path:
    """A study file with policies of a few bytes each."""
    text = TEXT.format(size=size, trials=trials, judges=judges, every=every)
    for index in range(models):
        policy = folder / f"policy{index}"
        policy.mkdir(exist_ok=True)
        (policy / "model.safetensors").write_bytes(bytes([index]))
        text += f'[[models]]\nname = "secret-{index}"\npolicy = "policy{index}"\n'
    path = folder / "study.toml"
    path.write_text(text)
    return path


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """Four models in pairs, two trials each of two tasks."""
    return write_study(tmp_path)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Locks a study and opens its record."""
    opened: list[Store] = []

    def make(**options: int) -> Site:
        folder, clock = tmp_path / "study", Clock()
        public = lock(write_study(tmp_path, **options), folder, random.Random(1))
        key = open_key(folder)
        store = Store(folder / "record", lambda: clock.utc, lambda: clock.ticks)
        opened.append(store)
        conduct = Conduct(
            public,
            store,
            key.allocation.spares,
            folder / "videos",
            random.Random(2),
            lambda: clock.utc,
        )
        return Site(folder, public, key, store, conduct, clock)

    yield make
    for store in opened:
        store.close()
