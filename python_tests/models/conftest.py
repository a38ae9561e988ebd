"""What the tests of models share: the smallest network, prompts spelt letter by letter, batches."""

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from vlakern.models import VLA, VLAConfig, preset
from vlakern.models.config import MaskConfig, PromptConfig
from vlakern.models.sequence import Batch, Document, document, pack
from vlakern.testing import generator

STATE_INSIDE = PromptConfig(("Robot. ", "{views}", "{state}", "{instruction}"), "<img>", "</img>")
STATE_LAST = PromptConfig(("{views}", "{instruction}", "{state}"))
CONFIGS = {
    f"{prefix} prefix, {state} state, {actions} actions, state {where}": dataclasses.replace(
        preset("tiny"), mask=MaskConfig(prefix, state, actions), prompt=prompt
    )
    for prefix in ("causal", "full")
    for state in ("inline", "block")
    for actions in ("causal", "full")
    for where, prompt in (("inside", STATE_INSIDE), ("last", STATE_LAST))
} | {name: preset(name) for name in ("tiny-pi0", "tiny-pi05", "tiny-smolvla")}


@pytest.fixture(params=CONFIGS.values(), ids=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> VLAConfig:
    """The smallest network under every mask and with the state in the middle or at the end."""
    return request.param


@pytest.fixture
def network() -> Callable[[VLAConfig], VLA]:
    """A network whose weights depend on the sizes alone; all of them differ from their start."""

    def build(config: VLAConfig) -> VLA:
        rng = generator("weights")
        model = VLA(config)
        with torch.no_grad():
            for weight in model.parameters():
                scale = weight.shape[1] ** -0.5 if weight.ndim == 2 else 0.3
                offset = 1.0 if weight.ndim == 1 else 0.0
                weight.copy_(offset + scale * torch.randn(weight.shape, generator=rng))
        return model.eval()

    return build


def spell(text: str) -> list[int]:
    """One token per character."""
    return [ord(character) % 512 for character in text]


@pytest.fixture
def prompts() -> Callable[[VLAConfig, Sequence[tuple[str, int]]], list[Document]]:
    """Documents from pairs of instruction and number of views."""

    def make(config: VLAConfig, asked: Sequence[tuple[str, int]]) -> list[Document]:
        said = "12 200 7" if config.state == "words" else None
        return [document(config.prompt, spell, words, views, said) for words, views in asked]

    return make


@pytest.fixture
def batch(
    prompts: Callable[[VLAConfig, Sequence[tuple[str, int]]], list[Document]],
) -> Callable[[VLAConfig, Sequence[tuple[str, int]]], Batch]:
    """A batch from pairs of instruction and number of views, with random pictures and states."""

    def make(config: VLAConfig, asked: Sequence[tuple[str, int]]) -> Batch:
        rng, side = generator("batch"), config.vision.image_size
        pixels = torch.rand(sum(n for _, n in asked), 3, side, side, generator=rng) * 2 - 1
        state = torch.randn(len(asked), config.state_dim, generator=rng)
        return pack(config, prompts(config, asked), pixels, state)

    return make


@pytest.fixture
def same() -> Callable[[Tensor, Tensor], None]:
    """Asserts equality up to the order of fp32 summation: 64 roundings of the largest value."""

    def check(found: Tensor, expected: Tensor) -> None:
        limit = 64 * 2.0**-24 * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=limit)

    return check
