"""Collects demonstrations of many tasks in parallel and writes them as one dataset."""

import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vlakern.data.lerobot import LeRobotWriter
from vlakern.errors import InputError
from vlakern.sim.experts import Demonstration, Recipe, collect_episode
from vlakern.sim.metaworld import (
    ACTION_NAMES,
    CAMERAS,
    CONTROL_RATE,
    STATE_NAMES,
    TASKS,
    MetaWorldEnv,
)

__all__ = ["Plan", "TaskCount", "collect", "working"]

Job = TypeVar("Job")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Plan:
    """``episodes`` of each of ``tasks`` from ``seed``, with frames of ``image_size`` [pixels]."""

    tasks: tuple[str, ...]
    episodes: int
    seed: int
    recipe: Recipe
    image_size: int
    workers: int

    def __post_init__(self) -> None:
        for name in ("episodes", "workers", "image_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1")


@dataclass
class TaskCount:
    """What one task gave: successful episodes, failed attempts and recorded frames."""

    episodes: int = 0
    failures: int = 0
    frames: int = 0


def collect(
    plan: Plan,
    root: Path,
    *,
    overwrite: bool,
    watch: Callable[[Iterable[Demonstration], int], Iterable[Demonstration]],
) -> dict[str, TaskCount]:
    """Writes ``plan`` to ``root``; ``watch`` wraps the stream of demonstrations for progress.

    The dataset does not depend on the number of workers.
    """
    jobs = [(task, episode) for task in plan.tasks for episode in range(plan.episodes)]
    counts = {task: TaskCount() for task in plan.tasks}
    size = (plan.image_size, plan.image_size)
    writer = LeRobotWriter(
        root,
        fps=CONTROL_RATE,
        views=dict.fromkeys(CAMERAS, size),
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        robot_type="metaworld_sawyer",
        overwrite=overwrite,
        # At 96 pixels yuv420p returns frames at 33 dB, yuv444p at 40 dB for 10 % more bytes.
        pixel_format="yuv444p",
    )
    work = functools.partial(_collect_one, plan)
    with writer, working(work, jobs, plan.workers, _environment.cache_clear) as demonstrations:
        for shown in watch(demonstrations, len(jobs)):
            instruction = TASKS[shown.task].instruction
            writer.add_episode(shown.images, shown.states, shown.actions, instruction)
            count = counts[shown.task]
            count.episodes += 1
            count.failures += shown.failures
            count.frames += len(shown.states)
    return counts


@contextmanager
def working(
    work: Callable[[Job], Made], jobs: Sequence[Job], workers: int, end: Callable[[], None]
) -> Iterator[Iterator[Made]]:
    """What ``work`` makes of ``jobs``, in their order, here or by fresh processes.

    Args:
        end: called at the end, to forget what work has kept in this process.
    """
    try:
        if workers == 1:
            yield map(work, jobs)
            return
        # Forked processes would share an OpenGL context, so each starts anew.
        fresh = multiprocessing.get_context("spawn")
        # Ctrl-C reaches every process of a terminal; only this one has something to say about it.
        quiet = (signal.SIGINT, signal.SIG_IGN)
        with ProcessPoolExecutor(workers, fresh, signal.signal, quiet) as pool:
            try:
                yield pool.map(work, jobs)
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        end()


def _collect_one(plan: Plan, job: tuple[str, int]) -> Demonstration:
    task, episode = job
    env = _environment(task, plan.image_size)
    return collect_episode(env, plan.recipe, plan.seed, episode)


@functools.lru_cache(maxsize=1)
def _environment(task: str, image_size: int) -> MetaWorldEnv:
    """The process's environment; building one costs more than an episode's physics."""
    return MetaWorldEnv(task, views=tuple(CAMERAS), image_size=image_size)
