"""shared_attention on the CPU: packed prefixes, layouts, threads and repeats give the same bits."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import env, ops
from vlakern.errors import InputError, Unsupported
from vlakern.ops import _native
from vlakern.ops.shared_attention.cases import CASES, Case, Inputs, make
from vlakern.testing import generator, poison

INFO = _native.native_info()
pytestmark = pytest.mark.skipif(not INFO["built"], reason="no native kernel")
packs = pytest.mark.skipif("avx512_bf16" not in INFO["isas"], reason="no packed form here")
BF16 = torch.bfloat16
ONES = (1,) * 40
# Several blocks of keys, prefixes that end within a panel, at its end and before its first key.
PREFIXES = (
    Case("several blocks", 4, 2, 64, ((17,), ONES, (3, 5)), (300, 544), (0, 1, 1), shuffled=True),
    Case("a narrow tail", 3, 1, 72, ((50,), ONES), (31, 64), (1, 0), strided=True),
    Case("many tiles", 16, 1, 128, (ONES, (1,)), (270,), (0, 0)),
    Case("wide heads", 2, 1, 256, ((2,), (9,)), (0, 257), (0, 1)),
)
every_prefix = pytest.mark.parametrize(
    "case", [*PREFIXES, *(case for case in CASES if case.index)], ids=str
)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def attend(given: Inputs, packed: Any = None) -> tuple[Tensor, Tensor]:
    """The bound face into poisoned memory."""
    out, lse = poison(torch.empty_like(given.q_THD)), poison(torch.empty(given.q_THD.shape[:2]))
    ops.shared_attention_out(
        *(given.q_THD, given.k_SGD, given.v_SGD, given.who),
        *(given.prefix_k_PGD, given.prefix_v_PGD),
        out=out,
        lse=lse,
        rows=given.rows_T,
        packed=packed,
        backend="cpu",
    )
    return out, lse


def pack(given: Inputs, out: Tensor | None = None) -> Any:
    assert given.prefix_k_PGD is not None
    assert given.prefix_v_PGD is not None
    return ops.shared_attention_pack_prefix(
        given.prefix_k_PGD, given.prefix_v_PGD, given.who, out=out
    )


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@packs
@every_prefix
def test_a_packed_prefix_gives_the_same_bits(case: Case) -> None:
    """Packed or not, on one thread or two: nothing of the results differs."""
    given = make(case, generator(case.name), BF16)
    expected = attend(given)
    packed = pack(given)
    assert same(attend(given, packed), expected)
    torch.set_num_threads(2)
    poison(packed.data)
    packed()
    assert same(attend(given, packed), expected)


@packs
def test_packing_again_follows_the_prefix() -> None:
    """What was packed is a copy, until it is packed again into the same memory."""
    given = make(PREFIXES[0], generator("again"), BF16)
    first, packed = attend(given), pack(given)
    assert given.prefix_k_PGD is not None
    given.prefix_k_PGD.mul_(-0.5)
    assert not same(attend(given, packed), first)
    packed()
    assert same(attend(given, packed), attend(given))
    again = pack(given, packed.data)
    assert again.data.data_ptr() == packed.data.data_ptr()


@packs
def test_packed_of_another_size_is_refused() -> None:
    """Packed prefixes of other lengths, or at an odd address, are refused before they are read."""
    given = make(PREFIXES[0], generator("size"), BF16)
    packed = pack(given)
    for wrong in (packed.data[:-64], torch.zeros(len(packed.data) + 1, dtype=torch.uint8)[1:]):
        with pytest.raises(InputError, match="at an address that 64 divides"):
            attend(given, dataclasses.replace(packed, data=wrong))
    with pytest.raises(InputError, match="no cu_prefix"):
        pack(dataclasses.replace(given, who=make(CASES[1], generator("who")).who))


@pytest.mark.parametrize("isa", [isa for isa in INFO["isas"] if isa != "avx512_bf16"])
def test_refuses_without_the_instructions(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other instruction sets, other dtypes and other widths have no packed form, and say so."""
    given = make(PREFIXES[0], generator("isa"), BF16)
    if env.cpu_isa() == "" and "avx512_bf16" in INFO["isas"]:
        packed = pack(given)
        for wrong in (make(PREFIXES[0], generator("isa")), make(WIDE, generator("wide"), BF16)):
            with pytest.raises(Unsupported, match="at most 256"):
                pack(wrong)
        monkeypatch.setenv("VLAKERN_CPU_ISA", isa)
        with pytest.raises(InputError, match="leave it out"):
            attend(given, packed)
    monkeypatch.setenv("VLAKERN_CPU_ISA", isa)
    with pytest.raises(Unsupported, match=isa):
        pack(given)


WIDE = Case("wider than any", 1, 1, 264, ((2,),), (40,), (0,))


@every_prefix
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["fp32", "bf16"])
def test_layouts_give_the_same_bits(case: Case, dtype: torch.dtype) -> None:
    """Keys and values as ``[G, P, D]`` in memory, viewed as ``[P, G, D]``, are as good."""
    given = make(case, generator(case.name), dtype)

    def turned(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.transpose(0, 1).contiguous().transpose(0, 1)

    fields = ("k_SGD", "v_SGD", "prefix_k_PGD", "prefix_v_PGD")
    other = dataclasses.replace(given, **{name: turned(getattr(given, name)) for name in fields})
    assert same(attend(given), attend(other))


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", PREFIXES[:1], ids=str)
def test_every_repeat_gives_the_same_bits(case: Case, dtype: torch.dtype) -> None:
    """250 passes, on one thread and on two in turn."""
    given = make(case, generator(case.name), dtype)
    expected = attend(given)
    for repeat in range(250):
        torch.set_num_threads(1 + repeat % 2)
        assert same(attend(given), expected)


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", PREFIXES[:3], ids=str)
def test_gradients_on_more_threads_have_the_same_bits(case: Case, dtype: torch.dtype) -> None:
    """One, two and three threads, twice each."""
    given = make(case, generator(case.name), dtype)
    names = ("q_THD", "k_SGD", "v_SGD", "prefix_k_PGD", "prefix_v_PGD")
    leaves = [getattr(given, name).requires_grad_() for name in names]
    up = torch.randn(leaves[0].shape, generator=generator("up")).to(dtype)

    def gradients() -> tuple[Tensor, ...]:
        q, k, v, *cached = leaves
        out, lse = ops.shared_attention(
            q, k, v, given.who, *cached, rows=given.rows_T, backend="cpu"
        )
        return torch.autograd.grad([out, lse], leaves, [up, torch.ones_like(lse)])

    torch.set_num_threads(1)
    expected = gradients()
    for repeat in range(6):
        torch.set_num_threads(1 + repeat % 3)
        found = gradients()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
