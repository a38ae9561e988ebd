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

from vlakern.bench.torch_attention import Attend, Mask, by_products, mask_of
from vlakern.bench.torch_layers import (
    Angles,
    Block,
    Layer,
    Lazy,
    Product,
    by_group,
    entrance,
    joined,
    normed,
)
from vlakern.bench.workload import Workload
from vlakern.infer.packing import Weights
from vlakern.models.config import VLAConfig
from vlakern.models.mot import rotary
from vlakern.models.sequence import Batch, action_layout
from vlakern.models.vision import pixel_shuffle

__all__ = ["Plan", "TorchModel", "make_plan"]

Cache = list[Tensor]  # keys and then values of every layer, [R · G, T + C, D]


@dataclass(frozen=True)
class Plan:
    """Where tokens stand and what they see, the same for every observation of a workload.

    Attributes:
        state: the place in the prefix of the action expert's state token, None if it has none.
        prefix: T, tokens of the prefix.
        semantic, expert: cos and sin of the rows of each expert; the state comes first.
        actions: cos and sin of the action rows.
        alone: the same in layers in which they see the prefix alone.
        mask_TK, mask_CK, mask_JK: added to the scores of the prefix, of the actions behind a
            cached prefix, and of both together; ``[rows · H / G, K]``.
    """

    state: int | None
    prefix: int
    semantic: Angles
    expert: Angles
    actions: Angles
    alone: Angles
    mask_TK: Mask
    mask_CK: Mask
    mask_JK: Mask


def make_plan(work: Workload, dtype: torch.dtype, device: str) -> Plan:
    """The plan of a workload from the layouts that the network itself uses."""
    config, mot, call = work.config, work.config.mot, work.call(0)
    layout, tokens = call.batch.layout, work.shape.prefix
    one = action_layout(config, call.batch.cu_prefix[:2], torch.zeros(1, dtype=torch.int64))
    state = int(layout.action_rows[0]) if len(layout.action_rows) else None
    positions = torch.cat([layout.positions[:tokens], one.positions.repeat(work.candidates)])
    cos, sin = (one.to(device) for one in rotary(positions, mot.head_dim, mot.rope_theta))
    table = (cos[:, None], sin[:, None])
    rows = torch.arange(tokens)
    behind = torch.arange(tokens, len(positions))
    places = torch.arange(config.chunk).repeat(work.candidates)
    alone = [one[:, None].to(device) for one in rotary(places, mot.head_dim, mot.rope_theta)]
    own = one.who.kv_end - tokens
    seen_TT = rows < layout.who.kv_end[:tokens, None]
    block = torch.arange(config.chunk) < own[:, None]
    seen_CC = torch.block_diag(*[block] * work.candidates).bool()
    seen_CK = torch.cat([torch.ones(len(seen_CC), tokens).bool(), seen_CC], dim=1)
    none = torch.zeros(tokens, len(behind)).bool()
    seen_JK = torch.cat([torch.cat([seen_TT, none], dim=1), seen_CK])
    group = mot.q_heads // mot.kv_heads

    def mask(seen: Tensor) -> Mask:
        return mask_of(seen, group, dtype, device)

    def take(index: Tensor) -> Angles:
        return table[0][index.to(device)], table[1][index.to(device)]

    return Plan(
        state=state,
        prefix=tokens,
        semantic=take(rows if state is None else rows[rows != state]),
        expert=take(behind if state is None else torch.cat([rows[state : state + 1], behind])),
        actions=take(behind),
        alone=(alone[0], alone[1]),
        mask_TK=mask(seen_TT),
        mask_CK=mask(seen_CK),
        mask_JK=mask(seen_JK),
    )


class TorchModel(nn.Module):
    """The network over dense batches of equal prefixes.

    Attributes:
        attend: how it attends.
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
        attend: Attend = by_products,
    ) -> None:
        super().__init__()
        self.config, self.dtype, self.attend = config, dtype, attend
        mot, last = config.mot, config.mot.layers - 1

        def block(i: int) -> Block:
            return Block(config.vision, get, f"vision.blocks.{i}", dtype, attend)

        def semantic(i: int) -> Layer:
            return Layer(mot, get, f"mot.semantic.layers.{i}", dtype, rest=i < last)

        def action(i: int) -> Layer:
            name, crosses = f"mot.action.layers.{i}", mot.crosses(i)
            kind = {"crosses": crosses, "adaptive": mot.action.adaptive}
            return Layer(mot, get, name, dtype, rest=True, **kind)

        self.action = nn.ModuleList(action(i) for i in range(mot.layers))
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
        self.final = product("vision.final_norm") if vision.final_norm else None
        linear = vision.connector == "linear"
        parts = [""] if linear else [".0", ".1", ".3"]
        self.connector = nn.ModuleList(product(f"vision.connector{i}") for i in parts)
        table = get("embed_tokens.weight").to(dtype)
        self.table = nn.Parameter(table, requires_grad=False) if keep else table
        both = ["state_encoder.0", "state_encoder.2"]
        parts = ["state_encoder"] if config.state_encoder == "linear" else both
        parts = [] if config.state == "words" else parts
        self.state = nn.ModuleList(map(product, parts))
        self.enter, rows = entrance(config, read, dtype)
        self.times = nn.Parameter(rows.to(dtype), requires_grad=False)
        plain = config.action_encoder == "plain"
        self.mix = nn.Identity() if plain else product("action_encoder.w3")
        norm = 1 if config.mot.action.adaptive else read("mot.action.norm.weight")
        linear = config.action_decoder == "linear"
        first = "action_decoder" if linear else "action_decoder.0"
        leave = [Product(read(f"{first}.weight") * norm, read(f"{first}.bias"), dtype)]
        self.leave = nn.ModuleList(leave if linear else [*leave, product("action_decoder.2")])

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
        if self.final is not None:
            x = F.layer_norm(x, (x.shape[-1],), self.final.weight, self.final.bias, vision.eps)
        x = pixel_shuffle(x[:, 1:] if self.first is not None else x, vision.pixel_shuffle)
        if vision.connector == "linear":
            return self.connector[0](x)
        norm, up, out = self.connector
        assert isinstance(norm, Product)
        x = F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, vision.eps)
        return out(F.gelu(up(x)))

    def embed(self, batch: Batch, views_VKM: Tensor) -> tuple[Tensor, Tensor]:
        """Semantic rows ``[R, S, M]`` and the action expert's states ``[R, 1, M]`` or none."""
        text = F.embedding(batch.tokens_L.to(views_VKM.device), self.table)
        state = batch.state_RS.to(views_VKM.device, self.dtype)
        observations, owner = len(state), self.config.state
        if owner != "words":
            first, *last = self.state
            state = last[0](F.relu(first(state))) if last else first(state)
        sources = [text, views_VKM.flatten(0, 1), *([state] if owner == "semantic" else [])]
        rows = torch.cat(sources)
        rows = rows.index_select(0, batch.semantic_order.to(rows.device))
        none = rows.new_zeros(observations, 0, self.config.mot.action.hidden)
        states = state[:, None] if owner == "action" else none
        return rows.unflatten(0, (observations, -1)), states

    def prefix(self, semantic: Tensor, state: Tensor, plan: Plan) -> list[Tensor]:
        """Keys and then values of every layer, ``[R, T, G, D]``."""
        made = []
        at, mot = plan.state, self.config.mot
        state_angles = (plan.expert[0][:1], plan.expert[1][:1])
        for i, (trunk, expert) in enumerate(zip(self.semantic, self.action, strict=True)):
            assert isinstance(expert, Layer)
            joint, v = trunk.project(semantic, plan.semantic)
            last = i == mot.layers - 1
            if at is not None:
                own = expert.project(state, state_angles)
                joint, v = joined((joint, v), own, at, keys_only=last)
            keys = joint[:, :, -trunk.groups :]
            made += expert.of(keys, v) if mot.crosses(i) else (keys, v)
            if last:
                break
            out = self._attention(joint, by_group(keys), by_group(v), plan.mask_TK)
            if at is not None:
                state = expert.advance(state, out[:, at : at + 1])
                out = torch.cat([out[:, :at], out[:, at + 1 :]], dim=1)
            semantic = trunk.advance(semantic, out)
        return made

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None) -> Tensor:
        """``[R, Q, H · D]`` of ``q [R, Q, H + .., D]`` and keys and values ``[R · G, K, D]``."""
        heads, groups = self.config.mot.q_heads, self.config.mot.kv_heads
        q = q[:, :, :heads].unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)
        out = self.attend(q.flatten(0, 1), k, v, mask).unflatten(0, (-1, groups))
        return out.permute(0, 3, 1, 2, 4).flatten(2)

    def cache(self, plan: Plan, observations: int, device: str) -> Cache:
        """Room for the keys and values of prefixes and of the actions behind them."""
        mot = self.config.mot
        tokens = plan.mask_CK.added.shape[1]
        shape = (observations * mot.kv_heads, tokens, mot.head_dim)
        return [torch.zeros(shape, dtype=self.dtype, device=device) for _ in range(2 * mot.layers)]

    def fill(self, cache: Cache, made: Sequence[Tensor]) -> None:
        """Puts what :meth:`prefix` made in front of the actions."""
        for room, one in zip(cache, made, strict=True):
            room[:, : one.shape[1]] = by_group(one)

    def velocity(self, x_RCA: Tensor, time_M: Tensor, cache: Cache, plan: Plan) -> Tensor:
        """dx/dτ behind a filled cache, whose end it overwrites.

        Args:
            time_M: the row of :attr:`times` of this evaluation; with adaptive norms scale, shift
                and gate of each, ``[norms, 3, M]``.
        """

        def keys_values(i: int, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
            k_room, v_room = cache[2 * i], cache[2 * i + 1]
            if k is None or v is None:
                return k_room[:, : plan.prefix], v_room[:, : plan.prefix]
            k_room[:, plan.prefix :], v_room[:, plan.prefix :] = k, v
            return k_room, v_room

        return self._actions(x_RCA, time_M, plan, keys_values)

    def velocity_behind(
        self, x_RCA: Tensor, time_M: Tensor, made: Sequence[Tensor], plan: Plan
    ) -> Tensor:
        """The same behind keys and values ``[R · G, T, D]`` that stay as they are."""

        def keys_values(i: int, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
            if k is None or v is None:
                return made[2 * i], made[2 * i + 1]
            return torch.cat([made[2 * i], k], dim=1), torch.cat([made[2 * i + 1], v], dim=1)

        return self._actions(x_RCA, time_M, plan, keys_values)

    def _actions(
        self,
        x_RCA: Tensor,
        time_M: Tensor,
        plan: Plan,
        keys_values: Callable[[int, Tensor | None, Tensor | None], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """dx/dτ; ``keys_values`` puts a layer's own keys and values behind the prefix's."""
        h = self._tokens(x_RCA, time_M)
        for i, layer in enumerate(self.action):
            assert isinstance(layer, Layer)
            times = self._times_of(time_M, i)
            if self.config.mot.crosses(i):
                h = self._crossed(layer, h, times, keys_values(i, None, None), plan)
                continue
            joint, v = layer.project(h, plan.actions, times and times[0])
            k, v = keys_values(i, by_group(joint[:, :, layer.heads :]), by_group(v))
            h = layer.advance(h, self._attention(joint, k, v, plan.mask_CK), times)
        return self._out(h, time_M)

    def _tokens(self, x_RCA: Tensor, time_M: Tensor) -> Tensor:
        entered = self.enter(x_RCA.to(self.dtype))
        if self.config.action_encoder == "plain":
            return entered
        return self.mix(F.silu(entered + time_M))

    def _times_of(self, time_M: Tensor, layer: int) -> tuple[Tensor, Tensor] | None:
        """Scale, shift and gate of a layer's adaptive norms."""
        if not self.config.mot.action.adaptive:
            return None
        return time_M[2 * layer], time_M[2 * layer + 1]

    def _crossed(
        self,
        layer: Layer,
        h: Tensor,
        times: tuple[Tensor, Tensor] | None,
        seen: tuple[Tensor, Tensor],
        plan: Plan,
    ) -> Tensor:
        """A layer in which the actions see the prefix alone."""
        q = layer.queries(h, plan.alone, times and times[0])
        return layer.advance(h, self._attention(q, *seen, None), times)

    def uncached(
        self, semantic: Tensor, state: Tensor, x_RCA: Tensor, time_M: Tensor, plan: Plan
    ) -> Tensor:
        """dx/dτ from one pass over whole documents."""
        rows = torch.cat([state, self._tokens(x_RCA, time_M)], dim=1)
        heads, groups, at = self.config.mot.q_heads, self.config.mot.kv_heads, plan.state
        first = state.shape[1]  # of the actions among the rows
        for i, (trunk, expert) in enumerate(zip(self.semantic, self.action, strict=True)):
            assert isinstance(expert, Layer)
            last = i == self.config.mot.layers - 1
            times = self._times_of(time_M, i)
            seen = trunk.project(semantic, plan.semantic)
            if self.config.mot.crosses(i):
                keys = seen[0][:, :, -groups:]
                made = [by_group(one) for one in expert.of(keys, seen[1])]
                rows = self._crossed(expert, rows, times, (made[0], made[1]), plan)
                if not last:
                    own = (by_group(keys), by_group(seen[1]))
                    out = self._attention(seen[0], *own, plan.mask_TK)
                    semantic = trunk.advance(semantic, out)
                continue
            own, v = expert.project(rows, plan.expert, times and times[0])
            joint, v = joined(seen, (own, v), at, keys_only=last)
            k, v = by_group(joint[:, :, -groups:]), by_group(v)
            if last:
                out = self._attention(own[:, first:, :heads], k, v, plan.mask_CK)
                rows = expert.advance(rows[:, first:], out, times)
                continue
            out = self._attention(joint, k, v, plan.mask_JK)
            end = plan.prefix
            prefix = out[:, :end]
            if at is not None:
                prefix = torch.cat([out[:, :at], out[:, at + 1 : end]], dim=1)
                out = torch.cat([out[:, at : at + 1], out[:, end:]], dim=1)
            else:
                out = out[:, end:]
            semantic = trunk.advance(semantic, prefix)
            rows = expert.advance(rows, out, times)
        return self._out(rows, time_M)

    def _out(self, h: Tensor, time_M: Tensor) -> Tensor:
        adaptive = self.config.mot.action.adaptive
        h = normed(h, self.config.mot.norm_eps, time_M[-1] if adaptive else None)
        first, *last = self.leave
        return (last[0](F.relu(first(h))) if last else first(h)).float()
