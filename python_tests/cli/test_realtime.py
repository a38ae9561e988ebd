"""``vlakern rollout --realtime``: a simulator that does not wait, and words that do not fit it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

import vlakern
from vlakern.cli import main
from vlakern.cli import rollout as verb
from vlakern.errors import Unsupported
from vlakern.ops import _native
from vlakern.space import embodiment, slot_map
from vlakern.space.controller import NativeControl
from vlakern.types import ActionChunk, ActionPrefix, Observation

needs_native = pytest.mark.skipif(_native.missing() is not None, reason="no native module")

TASK = "button-press-topdown-v3"


def run(*words: str) -> int:
    """The exit code, also of words that the parser itself refuses."""
    try:
        return main(["rollout", *words])
    except SystemExit as stop:
        return int(str(stop.code))


@needs_native
def test_metaworld_in_real_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without delay it does what taking turns does, in about as many steps; a second that comes
    once the robot moves starves it, which ends in the executor's stop and fault."""
    scene = ("--tasks", TASK, "--episodes", "1", "--seed", "3", "--max-steps", "160")
    turns, there = tmp_path / "turns.json", tmp_path / "there.json"
    out = ("--out", str(tmp_path / "out"), "--video", "none", "--json", str(turns))
    assert run(*scene, *out) == 0
    sweep = ("--realtime", "20", "--latency", "0,1000", "--sudden", "--json", str(there))
    code = run(*scene, *sweep)
    (alone,) = json.loads(turns.read_text())["episodes"]
    quick, slow = json.loads(there.read_text())["realtime"]
    assert alone["success"]
    late = max(quick["world_slow"] / max(1, quick["world_steps"]), slow["world_slow"] / 32)
    if quick["refused"] or late > 0.25:
        pytest.skip(f"too busy a machine for real time: {quick}, {slow}")
    assert code == 0
    assert (quick["successes"], quick["episodes"]) == (1, 1), quick
    assert quick["wilson95"] == pytest.approx(list(binomtest(1, 1).proportion_ci(method="wilson")))
    assert 0.6 * alone["steps"] < quick["world_steps"] < 1.7 * alone["steps"]
    assert quick["ended"] == {"done": 1}
    assert quick["ticks"] + quick["missed"] > 8 * quick["world_steps"]
    assert (slow["successes"], slow["ended"]) == (0, {"fault": 1}), slow
    assert slow["starved"] >= quick["starved"] + 40  # half a second of 200 Hz on a busy machine
    assert slow["stops"] > quick["stops"]
    assert (quick["faults"], slow["faults"]) == (0, 1)
    assert slow["tasks"] == [
        {"task": TASK, "episodes": 1, "successes": 0, "wilson95": slow["wilson95"]}
    ]
    assert set(quick) >= {"missed", "late", "discarded", "inference_p95_ms", "delay_steps"}
    printed = capsys.readouterr().out
    assert "in real time: 20 steps a second, without prefix, sudden" in printed
    for line in printed.splitlines():
        assert "…" not in line


class World:
    """Stands for Meta-World: a hand that does what it is told and is never done."""

    def __init__(self, task: str, *, views: Sequence[str], image_size: int) -> None:
        self.x = np.array([0.0, 0.6, 0.2])

    def reset(self, seed: int) -> None:
        self.x[:] = 0.0, 0.6, 0.2

    def state(self) -> np.ndarray:
        return np.array([*self.x, 1.0], np.float32)

    def hand_range(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array([-0.5, 0.4, 0.05]), np.array([0.5, 1.0, 0.5])

    def observe(self) -> Observation:
        return Observation({}, self.state(), "go")

    def step(self, action: np.ndarray) -> SimpleNamespace:
        self.x += 0.01 * action[:3]
        return SimpleNamespace(success=False)

    def close(self) -> None:
        pass


class Asked:
    """Stands for the policy, and remembers what it was asked."""

    name, views, image_size, chunk, execute = "asked", ("left",), 16, 16, 8
    control_rate, device, dtype, frame = 80.0, "cpu", "torch.float32", "native"
    robot = embodiment("metaworld_sawyer")
    control = NativeControl(robot, slot_map("unified-200"))

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.prefixes: list[ActionPrefix | None] = []
        self.options: dict[str, Any] = {}
        self.refusal: str | None = None

    def act(
        self, observation: Observation, seed: int, *, prefix: ActionPrefix | None = None
    ) -> ActionChunk:
        self.seeds.append(seed)
        self.prefixes.append(prefix)
        if prefix is not None and self.refusal is not None:
            raise Unsupported(self.refusal)
        return ActionChunk(np.full((self.chunk, 4), 0.1, np.float32))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    policy = Asked()

    def load(name: str, **options: Any) -> Asked:
        policy.options = options
        return policy

    simulator = SimpleNamespace(CONTROL_RATE=80.0, MetaWorldEnv=World)
    monkeypatch.setattr(verb, "_simulator", lambda name: simulator)
    monkeypatch.setitem(vars(vlakern), "load", load)
    return policy


# Slow, so that a busy machine can do it: chunks may take 800 ms, and the second is asked for then.
SHORT = ("--realtime", "10", "--tasks", TASK, "--episodes", "1", "--max-steps", "12")


@needs_native
@pytest.mark.parametrize(
    "words", [(), ("frozen",), ("cheap",), ("exact", "--backend", "torch")], ids=str
)
def test_the_form_reaches_the_policy(
    words: tuple[str, ...], asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once the robot moves every question has a prefix of that form, and else none has."""
    assert run(*SHORT, *(("--prefix", *words) if words else ())) == 0
    moving = [prefix for prefix in asked.prefixes[4:] if prefix is not None]
    assert bool(moving) == bool(words)
    assert {prefix.form for prefix in moving} == set(words[:1])
    assert asked.options["backend"] == ("torch" if "torch" in words else "auto")
    assert len(set(asked.seeds)) == len(asked.seeds)
    assert (f"prefix {words[0]}" if words else "without prefix") in capsys.readouterr().out


@needs_native
def test_the_seeds_of_noise_are_the_plans(asked: Asked) -> None:
    """The same words, the same noise of the n-th question; another seed, another."""
    runs = []
    for seed in ("0", "0", "1"):
        asked.seeds = []
        assert run(*SHORT, "--seed", seed) == 0
        runs.append(asked.seeds[:4])
    assert runs[0] == runs[1]
    assert not set(runs[1]) & set(runs[2])


@needs_native
def test_an_ensemble_reaches_the_loop(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its m is the weight's; the table says so."""
    from vlakern.robot import loop

    found: list[float] = []
    ensemble = loop.Ensemble

    def made(m: float, held: Sequence[int]) -> Any:
        found.append(m)
        return ensemble(m, held)

    monkeypatch.setattr(loop, "Ensemble", made)
    assert run(*SHORT, "--ensemble", "0.25") == 0
    assert found == [0.25]
    assert "ensemble 0.25" in capsys.readouterr().out


@needs_native
def test_what_the_policy_refuses_is_no_failed_episode(
    asked: Asked, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nothing was measured: one sentence, code 1 and no file."""
    asked.refusal = "this engine has no prefixes"
    assert run(*SHORT, "--prefix", "cheap", "--json", str(tmp_path / "r.json")) == 1
    assert capsys.readouterr().err.endswith("vlakern: this engine has no prefixes\n")
    assert not list(tmp_path.iterdir())


@needs_native
def test_a_latency_that_turns_out_too_long_is_a_row_and_a_failure(
    asked: Asked, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Inference and the latency together are d = 9 of 8: the loop does not begin, others go on."""
    report = tmp_path / "r.json"
    assert run(*SHORT, "--latency", "799,0", "--json", str(report)) == 1
    refused, driven = json.loads(report.read_text())["realtime"]
    assert (refused["episodes"], refused["ticks"], refused["wilson95"]) == (0, 0, None)
    assert "d <= s <= H - d" in refused["refused"]
    assert driven["world_steps"] == 12
    assert "vlakern: 799 ms: inference takes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--realtime 0", "--realtime is 0, expected 1 to 80 control steps a second"),
        ("--realtime -20", "--realtime is -20, expected 1 to 80"),
        ("--realtime nan", "--realtime is nan, expected 1 to 80"),
        ("--realtime 81", "--realtime is 81, expected 1 to 80"),
        ("--realtime 20 --latency soon", "--latency is 'soon', expected milliseconds"),
        ("--realtime 20 --latency 0,,50", "--latency is '0,,50', expected milliseconds"),
        ("--realtime 20 --latency 50,-1", "--latency is '50,-1', expected milliseconds"),
        ("--realtime 20 --latency nan", "--latency is 'nan', expected milliseconds"),
        ("--realtime 20 --latency 10001", "--latency is '10001', expected milliseconds"),
        ("--realtime 20 --latency 0,450", "--latency 450 is d = 9 actions at 20 Hz; asked exec"),
        ("--realtime 20 --env robosuite", "--realtime is for metaworld, found --env robosuite"),
        ("--realtime 20 --arms Panda", "--arms is for robosuite"),
        ("--realtime 20 --batch 5", "one episode at a time .* leave --batch out"),
        ("--realtime 20 --video none", "neither videos nor a page; leave --video out"),
        ("--realtime 20 --out here", "neither videos nor a page; leave --out out"),
        ("--realtime 20 --episodes 0", "episodes must be at least 1, found 0"),
        ("--realtime 20 --max-steps 0", "max_steps must be at least 1, found 0"),
        ("--realtime 20 --seed 1000000", "training uses the rest"),
        ("--realtime 20 --tasks raech-v3", "did you mean reach-v3"),
        ("--realtime 20 --prefix exact", "backward pass.*add --backend torch"),
        ("--realtime 20 --prefix cheap --ensemble 0.1", "give one of them"),
        ("--realtime 20 --ensemble -0.1", "--ensemble is -0.1, expected a number of 0"),
        ("--realtime 20 --ensemble nan", "--ensemble is nan, expected a number of 0"),
        ("--realtime 20 --sudden", "--sudden needs a --latency above 0"),
        ("--latency 50", "--latency is for --realtime, which is not given"),
        ("--sudden", "--sudden is for --realtime, which is not given"),
        ("--prefix frozen", "--prefix is for --realtime, which is not given"),
        ("--ensemble 0.1", "--ensemble is for --realtime, which is not given"),
        ("--realtime 20 --json /proc/no.json", "cannot write /proc/no.json"),
    ],
)
def test_words_that_are_wrong(
    words: str, sentence: str, asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence that names the option, code 1, and the policy was asked nothing."""
    assert run(*words.split()) == 1
    said = capsys.readouterr().err
    assert said.startswith("vlakern: ")
    assert len(said.splitlines()) == 1
    assert re.search(sentence, said), said
    assert not asked.seeds


@pytest.mark.parametrize(
    "words",
    ["--realtime fast", "--realtime 20 --prefix warm", "--realtime 20 --ensemble much"],
)
def test_words_that_are_none_of_the_options(
    words: str, asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser says so, with code 2."""
    assert run(*words.split()) == 2
    assert words.split()[-1] in capsys.readouterr().err
    assert not asked.seeds


def test_a_policy_that_gives_commands_is_refused(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Asked, "frame", "world_relative")
    assert run("--realtime", "20") == 1
    assert "asked has world_relative; leave --realtime out" in capsys.readouterr().err
