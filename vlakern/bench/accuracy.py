"""No speed without the same answer: every variant is compared before it is timed."""

import hashlib
import json
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlakern import env, ops
from vlakern.bench.contenders import Contender, Variant
from vlakern.bench.torch_model import TorchModel, make_plan
from vlakern.bench.weights import DRAWN
from vlakern.bench.workload import Workload
from vlakern.errors import InputError
from vlakern.files import write_file
from vlakern.flow.solver import integrate
from vlakern.records import to_dict

__all__ = ["FACTOR", "LIMITS", "Reference", "check", "error_of", "reference"]

FACTOR = 2.0  # of plain PyTorch's error, for bf16
# int8 and fp8 quantise: their error is reported, nonsense is refused.
LIMITS = {"fp32": 1e-4, "int8": 0.25, "fp8": 0.25}
KEPT = 1 << 30  # parameters from which on a preset's reference is kept in the user's cache
FILE = 1  # changes with how the reference is computed


@dataclass(frozen=True)
class Reference:
    """The first call's answer.

    Attributes:
        exact: ``[N, H, A]`` in fp32 by PyTorch.
        plain: the same in bf16.
        noise: where the integration began.
    """

    exact: Tensor
    plain: Tensor
    noise: Tensor


def reference(work: Workload) -> Reference:
    """Computes it layer by layer, so that it needs little memory; kept for large presets."""
    path = None
    if work.source.drawn is not None and work.source.drawn.count >= KEPT:
        facts = [FILE, DRAWN, work.source.drawn.seed, work.seed, to_dict(work.config)]
        facts += [to_dict(work.shape), len(work.document), torch.__version__]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        path = env.cache_directory() / "bench" / f"{key[:32]}.safetensors"
        if path.is_file():
            return Reference(**load_file(path))
    found = {"exact": _actions(work, torch.float32), "plain": _actions(work, torch.bfloat16)}
    found["noise"] = work.call(0).noise_NHA
    if path is not None:
        write_file(path, lambda temporary: save_file(found, temporary))
    return Reference(**found)


@torch.no_grad()
def _actions(work: Workload, dtype: torch.dtype) -> Tensor:
    call, config = work.call(0), work.config
    model = TorchModel(config, work.weights, dtype, keep=False)
    plan = make_plan(work, dtype, "cpu")
    pixels = ops.image_prep(work.images, size=config.vision.image_size, dtype=dtype)
    semantic, state = model.embed(call.batch, model.vision(pixels))
    cache = model.cache(plan, work.shape.batch, "cpu")
    model.fill(cache, model.prefix(semantic, state, plan))
    times = iter(model.times)

    def velocity(x_NHA: Tensor, tau: Tensor) -> Tensor:
        x_RCA = x_NHA.view(work.shape.batch, -1, config.action_dim)
        return model.velocity(x_RCA, next(times), cache, plan).view(x_NHA.shape)

    return integrate(velocity, call.noise_NHA, steps=config.steps, solver=config.solver)


def error_of(found: Tensor, known: Reference) -> float:
    """Of the way from noise to actions: the difference's norm over the way's."""
    difference = (found - known.exact).double().norm()
    return float(difference / (known.exact - known.noise).double().norm())


def check(variant: Variant, contender: Contender, work: Workload, known: Reference) -> float:
    """The variant's error on the first call.

    Raises:
        InputError: it is above what is allowed: 2x that of plain PyTorch for bf16.
    """
    call = work.call(0)
    contender.prepare(work)
    contender.vision()
    contender.prefix(call)
    error = error_of(contender.ode(call), known)
    plain = error_of(known.plain, known)
    allowed = LIMITS.get(variant.dtype, FACTOR * plain)
    if not error <= allowed:
        raise InputError(
            f"{variant.name} is wrong: its actions are off by {error:.2e}, plain PyTorch in bf16 by"
            f" {plain:.2e} and {allowed:.2e} is allowed; no speed is measured"
        )
    return error
