"""Samples per second that the loader makes, beside those that training consumes.

``python benchmarks/data/bench_loader.py`` collects noise in the shape of ``metaworld-small`` (two
views of 96 pixels), then makes batches from memory and from video files, in this process, with
worker processes, and with threads; then it takes a few training steps. ``--json FILE`` keeps it.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from vlakern.data.collate import Augment, TrainBatch
from vlakern.data.corpus import Corpus, open_corpus
from vlakern.data.lerobot import LeRobotWriter
from vlakern.data.loader import Loader
from vlakern.data.mixture import single
from vlakern.models import VLA, preset
from vlakern.train.config import recipe

SIDE, VIEWS = 96, ("left", "right")
AUGMENT = Augment(drop_state=0.2, drop_view=0.2, shift=4, jitter=0.05)


def collect(root: Path, episodes: int, length: int) -> None:
    """Episodes of moving noise, which compresses about as badly as pictures do."""
    rng = np.random.default_rng(0)
    names = ["x", "y", "z", "grip"]
    views = dict.fromkeys(VIEWS, (SIDE, SIDE))
    settings = {"state_names": names, "action_names": names, "robot_type": "metaworld_sawyer"}
    with LeRobotWriter(root, fps=80, views=views, **settings) as writer:  # pyright: ignore[reportArgumentType]
        for episode in range(episodes):
            coarse = rng.integers(0, 256, (1, 12, 12, 3), dtype="u1").repeat(8, 1).repeat(8, 2)
            frames = np.stack([np.roll(coarse[0], t, 1) for t in range(length)])
            vectors = rng.normal(size=(2, length, 4)).astype(np.float32)
            task = ("push the puck", "open the drawer")[episode % 2]
            writer.add_episode(dict.fromkeys(VIEWS, frames), vectors[0], vectors[1], task)


def rate(work: Callable[[int], object], batches: int, size: int) -> float:
    """Samples per second, the first batches left out."""
    for step in range(4):
        work(step)
    begin = time.perf_counter()
    for step in range(4, 4 + batches):
        work(step)
    return batches * size / (time.perf_counter() - begin)


def threaded(corpus: Corpus, batches: int, size: int, threads: int) -> float:
    """The same work by threads."""
    loader = Loader(corpus, corpus.sampler(0), seed=0, batch_size=size, augment=AUGMENT)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(loader.make, range(4)))
        begin = time.perf_counter()
        list(pool.map(loader.make, range(4, 4 + batches)))
        return batches * size / (time.perf_counter() - begin)


def training(corpus: Corpus, steps: int, size: int, flow_samples: int = 4) -> float:
    """Forward and backward in bf16 alone, which is less than a training step."""
    torch.manual_seed(0)
    model = VLA(corpus.config)
    loader = Loader(corpus, corpus.sampler(0), seed=0, batch_size=size, augment=AUGMENT)
    index = torch.arange(size).repeat_interleave(flow_samples)
    batches = [loader.batch(step) for step in range(steps + 1)]

    def step(batch: TrainBatch) -> None:
        action_RHA = batch.action_BHA[index]
        noise_RHA, tau_R = torch.randn_like(action_RHA), torch.rand(len(index))
        with torch.autocast("cpu", torch.bfloat16):
            prefix = model.prefill(batch.prefix)
            velocity_RHA = model.velocity(prefix, noise_RHA, tau_R, index)
        error_RHA = velocity_RHA.float() - (action_RHA - noise_RHA)
        (error_RHA.square() * batch.mask_BHA[index]).mean().backward()

    step(batches[0])
    begin = time.perf_counter()
    for batch in batches[1:]:
        step(batch)
    return steps * size / (time.perf_counter() - begin)


def main() -> None:
    """Prints a line per way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        collect(root, 20, 100)
        chosen = recipe("metaworld-small")
        for place, memory in (("memory", 1 << 30), ("disk", 0)):
            corpus = open_corpus(
                single(root), preset("metaworld-small"), chosen.processing, memory=memory
            )
            for workers in args.workers:
                settings = {"seed": 0, "batch_size": args.batch_size, "augment": AUGMENT}
                with Loader(corpus, corpus.sampler(0), workers=workers, **settings) as loader:
                    key = f"{place}, {workers} workers"
                    found[key] = rate(loader.batch, args.batches, args.batch_size)
                    print(f"{key}: {found[key]:.0f} samples/s", flush=True)
            key = f"{place}, 2 threads"
            found[key] = threaded(corpus, args.batches, args.batch_size, 2)
            print(f"{key}: {found[key]:.0f} samples/s", flush=True)
        found["training"] = training(corpus, args.steps, args.batch_size)
        print(f"training: {found['training']:.1f} samples/s")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
