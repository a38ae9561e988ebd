"""A study that is served: endpoint and pages together, refusals at the start, and a restart."""

import asyncio
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from python_tests.blind.conftest import clip
from vlakern.blind._browser import Browser
from vlakern.blind.seal import lock, open_key
from vlakern.blind.site import SiteConfig, check_models, pool_views, serve_study
from vlakern.blind.study import PoolModel
from vlakern.blind.tokens import draw_tokens
from vlakern.errors import StudyError
from vlakern.serve.client import Client, ServerError
from vlakern.types import ActionChunk, Observation

MP4 = clip()
MESSAGE = {"observation/front": np.zeros((8, 8, 3), np.uint8), "observation/state": np.zeros(3, np.float32), "prompt": "x"}  # fmt: skip  # noqa: E501


@dataclass
class Instant:
    """Actions that say which model made them."""

    number: int
    views: tuple[str, ...] = ("front",)
    chunk: int = 4

    @property
    def robot(self) -> Any:
        return SimpleNamespace(state_width=3, action_width=2)

    def act_batch(
        self, observations: Sequence[Observation], seeds: Sequence[int] | None = None
    ) -> list[ActionChunk]:
        made = np.full((self.chunk, 2), self.number, np.float32)
        return [ActionChunk(made) for _ in observations]


def instant(model: PoolModel) -> Instant:
    return Instant(int(model.name[-1]))


def served(folder: Path, work: Callable[[Any], None]) -> None:
    """Runs ``work`` with the addresses while the study is served from a thread."""
    up, found, loop = threading.Event(), {}, asyncio.new_event_loop()
    ending = asyncio.Event()

    def ready(addresses: Any) -> None:
        found["addresses"] = addresses
        up.set()

    def run() -> None:
        config = SiteConfig(port=0, web_port=0)
        loop.run_until_complete(
            serve_study(folder, config, ready, ending, instant, views=("front",))
        )

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert up.wait(20.0)
        work(found["addresses"])
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()


@pytest.fixture
def folder(study_file: Path, tmp_path: Path) -> Path:
    """A locked study with a short deadline."""
    text = study_file.read_text().replace("judges = 1", "judges = 1\ndeadline_ms = 30.0")
    study_file.write_text(text)
    lock(study_file, tmp_path / "s")
    return tmp_path / "s"


def test_a_trial_by_page_and_endpoint(folder: Path) -> None:
    """Start on the page, actions from the endpoint at the deadline, stop with its counts."""
    key, tokens = open_key(folder), draw_tokens(folder, 1, 30.0)

    def work(there: Any) -> None:
        operator = Browser(there.pages, tokens["operator"])
        with Client(there.robot) as robot:
            assert robot.metadata == {}
            code = operator.page.code
            operator.send("/start")
            begin = time.perf_counter()
            replies = [robot.infer(MESSAGE) for _ in range(3)]
            took = time.perf_counter() - begin
            assert 3 * 0.03 <= took < 3 * 0.03 + 0.5
            assert all(set(one) == {"actions"} for one in replies)
            number = int(replies[0]["actions"][0, 0])
            assert key.allocation.models[code] == f"secret-{number}"
            operator.send("/stop", MP4)
            with pytest.raises(ServerError, match="error"):
                robot.infer(MESSAGE)

    served(folder, work)
    served(folder, lambda there: None)  # again, on the same record


def test_a_restart_in_a_trial_goes_on(folder: Path) -> None:
    """The server ends between start and stop; the same trial's model answers afterwards."""
    key, tokens = open_key(folder), draw_tokens(folder, 1, 30.0)
    codes: list[str] = []

    def start(there: Any) -> None:
        operator = Browser(there.pages, tokens["operator"])
        codes.append(operator.page.code)
        operator.send("/start")

    def go_on(there: Any) -> None:
        with Client(there.robot) as robot:
            number = int(robot.infer(MESSAGE)["actions"][0, 0])
        assert key.allocation.models[codes[0]] == f"secret-{number}"
        operator = Browser(there.pages, tokens["operator"])
        assert operator.page.code == codes[0]
        operator.send("/stop", MP4)

    served(folder, start)
    served(folder, go_on)


def test_pages_have_the_servers_own_headers_off(folder: Path) -> None:
    """No name and version of the server software."""
    draw_tokens(folder, 1, 30.0)

    def work(there: Any) -> None:
        with urllib.request.urlopen(there.pages) as answer:
            assert answer.headers.get("server") is None

    served(folder, work)


def test_a_policy_changed_after_the_lock_is_refused(folder: Path) -> None:
    """One byte of one checkpoint; the model is named to the runner."""
    key = open_key(folder)
    check_models(key)
    path = Path(key.study.models[2].policy) / "model.safetensors"
    path.write_bytes(b"another")
    with pytest.raises(StudyError, match="model 'secret-2' was changed after the lock"):
        check_models(key)


def test_views_of_the_pool_are_those_of_its_policies() -> None:
    """Read from the policy's records, without loading it."""
    model = PoolModel("one", "metaworld-small")
    key: Any = SimpleNamespace(study=SimpleNamespace(models=(model, model)))
    assert pool_views(key) == ("left", "right")
