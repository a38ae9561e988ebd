"""Children that save checkpoints until they are killed, and a parent that looks at what is left.

Started by test_checkpoint.py as ``killed.py FOLDER ROUNDS SEED``: one start-up of Python serves all
rounds. Prints one line of JSON: rounds, how many kills fell into a save, saves that were told.
"""

import json
import os
import random
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from vlakern.train import checkpoint

SIZE = 60_000


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Content that tells its step in every number."""
    return {name: {"w": torch.full((SIZE,), float(step))} for name in ("model", "average")}


def child(folder: Path, tell: int) -> None:
    """Saves as fast as it can; tells a step only once its save has returned."""
    step = 0
    while True:
        step += 1
        checkpoint.save(folder, checkpoint.TrainState(step, 0, tensors(step)), keep=2)
        os.write(tell, step.to_bytes(4, "big"))


def one_round(folder: Path, delay: float) -> tuple[int, bool]:
    """Kills a child ``delay`` seconds after its first save: the last step told, and whether the
    kill fell into a save."""
    listen, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(folder, tell)
    os.close(tell)
    heard = os.read(listen, 4)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while select.select([listen], [], [], 0)[0] and (more := os.read(listen, 1 << 16)):
        heard += more
    os.close(listen)
    last = int.from_bytes(heard[-4:], "big")
    half = any(path.name.startswith(".save-") for path in folder.iterdir())
    good = checkpoint.newest_good(folder)
    if good is None:
        raise AssertionError("no checkpoint is left")
    state = checkpoint.read(good)
    if state.step not in (last, last + 1):
        raise AssertionError(f"step {last} was acknowledged, step {state.step} is the newest")
    for found in state.tensors.values():
        assert bool((found["w"] == state.step).all())
    return last, half


def main(folder: Path, rounds: int, seed: int) -> None:
    torch.set_num_threads(1)
    draw, told, halves = random.Random(seed), 0, 0
    for _ in range(rounds):
        last, half = one_round(folder, draw.uniform(0.0, 0.05))
        told, halves = told + last, halves + half
        shutil.rmtree(folder)
    print(json.dumps({"rounds": rounds, "halves": halves, "told": told}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
