"""Groups, queues and aliases: balanced, matched, unlinkable and unpredictable."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from vlakern.blind.plan import BLOCK, SPARES, Allocation, Plan, draw
from vlakern.blind.study import PoolModel, Study, Task


def make(models: int = 4, size: int = 2, trials: int = 7, bridge: str | None = None) -> Study:
    pool = tuple(PoolModel(f"m{index}", f"policy{index}") for index in range(models))
    tasks = (Task("reach", "there", ("a", "b", "c")), Task("push", "moved", ("d",)))
    return Study("t", pool, tasks, size, trials, bridge=bridge)


@pytest.mark.parametrize(("models", "size", "bridge"), [(4, 2, None), (9, 4, None), (5, 2, "m0")])
def test_every_model_meets_every_condition_equally_often(
    models: int, size: int, bridge: str | None
) -> None:
    """N trials of each model, task and group, over the same conditions for all its models."""
    study = make(models, size, 7, bridge)
    plan, allocation = draw(study, random.Random(1))
    met: Counter[tuple[int, str, str, str]] = Counter(
        (one.group, allocation.models[one.code], one.task, one.condition) for one in plan.queue
    )
    assert len(plan.queue) == study.total
    for index, names in enumerate(allocation.groups):
        for task in study.tasks:
            counts = [
                tuple(met[index, name, task.name, each] for each in task.conditions)
                for name in names
            ]
            assert sum(counts[0]) == 7
            assert len(set(counts)) == 1
            assert max(counts[0]) - min(counts[0]) <= 1


def test_groups_do_not_overlap_but_for_the_bridge() -> None:
    """Every model is in one group; a bridge is in all of them."""
    _, plain = draw(make(9, 4), random.Random(2))
    assert sorted(name for group in plain.groups for name in group) == [f"m{i}" for i in range(9)]
    _, bridged = draw(make(5, 2, bridge="m3"), random.Random(2))
    assert all("m3" in group for group in bridged.groups)
    others = [name for group in bridged.groups for name in group if name != "m3"]
    assert sorted(others) == ["m0", "m1", "m2", "m4"]


def test_no_alias_is_used_twice() -> None:
    """Every trial and every repetition has an alias of its own."""
    plan, allocation = draw(make(), random.Random(3))
    codes = [one.code for one in plan.queue]
    spares = [code for given in allocation.spares.values() for code in given]
    assert len(spares) == SPARES * len(codes)
    assert len({*codes, *spares}) == len(codes) + len(spares)
    assert {*codes, *spares} == set(allocation.models)


def test_models_stay_interleaved() -> None:
    """No model ever leads another of its queue by more than a block's conditions."""
    study = make(4, 4, 30)
    plan, allocation = draw(study, random.Random(4))
    run: Counter[str] = Counter()
    for trial in (one for one in plan.queue if one.task == "reach"):
        run[allocation.models[trial.code]] += 1
        counts = [run[name] for name in allocation.groups[0]]
        assert max(counts) - min(counts) <= BLOCK


def test_the_order_tells_nothing() -> None:
    """Over 4,000 draws each model is as often at each place of the queue, and in each group."""
    study = make(4, 2, 2)
    places = np.zeros((4, 2 * 2 * 2 * 2))
    pairs: Counter[tuple[str, ...]] = Counter()
    source = random.Random(5)
    for _ in range(4000):
        plan, allocation = draw(study, source)
        pairs[allocation.groups[0]] += 1
        for place, trial in enumerate(plan.queue):
            places[int(allocation.models[trial.code][1]), place] += 1
    assert stats.chisquare(places, axis=0).pvalue.min() > 1e-4
    assert stats.chisquare(list(pairs.values())).pvalue > 1e-4
    assert len(pairs) == 6


def test_aliases_do_not_carry_the_model() -> None:
    """No letter of an alias goes with a model."""
    counts = np.zeros((2, 31))
    letters = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"
    source = random.Random(6)
    for _ in range(300):
        plan, allocation = draw(make(2, 2, 8), source)
        for trial in plan.queue:
            counts[int(allocation.models[trial.code][1]), letters.index(trial.code[0])] += 1
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    assert stats.chisquare(counts.ravel(), expected.ravel(), ddof=len(letters)).pvalue > 1e-4


def test_the_public_plan_names_no_model(tmp_path: Path) -> None:
    """Nothing of the plan is made from a model's name."""
    plan, allocation = draw(make(), random.Random(7))
    assert isinstance(plan, Plan)
    assert isinstance(allocation, Allocation)
    assert not any(f"'m{index}'" in repr(plan) for index in range(4))
