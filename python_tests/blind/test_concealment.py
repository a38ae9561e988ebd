"""Concealment: no name reaches a page, a file or a log, and nothing visible tells models apart."""

import asyncio
import logging
import re
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from python_tests.blind.conftest import clip, recorded
from vlakern.blind._browser import Browser
from vlakern.blind.seal import lock, open_key
from vlakern.blind.site import Addresses, SiteConfig, serve_study
from vlakern.blind.study import PoolModel
from vlakern.blind.tokens import draw_tokens
from vlakern.errors import StudyError
from vlakern.serve.client import Client, ServerError
from vlakern.types import ActionChunk, Observation

MP4 = clip()
VIEWS = ("front",)
STUDY = """
title = "Concealed"
group_size = {size}
trials = {trials}
judges = 2
deadline_ms = {deadline}
failure_tags = ["stuck"]
[breaks]
every = 100000
minutes = 0.0
between_groups = 0.0
[[tasks]]
name = "reach"
criterion = "there"
conditions = ["left", "right", "middle"]
"""


@dataclass
class Sleeper:
    """A policy that takes its own time."""

    takes: float
    views: tuple[str, ...] = VIEWS
    chunk: int = 4

    @property
    def robot(self) -> Any:
        return SimpleNamespace(state_width=3, action_width=2)

    def act_batch(
        self, observations: Sequence[Observation], seeds: Sequence[int] | None = None
    ) -> list[ActionChunk]:
        time.sleep(self.takes)
        if observations[0].instruction == "break":
            raise RuntimeError("a policy that breaks, and says its own name in its error")
        return [ActionChunk(np.zeros((4, 2), np.float32)) for _ in observations]


@dataclass
class Ear:
    """Everything that left the server by HTTP."""

    heard: list[str] = field(default_factory=list)

    def listen(self, browser: Browser) -> Browser:
        real = browser._open

        def open_and_hear(request: Any, timeout: float = 60.0) -> Any:
            try:
                answer = real(request, timeout=timeout)
            except urllib.error.HTTPError as error:
                self.heard.append(f"{error.url}\n{error.headers}\n{error.read()!r}")
                raise
            body = answer.read()
            self.heard.append(f"{answer.url}\n{answer.headers}\n{body!r}")
            answer.read = lambda: body
            return answer

        browser._open = open_and_hear  # pyright: ignore[reportAttributeAccessIssue]
        return browser


def served(
    folder: Path, load: Callable[[PoolModel], Any], work: Callable[[Addresses], None]
) -> None:
    """Runs ``work`` while the study is served."""
    up, found, loop = threading.Event(), {}, asyncio.new_event_loop()
    ending = asyncio.Event()

    def ready(addresses: Addresses) -> None:
        found["at"] = addresses
        up.set()

    def run() -> None:
        config = SiteConfig(port=0, web_port=0)
        loop.run_until_complete(serve_study(folder, config, ready, ending, load, VIEWS))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert up.wait(30.0)
        work(found["at"])
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()


def message(words: str = "go") -> dict[str, Any]:
    image = np.zeros((8, 8, 3), np.uint8)
    return {"observation/front": image, "state": np.zeros(3, np.float32), "prompt": words}


def write(folder: Path, names: list[str], **counts: float) -> Path:
    """A study of policies whose folders carry the names, too."""
    text = STUDY.format(**counts)
    for name in names:
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_text(name)
        text += f'[[models]]\nname = "{name}"\npolicy = "{name}"\n'
    (folder / f"{names[0]}.toml").write_text(text)
    return folder / f"{names[0]}.toml"


@pytest.mark.ci
def test_no_canary_sings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """504 trials, six models with canaries for names: none in any answer, file, name or log."""
    caplog.set_level(logging.DEBUG)
    canaries = [f"canary{secrets.token_hex(8)}" for _ in range(6)]
    (tmp_path / "pool").mkdir()
    file = write(tmp_path / "pool", canaries, size=3, trials=84, deadline=10.0)
    folder = tmp_path / "study"
    lock(file, folder)
    tokens = draw_tokens(folder, 2, 1.0)
    ear = Ear()

    def work(there: Addresses) -> None:
        browser = {role: ear.listen(Browser(there.pages, tokens[role])) for role in tokens}
        operator = browser["operator"]
        words = " ".join(canaries)
        tags = {"title": words, "comment": words, "handler_name": words}
        video = recorded(tags=tags)
        assert all(name.encode() in video for name in canaries)
        codes = trials(there, operator, video)
        assert len(codes) == 504
        for role in ("judge-1", "judge-2"):
            for index in range(20):
                browser[role].read()
                video = browser[role].page.video
                ear.heard.append(str(browser[role]._open(f"{there.pages}{video}").headers))
                tag = {"failure": "stuck"} if index % 2 else {}
                browser[role].send("/judge", None, outcome="failure" if tag else "success", **tag)
        browser["adjudicator"].read()
        browser["analyst"].read()
        browser["analyst"]._open(f"{there.pages}/download/trials.csv")
        for path in ("/download/report.html", "/nothing", "/video/nothing", "/docs"):
            request = urllib.request.Request(f"{there.pages}{path}")
            with pytest.raises(urllib.error.HTTPError, match=r"HTTP Error 40[349]"):
                browser["analyst"]._open(request)

    served(folder, lambda model: Sleeper(0.0), work)
    heard = "\n".join(ear.heard)
    assert len(ear.heard) > 1500
    spoken = {
        "an answer": heard,
        "a log": caplog.text,
        "the terminal": "".join(capfd.readouterr()),
        "a file name": "\n".join(map(str, public_files(folder))).replace(str(tmp_path), ""),
        "a file": "\n".join(str(path.read_bytes()) for path in public_files(folder)),
    }
    for where, text in spoken.items():
        for canary in canaries:
            assert canary not in text, f"{canary} in {where}"
        for identity in open_key(folder).identities.values():
            assert identity not in text
    assert any(name in (folder / "sealed/key.json").read_text() for name in canaries)


def trials(there: Addresses, operator: Browser, video: bytes) -> list[str]:
    """Runs all trials; in some the policy breaks, in some the robot asks for nonsense."""
    found: list[str] = []
    robot = Client(there.robot)
    while True:
        operator.read()
        if "/pause" in operator.page.forms:
            operator.send("/pause")
        elif "/guess" in operator.page.forms:
            operator.send("/guess", guess="unknown")
        elif "/start" in operator.page.forms:
            found.append(operator.page.code)
            operator.send("/start")
            for words in ("go", "break" if len(found) % 50 == 0 else "go"):
                found_here = ask(robot, words)
                assert "canary" not in found_here
            operator.send("/stop", video)
        else:
            robot.close()
            return found


def ask(robot: Client, words: str) -> str:
    """A reply's keys, or the sentence of an error."""
    try:
        return " ".join(robot.infer(message(words)))
    except ServerError as error:
        return str(error)


def public_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "sealed" not in path.parts]


def neighbours(features: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Of each sample that is not learnt from, the 15 nearest that are, on standardised features."""
    scale = features.std(0) + 1e-9
    away = ((features[~train][:, None] - features[train][None]) / scale) ** 2
    return np.argsort(away.sum(-1), 1)[:, :15]


def accuracy(near: np.ndarray, labels: np.ndarray, train: np.ndarray) -> float:
    """Share of right answers where the nearest vote."""
    return float(((labels[train][near].mean(1) > 0.5) == labels[~train]).mean())


def chance(features: np.ndarray, labels: np.ndarray, of: np.ndarray) -> tuple[float, float]:
    """Accuracy on every second trial, learnt from the others, and how often luck does as well.

    Replies of a trial share a model and a moment of the machine, so luck is drawn by giving whole
    trials other models.
    """
    train = of % 2 == 0
    near = neighbours(features, train)
    found = accuracy(near, labels, train)
    source = np.random.default_rng(1)
    models = np.array([labels[of == trial][0] for trial in range(of.max() + 1)])
    drawn = [accuracy(near, source.permutation(models)[of], train) for _ in range(999)]
    return found, (1 + sum(one >= found for one in drawn)) / 1000


@pytest.mark.parametrize(
    "trials", [pytest.param(10, marks=pytest.mark.ci), pytest.param(50, marks=pytest.mark.soak)]
)
def test_nothing_visible_tells_models_apart(tmp_path: Path, trials: int) -> None:
    """Replies of a model that takes 1 ms and one that takes 5: guessed no better than chance.

    All of them count, late ones too. The same classifier on the same models without the deadline
    knows them at once.
    """
    (tmp_path / "pool").mkdir()
    file = write(tmp_path / "pool", ["quick", "slow"], size=2, trials=trials, deadline=25.0)
    folder = tmp_path / "study"
    lock(file, folder)
    key, tokens = open_key(folder), draw_tokens(folder, 2, 1.0)
    takes = {"quick": 0.001, "slow": 0.005}
    seen: list[list[float]] = []
    labels: list[bool] = []

    def work(there: Addresses) -> None:
        operator = Browser(there.pages, tokens["operator"])
        with Client(there.robot) as robot:
            while True:
                operator.read()
                if "/guess" in operator.page.forms:
                    operator.send("/guess", guess="unknown")
                elif "/start" in operator.page.forms:
                    code = operator.page.code
                    operator.send("/start")
                    previous = 0.0
                    for index in range(20):
                        begin = time.perf_counter()
                        reply = robot.infer(message())
                        took = time.perf_counter() - begin
                        letters = [float(ord(letter)) for letter in code]
                        seen.append([took, took - previous, index, reply["actions"].size, *letters])
                        labels.append(key.allocation.models[code] == "slow")
                        previous = took
                    operator.send("/stop", MP4)
                else:
                    return

    served(folder, lambda model: Sleeper(takes[model.name]), work)
    features, truth, of = np.array(seen), np.array(labels), np.arange(40 * trials) // 20
    assert len(truth) == 40 * trials
    assert abs(truth.mean() - 0.5) < 0.01
    for columns in (slice(None), slice(0, 2), slice(0, 1)):
        found, luck = chance(features[:, columns], truth, of)
        assert luck > 0.002, f"{found:.1%} guessed"
    shown = []
    for slow in truth[:400]:
        begin = time.perf_counter()
        time.sleep(takes["slow" if slow else "quick"])
        shown.append([time.perf_counter() - begin])
    found, luck = chance(np.array(shown), truth[:400], of[:400])
    assert found > 0.95
    assert luck < 0.01


@pytest.mark.ci
def test_a_late_reply_leaves_at_the_next_beat(tmp_path: Path) -> None:
    """It is counted, the report says so, and its time is a multiple of the deadline."""
    (tmp_path / "pool").mkdir()
    file = write(tmp_path / "pool", ["quick", "slow"], size=2, trials=1, deadline=50.0)
    folder = tmp_path / "study"
    lock(file, folder)
    tokens = draw_tokens(folder, 2, 1.0)
    stalls = {"now": 0.0}

    @dataclass
    class Stalling(Sleeper):
        def act_batch(self, observations: Any, seeds: Any = None) -> list[ActionChunk]:
            time.sleep(stalls["now"])
            return super().act_batch(observations, seeds)

    def work(there: Addresses) -> None:
        operator = Browser(there.pages, tokens["operator"])
        operator.send("/start")
        stalls["now"] = 0.06
        with Client(there.robot) as robot:
            begin = time.perf_counter()
            robot.infer(message())
            assert 0.1 <= time.perf_counter() - begin < 0.15
        stalls["now"] = 0.0
        operator.send("/stop", MP4)

    served(folder, lambda model: Stalling(0.0), work)
    log = (folder / "record/events.jsonl").read_text()
    assert re.search(r'"late":1,"requests":1', log)


@pytest.mark.ci
def test_a_model_too_slow_for_the_study_is_the_runners_to_know(tmp_path: Path) -> None:
    """Also one of the last group: its name stands in the refusal at the start, before any page."""
    (tmp_path / "pool").mkdir()
    names = ["quick1", "quick2", "quick3", "slow"]
    file = write(tmp_path / "pool", names, size=2, trials=1, deadline=5.0)

    def last(folder: Path) -> bool:
        lock(file, folder)
        return "slow" in open_key(folder).allocation.groups[1]

    folder = next(one for one in (tmp_path / f"study{i}" for i in range(100)) if last(one))
    draw_tokens(folder, 2, 1.0)

    def load(model: PoolModel) -> Sleeper:
        return Sleeper(0.02 if model.name == "slow" else 0.0)

    config = SiteConfig(port=0, web_port=0)
    serving = serve_study(folder, config, lambda at: None, asyncio.Event(), load, VIEWS)
    with pytest.raises(StudyError, match="model 'slow' takes"):
        asyncio.run(serving)
