"""What test_parallel.py starts under torchrun: every rank runs this, the first one reports."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlakern.errors import VlakernError
from vlakern.train import parallel
from vlakern.train.parallel import World

ROWS, STEPS = 8, 6


class Objective(nn.Module):
    """A small regression with a weight that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x: Tensor, total: Tensor) -> Tensor:
        return (self.net(self.frozen(x)) - x).square().sum() / total


def rows(step: int) -> Tensor:
    return torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(step))


def train(world: World, shard: parallel.Shard, parts: int) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and optimizer state after some steps, gathered; and the losses on the way."""
    objective = Objective()
    if world.rank:
        with torch.no_grad():
            for weight in objective.parameters():
                weight.add_(1.0)
    module = parallel.wrap(objective, world, shard)
    trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    losses = []
    size = ROWS // world.size // parts
    for step in range(STEPS):
        mine = [
            rows(step)[(part * world.size + world.rank) * size :][:size] for part in range(parts)
        ]
        count = sum(x.numel() for x in mine)
        total = world.total(torch.tensor(float(count), dtype=torch.float64))
        value = torch.zeros((), dtype=torch.float64)
        for part, x in enumerate(mine):
            with parallel.synchronised(module, part + 1 == parts):
                loss = module(x, total)
                (loss * parallel.loss_factor(module, world)).backward()
            value += loss.detach()
        losses.append(float(world.total(value)))
        norm = parallel.full(nn.utils.clip_grad_norm_(trained.values(), 0.5))
        assert torch.isfinite(norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    moments = {
        f"{name}.{key}": value
        for name, p in trained.items()
        for key, value in optimizer.state[p].items()
    }
    found = parallel.gather({**dict(objective.named_parameters()), **moments}, world)
    other = Objective()
    if shard == "fsdp":
        parallel.wrap(other, world, shard)
    weights = {n: t for n, t in found.items() if n in dict(objective.named_parameters())}
    parallel.fill(dict(other.named_parameters()), weights, "model", world)
    again = parallel.gather(dict(other.named_parameters()), world)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    return found, losses


def error_of(weights: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    assert weights.keys() == reference.keys()
    return max(float((weights[n].double() - reference[n]).abs().max()) for n in weights)


def main(out: Path) -> None:
    reference, curve = train(World(), "ddp", 1)
    report: dict[str, object] = {}
    with parallel.start() as world:
        assert world.size == dist.get_world_size() == 2
        for shard in ("ddp", "fsdp"):
            weights, losses = train(world, shard, 2)
            assert bool(weights) == world.first
            if world.first:
                far = [abs(a - b) / b for a, b in zip(losses, curve, strict=True)]
                report[shard] = [error_of(weights, reference), max(far)]
        report["any"] = world.any(world.rank == 1, False)
        report["tell"] = world.tell({"ä": [1, None]} if world.first else 0)
        report["collect"] = world.collect([f"rank {world.rank}"] * (world.rank + 1))
        report["mine"] = world.on_first(lambda: "done", "nothing")
        try:
            world.on_first(lambda: Path("/nowhere/x").write_text("") or "", "")
        except (OSError, VlakernError) as error:
            report["raised"] = world.collect([f"{type(error).__name__}: {error}"])
        try:
            targets = {"w": torch.zeros(2)}
            parallel.fill(targets, {"w": torch.zeros(3)} if world.first else {}, "model", world)
        except VlakernError as error:
            report["misshapen"] = world.collect([type(error).__name__])
        if world.first:
            out.write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
