"""``vlakern train`` over longer lives: mixtures, SIGTERM and --resume, pictures and reports."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlakern
from vlakern.cli import main
from vlakern.cli.train import STOPPED
from vlakern.data.lerobot import LeRobotWriter
from vlakern.models import presets
from vlakern.models.weights import Processing
from vlakern.train import TrainConfig, checkpoint, config
from vlakern.train import report as drawn
from vlakern.train.config import Recipe

HERE = Path(__file__).parent
SIDE = 32
TINY = dataclasses.replace(presets.preset("tiny"), state_dim=9, action_dim=9)
RUN = TrainConfig(steps=6, batch_size=4, flow_samples=1, warmup=1, drop_view=0.3, bf16=False)


def noise(root: Path, robot: str, state: int, action: int, fps: float = 10.0) -> Path:
    """Two short episodes of two views."""
    random = np.random.default_rng(len(root.name))
    writer = LeRobotWriter(
        root,
        fps=fps,
        views={"left": (SIDE, SIDE), "right": (SIDE, SIDE)},
        state_names=[f"s{i}" for i in range(state)],
        action_names=[f"a{i}" for i in range(action)],
        robot_type=robot,
    )
    with writer:
        for task in ("push the puck", "open the drawer"):
            frames = {
                view: random.integers(0, 255, (9, SIDE, SIDE, 3), dtype=np.uint8)
                for view in ("left", "right")
            }
            states = random.normal(size=(9, state)).astype(np.float32)
            actions = random.uniform(-1, 1, size=(9, action)).astype(np.float32)
            writer.add_episode(frames, states, actions, task)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of an unknown arm, and two of known ones."""
    root = tmp_path_factory.mktemp("data")
    noise(root / "arm", "noise_arm", 5, 4)
    noise(root / "libero", "libero_panda", 8, 7)
    noise(root / "sawyer", "metaworld_sawyer", 4, 4)
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that takes moments."""
    monkeypatch.setitem(presets.PRESETS, "small", lambda: TINY)
    plain = Processing("zscore", "zscore", execute=2)
    monkeypatch.setitem(config.RECIPES, "small", lambda: Recipe("small", RUN, plain))


def run(*words: object) -> int:
    """The command line's exit code."""
    return main(["train", "--recipe", "small", *map(str, words)])


def weights(policy: Path) -> bytes:
    return (policy / "model.safetensors").read_bytes()


def test_a_run_in_two_halves_is_a_run(data: Path, tmp_path: Path) -> None:
    """The same policy to the bit, with other workers, and one curve without a gap or a double."""
    words = ("--data", data / "arm", "--save-every", 2)
    assert run(*words, "--out", tmp_path / "whole", "--set", "drop_state=0.5") == 0
    again = (*words, "--out", tmp_path / "halves", "--set", "drop_state=0.5")
    assert run(*again) == 0
    newest = checkpoint.checkpoints(tmp_path / "halves.checkpoints")
    assert [path.name[-1] for path in newest] == ["2", "4", "6"]
    # As if it had died after step 4.
    (newest[2] / "manifest.json").unlink()
    shutil.rmtree(tmp_path / "halves")
    assert run(*again, "--resume", "auto", "--workers", 2) == 0
    assert weights(tmp_path / "halves") == weights(tmp_path / "whole")
    rows = [json.loads(line) for line in (tmp_path / "halves.jsonl").read_text().splitlines()]
    assert [row.get("step") for row in rows] == [None, 1, 2, 3, 4, 5, 6]
    # Nothing is left to do, and nothing changes.
    assert run(*again, "--resume", "auto") == 0
    assert weights(tmp_path / "halves") == weights(tmp_path / "whole")


def test_another_seed_is_not_continued(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence says what differs; a checkpoint can also be named."""
    out = tmp_path / "policy"
    words = ("--data", data / "arm", "--out", out, "--save-every", 3)
    assert run(*words) == 0
    assert run(*words, "--resume", "auto", "--seed", 1) == 1
    assert "seed was 0 and is 1 now" in capsys.readouterr().err
    assert run(*words, "--resume", "auto", "--set", "clip=2") == 1
    assert "recipe.train.clip was 1.0 and is 2.0 now" in capsys.readouterr().err
    # Before the data are read: here there are none.
    nothing = ("--data", tmp_path / "nothing", "--out", out, "--save-every", 3, "--resume", "auto")
    assert run(*nothing, "--batch-size", 2) == 1
    assert "recipe.train.batch_size was 4 and is 2 now" in capsys.readouterr().err
    assert run(*nothing) == 0
    assert "policy is trained to step 6: nothing is left to do" in "".join(
        capsys.readouterr().out.split("\n")
    )
    os.utime(out / "model.safetensors", (0, 0))
    assert run(*nothing) == 1, "an older policy is not the last one's"
    assert "nothing" in capsys.readouterr().err
    first = checkpoint.checkpoints(tmp_path / "policy.checkpoints")[0]
    assert run(*words, "--resume", first) == 0
    assert run(*words) == 1
    assert "continue the run that wrote it with --resume auto" in capsys.readouterr().err
    assert run(*words, "--overwrite") == 0
    assert len(checkpoint.checkpoints(tmp_path / "policy.checkpoints")) == 2


CHILD = """
import sys
sys.path.insert(0, {here!r})
import test_train_runs as t
t.presets.PRESETS["small"] = lambda: t.TINY
plain = t.Processing("zscore", "zscore", execute=2)
t.config.RECIPES["small"] = lambda: t.Recipe("small", t.RUN, plain)
sys.exit(t.run(*sys.argv[1:]))
"""


def started(out: Path, *options: object) -> subprocess.Popen[str]:
    """The verb in a process group of its own, after its first updates."""
    words = [sys.executable, "-c", CHILD.format(here=str(HERE)), *map(str, options)]
    child = subprocess.Popen(
        [*words, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    curve, begun = out.parent / f"{out.name}.jsonl", time.monotonic()
    while not (curve.exists() and len(curve.read_text().splitlines()) > 3):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() - begun < 120
        time.sleep(0.02)
    return child


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_saves_and_has_its_own_code(data: Path, tmp_path: Path, workers: int) -> None:
    """The whole process group gets it, as from a scheduler: 75, a checkpoint, no policy; and the
    run continues."""
    out = tmp_path / "policy"
    options = ("--data", data / "arm", "--steps", 100_000, "--workers", workers)
    child = started(out, *options)
    os.killpg(child.pid, signal.SIGTERM)
    said, errors = child.communicate(timeout=60)
    assert child.returncode == STOPPED == 75, errors
    assert "stopped by SIGTERM after step" in said
    assert "utilisation" not in said
    assert not out.exists()
    (found,) = checkpoint.checkpoints(tmp_path / "policy.checkpoints")
    step = checkpoint.facts(found)["step"]
    assert step >= 3
    assert f"after step {step};" in said
    # The same run, but for its end, which is part of the schedule.
    assert run("--data", data / "arm", "--out", out, "--resume", "auto") == 1


def test_a_worker_that_dies_ends_the_run_in_one_sentence(data: Path, tmp_path: Path) -> None:
    """As when memory runs out."""
    child = started(tmp_path / "p", "--data", data / "arm", "--steps", 100_000, "--workers", 2)
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 1
    # Where the run asks for a batch, not where a signal happens to meet it.
    assert errors.splitlines()[-1].startswith("vlakern: ")
    assert "failed (DataLoader worker" in errors.splitlines()[-1]
    assert "Traceback" not in errors


MIXTURE = """
name = "two"
slot_map = "unified-200"
[[datasets]]
name = "panda"
path = "libero"
[[datasets]]
name = "sawyer"
path = "sawyer"
weight = 2
"""


def test_a_mixture_of_two_robots_gives_two_policies(data: Path, tmp_path: Path) -> None:
    """With the same weights, each with its own robot, rate and statistics."""
    file = tmp_path / "two.toml"
    file.write_text(MIXTURE)
    out, report = tmp_path / "policies", tmp_path / "report.json"
    words = ("--mixture", file, "--root", data, "--out", out, "--frame", "world_delta")
    plain = ("--state-norm", "none", "--action-norm", "none", "--save-every", 4)
    assert run(*words, *plain, "--set", "shares=embodiments", "--json", report) == 0
    panda, sawyer = (vlakern.load(out / name) for name in ("libero_panda", "metaworld_sawyer"))
    assert (panda.robot.name, sawyer.robot.name) == ("libero_panda", "metaworld_sawyer")
    assert weights(out / "libero_panda") == weights(out / "metaworld_sawyer")
    state = {"libero_panda": 8, "metaworld_sawyer": 4}
    for policy in (panda, sawyer):
        images = {view: np.zeros((SIDE, SIDE, 3), np.uint8) for view in policy.views}
        hand = np.zeros(state[policy.robot.name], np.float32)
        seen = vlakern.Observation(images, hand, "push the puck")
        assert policy.act(seen, seed=0).actions.shape == (6, policy.robot.action_width)
    told = json.loads(report.read_text())
    assert [row["name"] for row in told["frames"]["datasets"]] == ["panda", "sawyer"]
    assert run(*words, *plain, "--set", "shares=embodiments", "--resume", "auto") == 0


def test_the_report_the_picture_and_the_sentences(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Throughput, waiting, memory and utilisation; the formula is said."""
    out, report, plot = tmp_path / "policy", tmp_path / "report.json", tmp_path / "plot.png"
    words = ("--data", data / "arm", "--out", out, "--plot", plot, "--json", report)
    assert run(*words, "--accumulate", 2, "--steps", 4, "--set", "expert_steps=2") == 0
    said = capsys.readouterr().out
    for part in ("samples/s)", "waited for data", "peak memory", "0 updates skipped", "3 x"):
        assert part in said
    told = json.loads(report.read_text())
    train, used = told["train"], told["utilisation"]
    assert (train["steps"], train["samples"], train["stopped"]) == (4, 16, False)
    assert train["views"] in range(16, 33)
    assert used["operations"] == pytest.approx(used["rate"] * train["seconds"])
    assert 0 < used["share"] < 1
    assert told["quarantine"] == {"drawn": 16, "damaged": 0, "reasons": {}}
    with Image.open(plot) as image:
        assert image.format == "PNG"
    rows = [json.loads(line) for line in (tmp_path / "policy.jsonl").read_text().splitlines()]
    assert rows[0]["train"]["expert_steps"] == 2
    assert {"loss", "lr", "grad_norm", "wait_s", "step_s"} <= rows[1].keys()


def test_a_policy_to_start_from(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What became of its tensors is printed."""
    words = ("--data", data / "arm", "--save-every", 0)
    assert run(*words, "--out", tmp_path / "a") == 0
    capsys.readouterr()
    rename = ("--rename", "mot.action.=mot.action.")
    assert run(*words, "--out", tmp_path / "b", "--init", tmp_path / "a", *rename) == 0
    assert "tensors, 0 keep their random start" in capsys.readouterr().out
    assert not (tmp_path / "b.checkpoints").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name one dataset with --data, or a mixture's file with --mixture"),
        (("--data", "a", "--mixture", "b"), "name one dataset with --data, or a mixture"),
        (("--data", "a", "--root", "b"), "--root is for a mixture"),
        (("--mixture", "no.toml"), "no.toml is missing; expected a TOML file"),
        (("--mixture", "no.toml", "--stride", "2"), "--stride is for --data"),
        (("--data", "a", "--set", "drop_view"), "--set 'drop_view': expected NAME=VALUE"),
        (("--data", "a", "--set", "drop_vew=0.5"), "train: unknown key 'drop_vew'"),
        (("--data", "a", "--set", "steps.x=1"), "train has no part 'steps'"),
        (("--data", "a", "--set", "drop_view=1.5"), "train.drop_view is 1.5"),
        (("--data", "a", "--resume", "nowhere"), "nowhere is not a checkpoint"),
        (("--data", "a", "--shard", "fsdp"), "--shard is fsdp, which needs several ranks"),
        (("--data", "a", "--device", "banana"), "--device is 'banana', expected auto, cpu or cuda"),
        (("--data", "a", "--memory-gib", "nan"), "--memory-gib is nan, expected 0 or more"),
        (("--data", "a", "--workers", "-1"), "the number of workers is -1, expected at least 0"),
        (("--data", "a", "--seed", "-1"), "the seed is -1, expected at least 0"),
        (("--data", "a", "--keep", "0"), "keep is 0, expected at least 1"),
        (("--data", "a", "--accumulate", "7"), "not divisible by 1 ranks times 7 parts"),
        (("--data", "a", "--init", "none"), "--init none is not a directory"),
        (("--data", "a", "--set", "delay=99"), "train.delay is 99, expected at most the chunk's"),
        (("--data", "a", "--recipe", "metaworld-small", "--set", "language=1"), "mask.prefix is"),
        (("--data", "a", "--rename", "a=b"), "--rename is for the tensors of --init"),
        (("--data", "a", "--init", "b", "--rename", "ab"), "--rename 'ab': expected OLD=NEW"),
    ],
)
def test_words_that_make_no_sense_are_one_sentence(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is read or written."""
    monkeypatch.chdir(tmp_path)
    assert run(*words, "--out", "out") == 1
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused_before_the_first_step_leaves_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So the command with its words put right runs without --overwrite."""
    assert run("--data", data / "arm", "--out", tmp_path / "p", "--set", "delay=99") == 1
    assert "train.delay is 99" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_installed_is_said_first(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorBoard and Pillow are extras."""
    monkeypatch.setattr(drawn, "find_spec", lambda name: None)
    assert run("--data", data / "arm", "--out", tmp_path / "p", "--tensorboard") == 1
    assert "pip install 'vlakern[tensorboard]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
