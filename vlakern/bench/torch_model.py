"""The strongest plain PyTorch form of the network that we could write: the baseline.

Prefixes are cached, or whole documents are computed again at every evaluation of the velocity, from
the same layers. The last layer of the prefix makes keys and values alone; candidates of one
observation are queries of one attention.

Dimension letters: R observations, V views, T prefix tokens, S semantic tokens, E rows of the action
expert, K keys, G key-value heads, D head dim, M width, C positions of all chunks of an observation,
A slots.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlakern.bench.torch_layers import (
    Angles,
    Block,
    Layer,
    Lazy,
    Product,
    attend,
    by_group,
    normed,
)
from vlakern.bench.workload import Workload
from vlakern.flow.solver import evaluation_times
from vlakern.infer.packing import Weights
from vlakern.models.config import VLAConfig
from vlakern.models.mot import rotary
from vlakern.models.sequence import Batch, action_layout
from vlakern.models.vision import pixel_shuffle
from vlakern.models.vla import time_embedding

__all__ = ["Plan", "TorchModel", "make_plan"]

Cache = list[Tensor]  # keys and then values of every layer, [R · G, T + C, D]


@dataclass(frozen=True)
class Plan:
    """Where tokens stand and what they see, the same for every observation of a workload.

    Attributes:
        state: the state token's place in the prefix.
        prefix: T, tokens of the prefix.
        semantic, expert: cos and sin of the rows of each expert; the state comes first.
        actions: cos and sin of the action rows alone.
        mask_TK, mask_CK, mask_JK: added to the scores of the prefix, of the actions behind a
            cached prefix, and of both together; ``[rows · H / G, K]``.
    """

    state: int
    prefix: int
    semantic: Angles
    expert: Angles
    actions: Angles
    mask_TK: Tensor
    mask_CK: Tensor
    mask_JK: Tensor


def make_plan(work: Workload, dtype: torch.dtype, device: str) -> Plan:
    """The plan of a workload from the layouts that the network itself uses."""
    config, mot, call = work.config, work.config.mot, work.call(0)
    layout, tokens = call.batch.layout, work.shape.prefix
    one = action_layout(config, call.batch.cu_prefix[:2], torch.zeros(1, dtype=torch.int64))
    state = int(layout.action_rows[0])
    positions = torch.cat([layout.positions[:tokens], one.positions.repeat(work.candidates)])
    cos, sin = (one.to(device) for one in rotary(positions, mot.head_dim, mot.rope_theta))
    table = (cos[:, None], sin[:, None])
    rows = torch.arange(tokens)
    behind = torch.arange(tokens, len(positions))
    own = one.who.kv_end - tokens
    seen_TT = rows < layout.who.kv_end[:tokens, None]
    block = torch.arange(config.chunk) < own[:, None]
    seen_CC = torch.block_diag(*[block] * work.candidates).bool()
    seen_CK = torch.cat([torch.ones(len(seen_CC), tokens).bool(), seen_CC], dim=1)
    none = torch.zeros(tokens, len(behind)).bool()
    seen_JK = torch.cat([torch.cat([seen_TT, none], dim=1), seen_CK])
    group = mot.q_heads // mot.kv_heads

    def mask(seen: Tensor) -> Tensor:
        added = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, float("-inf"))
        return added.repeat(group, 1).to(device)

    def take(index: Tensor) -> Angles:
        return table[0][index.to(device)], table[1][index.to(device)]

    return Plan(
        state=state,
        prefix=tokens,
        semantic=take(rows[rows != state]),
        expert=take(torch.cat([rows[state : state + 1], behind])),
        actions=take(behind),
        mask_TK=mask(seen_TT),
        mask_CK=mask(seen_CK),
        mask_JK=mask(seen_JK),
    )


class TorchModel(nn.Module):
    """The network over dense batches of equal prefixes.

    Attributes:
        keep: whether layers stay in memory; those of the tower and of the trunk are built again at
            each use otherwise.
    """

    def __init__(
        self,
        config: VLAConfig,
        get: Weights,
        dtype: torch.dtype,
        *,
        keep: bool = True,
    ) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        mot, last = config.mot, config.mot.layers - 1

        def block(i: int) -> Block:
            return Block(config.vision, get, f"vision.blocks.{i}", dtype)

        def semantic(i: int) -> Layer:
            return Layer(mot, get, f"mot.semantic.layers.{i}", dtype, rest=i < last)

        names = [f"mot.action.layers.{i}" for i in range(mot.layers)]
        self.action = nn.ModuleList(Layer(mot, get, one, dtype, rest=True) for one in names)
        blocks, trunk = Lazy(config.vision.layers, block), Lazy(mot.layers, semantic)
        self.blocks: Any = nn.ModuleList(blocks) if keep else blocks
        self.semantic: Any = nn.ModuleList(trunk) if keep else trunk
        self._edges(get, dtype, keep)

    def _edges(self, get: Weights, dtype: torch.dtype, keep: bool) -> None:
        def read(name: str) -> Tensor:
            return get(name).float()

        def product(name: str) -> Product:
            return Product(read(f"{name}.weight"), read(f"{name}.bias"), dtype)

        config, vision = self.config, self.config.vision
        self.stem = nn.ModuleList(product(f"vision.stem.{i}") for i in range(len(vision.stem)))
        self.patch = product("vision.patch")
        self.places = nn.Parameter(read("vision.position").to(dtype), requires_grad=False)
        self.first: nn.Parameter | None = None
        if vision.class_token:
            first = read("vision.class_token")[None, None].to(dtype)
            self.first = nn.Parameter(first, requires_grad=False)
        self.connector = nn.ModuleList(product(f"vision.connector.{i}") for i in (0, 1, 3))
        table = get("embed_tokens.weight").to(dtype)
        self.table = nn.Parameter(table, requires_grad=False) if keep else table
        self.state = nn.ModuleList(product(f"state_encoder.{i}") for i in (0, 2))
        width = config.mot.action.hidden
        w1, b1 = read("action_encoder.w1.weight"), read("action_encoder.w1.bias")
        w2, b2 = read("action_encoder.w2.weight"), read("action_encoder.w2.bias")
        w2a, w2t = w2[:, :width].double(), w2[:, width:].double()
        # W2 · [W1 · x, embedding(τ)] is one product with x and a row of constants per evaluation.
        self.enter = Product((w2a @ w1.double()).float(), None, dtype)
        tau = evaluation_times(config.steps, config.solver)
        times = time_embedding(tau, width, config.time).double() @ w2t.T
        rows = (times + b2 + w2a @ b1.double()).to(dtype)
        self.times = nn.Parameter(rows, requires_grad=False)
        self.mix = product("action_encoder.w3")
        norm = read("mot.action.norm.weight")
        weight, bias = read("action_decoder.0.weight"), read("action_decoder.0.bias")
        self.leave = nn.ModuleList(
            [Product(weight * norm, bias, dtype), product("action_decoder.2")]
        )

    def vision(self, pixels_V3SS: Tensor) -> Tensor:
        """Normalised pixels to image tokens ``[V, tokens, M]``."""
        vision, x = self.config.vision, pixels_V3SS.to(self.dtype)
        for conv in self.stem:
            assert isinstance(conv, Product)
            x = F.relu(F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1))
        side = self.patch.weight.shape[-1]
        x = F.conv2d(x, self.patch.weight, self.patch.bias, stride=side).flatten(2).transpose(1, 2)
        if self.first is not None:
            x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.places
        for block in self.blocks:
            x = block(x)
        x = pixel_shuffle(x[:, 1:] if self.first is not None else x, vision.pixel_shuffle)
        norm, up, out = self.connector
        assert isinstance(norm, Product)
        x = F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, vision.eps)
        return out(F.gelu(up(x)))

    def embed(self, batch: Batch, views_VKM: Tensor) -> tuple[Tensor, Tensor]:
        """Semantic rows ``[R, S, M]`` and the states ``[R, 1, M]``."""
        text = F.embedding(batch.tokens_L.to(views_VKM.device), self.table)
        rows = torch.cat([text, views_VKM.flatten(0, 1)])
        rows = rows.index_select(0, batch.semantic_order.to(rows.device))
        state = batch.state_RS.to(rows.device, self.dtype)
        observations = len(state)
        hidden = F.relu(self.state[0](state))
        return rows.unflatten(0, (observations, -1)), self.state[1](hidden)[:, None]

    def prefix(self, semantic: Tensor, state: Tensor, plan: Plan) -> list[Tensor]:
        """Keys and then values of every layer, ``[R, T, G, D]``."""
        made = []
        state_angles = (plan.expert[0][:1], plan.expert[1][:1])
        for i, (trunk, expert) in enumerate(zip(self.semantic, self.action, strict=True)):
            assert isinstance(expert, Layer)
            parts = (
                trunk.project(semantic, plan.semantic),
                expert.project(state, state_angles),
            )
            last = i == self.config.mot.layers - 1
            joint, v = self._joint(parts, plan, keys_only=last)
            made += [joint[:, :, -trunk.groups :], v]
            if last:
                break
            k = by_group(joint[:, :, -trunk.groups :])
            out = self._attention(joint, k, by_group(v), plan.mask_TK)
            at = plan.state
            state = expert.advance(state, out[:, at : at + 1])
            semantic = trunk.advance(semantic, torch.cat([out[:, :at], out[:, at + 1 :]], dim=1))
        return made

    def _joint(self, parts: Sequence[Angles], plan: Plan, keys_only: bool) -> Angles:
        """Rows of both experts in joint order; of the keys alone in the last layer."""
        (a, a_v), (b, b_v) = parts
        if keys_only:
            b = b[:, :, -a.shape[2] :]
        return place(a, b, plan.state), place(a_v, b_v, plan.state)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """``[R, Q, H · D]`` of ``q [R, Q, H + .., D]`` and keys and values ``[R · G, K, D]``."""
        heads, groups = self.config.mot.q_heads, self.config.mot.kv_heads
        rows = q.shape[1]
        q = q[:, :, :heads].unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)
        out = attend(q.flatten(2, 3).flatten(0, 1), k, v, mask)
        out = out.unflatten(0, (-1, groups)).unflatten(2, (-1, rows))
        return out.permute(0, 3, 1, 2, 4).flatten(2)

    def cache(self, plan: Plan, observations: int, device: str) -> Cache:
        """Room for the keys and values of prefixes and of the actions behind them."""
        mot = self.config.mot
        tokens = plan.mask_CK.shape[1]
        shape = (observations * mot.kv_heads, tokens, mot.head_dim)
        return [torch.zeros(shape, dtype=self.dtype, device=device) for _ in range(2 * mot.layers)]

    def fill(self, cache: Cache, made: Sequence[Tensor]) -> None:
        """Puts what :meth:`prefix` made in front of the actions."""
        for room, one in zip(cache, made, strict=True):
            room[:, : one.shape[1]] = by_group(one)

    def velocity(self, x_RCA: Tensor, time_M: Tensor, cache: Cache, plan: Plan) -> Tensor:
        """dx/dτ behind a filled cache, whose end it overwrites.

        Args:
            time_M: the row of :attr:`times` of this evaluation.
        """

        def keys_values(i: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            k_room, v_room = cache[2 * i], cache[2 * i + 1]
            k_room[:, plan.prefix :], v_room[:, plan.prefix :] = k, v
            return k_room, v_room

        return self._actions(x_RCA, time_M, plan, keys_values)

    def velocity_behind(
        self, x_RCA: Tensor, time_M: Tensor, made: Sequence[Tensor], plan: Plan
    ) -> Tensor:
        """The same behind keys and values ``[R · G, T, D]`` that stay as they are."""

        def keys_values(i: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return torch.cat([made[2 * i], k], dim=1), torch.cat([made[2 * i + 1], v], dim=1)

        return self._actions(x_RCA, time_M, plan, keys_values)

    def _actions(
        self,
        x_RCA: Tensor,
        time_M: Tensor,
        plan: Plan,
        keys_values: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """dx/dτ; ``keys_values`` puts a layer's own keys and values behind the prefix's."""
        h = self.mix(F.silu(self.enter(x_RCA.to(self.dtype)) + time_M))
        for i, layer in enumerate(self.action):
            assert isinstance(layer, Layer)
            joint, v = layer.project(h, plan.actions)
            k, v = keys_values(i, by_group(joint[:, :, layer.heads :]), by_group(v))
            h = layer.advance(h, self._attention(joint, k, v, plan.mask_CK))
        return self._out(h)

    def uncached(
        self, semantic: Tensor, state: Tensor, x_RCA: Tensor, time_M: Tensor, plan: Plan
    ) -> Tensor:
        """dx/dτ from one pass over whole documents."""
        actions = self.mix(F.silu(self.enter(x_RCA.to(self.dtype)) + time_M))
        rows = torch.cat([state, actions], dim=1)
        heads, groups = self.config.mot.q_heads, self.config.mot.kv_heads
        for trunk, expert in zip(self.semantic, self.action, strict=True):
            assert isinstance(expert, Layer)
            own, v = expert.project(rows, plan.expert)
            parts = (trunk.project(semantic, plan.semantic), (own, v))
            last = parts[0][0].shape[2] == groups
            joint, v = self._joint(parts, plan, keys_only=last)
            k, v = by_group(joint[:, :, -groups:]), by_group(v)
            if last:
                out = self._attention(own[:, 1:, :heads], k, v, plan.mask_CK)
                return self._out(expert.advance(rows[:, 1:], out))
            out = self._attention(joint, k, v, plan.mask_JK)
            at, end = plan.state, plan.prefix
            semantic_out = torch.cat([out[:, :at], out[:, at + 1 : end]], dim=1)
            semantic = trunk.advance(semantic, semantic_out)
            rows = expert.advance(rows, torch.cat([out[:, at : at + 1], out[:, end:]], dim=1))
        raise AssertionError("the last layer of the trunk makes keys and values alone")

    def _out(self, h: Tensor) -> Tensor:
        first, last = self.leave
        return last(F.relu(first(normed(h, self.config.mot.norm_eps)))).float()


def place(a: Tensor, b: Tensor, at: int) -> Tensor:
    """Rows of both experts in joint order: the state at ``at``, actions behind everything."""
    return torch.cat([a[:, :at], b[:, :1], a[:, at:], b[:, 1:]], dim=1)
