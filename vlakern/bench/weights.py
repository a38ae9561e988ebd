"""Weights to measure with: drawn from a seed, cheaply, and packed once into the user's cache."""

import hashlib
import json
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from vlakern import env
from vlakern.errors import CheckpointError
from vlakern.infer.packed_file import FORMAT, read_packed, write_packed
from vlakern.infer.packing import PackedModel, pack_model
from vlakern.models.config import VLAConfig
from vlakern.models.vla import VLA
from vlakern.ops.linear.packed import ISA, LAYOUT
from vlakern.records import to_dict

__all__ = ["RandomWeights", "packed_random"]

POOL = 8_388_593  # a prime: rows of a tensor begin at ever new places of the pool
SMALL = 32 << 20  # parameters below which packing is faster than a file
DRAWN = 1  # changes with how weights are drawn


class RandomWeights:
    """A model's tensors by name, each the same whenever it is asked for.

    They are values of bf16, so that every dtype begins from the same numbers: matrices uniform with
    a deviation of ``fan_in ** -0.5`` to the next power of two, weights of norms around 1, others
    around 0.
    """

    def __init__(self, config: VLAConfig, seed: int) -> None:
        self.seed = seed
        with torch.device("meta"):
            state = VLA(config).state_dict()
        self.shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        self._scaled: dict[int, Tensor] = {}

    @property
    def count(self) -> int:
        """Parameters of the model."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def __call__(self, name: str) -> Tensor:
        """The tensor, bf16."""
        shape = self.shapes[name]
        values = self._values(name, math.prod(shape), _power(shape))
        if len(shape) == 1 and "norm" in name and name.endswith("weight"):
            values += 1
        return values.view(shape)

    def _values(self, name: str, count: int, power: int) -> Tensor:
        if power not in self._scaled:
            generator = torch.Generator().manual_seed(self.seed)
            uniform = torch.rand(POOL, generator=generator).mul_(2).sub_(1)
            self._scaled[power] = uniform.bfloat16().mul_(2.0**power)
        pool, out = self._scaled[power], torch.empty(count, dtype=torch.bfloat16)
        begin = zlib.crc32(f"{self.seed}/{name}".encode()) % POOL
        filled = 0
        while filled < count:
            part = pool[begin : begin + count - filled]
            out[filled : filled + len(part)] = part
            filled, begin = filled + len(part), 0
        return out


def _power(shape: tuple[int, ...]) -> int:
    """Of two, that vectors and matrices are scaled by."""
    if len(shape) == 1:
        return -3
    return round(math.log2((3.0 / math.prod(shape[1:])) ** 0.5))


def packed_random(config: VLAConfig, weights: RandomWeights, dtype: str) -> PackedModel:
    """The weights packed for the CPU engine, large ones in a file of the user's cache.

    A file is written on the first call; later ones, in this process or another, map it.
    """
    if weights.count < SMALL:
        return pack_model(config, weights, dtype)
    facts = [DRAWN, FORMAT, LAYOUT, ISA, dtype, weights.seed, to_dict(config)]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    path = env.cache_directory() / "bench" / f"{key[:32]}-{dtype}.vlakern"
    return _mapped(path, key, config, weights, dtype)


def _mapped(
    path: Path, key: str, config: VLAConfig, weights: RandomWeights, dtype: str
) -> PackedModel:
    try:
        return read_packed(path, key)
    except CheckpointError:
        write_packed(path, key, config, dtype, weights)
    return read_packed(path, key)
