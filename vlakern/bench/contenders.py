"""The variants that are timed against each other, all over the same weights and calls.

Dimension letters: V views, S image side, N action chunks, H chunk, A slots, C positions of all
chunks of an observation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from vlakern import ops
from vlakern.bench.onnxruntime import make_onnxruntime
from vlakern.bench.openvino import make_openvino
from vlakern.bench.torch_attention import Attend, by_flash_attn, by_products, by_sdpa
from vlakern.bench.torch_model import TorchModel, make_plan
from vlakern.bench.workload import Call, Workload
from vlakern.errors import InputError, Unsupported
from vlakern.flow.solver import integrate
from vlakern.infer.backends import graph_refusal
from vlakern.infer.engine import Engine, Prefix
from vlakern.infer.packing import PackedModel, not_packed, pack_model
from vlakern.models.config import Solver
from vlakern.models.vla import VLA
from vlakern.ops.linear.packed import ROWS

__all__ = ["ALIASES", "VARIANTS", "Contender", "Place", "Variant", "make", "variant_of"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Form = Literal["eager", "compile", "tuned", "frozen", "uncached", "flash", "flash-attn"]


@dataclass(frozen=True)
class Place:
    """Where and how vlakern's engine runs."""

    device: str = "cpu"
    backend: Literal["auto", "native", "torch", "graph", "cuda"] = "auto"
    threads: int = 1


class Contender(Protocol):
    """The stages of one call, in this order; each returns when its work is done."""

    def prepare(self, work: Workload) -> None: ...
    def vision(self) -> None: ...
    def prefix(self, call: Call) -> None: ...
    def ode(self, call: Call) -> Tensor: ...


class EngineContender:
    """vlakern's own engine."""

    def __init__(self, work: Workload, dtype: str, place: Place) -> None:
        shape = work.shape
        model = _model(work, dtype, place)
        self.weights_bytes = model.nbytes if isinstance(model, PackedModel) else None
        self._views = len(work.images)
        self._candidates = shape.candidates
        self.engine = Engine(
            model,
            max_batch=shape.batch,
            max_candidates=shape.candidates,
            max_views=shape.views,
            max_prefix=shape.prefix,
            steps=work.config.steps,
            threads=place.threads,
            backend=place.backend,
        )
        self._prefix: Prefix | None = None

    def prepare(self, work: Workload) -> None:
        self.engine.prepare(work.images)

    def vision(self) -> None:
        self.engine.vision(self._views)

    def prefix(self, call: Call) -> None:
        self._prefix = self.engine.prefix(call.batch)

    def ode(self, call: Call) -> Tensor:
        assert self._prefix is not None
        return self.engine.integrate(self._prefix, call.noise_NHA, n=self._candidates).cpu()


def _model(work: Workload, dtype: str, place: Place) -> PackedModel | VLA:
    """Weights as the engine takes them there: packed, or a network for torch."""
    if place.backend not in ("torch", "graph", "cuda") and place.device == "cpu":
        return work.packed(dtype)
    reason = graph_refusal(place.device, dtype) or not_packed(work.config, ROWS)
    if place.backend == "torch" or reason is not None:
        return _network(work, dtype, place.device)
    there = torch.device(place.device)
    return pack_model(work.config, lambda name: work.weights(name).to(there), dtype, isa=ROWS)


def _network(work: Workload, dtype: str, device: str) -> VLA:
    if dtype not in DTYPES:
        raise Unsupported(f"dtype {dtype!r} needs the CPU engine or a GPU's; use bf16 or fp32")
    with torch.device("meta"):
        model = VLA(work.config)
    named = {name: work.weights(name).to(device, DTYPES[dtype]) for name in model.state_dict()}
    model.load_state_dict(named, assign=True)
    return model


class TorchContender:
    """The PyTorch baseline: eager, through the compiler, or with whole documents every time.

    ``tuned`` is the compiler's max-autotune, without CUDA graphs, which its cache of keys and
    values rules out: they want inputs that no graph writes. ``flash`` compiles around torch's fused
    attention, ``flash-attn`` around the package's.
    """

    def __init__(self, work: Workload, dtype: str, device: str, form: Form) -> None:
        with torch.device(device):  # folds weights there, which takes a CPU long
            weights = partial(_weight_on, work, device)
            attend = _attention(form, device)
            model = TorchModel(work.config, weights, DTYPES[dtype], attend=attend)
            self.model = model.to(device)
        self.plan = make_plan(work, DTYPES[dtype], device)
        self._device, self._form = device, form
        self._observations = work.shape.batch
        self._cache = self.model.cache(self.plan, self._observations, device)
        self._side = work.config.vision.image_size
        self._steps = work.config.steps
        self._solver: Solver = work.config.solver
        wrap = _compiler(form)
        self._vision, self._into_cache = wrap(self.model.vision), wrap(self._fill)
        self._velocity, self._whole = wrap(self.model.velocity), wrap(self.model.uncached)
        self._pixels = self._views = torch.empty(0)
        self._rows: tuple[Tensor, Tensor] | None = None

    def prepare(self, work: Workload) -> None:
        pixels = ops.image_prep(work.images, size=self._side, dtype=self.model.dtype)
        self._pixels = pixels.to(self._device)

    @torch.no_grad()
    def vision(self) -> None:
        self._views = self._vision(self._pixels)

    @torch.no_grad()
    def prefix(self, call: Call) -> None:
        semantic, state = self.model.embed(call.batch, self._views)
        if self._form == "uncached":
            self._rows = semantic, state
        else:
            self._into_cache(semantic, state)

    @torch.no_grad()
    def ode(self, call: Call) -> Tensor:
        noise, evaluation = call.noise_NHA, iter(self.model.times)

        def velocity(x_NHA: Tensor, tau: Tensor) -> Tensor:
            x_RCA = x_NHA.view(self._observations, -1, x_NHA.shape[-1]).to(self._device)
            return self._at(x_RCA, next(evaluation)).view(x_NHA.shape).to(noise.device)

        return integrate(velocity, noise, steps=self._steps, solver=self._solver)

    def _at(self, x_RCA: Tensor, time_M: Tensor) -> Tensor:
        if self._rows is None:
            return self._velocity(x_RCA, time_M, self._cache, self.plan)
        return self._whole(*self._rows, x_RCA, time_M, self.plan)

    def _fill(self, semantic: Tensor, state: Tensor) -> None:
        self.model.fill(self._cache, self.model.prefix(semantic, state, self.plan))


def _weight_on(work: Workload, device: str, name: str) -> Tensor:
    with torch.device("cpu"):
        weight = work.weights(name)
    return weight.to(device)


def _attention(form: Form, device: str) -> Attend:
    if form == "flash-attn":
        return by_flash_attn(device)
    return by_sdpa if form == "flash" else by_products


def _compiler(form: Form) -> Callable[[Any], Any]:
    if form in ("eager", "uncached"):
        return lambda call: call
    if form == "tuned":
        return lambda call: torch.compile(call, fullgraph=True, mode="max-autotune-no-cudagraphs")
    options: dict[str, str | int | bool | Callable] = {"freezing": form == "frozen"}
    return lambda call: torch.compile(call, fullgraph=True, options=options)


@dataclass(frozen=True)
class Variant:
    """A name on the command line.

    Attributes:
        dtype: of its weights.
        make: builds it.
        packages: that it needs besides vlakern's own.
        staged: whether it does in each stage what vlakern does there.
        compiles: whether its first call compiles, which takes minutes for large models.
    """

    name: str
    dtype: str
    make: Callable[[Workload, str, Place], Contender]
    packages: tuple[str, ...] = ()
    staged: bool = True
    compiles: bool = False


def _torch(form: Form) -> Callable[[Workload, str, Place], Contender]:
    return lambda work, dtype, place: TorchContender(work, dtype, place.device, form)


def _openvino(work: Workload, dtype: str, place: Place) -> Contender:
    return make_openvino(work, dtype, place.device, place.threads)


def _onnxruntime(work: Workload, dtype: str, place: Place) -> Contender:
    return make_onnxruntime(work, place.device, place.threads)


OWN = ("bf16", "fp32", "int8", "fp8")
_ALL = (
    *(Variant(f"vlakern-{dtype}", dtype, EngineContender) for dtype in OWN),
    Variant("torch-eager-bf16", "bf16", _torch("eager")),
    Variant("torch-eager-fp32", "fp32", _torch("eager")),
    Variant("torch-compile-bf16", "bf16", _torch("compile"), compiles=True),
    Variant("torch-tuned-bf16", "bf16", _torch("tuned"), compiles=True),
    Variant("torch-frozen-bf16", "bf16", _torch("frozen"), compiles=True),
    Variant("torch-flash-bf16", "bf16", _torch("flash"), compiles=True),
    Variant("torch-flash-attn-bf16", "bf16", _torch("flash-attn"), ("flash_attn",), compiles=True),
    Variant("uncached-bf16", "bf16", _torch("uncached"), staged=False),
    Variant("openvino-bf16", "bf16", _openvino, ("openvino",)),
    Variant("onnxruntime-fp32", "fp32", _onnxruntime, ("onnx", "onnxruntime")),
)
VARIANTS = {one.name: one for one in _ALL}
ALIASES = {one.name.removesuffix("-bf16"): one.name for one in _ALL if one.name.endswith("-bf16")}
ALIASES["onnxruntime"] = "onnxruntime-fp32"


def variant_of(name: str) -> Variant:
    """The variant called ``name``, with or without its usual dtype.

    Raises:
        InputError: there is none, or a package that it needs is not installed.
    """
    name = ALIASES.get(name, name)
    if name not in VARIANTS:
        raise InputError(f"no variant {name!r}; expected some of {', '.join(VARIANTS)}")
    variant = VARIANTS[name]
    for package in variant.packages:
        if find_spec(package) is None:
            raise InputError(
                f"{name} needs the package {package!r}, which is not installed; run:"
                f" pip install {package}"
            )
    return variant


def make(variant: Variant, work: Workload, place: Place) -> Contender:
    """Builds a variant over a workload."""
    return variant.make(work, variant.dtype, place)
