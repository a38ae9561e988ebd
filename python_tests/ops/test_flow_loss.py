"""flow_mix and flow_loss: every backend and instruction set against the definition."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import env, ops
from vlakern.errors import InputError, Unsupported
from vlakern.flow import masked_loss
from vlakern.ops import _native
from vlakern.ops.flow_loss.cases import (
    CASES,
    Case,
    draw_case,
    loss_arguments,
    make_inputs,
    mix_arguments,
    plain_loss,
    plain_mix,
    plain_noise,
)
from vlakern.ops.flow_loss.reference import flow_loss_reference
from vlakern.testing import assert_accurate, generator, poison, poisoned_allocations

INTERPRETED = env.triton_interpret()
ISAS: list[str] = _native.native_info()["isas"]
# (backend, instruction set); the interpreter has a process of its own, see test_in_interpreter
WAYS = [("reference", ""), *(("cpu", isa) for isa in ISAS)]
WAYS += [("triton", "")] if INTERPRETED else []
ids = [f"{backend}{isa and '-'}{isa}" for backend, isa in WAYS]
every_way = pytest.mark.parametrize(("backend", "isa"), WAYS, ids=ids)
# The interpreter takes a tenth of a second for each program.
SIZES = [
    case for case in CASES if not INTERPRETED or case.rows * case.positions * case.slots < 3000
]
every_case = pytest.mark.parametrize("case", SIZES, ids=str)


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
        one.flatten().contiguous().view(torch.uint8), other.flatten().contiguous().view(torch.uint8)
    )


def check_mix(case: Case, inputs: dict[str, Any], backend: str) -> None:
    with poisoned_allocations():
        x, tau = ops.flow_mix(**mix_arguments(case, inputs), backend=backend)
    wide = exact(inputs)
    x_exact, tau_exact = ops.flow_mix(**mix_arguments(case, wide), backend="reference")
    assert_accurate(tau, tau_exact, tau_exact.float(), "tau")
    plain = plain_mix(case, inputs, plain_noise(case, inputs), tau_exact.float())
    assert x.shape == x_exact.shape
    assert_accurate(x, x_exact, plain, "x")


def loss_and_gradient(loss: Callable[[Tensor], Tensor], velocity: Tensor) -> tuple[Tensor, Tensor]:
    leaf = velocity.detach().requires_grad_()
    value = loss(leaf)
    # Scaled as by a loss of several terms.
    (gradient,) = torch.autograd.grad(3.0 * value, leaf)
    return value.detach(), gradient


def check_loss(case: Case, inputs: dict[str, Any], backend: str) -> None:
    def ours(velocity: Tensor) -> Tensor:
        given: dict[str, Any] = loss_arguments(case, inputs) | {"velocity": velocity}
        return ops.flow_loss(**given, backend=backend)

    def best(velocity: Tensor) -> Tensor:
        given: dict[str, Any] = loss_arguments(case, exact(inputs)) | {"velocity": velocity}
        return flow_loss_reference(**given)[0][0]

    z = plain_noise(case, inputs)
    with poisoned_allocations():
        found, gradient = loss_and_gradient(ours, inputs["velocity"])
    loss, slope = loss_and_gradient(best, inputs["velocity"].double())
    plain = loss_and_gradient(lambda v: plain_loss(case, inputs, v, z), inputs["velocity"])
    assert (found.shape, gradient.shape) == ((), slope.shape)
    assert_accurate(found, loss, plain[0], "loss")
    assert_accurate(gradient, slope, plain[1], "gradient of velocity", "gradient")


@every_case
@every_way
def test_mix(backend: str, isa: str, case: Case, rng: torch.Generator) -> None:
    """x and tau obey the accuracy rule, in memory that was poisoned."""
    check_mix(case, make_inputs(case, rng), backend)


@every_case
@every_way
def test_loss(backend: str, isa: str, case: Case, rng: torch.Generator) -> None:
    """The loss and the gradient of the velocity obey the rule against autograd in fp64."""
    check_loss(case, make_inputs(case, rng), backend)


@pytest.mark.parametrize("backend", ["cpu", *(["triton"] if INTERPRETED else [])])
def test_fuzz(backend: str, fuzz: range) -> None:
    """Random cases obey the rule on both faces."""
    for seed in fuzz[:2] if INTERPRETED else fuzz:
        case, rng = draw_case(seed), generator(f"flow_loss {seed}")
        inputs = make_inputs(case, rng)
        try:
            check_mix(case, inputs, backend)
            check_loss(case, inputs, backend)
        except AssertionError as error:
            raise AssertionError(f"draw_case({seed}) = {case!r}: {error}") from error


@every_case
def test_every_isa_gives_the_same_bits(case: Case, rng: torch.Generator) -> None:
    """Draws, mixtures, losses and gradients: one result on all instruction sets."""
    inputs, found = make_inputs(case, rng), []
    for isa in ISAS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLAKERN_CPU_ISA", isa)
            mixed = ops.flow_mix(**mix_arguments(case, inputs), backend="cpu")
            given = loss_arguments(case, inputs)

            def loss(v: Tensor, given: dict[str, Any] = given) -> Tensor:
                changed: dict[str, Any] = given | {"velocity": v}
                return ops.flow_loss(**changed, backend="cpu")

            found.append((*mixed, *loss_and_gradient(loss, inputs["velocity"])))
    for one in found[1:]:
        assert all(same_bits(a, b) for a, b in zip(one, found[0], strict=True))


def test_threads_do_not_change_bits(rng: torch.Generator) -> None:
    """A call large enough for several threads gives the bits of one thread."""
    case = Case(40, 3, 16, 200, groups=4, absent_slots=True)
    inputs, found, before = make_inputs(case, rng), [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        mixed = ops.flow_mix(**mix_arguments(case, inputs), backend="cpu")

        def loss(v: Tensor) -> Tensor:
            given: dict[str, Any] = loss_arguments(case, inputs) | {"velocity": v}
            return ops.flow_loss(**given, backend="cpu")

        found.append((*mixed, *loss_and_gradient(loss, inputs["velocity"])))
    torch.set_num_threads(before)
    for one in found[1:]:
        assert all(same_bits(a, b) for a, b in zip(one, found[0], strict=True))


@every_way
def test_one_embodiment_is_the_masked_loss(backend: str, isa: str, rng: torch.Generator) -> None:
    """With given noise and no group the op is vlakern.flow.masked_loss."""
    v, action, noise = torch.randn(3, 4, 6, 10, generator=rng)
    mask = (torch.rand(4, 6, 10, generator=rng) < 0.6).float()
    found = ops.flow_loss(v, action, noise=noise, mask=mask, backend=backend)
    expected = masked_loss(v, action - noise, mask)
    assert float(found) == pytest.approx(float(expected), rel=3e-7)
    one = torch.zeros(4, dtype=torch.int32)
    same = ops.flow_loss(v, action, noise=noise, mask=mask, group=one, groups=5, backend=backend)
    assert float(same) == float(found)


@every_way
def test_embodiments_weigh_alike(backend: str, isa: str) -> None:
    """A rare embodiment counts as much as a frequent one; absent ones and weights as stated."""
    v = torch.tensor([1.0, 1.0, 1.0, 3.0])[:, None, None]
    group = torch.tensor([0, 0, 0, 2], dtype=torch.int32)
    zeros = torch.zeros(4, 1, 1)
    given: dict[str, Any] = {"noise": zeros, "group": group, "groups": 4, "backend": backend}
    assert float(ops.flow_loss(v, zeros, **given)) == pytest.approx((1 + 9) / 2)
    weights = torch.tensor([3.0, 100.0, 1.0, 100.0])
    found = ops.flow_loss(v, zeros, **given, weights=weights)
    assert float(found) == pytest.approx((3 * 1 + 1 * 9) / 4)


@every_way
def test_what_does_not_count_may_be_nan(backend: str, isa: str) -> None:
    """Masked elements neither reach the loss nor get a gradient; NaN elsewhere does."""
    v = torch.ones(1, 2, 3)
    v[0, 1] = math.nan
    mask = torch.tensor([[[True] * 3, [False] * 3]])

    def loss(v: Tensor) -> Tensor:
        zeros = torch.zeros(1, 2, 3)
        return ops.flow_loss(v, zeros, noise=zeros, mask=mask, backend=backend)

    found, gradient = loss_and_gradient(loss, v)
    assert float(found) == 1.0
    assert gradient.tolist() == [[[2.0] * 3, [0.0] * 3]]
    assert math.isnan(float(loss(torch.full((1, 2, 3), math.nan))))


@every_way
def test_an_empty_mask_has_no_loss(backend: str, isa: str) -> None:
    """Σ m = 0 gives 0 and no gradient, by the 1e-8 of the denominator."""
    zeros = torch.zeros(2, 3, 4)
    given: dict[str, Any] = {"noise": zeros, "mask": zeros, "backend": backend}
    found, gradient = loss_and_gradient(lambda v: ops.flow_loss(v, zeros, **given), zeros + 1)
    assert float(found) == 0
    assert bool((gradient == 0).all())


@every_way
@pytest.mark.parametrize("layout", ["dense", "padded", "slots apart"])
def test_writes_nothing_else(backend: str, isa: str, layout: str, rng: torch.Generator) -> None:
    """A strided output leaves the memory between its elements as it was."""
    inputs = make_inputs(Case(3, 1, 5, 19, layout=layout), rng)
    gap = {"dense": 0, "padded": 3, "slots apart": 19}[layout]
    full = torch.full((3, 5, 19 + gap), 7.0)
    x_out = full[..., ::2] if layout == "slots apart" else full[..., :19]
    x_out = poison(x_out[..., :19])
    bound = ops.flow_mix_out(
        inputs["action"], seed=3, x_out=x_out, tau_out=torch.empty(3), backend=backend
    )
    untouched = full[..., 1::2] if layout == "slots apart" else full[..., 19:]
    assert bool((untouched == 7.0).all())
    expected = x_out.clone()
    poison(x_out)
    bound()
    assert same_bits(x_out, expected)


@every_way
def test_bound_loss_repeats(backend: str, isa: str, rng: torch.Generator) -> None:
    """The call that flow_loss_out returns reads the velocity anew."""
    v, action = torch.randn(2, 3, 4, 5, generator=rng)
    outputs = {"loss_out": poison(torch.empty(1)), "coefficients_out": poison(torch.empty(1))}
    bound = ops.flow_loss_out(v, action, seed=1, **outputs, backend=backend)
    assert float(outputs["coefficients_out"]) == pytest.approx(2 / 60)
    v.mul_(2.0)
    bound()
    expected = ops.flow_loss(v, action, seed=1, backend=backend)
    assert same_bits(outputs["loss_out"][0], expected)


def test_gradcheck(rng: torch.Generator) -> None:
    """The registered gradient is the derivative of the definition, by finite differences."""
    case = Case(3, 2, 4, 5, groups=3, weighted=True, absent_slots=True, mask="bool")
    given = loss_arguments(case, exact(make_inputs(case, rng)))
    leaf = given["velocity"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: ops.flow_loss(**given | {"velocity": v}), leaf)


def test_opcheck(rng: torch.Generator) -> None:
    """Schema, fake and autograd registrations agree with the ops."""
    case = Case(3, 2, 4, 5, groups=3, weighted=True, absent_slots=True, mask="bool")
    i = make_inputs(case, rng)
    source = (i["action"], i["seed"], i["rows"], i["noise"], i["slots"])
    mix = (*source, None, "beta", 1.5, 0.999, 2, torch.bfloat16, "auto")
    torch.library.opcheck(torch.ops.vlakern.flow_mix.default, mix)
    leaf = i["velocity"].requires_grad_()
    loss = (leaf, *source, i["mask"], i["group"], i["weights"], 3, "auto")
    torch.library.opcheck(torch.ops.vlakern.flow_loss.default, loss)
    back = (torch.ones(1), i["velocity"].detach(), *source, i["mask"], i["group"])
    coefficients = torch.ones(3)
    torch.library.opcheck(
        torch.ops.vlakern.flow_loss_backward.default, (*back, coefficients, "auto")
    )


def test_compiles_without_a_graph_break(rng: torch.Generator) -> None:
    """torch.compile(fullgraph=True) traces a training step's ends, forward and backward."""
    action = torch.randn(3, 4, 5, generator=rng)
    weight = torch.randn(5, 5, generator=rng).requires_grad_()

    def step(weight: Tensor, seed: int) -> Tensor:
        x, tau = ops.flow_mix(action, seed=seed, samples=2)
        return ops.flow_loss(x @ weight + tau[:, None, None], action, seed=seed)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for seed in (5, 6):
        found, expected = compiled(weight, seed), step(weight, seed)
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
        ours, theirs = (torch.autograd.grad(one, weight)[0] for one in (found, expected))
        torch.testing.assert_close(ours, theirs)


def test_mix_has_no_gradient() -> None:
    """Asking for one is a sentence, not a zero."""
    action = torch.zeros(1, 2, 3, requires_grad=True)
    x, _ = ops.flow_mix(action, seed=1)
    with pytest.raises(Unsupported, match="flow_mix has no gradient"):
        x.sum().backward()


ZEROS = torch.zeros(2, 3, 4)
BAD_MIX: dict[str, tuple[dict[str, Any], str]] = {
    "no seed": ({"seed": None}, "flow_mix: seed is needed"),
    "rank": ({"action": torch.zeros(3, 4)}, r"action must be \[B, H, A\]"),
    "dtype": ({"action": ZEROS.half()}, "action must be torch.float32"),
    "seed": ({"seed": -1}, "seed must be 0 to"),
    "rows": ({"rows": torch.zeros(3, dtype=torch.int64)}, r"rows must be \[R\] = \[2\]"),
    "rows dtype": ({"rows": torch.zeros(2)}, "rows must be torch.int64"),
    "noise": ({"noise": torch.zeros(1, 3, 4)}, r"noise must be .*\[2, 3, 4\]"),
    "slots": ({"slots": torch.zeros(4)}, r"slots must be \[B, A\] = \[2, 4\]"),
    "tau": ({"tau": torch.zeros(2, 4)}, r"tau must be .*\[2, 3\], got \[2, 4\]"),
    "law": ({"law": "betta"}, "law must be one of uniform, beta, logit_normal, got 'betta'"),
    "alpha": ({"alpha": 0.0}, "law must be alpha > 0"),
    "samples": ({"samples": 0}, "samples must be at least 1, got 0"),
    "both": (
        {"noise": ZEROS, "rows": torch.zeros(2, dtype=torch.int64)},
        "rows address drawn noise, and noise is given",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD_MIX.values(), ids=BAD_MIX)
def test_bad_mix(changes: dict[str, Any], message: str) -> None:
    """An argument that does not fit is one sentence: name, expected, found."""
    with pytest.raises(InputError, match=message):
        ops.flow_mix(**{"action": ZEROS, "seed": 1} | changes)


BAD_LOSS: dict[str, tuple[dict[str, Any], str]] = {
    "no seed": ({"seed": None}, "flow_loss: give the seed"),
    "velocity": ({"velocity": torch.zeros(3, 3, 4)}, "3 rows are not a multiple of 2 samples"),
    "velocity dtype": ({"velocity": ZEROS.int()}, "velocity must be torch.float32 or"),
    "mask": ({"mask": torch.ones(2, 3)}, r"mask must be \[B, H, A\] = \[2, 3, 4\]"),
    "mask dtype": ({"mask": ZEROS.int()}, "mask must be torch.float32, torch.bool or"),
    "groups": ({"groups": 2}, "2 groups need group"),
    "no groups": ({"groups": 0}, "groups must be at least 1"),
    "group dtype": ({"group": torch.zeros(2, dtype=torch.int64)}, "group must be torch.int32"),
    "weights": ({"weights": torch.ones(2)}, r"weights must be \[G\] = \[1\]"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_LOSS.values(), ids=BAD_LOSS)
def test_bad_loss(changes: dict[str, Any], message: str) -> None:
    """The same for the loss."""
    with pytest.raises(InputError, match=message):
        ops.flow_loss(**{"velocity": ZEROS, "action": ZEROS, "seed": 1} | changes)


@pytest.mark.parametrize("value", [-1, 2])
def test_an_unknown_embodiment_is_refused(value: int) -> None:
    """The CPU kernel reads no memory beyond the embodiments."""
    group = torch.tensor([0, value], dtype=torch.int32)
    with pytest.raises(InputError, match=f"group has the value {value}, expected 0 to 1"):
        ops.flow_loss(ZEROS, ZEROS, seed=1, group=group, groups=2, backend="cpu")


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_refuses_fp64(backend: str) -> None:
    """Only the definition takes fp64; auto finds it, a name is refused."""
    wide = ZEROS.double()
    assert ops.flow_loss(wide, wide, seed=1).dtype == torch.float64
    with pytest.raises(Unsupported, match=f"{backend} of flow_loss refuses: "):
        ops.flow_loss(wide, wide, seed=1, backend=backend)


def test_in_interpreter(run_interpreted: Callable[[str], int]) -> None:
    """The Triton kernels obey every law above in Triton's interpreter."""
    assert run_interpreted(__file__) >= 2 * len(CASES) - 4


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "reference"])
@every_case
def test_gpu(backend: str, case: Case, request: pytest.FixtureRequest) -> None:
    """On the GPU, too, both faces obey the rule."""
    inputs = make_inputs(case, generator(request.node.name, "cuda"))
    check_mix(case, inputs, backend)
    check_loss(case, inputs, backend)
