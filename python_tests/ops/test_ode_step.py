"""ode_step: every backend and instruction set against the definition."""

import math
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import env, ops
from vlakern.errors import InputError, Unsupported
from vlakern.ops import _native
from vlakern.ops.ode_step.cases import CASES, Case, make_inputs, plain_ode_step
from vlakern.ops.ode_step.reference import STAGES, ode_step_reference
from vlakern.testing import assert_accurate, generator, poison, poisoned_allocations

INTERPRETED = env.triton_interpret()
ISAS: list[str] = _native.native_info()["isas"]
# (backend, instruction set); the interpreter has a process of its own, see test_in_interpreter
WAYS = [("reference", ""), *(("cpu", isa) for isa in ISAS)]
WAYS += [("triton", "")] if INTERPRETED else []
ids = [f"{backend}{isa and '-'}{isa}" for backend, isa in WAYS]
every_way = pytest.mark.parametrize(("backend", "isa"), WAYS, ids=ids)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
FLOATS = ("x", "v", "v0", "tau", "dtau", "frozen")


@pytest.fixture(autouse=True)
def forced_isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forces the instruction set that the test's parameter names."""
    call = getattr(request.node, "callspec", None)
    if call is not None and call.params.get("isa"):
        monkeypatch.setenv("VLAKERN_CPU_ISA", call.params["isa"])


def exact(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with every floating tensor in fp64."""
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


def check_values(inputs: dict[str, Any], backend: str) -> None:
    with poisoned_allocations():
        x_next, tau_next = ops.ode_step(**inputs, backend=backend)
    x_exact, tau_exact = ode_step_reference(**exact(inputs))
    x_plain, tau_plain = plain_ode_step(**inputs)
    assert_accurate(x_next, x_exact, x_plain, "x_next")
    assert_accurate(tau_next, tau_exact, tau_plain, "tau_next")


@every_case
@every_way
def test_values(backend: str, isa: str, case: Case, rng: torch.Generator) -> None:
    """Values obey the accuracy rule, in memory that was poisoned."""
    check_values(make_inputs(case, rng), backend)


@every_case
@every_way
def test_gradients(backend: str, isa: str, case: Case, rng: torch.Generator) -> None:
    """Gradients of every floating argument obey the rule against autograd of the definition."""
    inputs = make_inputs(case, rng)
    weights = [torch.randn(inputs[name].shape, generator=rng) for name in ("x", "tau")]

    def gradients(step: Callable[..., tuple[Tensor, Tensor]], arguments: dict) -> dict[str, Tensor]:
        leaves: dict[str, Any] = {
            n: arguments[n].detach().requires_grad_() for n in FLOATS if n in arguments
        }
        found = step(**arguments | leaves)
        loss = sum((w.to(f.dtype) * f).sum() for w, f in zip(weights, found, strict=True))
        assert isinstance(loss, Tensor)
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    # The loss weighs x_next in its own dtype, so the exact one takes the same rounded weights.
    weights[0] = weights[0].to(case.x_dtype).float()
    ours = gradients(lambda **given: ops.ode_step(**given, backend=backend), inputs)
    best = gradients(ode_step_reference, exact(inputs))
    plain = gradients(plain_ode_step, inputs)
    for name, gradient in ours.items():
        assert_accurate(gradient, best[name], plain[name], f"gradient of {name}", "gradient")


def test_gradcheck(rng: torch.Generator) -> None:
    """The registered gradients are the derivatives of the definition, by finite differences."""
    case = Case(2, 3, 4, stage="heun", frozen=2, mask="BA", per_position=True)
    inputs = exact(make_inputs(case, rng))
    leaves = tuple(inputs[name].clone().requires_grad_() for name in FLOATS)

    def step(*given: Tensor) -> tuple[Tensor, Tensor]:
        changed: dict[str, Any] = dict(zip(FLOATS, given, strict=True))
        return ops.ode_step(**inputs | changed)

    assert torch.autograd.gradcheck(step, leaves)


@every_case
def test_every_isa_and_thread_count_gives_the_same_bits(case: Case, rng: torch.Generator) -> None:
    """Arithmetic fuses only where the code says so: one result on all instruction sets."""
    inputs = make_inputs(case, rng)
    found = []
    for isa in ISAS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLAKERN_CPU_ISA", isa)
            found.append(ops.ode_step(**inputs, backend="cpu"))
    assert all(same_bits(x, found[0][0]) and same_bits(t, found[0][1]) for x, t in found)


def test_threads_do_not_change_bits(rng: torch.Generator) -> None:
    """A call large enough for several threads gives the bits of one thread."""
    inputs = make_inputs(Case(300, 16, 200, frozen=9, mask="BA", per_position=True), rng)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(ops.ode_step(**inputs, backend="cpu"))
    torch.set_num_threads(before)
    assert all(same_bits(x, found[0][0]) and same_bits(t, found[0][1]) for x, t in found)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter converts subnormals its own way")
@every_way
def test_rounds_like_torch(backend: str, isa: str) -> None:
    """Conversions round all halves to even, keep subnormals and infinities, like torch."""
    bits = torch.arange(1 << 16, dtype=torch.int32)
    # Every bfloat16 and every half, each with nothing, a bit less than a tie, a tie, and more.
    wide = [bits << 16 | low for low in (0, 0x7FFF, 0x8000, 0x8001)]
    halves = bits.to(torch.int16).view(torch.float16).float().view(torch.int32)
    wide += [halves | low for low in (0, 0xFFF, 0x1000, 0x1001)]
    v = torch.cat(wide).view(torch.float32)
    v = v[torch.isfinite(v)][None, None, :]
    one = torch.ones(1)
    for dtype in (torch.bfloat16, torch.float16):
        x_next, _ = ops.ode_step(torch.zeros_like(v, dtype=dtype), v, one, one, backend=backend)
        assert torch.equal(x_next, v.to(dtype))
        back, _ = ops.ode_step(torch.zeros_like(v), v.to(dtype), one, one, backend=backend)
        assert torch.equal(back.nan_to_num(), v.to(dtype).float().nan_to_num())


@every_way
@pytest.mark.parametrize("layout", ["dense", "padded", "slots apart"])
def test_in_place(backend: str, isa: str, layout: str, rng: torch.Generator) -> None:
    """Outputs may be the inputs themselves."""
    case = Case(3, 5, 19, stage="heun", frozen=3, mask="A", per_position=True, layout=layout)
    inputs = make_inputs(case, rng)
    x_next, tau_next = ops.ode_step(**inputs, backend=backend)
    ops.ode_step_out(**inputs, x_out=inputs["x"], tau_out=inputs["tau"], backend=backend)
    assert torch.equal(inputs["x"], x_next)
    assert torch.equal(inputs["tau"], tau_next)


@every_way
def test_bound_step_repeats(backend: str, isa: str, rng: torch.Generator) -> None:
    """The step that ode_step_out returns goes on from where the memory stands."""
    inputs = make_inputs(Case(2, 3, 5), rng)
    x, tau = inputs["x"], inputs["tau"]
    twice = [x + 2 * inputs["dtau"][:, None, None] * inputs["v"], tau + 2 * inputs["dtau"]]
    step = ops.ode_step_out(**inputs, x_out=x, tau_out=tau, backend=backend)
    step()
    torch.testing.assert_close([x, tau], twice)


@every_way
@pytest.mark.parametrize("layout", ["dense", "padded", "slots apart"])
def test_writes_nothing_else(backend: str, isa: str, layout: str, rng: torch.Generator) -> None:
    """A strided output leaves the memory between its elements as it was."""
    case = Case(3, 5, 19, frozen=3, layout=layout)
    inputs = make_inputs(case, rng)
    gap = {"dense": 0, "padded": 3, "slots apart": 19}[layout]
    full = torch.full((3, 5, 19 + gap), 7.0)
    x_out = full[..., ::2] if layout == "slots apart" else full[..., :19]
    x_out = poison(x_out[..., :19])
    ops.ode_step_out(**inputs, x_out=x_out, tau_out=inputs["tau"], backend=backend)
    untouched = full[..., 1::2] if layout == "slots apart" else full[..., 19:]
    assert bool((untouched == 7.0).all())
    assert bool(torch.isfinite(x_out).all())


@every_way
def test_absent_slots_and_frozen_positions(backend: str, isa: str) -> None:
    """Absent slots keep x even where v is NaN, frozen positions win, and carry tau 1."""
    x, v = torch.full((1, 3, 2), 5.0), torch.ones(1, 3, 2)
    v[..., 1] = math.nan
    v[:, 0] = math.nan
    x_next, tau_next = ops.ode_step(
        x,
        v,
        torch.full((1, 3), 0.25),
        torch.tensor([0.5]),
        frozen=torch.tensor([[[8.0, 9.0]] * 3]),
        frozen_len=torch.tensor([1], dtype=torch.int32),
        slot_mask=torch.tensor([True, False]),
        backend=backend,
    )
    assert x_next.tolist() == [[[8.0, 9.0], [5.5, 5.0], [5.5, 5.0]]]
    assert tau_next.tolist() == [[1.0, 0.75, 0.75]]


@pytest.mark.parametrize(
    ("length", "kept"), [(-3, 0), (0, 0), (2, 2), (9, 4)], ids=["negative", "0", "2", "all"]
)
@every_way
def test_frozen_length_is_clamped(backend: str, isa: str, length: int, kept: int) -> None:
    """A frozen length outside [0, H] freezes none or all."""
    zeros, ones = torch.zeros(1, 4, 3), torch.ones(1, 4, 3)
    lengths = torch.tensor([length], dtype=torch.int32)
    x_next, _ = ops.ode_step(
        zeros, zeros, *torch.zeros(2, 1), frozen=ones, frozen_len=lengths, backend=backend
    )
    assert x_next[0, :, 0].tolist() == [1.0] * kept + [0.0] * (4 - kept)


@every_way
def test_broadcast_inputs(backend: str, isa: str, rng: torch.Generator) -> None:
    """Inputs may be expanded: one noise and one step for all rows."""
    inputs = make_inputs(Case(3, 4, 9), rng)
    inputs["x"] = inputs["x"][:1].expand(3, 4, 9)
    inputs["dtau"] = inputs["dtau"][:1].expand(3)
    check_values(inputs, backend)


@pytest.mark.parametrize("stage", STAGES)
def test_opcheck(stage: str, rng: torch.Generator) -> None:
    """Schema, fake and autograd registrations agree with the op."""
    case = Case(2, 3, 5, stage=stage, frozen=2, mask="A", per_position=True)
    inputs = make_inputs(case, rng)
    names = ("x", "v", "tau", "dtau", "stage", "v0", "frozen", "frozen_len", "slot_mask")
    given = [inputs.get(name) for name in names]
    leaves = [
        one.requires_grad_() if isinstance(one, Tensor) and one.is_floating_point() else one
        for one in given
    ]
    torch.library.opcheck(torch.ops.vlakern.ode_step.default, (*leaves, "auto"))


def test_compiles_without_a_graph_break(rng: torch.Generator) -> None:
    """torch.compile(fullgraph=True) traces the op, forward and backward."""
    inputs = make_inputs(Case(2, 3, 5, frozen=2, mask="A"), rng)
    x, v = inputs.pop("x").requires_grad_(), inputs.pop("v").requires_grad_()

    def loss(x: Tensor, v: Tensor) -> Tensor:
        return ops.ode_step(x, torch.tanh(v), **inputs)[0].square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(x, v), (x, v))
    for found, expected in zip(ours, torch.autograd.grad(loss(x, v), (x, v)), strict=True):
        torch.testing.assert_close(found, expected)


def bad(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "x": torch.zeros(2, 3, 4),
        "v": torch.zeros(2, 3, 4),
        "tau": torch.zeros(2),
        "dtau": torch.zeros(2),
    }
    return arguments | changes


BAD = {
    "x rank": (bad(x=torch.zeros(3, 4)), r"x must be \[B, H, A\], got \[3, 4\]"),
    "x dtype": (bad(x=torch.zeros(2, 3, 4, dtype=torch.int32)), "x must be torch.float32 or"),
    "v shape": (bad(v=torch.zeros(2, 5, 4)), r"v must be .*\[2, 3, 4\], got \[2, 5, 4\]"),
    "tau shape": (bad(tau=torch.zeros(2, 4)), r"tau must be .*\[2, 3\], got \[2, 4\]"),
    "tau dtype": (bad(tau=torch.zeros(2).half()), "tau must be torch.float32"),
    "dtau shape": (bad(dtau=torch.zeros(())), r"dtau must be \[B\] = \[2\], got \[\]"),
    "stage": (bad(stage="rk4"), "stage must be one of euler.*got 'rk4'"),
    "v0 missing": (bad(stage="heun"), "stage 'heun' takes v0"),
    "v0 given": (bad(v0=torch.zeros(2, 3, 4)), "stage 'euler' takes no v0"),
    "frozen alone": (bad(frozen=torch.zeros(2, 3, 4)), "given together"),
    "mask shape": (bad(slot_mask=torch.ones(3, dtype=torch.bool)), "slot_mask must be"),
    "mask dtype": (bad(slot_mask=torch.ones(4)), "slot_mask must be torch.bool"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    """An argument that does not fit is one sentence: name, expected, found."""
    with pytest.raises(InputError, match=message):
        ops.ode_step(**arguments)


def test_bad_outputs() -> None:
    """Outputs of another shape or device, or whose elements share memory, are refused."""
    arguments = bad()
    elsewhere = torch.zeros(2, 3, 4, device="meta")
    with pytest.raises(InputError, match="x_out must be on x's device cpu, got one on meta"):
        ops.ode_step_out(**arguments, x_out=elsewhere, tau_out=arguments["tau"])
    with pytest.raises(InputError, match="x_out must be"):
        ops.ode_step_out(**arguments, x_out=torch.zeros(2, 3, 5), tau_out=arguments["tau"])
    shared = torch.zeros(1, 3, 4).expand(2, 3, 4)
    with pytest.raises(InputError, match="x_out is written, but its elements share memory"):
        ops.ode_step_out(**arguments, x_out=shared, tau_out=torch.zeros(2), backend="cpu")


@pytest.mark.parametrize("backend", ["cpu", "cuda", "triton"])
def test_refuses_fp64(backend: str) -> None:
    """Only the definition takes fp64; auto finds it, a name is refused."""
    inputs = exact(bad())
    assert ops.ode_step(**inputs)[0].dtype == torch.float64
    with pytest.raises(Unsupported, match=f"{backend} of ode_step refuses: "):
        ops.ode_step(**inputs, backend=backend)


def test_works_in_a_forked_child(rng: torch.Generator) -> None:
    """A child of a process that has used the threads computes the same with its own."""
    inputs = make_inputs(Case(300, 16, 200), rng)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    expected, _ = ops.ode_step(**inputs, backend="cpu")
    outputs = torch.empty_like(expected), torch.empty(300)
    if (child := os.fork()) == 0:
        signal.alarm(20)  # a child that waits for its parent's threads would wait for ever
        same = False
        try:
            ops.ode_step_out(**inputs, x_out=outputs[0], tau_out=outputs[1], backend="cpu")
            # numpy: torch's own threads do not survive a fork.
            same = bool((outputs[0].numpy() == expected.numpy()).all())
        finally:
            os._exit(0 if same else 1)
    torch.set_num_threads(before)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_works_from_many_threads(rng: torch.Generator) -> None:
    """Calls that meet in the pool do not disturb each other."""
    inputs = make_inputs(Case(300, 16, 200), rng)
    expected, _ = ops.ode_step(**inputs, backend="cpu")
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            if not torch.equal(ops.ode_step(**inputs, backend="cpu")[0], expected):
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_in_interpreter(run_interpreted: Callable[[str], int]) -> None:
    """The Triton kernel obeys every law above in Triton's interpreter."""
    assert run_interpreted(__file__) >= 2 * len(CASES)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton", "reference"])
@every_case
def test_gpu_values(backend: str, case: Case, request: pytest.FixtureRequest) -> None:
    """On the GPU, too, values obey the rule."""
    check_values(make_inputs(case, generator(request.node.name, "cuda")), backend)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@every_case
def test_gpu_gives_the_bits_of_the_cpu(backend: str, case: Case, rng: torch.Generator) -> None:
    """The GPU kernels fuse where the CPU kernels do."""
    inputs = make_inputs(case, rng)
    moved: dict[str, Any] = {n: v.cuda() if isinstance(v, Tensor) else v for n, v in inputs.items()}
    for ours, theirs in zip(
        ops.ode_step(**moved, backend=backend), ops.ode_step(**inputs, backend="cpu"), strict=True
    ):
        assert same_bits(ours.cpu(), theirs)
