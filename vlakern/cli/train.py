"""``vlakern train``: a dataset becomes a policy directory."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vlakern.cli._common import Progress, check_json, check_writable, console, write_report
from vlakern.errors import ConfigError

if TYPE_CHECKING:
    from vlakern.models.weights.native import Processing

__all__ = ["Args", "run"]

# As in vlakern.space, which would import torch for --help.
Mode = Literal["zscore", "quantile", "min_max", "none"]
Frame = Literal["native", "world_relative", "world_delta", "eef_relative", "eef_delta"]
LOG_EVERY = 20


@dataclass
class Args:
    """Train a policy from demonstrations."""

    data: Path
    """LeRobot v3.0 dataset directory, as ``vlakern collect`` writes it."""
    out: Path = Path("outputs/policy")
    """Policy directory to write; the loss curve goes beside it, OUT.jsonl."""
    recipe: str = "metaworld-small"
    """Model, optimiser and augmentation by name."""
    embodiment: str | None = None
    """Robot that recorded the data: a name that ships or a TOML file; the dataset's by default."""
    frame: Frame | None = None
    """Parametrisation of the actions; the recipe's by default. `native` predicts the numbers of the
    robot's own controller, the others poses relative to the hand."""
    state_norm: Mode | None = None
    """Normalisation of the state; the recipe's by default."""
    action_norm: Mode | None = None
    """Normalisation of the actions; the recipe's by default."""
    binary: tuple[str, ...] = ()
    """Slots of the action that take one of two values, such as grippers."""
    epsilon: Literal["vlakern", "openpi", "lerobot"] | None = None
    """Whose rule for numbers that hardly move; the recipe's by default."""
    stride: int = 1
    """Frames from one step of a chunk to the next; divides the rate at which the policy acts."""
    steps: int | None = None
    """Optimizer steps; the recipe's by default."""
    batch_size: int | None = None
    """Prefixes per step; the recipe's by default."""
    learning_rate: float | None = None
    """Peak learning rate; the recipe's by default."""
    seed: int = 0
    """Seed of weights, data order, noise and dropout."""
    save_every: int = 500
    """Write the policy every so many steps; 0 only at the end."""
    overwrite: bool = False
    """Replace an existing --out and its curve."""
    json: Path | None = None
    """Write a summary for programs to this file."""


def run(args: Args) -> int:
    """Trains and writes the policy; returns 0."""
    curve = args.out.parent / f"{args.out.name}.jsonl"
    for path in (args.out, curve):
        if path.exists() and not args.overwrite:
            raise ConfigError(f"{path} exists; choose another --out or say --overwrite")
    check_writable(args.out)
    check_json(args.json)
    from vlakern.data.lerobot import LeRobotDataset
    from vlakern.data.stride import Source, Stride, effective_frames
    from vlakern.models import preset
    from vlakern.models.weights.native import check_target
    from vlakern.space import robot_and_slots
    from vlakern.train import loop
    from vlakern.train.config import recipe

    check_target(args.out)
    chosen = recipe(args.recipe)
    wishes = {
        "steps": args.steps,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
    }
    given = {name: value for name, value in wishes.items() if value is not None}
    chosen = dataclasses.replace(chosen, train=dataclasses.replace(chosen.train, **given))
    chosen = dataclasses.replace(chosen, processing=_processing(chosen.processing, args))
    robot = None if args.embodiment is None else robot_and_slots(args.embodiment)
    dataset = LeRobotDataset(args.data)
    with Progress(dataset.num_episodes, "decode") as bar:
        prepared = loop.prepare(
            dataset,
            preset(chosen.preset),
            chosen.processing,
            lambda done, total: bar.update(1),
            robot,
            args.stride,
        )
    lengths = [len(actions) for actions in prepared.store.actions]
    source = Source(args.data.name, lengths, Stride(float(dataset.fps), args.stride))
    frames = effective_frames([source], prepared.model.chunk)
    console().print(frames.table(), highlight=False)
    log = loop.JsonLines(curve, chosen)
    try:
        with Progress(chosen.train.steps, "train") as bar:

            def on_step(step: int, metrics: dict[str, float]) -> None:
                bar.update(1, f"loss {metrics['loss']:.4f}")
                if step % LOG_EVERY == 0:
                    log.add({"step": step, **metrics})

            summary = loop.train(chosen, prepared, args.out, args.seed, args.save_every, on_step)
    finally:
        log.close()
    out = console()
    out.print(
        f"{summary.steps} steps, {summary.samples} samples in {summary.seconds:.0f} s"
        f" ({summary.samples / summary.seconds:.1f} samples/s), mean loss of the last tenth"
        f" {summary.loss:.4f}"
    )
    out.print(f"policy: {args.out}")
    if args.json:
        report = {"train": dataclasses.asdict(summary), "frames": frames.to_json()}
        write_report(args.json, args, report)
    return 0


def _processing(recipe: "Processing", args: Args) -> "Processing":
    """The recipe's, with what the command line says instead."""
    from vlakern.models.weights.native import SlotMode

    wishes = {
        "frame": args.frame,
        "state": args.state_norm,
        "action": args.action_norm,
        "epsilon": args.epsilon,
        "action_slots": tuple(SlotMode(slot, "binary") for slot in args.binary) or None,
    }
    given = {name: value for name, value in wishes.items() if value is not None}
    return dataclasses.replace(recipe, **given)
