"""Two gloo ranks compute what one does, agree, and gather one whole state; one alone needs none."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vlakern.errors import CheckpointError, ConfigError
from vlakern.train import parallel
from vlakern.train.parallel import World

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the first of two ranks found."""
    out = tmp_path_factory.mktemp("ranks") / "report.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [sys.executable, *launcher, str(HERE / "ranks.py"), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("shard", ["ddp", "fsdp"])
def test_two_ranks_with_two_parts_are_one_rank(report: dict[str, Any], shard: str) -> None:
    """The same rows in another division, clipped by the same norm: weights, moments and losses.

    The second rank began with other weights, and one weight is frozen.
    """
    weights, losses = report[shard]
    assert weights < 1e-6
    assert losses < 1e-6


def test_ranks_agree_and_exchange_words(report: dict[str, Any]) -> None:
    """Flags, JSON and lists of words, without pickle."""
    assert report["any"] == [True, False]
    assert report["tell"] == {"ä": [1, None]}
    assert report["collect"] == ["rank 0", "rank 1", "rank 1"]
    assert report["mine"] == "done"


def test_a_failure_of_the_first_rank_is_everyones(report: dict[str, Any]) -> None:
    """None is left waiting in a collective."""
    first, second = report["raised"]
    assert first.startswith("FileNotFoundError")
    assert second.startswith("VlakernError: the first rank failed: ")
    assert report["misshapen"] == ["CheckpointError", "VlakernError"]


def test_one_process_needs_no_group() -> None:
    """Everything is what it was."""
    with parallel.start() as world:
        assert (world.rank, world.size, world.first) == (0, 1, True)
    values = torch.tensor([1.0])
    assert world.total(values) is values
    assert world.any(True, False) == [True, False]
    assert (world.tell({"a": 1}), world.collect(["x"])) == ({"a": 1}, ["x"])
    module = nn.Linear(2, 2)
    assert parallel.wrap(module, world) is module
    assert parallel.gather({"w": module.weight}, world)["w"].equal(module.weight)
    with pytest.raises(ConfigError, match="shard is fsdp, which needs several ranks"):
        parallel.wrap(module, world, "fsdp")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({}, r"model lacks 'w'"),
        ({"w": torch.zeros(2), "v": torch.zeros(1)}, r"model holds 'v', which is unknown"),
        ({"w": torch.zeros(3)}, r"'w' is torch\.float32 \[3\], this run needs torch\.float32 \[2]"),
        ({"w": torch.zeros(2).double()}, r"is torch\.float64 \[2\], this run needs torch\.float32"),
    ],
)
def test_a_state_of_something_else_is_refused(
    source: dict[str, torch.Tensor], sentence: str
) -> None:
    """Before anything is changed."""
    target = torch.ones(2)
    with pytest.raises(CheckpointError, match=sentence):
        parallel.fill({"w": target}, source, "model", World())
    assert target.tolist() == [1.0, 1.0]
