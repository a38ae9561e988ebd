"""A run over real data that was interrupted ends with the bits of one that was not, with 0 workers
and with 4."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vlakern.data.collate import Augment
from vlakern.data.corpus import Corpus, open_corpus
from vlakern.data.lerobot import LeRobotWriter
from vlakern.data.loader import Loader
from vlakern.data.mixture import single
from vlakern.models import VLAConfig
from vlakern.models.weights import Processing
from vlakern.train import checkpoint
from vlakern.train.loop import Place, RunConfig, find_start, train

STEPS, SIZE, PARTS = 50, 4, 2
# Passes over 22 frames take 5 1/2 steps, so the middle of one is anywhere else.
CASES = {
    "step 0": (0, 0),
    "step 1": (1, 0),
    "mid-epoch": (24, 0),
    "mid-accumulation": (24, 1),
    "last but one": (49, 0),
}


@pytest.fixture(scope="module")
def corpus(lab: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three episodes of two tasks, two views."""
    root, draw = tmp_path_factory.mktemp("data") / "set", np.random.default_rng(0)
    sizes: dict[str, tuple[int, int]] = {"a": (32, 32), "b": (32, 32)}
    names = {"state_names": ["x", "y", "z"], "action_names": ["u", "v"], "robot_type": "arm"}
    with LeRobotWriter(root, fps=10, views=sizes, **names) as writer:
        for length, task in ((9, "push"), (6, "lift"), (7, "push")):
            frames = {v: draw.integers(0, 255, (length, 32, 32, 3), dtype=np.uint8) for v in sizes}
            states = draw.normal(size=(length, 3)).astype(np.float32)
            writer.add_episode(
                frames, states, draw.normal(size=(length, 2)).astype(np.float32), task
            )
    config: VLAConfig = dataclasses.replace(lab.MODEL, vocab_size=512)
    return open_corpus(single(root), config, Processing("zscore", "zscore", execute=1))


class Interrupted:
    """Sends SIGTERM to this process when a batch is asked for; the answer comes first.

    A signal at the first micro-batch of a step is obeyed before its second; one that comes with
    the last row of a step, before the next step.
    """

    def __init__(self, loader: Loader, step: int | None) -> None:
        self.loader, self.step, self.waited = loader, step, 0.0
        self.quarantine = loader.quarantine

    def batch(self, step: int, part: int = 0) -> Any:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
        found = self.loader.batch(step, part)
        self.waited = self.loader.waited
        return found


def advance(
    lab: ModuleType,
    corpus: Corpus,
    root: Path,
    workers: int,
    until: tuple[int, int] | None = None,
    resume: bool = False,
) -> Any:
    """Trains to the end, or until a place; returns the SHA-256 of every file of the last state."""
    config = lab.longer(STEPS, drop_view=0.3, drop_state=0.2, shift=1)
    place = Place(root / "checkpoints", lambda weights: None, {"seed": 5})
    start = find_start(place.checkpoints, "auto") if resume else None
    augment = Augment(config.drop_state, config.drop_view, config.shift, config.jitter)
    sampler, step = corpus.sampler(5), until[0] if until and until[1] else None

    def on_step(done: int, row: dict[str, Any]) -> None:
        if until == (done, 0):
            os.kill(os.getpid(), signal.SIGTERM)

    made = {"seed": 5, "batch_size": SIZE, "parts": PARTS, "augment": augment}
    with Loader(corpus, sampler, workers=workers, **made) as loader:
        batches = Interrupted(loader, step)
        arguments = (config, 5, batches, place, RunConfig(STEPS, parts=PARTS), start)
        summary = train(lab.make_model(5, corpus.config), *arguments, on_step=on_step)
    assert summary.stopped == (until is not None)
    newest = checkpoint.checkpoints(place.checkpoints)[-1]
    found = checkpoint.facts(newest)
    assert (found["step"], found["part"]) == (until or (STEPS, 0))
    return json.loads((newest / "manifest.json").read_text())["files"]


@pytest.fixture(scope="module")
def whole(lab: ModuleType, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What 50 uninterrupted steps end with."""
    return advance(lab, corpus, tmp_path_factory.mktemp("whole"), 0)


def resumed(
    lab: ModuleType, corpus: Corpus, root: Path, until: tuple[int, int], workers: tuple[int, int]
) -> Any:
    if until == (0, 0):
        # Nothing was done and nothing is there: --resume auto begins.
        return advance(lab, corpus, root, workers[1], resume=True)
    advance(lab, corpus, root, workers[0], until)
    return advance(lab, corpus, root, workers[1], resume=True)


@pytest.mark.parametrize(
    ("case", "workers"), [("mid-accumulation", (4, 0)), ("last but one", (0, 4))]
)
def test_an_interrupted_run_ends_with_the_same_bits(
    case: str,
    workers: tuple[int, int],
    lab: ModuleType,
    corpus: Corpus,
    whole: Any,
    tmp_path: Path,
) -> None:
    """After 50 steps: SHA-256 of weights, moments, average, generators and numbers."""
    assert resumed(lab, corpus, tmp_path, CASES[case], workers) == whole


@pytest.mark.soak
@pytest.mark.parametrize("workers", [0, 4])
@pytest.mark.parametrize("case", CASES)
def test_every_interruption_with_any_workers(
    case: str, workers: int, lab: ModuleType, corpus: Corpus, whole: Any, tmp_path: Path
) -> None:
    """All places, with 0 and 4 workers."""
    assert resumed(lab, corpus, tmp_path, CASES[case], (workers, workers)) == whole
