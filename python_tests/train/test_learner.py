"""Two gloo ranks give one rank's curve, and their checkpoints are each other's."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vlakern.errors import ConfigError
from vlakern.models.vla import VLA
from vlakern.train import checkpoint
from vlakern.train.config import LoraConfig
from vlakern.train.learner import Learner, moved
from vlakern.train.loop import RunConfig, train

HERE = Path(__file__).parent
STEPS, SIZE = 50, 4
Curve = list[float]


def one_rank(
    lab: ModuleType, root: Path, save: int = 45, start: Path | None = None, **changes: Any
) -> Curve:
    """The loss of every step that is done here."""
    config = lab.longer(**{"steps": STEPS, **changes})
    found: Curve = []
    arguments = (config, 0, lab.Samples(SIZE), lab.place(root), RunConfig(save, keep=9), start)
    train(lab.make_model(), *arguments, on_step=lambda step, row: found.append(row["loss"]))
    return found


def two_ranks(root: Path, shard: str) -> dict[str, Any]:
    """What ``ranks_loop.py`` reports."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [sys.executable, *launcher, str(HERE / "ranks_loop.py"), str(root), shard]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads((root / f"{shard}.json").read_text())


@pytest.fixture(scope="module")
def runs(lab: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One rank's run, then what two ranks did with it."""
    root = tmp_path_factory.mktemp("runs")
    curves: dict[str, Any] = {"one": one_rank(lab, root / "one")}
    curves["one, stages"] = one_rank(lab, root / "stages-one", steps=6, expert_steps=3)
    most = checkpoint.checkpoints(root / "one/checkpoints")[0]
    for shard in ("ddp", "fsdp"):
        shutil.copytree(most, root / f"one-{shard}/checkpoints" / most.name)
    return root, curves | two_ranks(root, "ddp")


def far(found: Curve, reference: Curve) -> float:
    """The largest relative difference."""
    assert len(found) == len(reference)
    return max(abs(a - b) / abs(b) for a, b in zip(found, reference, strict=True))


def test_two_ranks_give_the_curve_of_one(runs: tuple[Path, dict[str, Any]]) -> None:
    """50 steps of the same global batch: within 1e-5 of one rank's loss."""
    assert far(runs[1]["ddp"], runs[1]["one"]) < 1e-5


@pytest.mark.soak
def test_two_ranks_in_shards_give_the_curve_of_one(lab: ModuleType, tmp_path: Path) -> None:
    """All 50 steps, and the one whole checkpoint on the way continues on one rank."""
    curve = one_rank(lab, tmp_path / "one")
    assert far(two_ranks(tmp_path, "fsdp")["fsdp"], curve) < 1e-5
    theirs = checkpoint.checkpoints(tmp_path / "fsdp/checkpoints")[0]
    assert far(one_rank(lab, tmp_path / "again", start=theirs), curve[45:]) < 1e-5


def test_stages_of_two_ranks_are_those_of_one(runs: tuple[Path, dict[str, Any]]) -> None:
    """Weights that begin to train in the middle travel between the ranks from then on."""
    assert far(runs[1]["stages"], runs[1]["one, stages"]) < 1e-5


@pytest.mark.parametrize("shard", ["ddp", "fsdp"])
def test_two_ranks_continue_ones_checkpoint(runs: tuple[Path, dict[str, Any]], shard: str) -> None:
    """Moments too: the last steps are those of the whole run."""
    assert far(runs[1][f"from one, {shard}"], runs[1]["one"][45:]) < 1e-5


@pytest.mark.parametrize("shard", ["ddp", "fsdp"])
def test_one_rank_continues_twos_checkpoint(
    runs: tuple[Path, dict[str, Any]], shard: str, lab: ModuleType, tmp_path: Path
) -> None:
    """A sharded run writes one whole checkpoint, with the tensors of an unsharded one."""
    root, curves = runs
    theirs = checkpoint.checkpoints(root / f"one-{shard}/checkpoints")[1]
    found = checkpoint.read(theirs)
    ours = checkpoint.read(checkpoint.checkpoints(root / "one/checkpoints")[0])
    assert (ours.step, found.step) == (45, 48)
    assert found.tensors.keys() == ours.tensors.keys()
    for file, tensors in ours.tensors.items():
        kinds = {name: (one.shape, one.dtype) for name, one in tensors.items()}
        assert {n: (t.shape, t.dtype) for n, t in found.tensors[file].items()} == kinds
    again = one_rank(lab, tmp_path, start=theirs)
    assert far(again, curves["one"][48:]) < 1e-5


def test_a_bad_sample_on_one_rank_skips_on_both(runs: tuple[Path, dict[str, Any]]) -> None:
    """Both go on alike; after three in a row both stop and name the samples of that rank."""
    assert [math.isfinite(loss) for loss in runs[1]["poisoned"]] == [True, False, True, True]
    first, second = runs[1]["stopped"]
    assert first == second
    assert "the samples of this one: set/14, set/15; look" in first


def test_fsdp_does_not_change_what_trains(lab: ModuleType) -> None:
    """Said before anything is wrapped."""
    config = lab.longer(6, expert_steps=3)
    with pytest.raises(ConfigError, match="shard is fsdp, which cannot freeze and thaw weights"):
        Learner(lab.make_model(), config, 0, shard="fsdp")


def test_low_precision_weights_have_masters_that_resume(
    lab: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state has a file of masters; another learner continues them to the same bits."""
    from vlakern.train import learner as module
    from vlakern.train.optimizer import in_bf16

    # What a GPU does, on the CPU.
    class Gpu(Learner):
        def __init__(self, *rest: Any) -> None:
            monkeypatch.setattr(module, "select", narrowed(module.select))
            super().__init__(*rest)
            monkeypatch.undo()

    def narrowed(select: Callable[..., Any]) -> Callable[..., Any]:
        return lambda objective, part: select(in_bf16(objective), part)

    config = lab.longer(6, bf16=True)
    one, two = (Gpu(lab.make_model(seed), config, 0) for seed in (0, 1))
    advance(lab, one, 0, 3)
    tensors = one.tensors(0)
    assert tensors["master"]
    assert {t.dtype for t in tensors["master"].values()} == {torch.float32}
    facts = dataclasses.asdict(one.stage)
    progress = {"stage": facts, "updates": one.average.updates}
    copied = {f: {n: t.clone() for n, t in own.items()} for f, own in tensors.items()}
    two.restore(checkpoint.TrainState(3, 0, copied, {}, progress), 3)
    for learner in (one, two):
        advance(lab, learner, 3, 6)
    for file, expected in one.tensors(0).items():
        found = two.tensors(0)[file]
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def advance(lab: ModuleType, learner: Learner, begin: int, end: int) -> None:
    for step in range(begin, end):
        batch = lab.Samples(4).batch(step)
        learner.enter(step)
        learner.micro(batch, learner.counts(batch), True)
        assert math.isfinite(learner.update(step))


def test_updates_of_low_rank_end_in_a_plain_policy(lab: ModuleType) -> None:
    """The names of a policy, and weights that differ from the start only where updates are."""
    config = lab.longer(3, lora=LoraConfig(rank=2), ema=0.0, learning_rate=1e-2)
    learner = Learner(lab.make_model(), config, 0)
    advance(lab, learner, 0, 3)
    start, policy = lab.make_model().state_dict(), learner.policy()
    assert policy.keys() == start.keys()
    VLA(lab.MODEL).load_state_dict(policy)
    changed = {name for name in start if not torch.equal(start[name], policy[name])}
    assert "mot.semantic.layers.0.k_proj.weight" in changed
    assert not any(name.startswith(("vision.", "embed_tokens.")) for name in changed)


def test_records_move_with_their_tensors(lab: ModuleType) -> None:
    """Every tensor of a batch, however deep, is on the device; nothing else changes."""
    batch = lab.Samples(4).batch(0)
    there = moved(batch, torch.device("meta"))
    assert there.prefix.layout.who.kv_end.device.type == "meta"
    assert there.prefix.pixels_V3SS.shape == batch.prefix.pixels_V3SS.shape
    assert {t.device.type for t in (there.action_BHA, there.view_rows, there.numbers_B)} == {"meta"}
    assert there.sample_ids == batch.sample_ids
    assert (there.prefix.layout.who.max_q, there.robots_B.dtype) == (
        batch.prefix.layout.who.max_q,
        torch.int64,
    )
