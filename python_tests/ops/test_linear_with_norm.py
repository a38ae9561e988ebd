"""A product into a residual stream with the norm after it: the bits of the two calls."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vlakern import env, ops
from vlakern.errors import InputError, Unsupported
from vlakern.ops.linear import pack_linear
from vlakern.ops.linear.with_norm import linear_norm_out
from vlakern.testing import generator, poison
from vlakern.testing.aot import ARCHS, compile_for

interpreted = pytest.mark.skipif(not env.triton_interpret(), reason="see test_in_interpreter")
compiled = pytest.mark.skipif(
    env.triton_interpret(), reason="kernels made for the interpreter do not compile"
)
KINDS = ("fp32", "bf16", "int8", "fp8")
BF16, F32 = torch.bfloat16, torch.float32


def made(kind: str, rows: int, device: str = "cpu") -> dict[str, Any]:
    """Odd widths, a bias, rows that are apart in memory."""
    rng, dtype = generator(f"{kind} {rows}"), F32 if kind == "fp32" else BF16
    weight = torch.randn(37, 2100, generator=rng) / 46
    bias = torch.randn(37, generator=rng)
    packed = pack_linear(weight.to(device), kind, bias.to(device), isa="rows")
    stream = torch.randn(rows, 40, generator=rng).to(device, dtype)[:, :37]
    return {"x": torch.randn(rows, 2100, generator=rng).to(device, dtype), "weight": packed,
            "stream": stream}  # fmt: skip


def check(kind: str, rows: int, backend: str, device: str = "cpu") -> None:
    given = made(kind, rows, device)
    x, weight, stream = given["x"], given["weight"], given["stream"]
    expected = stream.clone()
    ops.linear_out(x, weight, out=expected, residual=expected, backend=backend)
    normed = poison(torch.empty_like(expected))
    ops.norm_out(expected, y_out=normed, eps=1e-5, backend=backend)
    before, found = stream.clone(), poison(torch.empty(rows, 48, dtype=stream.dtype, device=device))
    out = found[:, :37]
    bound = linear_norm_out(**given, normed=out, eps=1e-5, backend=backend)
    assert torch.equal(stream, expected)
    # Triton's interpreter truncates where ``norm`` stores 16 bits.
    loose = env.triton_interpret() and stream.dtype == BF16
    torch.testing.assert_close(out, normed, rtol=2**-7 if loose else 0, atol=0)
    assert bool(found[:, 37:].isnan().all())
    stream.copy_(before)
    poison(out)
    bound()
    assert torch.equal(stream, expected)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_reference(kind: str, rows: int) -> None:
    """Two calls."""
    check(kind, rows, "reference")


def test_in_interpreter(run_interpreted: Callable[[str], int]) -> None:
    """The tests below named ``triton``, in a process where Triton interprets."""
    assert run_interpreted(__file__) >= 10


@interpreted
@pytest.mark.parametrize("rows", [0, 1, 17])
@pytest.mark.parametrize("kind", KINDS)
def test_triton(kind: str, rows: int, processors: int) -> None:
    """Split over K as on a large GPU, and not."""
    check(kind, rows, "triton")


@interpreted
def test_triton_takes_a_launch_less(processors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Split: product and sum with norm; in one: product and norm."""
    from triton.runtime import interpreter

    names: list[str] = []
    run = interpreter.GridExecutor.__call__
    monkeypatch.setattr(
        interpreter.GridExecutor,
        "__call__",
        lambda self, *a, **k: (names.append(self.fn.__name__), run(self, *a, **k)),
    )
    given = made("bf16", 3)
    linear_norm_out(**given, normed=torch.empty(3, 37, dtype=BF16), eps=1e-5, backend="triton")
    last = "add_norm_kernel" if processors > 1 else "norm_kernel"
    assert names == ["product_kernel", last]


def test_what_is_refused() -> None:
    """Weights that a GPU does not read, and shapes that do not fit."""
    given = made("bf16", 3)
    if not env.triton_interpret():
        with pytest.raises(Unsupported, match="needs an NVIDIA GPU"):
            linear_norm_out(**given, normed=given["stream"], eps=0.0, backend="triton")
    wrong = given | {"x": given["x"][:, 1:]}
    with pytest.raises(InputError, match=r"x must be \[M, K\] with K = 2100"):
        linear_norm_out(**wrong, normed=given["stream"], eps=0.0, backend="triton")


@compiled
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("width", [1024, 2048])
def test_machine_code(arch: int, width: int) -> None:
    """Rows of experts and trunks live in registers on every GPU."""
    from vlakern.ops.linear.triton_norm import add_norm_kernel
    from vlakern.ops.norm._triton_launch import options

    pointers = {"sums": "*fp32", "x_scale": "*fp32", "w_scale": "*fp32", "bias": "*fp32"}
    pointers |= {"stream": "*bf16", "normed": "*bf16"}
    sizes = dict.fromkeys(
        ("width", "splits", "split_stride", "stream_stride", "normed_stride"), "i32"
    )
    settings = options(width)
    constants = {"BLOCK": settings.pop("BLOCK"), "WIDEN": False}
    constants |= dict.fromkeys(("X_SCALED", "W_SCALED", "BIAS"), True)
    aligned = [*pointers, "width", "split_stride", "stream_stride", "normed_stride"]
    signature = pointers | sizes | {"eps": "fp32"}
    used = compile_for(add_norm_kernel, arch, signature, constants, settings, aligned)
    assert (used.stack, used.local) == (0, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 17, 129, 700])
@pytest.mark.parametrize("kind", KINDS)
def test_gpu(kind: str, rows: int) -> None:
    """The bits of the two calls on a GPU, too."""
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs sm_89")
    check(kind, rows, "triton", "cuda")
