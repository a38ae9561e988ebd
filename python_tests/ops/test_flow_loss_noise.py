"""The generator of flow_mix and flow_loss: known answers, statistics, independence, targets."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from vlakern import env, ops
from vlakern.flow import TauConfig
from vlakern.ops import _native
from vlakern.ops.flow_loss.philox import philox4x32
from vlakern.testing.aot import ARCHS, compile_for

ISAS: list[str] = _native.native_info()["isas"]
BACKENDS = ["reference", "cpu"]
COUNT = 20_000
# Random123 1.09, kat_vectors: counter, key, words of philox4x32 with 10 rounds.
KNOWN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN, ids=["zeros", "ones", "pi"])
def test_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    """Both generators give the published words."""
    a, b, c, d = (torch.tensor([word]) for word in counter)
    assert tuple(int(word) for word in philox4x32((a, b, c, d), key)) == words
    assert _native.cpu_module().philox(counter, *key) == words


@pytest.mark.parametrize("isa", ISAS)
def test_noise_is_that_of_the_definition(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every instruction set draws the definition's normals, tails included, to 2e-6."""
    monkeypatch.setenv("VLAKERN_CPU_ISA", isa)
    rows = torch.tensor([0, 1, 2**31, 2**32 + 5, 2**62])
    given: dict[str, Any] = {"seed": 2**62 + 12345, "positions": 100, "slots": 999}
    found = ops.flow_noise(rows, **given, backend="cpu")
    exact = ops.flow_noise(rows, **given, backend="reference")
    assert float(exact.abs().max()) > 4.5
    assert float((found - exact).abs().max()) < 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_moments_of_the_noise(backend: str) -> None:
    """Mean 0, variance 1, skewness 0 and kurtosis 3, within four standard errors."""
    z = ops.flow_noise(torch.arange(400), 16, 200, seed=1, backend=backend).double().flatten()
    n = len(z)
    assert abs(float(z.mean())) < 4 / n**0.5
    assert abs(float(z.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((z**3).mean())) < 4 * (15 / n) ** 0.5
    assert abs(float((z**4).mean()) - 3) < 4 * (96 / n) ** 0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_is_normal_and_independent(backend: str) -> None:
    """Kolmogorov-Smirnov, overall and per word; neighbours, pairs, rows and seeds do not correlate.

    Pairs of Box-Muller share a length, so their squares are compared, too.
    """
    z = ops.flow_noise(torch.arange(64), 8, 64, seed=2, backend=backend).reshape(64 * 8, 4, 16)
    other = ops.flow_noise(torch.arange(64), 8, 64, seed=3, backend=backend).reshape(z.shape)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    for word in range(4):
        assert stats.kstest(z[:, word].flatten().numpy(), "norm").pvalue > 0.01
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "lanes": (z[..., :-1], z[..., 1:]),
        "words 0 1": (z[:, 0], z[:, 1]),
        "words 1 2": (z[:, 1], z[:, 2]),
        "blocks": (z[:-1], z[1:]),
        "rows": (z[:-8], z[8:]),
        "seeds": (z, other),
    }
    for name, (one, two) in pairs.items():
        for power in (1, 2):
            sides = torch.stack([one.flatten() ** power, two.flatten() ** power])
            limit = 4 / sides.shape[1] ** 0.5
            assert abs(float(sides.corrcoef()[0, 1])) < limit, name


# Distribution functions of tau; for the beta law tau = (s - b) / s, so F(t) = 1 - F_b(s (1 - t)).
LAWS: dict[TauConfig, Any] = {
    TauConfig("uniform"): stats.uniform().cdf,
    TauConfig("logit_normal"): lambda t: stats.norm().cdf(torch.logit(torch.as_tensor(t)).numpy()),
    TauConfig("beta"): lambda t: stats.beta(1.5, 1.0).sf(0.999 * (1 - t)),
    TauConfig("beta", alpha=2.5, s=0.9): lambda t: stats.beta(2.5, 1.0).sf(0.9 * (1 - t)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("config", LAWS, ids=lambda c: f"{c.kind} {c.alpha}")
def test_flow_times_follow_their_law(config: TauConfig, backend: str) -> None:
    """Kolmogorov-Smirnov against scipy: the law is kept, and every other one is rejected."""
    given = {"law": config.kind, "alpha": config.alpha, "s": config.s}
    x, tau = ops.flow_mix(torch.zeros(COUNT, 1, 1), seed=4, **given, backend=backend)
    times = tau.double().numpy()
    for law, distribution in LAWS.items():
        inside = times if law == config else times.clip(1e-6, 1 - 1e-6)
        pvalue = stats.kstest(inside, distribution).pvalue
        assert (pvalue > 0.01) == (law == config), law
    # tau is not drawn from the words of the noise.
    noise = x[:, 0, 0] / (1 - tau)
    assert abs(float(torch.stack([noise, tau]).corrcoef()[0, 1])) < 4 / COUNT**0.5


@pytest.mark.parametrize("backend", [*BACKENDS, *(["triton"] if env.triton_interpret() else [])])
def test_order_of_the_batch_does_not_matter(backend: str) -> None:
    """A row's draws belong to its address: alone, or among others in any order."""
    rows = torch.tensor([7, 2**40 + 1, 0, 3])
    action = torch.randn(4, 5, 9, generator=torch.Generator().manual_seed(1))
    x, tau = ops.flow_mix(action, seed=11, rows=rows, backend=backend)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = ops.flow_mix(action[order], seed=11, rows=rows[order], backend=backend)
    assert torch.equal(x[order], shuffled[0])
    assert torch.equal(tau[order], shuffled[1])
    alone = ops.flow_mix(action[1:2], seed=11, rows=rows[1:2], backend=backend)
    assert torch.equal(x[1:2], alone[0])
    assert not torch.equal(x, ops.flow_mix(action, seed=12, rows=rows, backend=backend)[0])


@pytest.mark.gpu
def test_gpu_draws_the_bits_of_the_cpu() -> None:
    """One seed gives one noise, wherever it is drawn."""
    rows = torch.arange(50)
    found = ops.flow_noise(rows.cuda(), 16, 200, seed=9, backend="triton").cpu()
    assert torch.equal(found, ops.flow_noise(rows, 16, 200, seed=9, backend="cpu"))


def signature(kernel: Any, constants: dict[str, Any]) -> dict[str, str]:
    """Types of a kernel's arguments: pointers by name, the seed in full."""
    types = {"rows_ptr": "*i64", "sums_ptr": "*fp64", "group_ptr": "*i32", "mask_ptr": "*u8"}
    types |= {"velocity_ptr": "*bf16", "x_ptr": "*bf16", "out_ptr": "*bf16", "seed": "i64"}
    names = [name for name in kernel.arg_names if name not in constants]
    return {n: types.get(n, "*fp32" if n.endswith("_ptr") else "i32") for n in names}


@pytest.mark.skipif(
    env.triton_interpret(), reason="kernels made for the interpreter do not compile"
)
@pytest.mark.parametrize("name", ["mix", "loss", "gradient", "finish"])
@pytest.mark.parametrize("arch", ARCHS)
def test_triton_compiles_without_spills(arch: int, name: str) -> None:
    """Ahead of time, with noise drawn and everything else on, nothing lives in local memory."""
    from vlakern.ops.flow_loss import triton_kernels as kernels

    kernel = getattr(kernels, f"{name}_kernel")
    values = {"HAS_NOISE": False, "HAS_TAU": False, "PER_POSITION": False, "LAW": 1}
    values |= {"ALPHA": 1.5, "S": 0.999, "BLOCK": kernels.BLOCK, "ROWS": kernels.ROWS}
    constants = {n: values.get(n, True) for n in kernel.arg_names if n.isupper()}
    used = compile_for(kernel, arch, signature(kernel, constants), constants, kernels.OPTIONS)
    assert (used.stack, used.local) == (0, 0)
    assert used.registers <= 128
