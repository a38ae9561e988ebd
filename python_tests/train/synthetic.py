"""The smallest policy that has every part, and samples that are a function of their number.

Imported by test files through the fixture ``lab`` and by the processes that tests start.
"""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from vlakern.data.collate import TrainBatch
from vlakern.data.quarantine import Damage, Quarantine
from vlakern.models import VLA
from vlakern.models.config import ExpertConfig, MoTConfig, PromptConfig, VisionConfig, VLAConfig
from vlakern.models.sequence import document, pack
from vlakern.train import TrainConfig
from vlakern.train.loop import Place

MODEL = VLAConfig(
    vision=VisionConfig(8, 4, hidden=8, layers=1, heads=1, mlp=8, class_token=True),
    mot=MoTConfig(
        layers=1,
        q_heads=2,
        kv_heads=1,
        head_dim=16,
        semantic=ExpertConfig(hidden=16, mlp=16),
        action=ExpertConfig(hidden=16, mlp=16),
    ),
    vocab_size=128,
    state_dim=3,
    action_dim=2,
    chunk=4,
    prompt=PromptConfig(("Go. ", "{views}", "{state}", "{instruction}"), "<", ">"),
)
RUN = TrainConfig(
    steps=4, batch_size=4, flow_samples=2, warmup=2, ema=0.9, bf16=False, shares="elements"
)
WORDS = ("push", "open the box", "lift")


def spell(text: str) -> list[int]:
    return [ord(character) % 128 for character in text]


def make_model(seed: int = 0, config: VLAConfig = MODEL) -> VLA:
    torch.manual_seed(seed)
    return VLA(config)


class Samples:
    """Micro-batches of random samples; every number that is drawn comes from the sample's own.

    Args:
        size: samples of a step, of all ranks and parts.
        poison: steps in which the pictures of this rank's first sample are NaN.

    Every 25th number stands for a sample that was drawn in the place of a damaged one.
    """

    def __init__(
        self,
        size: int,
        parts: int = 1,
        rank: int = 0,
        world: int = 1,
        poison: tuple[int, ...] = (),
    ) -> None:
        self.size, self.parts, self.rank, self.world = size, parts, rank, world
        self.poison, self.waited, self.asked = poison, 0.001, []
        self.quarantine = Quarantine()

    def batch(self, step: int, part: int = 0) -> TrainBatch:
        self.asked.append((step, part))
        local = self.size // self.world // self.parts
        first = step * self.size + (part * self.world + self.rank) * local
        numbers = range(first, first + local)
        damages = [Damage(f"lab/{n}", "damaged") for n in numbers if n % 25 == 9]
        self.quarantine.add(local + len(damages), damages)
        found = batch_of(numbers)
        if step in self.poison:
            found.prefix.pixels_V3SS[0] = torch.nan
        return found


def batch_of(numbers: range) -> TrainBatch:
    """The samples with these numbers: one or two views, one of three instructions."""
    draws = [torch.Generator().manual_seed(1000 + number) for number in numbers]
    views = [1 + number % 2 for number in numbers]

    def normal(*shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=draw) for draw in draws])

    side = MODEL.vision.image_size
    pixels = [
        torch.rand(n, 3, side, side, generator=d) * 2 - 1 for n, d in zip(views, draws, strict=True)
    ]
    words = [WORDS[number % 3] for number in numbers]
    documents = [document(MODEL.prompt, spell, w, n) for w, n in zip(words, views, strict=True)]
    action_BHA = normal(MODEL.chunk, MODEL.action_dim)
    mask_BHA = torch.ones_like(action_BHA)
    for row, number in enumerate(numbers):
        mask_BHA[row, MODEL.chunk - number % 3 :] = 0.0
    return TrainBatch(
        pack(MODEL, documents, torch.cat(pixels), normal(MODEL.state_dim)),
        action_BHA,
        mask_BHA,
        torch.ones(len(numbers), MODEL.action_dim),
        normal(MODEL.state_dim),
        torch.tensor([row for row, n in enumerate(views) for _ in range(n)]),
        torch.zeros(len(numbers), dtype=torch.int64),
        torch.tensor(list(numbers)),
        tuple(f"set/{number}" for number in numbers),
    )


def place(root: Path, **facts: object) -> Place:
    """Checkpoints below a directory; policies are not written."""
    return Place(root / "checkpoints", lambda weights: None, {"seed": 0, **facts})


def longer(steps: int, **changes: object) -> TrainConfig:
    return dataclasses.replace(RUN, steps=steps, **changes)  # pyright: ignore[reportArgumentType]
