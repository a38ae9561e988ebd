"""vlakern._native by itself: it computes without torch, and its own border checks."""

import ctypes
import subprocess
import sys
from typing import Any

import pytest

from vlakern.errors import InputError, Unsupported

native = pytest.importorskip("vlakern._native", reason="the native module is not built")

STEP = """
import ctypes, sys
import vlakern._native as native
def floats(*values):
    return (ctypes.c_float * len(values))(*values)
def view(array, *shape):
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return ctypes.addressof(array), "float32", shape, tuple(strides)
x, v, out = floats(1, 2, 3, 4), floats(10, 20, 30, 40), floats(*[float("nan")] * 4)
tau, dtau, tau_out = floats(0.25), floats(0.5), floats(float("nan"))
chunk = (1, 2, 2)
native.ode_step(
    view(x, *chunk), view(v, *chunk), None, view(tau, 1, 1), view(dtau, 1), None, None, None,
    view(out, *chunk), view(tau_out, 1, 1), False, (0.0, 1.0, 1.0), "", 1,
)
assert list(out) == [6, 12, 18, 24], list(out)
assert tau_out[0] == 0.75
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""


def test_computes_without_torch() -> None:
    """The module alone, on memory from ctypes."""
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ops_tell_about_the_native_module_without_torch() -> None:
    """native_info imports no torch."""
    code = "import sys; from vlakern import ops; print(ops.native_info()['isa']); "
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == native.selected_isa("") == native.isas()[0]


def test_instruction_sets() -> None:
    """Every listed set can be forced, scalar is always there, and others are errors."""
    assert native.isas()[-1] == "scalar"
    assert [native.selected_isa(isa) for isa in native.isas()] == native.isas()
    with pytest.raises(Unsupported, match="instruction set mmx is not available; this CPU and"):
        native.selected_isa("mmx")


@pytest.fixture
def call() -> Any:
    """Calls ode_step on [2, 3, 4] zeros with some arguments replaced."""
    memory = (ctypes.c_float * 64)()
    at = ctypes.addressof(memory)
    chunk = (at, "float32", (2, 3, 4), (12, 4, 1))
    time = (at, "float32", (2, 1), (1, 1))
    names = ("x", "v", "v0", "tau", "dtau", "frozen", "frozen_len", "mask", "x_out", "tau_out")
    usual = (chunk, chunk, None, time, (at, "float32", (2,), (1,)), *[None] * 3, chunk, time)

    def run(**changes: Any) -> None:
        arguments = dict(zip(names, usual, strict=True)) | changes
        native.ode_step(*arguments.values(), False, (0.0, 1.0, 1.0), "", 1)
        assert len(memory) == 64

    run.at = at  # type: ignore[attr-defined]
    return run


def test_border_check(call: Any) -> None:
    """What Python lets through by mistake is one sentence here, not a crash."""
    at = call.at
    call()
    with pytest.raises(InputError, match=r"v must be \[B, H, A\] with H=3 as in x, got .*2, 5, 4"):
        call(v=(at, "float32", (2, 5, 4), (20, 4, 1)))
    with pytest.raises(InputError, match="v must be float32 or bfloat16 or float16, got int32"):
        call(v=(at, "int32", (2, 3, 4), (12, 4, 1)))
    with pytest.raises(InputError, match=r"x must be \[B, H, A\], got shape \[2, 3\]"):
        call(x=(at, "float32", (2, 3), (3, 1)))
    with pytest.raises(InputError, match="x has a null pointer"):
        call(x=(0, "float32", (2, 3, 4), (12, 4, 1)))
    with pytest.raises(InputError, match="x_out is written, but its elements share memory"):
        call(x_out=(at, "float32", (2, 3, 4), (0, 4, 1)))
    with pytest.raises(InputError, match="given together"):
        call(frozen=(at, "float32", (2, 3, 4), (12, 4, 1)))
    with pytest.raises(InputError, match="v is not aligned"):
        call(v=(at + 2, "float32", (2, 3, 4), (12, 4, 1)))


@pytest.mark.parametrize(
    "tensor",
    [
        "x",
        (0, "float32", (2, 3, 4)),
        (0, "complex64", (2, 3, 4), (12, 4, 1)),
        (0, "float32", (2, 3, 4), (4, 1)),
        (-1, "float32", (2, 3, 4), (12, 4, 1)),
        (0, "float32", (1,) * 9, (1,) * 9),
        (0, 32, (2, 3, 4), (12, 4, 1)),
    ],
)
def test_what_is_no_tensor(call: Any, tensor: Any) -> None:
    """Anything but (pointer, dtype, shape, strides) is a TypeError."""
    with pytest.raises(TypeError, match="incompatible function arguments"):
        call(x=tensor)
