"""A product into a residual stream with the norm after it: the bits of the two calls."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from vlakern import env, ops
from vlakern.errors import InputError, Unsupported
from vlakern.ops.linear import pack_linear
from vlakern.ops.linear.with_norm import Adaptive, linear_norm_out
from vlakern.testing import generator, poison
from vlakern.testing.aot import ARCHS, compile_for

interpreted = pytest.mark.skipif(not env.triton_interpret(), reason="see test_in_interpreter")
compiled = pytest.mark.skipif(
    env.triton_interpret(), reason="kernels made for the interpreter do not compile"
)
KINDS = ("fp32", "bf16", "int8", "fp8")
NORMS = ("plain", "adaptive", "weighted")
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


def modulated(given: dict[str, Any]) -> Adaptive:
    """Five groups in a table in which each has more than this norm's; rows of them in any order."""
    stream, rng = given["stream"], generator("modulation")
    table = torch.randn(5, 2, 3, 37, generator=rng).to(stream.device)
    group = torch.randint(0, 5, (len(stream),), generator=rng, dtype=torch.int32)
    vectors = (table[:, 1, 0], table[:, 1, 1], table[:, 0, 2])
    return Adaptive(*vectors, group.to(stream.device), poison(torch.empty_like(stream)))


def two_calls(
    given: dict[str, Any], adaptive: Adaptive | None, factors: torch.Tensor | None, backend: str
) -> Any:
    """The stream and its norm."""
    x, weight, stream = given["x"], given["weight"], given["stream"].clone()
    normed = poison(torch.empty_like(stream))
    if adaptive is None:
        ops.linear_out(x, weight, out=stream, residual=stream, backend=backend)
        ops.norm_out(stream, factors, y_out=normed, eps=1e-5, backend=backend)
        return stream, normed
    scale, shift, gate, group, _ = adaptive
    added = torch.empty_like(stream)
    ops.linear_out(x, weight, out=added, backend=backend)
    norm = partial(ops.norm, scale=scale, shift=shift, gate=gate, row_group=group)
    y, h = norm(stream, residual=added, eps=1e-5, backend=backend)
    return h, y


def check(kind: str, rows: int, backend: str, device: str = "cpu", norm: str = "plain") -> None:
    given = made(kind, rows, device)
    stream, how = given["stream"], modulated(given) if norm == "adaptive" else None
    factors = None
    if norm == "weighted":
        factors = torch.randn(37, generator=generator("factors")).to(device)
    expected, normed = two_calls(given, how, factors, backend)
    before, found = stream.clone(), poison(torch.empty(rows, 48, dtype=stream.dtype, device=device))
    out = found[:, :37]
    modulations = {"adaptive": how, "factors": factors}
    bound = linear_norm_out(**given, normed=out, eps=1e-5, backend=backend, **modulations)
    assert torch.equal(stream, expected)
    assert torch.equal(out, normed)
    assert bool(found[:, 37:].isnan().all())
    stream.copy_(before)
    poison(out)
    bound()
    assert torch.equal(stream, expected)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_reference(kind: str, rows: int, norm: str) -> None:
    """Two calls."""
    check(kind, rows, "reference", norm=norm)


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
@pytest.mark.parametrize("norm", NORMS[1:])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_triton_modulated(kind: str, norm: str, processors: int) -> None:
    """A gate, a scale and a shift for each group of rows; a weight for all."""
    check(kind, 5, "triton", norm=norm)


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
    adaptive = modulated(given)
    for change, words in (
        ({"gate": adaptive.gate.double()}, r"gate must be fp32 \[B, N\] = \[5, 37\]"),
        ({"row_group": torch.zeros(2).int()}, r"row_group must be contiguous int32 \[M\] = \[3\]"),
        ({"added": adaptive.added.float()}, r"added must be torch.bfloat16 \[3, 37\]"),
    ):
        how = {"normed": given["stream"], "eps": 0.0, "backend": "reference"}
        with pytest.raises(InputError, match=words):
            linear_norm_out(**given, **how, adaptive=adaptive._replace(**change))
    for factors in (torch.ones(36), torch.ones(37, dtype=BF16)):
        with pytest.raises(InputError, match=r"expected contiguous fp32 \[N\] = \[37\]"):
            linear_norm_out(**given, **how, factors=factors)
    with pytest.raises(InputError, match="and no adaptive norm"):
        linear_norm_out(**given, **how, factors=torch.ones(37), adaptive=adaptive)
    wrong = given | {"x": given["x"][:, 1:]}
    with pytest.raises(InputError, match=r"x must be \[M, K\] with K = 2100"):
        linear_norm_out(**wrong, normed=given["stream"], eps=0.0, backend="triton")


@compiled
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("width", "norm"), [(1024, "plain"), (2048, "plain"), (1024, "adaptive"), (2048, "weighted")]
)
def test_machine_code(arch: int, width: int, norm: str) -> None:
    """Rows of experts and trunks live in registers on every GPU, with every norm."""
    from vlakern.ops.linear.triton_norm import add_norm_kernel
    from vlakern.ops.norm._triton_launch import options

    pointers = {"sums": "*fp32", "x_scale": "*fp32", "w_scale": "*fp32", "bias": "*fp32"}
    pointers |= {"stream": "*bf16", "normed": "*bf16", "row_group": "*i32"}
    vectors = ("scale", "shift", "gate")
    pointers |= dict.fromkeys(("factors", *vectors), "*fp32")
    strides = tuple(f"{name}_stride" for name in ("split", "stream", "normed", *vectors))
    sizes = dict.fromkeys(("width", "splits", *strides), "i32")
    settings = options(width)
    constants = {"BLOCK": settings.pop("BLOCK"), "WIDEN": False}
    constants |= {"ADAPTIVE": norm == "adaptive", "FACTORS": norm == "weighted"}
    constants |= dict.fromkeys(("X_SCALED", "W_SCALED", "BIAS"), True)
    aligned = [*pointers, "width", *strides]
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
    for norm in NORMS:
        check(kind, rows, "triton", "cuda", norm)
