"""Demonstrations by scripted experts, with disturbances from which they recover."""

from dataclasses import dataclass

import numpy as np

from vlakern.errors import InputError
from vlakern.sim.metaworld import TASKS, MetaWorldEnv

__all__ = [
    "ATTEMPTS",
    "Demonstration",
    "Noise",
    "Recipe",
    "collect_episode",
    "demonstrate",
    "episode_seed",
]

ATTEMPTS = 20
_FIRST_TRAINING_SEED = 1_000_000


@dataclass(frozen=True)
class Recipe:
    """How demonstrations are disturbed and when they end.

    Attributes:
        noise: standard deviation of what is added to dx, dy, dz of the executed action; 0 is none.
        correlation: of that noise from one step to the next, so that it pushes instead of shaking.
        calm, burst: mean steps without and with noise, in turns: under steady noise an expert
            never gets to do the precise part of its task.
        drift: probability that the hand first wanders off, unrecorded, for ``drift_steps``.
        drift_steps: fewest and most steps of that.
        tail: steps recorded after the first success, so that a policy learns to stay.
        limit: most steps of an episode.
    """

    noise: float = 0.3
    correlation: float = 0.9
    calm: float = 25.0
    burst: float = 15.0
    drift: float = 0.5
    drift_steps: tuple[int, int] = (10, 40)
    tail: int = 10
    limit: int = 300

    def __post_init__(self) -> None:
        if not 0.0 <= self.noise <= 10.0:
            raise InputError(f"noise is {self.noise}, expected a number from 0 to 10")


@dataclass(frozen=True)
class Demonstration:
    """One solved episode of T instants.

    Attributes:
        images: view -> uint8 ``[T, H, W, 3]``.
        states: float32 ``[T, 4]`` proprioception.
        actions: float32 ``[T, 4]`` what the expert wanted, without the noise that was executed.
        failures: attempts before this one that did not solve the task.
    """

    task: str
    seed: int
    images: dict[str, np.ndarray]
    states: np.ndarray
    actions: np.ndarray
    failures: int


def episode_seed(seed: int, task: str, episode: int, attempt: int) -> int:
    """``1_000_000 + seed * 10^9 + task * 10^7 + episode * 10^2 + attempt``.

    ``task`` counts in the order of ``TASKS``. Seeds below 1_000_000 are never used for training, so
    evaluation on 0..999_999 meets only new initial conditions.
    """
    if seed < 0 or not 0 <= episode < 10**5 or not 0 <= attempt < 100:
        raise InputError(
            f"seed {seed}, episode {episode}: expected seed >= 0 and episode from 0 to 99999"
        )
    number = list(TASKS).index(task)
    return _FIRST_TRAINING_SEED + seed * 10**9 + number * 10**7 + episode * 100 + attempt


def collect_episode(env: MetaWorldEnv, recipe: Recipe, seed: int, episode: int) -> Demonstration:
    """Demonstration number ``episode`` of the run ``seed``: the first attempt that succeeds.

    Raises:
        InputError: ``ATTEMPTS`` attempts failed, so the noise is too strong for this task.
    """
    for attempt in range(ATTEMPTS):
        number = episode_seed(seed, env.task.name, episode, attempt)
        found = demonstrate(env, recipe, number, failures=attempt)
        if found is not None:
            return found
    raise InputError(
        f"the expert of {env.task.name} failed {ATTEMPTS} times in episode {episode}; "
        f"lower the noise (it is {recipe.noise})"
    )


def demonstrate(
    env: MetaWorldEnv, recipe: Recipe, seed: int, *, failures: int = 0
) -> Demonstration | None:
    """Runs the expert from ``seed``; None if it does not solve the task within the limit."""
    # Drawing costs far more than physics, so only an episode known to succeed is drawn.
    if _episode(env, recipe, seed, None) is None:
        return None
    images: dict[str, list[np.ndarray]] = {view: [] for view in env.views}
    vectors = _episode(env, recipe, seed, images)
    if vectors is None:
        raise RuntimeError(f"{env.task.name} with seed {seed} ran differently the second time")
    stacked = {view: np.stack(frames) for view, frames in images.items()}
    return Demonstration(env.task.name, seed, stacked, *vectors, failures)


def _episode(
    env: MetaWorldEnv, recipe: Recipe, seed: int, images: dict[str, list[np.ndarray]] | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """States and actions ``[T, 4]`` of a solved episode; fills ``images`` if it is given."""
    # A stream of its own: the simulator draws its initial condition from the same seed.
    random = np.random.default_rng([seed, 1])
    env.reset(seed)
    if _drift(env, recipe, random):
        return None
    noise = Noise(recipe, random)
    states: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    end: int | None = None
    while len(states) < recipe.limit and len(states) != end:
        for view, frames in (images or {}).items():
            frames.append(env.render(view))
        states.append(env.state())
        actions.append(env.expert_action())
        if env.step(actions[-1] + np.append(noise.next(), 0.0)).success and end is None:
            end = len(states) + recipe.tail
    return None if end is None else (np.stack(states), np.stack(actions))


def _drift(env: MetaWorldEnv, recipe: Recipe, random: np.random.Generator) -> bool:
    """Perhaps moves the hand in one random direction; True if that already solved the task."""
    wanders, steps = random.random() < recipe.drift, random.integers(*recipe.drift_steps)
    direction = random.normal(size=3)
    speed = random.uniform(0.3, 1.0)
    action = np.append(direction / np.linalg.norm(direction) * speed, -1.0)
    return wanders and any(env.step(action).success for _ in range(steps))


class Noise:
    """Bursts of a first-order autoregression whose stationary deviation is ``recipe.noise``."""

    def __init__(self, recipe: Recipe, random: np.random.Generator) -> None:
        self._recipe, self._random = recipe, random
        self._on = False
        self._value = np.zeros(3)

    def next(self) -> np.ndarray:
        """``[3]`` for dx, dy, dz; zero while calm."""
        recipe = self._recipe
        fresh = np.sqrt(1.0 - recipe.correlation**2) * recipe.noise * self._random.normal(size=3)
        if self._random.random() < 1.0 / (recipe.burst if self._on else recipe.calm):
            self._on = not self._on
            self._value = np.zeros(3)
        if self._on:
            self._value = recipe.correlation * self._value + fresh
        return self._value
