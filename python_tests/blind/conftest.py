"""A small locked study, its record, a clock that tests move, and a closed study for reports."""

import io
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from vlakern.blind.protocol import Conduct
from vlakern.blind.results import (
    UNKNOWN,
    Analysis,
    ClosedStudy,
    Judgement,
    Model,
    Result,
    Voided,
)
from vlakern.blind.seal import Key, PublicPlan, lock, open_key
from vlakern.blind.store import Store
from vlakern.blind.video import strip

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

GROUPS = (("anna", "bert", "base"), ("carl", "dora", "base"))
TASKS = ("pick", "pour")
RATES = {"anna": 0.95, "bert": 0.2, "base": 0.6, "carl": 0.6, "dora": 0.6}


def recorded(
    seed: int = 0, tags: Mapping[str, str] | None = None, ending: str = ".mp4", **options: str
) -> bytes:
    """A short video of noise, as a robot's recorder writes it, with its tags.

    Args:
        options: of FFmpeg's writer.
    """
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 48, 64, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip{ending}"
        with av.open(str(path), "w", options=options) as file:
            stream = file.add_stream("libx264" if ending == ".mp4" else "libvpx", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for name, value in (tags or {}).items():
                file.metadata[name] = stream.metadata[name] = value
            for frame in pixels:
                file.mux(stream.encode(VideoFrame.from_ndarray(frame, format="rgb24")))
            file.mux(stream.encode())
        return path.read_bytes()


@cache
def clip(seed: int = 0) -> bytes:
    """A video that a study keeps as it is: it holds nothing but pictures."""
    with tempfile.TemporaryDirectory() as folder:
        strip(io.BytesIO(recorded(seed)), Path(folder) / "clip")
        return (Path(folder) / "clip").read_bytes()


class Clock:
    """UTC and monotonic time that a test moves together, or apart."""

    def __init__(self) -> None:
        self.utc, self.ticks = time.time(), 100.0  # the lock was now

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
        folder = tmp_path / "study"
        public = lock(write_study(tmp_path, **options), folder, random.Random(1))
        clock = Clock()  # not before the lock, however long that took
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


@pytest.fixture
def closed_study() -> Callable[..., ClosedStudy]:
    """``make(rates, groups, tasks, planned, seed, **fields of ClosedStudy) -> ClosedStudy``."""
    return make_closed


def make_closed(
    rates: dict[str, float] = RATES,
    groups: tuple[tuple[str, ...], ...] = GROUPS,
    tasks: tuple[str, ...] = TASKS,
    planned: int = 10,
    seed: int = 0,
    guess_skill: float = 0.0,
    **fields: object,
) -> ClosedStudy:
    """Every model of a group runs every condition once, in shuffled blocks; two judges, one guess.

    ``guess_skill``: the chance that the operator knows the model; else the guess is at random.
    """
    rng, order, results = np.random.default_rng(seed), count(), []
    names = tuple(dict.fromkeys(name for group in groups for name in group))
    for index, group in enumerate(groups):
        position = count()
        for task in tasks:
            for condition in range(planned):
                for model in rng.permutation(group).tolist():
                    place = next(order)
                    success = bool(rng.random() < rates[model])
                    other = success ^ bool(rng.random() < 0.05)
                    given = [Judgement("j1", success), Judgement("j2", other)]
                    if other != success:
                        given.append(Judgement("adjudicator", success))
                    known = rng.random() < guess_skill
                    guess = model if known else str(rng.choice([*names, UNKNOWN]))
                    results.append(
                        Result(
                            code=f"T{place:04d}",
                            model=model,
                            task=task,
                            condition=f"c{condition}",
                            group=index,
                            order=place,
                            position=next(position),
                            started=1.7e9 + 60 * place,
                            seconds=20.0 + place % 7,
                            success=success,
                            progress=1.0 if success else float(rng.integers(0, 4)) / 4,
                            failure=None if success else "dropped",
                            judgements=tuple(given),
                            guess=guess,
                            truth=model,
                        )
                    )
    given_fields: dict[str, object] = {
        "title": "Four models and a bridge",
        "models": tuple(Model(n, f"{i:064x}", f"policies/{n}") for i, n in enumerate(names)),
        "tasks": tasks,
        "groups": groups,
        "bridge": "base" if all("base" in group for group in groups) else None,
        "planned": planned,
        "analysis": Analysis(),
        "results": tuple(results),
        "voided": (Voided("V1", "bert", "pick", 0, 3, "network"),) if "bert" in names else (),
        "guess_choices": names,
        "commitment": "ab" * 32,
        "verified": True,
        "versions": {"vlakern": "0.1.0"},
    }
    return ClosedStudy(**{**given_fields, **fields})  # type: ignore[arg-type]
