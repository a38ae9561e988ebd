"""The definition of ``action_embed``: noisy actions to tokens, the flow time folded into a bias.

The encoder W3·silu(W2·[W1·x + b1, e(τ)] + b2) + b3 (arXiv 2602.09722; pi0, arXiv 2410.24164,
Appendix B) has with W2 = [W2a, W2b] no non-linearity before the SiLU, so that

    y = W3·silu(Wf·x + t) + b3      Wf = W2a·W1      t = W2a·b1 + W2b·e(τ) + b2

and t is a table with a row for each step of the solver. Without W3 it is one projection, as pi0.5
has it, whose time is in the norms: y = Wf·x + t with t its bias.

Letters: N rows, A slots, M width, S steps.
"""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["action_embed_reference", "compute_dtype", "fold_action_encoder"]


def compute_dtype(x: Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def fold_action_encoder(
    w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, embedding: Tensor
) -> tuple[Tensor, Tensor]:
    """Folds the encoder's first two layers and the embedded flow times into one.

    Args:
        w1: ``[M, A]``.
        b1: ``[M]``.
        w2: ``[M, 2 M]``: columns of the projected action, then of the time's embedding.
        b2: ``[M]``.
        embedding: e(τ) of each step ``[S, M]``.

    Returns:
        ``Wf [M, A]`` and ``t [S, M]`` in fp32, or fp64 for fp64 weights, from products in fp64:
        rounded once.
    """
    dtype = compute_dtype(w1)
    action, time = w2.detach().double().split((w1.shape[0], embedding.shape[-1]), dim=1)
    table = embedding.double() @ time.T
    if b1 is not None:
        table = table + action @ b1.detach().double()
    if b2 is not None:
        table = table + b2.detach().double()
    return (action @ w1.detach().double()).to(dtype), table.to(dtype)


def action_embed_reference(
    x: Tensor,
    w_in: Tensor,
    time: Tensor,
    w_out: Tensor | None = None,
    b_out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``y [N, M]`` of x ``[N, A]``; ``time`` is ``[M]`` or ``[N, M]``."""
    dtype = compute_dtype(x)
    y = x.to(dtype) @ w_in.to(dtype).T + time.to(dtype)
    if w_out is not None:
        y = functional.silu(y) @ w_out.to(dtype).T
        y = y if b_out is None else y + b_out.to(dtype)
    return y.to(out_dtype or x.dtype)
