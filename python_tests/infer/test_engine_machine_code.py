"""Every kernel that a full-size engine launches, as machine code for every GPU: run by hand.

The engine is built on torch's meta device, where nothing is computed; its launches are recorded as
a GPU would get them, and what differs among them is compiled.
"""

import importlib
from typing import Any

import pytest
import torch

from vlakern import env
from vlakern.infer import packing
from vlakern.infer.buffers import Limits
from vlakern.infer.graph_engine import GraphEngine
from vlakern.models import VLA, preset
from vlakern.ops import _torch
from vlakern.testing.aot import ARCHS, compile_for

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(env.triton_interpret(), reason="kernels for the interpreter do not compile"),
]
# Bytes of shared memory that a block may have.
SHARED = dict.fromkeys((90, 100, 110), 227 << 10) | {80: 163 << 10, 87: 163 << 10, 120: 99 << 10}
SPILLED = {90: 8}  # bytes of stack; elsewhere attention's widest tiles take up to 160
TOKENS = {"rethink-2b": (2, 256), "pi0": (3, 900), "pi05": (3, 968), "smolvla": (3, 256)}
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.float8_e4m3fn: "*fp8e4nv",
}


class Launches:
    """Stands in for a kernel's launch: notes what would be compiled, once for each kind."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[Any, ...]] = {}

    def note(self, kernel: Any, *given: Any, grid: Any, warmup: bool, **named: Any) -> None:
        values = dict(zip(kernel.arg_names, given, strict=False)) | named
        constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
        settings = {name: one for name, one in named.items() if name not in kernel.arg_names}
        signature: dict[str, Any] = {}
        aligned: list[str] = []
        for name in (p.name for p in kernel.params if not p.is_constexpr):
            one = values[name]
            if isinstance(one, int) and one == 1:
                constants[name] = 1
                continue
            signature[name] = type_of(one)
            if isinstance(one, torch.Tensor) or (isinstance(one, int) and one % 16 == 0):
                aligned.append(name)
        facts = (kernel, signature, constants, settings, aligned)
        self.found[repr((kernel.fn.__name__, *facts[1:]))] = facts


def type_of(value: Any) -> Any:
    """Triton's name of an argument's type."""
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if isinstance(value, tuple):
        return tuple("i32" for _ in value)
    return "fp32" if isinstance(value, float) else "i32" if abs(value) < 1 << 31 else "i64"


class Nothing:
    """Records no program."""

    def warm_up(self, program: Any) -> None:
        pass

    def record(self, program: Any) -> Any:
        return lambda: None


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Of a GPU with as many multiprocessors as an H200 has."""
    jit = importlib.import_module("triton.runtime.jit")
    attention = importlib.import_module("vlakern.ops.shared_attention.triton_launch")
    made = Launches()
    monkeypatch.setattr(jit.JITFunction, "run", lambda self, *a, **k: made.note(self, *a, **k))
    for room in (_torch, attention):
        monkeypatch.setattr(room, "processors", lambda device: 132)
    # On the meta device nothing can be looked at, and all memory seems to lie at one address.
    monkeypatch.setattr(packing.Packer, "raw", lambda self, name: self._weights(name))
    border = importlib.import_module("vlakern.ops.shared_attention")
    monkeypatch.setattr(border, "check_apart", lambda *given, **named: None)
    return made


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ["bf16", "int8", "fp8"])
@pytest.mark.parametrize("name", TOKENS)
def test_all_launches_compile_and_fit(launches: Launches, name: str, dtype: str, arch: int) -> None:
    """Nothing is in local memory but what the widest tiles spill, and shared memory suffices."""
    if dtype == "fp8" and arch < 89:
        pytest.skip("refused")
    config, (views, tokens) = preset(name), TOKENS[name]
    with torch.device("meta"):
        weights = VLA(config).requires_grad_(False).state_dict()
    model = packing.pack_model(config, weights.__getitem__, dtype, isa="rows")
    how = {"steps": config.steps, "solver": config.solver, "image_sizes": [(480, 640)]}
    GraphEngine(model, Limits(1, views, tokens, 1), recorder=Nothing(), **how)
    assert len(launches.found) > 20
    for kernel, *facts in launches.found.values():
        used = compile_for(kernel, arch, *facts)
        what = (kernel.fn.__name__, facts[1], used)
        assert used.shared <= SHARED[arch], what
        assert used.local == 0, what
        assert used.stack <= SPILLED.get(arch, 160), what
