"""shared_attention refuses what it does not cover, in one sentence and before anything is read."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import ops
from vlakern.errors import InputError, Unsupported
from vlakern.ops import _native
from vlakern.ops._dispatch import backends_of
from vlakern.ops.shared_attention import KvEnd
from vlakern.testing import generator

NAMES = [backend.name for backend in backends_of("shared_attention")]

CHANGES: dict[str, tuple[dict[str, Tensor], str]] = {
    "too far": ({"kv_end": torch.tensor([1, 2, 4, 1, 2])}, "leaves the keys of its document"),
    "negative": ({"kv_end": torch.tensor([1, 2, -1, 1, 2])}, "leaves the keys of its document"),
    "back": ({"kv_end": torch.tensor([1, 3, 2, 1, 2])}, "kv_end decreases within a document"),
    "few": ({"kv_end": torch.tensor([1, 2])}, "2 entries of kv_end for 5 queries"),
    "wraps": (
        {"kv_end": torch.tensor([1, 2, 2**32 + 3, 1, 2])},
        "kv_end holds numbers beyond int32",
    ),
    "floats": ({"kv_end": torch.ones(5)}, "kv_end must be integers of one dimension"),
    "fewer keys": ({"cu_k": torch.tensor([0, 3, 4])}, "leaves the keys of its document"),
    "not from 0": ({"cu_k": torch.tensor([1, 3, 5])}, "cu_k must start with 0 and never decrease"),
    "back in cu": ({"cu_q": torch.tensor([0, 6, 5])}, "cu_q must start with 0 and never decrease"),
    "documents": ({"cu_k": torch.tensor([0, 5])}, "cu_q is of 2 documents, cu_k of 1"),
    "half a prefix": ({"prefix_index": torch.tensor([0, 0])}, "must be given together"),
    "no such prefix": (
        {"cu_prefix": torch.tensor([0, 2]), "prefix_index": torch.tensor([0, 1])},
        "prefix_index leaves the 1 cached prefixes",
    ),
    "entries": (
        {"cu_prefix": torch.tensor([0, 2]), "prefix_index": torch.tensor([0])},
        "prefix_index has 1 entries for 2 documents",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), CHANGES.values(), ids=CHANGES)
def test_ranges_that_do_not_fit_are_refused(change: dict[str, Tensor], sentence: str) -> None:
    """Each wrong range is one sentence, when it is built, never a read of a stranger's row."""
    cu = torch.tensor([0, 3, 5])
    who = KvEnd(cu, cu, torch.tensor([1, 2, 3, 1, 2]))
    with pytest.raises(InputError, match=sentence):
        dataclasses.replace(who, **change)


def test_ranges_know_their_sizes() -> None:
    """int32 whatever they were, the longest document's lengths, and the same on another device."""
    cu = torch.tensor([0, 3, 5])
    who = KvEnd(
        cu, cu, torch.tensor([1, 2, 3, 1, 9]), torch.tensor([0, 2, 9]), torch.tensor([0, 1])
    )
    sizes = (who.max_q, who.max_keys, who.queries, who.keys, who.prefix_keys)
    assert sizes == (3, 9, 5, 5, 9)
    assert all(getattr(who, name).dtype == torch.int32 for name in ("cu_q", "kv_end", "cu_prefix"))
    moved = who.to("meta")
    assert moved.kv_end.device.type == "meta"
    assert moved.max_keys == 9


def bad(**changes: Any) -> dict[str, Any]:
    cu = torch.tensor([0, 3])
    arguments: dict[str, Any] = {
        "q": torch.zeros(3, 4, 8),
        "k": torch.zeros(3, 2, 8),
        "v": torch.zeros(3, 2, 8),
        "who": KvEnd(cu, cu, torch.tensor([1, 2, 3])),
    }
    return arguments | changes


THREE, WIDE = torch.zeros(3, 3, 8), torch.zeros(3, 2, 16)
BAD = {
    "heads": (bad(k=THREE, v=THREE), "do not fit; expected floating"),
    "no width": (
        bad(q=torch.zeros(3, 4, 0), k=torch.zeros(3, 2, 0), v=torch.zeros(3, 2, 0)),
        "D, the width of a head, must be at least 1, got 0",
    ),
    "width": (bad(k=WIDE, v=WIDE), "do not fit; expected floating"),
    "integers": (bad(q=torch.zeros(3, 4, 8, dtype=torch.int32)), "do not fit; expected floating"),
    "q rows": (bad(q=torch.zeros(4, 4, 8)), r"q must be \[3, 4, 8\], as cu_q counts"),
    "k rows": (bad(k=torch.zeros(5, 2, 8), v=torch.zeros(5, 2, 8)), r"k must be \[3, 2, 8\]"),
    "dtype": (
        bad(v=torch.zeros(3, 2, 8).half()),
        "v must be torch.float32 as q, got torch.float16",
    ),
    "device": (bad(v=torch.zeros(3, 2, 8, device="meta")), "v must be on q's device cpu"),
    "prefix alone": (bad(prefix_k=torch.zeros(3, 2, 8)), "found 1 of the three"),
    "rows dtype": (bad(rows=torch.arange(3)), "rows must be torch.int32, got torch.int64"),
    "rows shape": (bad(rows=torch.zeros(2, dtype=torch.int32)), r"rows must be \[3\]"),
    "rows twice": (bad(rows=torch.zeros(3, dtype=torch.int32)), "a permutation"),
    "scale": (bad(scale=-1.0), "scale must be finite and not negative"),
    "rows outside": (bad(rows=torch.tensor([0, 1, 3], dtype=torch.int32)), "a permutation"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    """An argument that does not fit is one sentence: name, expected, found."""
    with pytest.raises(InputError, match=message):
        ops.shared_attention(**arguments)


def test_bad_outputs() -> None:
    """Outputs of another shape or dtype are refused."""
    arguments = bad()
    out, lse = torch.zeros(3, 4, 8), torch.zeros(3, 4)
    wrongs: tuple[tuple[dict[str, Any], str], ...] = (
        ({"out": out[:2], "lse": lse}, "out must be"),
        ({"out": out.bfloat16(), "lse": lse}, "out must be torch.float32 as q"),
        ({"out": out, "lse": lse.double()}, "lse must be torch.float32"),
        ({"out": out, "lse": lse[:2]}, "lse must be"),
    )
    for wrong, message in wrongs:
        with pytest.raises(InputError, match=message):
            ops.shared_attention_out(**arguments, **wrong)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_outputs_have_memory_of_their_own(name: str) -> None:
    """What is read while it is written would give wrong numbers from some size on."""
    given = bad(k=torch.zeros(3, 4, 8), v=torch.zeros(3, 4, 8))
    with pytest.raises(InputError, match=f"out shares memory with {name}"):
        ops.shared_attention_out(**given, out=given[name], lse=torch.empty(3, 4))
    both = torch.empty(3, 4, 9)
    with pytest.raises(InputError, match="out and lse share memory"):
        ops.shared_attention_out(**given, out=both[:, :, :8], lse=both[:, :, 8])


@pytest.mark.parametrize("backend", [name for name in NAMES if name != "reference"])
def test_refuses_fp64(backend: str) -> None:
    """Only the definition takes fp64; auto finds it, a name is refused."""
    wide: dict[str, Any] = {n: x.double() if isinstance(x, Tensor) else x for n, x in bad().items()}
    assert ops.shared_attention(**wide)[0].dtype == torch.float64
    with pytest.raises(Unsupported, match=f"{backend} of shared_attention refuses: "):
        ops.shared_attention(**wide, backend=backend)


@pytest.mark.skipif("cpu" not in NAMES, reason="no native kernel")
@pytest.mark.parametrize(
    ("dtype", "width", "why"),
    [
        (torch.float32, 12, "head dim 12 is not a multiple of 8"),
        (torch.float16, 8, "takes float32 or bfloat16, not float16"),
    ],
)
def test_cpu_refuses(dtype: torch.dtype, width: int, why: str) -> None:
    """What the native kernel does not cover is refused by name, and served by the definition."""
    given = bad(q=torch.ones(3, 4, width, dtype=dtype), k=torch.ones(3, 2, width, dtype=dtype))
    given["v"] = given["k"]
    assert bool((ops.shared_attention(**given)[0] == 1).all())
    with pytest.raises(Unsupported, match=why):
        ops.shared_attention(**given, backend="cpu")


def test_strides_along_a_head() -> None:
    """The functional face takes any strides; the bound one says what it cannot follow."""
    q = torch.randn(3, 4, 16)[:, :, ::2]
    given = bad(q=q)
    straight = ops.shared_attention(**bad(q=q.contiguous()))
    for one, other in zip(ops.shared_attention(**given), straight, strict=True):
        assert torch.equal(one, other)
    out, lse = torch.empty(3, 4, 8), torch.empty(3, 4)
    with pytest.raises(InputError, match="q must have stride 1 along D"):
        ops.shared_attention_out(**given, out=out, lse=lse)


def test_native_code_follows_no_wrong_index() -> None:
    """The registered op, called around the checks, is checked again before memory is read."""
    cu, k = torch.tensor([0, 3], dtype=torch.int32), torch.zeros(3, 2, 8)
    ranges: dict[str, Tensor] = {"cu_q": cu, "cu_k": cu, "kv_end": cu[[0, 1, 1]]}
    for name, wrong in (
        ("cu_q", torch.tensor([0, 4], dtype=torch.int32)),
        ("cu_k", torch.tensor([0, 5], dtype=torch.int32)),
        ("kv_end", torch.tensor([0, 1, 9], dtype=torch.int32)),
        ("kv_end", torch.tensor([0, 2, 1], dtype=torch.int32)),
    ):
        given = (ranges | {name: wrong}).values()
        with pytest.raises(InputError, match=name):
            torch.ops.vlakern.shared_attention(
                torch.zeros(3, 4, 8), k, k, *given, *(None,) * 5, 3, 3, 0.3, True, "cpu"
            )


@pytest.mark.skipif("cpu" not in NAMES, reason="no native kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e3, 1e7, 1e14, 1e17])
@pytest.mark.parametrize("isa", _native.native_info()["isas"])
def test_scores_of_any_size_that_fp32_holds(
    dtype: torch.dtype, size: float, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large scores decide for one key, as in the definition, instead of rounding to nothing."""
    monkeypatch.setenv("VLAKERN_CPU_ISA", isa)
    given = generator(f"large scores {size}")
    q, k = (size * torch.randn(n, 2, 64, generator=given) for n in (3, 4))
    v = torch.randn(4, 2, 64, generator=given)
    who = KvEnd(torch.tensor([0, 3]), torch.tensor([0, 4]), torch.tensor([0, 2, 4]))
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    out, lse = ops.shared_attention(q, k, v, who, backend="cpu")
    expected, expected_lse = ops.shared_attention(q, k, v, who, backend="reference")
    assert torch.equal(out, expected)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=0)


@pytest.mark.skipif("cpu" not in NAMES, reason="no native kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_that_is_seen_stays_nan(dtype: torch.dtype) -> None:
    """In the output and in the log-sum-exp of exactly the queries that see it."""
    q, k, v = (torch.ones(3, 2, 64, dtype=dtype) for _ in range(3))
    k[2] = torch.nan
    who = KvEnd(torch.tensor([0, 3]), torch.tensor([0, 3]), torch.tensor([1, 2, 3]))
    out, lse = ops.shared_attention(q, k, v, who, backend="cpu")
    assert lse.isnan().any(1).tolist() == [False, False, True]
    assert out.isnan().flatten(1).any(1).tolist() == [False, False, True]
