"""The integration as one CUDA kernel (csrc/ode_loop): when it is taken, and what it works on.

The kernel is tested on the host, with its warps as threads. On a GPU: not measured, and so nothing
takes it by itself. Letters: N chunks, H positions of a chunk, M rows N · H, A slots, D head dim.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vlakern.errors import Unsupported
from vlakern.flow.solver import SOLVERS
from vlakern.infer.graph import Run
from vlakern.infer.packing import PackedModel, not_looped
from vlakern.ops import _native
from vlakern.ops._refusals import needs_cuda
from vlakern.ops._torch import key_for, stream_of
from vlakern.ops.linear.packed import ROWS
from vlakern.ops.ode_step.reference import STAGES

__all__ = [
    "FASTER",
    "NOT_LED",
    "Bind",
    "BoundLoop",
    "LoopChoice",
    "bind_loop",
    "chosen_loop",
    "loop_refusal",
]

# Architecture (90 for sm_90) -> most rows with which the kernel was measured to be faster than the
# recorded kernels of each layer. Nothing was measured.
FASTER: Mapping[int, int] = {}
# What it refuses call by call.
NOT_LED = (
    "the integration as one CUDA kernel leads no chunk to decided actions; build the engine with"
    " backend='graph', or freeze the prefix"
)
MOST_ROWS = 64
MOST_LAYERS = 64
HEAD_DIMS = (64, 128, 256)
WARPS = 8  # of a block
MOST_BLOCKS = 128
MOST_SPLITS = 8

# Tensors and numbers by name, checked and bound; the result launches on a stream.
Bind = Callable[[dict[str, _native.View], dict[str, float]], Callable[[int], object]]
LoopChoice = str | Bind  # auto, cuda or graph, or another implementation for tests


@dataclass(frozen=True)
class BoundLoop:
    """An integration on fixed memory; calling it does it again."""

    tensors: dict[str, Tensor]  # kept alive, since native code holds only their addresses
    launch: Callable[[int], object]

    def __call__(self) -> None:
        x = self.tensors["x"]
        if x.device.type != "cuda":
            self.launch(0)
            return
        with torch.cuda.device(x.device):
            self.launch(stream_of(x))


def chosen_loop(choice: LoopChoice, model: PackedModel, rows: int) -> Bind | None:
    """What integrates ``rows`` chunks in one kernel; None for the recorded kernels of each layer.

    Args:
        choice: ``cuda`` for the kernel, ``graph`` for none, ``auto`` for what was measured to be
            faster.

    Raises:
        Unsupported: the kernel was asked for and does not do it, with the reason.
    """
    if choice == "graph":
        return None
    key = key_for(model.device)
    if choice == "auto" and rows * model.config.chunk > FASTER.get(key.arch, 0):
        return None
    reason = loop_refusal(model, rows) or (None if callable(choice) else needs_cuda(key))
    if reason is None:
        return choice if callable(choice) else _bind_cuda
    if choice == "auto":
        return None
    raise Unsupported(f"backend cuda of the integration refuses: {reason}")


def _bind_cuda(
    tensors: dict[str, _native.View], numbers: dict[str, float]
) -> Callable[[int], object]:
    return _native.cuda_module().OdeLoop(tensors, numbers)


def loop_refusal(model: PackedModel, rows: int) -> str | None:
    """Why the kernel does not integrate ``rows`` chunks of a model, None if it does."""
    config, mot = model.config, model.config.mot
    other = not_looped(config)
    if other:
        return f"it does not compute this model's {', '.join(other)}"
    if rows * config.chunk > MOST_ROWS:
        return f"{rows} chunks of {config.chunk} positions are more than {MOST_ROWS} rows"
    if mot.head_dim not in HEAD_DIMS:
        return f"head dim {mot.head_dim} is not one of {HEAD_DIMS}"
    if mot.action.hidden % 16 or mot.action.mlp % 16:
        return f"widths {mot.action.hidden} and {mot.action.mlp} are not multiples of 16"
    if mot.layers > MOST_LAYERS:
        return f"{mot.layers} layers are more than {MOST_LAYERS}"
    for name, weights in _matrices(mot.layers).items():
        found = model.matrices.get(weights)
        biased = not name.startswith("layer.") and name != "embed_first"
        if found is None or (found.isa, found.kind, found.has_bias) != (ROWS, "bf16", biased):
            kind = "nothing" if found is None else f"{found.kind} for {found.isa}"
            return f"{weights} is {kind}; it takes bf16 packed for {ROWS}"
    return None


def _matrices(layers: int) -> dict[str, str]:
    """The kernel's names -> the model's."""
    parts = ("qkv", "o", "gate_up", "down")
    names = {f"layer.{i}.{part}": f"action.{i}.{part}" for i in range(layers) for part in parts}
    for side, source in (("embed", "action_in"), ("unembed", "action_out")):
        names |= {f"{side}_{part}": f"{source}.{part}" for part in ("first", "last")}
    return names


def tensors_of(model: PackedModel) -> dict[str, Tensor]:
    """The weights under the kernel's names, as views."""
    layers, found = model.config.mot.layers, {}
    for name, weights in _matrices(layers).items():
        found[name] = model.matrices[weights].matrix()
    biases = {"embed_bias": "action_in.last"}
    biases |= {f"unembed_{part}_bias": f"action_out.{part}" for part in ("first", "last")}
    for name, weights in biases.items():
        # Behind the matrix, where a vector need not begin at a multiple of 16 bytes.
        bias = model.matrices[weights].sections().bias
        assert bias is not None
        found[name] = bias.clone()
    for i in range(layers):
        for one in ("q_norm", "k_norm"):
            found[f"layer.{i}.{one}"] = model.tensors[f"action.{i}.{one}"]
    return found


def scratch(model: PackedModel, rows: int, splits: int) -> dict[str, Tensor]:
    """What the kernel passes on between its phases; its counters alone have a content."""
    mot, config = model.config.mot, model.config
    count, width = rows * config.chunk, mot.action.hidden
    heads = mot.q_heads * mot.head_dim
    columns = {
        "input": -(-config.action_dim // 16) * 16,
        "embedded": width,
        "rounded": width,
        "qkv": heads + 2 * mot.kv_heads * mot.head_dim,
        "attended": heads,
        "hidden": max(mot.action.mlp, width),
    }
    units = units_of(model, rows)

    def new(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=model.device)

    made = {name: new(torch.bfloat16, count, many) for name, many in columns.items()}
    made["stream"] = new(torch.float32, count, width)
    made["velocity"] = new(torch.float32, count, config.action_dim)
    made["parts"] = new(torch.float32, units, splits, 16, mot.head_dim)
    made["part_rows"] = new(torch.float32, units, splits, 16, 2)
    made["joined"] = new(torch.int32, units).zero_()
    made["counter"] = new(torch.int32, 1).zero_()
    return made


def splits_of(model: PackedModel, rows: int, tokens: int) -> int:
    """Blocks that divide the keys of 16 queries: as many as leave each warp 16 of at most so many,
    where that does not make more blocks than a large GPU has multiprocessors."""
    config, mot = model.config, model.config.mot
    warps = WARPS if mot.head_dim <= 128 else WARPS // 2  # the others have other columns
    useful = -(-(tokens + config.chunk) // (16 * warps))
    return max(1, min(useful, MOST_BLOCKS // units_of(model, rows), MOST_SPLITS))


def units_of(model: PackedModel, rows: int) -> int:
    """Attentions of 16 positions of a chunk and a head."""
    return rows * model.config.mot.q_heads * -(-model.config.chunk // 16)


def numbers_of(model: PackedModel, rows: int, steps: int, solver: str) -> dict[str, float]:
    """Sizes and the solver's coefficients."""
    config, mot = model.config, model.config.mot
    stages = [STAGES[name] for name in SOLVERS[solver]]
    found = {
        "chunks": rows,
        "chunk": config.chunk,
        "width": mot.action.hidden,
        "mlp": mot.action.mlp,
        "slots": config.action_dim,
        "heads": mot.q_heads,
        "groups": mot.kv_heads,
        "head_dim": mot.head_dim,
        "layers": mot.layers,
        "steps": steps,
        "stages": len(stages),
        "eps": mot.norm_eps,
    }
    found |= {f"c0.{i}": stage.c0 for i, stage in enumerate(stages)}
    found |= {f"c1.{i}": stage.c1 for i, stage in enumerate(stages)}
    return {name: float(value) for name, value in found.items()}


def bind_loop(
    bind: Bind,
    model: PackedModel,
    inputs: Mapping[str, Tensor],
    rows: int,
    steps: int,
    solver: str,
) -> Run:
    """The integration of ``rows`` chunks.

    Args:
        inputs: ``x``, where the actions come to lie, ``kv``, ``cos`` and ``sin`` of all positions,
            ``time_table``, and what an inbox of chunks brings; all of these rows.
    """
    splits = splits_of(model, rows, inputs["kv"].shape[2])
    tensors = {**tensors_of(model), **scratch(model, rows, splits), **inputs}
    views = {name: _view(name, tensor) for name, tensor in tensors.items()}
    numbers = {**numbers_of(model, rows, steps, solver), "splits": float(splits)}
    return BoundLoop(tensors, bind(views, numbers))


def _view(name: str, tensor: Tensor) -> _native.View:
    found = _native.view(tensor)
    assert found is not None, name
    return found
