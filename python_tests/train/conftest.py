"""What the tests of training share: ragged batches of noise that can be cut into parts.

Test files do not import each other; ``synthetic.py`` is also imported by processes they start.
"""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern.data.collate import TrainBatch
from vlakern.models import VLA, VLAConfig, preset
from vlakern.models.sequence import document, pack
from vlakern.testing import generator
from vlakern.train import TrainConfig
from vlakern.train.step import Draws, Objective

WORDS = ("push it", "open the door", "go", "pick the red cube up")
VIEWS = (2, 1, 2, 1)
ROBOTS = (0, 1, 0, 2)
MakeBatch = Callable[..., TrainBatch]


def spell(text: str) -> list[int]:
    return [ord(character) % 512 for character in text]


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    """Samples by number: each is the same whatever else is in the batch.

    Sample 1 ends inside its chunk, and samples 1 and 3 lack the last slot.
    """

    def make(
        config: VLAConfig,
        which: Sequence[int] = range(4),
        robots: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> TrainBatch:
        side, h, a = config.vision.image_size, config.chunk, config.action_dim
        docs, pixels, rows = [], [], []
        parts: dict[str, list[Tensor]] = {"state": [], "action": [], "outcome": []}
        mask, slots = torch.ones(len(which), h, a), torch.ones(len(which), a)
        for i, n in enumerate(which):
            rng = generator(f"sample {n}")
            views = VIEWS[n % 4]
            docs.append(document(config.prompt, spell, WORDS[n % 4], views))
            pixels.append(torch.rand(views, 3, side, side, generator=rng) * 2 - 1)
            rows += [i] * views
            parts["state"].append(torch.randn(config.state_dim, generator=rng))
            parts["outcome"].append(torch.randn(config.state_dim, generator=rng))
            parts["action"].append(torch.randn(h, a, generator=rng))
            if n % 4 == 1:
                mask[i, h // 2 :] = 0
            if n % 2:
                slots[i, -1] = 0
        state, action, outcome = (torch.stack(one).to(dtype) for one in parts.values())
        slots = slots.to(dtype)
        return TrainBatch(
            pack(config, docs, torch.cat(pixels).to(dtype), state),
            action * slots[:, None],
            mask.to(dtype) * slots[:, None],
            slots,
            outcome,
            torch.tensor(rows),
            robots_B=torch.tensor([ROBOTS[n % 4] for n in which]) if robots else None,
        )

    return make


@pytest.fixture(scope="session")
def make_objective() -> Callable[..., Objective]:
    """The smallest network with repeatable weights, and the foresight that the run asks for."""

    def make(config: TrainConfig, model: VLAConfig | None = None) -> Objective:
        torch.manual_seed(0)
        objective = Objective(VLA(model or preset("tiny")), config)
        with torch.no_grad():
            for name, weight in objective.named_parameters():
                if weight.ndim == 1:
                    weight += 0.1 * torch.randn(weight.shape, generator=generator(name))
        return objective

    return make


@pytest.fixture(scope="session")
def draws() -> Callable[..., Draws]:
    """The draws of samples by number."""
    return lambda which=range(4), seed=7: Draws(seed, torch.tensor(list(which)))


@pytest.fixture(scope="session")
def fp32() -> TrainConfig:
    """A short run in fp32 with every optional part off."""
    changes: dict[str, Any] = {"steps": 100, "batch_size": 4, "flow_samples": 3, "warmup": 10}
    return dataclasses.replace(TrainConfig(), **changes, bf16=False, foresight=0.0)


@pytest.fixture(scope="session")
def lab() -> ModuleType:
    """``synthetic.py``: a very small policy and samples by number."""
    if "synthetic" not in sys.modules:
        path = Path(__file__).parent / "synthetic.py"
        spec = importlib.util.spec_from_file_location("synthetic", path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["synthetic"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["synthetic"])
    return sys.modules["synthetic"]
