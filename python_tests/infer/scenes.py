"""What the tests of the engine share: small networks in which every weight matters, and prompts.

Dimension letters: R observations, V views, T prefix tokens, N chunks, H positions, A slots.
"""

import copy
import dataclasses
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from packed_reference import PackedReference
from torch import Tensor

from vlakern.flow.guidance import Guidance, guided, overlap_mask
from vlakern.flow.solver import Frozen, evaluation_times, integrate
from vlakern.infer.buffers import Limits
from vlakern.infer.native_engine import NativeEngine
from vlakern.infer.packing import PackedModel, pack_model
from vlakern.models import VLA, VLAConfig, preset
from vlakern.models.config import MaskConfig, PromptConfig, Solver, TimeConfig
from vlakern.models.sequence import Batch, document, pack
from vlakern.models.vla import Prefix
from vlakern.testing import generator, poison

__all__ = [
    "CONFIGS",
    "Made",
    "Scene",
    "network",
    "network_as",
    "packed",
    "run_native",
    "run_network",
    "run_reference",
]

# Instruction and views of each observation: lengths differ, also by none but the words.
ASKED = (("open it", 1), ("push the red puck", 2), ("close", 2), ("go", 1))


def _tiny(**changes: object) -> VLAConfig:
    return dataclasses.replace(preset("tiny"), **changes)  # pyright: ignore[reportArgumentType]


def _scaled_tiny() -> VLAConfig:
    """With residual scales, unrounded reversed time and everything seen by everything."""
    vision = dataclasses.replace(preset("tiny").vision, layer_scale=0.1, pixel_shuffle=1)
    time = TimeConfig(buckets=None, scale=1.0, max_period=4.0, reverse=True)
    mask = MaskConfig("full", "inline", "full")
    return _tiny(vision=vision, time=time, mask=mask, steps=3, solver="heun")


def _block_tiny() -> VLAConfig:
    """A state block at the end, text around all views and causal actions."""
    prompt = PromptConfig(("{views}", "{instruction}", "{state}"), "<", ">", "all")
    return _tiny(mask=MaskConfig("full", "block", "causal"), prompt=prompt, solver="midpoint")


def _least() -> VLAConfig:
    """As little as has every stage, for kernels that are interpreted: a view is one token."""
    vision = dataclasses.replace(preset("tiny").vision, image_size=14, layers=1)
    prompt = PromptConfig(("{views}", "{state}", "{instruction}"))
    return _tiny(vision=vision, prompt=prompt, chunk=3, steps=1)


def _least_of(name: str) -> VLAConfig:
    """The same of another kind: two layers, of which SmolVLA's second crosses."""
    whole = preset(name)
    vision = dataclasses.replace(whole.vision, image_size=14, layers=1, pixel_shuffle=2)
    mot = dataclasses.replace(whole.mot, layers=2)
    prompt = PromptConfig(("{views}", "{instruction}", "{state}"))
    return dataclasses.replace(whole, vision=vision, mot=mot, prompt=prompt, chunk=3, steps=1)


CONFIGS = {
    "tiny": lambda: preset("tiny"),
    "tiny, scales and full masks": _scaled_tiny,
    "tiny, state block last": _block_tiny,
    "metaworld-small": lambda: preset("metaworld-small"),
    "least": _least,
    "least pi0": lambda: _least_of("tiny-pi0"),
    "least pi05": lambda: _least_of("tiny-pi05"),
    "least smolvla": lambda: _least_of("tiny-smolvla"),
    "tiny-pi0": lambda: preset("tiny-pi0"),
    "tiny-pi05": lambda: preset("tiny-pi05"),
    "tiny-smolvla": lambda: preset("tiny-smolvla"),
}


@cache
@torch.inference_mode(False)
def network(name: str) -> VLA:
    """An fp32 network with weights of no special value; they depend on the name alone."""
    rng, model = generator(f"weights of {name}"), VLA(CONFIGS[name]()).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=rng)
            if weight.ndim == 1 and key.endswith("bias"):
                weight.copy_(0.2 * drawn)
            elif weight.ndim == 1 and "class_token" not in key:
                weight.copy_((0.6 if ".scale" in key else 1.0) + 0.25 * drawn)
            elif weight.ndim == 1 or "position" in key or "embed_tokens" in key:
                weight.copy_(drawn)
            else:
                weight.copy_(drawn * math.prod(weight.shape[1:]) ** -0.5)
    return model


@cache
@torch.inference_mode(False)
def network_as(name: str, dtype: torch.dtype) -> VLA:
    """That network in another dtype."""
    return copy.deepcopy(network(name)).to(dtype)


@cache
@torch.inference_mode(False)
def packed(name: str, dtype: str) -> PackedModel:
    weights = network(name).state_dict()
    return pack_model(network(name).config, weights.__getitem__, dtype)


@dataclass(frozen=True)
class Scene:
    """Observations for one network and what it makes of them.

    Attributes:
        name: of the network.
        asked: instruction and number of views of each observation.
        ids: which pictures, state and noise each observation has.
        steps, solver: of the integration; the network's by default.
    """

    name: str
    asked: tuple[tuple[str, int], ...] = ASKED
    ids: tuple[int, ...] = tuple(range(len(ASKED)))
    steps: int | None = None
    solver: Solver | None = None

    @property
    def config(self) -> VLAConfig:
        config = network(self.name).config
        steps, solver = self.steps or config.steps, self.solver or config.solver
        return dataclasses.replace(config, steps=steps, solver=solver)

    @property
    def views(self) -> int:
        return sum(views for _, views in self.asked)

    def only(self, *rows: int) -> "Scene":
        """Some of the observations, in that order."""
        asked = tuple(self.asked[row] for row in rows)
        ids = tuple(self.ids[row] for row in rows)
        return dataclasses.replace(self, asked=asked, ids=ids)

    def batch(self, dtype: torch.dtype = torch.float32) -> Batch:
        config, side = self.config, self.config.vision.image_size
        pixels, states, documents = [], [], []
        for i, (words, views) in zip(self.ids, self.asked, strict=True):
            rng = generator(f"observation {i}")
            pixels.append(torch.rand(views, 3, side, side, generator=rng) * 2 - 1)
            states.append(torch.randn(config.state_dim, generator=rng))
            said = f"{3 * i} 200 7" if config.state == "words" else None
            documents.append(document(config.prompt, self._spell, words, views, said))
        both = (torch.cat(pixels).to(dtype), torch.stack(states).to(dtype))
        return pack(config, documents, *both)

    def _spell(self, text: str) -> list[int]:
        return [ord(letter) % self.config.vocab_size for letter in text]

    def images(self) -> list[np.ndarray]:
        """uint8 camera images, taller and wider than what the network sees."""
        rng = np.random.default_rng(5)
        side = self.config.vision.image_size
        shape = (side + 9, side + 14, 3)
        return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(self.views)]

    def noise(self, n: int = 1) -> Tensor:
        shape = (n, self.config.chunk, self.config.action_dim)
        rows = [torch.randn(shape, generator=generator(f"noise {i}")) for i in self.ids]
        return torch.cat(rows)

    def frozen(self, n: int = 1) -> Frozen:
        """Decided actions; the lengths go from none to the whole chunk."""
        noise, chunk = self.noise(n), self.config.chunk
        lengths = [(0, chunk, 1, chunk // 2)[i % 4] for i in range(len(noise))]
        return Frozen(3 * noise.flip(0), torch.tensor(lengths, dtype=torch.int32))

    def guidance(self, n: int = 1) -> Guidance:
        """Decided actions that each row holds on to in its own way: softly, firmly, or not at all,
        and never in some slots; NaN where nothing is decided."""
        noise, chunk = self.noise(n), self.config.chunk
        kinds = ((1, chunk - 1), (chunk, chunk), (0, 0), (0, chunk))
        rows = [overlap_mask(chunk, *kinds[i % 4]) for i in range(len(noise))]
        some = torch.arange(self.config.action_dim) % 3 != 1
        weights = torch.stack(rows)[..., None] * some
        decided = torch.where(weights > 0, 1.5 * noise.flip(0) - 0.5, torch.nan)
        return Guidance(decided, weights, 3.0)

    def slot_mask(self) -> Tensor:
        mask = torch.ones(self.config.action_dim, dtype=torch.uint8)
        mask[1::2] = 0
        return mask

    def limits(self, n: int = 1, spare: int = 0) -> Limits:
        tokens, rows = int(self.batch().cu_prefix[-1]), len(self.asked)
        return Limits(rows + spare, self.views + spare, tokens + 7 * spare, n * rows + spare)

    def engine(self, dtype: str, n: int = 1, spare: int = 0, threads: int = 1) -> NativeEngine:
        """A native engine whose memory is full of NaN."""
        config = self.config
        engine = NativeEngine(
            packed(self.name, dtype),
            self.limits(n, spare),
            steps=config.steps,
            solver=config.solver,
            threads=threads,
        )
        engine.buffers.arena.fill_(255)
        poison(engine.buffers.kv)
        poison(engine.buffers.x)
        return engine


@dataclass(frozen=True)
class Made:
    """What one way of computing makes of a scene.

    Attributes:
        image_tokens: ``[V · K, M]``.
        kv: ``[layers, 2, T, G · D]``.
        velocity: at the noise, ``[evaluations, N, H, A]``.
        actions: ``[N, H, A]``.
    """

    image_tokens: Tensor
    kv: Tensor
    velocity: Tensor
    actions: Tensor


def index_of(scene: Scene, n: int) -> Tensor:
    return torch.arange(len(scene.asked), dtype=torch.int32).repeat_interleave(n)


def run_native(
    engine: NativeEngine,
    scene: Scene,
    n: int = 1,
    restricted: bool = False,
) -> Made:
    """The engine's stages, one after the other; every velocity of the solver at the noise.

    ``restricted`` freezes leading positions and masks slots.
    """
    batch, frozen, mask = scene.batch(), None, None
    if restricted:
        frozen, mask = scene.frozen(n), scene.slot_mask().expand(n * len(scene.asked), -1)
    engine.take_pixels(batch.pixels_V3SS)
    image_tokens = engine.vision(scene.views).clone()
    engine.prefix(batch, scene.views)
    where = (engine.kv, batch.cu_prefix.int(), index_of(scene, n))
    noise, rows = scene.noise(n), int(batch.cu_prefix[-1])
    count = len(evaluation_times(engine.steps, engine.solver))
    start = noise if frozen is None else _placed(noise, frozen)
    velocity = [engine.velocity(start.clone(), *where, i, frozen) for i in range(count)]
    actions = engine.integrate(noise, *where, frozen, mask)
    return Made(image_tokens, engine.kv[:, :, :rows].clone(), torch.stack(velocity), actions)


def _placed(noise: Tensor, frozen: Frozen) -> Tensor:
    done = torch.arange(noise.shape[1]) < frozen.length_R[:, None]
    return torch.where(done[..., None], frozen.action_RHA.to(noise.dtype), noise)


@cache
@torch.inference_mode()
def run_network(
    scene: Scene,
    dtype: torch.dtype,
    n: int = 1,
    restricted: bool = False,
    led: bool = False,
) -> Made:
    """The network's modules in one dtype, the solver in fp32, or in fp64 for fp64.

    ``led`` leads the actions to what was decided.
    """
    model, config = network_as(scene.name, dtype), scene.config
    wide = torch.promote_types(dtype, torch.float32)
    batch, noise, index = scene.batch(dtype), scene.noise(n).to(wide), index_of(scene, n).long()
    views = model.vision(batch.pixels_V3SS)
    prefix = model.prefill(batch, views)
    frozen = slot_mask = None
    if restricted:
        frozen, slot_mask = scene.frozen(n), scene.slot_mask()
        frozen = Frozen(frozen.action_RHA.to(wide), frozen.length_R)

    def velocity(x: Tensor, tau: Tensor) -> Tensor:
        return model.velocity(prefix, x.to(dtype), tau, index).to(wide)

    start = noise if frozen is None else _placed(noise, frozen)
    times = evaluation_times(config.steps, config.solver)
    at = [velocity(start, _times(tau, noise, frozen)) for tau in times]
    g = scene.guidance(n)
    followed = guided(velocity, g.decided_RHA, g.weights_RHA, g.most) if led else velocity
    actions = integrate(
        followed,
        noise,
        steps=config.steps,
        solver=config.solver,
        frozen=frozen,
        slot_mask=slot_mask,
        backend="reference",
    )
    return Made(views.flatten(0, 1), flat_kv(prefix), torch.stack(at), actions)


def _times(tau: Tensor, noise: Tensor, frozen: Frozen | None) -> Tensor:
    """τ of every position."""
    if frozen is None:
        return tau.expand(len(noise))
    done = torch.arange(noise.shape[1]) < frozen.length_R[:, None]
    return torch.where(done, 1.0, tau)


def flat_kv(prefix: Prefix) -> Tensor:
    """``[layers, 2, T, G · D]``."""
    layers = [torch.stack([kv.k_TGD.flatten(1), kv.v_TGD.flatten(1)]) for kv in prefix.layers]
    return torch.stack(layers)


@cache
@torch.inference_mode()
def run_reference(
    scene: Scene,
    dtype: str,
    wide: torch.dtype,
    n: int = 1,
    restricted: bool = False,
) -> Made:
    """Packed weights through the ops' references."""
    model, config = packed(scene.name, dtype), scene.config
    reference = PackedReference(model, wide)
    batch, noise = scene.batch(), scene.noise(n)
    image_tokens = reference.vision(batch.pixels_V3SS)
    kv = reference.prefix(batch, image_tokens)
    where = (kv, batch.cu_prefix, index_of(scene, n))
    frozen = scene.frozen(n) if restricted else None
    rest = (config.steps, config.solver, frozen, scene.slot_mask() if restricted else None)
    actions = reference.integrate(noise, *where, *rest)
    start = noise if frozen is None else _placed(noise, frozen)
    velocity = reference.velocities(start, *where, config.steps, config.solver, frozen)
    return Made(image_tokens, kv, velocity, actions)
