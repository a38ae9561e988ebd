"""The pages in a real browser: a whole small study on a phone and on a laptop, each checked."""

import asyncio
import base64
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

from vlakern.blind.seal import lock
from vlakern.blind.site import SiteConfig, serve_study
from vlakern.blind.tokens import draw_tokens
from vlakern.types import ActionChunk, Observation

WINDOWS = {"phone": (390, 844, True), "laptop": (1280, 800, False)}
PATIENCE = 60.0  # s, on a machine that does other things
LEAST = 44.0  # px, of what a thumb hits
FLAGS = (
    "--headless=new", "--no-sandbox", "--remote-debugging-port=0", "--no-first-run",
    "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
STUDY = Path(__file__).with_name("study.toml").read_text()
AUDIT = Path(__file__).with_name("audit.js").read_text().replace("LEAST", str(LEAST))
MAIN = """
(() => {
  const e = document.querySelector('button.main, button.danger, button.choice, a.main');
  if (e === null) return null;
  const box = e.getBoundingClientRect();
  return [box.left, box.top, innerWidth - box.right, innerHeight - box.bottom, box.height];
})()
"""


@dataclass
class Chromium:
    """The browser's DevTools connection; every message of it is kept."""

    socket: ClientConnection
    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    events: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, method: str, session: str | None = None, **values: Any) -> dict[str, Any]:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": values}
        self.socket.send(json.dumps({**message, **({"sessionId": session} if session else {})}))
        while True:
            answer = json.loads(self.socket.recv(timeout=PATIENCE))
            if answer.get("id") == number:
                assert "error" not in answer, (method, values, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def wait(self, session: str, method: str) -> None:
        """Until a session says ``method``, which it has not said since the events were cleared."""
        begin = time.monotonic()
        while not any(e["method"] == method and e.get("sessionId") == session for e in self.events):
            left = PATIENCE - (time.monotonic() - begin)
            self.events.append(json.loads(self.socket.recv(timeout=max(0.0, left))))


@dataclass
class Window:
    """One person's window: a cookie jar of its own, and fingers or a mouse."""

    chromium: Chromium
    site: str
    size: str
    shots: Path
    session: str = ""
    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        width, height, touch = WINDOWS[self.size]
        context = self.chromium.ask("Target.createBrowserContext")["browserContextId"]
        target = self.chromium.ask(
            "Target.createTarget", url="about:blank", browserContextId=context
        )["targetId"]
        self.session = self.chromium.ask(
            "Target.attachToTarget", targetId=target, flatten=True
        )["sessionId"]  # fmt: skip
        for domain in ("Page", "Network", "Log", "Runtime", "DOM", "Audits"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setTouchEmulationEnabled", enabled=touch)
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height,
                 deviceScaleFactor=2 if touch else 1, mobile=touch)  # fmt: skip

    def ask(self, method: str, **values: Any) -> dict[str, Any]:
        return self.chromium.ask(method, self.session, **values)

    def js(self, text: str) -> Any:
        found = self.ask("Runtime.evaluate", expression=text, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    @property
    def text(self) -> str:
        return self.js("document.body ? document.body.innerText : ''")

    def go(self, path: str, shot: str) -> None:
        self.chromium.events.clear()
        self.ask("Page.navigate", url=f"{self.site}{path}")
        self.landed(shot)

    def press(self, selector: str, shot: str = "") -> None:
        """Puts the finger or the mouse on an element, where it is not covered."""
        place = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " if (e === null) return null; e.scrollIntoView({block: 'center'});"
            " const box = e.getBoundingClientRect();"
            " return [box.left + box.width / 2, box.top + box.height / 2]; })()"
        )
        assert place is not None, f"no {selector} in {self.text}"
        point = dict(zip("xy", place, strict=True))
        self.chromium.events.clear()
        if WINDOWS[self.size][2]:
            self.ask("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
            self.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        else:
            for kind in ("mousePressed", "mouseReleased"):
                self.ask("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1,
                         **point)  # fmt: skip
        if shot:
            self.landed(shot)

    def write(self, selector: str, text: str) -> None:
        self.js(f"document.querySelector({json.dumps(selector)}).select()")
        self.ask("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """An option of a list, which the system itself draws."""
        self.js(f"document.querySelector({json.dumps(selector)}).value = {json.dumps(value)}")

    def give(self, selector: str, path: Path) -> None:
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        node = self.ask("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.ask("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def enter(self, token: str, shot: str) -> None:
        self.go("/", "sign-in")
        self.write("#word", token)
        self.press("button.main", shot)

    def landed(self, shot: str) -> None:
        """Checks the page that has come, in light and dark, and keeps a picture of it."""
        self.chromium.wait(self.session, "Page.loadEventFired")
        self.asked += self.said("Network.requestWillBeSent", "request", "url")
        # The buttons of the browser's own video player are data.
        own = (f"{self.site}/", "data:")
        elsewhere = [url for url in self.asked if not url.startswith(own)]
        assert elsewhere == []
        for scheme in ("dark", "light"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            self.ask("Emulation.setEmulatedMedia", features=[feature])
            wrong = self.js(AUDIT)
            self.keep(f"{shot}-{scheme}" if scheme == "dark" else shot)
            assert wrong == [], f"{shot} in {scheme}: {wrong}"
        complaints = [e["params"] for e in self.events("Log.entryAdded")]
        assert [e for e in complaints if e["entry"]["source"] != "network"] == []
        assert self.events("Audits.issueAdded", "Runtime.consoleAPICalled") == []

    def events(self, *methods: str) -> list[dict[str, Any]]:
        return [
            e for e in self.chromium.events
            if e["method"] in methods and e.get("sessionId") == self.session
        ]  # fmt: skip

    def said(self, method: str, *keys: str) -> list[str]:
        found: list[Any] = [event["params"] for event in self.events(method)]
        for key in keys:
            found = [one[key] for one in found]
        return found

    def keep(self, name: str) -> None:
        data = self.ask("Page.captureScreenshot", format="png")["data"]
        path = self.shots / f"{self.size}-{next(SHOTS):03d}-{name}.png"
        path.write_bytes(base64.b64decode(data))

    def reachable(self) -> None:
        """The page's first button is on the first screen, whole."""
        *edges, height = self.js(MAIN)
        assert min(edges) >= 0, (self.text, edges)
        assert height >= LEAST


SHOTS = count(1)


@contextmanager
def chromium(folder: Path) -> Iterator[Chromium]:
    """Debian's browser, without a screen."""
    found = shutil.which("chromium")
    assert found is not None, "no chromium on PATH; install Debian's package of that name"
    profile = folder / "profile"
    process = subprocess.Popen(
        [found, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        file, begin = profile / "DevToolsActivePort", time.monotonic()
        while not (file.is_file() and file.read_text().count("\n")):
            assert process.poll() is None
            assert time.monotonic() - begin < PATIENCE
            time.sleep(0.05)
        port, path = file.read_text().split()
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, compression=None) as socket:
            yield Chromium(socket)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def still(observations: Sequence[Observation], seeds: object = None) -> list[ActionChunk]:
    return [ActionChunk(np.zeros((4, 2), np.float32)) for _ in observations]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The pages' address of a study that is served with models that answer at once."""
    up, found, loop = threading.Event(), [], asyncio.new_event_loop()
    ending = asyncio.Event()
    robot = SimpleNamespace(state_width=3, action_width=2)
    model: Any = SimpleNamespace(robot=robot, chunk=4, views=("front",), act_batch=still)

    def ready(addresses: Any) -> None:
        found.append(addresses.pages)
        up.set()

    def run() -> None:
        config = SiteConfig(port=0, web_port=0)
        loop.run_until_complete(
            serve_study(folder, config, ready, ending, lambda _: model, views=("front",))
        )

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert up.wait(PATIENCE)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()


@pytest.fixture
def video(tmp_path: Path, size: str) -> Path:
    """Two seconds of a ball that rolls, as a phone or a laptop's browser records it."""
    ending, codec = (".mp4", "libx264") if size == "phone" else (".webm", "libvpx")
    path = tmp_path / f"trial{ending}"
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for index in range(20):
            image = np.full((240, 320, 3), 90, np.uint8)
            image[100:140, 12 * index : 12 * index + 40] = (230, 140, 40)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        file.mux(stream.encode())
    return path


@pytest.fixture
def shots(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where pictures of the pages are kept."""
    given = request.config.getoption("--screenshots")
    folder = Path(request.config.invocation_params.dir, given) if given else tmp_path / "shots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.ci
@pytest.mark.parametrize("size", WINDOWS)
def test_a_whole_study_in_a_window(size: str, tmp_path: Path, video: Path, shots: Path) -> None:
    """From the first sign-in to the report; an abort, a break, a dispute, and words gone wrong."""
    for index in range(2):
        (tmp_path / f"policy{index}").mkdir()
        (tmp_path / f"policy{index}" / "model.safetensors").write_bytes(bytes([index]))
    (tmp_path / "study.toml").write_text(STUDY)
    public = lock(tmp_path / "study.toml", tmp_path / "study")
    tokens = draw_tokens(tmp_path / "study", public.judges, 30.0)
    with served(tmp_path / "study") as site, chromium(tmp_path) as browser:
        windows = {role: Window(browser, site, size, shots) for role in tokens}
        windows["judge-1"].enter("not a token", "wrong-token")
        assert "not known" in windows["judge-1"].text
        for role, window in windows.items():
            window.enter(tokens[role], f"{role}-begins")
        run_trials(windows["operator"], video)
        judge_trials(windows["judge-1"], windows["judge-2"])
        settle(windows["adjudicator"])
        open_study(windows["analyst"], public.commitment)


def run_trials(operator: Window, video: Path) -> None:
    """An aborted trial, a whole one, a break that cannot be skipped, and the rest."""
    operator.reachable()
    operator.press("button.main", "operator-runs")
    operator.reachable()
    operator.press("summary")
    operator.keep("operator-abort")
    operator.choose("#reason", "hardware fault")
    operator.press("button.danger", "operator-aborted")
    operator.press("button.main", "operator-runs")
    operator.give("#video", video)
    operator.press("button.main", "operator-guess")
    operator.reachable()
    operator.press("button[value=unknown]", "operator-break")
    operator.reachable()
    operator.press("button.main", "operator-rests")
    assert operator.js("document.querySelector('button.main')") is None
    begin = time.monotonic()
    while not ("Go on" in operator.text and operator.js("document.readyState") == "complete"):
        assert time.monotonic() - begin < PATIENCE
        time.sleep(0.2)
    operator.reachable()
    operator.press("button.main", "operator-rested")
    operator.press("button.main", "operator-runs")
    operator.give("#video", video)
    operator.press("button.main", "operator-guess")
    operator.press("button[value=same]", "operator-done")
    assert "All trials are done" in operator.text


def judge_trials(first: Window, second: Window) -> None:
    """One sees successes, the other a failure; a failure without its tag is asked again."""
    for judge in (first, second):
        for index in range(2):
            judge.go("/", "judge-trial")
            assert judge.js(PLAYS) > 0.0
            if judge is second and index == 0:
                judge.press("label.bad")
                judge.press("input[name=milestone-0]")
                judge.press("button.main", "judge-forgets")
                assert "choose a tag" in judge.text
                assert judge.js("document.querySelector('[name=milestone-0]').checked")
                judge.choose("#failure", "stuck")
            else:
                judge.press("label.good")
                for step in range(3):
                    judge.press(f"input[name=milestone-{step}]")
            judge.press("button.main", "judge-saved")
        assert "Nothing to judge now" in judge.text


def settle(adjudicator: Window) -> None:
    """The third person settles the dispute, and then corrects that."""
    adjudicator.go("/", "dispute")
    adjudicator.press("label.bad")
    adjudicator.choose("#failure", "stuck")
    adjudicator.press("button.main", "settled")
    assert "No disputes" in adjudicator.text
    adjudicator.press("summary")
    adjudicator.press("details button.main", "settled-opens")
    adjudicator.press("label.bad")
    adjudicator.choose("#failure", "stuck")
    adjudicator.write("#why", "the wrong tag")
    adjudicator.press("button.main", "settled-corrected")


def open_study(analyst: Window, commitment: str) -> None:
    """Closed, asked for, refused once, opened; the report is readable there."""
    analyst.go("/", "analyst")
    analyst.press("button.danger", "closed")
    analyst.press("button.main", "requested")
    analyst.write("#commitment", "0" * 64)
    analyst.press("button.danger", "wrong-commitment")
    assert "is not the study" in analyst.text
    analyst.write("#commitment", commitment)
    analyst.press("button.danger", "opened")
    assert "secret-" not in analyst.text
    analyst.press("a.main", "report")
    assert re.search(r"secret-[01]", analyst.text)
    assert analyst.js("getComputedStyle(document.querySelector('section')).borderRadius") != "0px"


PLAYS = """
(async () => {
  const video = document.querySelector('video');
  if (!video.controls) return -1;
  video.muted = true;
  await video.play();
  await new Promise(done => { video.ontimeupdate = () => video.currentTime > 0 && done(); });
  return video.currentTime;
})()
"""
