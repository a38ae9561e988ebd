"""``vlakern rollout`` leaves a whole report or nothing, and says in one sentence what is wrong."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

import vlakern
from vlakern.cli import main
from vlakern.cli import rollout as verb
from vlakern.errors import CheckpointError, ConfigError, InputError, RenderError, VlakernError
from vlakern.space import embodiment, slot_map
from vlakern.space.controller import NativeControl
from vlakern.types import ActionChunk, Observation

STAGES = {"preprocess": 1.0, "vision": 2.0, "prefix": 3.0, "ode": 4.0, "postprocess": 5.0}


class Toy:
    """Stands for the simulator: succeeds after as many steps as its seed plus ten."""

    def __init__(self, task: str, *, views: Sequence[str], image_size: int) -> None:
        self.task, self.views, self.size = task, views, image_size
        self.left = 0

    def reset(self, seed: int) -> None:
        self.left = 10 + seed

    def observe(self) -> Observation:
        images = {view: self.render(view) for view in self.views}
        return Observation(images, np.zeros(4, np.float32), "go")

    def render(self, view: str) -> np.ndarray:
        return np.full((self.size, self.size, 3), self.left % 256, np.uint8)

    def step(self, action: np.ndarray) -> SimpleNamespace:
        self.left -= 1
        return SimpleNamespace(success=self.left <= 0)

    def close(self) -> None:
        pass


class Steady:
    """Stands for the policy."""

    name, views, image_size, chunk, execute = "steady", ("left", "right"), 16, 8, 4
    control_rate, device, dtype, frame = 80.0, "cpu", "torch.float32", "native"

    def act_batch(self, observations: list[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        stages = {**STAGES, "total": 15.0}
        return [ActionChunk(np.zeros((8, 4), np.float32), stages) for _ in observations]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., verb.Args]:
    """Options of a run in ``tmp_path`` with a simulator and a policy that cost nothing."""
    simulator = SimpleNamespace(CONTROL_RATE=80.0, MetaWorldEnv=Toy)
    usual = {"out": tmp_path / "out", "tasks": "reach-v3,push-v3", "max_steps": 12}
    monkeypatch.setattr(verb, "_simulator", lambda name: simulator)
    monkeypatch.setitem(vars(vlakern), "load", lambda name, **options: Steady())
    return lambda **options: verb.Args(**(usual | options))


def _wilson(successes: int, n: int) -> list[float]:
    return list(binomtest(successes, n).proportion_ci(method="wilson"))


def test_report_and_json(
    toy: Callable[..., verb.Args], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tables, the page, the videos and the JSON tell the same story."""
    assert verb.run(toy(episodes=4, batch=3, json=tmp_path / "deep" / "r.json")) == 0
    printed = capsys.readouterr().out
    for words in (
        "reach-v3",
        "3/4",
        "30.1 – 95.4 %",
        "call [ms]",
        "p99-p50",
        "cold start",
        "report.html",
    ):
        assert words in printed, words
    written = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert written["schema"] == 1
    assert {"vlakern", "commit", "machine", "config"} <= set(written)
    assert written["tasks"][0] == {
        "task": "reach-v3",
        "episodes": 4,
        "successes": 3,
        "wilson95": pytest.approx(_wilson(3, 4)),
    }
    assert written["mean_success"] == 0.75
    assert written["mean_success_wilson95"] == pytest.approx(_wilson(6, 8))
    assert set(written["latency_ms"]) == {*STAGES, "total"}
    assert set(written["latency_ms"]["ode"]) == {"p50", "p95", "p99", "max", "min"}
    assert [row["seed"] for row in written["episodes"]] == [0, 1, 2, 3] * 2
    assert all((tmp_path / "out" / row["video"]).is_file() for row in written["episodes"])
    assert (tmp_path / "out" / "report.html").is_file()
    beside = json.loads((tmp_path / "out" / "rollout.json").read_text())
    # The machine's load may have changed between the two files.
    assert {**beside, "machine": None} == {**written, "machine": None}


def test_earlier_report_is_replaced_whole(toy: Callable[..., verb.Args], tmp_path: Path) -> None:
    """No video of the run before stays, and nothing temporary lies beside the report."""
    verb.run(toy(episodes=3))
    verb.run(toy(episodes=1, tasks="push-v3"))
    videos = [path.name for path in (tmp_path / "out" / "videos").glob("*.mp4")]
    assert videos == ["push-v3-0000.mp4"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_interrupt_leaves_the_earlier_report(
    toy: Callable[..., verb.Args], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a run touches neither the report nor the JSON of the run before."""
    options = toy(episodes=2, json=tmp_path / "r.json")
    verb.run(options)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    steps = iter(range(15))

    def interrupted(self: Toy, action: np.ndarray) -> SimpleNamespace:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return SimpleNamespace(success=False)

    monkeypatch.setattr(Toy, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        verb.run(options)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": "raech-v3"}, r"unknown task 'raech-v3' in --tasks; did you mean reach-v3"),
        ({"episodes": 0}, r"episodes must be at least 1, found 0"),
        ({"batch": 0}, r"batch must be at least 1, found 0"),
        ({"max_steps": 0}, r"max_steps must be at least 1, found 0"),
        ({"seed": 1_000_000}, r"training uses the rest"),
    ],
)
def test_wrong_options(
    toy: Callable[..., verb.Args], tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    """The sentence names the option's value; nothing is written."""
    with pytest.raises(InputError, match=words) as caught:
        verb.run(toy(**options))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_foreign_folder_is_refused(toy: Callable[..., verb.Args], tmp_path: Path) -> None:
    """A directory that holds something else survives ``--out``."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        verb.run(toy())
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_unusable_paths_are_refused_before_the_work(
    toy: Callable[..., verb.Args], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of minutes does not end in a path that could never be written."""
    monkeypatch.setattr(verb, "_load", lambda args: pytest.fail("loaded a policy"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a directory; name a file"):
        verb.run(toy(json=tmp_path))
    with pytest.raises(InputError, match=r"cannot write .*file: Not a directory"):
        verb.run(toy(json=tmp_path / "file" / "r.json"))
    with pytest.raises(InputError, match=r"cannot write .*file: Not a directory"):
        verb.run(toy(out=tmp_path / "file" / "out"))


@pytest.mark.parametrize("error", [RenderError("no renderer"), CheckpointError("no policy")])
def test_failures_leave_nothing(
    toy: Callable[..., verb.Args],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: VlakernError,
) -> None:
    """No renderer or no policy: the error passes through and the disk is as it was."""

    def fail(*_: object, **__: object) -> None:
        raise error

    if isinstance(error, RenderError):
        monkeypatch.setattr(Toy, "observe", fail)
    else:
        monkeypatch.setitem(vars(vlakern), "load", fail)
    with pytest.raises(type(error)):
        verb.run(toy())
    assert not list(tmp_path.iterdir())


def test_a_policy_in_a_frame_commands_through_its_robots_controller(
    toy: Callable[..., verb.Args], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chunks are absolute: at the origin, a command of half a centimetre is half a unit."""
    told: list[np.ndarray] = []

    def step(self: Toy, action: np.ndarray) -> SimpleNamespace:
        told.append(action)
        return SimpleNamespace(success=len(told) >= 4)

    def act(self: Steady, observations: list[Observation], seeds: Any) -> list[ActionChunk]:
        stages = {**STAGES, "total": 15.0}
        line = np.arange(1, 9, dtype=np.float32)[:, None] * np.float32(0.005)
        chunk = np.hstack([line, np.zeros((8, 2), np.float32), np.ones((8, 1), np.float32)])
        return [ActionChunk(chunk, stages) for _ in observations]

    control = NativeControl(embodiment("metaworld_sawyer"), slot_map("unified-200"))
    monkeypatch.setattr(Toy, "step", step)
    monkeypatch.setattr(Toy, "state", lambda self: np.zeros(4, np.float32), raising=False)
    monkeypatch.setattr(Steady, "act_batch", act)
    monkeypatch.setattr(Steady, "frame", "world_relative")
    monkeypatch.setattr(Steady, "control", control, raising=False)
    assert verb.run(toy(episodes=1, tasks="reach-v3")) == 0
    np.testing.assert_allclose(told, [[0.5, 0, 0, 1]] * 4, atol=1e-5)


def test_one_policy_drives_several_arms_of_robosuite(
    toy: Callable[..., verb.Args], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row for every task on every arm, the policy's own if none is named; an arm whose numbers
    mean something else is refused."""
    from vlakern.sim import robosuite_rollout

    monkeypatch.setattr(robosuite_rollout, "make_env", Toy)
    monkeypatch.setattr(Steady, "robot", embodiment("robosuite_panda"), raising=False)
    words = {"env": "robosuite", "tasks": "Lift,Stack", "episodes": 1}
    for arms, expected in (
        ("Kinova3,Panda", ["Lift-Kinova3", "Stack-Kinova3", "Lift-Panda", "Stack-Panda"]),
        (None, ["Lift-Panda", "Stack-Panda"]),
    ):
        report = tmp_path / "r.json"
        assert verb.run(toy(arms=arms, json=report, **words)) == 0
        assert [row["task"] for row in json.loads(report.read_text())["tasks"]] == expected
    monkeypatch.setattr(Steady, "robot", embodiment("libero_panda"))
    with pytest.raises(InputError, match="drive UR5e with a policy that was trained for it"):
        verb.run(toy(arms="UR5e", **words))
    with pytest.raises(ConfigError, match="--arms is for robosuite"):
        verb.run(toy(arms="UR5e"))


def test_policy_of_another_rate_is_refused(
    toy: Callable[..., verb.Args], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actions for another control rate would move another distance."""
    monkeypatch.setattr(Steady, "control_rate", 20.0)
    with pytest.raises(InputError, match=r"acts at 20 Hz, .* expects 80 Hz; .*control_rate"):
        verb.run(toy())


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--tasks", "reach-v2"], 1),
        (["--policy", "no/such/policy"], 1),
        (["--episodes", "many"], 2),
        (["--env", "elsewhere"], 2),
    ],
)
def test_exit_codes(
    words: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line a wrong word is a message, a code and no file."""
    try:
        found = main(["rollout", "--out", str(tmp_path / "out"), *words])
    except SystemExit as stop:
        found = stop.code
    assert found == code
    assert words[1] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_simulator_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the sentence names the package and the command."""
    monkeypatch.setattr(verb, "find_spec", lambda name: None if name == "metaworld" else name)
    with pytest.raises(VlakernError, match=r"'metaworld'.*pip install 'vlakern\[sim\]'"):
        verb.run(verb.Args())
