"""action_decode: both backends against the definition; bad input on both sides of the border."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import ops
from vlakern.errors import InputError, Unsupported
from vlakern.ops import _native
from vlakern.ops.action_decode.cases import CASES, Case, bimanual_inputs, make_inputs, pose_inputs
from vlakern.ops.action_decode.reference import (
    FRAMES,
    KIND_WIDTHS,
    KINDS,
    action_decode_reference,
)
from vlakern.testing import assert_accurate, generator, interleave, poison, poisoned_allocations

every_backend = pytest.mark.parametrize("backend", ["cpu", "reference"])
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_frame = pytest.mark.parametrize("frame", FRAMES)


def exact(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with every floating tensor in fp64."""
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def table(*rows: tuple[int, ...], columns: int = 3) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32).reshape(len(rows), columns)


@every_case
@every_backend
def test_values(backend: str, case: Case, rng: torch.Generator) -> None:
    """Values obey the accuracy rule, in memory that was poisoned."""
    inputs = make_inputs(case, rng)
    with poisoned_allocations():
        found = ops.action_decode(**inputs, backend=backend)
    assert_accurate(
        found, action_decode_reference(**exact(inputs)), action_decode_reference(**inputs)
    )


@every_backend
@pytest.mark.parametrize("kind", KINDS[1:])
@every_frame
def test_degenerate_rotation_is_nan(backend: str, frame: str, kind: str) -> None:
    """A model's rotation without direction is NaN, alone; a delta frame carries it on."""
    width = KIND_WIDTHS[KINDS.index(kind)]
    broken = [[0.0] * width, [math.inf, *[0.0] * (width - 1)]]
    if kind == "rotation_6d":
        broken += [[0.0, 1, 0, 0, -2, 0], [0.0, 0, 0, 1, 0, 0], [1.0, 0, 0, 0, 0, 0]]
    for values in broken:
        x = torch.tensor([1.0, 2, 3, *[0.9, 0.1, 0.2, 0.3, 0.8, 0.1][:width]]).repeat(1, 4, 1)
        x[0, 1, 3:] = torch.tensor(values)
        base = torch.tensor([[0.0, 0, 0, 0.6, 0, 0.8, 0]])
        given = pose_inputs(x, base, kind, "rotation_6d", frame)
        is_nan = ops.action_decode(**given, backend=backend)[0].isnan()
        carried = frame.endswith("delta")
        assert is_nan[:, 3:].all(1).tolist() == [False, True, carried, carried]
        assert is_nan[:, 3:].any(1).tolist() == [False, True, carried, carried]
        assert bool(is_nan[2:, :3].all()) == bool(is_nan[:, :3].any()) == (frame == "eef_delta")


@every_backend
@every_frame
@pytest.mark.parametrize("w", [1.01, 0.0, math.nan])
def test_base_that_is_no_rotation_is_nan(backend: str, frame: str, w: float) -> None:
    """What depends on such a base is NaN: never a guess, never a clamp."""
    x = torch.ones(1, 2, 6)
    base = torch.tensor([[1.0, 1, 1, w, 0, 0, 0]])
    given = pose_inputs(x, base, "axis_angle", "axis_angle", frame)
    found = ops.action_decode(**given, backend=backend)
    assert found[..., 3:].isnan().all()
    assert bool(found[..., :3].isnan().all()) == bool(found[..., :3].isnan().any())
    assert bool(found[..., :3].isnan().any()) == frame.startswith("eef")
    base[0, 3] = 1.0009  # fp32 poses are allowed what 1e-3 allows
    assert ops.action_decode(**given, backend=backend).isfinite().all()


@every_backend
def test_copies(backend: str) -> None:
    """value·gain + shift; a binary value is the sign of x before denormalisation, NaN stays."""
    x = torch.tensor([[[0.5, -0.1], [0.0, 3.0], [math.nan, 1e-9]]])
    out = ops.action_decode(
        *(x, torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.5]), torch.zeros(1, 0, 7)),
        table((0, 2, 0), (1, 0, 1), (0, 1, 1)),
        torch.tensor([[1.0, 0.0], [-1.0, 10.0], [0.5, 0.0]]),
        table(columns=6),
        frame="world_delta",
        width=3,
        backend=backend,
    )
    nan = math.nan
    expected = torch.tensor([[[13.5, 1.5, 2.0], [5.5, -0.5, 1.0], [5.5, nan, nan]]])
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


@every_case
def test_rows_alone_give_the_same_bits(case: Case, rng: torch.Generator) -> None:
    """A row of a batch is the row decoded alone, whatever torch's threads."""
    inputs = make_inputs(case, rng)
    together = ops.action_decode(**inputs, backend="cpu")
    for b in range(case.rows):
        row = inputs | {name: inputs[name][b : b + 1] for name in ("x", "base")}
        assert torch.equal(ops.action_decode(**row, backend="cpu")[0], together[b])


@every_backend
@every_frame
def test_bound_call_reads_memory_afresh(backend: str, frame: str, rng: torch.Generator) -> None:
    """New actions and base poses in the same memory give what a new call gives."""
    inputs, other = (bimanual_inputs(2, frame, rng) for _ in range(2))
    given = {name: value for name, value in inputs.items() if name != "width"}
    out = poison(torch.empty(2, 16, 200))
    decode = ops.action_decode_out(**given, out=out, backend=backend)
    assert torch.equal(out, ops.action_decode(**inputs, backend=backend))
    for name in ("x", "base"):
        inputs[name].copy_(other[name])
    poison(out)
    decode()
    assert torch.equal(out, ops.action_decode(**inputs, backend=backend))


def test_tables_are_settled_at_bind(rng: torch.Generator) -> None:
    """A table that changes afterwards cannot lead native code out of memory."""
    inputs = bimanual_inputs(1, "eef_delta", rng)
    del inputs["width"]
    out = torch.empty(1, 16, 200)
    decode = ops.action_decode_out(**inputs, out=out, backend="cpu")
    before = out.clone()
    inputs["copies"].fill_(1 << 30)
    inputs["poses"].fill_(1 << 30)
    decode()
    assert torch.equal(out, before)


@every_backend
@pytest.mark.parametrize("step", [1, 2])
def test_writes_nothing_else(backend: str, step: int, rng: torch.Generator) -> None:
    """A strided output leaves the memory between its elements as it was."""
    inputs = make_inputs(CASES[0], rng)
    width = inputs.pop("width")
    full = torch.full((2, 7, step * width + 3), 7.0)
    out = poison(full[..., : step * width : step])
    ops.action_decode_out(**inputs, out=out, backend=backend)
    assert torch.equal(out, ops.action_decode(**inputs, width=width, backend=backend))
    out.fill_(7.0)
    assert bool((full == 7.0).all())


@every_backend
def test_broadcast_inputs(backend: str, rng: torch.Generator) -> None:
    """Inputs may be expanded: one chunk for several base poses."""
    inputs = make_inputs(CASES[0], rng)
    inputs["x"] = inputs["x"][:1].expand_as(inputs["x"])
    found = ops.action_decode(**inputs, backend=backend)
    dense = inputs | {"x": inputs["x"].contiguous()}
    assert torch.equal(found, ops.action_decode(**dense, backend=backend))


@every_backend
@every_frame
def test_opcheck(backend: str, frame: str, rng: torch.Generator) -> None:
    """Schema, fake and autograd registrations agree with the op."""
    given = make_inputs(Case(2, 3, 12, frame, ("axis_angle:quaternion_xyzw",), 4), rng)
    torch.library.opcheck(torch.ops.vlakern.action_decode.default, (*given.values(), backend))


def test_compiles_without_a_graph_break(rng: torch.Generator) -> None:
    """torch.compile(fullgraph=True) traces the op."""
    inputs = make_inputs(CASES[0], rng)
    x = inputs.pop("x")

    def decode(x: Tensor) -> Tensor:
        return 2 * ops.action_decode(torch.tanh(x), **inputs)

    compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), decode(x))


def test_has_no_gradient(rng: torch.Generator) -> None:
    """Asking for a gradient is refused; it is not silently zero."""
    inputs = make_inputs(CASES[0], rng)
    inputs["x"].requires_grad_()
    with pytest.raises(Unsupported, match="action_decode has no gradient; decode with"):
        ops.action_decode(**inputs).sum().backward()


def bad(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "x": torch.zeros(2, 3, 8),
        "scale": torch.ones(8),
        "offset": torch.zeros(8),
        "base": torch.zeros(2, 1, 7),
        "copies": table((7, 6, 0)),
        "affine": torch.ones(1, 2),
        "poses": table((0, 3, 0, 0, 3, 0), columns=6),
        "frame": "eef_delta",
        "width": 7,
    }
    return arguments | changes


def pose(*row: int) -> dict[str, Any]:
    return bad(poses=table(row, columns=6))


def copy(*row: int) -> dict[str, Any]:
    return bad(copies=table(row))


# The sentence of Python's check, and what the native check says where it differs.
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "frame": (bad(frame="base"), "frame must be one of world_relative", "frame must be world_"),
    "x rank": (bad(x=torch.zeros(3, 8)), r"x must be \[B, H, A\], got \[3, 8\]", r"x must be \["),
    "x dtype": (bad(x=torch.zeros(2, 3, 8).int()), "x must be torch.float32 or", "x must be float"),
    "scale": (bad(scale=torch.ones(9)), r"scale must be \[A\] = \[8\], got \[9\]", "A=8 as in x"),
    "offset": (bad(offset=torch.ones(())), r"offset must be \[A\]", "offset must be"),
    "affine": (bad(affine=torch.ones(2, 2)), r"affine must be \[C, 2\] = \[1, 2\]", "C=1 as in"),
    "base": (bad(base=torch.zeros(2, 7)), r"base must be \[B, P, 7\] = \[2, 1, 7\]", "base must"),
    "base dtype": (bad(base=torch.zeros(2, 1, 7).bfloat16()), "base must be torch.float32", "base"),
    "copies": (bad(copies=torch.zeros(1, 2).int()), r"copies must be \[C, 3\]", "copies must be"),
    "copies dtype": (
        bad(copies=table((7, 6, 0)).long()),
        "copies must be torch.int32",
        "copies must be int32, got int64",
    ),
    "poses": (bad(poses=torch.zeros(6).int()), r"poses must be \[P, 6\]", r"poses must be \["),
    "slot": (copy(8, 6, 0), "copy 0 reads slots 8 to 8, x has 8", "copy 0 reads slots 8 to 8 of 8"),
    "negative slot": (copy(-1, 6, 0), "copy 0 reads slots -1 to", "copy 0 reads slots -1 to"),
    "column": (copy(7, 7, 0), "copy 0 writes column 7, out has 7", "copy 0 writes column 7 of 7"),
    "negative column": (copy(7, -1, 0), "copy 0 writes column -1", "copy 0 writes column -1"),
    "binary": (copy(7, 6, 2), "copy 0 must be binary 0 or 1, got 2", "has binary 2"),
    "twice": (copy(7, 5, 0), "pose 0 writes column 5, which copy 0", "column 5, which is written"),
    "never": (bad(width=8), "column 7 of 8 is written by no copy", "no copy or pose writes column"),
    "pose slot": (pose(6, 3, 0, 0, 3, 0), "pose 0 reads slots 6 to 8", "pose 0 reads slots 6 to 8"),
    "rotation slot": (pose(0, 3, 1, 0, 3, 0), "pose 0 reads slots 3 to 8", "reads slots 3 to 8"),
    "far slot": (pose(2**31 - 1, 3, 0, 0, 3, 0), "reads slots 2147483647 to", "slots 2147483647"),
    "pose column": (pose(0, 3, 0, 5, 3, 0), "writes column 6, which copy 0", "column 6, which is"),
    "far column": (pose(0, 3, 0, 2**31 - 1, 3, 0), "column 2147483647", "column 2147483647"),
    "rotation column": (pose(0, 3, 0, 0, -2, 0), "writes column -2", "writes column -2"),
    "kind": (pose(0, 3, 4, 0, 3, 0), "pose 0 must be of rotation kind 0 to 3, got 4", "kind 4"),
    "kind out": (pose(0, 3, 0, 0, 3, -1), "rotation kind 0 to 3, got -1", "rotation kind -1"),
    "half": (pose(0, 3, 0, 0, -1, 0), "in both slots and columns or in neither", "or in neither"),
    "no rotation": (pose(0, -1, 0, 0, -1, 0), "which eef_delta needs", "which the eef frames need"),
}


@pytest.mark.parametrize(("arguments", "message", "native"), BAD.values(), ids=BAD)
def test_bad_input(arguments: dict[str, Any], message: str, native: str) -> None:
    """An argument that does not fit is one sentence on both sides of the border."""
    with pytest.raises(InputError, match=f"^action_decode: .*{message}"):
        ops.action_decode(**arguments)
    out = torch.empty(2, 3, arguments.pop("width"))
    frame = arguments.pop("frame")
    views = [_native.view(tensor) for tensor in (*arguments.values(), out)]
    with pytest.raises((InputError, TypeError), match=native):
        _native.cpu_module().ActionDecode(*views, frame)


def test_bad_outputs() -> None:
    """Outputs of another shape or device, or that share memory, are refused."""
    given = bad(base=torch.tensor([0.0, 0, 0, 1, 0, 0, 0]).repeat(2, 1, 1))
    with pytest.raises(InputError, match="width must be 0 or more, got -1"):
        ops.action_decode(**bad(width=-1))
    del given["width"]
    for out, message in (
        (torch.zeros(2, 3, 7, device="meta"), "out must be on x's device cpu, got one on meta"),
        (torch.zeros(2, 4, 7), r"out must be \[B, H, N\] = \[2, 3, 7\], got \[2, 4, 7\]"),
        (torch.zeros(2, 3, 7).half(), "out must be torch.float32"),
        (torch.zeros(1, 3, 7).expand(2, 3, 7), "out is written, but its elements share memory"),
        (given["x"][..., 1:], "out shares memory with x"),
    ):
        with pytest.raises(InputError, match=message):
            ops.action_decode_out(**given, out=out, backend="cpu")


def test_refuses_fp64() -> None:
    """Only the definition takes fp64; auto finds it, the name is refused."""
    inputs = exact(bad())
    assert ops.action_decode(**inputs).dtype == torch.float64
    with pytest.raises(Unsupported, match="backend cpu of action_decode refuses: takes float32"):
        ops.action_decode(**inputs, backend="cpu")


@pytest.mark.ci
@every_frame
def test_speed(frame: str, rng: torch.Generator) -> None:
    """A chunk of 16 x 200 takes at most 60 us on one core, the definition 20 times as long."""
    inputs = bimanual_inputs(1, frame, rng)
    del inputs["width"]
    contenders = {
        backend: ops.action_decode_out(**inputs, out=torch.empty(1, 16, 200), backend=backend)
        for backend in ("cpu", "reference")
    }
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    tried = []
    for _ in range(5):  # another program may take the core during a try, not during all of them
        timings = interleave(contenders, 50)
        ours = timings["cpu"].median
        tried.append((ours, timings["reference"].median / ours))
    torch.set_num_threads(before)
    assert any(seconds <= 60e-6 and ratio >= 20 for seconds, ratio in tried), tried


@pytest.mark.gpu
@every_case
def test_gpu_values(case: Case, request: pytest.FixtureRequest) -> None:
    """On the GPU the definition runs, with tables there or on the CPU."""
    inputs = make_inputs(case, generator(request.node.name, "cuda"))
    found = ops.action_decode(**inputs)
    plain = action_decode_reference(**inputs)
    assert_accurate(found, action_decode_reference(**exact(inputs)), plain)
    tables = {name: inputs[name].cpu() for name in ("copies", "poses")}
    assert torch.equal(ops.action_decode(**inputs | tables), found)
