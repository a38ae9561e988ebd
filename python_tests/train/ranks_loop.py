"""Runs that test_learner.py starts under torchrun, and compares with runs of one rank."""

import json
import sys
from pathlib import Path
from typing import Any

from synthetic import Samples, longer, make_model, place

from vlakern.errors import VlakernError
from vlakern.train import parallel
from vlakern.train.loop import RunConfig, find_start, train
from vlakern.train.parallel import World

STEPS, SIZE = 50, 4


def curve(
    root: Path,
    world: World,
    config: Any,
    shard: parallel.Shard = "ddp",
    save: int = STEPS,
    resume: bool = False,
    poison: tuple[int, ...] = (),
) -> list[float]:
    """The loss of every step that is done here."""
    samples = Samples(SIZE, 1, world.rank, world.size, poison)
    run, where = RunConfig(save, keep=9, shard=shard), place(root)
    start = find_start(where.checkpoints, "auto") if resume and world.first else None
    found: list[float] = []
    # The others' first values must not matter.
    arguments = (make_model(world.rank), config, 0, samples, where, run, start, world)
    train(*arguments, on_step=lambda step, row: found.append(row["loss"]))
    return found


def main(root: Path, shard: parallel.Shard) -> None:
    """Everything with DDP, or 50 steps with FSDP alone."""
    report: dict[str, Any] = {}
    with parallel.start() as world:
        report[shard] = curve(root / shard, world, longer(STEPS), shard, save=45)
        if shard == "ddp":
            report["stages"] = curve(root / "stages", world, longer(6, expert_steps=3))
            # The first 45 steps were one rank's.
            for kind in ("ddp", "fsdp"):
                where = (root / f"one-{kind}", world, longer(STEPS), kind, 48, True)
                report[f"from one, {kind}"] = curve(*where)
            second = world.rank == 1
            poison = (1,) if second else ()
            report["poisoned"] = curve(root / "p", world, longer(4), poison=poison)
            try:
                curve(root / "q", world, longer(6), poison=(1, 2, 3) if second else ())
            except VlakernError as error:
                report["stopped"] = world.collect([str(error)])
        if world.first:
            (root / f"{shard}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "fsdp" if sys.argv[2] == "fsdp" else "ddp")
