"""The baseline's ways to attend: all are the one that torch's own math kernel defines."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlakern.bench import torch_attention
from vlakern.bench.contenders import TorchContender
from vlakern.bench.torch_attention import (
    Attend,
    by_flash_attn,
    by_products,
    by_sdpa,
    flash_attention,
    mask_of,
)
from vlakern.bench.workload import PresetSource, Workload
from vlakern.errors import Unsupported

SEEN = {
    "whole": torch.ones(5, 7).bool(),
    "causal": torch.ones(7, 7).tril().bool(),
    "other": torch.ones(5, 7).tril(1).bool(),
}


def as_flash_attn(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, causal: bool) -> Tensor:
    """What the package documents: ``[B, rows, heads, D]``, heads of k and v fewer."""
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    scale, gqa = softmax_scale, True
    out = F.scaled_dot_product_attention(q, k, v, None, 0.0, causal, scale=scale, enable_gqa=gqa)
    return out.transpose(1, 2)


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("attend", [by_products, by_sdpa, flash_attention(as_flash_attn)])
def test_all_attend_to_what_is_seen(attend: Attend, kind: str) -> None:
    """Three heads of a group, in fp64; queries hold their scale."""
    seen = SEEN[kind]
    rng = torch.Generator().manual_seed(1)
    q = torch.randn(2, 3, len(seen), 8, generator=rng, dtype=torch.float64)
    k, v = torch.randn(2, 2, 7, 8, generator=rng, dtype=torch.float64)
    mask = mask_of(seen, 3, torch.float64, "cpu")
    assert mask.kind == kind
    scores = (q @ k[:, None].transpose(2, 3)).masked_fill(~seen, float("-inf"))
    expected = scores.softmax(-1) @ v[:, None]
    torch.testing.assert_close(attend(q, k, v, mask), expected)
    if kind == "whole":
        torch.testing.assert_close(attend(q, k, v, None), expected)


def test_flash_attn_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, or not installed: one sentence."""
    with pytest.raises(Unsupported, match="flash-attn needs an NVIDIA GPU, the model is on cpu"):
        by_flash_attn("cpu")
    monkeypatch.setattr(torch_attention, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"not installed; pip install 'vlakern\[flash\]'"):
        by_flash_attn("cuda")


@pytest.mark.parametrize("name", ["tiny", "tiny-pi0"])
def test_fused_attention_gives_the_baselines_actions(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The compiler left out: causal and full prefixes, with two candidates."""
    from vlakern.bench import contenders

    monkeypatch.setattr(contenders, "_compiler", lambda form: lambda call: call)
    work = Workload(PresetSource(name, 0), views=1, prompt_tokens=5, candidates=2)
    made: list[Any] = []
    for form in ("eager", "flash"):
        contender = TorchContender(work, "fp32", "cpu", form)
        call = work.call(0)
        contender.prepare(work)
        contender.vision()
        contender.prefix(call)
        made.append(contender.ode(call))
    torch.testing.assert_close(made[1], made[0], rtol=1e-4, atol=1e-5)
