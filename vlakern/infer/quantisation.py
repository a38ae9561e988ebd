"""What int8 and fp8 cost: the error of every layer's product and of the actions.

Dimension letters: M rows, N outputs, K inputs, B observations, H chunk, A slots.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vlakern.errors import InputError, Unsupported
from vlakern.infer.directories import policy_directory
from vlakern.infer.engine import Engine
from vlakern.infer.policy import Policy, load
from vlakern.models.vla import VLA
from vlakern.models.weights.families import open_policy, read_policy
from vlakern.models.weights.family import native_shapes
from vlakern.ops.linear.reference import KINDS, LEVELS, linear_reference, quantize_rows
from vlakern.types import Observation

__all__ = [
    "ActionError",
    "LayerError",
    "QuantisationReport",
    "measure_quantisation",
    "product_errors",
    "quantised_products",
    "seeded_observations",
]

# What the engines fold into each product: the norm before it, by the name of the norm.
NORMS = {
    "qkv": "norm1",
    "fc1": "norm2",
    "q_proj": "input_norm",
    "k_proj": "input_norm",
    "v_proj": "input_norm",
    "gate_proj": "post_norm",
    "up_proj": "post_norm",
}
LARGE = ("vision.blocks.", "vision.connector", "mot.")  # the rest stays bf16
SHOWN_WORDS = "do the task"


@dataclass(frozen=True)
class LayerError:
    """Of one product; each is the norm of the error over the norm of the exact value.

    Attributes:
        name: of the layer in the network.
        weight: of the quantised weights.
        product: of the product of quantised weights and quantised inputs, without its bias.
        bf16: of the product in bf16, to compare with. None of both where a chunk never needs it.
    """

    name: str
    weight: float
    product: float | None
    bf16: float | None


@dataclass(frozen=True)
class ActionError:
    """|a - b| over all numbers of all chunks, in the model's normalised units."""

    mean: float
    p99: float
    max: float


@dataclass(frozen=True)
class QuantisationReport:
    """What one dtype costs one policy.

    Attributes:
        policy, dtype: which.
        observations, noises: how many chunks were compared is their product.
        engine: ``native`` where the actions are the CPU engine's, ``emulated`` where the network's
            modules multiplied as the kernels would.
        actions: of the dtype's actions against those of bf16.
        bf16: of bf16's actions against those of fp32, to compare with.
        layers: in the network's order.
    """

    policy: str
    dtype: str
    observations: int
    noises: int
    engine: str
    actions: ActionError
    bf16: ActionError
    layers: tuple[LayerError, ...]


def measure_quantisation(
    name_or_directory: str | Path,
    dtype: str = "int8",
    observations: Sequence[Observation] | None = None,
    noises: int = 8,
    seed: int = 0,
) -> QuantisationReport:
    """Compares a policy's layers and actions in ``dtype`` with bf16, on the CPU.

    Args:
        name_or_directory: as ``vlakern.load`` takes it.
        dtype: ``int8`` or ``fp8``.
        observations: real ones; without them four seeded ones, which no camera ever saw.
        noises: chunks per observation.
        seed: of noises and seeded observations.

    Raises:
        InputError: no such dtype, no noise, or an observation that the policy cannot take.
        CheckpointError, ConfigError: as ``vlakern.load``.
        Unsupported: there is not memory enough for the network in fp32 beside ``dtype``.
    """
    if dtype not in LEVELS:
        raise InputError(f"dtype is {dtype!r}, expected one of {', '.join(LEVELS)}")
    if noises < 1:
        raise InputError(f"noises is {noises}, expected at least 1")
    directory = policy_directory(name_or_directory)
    _check_memory(directory, dtype)
    files = read_policy(directory)
    policy = Policy(files.records, files.model, directory.resolve().name, "cpu", "fp32")
    seen = seeded_observations(policy, 4, seed) if observations is None else list(observations)
    seeds = [seed * len(seen) * noises + i for i in range(len(seen) * noises)]
    products = quantised_products(files.model, dtype)
    with _watching(products, replace=False):
        exact = _actions(policy, seen, seeds)
    plain = _actions_as(directory, "bf16", seen, seeds)
    assert plain is not None
    made, engine = _actions_as(directory, dtype, seen, seeds), "native"
    if made is None:
        with _watching(products, replace=True):
            made, engine = _actions(policy, seen, seeds), "emulated"
    return QuantisationReport(
        directory.resolve().name,
        dtype,
        len(seen),
        noises,
        engine,
        _error(made, plain),
        _error(plain, exact),
        tuple(product.error() for product in products),
    )


def _check_memory(directory: Path, dtype: str) -> None:
    """Refuses what would fill the memory: the network in fp32, its folded weights, and those again
    in ``dtype``.

    Raises:
        Unsupported: naming what is needed and what is free.
    """
    shapes = native_shapes(open_policy(directory).records.config)
    numbers = sum(math.prod(shape) for shape in shapes.values())
    needed, free = numbers * (4 + 4 + 1), free_memory()
    if free is not None and needed > free:
        raise Unsupported(
            f"{dtype} of {directory} is compared with fp32, which takes about"
            f" {needed / 2**30:.0f} GiB of memory, and {free / 2**30:.0f} GiB are free; use a"
            " machine with more"
        )


def free_memory() -> int | None:
    """Memory that can be used without swapping [byte]; None where the system does not say."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    kib = next(found, None)
    return None if kib is None else int(kib) * 1024


def seeded_observations(policy: Policy, count: int, seed: int = 0) -> list[Observation]:
    """Smooth random pictures and states; only their sizes are those of real ones."""
    rng = np.random.default_rng(seed)
    side = policy.image_size
    found = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (len(policy.views), 8, 8, 3), dtype=np.uint8)
        step = np.arange(side) * 8 // side
        fine = coarse[:, step][:, :, step]
        state = rng.uniform(-0.5, 0.5, policy.robot.state_width).astype(np.float32)
        found.append(Observation(dict(zip(policy.views, fine, strict=True)), state, SHOWN_WORDS))
    return found


@torch.inference_mode()
def _actions(policy: Policy, observations: Sequence[Observation], seeds: Sequence[int]) -> Tensor:
    """Normalised actions ``[B · n, H, A]``."""
    n = len(seeds) // len(observations)
    images = [image for one in observations for image in policy._images(one)]
    states = [policy._checked_state(one.state) for one in observations]
    batch, noise = policy._prompts(observations, states), policy._noise(seeds)
    tokens = int(batch.cu_prefix.diff().max())
    engine = Engine(
        policy._model,
        # The network's own modules, so that they can be watched.
        backend="torch" if isinstance(policy._model, VLA) else "auto",
        max_batch=len(observations),
        max_candidates=n,
        max_views=len(policy.views),
        max_prefix=tokens,
    )
    return engine.act(images, batch, noise, n=n, slot_mask=policy._slot_mask)


def _actions_as(
    directory: Path,
    dtype: str,
    observations: Sequence[Observation],
    seeds: Sequence[int],
) -> Tensor | None:
    """Actions of a policy loaded in ``dtype``; None where no engine here runs it."""
    try:
        policy = load(directory, device="cpu", dtype=dtype)
    except Unsupported:
        return None
    return _actions(policy, observations, seeds)


def _error(found: Tensor, known: Tensor) -> ActionError:
    off = (found - known).abs().double().flatten()
    return ActionError(float(off.mean()), float(off.quantile(0.99)), float(off.max()))


def product_errors(x: Tensor, weight: Tensor, dtype: str) -> tuple[float, float, float]:
    """Errors of the weights, of the quantised product and of the bf16 product.

    Args:
        x: ``[M, K]``.
        weight: ``[N, K]``.
        dtype: ``int8`` or ``fp8``.
    """
    product = Product("", nn.Linear(weight.shape[1], weight.shape[0], bias=False), None, dtype)
    product.take(weight.float(), None)
    product.add(x.float())
    one = product.error()
    return one.weight, one.product or 0.0, one.bf16 or 0.0


@dataclass
class Product:
    """One linear layer as the engines multiply it: with the norm before it folded in.

    Attributes:
        name: of the layer.
        layer: whose inputs are watched.
        norm: before it, whose weight and bias are folded in.
        dtype: of the quantised weights.
        squares: of the exact product and of both errors, over all inputs so far.
        scale, shift: of the norm ``[K]``.
    """

    name: str
    layer: nn.Linear
    norm: nn.Module | None
    dtype: str
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    scale: Tensor | None = None
    shift: Tensor | None = None

    @property
    def apart(self) -> Tensor:
        """The layer's own weight."""
        return self.layer.weight.detach()

    def fold(self) -> None:
        """Takes the weights as they are packed, see :mod:`vlakern.infer.packing`."""
        weight = self.layer.weight.detach().float()
        bias = None if self.layer.bias is None else self.layer.bias.detach().float()
        if self.norm is not None:
            own = self.norm.get_parameter("weight").detach().float()
            times = weight.shape[1] // len(own)  # the same for every patch that a token joins
            self.scale = own.repeat(times)
            if isinstance(self.norm, nn.LayerNorm):
                self.shift = self.norm.bias.detach().float().repeat(times)
                more = weight @ self.shift
                bias = more if bias is None else bias + more
            weight = weight * self.scale
        self.take(weight, bias)

    def take(self, weight: Tensor, bias: Tensor | None) -> None:
        """Quantises ``weight [N, K]`` by rows."""
        self.weight, self.bias = weight, bias
        levels, self.w_scale = quantize_rows(weight, self.dtype)
        self.levels = levels.to(KINDS[self.dtype])

    def plain(self, h: Tensor) -> Tensor:
        """Inputs ``[M, K]`` of the folded product: what the norm made, before its own weight."""
        x = h.detach().flatten(0, -2).float()
        if self.shift is not None:
            x = x - self.shift
        if self.scale is not None:
            x = torch.where(self.scale == 0, 0.0, x / self.scale)
        return x

    def quantised(self, x: Tensor) -> Tensor:
        """The product in ``dtype``, without the bias."""
        w_scale, kind = self.w_scale, self.dtype
        return linear_reference(x, self.levels, kind=kind, w_scale=w_scale, out_dtype=torch.float32)

    def add(self, x: Tensor) -> None:
        """Counts the errors on these inputs."""
        exact = x @ self.weight.T
        # In bf16 a norm's weight stays out of the product, see vlakern.infer.packing.
        given, weight = (x, self.weight) if self.scale is None else (x * self.scale, self.apart)
        plain = linear_reference(given, weight.bfloat16(), kind="bf16", out_dtype=torch.bfloat16)
        found = (exact, self.quantised(x) - exact, plain.float() - exact)
        self.squares = [
            a + float(b.double().square().sum()) for a, b in zip(self.squares, found, strict=True)
        ]

    def error(self) -> LayerError:
        """Over all inputs so far."""
        held = self.levels.float() * self.w_scale[:, None]
        weight = _ratio(float((held - self.weight).norm()), float(self.weight.norm()))
        exact, product, plain = map(math.sqrt, self.squares)
        if not exact:
            return LayerError(self.name, weight, None, None)
        return LayerError(self.name, weight, _ratio(product, exact), _ratio(plain, exact))


def _ratio(error: float, whole: float) -> float:
    return error / whole if whole else 0.0


def quantised_products(network: VLA, dtype: str) -> list[Product]:
    """The layers that ``dtype`` quantises, as the engines pack them."""
    modules = dict(network.named_modules())
    found = []
    for name, module in modules.items():
        if not isinstance(module, nn.Linear) or not name.startswith(LARGE):
            continue
        if name.endswith(".dense"):
            continue  # of adaptive norms: it stays bf16
        product = Product(name, module, _norm_before(name, modules, network), dtype)
        product.fold()
        found.append(product)
    return found


def _norm_before(name: str, modules: Mapping[str, nn.Module], network: VLA) -> nn.Module | None:
    parent, _, own = name.rpartition(".")
    if name == "vision.connector.1":
        return modules["vision.connector.0"]
    if name == "vision.connector" and network.config.vision.final_norm:
        return modules["vision.final_norm"]
    crosses = name.startswith("mot.action.") and own in ("k_proj", "v_proj")
    if crosses and network.config.mot.crosses(int(parent.split(".")[-1])):
        return None  # its inputs are the other expert's keys and values
    norm = modules.get(f"{parent}.{NORMS.get(own, '')}")
    return norm if norm is not None and hasattr(norm, "weight") else None


@contextmanager
def _watching(products: Sequence[Product], replace: bool) -> Iterator[None]:
    """Counts every product's errors; with ``replace`` the quantised products are what is used."""

    def hook(product: Product):
        def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            x = product.plain(args[0])
            if not replace:
                product.add(x)
                return None
            made = product.quantised(x)
            made = made if product.bias is None else made + product.bias
            return made.view(output.shape).to(output.dtype)

        return after

    handles = [product.layer.register_forward_hook(hook(product)) for product in products]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
