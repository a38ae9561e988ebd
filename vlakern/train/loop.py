"""The loop from batches to a policy: updates, checkpoints, and what ends a run early."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from vlakern.data.collate import TrainBatch
from vlakern.data.quarantine import Quarantine
from vlakern.errors import CheckpointError, ConfigError, VlakernError
from vlakern.models.vla import VLA
from vlakern.train import checkpoint
from vlakern.train.checkpoint import TrainState, loudly
from vlakern.train.config import TrainConfig
from vlakern.train.learner import Learner, moved
from vlakern.train.optimizer import learning_rate
from vlakern.train.parallel import Shard, World
from vlakern.train.report import Summary, peak_memory

__all__ = ["Batches", "Place", "Progress", "RunConfig", "check_same", "find_start", "train"]

# Consecutive updates that may be skipped because loss or gradient was not finite.
MAX_SKIPPED = 3
NAMED = 16  # samples in a message
LOSSES = ("loss", "flow", "foresight", "language")
Progress = Callable[[int, dict[str, Any]], None]
Weights = Mapping[str, Tensor]


class Batches(Protocol):
    """Where batches come from; the same for the same numbers, whatever was asked before."""

    waited: float
    quarantine: Quarantine

    def batch(self, step: int, part: int = 0) -> TrainBatch:
        """This rank's micro-batch ``part`` of a step."""
        ...


@dataclass(frozen=True)
class RunConfig:
    """What does not change the result: it may differ between a run and its continuation.

    Attributes:
        save_every: optimizer steps between checkpoints, with the policy; 0 for none on the way.
        keep: checkpoints that stay.
        parts: micro-batches of a step, whose gradients are added up.
        shard: what each rank keeps.
    """

    save_every: int = 500
    keep: int = 3
    parts: int = 1
    shard: Shard = "ddp"

    def __post_init__(self) -> None:
        for name, least in (("save_every", 0), ("keep", 1), ("parts", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {least}")


@dataclass(frozen=True)
class Place:
    """Where a run writes.

    Attributes:
        checkpoints: a directory of its own.
        policy: takes whole averaged weights by name; called on the first rank.
        identity: plain JSON that decides the result; a continuation must have the same.
        say: takes what must not be missed.
    """

    checkpoints: Path
    policy: Callable[[Weights], None]
    identity: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = loudly


@dataclass
class _State:
    """Where the loop stands, and what it adds up on the way; ``damaged`` after whole steps."""

    step: int = 0
    part: int = 0
    skipped: int = 0
    skips: int = 0
    saved: tuple[int, int] | None = None
    sums: list[float] = field(default_factory=lambda: [0.0] * len(LOSSES))
    losses: list[float] = field(default_factory=list)
    waited: float = 0.0
    views: int = 0
    tokens: int = 0
    damaged: dict[str, Any] = field(default_factory=Quarantine().to_json)


def find_start(
    directory: Path, resume: Literal["no", "auto"] | Path, say: Callable[[str], None] = loudly
) -> Path | None:
    """The checkpoint that a run continues: the newest good one, or the one that is named.

    What is newer than a good one is damaged and is set aside; for the first rank only.

    Raises:
        CheckpointError: the directory holds something else, or no checkpoint in it is good.
    """
    checkpoint.check_directory(directory)
    if isinstance(resume, Path):
        checkpoint.verify(resume)
        return resume
    if resume == "no":
        return None
    found = checkpoint.newest_good(directory, say)
    if found is not None:
        checkpoint.set_aside(directory, found)
    return found


def check_same(start: Path, identity: Mapping[str, Any]) -> None:
    """Refuses to continue a verified checkpoint with something else that decides the result.

    Raises:
        CheckpointError: naming what differs.
    """
    here = json.loads(json.dumps(identity))
    difference = checkpoint.difference(checkpoint.facts(start)["config"], here, "")
    if difference:
        raise CheckpointError(
            f"{start} is of another run: {difference}; say the same, or begin anew with another"
            " --out"
        )


def train(
    model: VLA,
    config: TrainConfig,
    seed: int,
    batches: Batches,
    place: Place,
    run: RunConfig | None = None,
    start: Path | None = None,
    world: World | None = None,
    robots: int = 1,
    on_step: Progress = lambda step, row: None,
) -> Summary:
    """Trains to the last step, or until SIGTERM, and leaves a policy with the averaged weights.

    Every rank calls it. SIGTERM is answered between two micro-batches, or with several ranks
    between two steps, by a checkpoint; :attr:`Summary.stopped` says so.

    Args:
        model: with its first values.
        start: a verified checkpoint to continue from; the first rank reads it.
        robots: embodiments of the mixture.
        on_step: called on every rank after every step with its row of the curve.

    Raises:
        VlakernError: after three updates in a row with a loss or gradient that is not finite,
            naming the samples; no step had a finite loss; or the last state could not be written.
        CheckpointError: the checkpoint is of another run.
        OSError: the last policy could not be written.
    """
    run, world = run or RunConfig(), world or World()
    learner = Learner(model, config, seed, robots, world, run.shard)
    state = _resumed(learner, place, start, run)
    if world.first:
        # The other ranks count on from zero: what all of them add up to goes on.
        batches.quarantine.include(state.damaged)
    state.damaged = batches.quarantine.to_json()
    first, begin = state.step, time.perf_counter()
    with _listening() as asked:
        while state.step < config.steps:
            if not _one_step(learner, batches, run, state, asked, on_step):
                break
            due = run.save_every and state.step % run.save_every == 0
            if due and state.step < config.steps:
                _save(learner, place, run, state)
                _save_policy(learner, place, state)
        stopped = state.step < config.steps
        saved = not (stopped or run.save_every) or _save(learner, place, run, state)
        if stopped and not saved:
            raise VlakernError(f"stopped by SIGTERM after {state.step} steps, without a state")
    if not stopped:
        if not state.losses:
            raise VlakernError(
                f"none of {config.steps} steps had a finite loss; no policy was written"
            )
        weights = learner.policy()
        world.on_first(lambda: place.policy(weights), None)
        if not saved:
            raise VlakernError(
                f"trained to step {state.step} and its policy is written, but its checkpoint is"
                f" not; free some space beside {place.checkpoints} and continue from the one before"
            )
    seconds = time.perf_counter() - begin
    return _summary(state, world, seconds, (state.step - first) * config.batch_size, stopped)


def _one_step(
    learner: Learner,
    batches: Batches,
    run: RunConfig,
    state: _State,
    asked: Callable[[], bool],
    on_step: Progress,
) -> bool:
    """One update; False if the run was asked to end, which may be between its micro-batches."""
    world, step, begin = learner.world, state.step, time.perf_counter()
    if world.any(asked())[0]:
        return False
    learner.enter(step)
    waited, mine = 0.0, []
    for part in range(run.parts):
        mine.append(moved(batches.batch(step, part), world.device))
        waited += batches.waited
    totals = world.total(torch.stack([learner.counts(batch) for batch in mine]).sum(0))
    bad: list[str] = []
    while state.part < run.parts:
        batch = mine[state.part]
        found = learner.micro(batch, totals, state.part + 1 == run.parts)
        values = [float(found[name]) for name in LOSSES]
        state.sums = [a + b for a, b in zip(state.sums, values, strict=True)]
        if not math.isfinite(values[0]):
            bad += batch.sample_ids
        state.views += batch.prefix.pixels_V3SS.shape[0]
        state.tokens += int(batch.prefix.cu_prefix[-1])
        state.part += 1
        if state.part < run.parts and world.size == 1 and asked():
            return False
    told = world.total(torch.tensor([*state.sums, float(len(bad))], dtype=torch.float64)).tolist()
    row: dict[str, Any] = dict(zip(LOSSES, told, strict=False))
    if math.isfinite(row["loss"]) and not told[-1]:
        norm = learner.update(step)
    else:
        norm = math.nan
        learner.optimizer.forget()
    # The flow loss is the loss that people compare; the others are told beside it.
    row = {"loss": row["flow"], **{name: row[name] for name in LOSSES[2:]}}
    row |= {"grad_norm": norm, "lr": learning_rate(step, learner.config), "wait_s": waited}
    # If every loss is finite and the gradient is not, any sample may be to blame.
    ids = bad if told[-1] else [one for batch in mine for one in batch.sample_ids]
    _account(state, world, row, ids)
    state.step, state.part, state.sums = step + 1, 0, [0.0] * len(LOSSES)
    state.damaged = batches.quarantine.to_json()
    state.waited += waited
    on_step(state.step, {**row, "step_s": time.perf_counter() - begin})
    return True


def _account(state: _State, world: World, row: dict[str, Any], ids: list[str]) -> None:
    """Counts a good step, or one that was skipped, with the samples it was made of."""
    if math.isfinite(row["grad_norm"]):
        state.skipped = 0
        state.losses.append(row["loss"])
        return
    state.skipped += 1
    state.skips += 1
    row["skipped"] = names = world.collect(ids)
    if state.skipped >= MAX_SKIPPED:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise VlakernError(
            f"step {state.step}: the loss or its gradient was not finite for {state.skipped} steps"
            f" in a row; the samples of this one: {', '.join(names[:NAMED])}{more}; look at them,"
            " lower learning_rate or check the statistics"
        )


def _save(learner: Learner, place: Place, run: RunConfig, state: _State) -> bool:
    """Writes a checkpoint; if the disk takes no more, says so, and training goes on."""
    world, at = learner.world, (state.step, state.part)
    if state.saved == at:
        return True
    tensors = learner.tensors(state.part)
    stage = learner.stage
    progress = {
        "stage": {"begin": stage.begin, "end": stage.end, "part": stage.part},
        "parts": run.parts,
        "updates": learner.average.updates,
        "samples": state.step * learner.config.batch_size,
        "skipped": state.skipped,
        "skips": state.skips,
        "sums": state.sums,
        "losses": state.losses[-max(1, learner.config.steps // 10) :],
        "quarantine": _quarantine(world, state).to_json(),
    }
    whole = TrainState(*at, tensors, json.loads(json.dumps(place.identity)), _plain(progress))
    problem = ""
    if world.first:
        try:
            checkpoint.save(place.checkpoints, whole, run.keep)
        except OSError as error:
            problem = f"{error.strerror or error}"
            place.say(
                f"the checkpoint of step {state.step} was NOT written ({problem}); the ones before"
                f" it in {place.checkpoints} stay, and training goes on; free some space"
            )
    if world.tell(problem):
        return False
    state.saved = at
    return True


def _save_policy(learner: Learner, place: Place, state: _State) -> None:
    """Writes the policy on the way; if the disk takes no more, says so, and training goes on."""
    weights = learner.policy()
    if learner.world.first:
        try:
            place.policy(weights)
        except OSError as error:
            place.say(
                f"the policy of step {state.step} was NOT written ({error.strerror or error}); the"
                " one before stays, and training goes on; free some space"
            )


def _resumed(learner: Learner, place: Place, start: Path | None, run: RunConfig) -> _State:
    """The state that a run begins with."""
    world = learner.world
    if not world.tell(start is not None):
        return _State()

    def opened() -> TrainState | None:
        assert start is not None
        check_same(start, place.identity)
        return checkpoint.read(start, checked=True)

    found = world.on_first(opened, None)
    step, part, progress = world.tell((found.step, found.part, found.progress) if found else None)
    learner.restore(found, step)
    state = _State(step, part, progress["skipped"], progress["skips"], (step, part))
    state.losses = list(progress["losses"])
    state.damaged = progress.get("quarantine") or state.damaged
    # Half a step continues only in the same micro-batches; else it is done again from its start.
    if part and (world.size > 1 or run.parts != progress["parts"]):
        learner.optimizer.forget()
        state.part = 0
    elif part:
        state.sums = [math.nan if one is None else one for one in progress["sums"]]
    return state


def _quarantine(world: World, state: _State) -> Quarantine:
    """What all ranks have met in whole steps."""
    found = Quarantine()
    for one in world.collect([json.dumps(state.damaged)]):
        found.include(json.loads(one))
    return found


def _plain(value: Any) -> Any:
    """With null for what is not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(state: _State, world: World, seconds: float, samples: int, stopped: bool) -> Summary:
    views, tokens = world.total(torch.tensor([state.views, state.tokens])).tolist()
    tail = state.losses[-max(1, state.step // 10) :]
    return Summary(
        steps=state.step,
        samples=samples,
        seconds=seconds,
        loss=sum(tail) / len(tail) if tail else math.nan,
        skipped=state.skips,
        wait_share=state.waited / seconds if seconds else 0.0,
        views=views,
        prefix_tokens=tokens,
        peak_memory_bytes=peak_memory(world.device),
        stopped=stopped,
        quarantine=_quarantine(world, state).to_json(),
    )


@contextmanager
def _listening() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come; a second one changes nothing. Only a main thread can listen."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
