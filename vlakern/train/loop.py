"""From a dataset directory to a policy directory."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vlakern.data.body import resized, resolve_body
from vlakern.data.collate import Augment, Chunks, ClipStore, TrainBatch, collate
from vlakern.data.lerobot import LeRobotDataset
from vlakern.errors import VlakernError
from vlakern.models import VLA
from vlakern.models.config import VLAConfig
from vlakern.models.tokenizer import TextTokenizer, fit_tokenizer
from vlakern.models.weights.native import (
    PolicyFiles,
    Processing,
    check_parts,
    check_target,
    make_space,
    write,
)
from vlakern.space import Embodiment, SlotMap, VectorStats
from vlakern.train.config import Recipe, TrainConfig
from vlakern.train.step import (
    Average,
    Foresight,
    learning_rate,
    make_optimizer,
    train_step,
)

__all__ = ["JsonLines", "Prepared", "Progress", "Summary", "prepare", "save", "train"]

# Consecutive updates that may be skipped because loss or gradient was not finite.
MAX_SKIPPED = 3
Progress = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Prepared:
    """A dataset in memory, and what a policy directory says about it.

    ``model`` is the preset with the widths of the robot's slot maps.
    """

    model: VLAConfig
    store: ClipStore
    embodiment: Embodiment
    state_map: SlotMap
    action_map: SlotMap
    processing: Processing
    state_stats: VectorStats
    action_stats: VectorStats
    tokenizer: TextTokenizer


@dataclass(frozen=True)
class Summary:
    """What a run did: steps, samples, wall time [s] and the mean finite loss of the last tenth."""

    steps: int
    samples: int
    seconds: float
    loss: float


def prepare(
    dataset: LeRobotDataset,
    model: VLAConfig,
    processing: Processing,
    on_episode: Callable[[int, int], None] = lambda done, total: None,
    robot: tuple[Embodiment, SlotMap] | None = None,
    stride: int = 1,
) -> Prepared:
    """Decodes every episode once into memory and computes its statistics.

    Pictures of another size than the model's are resized as a policy does it. The model takes the
    robot's whole slot map if it is as wide, else it becomes as wide as the slots that the robot
    fills.

    Args:
        robot: what the dataset's numbers mean, with its slot map; by default the robot that ships
            under the dataset's ``robot_type``, else one slot per name of the dataset.
        stride: frames of the dataset from one step of a chunk to the next.

    Raises:
        DatasetError: when the dataset is not of that robot.
        ConfigError: when the policy could not be loaded again, because two slots share a name, a
            unit is unknown or there is no view; or a frame that the robot cannot have.
    """
    body = resolve_body(dataset, model.state_dim, processing.frame, robot, stride)
    model = replace(model, state_dim=body.state_map.width, action_dim=body.action_map.width)
    check_parts(model, body.state_map, body.action_map, processing, str(dataset.root))
    # Raises for a frame that the robot cannot have, before minutes of decoding.
    control, _ = body.control, body.plain_space()
    views = body.robot.views
    episodes, frames = [], []
    for i in range(dataset.num_episodes):
        episodes.append(dataset.episode(i))
        side = model.vision.image_size
        frames.append({view: resized(dataset.frames(i, view), side) for view in views})
        on_episode(i + 1, dataset.num_episodes)
    states = [episode.states for episode in episodes]
    actions = [episode.actions for episode in episodes]
    state_stats, action_stats = body.statistics(states, actions, model.chunk)
    maps = (body.state_map, body.action_map)
    space = make_space(body.robot, *maps, processing, state_stats, action_stats)
    words = [episode.task for episode in episodes]
    store = ClipStore(frames, states, actions, words, space, control, stride)
    tokenizer = fit_tokenizer(words, model.vocab_size)
    stats = (state_stats, action_stats)
    return Prepared(model, store, body.robot, *maps, processing, *stats, tokenizer)


def train(
    recipe: Recipe,
    prepared: Prepared,
    out: Path,
    seed: int,
    save_every: int,
    on_step: Progress = lambda step, metrics: None,
) -> Summary:
    """Trains from scratch and leaves a policy directory with the averaged weights in ``out``.

    Args:
        save_every: optimizer steps between policies on the way, 0 for none.
        on_step: called after every step with its metrics.

    Raises:
        VlakernError: after three updates in a row with a loss or gradient that is not finite.
        CheckpointError: ``out`` exists and is not a policy directory.
    """
    check_target(out)
    config = recipe.train
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = VLA(prepared.model)
    foresight = Foresight(model.config) if config.foresight else None
    optimizer = make_optimizer(nn.ModuleList([model, *([foresight] if foresight else [])]), config)
    average = Average(model, config.ema)
    chunks = Chunks(prepared.store)
    begin, losses, skipped = time.perf_counter(), [], 0
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        fetched = time.perf_counter()
        batch = _batch(model.config, prepared, chunks, config, rng)
        waited = time.perf_counter() - fetched
        metrics = train_step(model, optimizer, batch, config, generator, foresight)
        if np.isfinite([metrics["loss"], metrics["grad_norm"]]).all():
            skipped = 0
            losses.append(metrics["loss"])
        else:
            skipped += 1
        if skipped >= MAX_SKIPPED:
            raise VlakernError(
                f"step {step}: loss {metrics['loss']} and gradient norm {metrics['grad_norm']} for"
                f" {skipped} steps in a row; lower learning_rate or check the dataset's statistics"
            )
        average.update(model)
        on_step(step + 1, {**metrics, "wait_s": waited, "lr": learning_rate(step, config)})
        if save_every and (step + 1) % save_every == 0 and step + 1 < config.steps:
            save(out, recipe, prepared, average)
    if not losses:
        raise VlakernError(f"none of {config.steps} steps had a finite loss; no policy was written")
    save(out, recipe, prepared, average)
    seconds = time.perf_counter() - begin
    tail = losses[-max(1, len(losses) // 10) :]
    return Summary(config.steps, config.steps * config.batch_size, seconds, float(np.mean(tail)))


def save(out: Path, recipe: Recipe, prepared: Prepared, average: Average) -> None:
    """Writes the averaged weights as a policy directory."""
    model = VLA(prepared.model)
    model.load_state_dict(average.weights)
    files = PolicyFiles(
        model,
        prepared.embodiment,
        prepared.state_map,
        prepared.action_map,
        prepared.processing,
        prepared.state_stats,
        prepared.action_stats,
        prepared.tokenizer,
    )
    write(out, files)


class JsonLines:
    """Appends one JSON object per line, flushed, so that a dead run leaves its curve."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        self.add(asdict(recipe))

    def add(self, row: dict[str, object]) -> None:
        """Writes one row."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _batch(
    model: VLAConfig,
    prepared: Prepared,
    chunks: Chunks,
    config: TrainConfig,
    rng: np.random.Generator,
) -> TrainBatch:
    augment = Augment(config.drop_state, config.drop_view, config.shift, config.jitter)
    pairs = chunks.draw(config.batch_size, rng)
    views = prepared.embodiment.views
    return collate(model, views, prepared.tokenizer, prepared.store, pairs, augment, rng)
