"""Closed-loop evaluation: several episodes at once, one batched policy call a round.

A round asks the policy for one chunk per running episode in a single call and then executes
``policy.execute`` actions of each. An episode that ends is replaced before the next round, so the
batch stays full and every call is in step.
"""

import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from vlakern.errors import InputError
from vlakern.trials import wilson
from vlakern.types import STAGES, ActionChunk, Observation

__all__ = [
    "TRAINING_SEEDS",
    "Call",
    "Environment",
    "EpisodeResult",
    "Plan",
    "PolicyLike",
    "RolloutResult",
    "TaskResult",
    "noise_seed",
    "play",
    "rollout",
    "summarise",
]

# Demonstrations are collected at this seed and above, so no evaluation scene was trained on.
TRAINING_SEEDS = 1_000_000
VIDEO_RATE = 10.0

Frames = list[np.ndarray]


class Outcome(Protocol):
    """What one environment step gives back, as far as a rollout needs it."""

    @property
    def success(self) -> bool: ...


class Environment(Protocol):
    """A simulator of one task; ``reset(seed)`` alone decides the scene."""

    def reset(self, seed: int) -> None: ...
    def observe(self) -> Observation: ...
    def render(self, view: str) -> np.ndarray: ...
    def step(self, action: np.ndarray) -> Outcome: ...
    def close(self) -> None: ...


class PolicyLike(Protocol):
    """The part of a policy that a rollout uses."""

    @property
    def name(self) -> str: ...
    @property
    def views(self) -> tuple[str, ...]: ...
    @property
    def execute(self) -> int: ...
    def act_batch(
        self, observations: list[Observation], seeds: Sequence[int]
    ) -> list[ActionChunk]: ...


@dataclass(frozen=True)
class Plan:
    """What to run.

    Episode ``e`` of every task starts from scene seed ``seed + e``.

    Attributes:
        tasks: names that the environment factory knows, each once.
        episodes: episodes per task.
        seed: scene seed of the first episode and root of the policy's noise.
        batch: most episodes running at once.
        max_steps: control steps after which an episode counts as failed.
        video: which of the policy's views are recorded, side by side.
        control_rate: control steps per second of simulated time [Hz].

    Raises:
        InputError: a count below 1, no task, a task named twice, or a seed used for training.
    """

    tasks: tuple[str, ...]
    episodes: int = 5
    seed: int = 0
    batch: int = 5
    max_steps: int = 300
    video: Literal["first", "all", "none"] = "first"
    control_rate: float = 80.0

    def __post_init__(self) -> None:
        for name in ("episodes", "batch", "max_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise InputError(f"expected one or more different tasks, found {list(self.tasks)}")
        if self.seed < 0 or self.seed + self.episodes > TRAINING_SEEDS:
            raise InputError(
                f"evaluation seeds run from 0 to {TRAINING_SEEDS - 1} (training uses the rest), "
                f"found {self.seed} to {self.seed + self.episodes - 1}; choose a smaller seed"
            )

    @property
    def frame_every(self) -> int:
        """Control steps between two recorded frames."""
        return max(1, round(self.control_rate / VIDEO_RATE))

    @property
    def frame_rate(self) -> float:
        """Rate at which a recording plays in real time [Hz]."""
        return self.control_rate / self.frame_every


@dataclass(frozen=True)
class EpisodeResult:
    """How one episode went; ``seconds`` is simulated time [s], ``video`` a path in the report."""

    task: str
    episode: int
    seed: int
    success: bool
    steps: int
    seconds: float
    video: str | None = None


Ended = tuple[EpisodeResult, Frames]


@dataclass(frozen=True)
class Call:
    """One policy call: how many episodes it served and its wall time per stage [ms]."""

    batch: int
    latency_ms: Mapping[str, float]


@dataclass(frozen=True)
class TaskResult:
    """The count of one task with its Wilson 95 % interval, as fractions."""

    task: str
    episodes: int
    successes: int
    wilson95: tuple[float, float]


@dataclass(frozen=True)
class RolloutResult:
    """Everything a report needs; episodes are ordered by task, then number."""

    plan: Plan
    policy: str
    episodes: tuple[EpisodeResult, ...]
    calls: tuple[Call, ...]
    seconds: float

    @property
    def tasks(self) -> tuple[TaskResult, ...]:
        """One row per task, in the plan's order."""
        return tuple(self._task(name) for name in self.plan.tasks)

    @property
    def successes(self) -> int:
        """Successful episodes of all tasks."""
        return sum(episode.success for episode in self.episodes)

    @property
    def mean_success(self) -> float:
        """Mean of the tasks' success rates; tasks have equally many episodes."""
        return self.successes / len(self.episodes)

    @property
    def wilson95(self) -> tuple[float, float]:
        """Wilson 95 % interval of the pooled count."""
        return wilson(self.successes, len(self.episodes))

    @property
    def latency_ms(self) -> dict[str, dict[str, float]]:
        """Stage -> percentiles [ms] of all calls but the first; empty after a single call.

        Each of the calls that had that stage: on a GPU some may be one launch, see ``ActionChunk``.
        """
        warm = [call.latency_ms for call in self.calls[1:]]
        found = {stage: [one[stage] for one in warm if stage in one] for stage in STAGES}
        return {stage: summarise(times) for stage, times in found.items() if times}

    @property
    def cold_start_ms(self) -> dict[str, float]:
        """Stage -> wall time [ms] of the first call, which pays for every first use."""
        return dict(self.calls[0].latency_ms)

    @property
    def mean_batch(self) -> float:
        """Mean number of episodes that one policy call served."""
        return sum(call.batch for call in self.calls) / len(self.calls)

    def payload(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {
            "policy": self.policy,
            "tasks": [{**vars(task), "wilson95": list(task.wilson95)} for task in self.tasks],
            "mean_success": self.mean_success,
            "mean_success_wilson95": list(self.wilson95),
            "latency_ms": self.latency_ms,
            "cold_start_ms": self.cold_start_ms,
            "calls": len(self.calls),
            "mean_batch": self.mean_batch,
            "seconds": self.seconds,
            "episodes": [dict(vars(episode)) for episode in self.episodes],
        }

    def _task(self, name: str) -> TaskResult:
        outcomes = [episode.success for episode in self.episodes if episode.task == name]
        interval = wilson(sum(outcomes), len(outcomes))
        return TaskResult(name, len(outcomes), sum(outcomes), interval)


def noise_seed(seed: int, task: str, episode: int, call: int) -> int:
    """The noise seed of one policy call, the same whatever else is in the batch."""
    entropy = (seed, zlib.crc32(task.encode()), episode, call)
    # Shifted by one bit because torch's generators take signed 64-bit seeds.
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def summarise(samples_ms: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99, max and min of wall times [ms]; percentiles interpolate linearly."""
    p50, p95, p99 = (float(value) for value in np.percentile(samples_ms, (50, 95, 99)))
    return {"p50": p50, "p95": p95, "p99": p99, "max": max(samples_ms), "min": min(samples_ms)}


def rollout(
    plan: Plan,
    policy: PolicyLike,
    make_env: Callable[[str], Environment],
    keep: Callable[[EpisodeResult, Frames], EpisodeResult] | None = None,
    on_round: Callable[[int], None] = lambda steps: None,
) -> RolloutResult:
    """Runs the plan to its end.

    Args:
        plan: tasks, counts and seeds.
        policy: answers batches of observations with chunks of actions.
        make_env: builds the simulator of a task by name; it is reused for the task's episodes.
        keep: receives each ended episode with its frames (uint8 ``[H, W, 3]``) and returns the
            row to report, for example with the path of the video that it wrote.
        on_round: called after every round with the control steps executed so far.

    Raises:
        InputError: the policy returned actions that are not finite or not one chunk per row.
    """
    start = time.perf_counter()
    calls: list[Call] = []
    rows: list[EpisodeResult] = []
    with closing(play(plan, policy, make_env, calls, on_round)) as stream:
        for row, frames in stream:
            rows.append(keep(row, frames) if keep else row)
    order = {task: index for index, task in enumerate(plan.tasks)}
    rows.sort(key=lambda row: (order[row.task], row.episode))
    seconds = time.perf_counter() - start
    return RolloutResult(plan, policy.name, tuple(rows), tuple(calls), seconds)


def play(
    plan: Plan,
    policy: PolicyLike,
    make_env: Callable[[str], Environment],
    calls: list[Call],
    on_round: Callable[[int], None] = lambda steps: None,
) -> Generator[Ended, None, None]:
    """Yields each episode as it ends, with its frames; appends every policy call to ``calls``."""
    views = {"first": policy.views[:1], "all": policy.views, "none": ()}[plan.video]
    waiting = {task: deque(range(plan.episodes)) for task in plan.tasks}
    lanes: list[_Lane] = []
    steps = 0
    try:
        while _fill(lanes, waiting, plan, make_env):
            steps += _round(lanes, plan, policy, views, calls)
            on_round(steps)
            for lane in [lane for lane in lanes if lane.over(plan)]:
                yield lane.result(plan), lane.frames
                _next_episode(lane, lanes, waiting, plan)
    finally:
        for lane in lanes:
            lane.env.close()


@dataclass
class _Lane:
    """One running episode and the environment it runs in."""

    env: Environment
    task: str
    episode: int = 0
    steps: int = 0
    calls: int = 0
    success: bool = False
    frames: Frames = field(default_factory=list)

    def begin(self, episode: int, plan: Plan) -> None:
        self.episode, self.steps, self.calls, self.success = episode, 0, 0, False
        self.frames = []
        self.env.reset(plan.seed + episode)

    def over(self, plan: Plan) -> bool:
        return self.success or self.steps >= plan.max_steps

    def result(self, plan: Plan) -> EpisodeResult:
        seconds = self.steps / plan.control_rate
        seed = plan.seed + self.episode
        return EpisodeResult(self.task, self.episode, seed, self.success, self.steps, seconds)


def _fill(
    lanes: list[_Lane],
    waiting: Mapping[str, deque[int]],
    plan: Plan,
    make_env: Callable[[str], Environment],
) -> bool:
    """Opens lanes for the tasks with most episodes to go; returns whether anything runs."""
    while len(lanes) < plan.batch and any(waiting.values()):
        task = max(waiting, key=lambda name: len(waiting[name]))
        lanes.append(_Lane(make_env(task), task))
        lanes[-1].begin(waiting[task].popleft(), plan)
    return bool(lanes)


def _next_episode(
    lane: _Lane, lanes: list[_Lane], waiting: Mapping[str, deque[int]], plan: Plan
) -> None:
    """Reuses the environment for its task's next episode, or closes it."""
    if waiting[lane.task]:
        lane.begin(waiting[lane.task].popleft(), plan)
    else:
        lanes.remove(lane)
        lane.env.close()


def _round(
    lanes: list[_Lane],
    plan: Plan,
    policy: PolicyLike,
    views: tuple[str, ...],
    calls: list[Call],
) -> int:
    """One observation of every lane, one policy call, its chunks executed; returns the steps."""
    before = sum(lane.steps for lane in lanes)
    observations = [lane.env.observe() for lane in lanes]
    seeds = [noise_seed(plan.seed, lane.task, lane.episode, lane.calls) for lane in lanes]
    chunks = policy.act_batch(observations, seeds)
    if len(chunks) != len(lanes):
        raise InputError(f"expected {len(lanes)} chunks from {policy.name}, found {len(chunks)}")
    calls.append(Call(len(lanes), dict(chunks[0].latency_ms)))
    for lane, observation, chunk in zip(lanes, observations, chunks, strict=True):
        lane.calls += 1
        if views and lane.steps % plan.frame_every == 0:
            lane.frames.append(np.hstack([observation.images[view] for view in views]))
        _execute(lane, _checked(chunk.actions[: policy.execute], lane, policy), plan, views)
    return sum(lane.steps for lane in lanes) - before


def _execute(lane: _Lane, actions: np.ndarray, plan: Plan, views: tuple[str, ...]) -> None:
    """Steps one lane through its chunk until the chunk or the episode ends."""
    for index, action in enumerate(actions):
        lane.success = bool(lane.env.step(action).success)
        lane.steps += 1
        # At a chunk's end the next observation gives the frame for free.
        between = index + 1 < len(actions) and lane.steps % plan.frame_every == 0
        if views and (between or lane.over(plan)):
            lane.frames.append(np.hstack([lane.env.render(view) for view in views]))
        if lane.over(plan):
            return


def _checked(actions: np.ndarray, lane: _Lane, policy: PolicyLike) -> np.ndarray:
    if actions.ndim != 2 or not len(actions) or not np.isfinite(actions).all():
        raise InputError(
            f"expected finite actions [H, A] from {policy.name}, found shape {actions.shape} with "
            f"{np.count_nonzero(~np.isfinite(actions))} non-finite values at step {lane.steps} of "
            f"{lane.task}, episode {lane.episode}; the policy is broken for this input"
        )
    return actions
