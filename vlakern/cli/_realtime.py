"""``vlakern rollout --realtime``: the simulator goes on while the policy thinks."""

import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.markup import escape
from rich.table import Table

from vlakern.cli._common import Progress, check_json, console, write_report
from vlakern.errors import ConfigError, VlakernError
from vlakern.robot import ExecutorConfig, Loop, LoopConfig, LoopReport
from vlakern.robot.simulated import RealtimeSimulator
from vlakern.sim.rollout import Plan, noise_seed
from vlakern.trials import wilson
from vlakern.types import ActionChunk, Observation

__all__ = ["Sweep", "run"]

TICKS = 200.0  # of commands [Hz]


@dataclass(frozen=True)
class Sweep:
    """What is run, at every latency.

    Attributes:
        plan: tasks, episodes and seeds.
        rate: of control steps [Hz].
        delays: that inference takes longer [s], each a row.
        sudden: they come once the robot moves.
        form: of prefixes, or ``none``.
        ensemble: m, None for none.
    """

    plan: Plan
    rate: float
    delays: tuple[float, ...]
    sudden: bool
    form: Any
    ensemble: float | None

    @classmethod
    def of(cls, args: Any, tasks: tuple[str, ...], control_rate: float) -> "Sweep":
        """Of the words of a command line.

        Raises:
            ConfigError, InputError: words that are wrong or do not go together.
        """
        if not 1 <= args.realtime <= control_rate:
            raise ConfigError(
                f"--realtime is {args.realtime:g}, expected 1 to {control_rate:g} control steps a"
                " second, the simulator's own rate"
            )
        m, form = args.ensemble, args.prefix
        if m is not None and not 0 <= m < math.inf:
            raise ConfigError(f"--ensemble is {m:g}, expected a number of 0 (a plain mean) or more")
        if m is not None and form != "none":
            raise ConfigError("--ensemble averages chunks, --prefix joins them; give one of them")
        if form == "exact" and args.backend != "torch":
            raise ConfigError(
                "--prefix exact goes through the network's backward pass, which vlakern's engine"
                " does not have; add --backend torch"
            )
        plan = Plan(tasks, args.episodes, args.seed, 1, args.max_steps, "none")
        found = _delays("0" if args.latency is None else args.latency)
        if args.sudden and not any(found):
            raise ConfigError("--sudden needs a --latency above 0; give one, or leave --sudden out")
        return cls(plan, args.realtime, found, args.sudden, form, m)

    def check(self, policy: Any) -> None:
        """d <= s <= H - d, if inference itself took no time.

        Raises:
            ConfigError: a latency that no loop can do with this policy's chunks.
        """
        most = min(policy.execute, policy.chunk - policy.execute)
        for delay in () if self.sudden else self.delays:
            actions = math.ceil(delay * self.rate - 1e-9)
            if actions > most:
                raise ConfigError(
                    f"--latency {delay * 1e3:g} is d = {actions} actions at {self.rate:g} Hz;"
                    f" {policy.name} executes s = {policy.execute} of chunks of H = {policy.chunk},"
                    f" and expected is d <= s <= H - d: give less than {most / self.rate * 1e3:g},"
                    " a lower --realtime, or --sudden, which drives on and starves"
                )

    def config(self, policy: Any) -> LoopConfig:
        joined = {} if self.form == "none" else {"prefix": True, "form": self.form}
        return LoopConfig(policy.execute, ensemble=self.ensemble, probes=2, **joined)

    def __str__(self) -> str:
        joins = "without prefix" if self.form == "none" else f"prefix {self.form}"
        if self.ensemble is not None:
            joins = f"ensemble {self.ensemble:g}"
        return f"{self.rate:g} steps a second, {joins}{', sudden' if self.sudden else ''}"


def _delays(words: str) -> tuple[float, ...]:
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
    """A policy whose answers take longer, with noise that its seeds decide.

    Attributes:
        error: what it refused; there is nothing to measure then.
    """

    def __init__(
        self, policy: Any, seconds: float, begun: Callable[[], bool], seed: Callable[[int], int]
    ) -> None:
        self._policy, self._seconds, self._begun, self._seed = policy, seconds, begun, seed
        self._calls = 0
        self.frame, self.robot, self.control = policy.frame, policy.robot, policy.control
        self.error: VlakernError | None = None

    def act(self, observation: Observation, **more: Any) -> ActionChunk:
        late = self._begun()
        self._calls += 1
        try:
            chunk = self._policy.act(observation, self._seed(self._calls - 1), **more)
        except VlakernError as error:
            self.error = error
            raise
        if late:
            time.sleep(self._seconds)
        return chunk


@dataclass
class _Row:
    """What became of all episodes of one latency; times in [ms].

    Attributes:
        delay_steps, inference_p95_ms: the most of an episode, from observation to chunk.
        ticks, missed, starved: commands; those skipped because their thread came too late; those
            without an action, because no chunk was there in time.
        stops, faults: that followed.
        late: chunks that came when their time, or that of what they were to join, was over.
        discarded, ended: other chunks, and episodes, by reason.
        world_steps, world_slow: control steps, and those that the machine was too slow for.
        refused: why the loop did not drive.
    """

    latency_ms: float
    successes: int = 0
    episodes: int = 0
    delay_steps: int = 0
    inference_p95_ms: float = 0.0
    ticks: int = 0
    missed: int = 0
    starved: int = 0
    stops: int = 0
    faults: int = 0
    late: int = 0
    discarded: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    world_steps: int = 0
    world_slow: int = 0
    tasks: dict[str, list[bool]] = field(default_factory=dict)
    refused: str | None = None

    def add(self, task: str, world: RealtimeSimulator, report: LoopReport) -> None:
        counted, given_up = report.executor, Counter(report.discarded)
        self.episodes += 1
        self.successes += world.success
        self.tasks.setdefault(task, []).append(world.success)
        self.delay_steps = max(self.delay_steps, report.delay_steps)
        self.inference_p95_ms = max(self.inference_p95_ms, 1e3 * report.latency["p95"])
        self.ticks += counted.ticks
        self.missed += counted.missed
        self.starved += counted.starved
        self.stops += counted.stops
        self.faults += counted.faults
        self.late += counted.expired_late + sum(given_up.pop(why, 0) for why in ("late", "expired"))
        self.discarded += given_up
        self.ended[report.ended] += 1
        self.world_steps += world.steps
        self.world_slow += world.slow

    def plain(self) -> dict[str, Any]:
        """For JSON, with intervals."""
        tasks = [{"task": name, **_counted(won)} for name, won in self.tasks.items()]
        interval = wilson(self.successes, self.episodes) if self.episodes else None
        return {**vars(self), "tasks": tasks, "wilson95": interval}


def _counted(won: list[bool]) -> dict[str, Any]:
    successes, episodes = sum(won), len(won)
    interval = wilson(successes, episodes)
    return {"episodes": episodes, "successes": successes, "wilson95": interval}


def run(args: Any, sweep: Sweep, policy: Any, make_env: Callable[[str], Any]) -> int:
    """Runs every episode at every latency, prints the table; 1 if the loop refused one, else 0.

    Raises:
        ConfigError: a latency that the policy's chunks do not cover.
        VlakernError: whatever the policy or the simulator refuses.
    """
    check_json(args.json)
    sweep.check(policy)
    plan = sweep.plan
    rows = [_Row(1e3 * one) for one in sweep.delays]
    with Progress(len(rows) * len(plan.tasks) * plan.episodes, "episodes") as bar:
        for row in rows:
            for task in plan.tasks:
                for episode in range(plan.episodes):
                    if row.refused is None:
                        _episode(sweep, policy, make_env, task, episode, row)
                    bar.update()
    _show(rows, policy.name, sweep)
    if args.json is not None:
        found = {"policy": policy.name, "realtime": [row.plain() for row in rows]}
        write_report(args.json, args, found)
    refused = [row for row in rows if row.refused is not None]
    for row in refused:
        print(f"vlakern: {row.latency_ms:g} ms: {row.refused}", file=sys.stderr)
    return int(bool(refused))


def _episode(
    sweep: Sweep,
    policy: Any,
    make_env: Callable[[str], Any],
    task: str,
    episode: int,
    row: _Row,
) -> None:
    plan = sweep.plan
    world = RealtimeSimulator(
        lambda: make_env(task), policy.control, plan.seed + episode, sweep.rate, plan.max_steps
    )
    slower = _Slower(
        policy,
        row.latency_ms * 1e-3,
        lambda: bool(loop.begun) or not sweep.sudden,
        lambda call: noise_seed(plan.seed, task, episode, call),
    )
    rates = ExecutorConfig(sweep.rate, TICKS, policy.chunk + 1, held=world.held)
    try:
        loop = Loop(world, slower, world.limits, rates, sweep.config(policy))
        report = _driven(loop, world, slower, 2.0 * plan.max_steps / sweep.rate, row)
    finally:
        world.close()
    if report is not None:
        row.add(task, world, report)


def _driven(
    loop: Loop, world: RealtimeSimulator, slower: _Slower, seconds: float, row: _Row
) -> LoopReport | None:
    """One run; None where the loop refused to begin.

    Raises:
        VlakernError: the policy or the simulator failed, and the loop with it.
    """
    try:
        report = loop.run(seconds, lambda: world.over or slower.error is not None)
    except ConfigError as error:
        if slower.error is not None:
            raise
        row.refused = str(error)
        return None
    broken = slower.error or world.error
    if broken is not None:
        raise broken
    if report.errors or report.error:
        raise VlakernError(f"{report.errors} inferences failed, the last with {report.error}")
    return report


def _show(rows: list[_Row], name: str, sweep: Sweep) -> None:
    title = f"{escape(name)} in real time: {sweep}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    titles = ("+ms", "solved", "95 %", "p95", "d", "ticks", "missed", "starved", "stops", "faults")
    for column in (*titles, "late"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        counted = (row.ticks, row.missed, row.starved, row.stops, row.faults, row.late)
        low, high = wilson(row.successes, row.episodes) if row.episodes else (0.0, 1.0)
        found = (
            f"{row.latency_ms:g}",
            f"{row.successes}/{row.episodes}",
            f"{100 * low:.0f}-{100 * high:.0f}",
            f"{row.inference_p95_ms:.0f}",
            row.delay_steps,
        )
        table.add_row(*map(str, (*found, *counted)))
    out = console()
    out.print(table)
    for row in rows:
        if row.world_slow:
            out.print(
                f"{row.latency_ms:g} ms: the simulator came late to {row.world_slow} of"
                f" {row.world_steps} steps: the machine is busy or too slow, which counts above",
                soft_wrap=True,
            )
