"""Groups and queues: who meets whom, in which order, under which alias.

Models are partitioned at random into groups that do not overlap (Algorithm 1 of arXiv 2602.09722).
Within a group and a task, one queue holds every model ``trials`` times over matched initial
conditions, shuffled in blocks of one to three conditions, so that models stay interleaved and the
last trial of a block cannot be told by counting.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vlakern.blind.study import Study, Task

__all__ = ["SPARES", "Allocation", "Plan", "Trial", "draw"]

# Without letters that look alike on a screen across the room.
ALPHABET = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"
LETTERS = 6
SPARES = 5  # aliases of a trial's repetitions after aborts
BLOCK = 3  # most conditions of a block


@dataclass(frozen=True)
class Trial:
    """A place in the queue as everyone may see it; ``code`` is its alias and never used again."""

    code: str
    group: int
    task: str
    condition: str


@dataclass(frozen=True)
class Plan:
    """What operators and judges may know: no name, path or option of a model.

    Attributes:
        group_sizes: models in each group.
        queue: all trials in the order they are run.
    """

    group_sizes: tuple[int, ...]
    queue: tuple[Trial, ...]


@dataclass(frozen=True)
class Allocation:
    """What is sealed.

    Attributes:
        groups: names of the models of each group.
        models: alias -> model, of the queue and of all spares.
        spares: alias of the queue -> aliases of its repetitions, in their order.
    """

    groups: tuple[tuple[str, ...], ...]
    models: Mapping[str, str]
    spares: Mapping[str, tuple[str, ...]]


def draw(study: Study, source: random.Random) -> tuple[Plan, Allocation]:
    """Groups, queues and aliases from ``source``: ``random.SystemRandom()`` outside tests."""
    codes = _codes(source)
    groups = _groups(study, source)
    queue: list[Trial] = []
    models: dict[str, str] = {}
    spares: dict[str, tuple[str, ...]] = {}
    for index, names in enumerate(groups):
        for task in source.sample(study.tasks, len(study.tasks)):
            for name, condition in _order(names, task, study.trials, source):
                trial = Trial(next(codes), index, task.name, condition)
                spares[trial.code] = tuple(next(codes) for _ in range(SPARES))
                queue.append(trial)
                models.update((code, name) for code in (trial.code, *spares[trial.code]))
    return Plan(study.group_sizes, tuple(queue)), Allocation(groups, models, spares)


def _groups(study: Study, source: random.Random) -> tuple[tuple[str, ...], ...]:
    """Random groups without overlap but for the bridge."""
    names = [model.name for model in study.models if model.name != study.bridge]
    source.shuffle(names)
    waiting = iter(names)
    bridge = [] if study.bridge is None else [study.bridge]
    return tuple(
        tuple(sorted(bridge + [next(waiting) for _ in range(size - len(bridge))]))
        for size in study.group_sizes
    )


def _order(
    names: tuple[str, ...], task: Task, trials: int, source: random.Random
) -> Iterator[tuple[str, str]]:
    """Model and condition of each trial: every model meets the same conditions equally often."""
    # The same conditions in every group, each as often, in another order.
    conditions = [task.conditions[index % len(task.conditions)] for index in range(trials)]
    source.shuffle(conditions)
    while conditions:
        size = source.randint(1, min(BLOCK, len(conditions)))
        block = [(name, condition) for condition in conditions[:size] for name in names]
        source.shuffle(block)
        yield from block
        conditions = conditions[size:]


def _codes(source: random.Random) -> Iterator[str]:
    """Aliases, each once."""
    seen: set[str] = set()
    while True:
        code = "".join(source.choice(ALPHABET) for _ in range(LETTERS))
        if code not in seen:
            seen.add(code)
            yield code
