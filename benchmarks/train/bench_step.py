"""Samples per second of a training step: packed documents and fused ops beside a padded batch.

``python benchmarks/train/bench_step.py`` prints a table; ``--json FILE`` adds its rows to a file. A
step is forward, backward, the optimizer and the average, on batches with dropped views and
instructions of several lengths. Nothing is timed whose loss or gradients differ from the other's.
``--device cuda`` has not run on a GPU yet.
"""

import argparse
import dataclasses
import importlib.util
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlakern import ops
from vlakern.cli._common import commit, machine
from vlakern.data.collate import TrainBatch
from vlakern.flow.path import taus_at
from vlakern.models import VLA, VLAConfig, preset
from vlakern.models.sequence import document, pack
from vlakern.models.tokenizer import fit_tokenizer
from vlakern.testing import generator, interleave
from vlakern.testing.timing import clock_of
from vlakern.train import TrainConfig, recipe
from vlakern.train.learner import moved
from vlakern.train.optimizer import Average, Optimizer, in_bf16
from vlakern.train.stages import select
from vlakern.train.step import Draws, Objective, counts

HERE = Path(__file__).parent
# The tasks of the policy that ships, in Meta-World's words.
WORDS = (
    "reach the goal position",
    "push the puck to the goal",
    "open the drawer",
    "open a door with a revolving joint",
    "press a button from the top",
)
VIEWS, DROP = 2, 0.2
PRESETS = {"cpu": ("tiny", "metaworld-small"), "cuda": ("metaworld-small", "rethink-2b")}
# Of a network of billions of weights: all its widths, so that several copies fit beside each other.
LAYERS, VOCABULARY = 4, 4096


class Served(logging.Handler):
    """Which backends serve each op: what the dispatch says, once a case."""

    def __init__(self) -> None:
        super().__init__()
        self.backends: dict[str, set[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        assert isinstance(record.args, tuple)
        op, backend, _ = record.args
        self.backends.setdefault(str(op), set()).add(str(backend))

    def listen(self) -> "Served":
        """From now on; a case that was resolved before is not said again."""
        log = logging.getLogger("vlakern.ops")
        log.setLevel(logging.INFO)
        log.addHandler(self)
        return self


def shape_of(name: str) -> VLAConfig:
    """The preset; of a large one as many layers as several copies leave room for."""
    config = preset(name)
    if not name.startswith("rethink"):
        return config
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, layers=LAYERS),
        mot=dataclasses.replace(config.mot, layers=LAYERS),
        vocab_size=VOCABULARY,
    )


def training_of(name: str) -> TrainConfig:
    """The recipe that the preset is trained by; nothing is computed twice to save memory."""
    known = recipe("rethink" if name.startswith("rethink") else "metaworld-small")
    return dataclasses.replace(known.train, recompute=False)


def padded() -> Any:
    """The module beside this file."""
    spec = importlib.util.spec_from_file_location("padded", HERE / "padded.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["padded"] = module  # where its dataclass looks for its own names
    spec.loader.exec_module(module)
    return module


def make_batch(config: VLAConfig, count: int, seed: int) -> TrainBatch:
    """Noise in the shapes of a run with view and state dropout of 0.2 each."""
    rng, noise = np.random.default_rng(seed), generator(f"batch {seed}")
    encode = fit_tokenizer(WORDS, config.vocab_size).encode
    docs, rows = [], []
    for b in range(count):
        kept = max(1, int((rng.random(VIEWS) >= DROP).sum()))
        docs.append(document(config.prompt, encode, WORDS[int(rng.integers(5))], kept))
        rows += [b] * kept
    side, chunk = config.vision.image_size, config.chunk
    pixels = torch.rand(len(rows), 3, side, side, generator=noise) * 2 - 1
    state = torch.randn(count, config.state_dim, generator=noise)
    state *= torch.from_numpy(rng.random((count, 1)) >= DROP).float()
    return TrainBatch(
        pack(config, docs, pixels, state),
        torch.randn(count, chunk, config.action_dim, generator=noise),
        torch.ones(count, chunk, config.action_dim),
        torch.ones(count, config.action_dim),
        torch.randn(count, config.state_dim, generator=noise),
        torch.tensor(rows),
    )


@dataclasses.dataclass
class Contest:
    """Both forms of a step on one batch, each with weights and an optimizer of its own."""

    name: str
    train: TrainConfig
    count: int
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.config = shape_of(self.name)
        there = torch.device(self.device)
        batch = make_batch(self.config, self.count, 0)
        self.batch = moved(batch, there)
        self.draws = Draws(1, torch.arange(self.count, device=there))
        module = padded()
        self.loss = module.loss
        given = (self.config, batch, self.train.flow_samples)
        dense = moved(module.pad(*given), there)
        self.dense = {
            "padded": (dense, False),
            "padded, kept views": (moved(module.pad(*given, all_views=False), there), False),
            "padded, no SDPA": (dense, True),
        }
        self.parts = {name: self._parts() for name in ("packed", *self.dense)}

    def _parts(self) -> tuple[Objective, Optimizer, Average]:
        torch.manual_seed(0)
        with torch.device(self.device):
            objective = Objective(VLA(self.config), self.train)
        if self.train.bf16 and self.device == "cuda":  # as a run there has them
            in_bf16(objective)
        select(objective, "all")
        return objective, Optimizer(objective, self.train), Average(objective.model, 0.998)

    def packed_loss(self, objective: Objective) -> Tensor:
        """The loss of packed documents through the fused ops."""
        totals = counts(self.batch, self.train, self.draws)
        return objective(self.batch, self.draws, totals)["loss"]

    def padded_loss(self, name: str, objective: Objective, noise: Tensor, tau: Tensor) -> Tensor:
        """The loss of a padded batch in plain PyTorch, under autocast."""
        batch, explicit = self.dense[name]
        aside = (objective.foresight, self.train.foresight, explicit)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.train.bf16):
            return self.loss(objective.model, batch, noise, tau, *aside)

    def own_draws(self) -> tuple[Tensor, Tensor]:
        """The noise and flow times of the packed form."""
        rows = self.draws.rows(self.train.flow_samples, torch.device(self.device))
        shape = (self.count, self.train.flow_samples)
        sizes = (self.config.chunk, self.config.action_dim)
        noise = ops.flow_noise(rows, *sizes, seed=self.draws.seed).unflatten(0, shape)
        return noise, taus_at(rows, self.train.tau, self.draws.seed).unflatten(0, shape)

    def step(self, name: str) -> Callable[[], None]:
        """A whole step of one contender."""
        objective, optimizer, average = self.parts[name]

        def packed() -> None:
            self.packed_loss(objective).backward()

        def dense() -> None:
            action = self.batch.action_BHA
            rows = (self.count, self.train.flow_samples)
            noise = torch.randn(*rows, *action.shape[1:], device=action.device)
            uniform = torch.rand(rows, device=action.device)
            tau = (0.999 - uniform ** (1 / 1.5)) / 0.999
            self.padded_loss(name, objective, noise, tau).backward()

        backward = packed if name == "packed" else dense

        def run() -> None:
            backward()
            optimizer.accumulate()
            optimizer.update(1e-4)
            average.update(objective.model)

        return run

    def check(self) -> None:
        """Raises AssertionError unless all forms have one loss and one gradient; in fp32."""
        found = {}
        for name, (objective, optimizer, _) in self.parts.items():
            if name == "packed":
                loss = self.packed_loss(objective)
            else:
                loss = self.padded_loss(name, objective, *self.own_draws())
            loss.backward()
            gradients = optimizer.gradients
            found[name] = float(loss.detach()), torch.cat([g.flatten() for g in gradients.values()])
        value, gradient = found["packed"]
        for name, (other, own) in found.items():
            apart = float((own - gradient).norm() / gradient.norm())
            if not (abs(other / value - 1) <= 1e-5 and apart <= 1e-4):
                raise AssertionError(
                    f"{name}: loss {other} beside {value}, gradients {apart:.1e} apart"
                )


def check(name: str, count: int, device: str) -> None:
    """Compares all forms in fp32, in memory of its own."""
    Contest(name, dataclasses.replace(training_of(name), bf16=False), count, device).check()


def measure(name: str, count: int, repeats: int, clock: str, device: str) -> dict[str, Any]:
    """Samples per second of every contender, in turn in one run."""
    check(name, min(count, 16), device)
    contest = Contest(name, training_of(name), count, device)
    steps = {one: contest.step(one) for one in contest.parts}
    clocks = {"wall": clock_of(device), "cpu": time.process_time}
    times = interleave(steps, repeats, clock=clocks[clock])
    rates = {one: count / timing.median for one, timing in times.items()}
    lengths = contest.batch.prefix.cu_prefix.diff()
    weights = contest.parts["packed"][0].parameters()
    return {
        "preset": name,
        "layers": contest.config.mot.layers,
        "weights": sum(one.numel() for one in weights),
        "samples": count,
        "flow_samples": contest.train.flow_samples,
        "prefix_tokens": [int(lengths.min()), float(lengths.float().mean()), int(lengths.max())],
        "samples_per_s": rates,
        "ratios": {one: rates["packed"] / rate for one, rate in rates.items()},
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=tuple(PRESETS), default="cpu")
    parser.add_argument("--presets", nargs="+", help="default: those that suit the device")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--limit", type=float, default=600.0, help="[s] to begin a preset in")
    parser.add_argument("--json", type=Path, help="append JSON lines to this file")
    args = parser.parse_args()
    if args.device == "cuda" and args.clock == "cpu":
        parser.error("--clock cpu does not see what a GPU does; leave it out")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    return args


def main() -> None:
    args = parse()
    begin, served = time.monotonic(), Served().listen()
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # the default, which is not fp32
    who = {"device": args.device, "commit": commit(), "machine": machine()}
    for name in args.presets or PRESETS[args.device]:
        if time.monotonic() - begin > args.limit:
            print(f"no time is left for {name}", flush=True)
            break
        row = measure(name, args.samples, args.repeats, args.clock, args.device)
        backends = {op: sorted(names) for op, names in sorted(served.backends.items())}
        row |= who | {"threads": args.threads, "clock": args.clock, "backends": backends}
        print(f"{name}, {args.samples} samples of {row['prefix_tokens'][1]:.1f} prefix tokens:")
        for one, rate in row["samples_per_s"].items():
            print(f"  {one:20} {rate:8.1f} samples/s   packed is {row['ratios'][one]:.2f}x")
        print("  served by", ", ".join(f"{op}: {'+'.join(by)}" for op, by in backends.items()))
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
