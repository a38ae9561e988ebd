"""The model with what updates it, over one rank or many: micro-batch, update, state by name.

The state is plain tensors by file and name, gathered whole on the first rank, so that a checkpoint
does not depend on how many ranks wrote it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlakern.data.collate import TrainBatch
from vlakern.errors import ConfigError
from vlakern.models.vla import VLA
from vlakern.ops.shared_attention import KvEnd
from vlakern.train.checkpoint import TrainState
from vlakern.train.config import Stage, TrainConfig
from vlakern.train.lora import merged
from vlakern.train.optimizer import Average, Optimizer, in_bf16, learning_rate
from vlakern.train.parallel import (
    Shard,
    World,
    fill,
    gather,
    loss_factor,
    synchronised,
    wrap,
)
from vlakern.train.stages import select
from vlakern.train.step import Draws, Objective, counts

__all__ = ["Learner", "moved"]

MASTER = "master/"


class Learner:
    """Trains one model; every rank has one and they stay in step.

    Args:
        model: with its first values, which are the first rank's.
        config: of the run.
        seed: of everything that is drawn.
        robots: embodiments of the mixture.
        world: the ranks that train together.
        shard: what each rank keeps, see :func:`vlakern.train.parallel.wrap`.
    """

    def __init__(
        self,
        model: VLA,
        config: TrainConfig,
        seed: int,
        robots: int = 1,
        world: World | None = None,
        shard: Shard = "ddp",
    ) -> None:
        self.config, self.seed, self.robots = config, seed, robots
        self.world = world or World()
        self.shard: Shard = shard
        if shard == "fsdp" and len(config.stages) > 1:
            raise ConfigError(
                "shard is fsdp, which cannot freeze and thaw weights within a run; run the stages"
                " one after the other: expert_steps = steps, then --init with the policy it wrote"
            )
        self.objective = Objective(model, config).to(self.world.device)
        # FSDP gathers fp32 shards and autocast rounds them; its groups have one dtype.
        if config.bf16 and self.world.device.type == "cuda" and shard == "ddp":
            in_bf16(self.objective)
        self.stage = config.stage(0)
        select(self.objective, self.stage.part)
        self.module: nn.Module = wrap(self.objective, self.world, shard)
        self.optimizer = Optimizer(self.objective, config)
        self.average = Average(model, config.ema)

    def enter(self, step: int) -> None:
        """Makes ready for a step: where a stage begins, other weights train with new moments."""
        stage = self.config.stage(step)
        if stage == self.stage:
            return
        before = self.optimizer.masters
        self._begin(stage)
        with torch.no_grad():
            for name in before.keys() & self.optimizer.masters.keys():
                self.optimizer.masters[name].copy_(before[name])
        self.optimizer.settle()

    def counts(self, batch: TrainBatch) -> Tensor:
        """What counts in a batch, see :func:`vlakern.train.step.counts`."""
        return counts(batch, self.config, self._draws(batch), self.robots)

    def micro(self, batch: TrainBatch, totals: Tensor, last: bool) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch; returns its share of the losses.

        Args:
            totals: :meth:`counts` of all ranks and micro-batches of the update.
            last: whether gradients travel between ranks now.
        """
        # Gradients of low-precision weights move to their masters after every backward.
        last = last or any(m is not w for w, m in self._pairs())
        with synchronised(self.module, last):
            found = self.module(batch, self._draws(batch), totals)
            (found["loss"] * loss_factor(self.module, self.world)).backward()
        self.optimizer.accumulate()
        return {name: one.detach() for name, one in found.items()}

    def update(self, step: int) -> float:
        """Weights and their average; returns the gradients' norm, and does nothing else if it is
        not finite."""
        norm = self.optimizer.update(learning_rate(step, self.config))
        if norm - norm == 0.0:
            masters = self.optimizer.masters_under("model.")
            self.average.update(self.objective.model, masters)
        return norm

    def policy(self) -> dict[str, Tensor]:
        """The averaged weights as a policy has them; whole on the first rank, {} on the others."""
        weights = gather(self.average.weights, self.world)
        return merged(weights, self.config.lora) if self.config.lora.rank else weights

    def tensors(self, part: int) -> dict[str, dict[str, Tensor]]:
        """The state by file and name; whole on the first rank, empty files on the others.

        Args:
            part: micro-batches that are done of the next step; with any, gradients are included.
        """
        kept = self.optimizer.state_dict()
        files: dict[str, Mapping[str, Tensor]] = {
            "model": self.objective.state_dict(),
            "master": _starting(kept, MASTER),
            "optimizer": {n: t for n, t in kept.items() if not n.startswith(MASTER)},
            "average": self.average.state_dict(),
            "rng": _generators(self.world.device),
        }
        if part:
            files["gradients"] = self.optimizer.gradients
        return {name: gather(tensors, self.world) for name, tensors in files.items()}

    def restore(self, state: TrainState | None, step: int) -> None:
        """Continues from a checkpoint that the first rank has read; the others give None.

        Raises:
            CheckpointError: on every rank; it is of another model or recipe.
        """
        given = state.tensors if state else {}
        files = self.world.tell(list(given))
        progress = self.world.tell(dict(state.progress) if state else None)
        stage = self.config.stage(step)
        if stage != self.stage:
            self._begin(stage)

        def put(targets: Mapping[str, Tensor], file: str) -> None:
            fill(targets, given.get(file, {}), file, self.world)

        put(self.objective.state_dict(), "model")
        put(self.average.state_dict(), "average")
        self.average.updates = progress["updates"]
        kept = self.optimizer.state_dict()
        if Stage(**progress["stage"]) == stage:
            put(_starting(kept, MASTER), "master")
            put({n: t for n, t in kept.items() if not n.startswith(MASTER)}, "optimizer")
            self.optimizer.settle()
        # Between two stages: new moments, and masters as exact as the weights are.
        if "gradients" in files:
            put(self.optimizer.gradients, "gradients")
        if self.world.size == 1:
            _continue(given.get("rng", {}), self.world.device)

    def _begin(self, stage: Stage) -> None:
        self.stage = stage
        select(self.objective, stage.part)
        self.module = wrap(self.objective, self.world, self.shard)
        self.optimizer = Optimizer(self.objective, self.config)

    def _draws(self, batch: TrainBatch) -> Draws:
        assert batch.numbers_B is not None  # a loader's batches have them
        return Draws(self.seed, batch.numbers_B)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        optimizer = self.optimizer
        return [(weight, optimizer.masters[name]) for name, weight in optimizer.weights.items()]


def moved(value: Any, device: torch.device) -> Any:
    """A record with its tensors on a device."""
    if isinstance(value, (Tensor, KvEnd)):
        return value.to(device)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        return type(value)(**{name: moved(one, device) for name, one in fields.items()})
    return value


def _starting(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: one for name, one in tensors.items() if name.startswith(prefix)}


def _generators(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's own generators; nothing in a step draws from them today."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def _continue(states: Mapping[str, Tensor], device: torch.device) -> None:
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
