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


ALONE = """
import os, socket, sys
from pathlib import Path

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
one = {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "one"}
os.environ.update(one, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vlakern.train import parallel


def threads():
    found = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return sum("gloo" in name or "tcpstore" in name for name in found)


def step(fails):
    module = DistributedDataParallel(nn.Linear(2, 2))
    module(torch.ones(1, 2)).sum().backward()
    assert threads() > 0
    if fails:
        raise ValueError("on purpose")


kept = None
try:
    with parallel.start():
        step(sys.argv[1] == "fails")
except ValueError as error:
    kept = error
assert (kept is not None) == (sys.argv[1] == "fails")
print(threads())
"""


@pytest.mark.parametrize("how", ["ends", "fails"])
def test_no_thread_outlives_the_group(how: str) -> None:
    """One that asks for the interpreter when that has gone aborts the process; the error is kept,
    and with it the functions that it came through."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, how], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0"]


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
