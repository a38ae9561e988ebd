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

STEPS, SIZE, PARTS = 50, 8, 2
CONFIGS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {},
    "stages": {"expert_steps": 3, "steps": 6},
    "lora": {"lora": {"rank": 2}, "steps": 6},
}


def curve(
    root: Path, world: World, shard: parallel.Shard, config: Any, resume: bool = False, **wish: Any
) -> list[float]:
    """The loss of every step; a checkpoint in the middle and at the end."""
    samples = Samples(SIZE, PARTS, world.rank, world.size, **wish)
    run = RunConfig(save_every=config.steps // 2, keep=9, parts=PARTS, shard=shard)
    where = place(root)
    start = find_start(where.checkpoints, "auto") if resume and world.first else None
    found: list[float] = []
    train(
        # The others' first values must not matter.
        make_model(world.rank),
        config,
        0,
        samples,
        where,
        run,
        start=start,
        world=world,
        on_step=lambda step, row: found.append(row["loss"]),
    )
    return found


def main(root: Path) -> None:
    report: dict[str, Any] = {}
    with parallel.start() as world:
        for name, shard, config in (
            ("ddp", "ddp", longer(STEPS)),
            ("fsdp", "fsdp", longer(STEPS)),
            ("stages", "ddp", longer(6, expert_steps=3)),
        ):
            report[name] = curve(root / name, world, shard, config)
        # The first half was one rank's.
        for shard in ("ddp", "fsdp"):
            report[f"from one, {shard}"] = curve(
                root / f"one-{shard}", world, shard, longer(STEPS), resume=True
            )
        poison = (1,) if world.rank == 1 else ()
        report["poisoned"] = curve(root / "p", world, "ddp", longer(4), poison=poison)
        try:
            curve(root / "q", world, "ddp", longer(6), poison=(1, 2, 3) if world.rank else ())
        except VlakernError as error:
            report["stopped"] = world.collect([str(error)])
        if world.first:
            (root / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
