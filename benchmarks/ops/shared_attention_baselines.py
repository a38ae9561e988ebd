"""What torch offers for shared_attention's cases, and turns over copies that no cache holds."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlakern import ops
from vlakern.ops.shared_attention.cases import Case, Inputs

__all__ = ["backwards", "baselines", "copies_of", "plain_attention", "rectangle", "traffic"]

ROOM = 64 << 20  # bytes: more than the caches of a core's share
Run = Callable[[], object]
DTYPES = (torch.bfloat16, torch.float32)


def turns(make_one: Callable[[], Run], bytes_each: int, warm: bool) -> Run:
    """A call that runs the next of so many contenders that what they read fits no cache."""
    count = 1 if warm else max(2, -(-ROOM // bytes_each))
    runs = cycle([make_one() for _ in range(count)])
    return lambda: next(runs)()


def sides(given: Inputs) -> list[Tensor]:
    """Own and cached keys and values."""
    found = (given.k_SGD, given.v_SGD, given.prefix_k_PGD, given.prefix_v_PGD)
    return [side for side in found if side is not None]


def traffic(given: Inputs, backward: bool = False) -> int:
    """Bytes that must move once: keys, values, queries and outputs, or all those and gradients."""
    queries = given.q_THD.nbytes
    if backward:
        return 2 * sum(side.nbytes for side in sides(given)) + 4 * queries
    return sum(side.nbytes for side in sides(given)) + 2 * queries


def copies_of(
    given: Inputs, make_one: Callable[[Inputs], Run], warm: bool, head_major: bool = False
) -> Run:
    """``make_one`` of copies of the keys and values in turn, as ``[G, P, D]`` in memory or not."""

    def copied(x: Tensor | None) -> Tensor | None:
        if x is None or not head_major:
            return None if x is None else x.clone()
        return x.transpose(0, 1).contiguous().transpose(0, 1)

    def make() -> Run:
        own = replace(given, k_SGD=copied(given.k_SGD), v_SGD=copied(given.v_SGD))
        cached = (copied(given.prefix_k_PGD), copied(given.prefix_v_PGD))
        return make_one(replace(own, prefix_k_PGD=cached[0], prefix_v_PGD=cached[1]))

    return turns(make, sum(side.nbytes for side in sides(given)), warm)


def rectangle(case: Case, given: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v as [R, H or G, tokens, D] and the visible pairs [R, 1, Q, K]; documents are alike."""
    documents = len(case.blocks)
    q = given.q_THD.unflatten(0, (documents, -1)).transpose(1, 2).contiguous()
    found = []
    cached = [given.prefix_k_PGD, given.prefix_v_PGD]
    for own, prefix in zip((given.k_SGD, given.v_SGD), cached, strict=True):
        side = own.unflatten(0, (documents, -1))
        if prefix is not None:
            before = prefix.unflatten(0, (len(case.prefixes), -1))[list(case.index)]
            side = torch.cat([before, side], dim=1)
        found.append(side.transpose(1, 2).contiguous())
    end = given.who.kv_end.unflatten(0, (documents, -1))
    return q, *found, (torch.arange(found[0].shape[2]) < end[:, :, None])[:, None]


def plain_attention(case: Case, given: Inputs) -> Tensor:
    """Torch's own attention in the inputs' dtype, as ``[T, H, D]``."""
    q, k, v, visible = rectangle(case, given)
    plain = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
    return plain.transpose(1, 2).flatten(0, 1)


def by_hand(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """matmul, softmax, matmul; the queries that share a head are rows of one matrix."""
    score = torch.matmul(q, k.transpose(-1, -2)) * scale
    if bias is not None:
        score = score + bias
    return torch.matmul(score.softmax(-1), v)


def baselines(case: Case, given: Inputs, warm: bool, compiled: bool) -> dict[str, Run]:
    """Name -> torch's attention on inputs that are ready for it."""
    found: dict[str, Run] = {}
    for dtype in DTYPES:
        q, k, v, visible = rectangle(case, given)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        share, name = case.heads // case.groups, str(dtype).removeprefix("torch.")
        masks: dict[str, Tensor | None] = {"": visible}
        if bool(visible.all()):
            masks = {" unmasked": None}
        for kind, mask in masks.items():
            attend = partial(F.scaled_dot_product_attention, q, attn_mask=mask)
            expanded = [x.repeat_interleave(share, 1) for x in (k, v)]
            found[f"{name} expanded{kind}"] = of_copies(attend, expanded, warm)
            if share > 1:
                grouped = partial(attend, enable_gqa=True)
                found[f"{name} gqa{kind}"] = of_copies(grouped, [k, v], warm)
            tall = q.unflatten(1, (case.groups, share)).flatten(2, 3)
            bias = None
            if mask is not None:
                hidden = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)
                bias = hidden.repeat(1, 1, share, 1)
            scale = case.head_dim**-0.5
            call = partial(by_hand, tall, bias=bias, scale=scale)
            found[f"{name} by hand{kind}"] = of_copies(call, [k, v], warm)
            if compiled:
                fused = torch.compile(by_hand, dynamic=False)
                call = partial(fused, tall, bias=bias, scale=scale)
                found[f"{name} inductor{kind}"] = of_copies(call, [k, v], warm)
    return found


def of_copies(call: Callable[..., Tensor], read: list[Tensor], warm: bool) -> Run:
    """Turns over copies of keys and values."""
    return turns(
        lambda: partial(call, *[x.clone() for x in read]), sum(x.nbytes for x in read), warm
    )


def backwards(case: Case, given: Inputs, backend: str) -> dict[str, Run]:
    """Gradients of every input from a graph that is kept; torch's from inputs ready for it."""
    found: dict[str, Run] = {"backward": ours_backward(given, backend)}
    for dtype in DTYPES:
        q, k, v, visible = rectangle(case, given)
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        mask = None if bool(visible.all()) else visible
        name = str(dtype).removeprefix("torch.")
        share = case.heads // case.groups

        def gqa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = mask) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

        def expanded(
            q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = mask, share: int = share
        ) -> Tensor:
            wide = [x.repeat_interleave(share, 1) for x in (k, v)]
            return F.scaled_dot_product_attention(q, *wide, attn_mask=mask)

        q, k, v = leaves
        found[f"{name} gqa"] = gradients_of(gqa(q, k, v), leaves)
        found[f"{name} expanded"] = gradients_of(expanded(q, k, v), leaves)
    return found


def ours_backward(given: Inputs, backend: str) -> Run:
    leaves = [x.detach().requires_grad_() for x in (given.q_THD, *sides(given))]
    q, k, v, *cached = leaves
    out, _ = ops.shared_attention(q, k, v, given.who, *cached, backend=backend)
    return gradients_of(out, leaves)


def gradients_of(out: Tensor, leaves: list[Any]) -> Run:
    up = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaves, up, retain_graph=True)
