"""What a call costs at least: operations and bytes per stage, and the time a machine needs.

Only what the mathematics needs is counted: the last layer of the prefix makes keys and values
alone, actions run through folded products, what adaptive norms make of time is a table, weights are
read once per call and those of the ODE once per evaluation, candidates share their observation's
keys. Activations, norms and biases are free.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from vlakern.flow.solver import SOLVERS
from vlakern.models.config import VLAConfig

__all__ = ["STAGES", "Semantic", "Shape", "Work", "floors_ms", "training", "work"]

Semantic = Literal["trained", "frozen", "constant"]

STAGES = ("vision", "prefix", "ode")
BYTES = {"fp32": 4, "bf16": 2, "int8": 1, "fp8": 1}
# Between products, and in attention.
PASSED_ON = {"fp32": "fp32", "bf16": "bf16", "int8": "bf16", "fp8": "bf16"}


@dataclass(frozen=True)
class Shape:
    """The size of one call.

    Attributes:
        views: images per observation.
        prefix: tokens per observation before the actions, its images and state included.
        batch: observations.
        candidates: action chunks per observation.
    """

    views: int
    prefix: int
    batch: int = 1
    candidates: int = 1


@dataclass(frozen=True)
class Work:
    """What one stage needs.

    Attributes:
        products: operations of the large products, in the dtype of the weights.
        others: operations of attention and of the small products, in the dtype that is passed on.
        bytes: weights, keys and values that must come from memory, and those that must go there.
    """

    products: float = 0.0
    others: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.products + other.products, self.others + other.others, self.bytes + other.bytes
        )

    def times(self, count: int) -> "Work":
        """The same thing ``count`` times."""
        return Work(self.products * count, self.others * count, self.bytes * count)

    @property
    def operations(self) -> float:
        """All of them; a multiplication and an addition are two."""
        return self.products + self.others


def work(config: VLAConfig, shape: Shape, dtype: str) -> dict[str, Work]:
    """Per stage of :data:`STAGES`, for weights of ``fp32``, ``bf16`` or ``int8``."""
    return {
        "vision": _vision(config, shape, dtype),
        "prefix": _prefix(config, shape, dtype),
        "ode": _ode(config, shape, dtype),
    }


def floors_ms(
    config: VLAConfig, shape: Shape, dtype: str, peaks: Mapping[str, float], bandwidth: float
) -> dict[str, float]:
    """The shortest time [ms] of each stage, and their sum as ``total``.

    Args:
        peaks: operations per second of each dtype that the stages compute in.
        bandwidth: bytes per second.
    """
    floors = {}
    for stage, one in work(config, shape, dtype).items():
        computing = one.products / peaks[dtype] + one.others / peaks[PASSED_ON[dtype]]
        floors[stage] = max(computing, one.bytes / bandwidth) * 1e3
    return {**floors, "total": sum(floors.values())}


def training(
    config: VLAConfig, shape: Shape, views: int, samples: int, semantic: Semantic = "trained"
) -> float:
    """Operations of training on ``shape.batch`` prefixes, each seen once.

    Forward is counted as in :func:`work`: all views once, each prefix once, one evaluation of the
    velocity per flow sample. Backward costs a product once for its input and once for its weight:
    3 x forward where weights train, 2 x where gradients only pass, 1 x where nothing before it
    trains. What activation checkpointing computes again is not counted.

    Args:
        shape: of the prefixes, with their mean length; its ``views`` only tell words from images.
        views: images of all prefixes together, which differ where views are dropped.
        samples: (τ, noise) draws per prefix.
        semantic: whether the semantic expert trains, is ``frozen`` while the state's encoder below
            it trains, or is ``constant`` because gradients stop at its keys and values.
    """
    factor = {"trained": (3, 3), "frozen": (1, 2), "constant": (1, 1)}[semantic]
    vision = work(config, Shape(views, shape.prefix), "bf16")["vision"].operations
    stages = work(config, replace(shape, candidates=samples), "bf16")
    once = stages["ode"].operations / (config.steps * len(SOLVERS[config.solver]))
    return factor[0] * vision + factor[1] * stages["prefix"].operations + 3 * once


def _product(rows: int, k: int, n: int, dtype: str) -> Work:
    """``rows`` times a large weight ``[n, k]``; int8 has a scale of four bytes per row."""
    scales = 4 * n if dtype in ("int8", "fp8") else 0
    return Work(products=2.0 * rows * k * n, bytes=float(BYTES[dtype] * k * n + scales))


def _small(rows: int, k: int, n: int, dtype: str) -> Work:
    """``rows`` times a weight ``[n, k]`` that is never quantised."""
    one = PASSED_ON[dtype]
    return Work(others=2.0 * rows * k * n, bytes=float(BYTES[one] * k * n))


def _vision(config: VLAConfig, shape: Shape, dtype: str) -> Work:
    tower = config.vision
    views = shape.batch * shape.views
    patches = views * tower.grid**2
    tokens = tower.grid**2 + int(tower.class_token)
    rows, width = views * tokens, tower.hidden
    total, planes, side = Work(), 3, tower.image_size
    for out in tower.stem:
        side //= 2
        total += _small(views * side**2, 9 * planes, out, dtype)
        planes = out
    kernel = tower.patch_size // 2 ** len(tower.stem)
    total += _small(patches, planes * kernel**2, width, dtype)
    block = _product(rows, width, 4 * width, dtype) + _product(rows, width, 2 * tower.mlp, dtype)
    block += Work(others=4.0 * views * tokens**2 * width)
    total += block.times(tower.layers)
    joined, out = width * tower.pixel_shuffle**2, config.mot.semantic.hidden
    made = views * tower.tokens
    total += _product(made, joined, out, dtype)
    return total if tower.connector == "linear" else total + _product(made, out, out, dtype)


def _layer(config: VLAConfig, width: int, mlp: int, rows: int, dtype: str) -> Work:
    """All products of one layer of one expert."""
    mot = config.mot
    heads = (2 * mot.q_heads + 2 * mot.kv_heads) * mot.head_dim
    return _product(rows, width, heads, dtype) + _product(rows, width, 3 * mlp, dtype)


def _keys_values(config: VLAConfig, rows: int, width: int, dtype: str) -> Work:
    """The products of one layer that a later attention needs."""
    return _product(rows, width, 2 * config.mot.kv_heads * config.mot.head_dim, dtype)


def _cache_bytes(config: VLAConfig, rows: int, dtype: str) -> float:
    """Of the keys and values of one layer."""
    mot = config.mot
    return 2.0 * rows * mot.kv_heads * mot.head_dim * BYTES[PASSED_ON[dtype]]


def _prefix(config: VLAConfig, shape: Shape, dtype: str) -> Work:
    mot, batch = config.mot, shape.batch
    states = batch if config.state == "action" else 0
    tokens = batch * shape.prefix - states
    trunk, expert = mot.semantic, mot.action
    pairs = batch * _pairs(shape.prefix, config.mask.prefix == "causal")
    blocked = config.mask.prefix == "full" and config.mask.state == "block"
    if blocked and config.state != "words":
        pairs -= batch * (shape.prefix - 1)  # earlier tokens do not see the state, the last one
    layer = _layer(config, trunk.hidden, trunk.mlp, tokens, dtype)
    if states:
        layer += _layer(config, expert.hidden, expert.mlp, states, dtype)
    layer += Work(others=4.0 * pairs * mot.q_heads * mot.head_dim)
    total = layer.times(mot.layers - 1)
    total += _keys_values(config, tokens, trunk.hidden, dtype)
    if states:
        total += _keys_values(config, states, expert.hidden, dtype)
    heads = mot.kv_heads * mot.head_dim
    total += _product(batch * shape.prefix, heads, 2 * heads, dtype).times(_crossing(config))
    written = mot.layers * _cache_bytes(config, batch * shape.prefix, dtype)
    text = tokens - batch * shape.views * config.vision.tokens
    if config.state == "semantic":
        text -= batch
    gathered = text * trunk.hidden * BYTES[PASSED_ON[dtype]]
    return total + _state(config, batch, dtype) + Work(bytes=written + gathered)


def _crossing(config: VLAConfig) -> int:
    """Layers in which the actions see the prefix alone."""
    return sum(config.mot.crosses(i) for i in range(config.mot.layers))


def _state(config: VLAConfig, states: int, dtype: str) -> Work:
    if config.state == "words":
        return Work()
    width = config.mot.semantic.hidden if config.state == "semantic" else config.mot.action.hidden
    first = _small(states, config.state_dim, width, dtype)
    if config.state_encoder == "linear":
        return first
    return first + _small(states, width, width, dtype)


def _ode(config: VLAConfig, shape: Shape, dtype: str) -> Work:
    mot, expert = config.mot, config.mot.action
    chunks = shape.batch * shape.candidates
    rows = chunks * config.chunk
    causal = config.mask.actions == "causal"
    width = mot.q_heads * mot.head_dim
    keys = Work(bytes=_cache_bytes(config, shape.batch * shape.prefix, dtype))
    seen = chunks * config.chunk * shape.prefix
    own = chunks * _pairs(config.chunk, causal)
    layer = _layer(config, expert.hidden, expert.mlp, rows, dtype) + keys
    total = (layer + Work(others=4.0 * (seen + own) * width)).times(mot.layers - _crossing(config))
    crossing = _product(rows, expert.hidden, 2 * width + 3 * expert.mlp, dtype) + keys
    total += (crossing + Work(others=4.0 * seen * width)).times(_crossing(config))
    total += _small(rows, config.action_dim, expert.hidden, dtype)
    mixing = (config.action_encoder == "mixed") + (config.action_decoder == "mlp")
    total += _small(rows, expert.hidden, expert.hidden, dtype).times(mixing)
    total += _small(rows, expert.hidden, config.action_dim, dtype)
    return total.times(config.steps * len(SOLVERS[config.solver]))


def _pairs(tokens: int, causal: bool) -> int:
    """Of a query and a key that it sees, among ``tokens`` tokens."""
    return tokens * (tokens + 1) // 2 if causal else tokens**2
