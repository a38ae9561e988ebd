"""Collects demonstrations of robosuite tasks by several arms: a dataset for each arm."""

import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlakern.data.lerobot_writer import LeRobotWriter
from vlakern.errors import InputError
from vlakern.files import write_bytes
from vlakern.sim.collect import TaskCount, working
from vlakern.sim.experts import ATTEMPTS, Demonstration, Noise, Recipe
from vlakern.sim.robosuite import RobosuiteEnv
from vlakern.sim.robosuite_cameras import VIEWS
from vlakern.sim.robosuite_experts import expert_of
from vlakern.sim.robosuite_setup import ARMS, CONTROL_RATE, TASKS, known, split_words
from vlakern.sim.rollout import TRAINING_SEEDS

__all__ = ["MIXTURE", "Plan", "collect", "demonstrate", "folders", "robot_name", "seed_of"]

MIXTURE = "mixture.toml"
STATE_NAMES = (
    *(f"eef_{axis} [m]" for axis in "xyz"),
    *(f"eef_quaternion_{axis}" for axis in "xyzw"),
    "gripper_opening",
)
ACTION_NAMES = (
    *(f"eef_d{axis}" for axis in "xyz"),
    *(f"eef_rotation_{axis}" for axis in "xyz"),
    "gripper_effort",
)
RECIPE = Recipe(drift_steps=(4, 12), tail=6, limit=260)
Job = tuple[str, str, int]


@dataclass(frozen=True)
class Plan:
    """``episodes`` of each of ``tasks`` by each of ``arms`` from ``seed``.

    Attributes:
        arms, tasks, views: names that robosuite has, separated by commas.
        noise: as of :class:`vlakern.sim.experts.Recipe`, in units of the controller (0.05 m).
        image_size: height and width of a frame [pixels].
    """

    arms: str
    tasks: str
    views: str
    episodes: int
    seed: int
    noise: float
    image_size: int
    workers: int

    def __post_init__(self) -> None:
        for name in ("episodes", "workers", "image_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1")
        self.jobs()
        self.cameras()

    @property
    def recipe(self) -> Recipe:
        """How demonstrations are disturbed and when they end."""
        return Recipe(
            self.noise, drift_steps=RECIPE.drift_steps, tail=RECIPE.tail, limit=RECIPE.limit
        )

    def jobs(self) -> list[Job]:
        """Arm, task and number of every episode, in the order in which they are made.

        Raises:
            InputError: an arm or task that is not known.
        """
        arms = split_words(self.arms, ARMS, "arm")
        tasks = split_words(self.tasks, TASKS, "task")
        numbers = range(self.episodes)
        return [(arm, task, number) for arm in arms for task in tasks for number in numbers]

    def cameras(self) -> tuple[str, ...]:
        """The views that are recorded.

        Raises:
            InputError: one that is not known.
        """
        return split_words(self.views, VIEWS, "view")


def collect(
    plan: Plan,
    root: Path,
    *,
    overwrite: bool,
    watch: Callable[[Iterable[Demonstration], int], Iterable[Demonstration]],
) -> dict[str, TaskCount]:
    """Writes ``plan`` below ``root``, see :func:`folders`; with several arms a mixture of all too.

    Args:
        watch: wraps the stream of demonstrations for progress.

    Returns:
        ``task-arm`` -> its count.
    """
    jobs = plan.jobs()
    places = folders(root, list(dict.fromkeys(arm for arm, _, _ in jobs)))
    counts = {f"{task}-{arm}": TaskCount() for arm, task, _ in jobs}
    work = functools.partial(_collect_one, plan)
    with ExitStack() as stack:
        writers = {
            arm: stack.enter_context(_writer(plan, arm, place, overwrite))
            for arm, place in places.items()
        }
        made = stack.enter_context(working(work, jobs, plan.workers, _environment.cache_clear))
        for (arm, task, _), shown in zip(jobs, watch(made, len(jobs)), strict=True):
            sentence = TASKS[task].instruction
            writers[arm].add_episode(shown.images, shown.states, shown.actions, sentence)
            count = counts[f"{task}-{arm}"]
            count.episodes += 1
            count.failures += shown.failures
            count.frames += len(shown.states)
    if len(places) > 1:
        write_bytes(root / MIXTURE, _mixture(places).encode())
    return counts


def folders(root: Path, arms: list[str]) -> dict[str, Path]:
    """The dataset of each arm: ``root`` itself if there is one, else below it by robot."""
    return {arm: root if len(arms) == 1 else root / robot_name(arm) for arm in arms}


def robot_name(arm: str) -> str:
    """Of the arm's embodiment."""
    return f"robosuite_{known(arm, ARMS, 'arm').lower()}"


def seed_of(seed: int, arm: str, task: str, episode: int, attempt: int) -> int:
    """``1_000_000 + seed * 10^9 + (arm * 10 + task) * 10^7 + episode * 100 + attempt``.

    Arms and tasks count in the order of ``ARMS`` and ``TASKS``. None of them is below 1,000,000,
    where evaluations have their seeds.
    """
    if seed < 0 or not 0 <= episode < 10**5 or not 0 <= attempt < 100:
        raise InputError(
            f"seed {seed}, episode {episode}: expected seed >= 0 and episode from 0 to 99999"
        )
    number = list(ARMS).index(arm) * 10 + list(TASKS).index(task)
    return TRAINING_SEEDS + seed * 10**9 + number * 10**7 + episode * 100 + attempt


def demonstrate(
    env: RobosuiteEnv, recipe: Recipe, seed: int, failures: int = 0
) -> Demonstration | None:
    """One episode of the expert from ``seed``; None if it does not solve the task in time.

    What is recorded is what the expert wanted from where the hand really was, without the noise
    that was executed.
    """
    # A stream of its own: the simulator draws its initial condition from the same seed.
    random = np.random.default_rng([seed, 1])
    env.reset(seed)
    if _drift(env, recipe, random):
        return None
    noise, expert = Noise(recipe, random), expert_of(env)
    expert.begin()
    images: dict[str, list[np.ndarray]] = {view: [] for view in env.views}
    states: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    end: int | None = None
    while len(states) != end:
        if len(states) == recipe.limit:
            return None
        seen = env.observe()
        for view, picture in seen.images.items():
            images[view].append(picture)
        states.append(seen.state)
        actions.append(expert.action())
        disturbed = actions[-1] + np.append(noise.next(), np.zeros(4))
        if env.step(disturbed).success and end is None:
            end = len(states) + recipe.tail
    stacked = {view: np.stack(frames) for view, frames in images.items()}
    vectors = np.stack(states), np.stack(actions).astype(np.float32)
    return Demonstration(env.task, seed, stacked, *vectors, failures)


def _drift(env: RobosuiteEnv, recipe: Recipe, random: np.random.Generator) -> bool:
    """Perhaps moves the hand in one random direction, not down, and turns it about the vertical."""
    wanders, steps = random.random() < recipe.drift, random.integers(*recipe.drift_steps)
    direction = random.normal(size=3)
    direction[2] = abs(direction[2]) / 2.0
    speed, turn = random.uniform(0.3, 1.0), random.uniform(-0.5, 0.5)
    move = direction / np.linalg.norm(direction) * speed
    action = np.concatenate([move, [0.0, 0.0, turn, -1.0]])
    return wanders and any(env.step(action).success for _ in range(steps))


def _collect_one(plan: Plan, job: Job) -> Demonstration:
    """The first attempt that succeeds."""
    arm, task, episode = job
    env = _environment(arm, task, plan.cameras(), plan.image_size)
    for attempt in range(ATTEMPTS):
        seed = seed_of(plan.seed, arm, task, episode, attempt)
        found = demonstrate(env, plan.recipe, seed, attempt)
        if found is not None:
            return found
    raise InputError(
        f"the expert of {task} on {arm} failed {ATTEMPTS} times in episode {episode}; lower the"
        f" noise (it is {plan.noise})"
    )


@functools.lru_cache(maxsize=1)
def _environment(arm: str, task: str, views: tuple[str, ...], image_size: int) -> RobosuiteEnv:
    """The process's environment; building one takes seconds."""
    return RobosuiteEnv(task, arm, views=views, image_size=image_size)


def _writer(plan: Plan, arm: str, place: Path, overwrite: bool) -> LeRobotWriter:
    size = (plan.image_size, plan.image_size)
    return LeRobotWriter(
        place,
        fps=CONTROL_RATE,
        views=dict.fromkeys(plan.cameras(), size),
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        robot_type=robot_name(arm),
        overwrite=overwrite,
        pixel_format="yuv444p",
    )


def _mixture(places: dict[str, Path]) -> str:
    """A mixture that draws every task of every arm equally often, for ``vlakern train``."""
    names = [place.name for place in places.values()]
    head = [
        'name = "arms"',
        'slot_map = "unified-200"',
        'statistics = "all"  # so that an arm that is not here can be driven, too',
        'groups = [{ name = "arms", weights = "explicit" }]',
    ]
    entry = '[[datasets]]\nname = "{0}"\npath = "{0}"\ngroup = "arms"\nbalance = "tasks"\n'
    return "\n".join([*head, "", *(entry.format(name) for name in names)])
