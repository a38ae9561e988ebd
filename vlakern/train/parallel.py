"""One process or many: what ranks add up, agree on, and gather into one checkpoint.

Only torch.distributed: gloo on CPUs, NCCL on GPUs, under torchrun. A loss is already divided by
what counts on all ranks (see :mod:`vlakern.train.step`), so gradients are added, not averaged.
"""

import gc
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import get_node_local_rank
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from vlakern.errors import CheckpointError, ConfigError, VlakernError

__all__ = [
    "Shard",
    "World",
    "fill",
    "full",
    "gather",
    "loss_factor",
    "start",
    "synchronised",
    "wrap",
]

Shard = Literal["ddp", "fsdp"]
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Who this process is among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks to people."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks, elementwise; the same bits on each."""
        if self.size == 1:
            return values
        values = values.detach().to(self.device, copy=True)
        dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """Per flag, whether it is set on any rank."""
        if self.size == 1:
            return list(flags)
        return (self.total(torch.tensor(flags, dtype=torch.float64)) > 0).tolist()

    def tell(self, value: Any) -> Any:
        """The first rank's plain JSON value, on every rank."""
        if self.size == 1:
            return value
        text = json.dumps(value).encode() if self.first else b""
        size = int(self.total(torch.tensor(len(text))))
        content = torch.zeros(size, dtype=torch.uint8, device=self.device)
        if self.first:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(content, 0)
        return json.loads(bytes(content.tolist()))

    def collect(self, words: list[str]) -> list[str]:
        """The words of all ranks, in the order of the ranks."""
        if self.size == 1:
            return words
        text = json.dumps(words).encode()
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(text)
        lengths = self.total(sizes).tolist()
        content = torch.zeros(self.size, max(lengths), dtype=torch.int64)
        content[self.rank, : len(text)] = torch.tensor(list(text))
        rows = self.total(content).cpu()
        texts = [bytes(row[:n].tolist()) for row, n in zip(rows, lengths, strict=True)]
        return [word for text in texts for word in json.loads(text)]

    def on_first(self, work: Callable[[], T], nothing: T) -> T:
        """Runs ``work`` on the first rank alone; the others get ``nothing`` once it is done.

        Raises:
            VlakernError: ``work`` raised it, or an OSError; then every rank raises, so that none
                waits for the others.
        """
        result, failure = nothing, ""
        raised: BaseException | None = None
        if self.first:
            try:
                result = work()
            except (VlakernError, OSError) as error:
                raised, failure = error, str(error) or type(error).__name__
        failure = self.tell(failure)
        if raised is not None:
            raise raised
        if failure:
            raise VlakernError(f"the first rank failed: {failure}")
        return result


@contextmanager
def start(device: str = "cpu") -> Iterator[World]:
    """The world of this process: alone, or among those that torchrun started.

    Args:
        device: ``cpu`` or ``cuda``; under torchrun every process of a machine takes its own GPU.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield World(device=torch.device(device))
        return
    place = torch.device(device)
    if place.type == "cuda":
        place = torch.device("cuda", get_node_local_rank(fallback_rank=0))
        torch.cuda.set_device(place)
    # Imported with a group at hand, as DDP would, its functions' defaults hold that group for ever.
    from torch.distributed.nn import functional  # noqa: F401

    try:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        yield World(dist.get_rank(), dist.get_world_size(), place)
        dist.barrier()
    finally:
        # Who holds the group holds its threads, and one that outlives the interpreter aborts it.
        _let_go(sys.exc_info()[1])
        gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()


def _let_go(error: BaseException | None) -> None:
    """Forgets what the functions that failed held, such as modules that hold the group."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def wrap(objective: nn.Module, world: World, shard: Shard = "ddp") -> nn.Module:
    """The module whose backward, with :func:`loss_factor`, adds up the gradients of all ranks.

    ``objective`` is called as a whole, once per micro-batch. ``fsdp`` keeps a part of parameters,
    gradients and optimizer state on each rank and gathers the parameters for the whole step, so it
    must come before the optimizer is made; weights start as they are on the first rank.

    Raises:
        ConfigError: ``fsdp`` without torchrun.
    """
    if world.size == 1:
        if shard == "fsdp":
            raise ConfigError("shard is fsdp, which needs several ranks; start it under torchrun")
        return objective
    if shard == "ddp":
        # No weight goes without a gradient: what no loss reaches is frozen by stages.select.
        return DistributedDataParallel(objective)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for tensor in (*objective.parameters(), *objective.buffers()):
        dist.broadcast(tensor.detach(), 0)
    mesh = init_device_mesh(world.device.type, (world.size,))
    fully_shard(objective, mesh=mesh)
    assert isinstance(objective, FSDPModule)
    objective.set_gradient_divide_factor(1.0)
    objective.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    return objective


def loss_factor(objective: nn.Module, world: World) -> int:
    """What a loss is multiplied by before backward: DDP averages gradients, which are to be added.

    A hook that adds them would run Python in threads of gloo, which outlive the interpreter.
    """
    return world.size if isinstance(objective, DistributedDataParallel) else 1


def synchronised(objective: nn.Module, last: bool) -> Any:
    """A context for forward and backward of one micro-batch; gradients travel after the last."""
    if isinstance(objective, DistributedDataParallel) and not last:
        return objective.no_sync()
    return nullcontext()


def full(tensor: Tensor) -> Tensor:
    """The whole tensor of one that is spread over the ranks; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Whole copies in main memory on the first rank, nothing on the others."""
    whole = {}
    for name, tensor in sorted(tensors.items()):
        one = full(tensor.detach())
        if world.first:
            whole[name] = one.cpu()
    return whole


def fill(
    targets: Mapping[str, Tensor], source: Mapping[str, Tensor], what: str, world: World
) -> None:
    """Copies whole tensors that the first rank has into the targets of every rank.

    Raises:
        CheckpointError: on every rank, naming a tensor that is missing, unknown or misshapen.
    """
    world.on_first(lambda: _check(targets, source, what), None)
    for name, target in sorted(targets.items()):
        whole = torch.empty(target.shape, dtype=target.dtype, device=world.device)
        if world.first:
            whole.copy_(source[name])
        if world.size > 1:
            dist.broadcast(whole, 0)
        with torch.no_grad():
            if isinstance(target, DTensor):
                mesh, where = target.device_mesh, target.placements
                target.copy_(distribute_tensor(whole, mesh, where, src_data_rank=None))
            else:
                target.copy_(whole)


def _check(targets: Mapping[str, Tensor], source: Mapping[str, Tensor], what: str) -> None:
    missing, extra = sorted(targets.keys() - source), sorted(source.keys() - targets)
    if missing or extra:
        which = f"lacks {missing[0]!r}" if missing else f"holds {extra[0]!r}, which is unknown"
        raise CheckpointError(f"the checkpoint's {what} {which}; it is of another model or recipe")
    for name, target in targets.items():
        found = source[name]
        if found.shape != target.shape or found.dtype != target.dtype:
            raise CheckpointError(
                f"the checkpoint's {what} {name!r} is {found.dtype} {list(found.shape)}, this run"
                f" needs {target.dtype} {list(target.shape)}"
            )
