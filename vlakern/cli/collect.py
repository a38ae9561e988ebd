"""``vlakern collect``: demonstrations by scripted experts, as a LeRobot v3.0 dataset."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table

from vlakern.cli._common import check_json, console, progress, write_report
from vlakern.errors import ConfigError

if TYPE_CHECKING:
    from vlakern.sim.collect import TaskCount

    Collect = Callable[..., dict[str, TaskCount]]

__all__ = ["Args", "run"]


@dataclass
class Args:
    """Make demonstrations in simulation and write them as a LeRobot v3.0 dataset."""

    out: Path
    """directory of the new dataset; with several arms, of a dataset for each and a mixture.toml"""
    env: Literal["metaworld", "robosuite"] = "metaworld"
    """simulator"""
    tasks: str | None = None
    """suite or task names, separated by commas; mw5 in metaworld and Lift in robosuite by
    default"""
    arms: str | None = None
    """robosuite's arms, separated by commas, such as Panda,Sawyer; Panda by default"""
    views: str | None = None
    """robosuite's cameras, separated by commas: agentview before the table, robot0_eye_in_hand on
    the hand; both by default"""
    episodes: int = 100
    """successful episodes per task and arm"""
    seed: int = 0
    """episode seeds are 1000000 + seed * 10^9 + task * 10^7 + episode * 100 + attempt, so never
    one of the evaluation seeds 0..999999; in robosuite an arm counts as ten tasks"""
    noise: float = 0.3
    """deviation of the correlated noise added to the executed (not the recorded) motion; 0: none"""
    workers: int = 2
    """processes that simulate and render"""
    image_size: int = 96
    """height and width of a frame [pixels]"""
    overwrite: bool = False
    """replace an existing directory"""
    json: Path | None = None
    """write a report for programs to this file"""


def run(args: Args) -> int:
    """Collects; returns the exit code."""
    check_json(args.json)
    work = {"metaworld": _metaworld, "robosuite": _robosuite}[args.env](args)
    start = time.perf_counter()
    counts = work(
        args.out,
        overwrite=args.overwrite,
        watch=lambda items, total: progress(items, total, "collect"),
    )
    seconds = time.perf_counter() - start
    console().print(_table(counts))
    console().print(f"{args.out}: {sum(c.frames for c in counts.values())} frames, {seconds:.0f} s")
    if args.json is not None:
        write_report(args.json, args, {"tasks": _rows(counts), "seconds": seconds})
    return 0


def _metaworld(args: Args) -> "Collect":
    from vlakern.sim.collect import Plan, collect
    from vlakern.sim.experts import Recipe
    from vlakern.sim.metaworld_tasks import task_names

    for name in ("arms", "views"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} is for robosuite; leave it out, or say --env robosuite")
    tasks, recipe = task_names(args.tasks or "mw5"), Recipe(noise=args.noise)
    plan = Plan(tasks, args.episodes, args.seed, recipe, args.image_size, args.workers)
    return functools.partial(collect, plan)


def _robosuite(args: Args) -> "Collect":
    from vlakern.sim.robosuite_cameras import VIEWS
    from vlakern.sim.robosuite_collect import Plan, collect

    plan = Plan(
        args.arms or "Panda",
        args.tasks or "Lift",
        args.views or ",".join(VIEWS),
        args.episodes,
        args.seed,
        args.noise,
        args.image_size,
        args.workers,
    )
    return functools.partial(collect, plan)


def _rows(counts: "dict[str, TaskCount]") -> list[dict[str, object]]:
    return [
        {
            "task": task,
            "episodes": count.episodes,
            "attempts": count.episodes + count.failures,
            "mean_length": count.frames / count.episodes,
        }
        for task, count in counts.items()
    ]


def _table(counts: "dict[str, TaskCount]") -> Table:
    table = Table("task", "attempts", "kept", "mean length [steps]")
    for task, count in counts.items():
        mean = count.frames / count.episodes
        attempts = count.episodes + count.failures
        table.add_row(task, str(attempts), str(count.episodes), f"{mean:.1f}")
    return table
