"""A rollout is decided by its seed alone, asks for chunks in full batches, and counts honestly."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest

from vlakern.errors import InputError
from vlakern.sim import metaworld
from vlakern.sim.experts import episode_seed
from vlakern.sim.rollout import (
    TRAINING_SEEDS,
    Call,
    EpisodeResult,
    Plan,
    RolloutResult,
    noise_seed,
    play,
    rollout,
    summarise,
)
from vlakern.trials import wilson
from vlakern.types import ActionChunk, Observation

TASKS = ("alpha", "beta")


class Done(NamedTuple):
    """What a step gives back."""

    success: bool


class Walk:
    """A point on a line, started by the seed, that succeeds once it is beyond ``goal``."""

    open: ClassVar[Counter[str]] = Counter()
    built: ClassVar[Counter[str]] = Counter()

    def __init__(self, task: str, goal: float = 2.0) -> None:
        self.name, self.goal, self.x = task, goal, math.nan
        self.seeds: list[int] = []
        self.renders = 0
        Walk.open[task] += 1
        Walk.built[task] += 1

    def reset(self, seed: int) -> None:
        self.seeds.append(seed)
        self.x = float(np.random.default_rng(seed).uniform(-1, 1))

    def observe(self) -> Observation:
        state = np.array([self.x], np.float32)
        return Observation({"a": self._picture(10), "b": self._picture(20)}, state, self.name)

    def render(self, view: str) -> np.ndarray:
        self.renders += 1
        return self._picture(10 if view == "a" else 20)

    def step(self, action: np.ndarray) -> Done:
        self.x += float(action[0])
        return Done(self.x > self.goal)

    def close(self) -> None:
        Walk.open[self.name] -= 1

    def _picture(self, value: int) -> np.ndarray:
        return np.full((8, 6, 3), value, np.uint8)


class Noisy:
    """Draws each chunk from its noise seed, so the outcome depends on every seed it was given."""

    name, views, execute = "noisy", ("a", "b"), 4

    def __init__(self, length: int = 6) -> None:
        self.length = length
        self.batches: list[int] = []
        self.seeds: list[int] = []

    def act_batch(self, observations: list[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        self.batches.append(len(observations))
        self.seeds += seeds
        return [self._chunk(row, seed) for row, seed in zip(observations, seeds, strict=True)]

    def _chunk(self, row: Observation, seed: int) -> ActionChunk:
        noise = np.random.default_rng(seed).normal(0.05, 0.2, (self.length, 1))
        call = len(self.batches)
        stages = {"total": 100.0 if call == 1 else float(call), "ode": 1.0}
        return ActionChunk((noise + 0.01 * row.state).astype(np.float32), stages)


@pytest.fixture(autouse=True)
def _fresh_counts() -> Iterable[None]:
    Walk.open, Walk.built = Counter(), Counter()
    yield
    assert not any(Walk.open.values()), "an environment was left open"


def _run(**changes: Any) -> tuple[RolloutResult, Noisy]:
    policy = Noisy()
    options = {"tasks": TASKS, "episodes": 7, "batch": 3, "max_steps": 50, **changes}
    return rollout(Plan(**options), policy, Walk), policy


def test_batch_size_changes_nothing() -> None:
    """Outcome, length and seed of every episode are the same at any batch size."""
    expected = _run(batch=1)[0].episodes
    assert 0 < sum(row.success for row in expected) < len(expected)
    for batch in (2, 3, 5, 14, 100):
        assert _run(batch=batch)[0].episodes == expected


def test_other_seed_other_episodes() -> None:
    """The seed moves the scenes and the noise."""
    first, second = _run(seed=0)[0], _run(seed=100)[0]
    assert [row.seed for row in second.episodes] == [*range(100, 107)] * 2
    assert [row.steps for row in first.episodes] != [row.steps for row in second.episodes]


def test_calls_are_batched() -> None:
    """Endless episodes keep the batch full: as many calls as the arithmetic needs, no more."""
    policy = Noisy()
    plan = Plan(TASKS, episodes=6, batch=4, max_steps=20)
    result = rollout(plan, policy, lambda task: Walk(task, goal=math.inf))
    chunks = 2 * 6 * 20 // policy.execute
    assert policy.batches == [4] * (chunks // 4)
    assert result.mean_batch == 4.0


def test_finished_episodes_are_replaced() -> None:
    """A batch is short only when fewer episodes than its size are left."""
    result, policy = _run(batch=3)
    short = next(i for i, size in enumerate(policy.batches) if size < 3)
    assert sorted(policy.batches[short:], reverse=True) == policy.batches[short:]
    assert len(result.calls) == len(policy.batches)


def test_environments_are_reused() -> None:
    """No more environments are built than run at once, however many episodes there are."""
    policy = Noisy()
    rollout(Plan(("alpha",), episodes=30, batch=4), policy, Walk)
    assert Walk.built["alpha"] == 4


def test_scene_seeds() -> None:
    """Episode e of every task starts from seed + e, and each is started once."""
    seen: dict[str, list[int]] = {task: [] for task in TASKS}

    def make(task: str) -> Walk:
        env = Walk(task)
        env.seeds = seen[task]
        return env

    rollout(Plan(TASKS, episodes=5, seed=40, batch=3), Noisy(), make)
    assert {task: sorted(seeds) for task, seeds in seen.items()} == {
        task: [40, 41, 42, 43, 44] for task in TASKS
    }


def test_noise_seeds_never_repeat() -> None:
    """Every call of every episode of every task draws its own noise, in torch's range."""
    grid = {
        noise_seed(seed, task, episode, call)
        for seed in (0, 1)
        for task in TASKS
        for episode in range(20)
        for call in range(20)
    }
    assert len(grid) == 2 * 2 * 20 * 20
    assert all(0 <= value < 2**63 for value in grid)
    assert noise_seed(0, "alpha", 0, 0) == noise_seed(0, "alpha", 0, 0)


def test_chunked_execution() -> None:
    """The policy is asked every ``execute`` steps, and only that much of a chunk is executed."""
    policy = Noisy(length=9)
    result = rollout(
        Plan(("alpha",), episodes=1, max_steps=30), policy, lambda task: Walk(task, math.inf)
    )
    assert result.episodes[0].steps == 30
    assert len(policy.batches) == math.ceil(30 / policy.execute)


def test_success_ends_an_episode() -> None:
    """The step that succeeds is the last, even inside a chunk; simulated time follows from it."""
    policy = Noisy()
    result = rollout(Plan(("alpha",), episodes=3), policy, lambda task: Walk(task, goal=-math.inf))
    assert [row.steps for row in result.episodes] == [1, 1, 1]
    assert result.episodes[0].seconds == 1 / 80
    assert result.mean_success == 1.0


def test_rounds_are_reported() -> None:
    """Somebody who waits hears after every policy call how many steps were made in all."""
    heard: list[int] = []
    result = rollout(Plan(TASKS, episodes=3), Noisy(), Walk, on_round=heard.append)
    assert len(heard) == len(result.calls)
    assert heard == sorted(heard)
    assert heard[-1] == sum(row.steps for row in result.episodes)


def test_frames() -> None:
    """Ten frames a simulated second plus the last step; replanning instants cost no render."""
    envs: list[Walk] = []

    def make(task: str) -> Walk:
        envs.append(Walk(task, math.inf))
        return envs[-1]

    plan = Plan(("alpha",), episodes=1, max_steps=33, video="all")
    kept: list[list[np.ndarray]] = []

    def keep(row: EpisodeResult, frames: list[np.ndarray]) -> EpisodeResult:
        kept.append(frames)
        return row

    rollout(plan, Noisy(), make, keep)
    assert plan.frame_every == 8
    assert [frame.shape for frame in kept[0]] == [(8, 12, 3)] * 6
    assert kept[0][0][0, :, 0].tolist() == [10] * 6 + [20] * 6
    assert envs[0].renders == 2


@pytest.mark.parametrize(("video", "width"), [("none", None), ("first", 6)])
def test_recorded_views(video: Any, width: int | None) -> None:
    """One view by default, nothing where nothing is wanted."""
    plan = Plan(("alpha",), episodes=1, video=video)
    for _, frames in play(plan, Noisy(), Walk, []):
        assert {frame.shape[1] for frame in frames} == ({width} if width else set())


def test_latency_leaves_out_the_first_call() -> None:
    """The cold call of 100 ms is a line of its own and in no percentile."""
    result, policy = _run()
    assert result.cold_start_ms == {"total": 100.0, "ode": 1.0}
    total = result.latency_ms["total"]
    assert (total["min"], total["max"]) == (2.0, float(len(policy.batches)))
    assert list(result.latency_ms) == ["ode", "total"]


def test_a_stage_counts_the_calls_that_had_it() -> None:
    """On a GPU some calls are one launch, without stages of its own."""
    staged, whole = {"ode": 1.0, "total": 3.0}, {"model": 2.0, "total": 2.5}
    calls = tuple(Call(1, times) for times in ({"total": 9.0}, whole, staged, whole))
    rows = (EpisodeResult("alpha", 0, 0, True, 1, 1 / 80),)
    found = RolloutResult(Plan(("alpha",), 1), "p", rows, calls, 1.0).latency_ms
    assert {stage: times["p50"] for stage, times in found.items()} == {
        "ode": 1.0, "model": 2.0, "total": 2.5,
    }  # fmt: skip


def test_summarise() -> None:
    """Percentiles of 0..100 are their own names."""
    expected = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 100.0, "min": 0.0}
    assert summarise([float(value) for value in range(100, -1, -1)]) == pytest.approx(expected)


def test_single_call_has_no_percentiles() -> None:
    """One call is a cold start and nothing else."""
    rows = (EpisodeResult("alpha", 0, 0, True, 1, 1 / 80),)
    result = RolloutResult(Plan(("alpha",), 1), "p", rows, (Call(1, {"total": 5.0}),), 1.0)
    assert result.latency_ms == {}


def test_counts_and_intervals() -> None:
    """Task rows, the mean and its pooled interval follow from the episodes."""
    result, _ = _run()
    for task in result.tasks:
        outcomes = [row.success for row in result.episodes if row.task == task.task]
        assert (task.episodes, task.successes) == (7, sum(outcomes))
        assert task.wilson95 == wilson(task.successes, 7)
    rates = [task.successes / task.episodes for task in result.tasks]
    assert result.mean_success == pytest.approx(sum(rates) / len(rates))
    assert result.wilson95 == wilson(sum(task.successes for task in result.tasks), 14)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"episodes": 0}, "episodes must be at least 1, found 0"),
        ({"batch": -2}, "batch must be at least 1, found -2"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"tasks": ()}, "one or more different tasks"),
        ({"tasks": ("alpha", "alpha")}, "one or more different tasks"),
        ({"seed": -1}, "evaluation seeds run from 0 to 999999"),
        ({"seed": TRAINING_SEEDS}, "training uses the rest"),
        ({"seed": TRAINING_SEEDS - 4, "episodes": 5}, "found 999996 to 1000000"),
    ],
)
def test_refuses_impossible_plans(changes: dict[str, Any], words: str) -> None:
    """Each sentence names the value that was found."""
    with pytest.raises(InputError, match=words):
        Plan(**{"tasks": TASKS, "seed": 0, **changes})


@pytest.mark.parametrize("bad", [np.full((6, 1), np.nan), np.zeros((0, 1)), np.zeros(6)])
def test_refuses_broken_actions(bad: np.ndarray) -> None:
    """A chunk that cannot be executed stops the run, names the episode and closes everything."""
    policy = Noisy()
    policy._chunk = lambda row, seed: ActionChunk(bad)
    with pytest.raises(InputError, match=r"finite actions .* step 0 of alpha, episode 0"):
        rollout(Plan(TASKS), policy, Walk)


def test_refuses_missing_chunks() -> None:
    """A policy that answers fewer rows than it was asked is not taken at its word."""
    policy = Noisy()
    policy.act_batch = lambda observations, seeds: []
    with pytest.raises(InputError, match="expected 5 chunks from noisy, found 0"):
        rollout(Plan(TASKS), policy, Walk)


def test_interrupt_closes_environments() -> None:
    """Ctrl-C between two episodes leaves no simulator open (the fixture looks)."""

    def stop(row: EpisodeResult, frames: list[np.ndarray]) -> EpisodeResult:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout(Plan(TASKS), Noisy(), Walk, stop)
    assert sum(Walk.built.values()) == 5


def test_training_never_uses_an_evaluation_seed() -> None:
    """Demonstrations begin where evaluation ends."""
    assert episode_seed(0, next(iter(metaworld.TASKS)), 0, 0) == TRAINING_SEEDS


class Wandering(Noisy):
    """Random actions of Meta-World's width."""

    name, views = "wandering", ("left", "right")

    def _chunk(self, row: Observation, seed: int) -> ActionChunk:
        noise = np.random.default_rng(seed).uniform(-1, 1, (self.length, 4))
        return ActionChunk(noise.astype(np.float32), {"total": 1.0})


def test_real_simulator() -> None:
    """Reused or fresh, alone or side by side: Meta-World shows the same pictures."""

    def run(batch: int) -> tuple[RolloutResult, dict[int, np.ndarray]]:
        last: dict[int, np.ndarray] = {}

        def keep(row: EpisodeResult, frames: list[np.ndarray]) -> EpisodeResult:
            last[row.seed] = np.stack(frames)
            return row

        plan = Plan(("drawer-open-v3",), episodes=2, batch=batch, max_steps=30)
        make = partial(metaworld.MetaWorldEnv, image_size=48)
        return rollout(plan, Wandering(), make, keep), last

    (alone, reused), (together, fresh) = run(1), run(2)
    assert alone.episodes == together.episodes
    assert [row.steps for row in alone.episodes] == [30, 30]
    for seed in (0, 1):
        assert reused[seed].shape == (5, 48, 48, 3)
        np.testing.assert_array_equal(reused[seed], fresh[seed])
    assert (reused[0] != reused[1]).any()
