"""The policies of a group behind one actor: every request goes to the trial that runs.

Nothing that an endpoint sends tells models apart: replies are cut to one number of rows, hold no
metadata, and all models of a group are loaded and warmed up before its first trial.
"""

import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from vlakern.blind.seal import Key, check_model
from vlakern.blind.study import PoolModel
from vlakern.errors import InputError, StudyError
from vlakern.types import ActionChunk, Observation

__all__ = ["Router", "Runnable", "load_policy"]

CALLS = 8  # of each model at its warm-up


class Runnable(Protocol):
    """What a study needs of a policy."""

    @property
    def views(self) -> tuple[str, ...]: ...
    @property
    def chunk(self) -> int: ...
    @property
    def robot(self) -> Any: ...
    def act_batch(
        self, observations: Sequence[Observation], seeds: Sequence[int] | None = None
    ) -> list[ActionChunk]: ...


def load_policy(model: PoolModel) -> Runnable:
    """The policy of a model with its options.

    Raises:
        StudyError: it has not the views that it should be run without.
    """
    from vlakern.infer.policy import load

    policy = load(model.policy, dtype=model.dtype, steps=model.steps)
    unknown = sorted(set(model.drop_views) - set(policy.views))
    if unknown or len(model.drop_views) >= len(policy.views):
        raise StudyError(
            f"model {model.name!r} cannot be run without the views {list(model.drop_views)}; it has"
            f" {', '.join(policy.views)}, and at least one stays"
        )
    return policy


@dataclass
class _Ready:
    """A model that is loaded, and its slowest warm call [ms]."""

    model: PoolModel
    policy: Runnable
    slowest: float


class Router:
    """An actor for :class:`vlakern.serve.batcher.Batcher` that hides who answers.

    Args:
        key: the sealed key; it never leaves this object.
        load: makes a model's policy.

    Attributes:
        views: cameras that a robot may send: those of all policies loaded so far.
        requests: of the trial that runs.
    """

    def __init__(self, key: Key, load: Callable[[PoolModel], Runnable] = load_policy) -> None:
        self._key, self._load = key, load
        self._models = {model.name: model for model in key.study.models}
        self._ready: dict[str, _Ready] = {}
        self._group: int | None = None
        self._turn = threading.Lock()
        self._current: str | None = None
        self.requests = 0

    def prepare(self, group: int) -> None:
        """Loads the models of a group, lets the others go, and holds each to the deadline.

        Raises:
            StudyError: a model was changed after the lock, cannot be run as the study says, or is
            slower than the deadline.
        """
        if self._group == group:
            return
        names = self._key.allocation.groups[group]
        with self._turn:
            self._ready = {name: one for name, one in self._ready.items() if name in names}
        gc.collect()
        for name in names:
            if name not in self._ready:
                made = self._warm(self._models[name])
                with self._turn:
                    self._ready[name] = made
        self._check_alike()
        self._group = group

    @property
    def views(self) -> tuple[str, ...]:
        """Cameras of all models of the group."""
        seen = (view for one in self._ready.values() for view in one.policy.views)
        return tuple(dict.fromkeys(seen))

    def begin(self, code: str) -> None:
        """Requests go to the model of this trial from now on.

        Raises:
            StudyError: its group was not prepared.
        """
        name = self._key.allocation.models[code]
        with self._turn:
            if name not in self._ready:
                raise StudyError(f"the group of trial {code} is not ready; wait for it")
            self._current, self.requests = name, 0

    def end(self) -> int:
        """No trial runs any more; returns how many requests the last one had."""
        with self._turn:
            self._current = None
            return self.requests

    def act_batch(
        self, observations: Sequence[Observation], seeds: Sequence[int] | None = None
    ) -> list[ActionChunk]:
        """Chunks of the trial's model, all of one length.

        Raises:
            InputError: no trial runs.
        """
        with self._turn:
            if self._current is None:
                raise InputError("no trial is running; start it on the operator's page")
            ready = self._ready[self._current]
            self.requests += len(observations)
        seen = [_shown(one, ready) for one in observations]
        chunks = ready.policy.act_batch(seen, seeds)
        rows = self._rows()
        return [ActionChunk(np.ascontiguousarray(one.actions[:rows])) for one in chunks]

    def _rows(self) -> int:
        """Of every reply: the study's horizon, or the shortest chunk of the group."""
        shortest = min(one.policy.chunk for one in self._ready.values())
        return self._key.study.horizon or shortest

    def _warm(self, model: PoolModel) -> _Ready:
        """Loads a model, calls it, and measures it."""
        check_model(self._key, model)  # hours may have passed since the study was served
        policy = self._load(model)
        ready = _Ready(model, policy, 0.0)
        image = np.zeros((64, 64, 3), np.uint8)
        state = np.zeros(policy.robot.state_width, np.float32)
        seen = _shown(Observation(dict.fromkeys(policy.views, image), state, "warm up"), ready)
        times = []
        for seed in range(CALLS):
            begin = time.perf_counter()
            policy.act_batch([seen], [seed])
            times.append((time.perf_counter() - begin) * 1e3)
        ready.slowest = max(times[CALLS // 2 :])  # the first ones build what the others use
        if ready.slowest > self._key.study.deadline_ms:
            raise StudyError(
                f"model {model.name!r} takes {ready.slowest:.0f} ms, more than the deadline of"
                f" {self._key.study.deadline_ms:g} ms; lock a study with a longer one"
            )
        return ready

    def _check_alike(self) -> None:
        """All models act for the same robot, and give the rows that the study wants."""
        widths = {one.policy.robot.action_width for one in self._ready.values()}
        if len(widths) > 1:
            raise StudyError(f"the models of a group have {sorted(widths)} numbers an action")
        horizon, shortest = self._key.study.horizon, self._rows()
        least = min(one.policy.chunk for one in self._ready.values())
        if horizon is not None and horizon > least:
            raise StudyError(f"horizon is {shortest}, and a model's chunk has {least} actions")


def _shown(observation: Observation, ready: _Ready) -> Observation:
    """What the model is shown: without its dropped views and state, and only cameras it knows."""
    images: Mapping[str, np.ndarray] = {
        view: image
        for view, image in observation.images.items()
        if view in ready.policy.views and view not in ready.model.drop_views
    }
    state = observation.state
    if ready.model.drop_state:
        state = np.zeros_like(state)
    return replace(observation, images=images, state=state)
