"""One call to measure, and all that it is made of: images, prompt, state, noise and robot.

Dimension letters: R observations, V views of all, N action chunks, H chunk, A slots, S state width.
"""

import re
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vlakern.bench.roofline import Shape
from vlakern.bench.weights import RandomWeights, packed_random
from vlakern.errors import InputError
from vlakern.infer.directories import policy_directory
from vlakern.infer.packed_file import cached_model
from vlakern.infer.packing import PackedModel, Weights
from vlakern.models.config import VLAConfig
from vlakern.models.presets import preset
from vlakern.models.sequence import Batch, document, pack
from vlakern.models.weights.families import open_policy

__all__ = ["CAMERA", "PROMPT_TOKENS", "Call", "PolicySource", "PresetSource", "Source", "Workload"]

CAMERA = (480, 640)  # height and width of the camera images [px]
PROMPT_TOKENS = 67  # of an instruction; the prefix of rethink-2b with 2 views is then 220 tokens
INSTRUCTION = "\0"  # stands for the drawn ids
# Presets have no tokenizer: a special token, a word and any other character are one token each.
PIECES = re.compile(r"<[^<>\s]+>|\w+|[^\w ]")


@dataclass(frozen=True)
class Call:
    """What changes from call to call.

    Attributes:
        batch: packed prompts and states, without pixels.
        noise_NHA: fp32.
    """

    batch: Batch
    noise_NHA: Tensor


class Workload:
    """A model with weights, and observations for it.

    Attributes:
        config: of the model, with the measured chunk and steps.
        weights: a tensor of the model by its name.
        images: uint8 ``[480, 640, 3]`` each.
        shape: the size of the call.
    """

    def __init__(
        self,
        source: "Source",
        *,
        views: int,
        prompt_tokens: int,
        chunk: int | None = None,
        steps: int | None = None,
        batch: int = 1,
        candidates: int = 1,
        seed: int = 0,
    ) -> None:
        self.source = source
        base = source.config
        self.config = replace(base, chunk=chunk or base.chunk, steps=steps or base.steps)
        self.weights = source.weights
        self.views, self.candidates, self.seed = views, candidates, seed
        draw = np.random.default_rng(seed)
        shape = (batch * views, *CAMERA, 3)
        self.images = list(draw.integers(0, 256, shape, dtype=np.uint8))
        self._ids = [int(one) for one in draw.integers(0, base.vocab_size, prompt_tokens)]
        self._states_RS = draw.uniform(-1, 1, (batch, source.state_width)).astype(np.float32)
        # Bins of a state that is said in words.
        bins = " ".join(str(one) for one in draw.integers(0, 256, base.state_dim))
        said = bins if base.state == "words" else None
        self.document = document(self.config.prompt, self._encode, INSTRUCTION, views, said)
        prefix = int(self.call(0).batch.cu_prefix[1])
        self.shape = Shape(views, prefix, batch, candidates)

    def call(self, index: int) -> Call:
        """Prompts, states and noise of call number ``index``: what a robot's words become."""
        states = torch.from_numpy(self.source.encode_state(self._states_RS))
        pixels = torch.empty(len(self.images), 3, 0, 0)
        documents = [self.document] * len(self._states_RS)
        packed = pack(self.config, documents, pixels, states)
        generator = torch.Generator().manual_seed(self.seed + index)
        rows = len(documents) * self.candidates
        shape = (rows, self.config.chunk, self.config.action_dim)
        return Call(packed, torch.randn(shape, generator=generator))

    def actions(self, x_NHA: Tensor) -> np.ndarray:
        """Numbers of the robot from those of the model."""
        states = np.repeat(self._states_RS, self.candidates, axis=0)
        return self.source.decode(x_NHA, states)

    def packed(self, dtype: str) -> PackedModel:
        """The weights for the CPU engine."""
        return replace(self.source.packed(dtype), config=self.config)

    def _encode(self, text: str) -> list[int]:
        return self._ids if text == INSTRUCTION else self.source.encode(text)


class Source:
    """Where a model comes from: a preset with drawn weights, or a policy directory."""

    config: VLAConfig
    weights: Weights
    state_width: int
    most_views: int = 64
    drawn: RandomWeights | None = None

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def encode_state(self, states_RS: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def decode(self, x_NHA: Tensor, states_NS: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def packed(self, dtype: str) -> PackedModel:
        raise NotImplementedError


class PresetSource(Source):
    """A preset: states and actions are scaled to and from deviations, as a policy's would be."""

    def __init__(self, name: str, seed: int) -> None:
        self.config = preset(name)
        self._random = self.weights = self.drawn = RandomWeights(self.config, seed)
        self.state_width = self.config.state_dim
        draw = np.random.default_rng(seed)
        self._scale = draw.uniform(0.5, 2.0, self.config.action_dim).astype(np.float32)

    def encode(self, text: str) -> list[int]:
        return [len(piece) % self.config.vocab_size for piece in PIECES.findall(text)]

    def encode_state(self, states_RS: np.ndarray) -> np.ndarray:
        return states_RS.clip(-1, 1)

    def decode(self, x_NHA: Tensor, states_NS: np.ndarray) -> np.ndarray:
        actions = x_NHA.numpy() * self._scale
        if not np.isfinite(actions).all():
            raise InputError("an action is not finite")
        return actions

    def packed(self, dtype: str) -> PackedModel:
        return packed_random(self.config, self._random, dtype)


class PolicySource(Source):
    """A policy directory of any family, or the name of a policy that ships."""

    def __init__(self, name: str) -> None:
        self._directory = policy_directory(name)
        self._opened = open_policy(self._directory)
        self._records = self._opened.records
        self.config = self._records.config
        self.weights = self._opened.weights
        self.state_width = self._records.embodiment.state_width
        self.most_views = len(self._records.embodiment.views)
        self._space = self._records.space

    def encode(self, text: str) -> list[int]:
        return self._records.tokenizer.encode(text)

    def encode_state(self, states_RS: np.ndarray) -> np.ndarray:
        return self._space.encode_state(states_RS)

    def decode(self, x_NHA: Tensor, states_NS: np.ndarray) -> np.ndarray:
        return self._space.decode(x_NHA, states_NS)

    def packed(self, dtype: str) -> PackedModel:
        file = self._opened.file
        return cached_model(self._directory, self.config, dtype, file, self.weights)
