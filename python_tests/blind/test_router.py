"""One actor for all models of a group: the trial decides who answers, and nothing shows it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vlakern.blind.router import Router, load_policy
from vlakern.blind.seal import identities
from vlakern.blind.study import PoolModel
from vlakern.errors import InputError, StudyError
from vlakern.types import ActionChunk, Observation


@dataclass
class Fake:
    """Actions that say which model made them, and how it saw the world."""

    number: int
    chunk: int = 8
    width: int = 2
    takes: float = 0.0
    views: tuple[str, ...] = ("front", "wrist")
    seen: list[Observation] = field(default_factory=list)

    @property
    def robot(self) -> Any:
        return SimpleNamespace(state_width=3, action_width=self.width)

    def act_batch(
        self, observations: Sequence[Observation], seeds: Sequence[int] | None = None
    ) -> list[ActionChunk]:
        time.sleep(self.takes)
        self.seen += observations
        actions = np.full((self.chunk, self.width), self.number, np.float32)
        return [ActionChunk(actions, {"total": 1.0}, {"seed": 1}) for _ in observations]


def pool(**changes: Any) -> Callable[[PoolModel], Fake]:
    def load(model: PoolModel) -> Fake:
        number = int(model.name[-1])
        options = {name: value[number] for name, value in changes.items() if number in value}
        return Fake(number, **options)

    return load


SEEN = Observation(
    {"front": np.ones((4, 4, 3), np.uint8), "wrist": np.ones((4, 4, 3), np.uint8)},
    np.ones(3, np.float32),
    "reach",
)


def test_the_trial_decides_who_answers(site: Callable[..., Any]) -> None:
    """Every trial of a group gets the actions of its own model, and counts its requests."""
    here = site()
    router = Router(here.key, pool())
    router.prepare(0)
    for trial in (one for one in here.public.plan.queue if one.group == 0):
        router.begin(trial.code)
        (chunk,) = router.act_batch([SEEN], [0])
        assert here.key.allocation.models[trial.code] == f"secret-{int(chunk.actions[0, 0])}"
        assert router.end() == 1


def test_replies_carry_nothing_but_rows(site: Callable[..., Any]) -> None:
    """Chunks of 8 and 5 actions are both replies of 5, without latency or info."""
    here = site()
    names = here.key.allocation.groups[0]
    short = {int(names[0][-1]): 5}
    router = Router(here.key, pool(chunk=short))
    router.prepare(0)
    for trial in here.public.plan.queue[:4]:
        router.begin(trial.code)
        (chunk,) = router.act_batch([SEEN], [0])
        assert chunk.actions.shape == (5, 2)
        assert not chunk.latency_ms
        assert not chunk.info


def test_without_a_trial_nobody_answers(site: Callable[..., Any]) -> None:
    """Before the first, between two, and for a group that is not loaded."""
    here = site()
    router = Router(here.key, pool())
    router.prepare(0)
    with pytest.raises(InputError, match="no trial is running"):
        router.act_batch([SEEN], [0])
    router.begin(here.public.plan.queue[0].code)
    router.end()
    with pytest.raises(InputError, match="no trial is running"):
        router.act_batch([SEEN], [0])
    with pytest.raises(StudyError, match="is not ready"):
        router.begin(here.public.plan.queue[-1].code)


def test_only_a_group_is_loaded(site: Callable[..., Any]) -> None:
    """The next group's models take the place of the last one's."""
    here = site()
    loaded: list[str] = []
    make = pool()

    def load(model: PoolModel) -> Fake:
        loaded.append(model.name)
        return make(model)

    router = Router(here.key, load)
    router.prepare(0)
    router.prepare(0)
    assert sorted(loaded) == sorted(here.key.allocation.groups[0])
    router.prepare(1)
    assert sorted(loaded[2:]) == sorted(here.key.allocation.groups[1])
    with pytest.raises(StudyError, match="is not ready"):
        router.begin(here.public.plan.queue[0].code)


def test_options_are_applied(site: Callable[..., Any]) -> None:
    """A dropped view and a dropped state never reach the model; a foreign camera neither."""
    here = site()
    study = here.key.study
    models = tuple(replace(one, drop_views=("wrist",), drop_state=True) for one in study.models)
    changed = replace(study, models=models)
    key = replace(here.key, study=changed, identities=identities(changed))
    made: list[Fake] = []

    def load(model: PoolModel) -> Fake:
        made.append(Fake(int(model.name[-1])))
        return made[-1]

    router = Router(key, load)
    router.prepare(0)
    router.begin(here.public.plan.queue[0].code)
    router.act_batch([replace(SEEN, images={**SEEN.images, "top": SEEN.images["front"]})], [0])
    for fake in made:
        for seen in fake.seen:
            assert set(seen.images) == {"front"}
            assert not seen.state.any()


def test_a_model_beyond_the_deadline_is_named(site: Callable[..., Any]) -> None:
    """Its replies would be late, and lateness tells models apart."""
    here = site()
    slow = {int(here.key.allocation.groups[0][1][-1]): 0.6}
    with pytest.raises(StudyError, match="more than the deadline of 500 ms"):
        Router(here.key, pool(takes=slow)).prepare(0)


def test_models_of_other_robots_are_refused(site: Callable[..., Any]) -> None:
    """Replies of another width would name their model."""
    here = site()
    wide = {int(here.key.allocation.groups[0][0][-1]): 7}
    with pytest.raises(StudyError, match=r"have \[2, 7\] numbers an action"):
        Router(here.key, pool(width=wide)).prepare(0)


def test_a_view_that_is_not_there_cannot_be_dropped() -> None:
    """The option is refused by its model's name, with the views that there are."""
    wrong = PoolModel("mine", "metaworld-small", drop_views=("nose",))
    with pytest.raises(StudyError, match=r"'mine' cannot be run without the views \['nose'\]"):
        load_policy(wrong)
    assert load_policy(PoolModel("mine", "metaworld-small", steps=1)).chunk > 0


def test_a_policy_that_changed_meanwhile_is_not_run(
    site: Callable[..., Any], tmp_path: Path
) -> None:
    """The second group's files are replaced while the first one runs."""
    here = site()
    router = Router(here.key, pool())
    router.prepare(0)
    name = here.key.allocation.groups[1][0]
    (tmp_path / f"policy{name[-1]}" / "model.safetensors").write_bytes(b"another")
    with pytest.raises(StudyError, match=f"policy of model '{name}' was changed after the lock"):
        router.prepare(1)
