"""``vlakern rollout --realtime``: the simulator goes on while the policy thinks."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from vlakern.cli._common import Progress, check_json, console, write_report
from vlakern.errors import ConfigError
from vlakern.robot import ExecutorConfig, Limits, Loop, LoopConfig
from vlakern.robot.simulated import RealtimeSimulator
from vlakern.trials import wilson
from vlakern.types import ActionChunk, Observation

__all__ = ["delays", "run"]

LOW, HIGH = (-0.5, 0.2, 0.0), (0.5, 1.1, 0.6)  # [m] that Meta-World's hand may reach
OPEN = -1.0
TICKS = 200.0  # of commands [Hz]


def delays(words: str) -> tuple[float, ...]:
    """``0,50,100`` [ms] in seconds.

    Raises:
        ConfigError: a word that is no time of 0 to 10,000 ms.
    """
    try:
        found = tuple(float(word) * 1e-3 for word in words.split(","))
    except ValueError:
        found = (-1.0,)
    if not all(0 <= one <= 10 for one in found):
        raise ConfigError(
            f"--latency is {words!r}, expected milliseconds from 0 to 10000 separated by commas,"
            " such as 0,50,100"
        )
    return found


class _Slower:
    """A policy whose answers take longer."""

    def __init__(self, policy: Any, seconds: float) -> None:
        self._policy, self._seconds = policy, seconds
        self.frame, self.robot = policy.frame, policy.robot

    @property
    def control(self) -> Any:
        return self._policy.control

    def act(self, observation: Observation, **more: Any) -> ActionChunk:
        chunk = self._policy.act(observation, **more)
        time.sleep(self._seconds)
        return chunk


@dataclass
class _Row:
    """What became of all episodes of one latency; times in [ms]."""

    latency_ms: float
    episodes: int = 0
    successes: int = 0
    delay_steps: int = 0
    inference_p95_ms: float = 0.0
    ticks: int = 0
    missed: int = 0
    starved: int = 0
    stops: int = 0
    faults: int = 0
    discarded: int = 0
    world_steps: int = 0
    world_slow: int = 0
    refused: str | None = None

    def add(self, world: RealtimeSimulator, report: Any) -> None:
        counted = report.executor
        self.episodes += 1
        self.successes += world.success
        self.delay_steps = max(self.delay_steps, report.delay_steps)
        self.inference_p95_ms = max(self.inference_p95_ms, 1e3 * report.latency["p95"])
        self.ticks += counted.ticks
        self.missed += counted.missed
        self.starved += counted.starved
        self.stops += counted.stops
        self.faults += counted.faults
        self.discarded += sum(report.discarded.values())
        self.world_steps += world.steps
        self.world_slow += world.slow


def run(args: Any, policy: Any, make_env: Any, tasks: tuple[str, ...]) -> int:
    """Runs every episode at every latency, prints the table and returns 0."""
    check_json(args.json)
    rows = [_Row(1e3 * one) for one in delays(args.latency)]
    with Progress(len(rows) * len(tasks) * args.episodes, "episodes") as bar:
        for row in rows:
            for task in tasks:
                for episode in range(args.episodes):
                    if row.refused is None:
                        _episode(args, policy, lambda t=task: make_env(t), episode, row)
                    bar.update()
    _show(rows, policy.name, args.realtime)
    if args.json is not None:
        write_report(
            args.json, args, {"policy": policy.name, "realtime": [_plain(r) for r in rows]}
        )
    return 0


def _plain(row: _Row) -> dict[str, Any]:
    interval = wilson(row.successes, row.episodes) if row.episodes else None
    return {**vars(row), "wilson95": interval}


def _episode(args: Any, policy: Any, make: Any, episode: int, row: _Row) -> None:
    controller = policy.robot.controller
    step = controller.position_scale * controller.limit * args.realtime
    limits = Limits([*LOW, -1.0], [*HIGH, 1.0], [step] * 3 + [2.0 * TICKS])
    rates = ExecutorConfig(args.realtime, TICKS, policy.chunk, held=(3,))
    config = LoopConfig(policy.execute, warm_up=1, probes=2)
    rest = np.array([0.0, 0.0, 0.0, OPEN])
    world = RealtimeSimulator(
        make, policy.control, args.seed + episode, args.realtime, args.max_steps, rest
    )
    try:
        loop = Loop(world, _Slower(policy, row.latency_ms * 1e-3), limits, rates, config)
        row.add(world, loop.run(2.0 * args.max_steps / args.realtime, lambda: world.over))
    except ConfigError as error:
        row.refused = str(error)
    finally:
        world.close()


def _show(rows: list[_Row], name: str, rate: float) -> None:
    table = Table(title=f"{name} in real time at {rate:g} steps a second", title_justify="left")
    titles = ("+ms", "solved", "p95", "d", "ticks", "missed", "starved", "stops", "faults")
    for title in (*titles, "late"):
        table.add_column(title, justify="right", no_wrap=True)
    out = console()
    for row in rows:
        counted = (row.ticks, row.missed, row.starved, row.stops, row.faults)
        found = (f"{row.successes}/{row.episodes}", f"{row.inference_p95_ms:.0f}", row.delay_steps)
        world = f"{row.world_slow}/{row.world_steps}"
        table.add_row(f"{row.latency_ms:g}", *map(str, (*found, *counted)), world)
    out.print(table)
    for row in rows:
        if row.refused is not None:
            out.print(f"{row.latency_ms:g} ms: refused: {row.refused}", soft_wrap=True)
