"""The parts of the PyTorch baseline, with folded weights and joined products.

What is folded: weights of norms into the product that follows, scales of residuals into the product
before, the scale of attention into queries. Attention is two batched products and a softmax, which
take half the time of torch's fused kernel on CPUs: 1.8 against 3.5 ms for 220 tokens, 3.9 against
6.8 ms for 2 x 257 patches (2 cores with AVX-512-BF16).

Dimension letters: R observations, V views, N patches, E rows, Q queries, H heads, G key-value
heads, D head dim, M width.
"""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlakern.bench.torch_attention import Attend, by_products
from vlakern.flow.solver import evaluation_times
from vlakern.infer.packing import Weights
from vlakern.models.config import MoTConfig, VisionConfig, VLAConfig
from vlakern.models.vla import time_embedding

__all__ = [
    "Angles",
    "Block",
    "Layer",
    "Lazy",
    "Product",
    "by_group",
    "entrance",
    "joined",
    "normed",
]

Angles = tuple[Tensor, Tensor]
L = TypeVar("L")


class Product(nn.Module):
    """A product with a weight and perhaps a bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.to(dtype).contiguous(), requires_grad=False)
        self.bias: nn.Parameter | None = None
        if bias is not None:
            self.bias = nn.Parameter(bias.to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def by_group(x_RKGD: Tensor) -> Tensor:
    """``[R · G, K, D]``, each head's rows together."""
    return x_RKGD.transpose(1, 2).flatten(0, 1)


class Block(nn.Module):
    """A block of the vision tower."""

    def __init__(
        self,
        config: VisionConfig,
        get: Weights,
        name: str,
        dtype: torch.dtype,
        attend: Attend = by_products,
    ) -> None:
        super().__init__()
        self.attend = attend
        self.heads, self.eps = config.heads, config.eps
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"

        def read(part: str) -> Tensor:
            return get(f"{name}.{part}").float()

        width = config.hidden
        scale = torch.ones(3 * width)
        scale[:width] = (width // config.heads) ** -0.5
        one = torch.ones(width)
        scaled = config.layer_scale is not None
        scale1, scale2 = (read("scale1"), read("scale2")) if scaled else (one, one)
        self.norm1 = Product(read("norm1.weight"), read("norm1.bias"), dtype)
        self.norm2 = Product(read("norm2.weight"), read("norm2.bias"), dtype)
        self.qkv = scaled_product(read, "qkv", scale, dtype)
        self.proj = scaled_product(read, "proj", scale1, dtype)
        self.fc1 = Product(read("fc1.weight"), read("fc1.bias"), dtype)
        self.fc2 = scaled_product(read, "fc2", scale2, dtype)

    def forward(self, x_VNM: Tensor) -> Tensor:
        views, tokens, width = x_VNM.shape
        h = F.layer_norm(x_VNM, (width,), self.norm1.weight, self.norm1.bias, self.eps)
        heads = self.qkv(h).view(views, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = heads.contiguous().flatten(1, 2).unbind()
        out = self.attend(q[:, None], k, v, None)[:, 0]
        out = out.unflatten(0, (views, self.heads)).transpose(1, 2)
        x_VNM = x_VNM + self.proj(out.flatten(2))
        h = F.layer_norm(x_VNM, (width,), self.norm2.weight, self.norm2.bias, self.eps)
        return x_VNM + self.fc2(F.gelu(self.fc1(h), approximate=self.approximate))


def scaled_product(
    read: Callable[[str], Tensor], name: str, scale: Tensor, dtype: torch.dtype
) -> Product:
    """A product whose output is multiplied by ``scale``."""
    weight, bias = read(f"{name}.weight"), read(f"{name}.bias")
    return Product(weight * scale[:, None], bias * scale, dtype)


class Layer(nn.Module):
    """One layer of one expert; its last one may make keys and values alone.

    Where layers cross, the action expert's makes queries, and keys and values of other ones.
    """

    def __init__(
        self,
        config: MoTConfig,
        get: Weights,
        name: str,
        dtype: torch.dtype,
        *,
        rest: bool,
        crosses: bool = False,
        adaptive: bool = False,
    ) -> None:
        super().__init__()
        self.groups, self.heads, self.eps = config.kv_heads, config.q_heads, config.norm_eps
        self.head_dim, self.silu = config.head_dim, config.activation == "silu"

        def read(part: str) -> Tensor:
            return get(f"{name}.{part}.weight").float()

        first, second = (1, 1) if adaptive else (read("input_norm"), read("post_norm"))
        scale, parts = config.head_dim**-0.5, "q" if crosses else "qkv" if rest else "kv"
        qkv = {one: read(f"{one}_proj") * first for one in parts}
        self.head_norms: nn.Parameter | None = None
        if config.qk_norm:
            q_norm = read("q_norm").expand(self.heads, -1) * scale
            k_norm = read("k_norm").expand(self.groups, -1)
            norms = torch.cat([q_norm, k_norm]) if rest else k_norm
            self.head_norms = nn.Parameter(norms.contiguous(), requires_grad=False)
        elif "q" in qkv:
            qkv["q"] = qkv["q"] * scale
        self.qkv = Product(torch.cat(list(qkv.values())), None, dtype)
        self.cross_k, self.cross_v = nn.Identity(), nn.Identity()
        if crosses:
            self.cross_k = Product(read("k_proj"), None, dtype)
            self.cross_v = Product(read("v_proj"), None, dtype)
        self.o, self.gate_up, self.down = nn.Identity(), nn.Identity(), nn.Identity()
        if rest:
            gate_up = torch.cat([read("gate_proj") * second, read("up_proj") * second])
            self.o = Product(read("o_proj"), None, dtype)
            self.gate_up = Product(gate_up, None, dtype)
            self.down = Product(read("down_proj"), None, dtype)

    def project(
        self, x_REM: Tensor, angles: Angles, time_3M: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Turned queries and keys, or keys alone, ``[R, E, H (+ G), D]``, and values."""
        heads = self.qkv(normed(x_REM, self.eps, time_3M)).unflatten(-1, (-1, self.head_dim))
        turned, v = heads[:, :, : -self.groups], heads[:, :, -self.groups :]
        return self._turned(turned, angles), v

    def queries(self, x_REM: Tensor, angles: Angles, time_3M: Tensor | None) -> Tensor:
        """Turned queries ``[R, E, H, D]`` of a layer that crosses."""
        heads = self.qkv(normed(x_REM, self.eps, time_3M)).unflatten(-1, (-1, self.head_dim))
        return self._turned(heads, angles)

    def _turned(self, heads_REHD: Tensor, angles: Angles) -> Tensor:
        cos, sin = angles
        h = heads_REHD.float()
        if self.head_norms is not None:
            h = h * torch.rsqrt(mean_square(h) + self.eps) * self.head_norms
        a, b = h.chunk(2, dim=-1)
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
        return turned.to(heads_REHD.dtype)

    def of(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[R, T, G, D]`` of the semantic expert's."""
        made = self.cross_k(k.flatten(2)), self.cross_v(v.flatten(2))
        return made[0].view_as(k), made[1].view_as(v)

    def advance(
        self, x_REM: Tensor, attention: Tensor, times: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """The stream after the output projection and the gated MLP.

        ``times`` are scale, shift and gate of both norms, ``[3, M]`` each.
        """
        mixed = self.o(attention)
        x_REM = x_REM + (mixed if times is None else times[0][2] * mixed)
        h = normed(x_REM, self.eps, None if times is None else times[1])
        gate, up = self.gate_up(h).chunk(2, dim=-1)
        bent = F.silu(gate) if self.silu else F.gelu(gate, approximate="tanh")
        out = self.down(bent * up)
        return x_REM + (out if times is None else times[1][2] * out)


def normed(x: Tensor, eps: float, time_3M: Tensor | None = None) -> Tensor:
    """x / rms(x), which the next product's weights scale, or 1 + scale and shift of flow time."""
    h = x.float()
    h = h * torch.rsqrt(mean_square(h) + eps)
    if time_3M is not None:
        h = torch.addcmul(time_3M[1].float(), h, 1 + time_3M[0].float())
    return h.to(x.dtype)


def mean_square(h: Tensor) -> Tensor:
    """Over the last axis; the norm is one pass where a square and a mean are two."""
    return torch.linalg.vector_norm(h, dim=-1, keepdim=True).square() / h.shape[-1]


class Lazy(Generic[L]):
    """Layers that are built when they are asked for, so that a reference fits in memory."""

    def __init__(self, count: int, make: Callable[[int], L]) -> None:
        self._count, self._make = count, make

    def __iter__(self) -> Iterator[L]:
        return map(self._make, range(self._count))


def entrance(
    config: VLAConfig, read: Callable[[str], Tensor], dtype: torch.dtype
) -> tuple[Product, Tensor]:
    """The product that actions enter by, and what each evaluation's time adds or scales."""
    width = config.mot.action.hidden
    w1, b1 = read("action_encoder.w1.weight"), read("action_encoder.w1.bias")
    tau = evaluation_times(config.steps, config.solver)
    embedded = time_embedding(tau, width, config.time).double().to(w1.device)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ read(f"{name}.weight").double().T + read(f"{name}.bias").double()

    if config.action_encoder == "plain":
        for name in ("time_mlp.0", "time_mlp.2"):
            embedded = F.silu(linear(name, embedded))
        layers = [f"mot.action.layers.{i}" for i in range(config.mot.layers)]
        norms = [f"{one}.{part}_norm" for one in layers for part in ("input", "post")]
        made = [linear(f"{one}.dense", embedded) for one in [*norms, "mot.action.norm"]]
        return Product(w1, b1, dtype), torch.stack(made, 1).unflatten(-1, (3, width))
    w2, b2 = read("action_encoder.w2.weight"), read("action_encoder.w2.bias")
    w2a, w2t = w2[:, :width].double(), w2[:, width:].double()
    # W2 · [W1 · x, embedding(τ)] is one product with x and a row of constants per evaluation.
    rows = embedded @ w2t.T + b2 + w2a @ b1.double()
    return Product((w2a @ w1.double()).float(), None, dtype), rows


def joined(trunk: Angles, expert: Angles, at: int | None, keys_only: bool) -> Angles:
    """Rows of both experts in joint order: a state at ``at``, actions behind everything.

    With ``keys_only`` the trunk's are keys, and of the expert's those alone are taken.
    """
    (a, a_v), (b, b_v) = trunk, expert
    if keys_only:
        b = b[:, :, -a.shape[2] :]
    return _place(a, b, at), _place(a_v, b_v, at)


def _place(a: Tensor, b: Tensor, at: int | None) -> Tensor:
    if at is None:
        return torch.cat([a, b], dim=1)
    return torch.cat([a[:, :at], b[:, :1], a[:, at:], b[:, 1:]], dim=1)
