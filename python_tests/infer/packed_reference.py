"""What the CPU engine computes, dull and slow: packed weights through the ops' references.

With ``wide`` fp64 nothing is rounded but the activations that int8 products quantise; with fp32 the
roundings are the engine's own. Letters: V views, T prefix tokens, N chunks, H positions, A slots.
"""

import torch
from torch import Tensor

from vlakern.flow.solver import SOLVERS, Frozen
from vlakern.infer.packing import PackedModel, modulation_table, position_table, time_table
from vlakern.models.mot import Layout
from vlakern.models.sequence import Batch, action_layout
from vlakern.models.vision import pixel_shuffle
from vlakern.ops.linear.reference import linear_reference
from vlakern.ops.norm.reference import norm_reference
from vlakern.ops.ode_step import ode_step
from vlakern.ops.qkv_prep.reference import qkv_prep_reference
from vlakern.ops.shared_attention import KvEnd
from vlakern.ops.shared_attention.reference import shared_attention_reference

__all__ = ["PackedReference"]


class PackedReference:
    """Vision, prefix and velocity of packed weights.

    Attributes:
        wide: precision of the residual stream and of sums.
        passes: dtype of what passes between products.
    """

    def __init__(self, model: PackedModel, wide: torch.dtype) -> None:
        self.model = model
        self.wide = wide
        self.passes = wide if wide == torch.float64 else model.activation_dtype

    def linear(
        self,
        name: str,
        x: Tensor,
        *,
        activation: str = "none",
        residual: Tensor | None = None,
        bias: Tensor | None = None,
        out: torch.dtype | None = None,
    ) -> Tensor:
        """One product; an exact one rounds its input only where int8 makes integers of it."""
        packed = self.model.matrices[name]
        weight, scale, own = packed.unpack()
        rounds = packed.kind == "int8" or self.wide != torch.float64
        return linear_reference(
            x,
            weight,
            kind=packed.kind if rounds else None,
            w_scale=scale,
            bias=own if bias is None else bias,
            activation=activation,
            residual=residual,
            out_dtype=out or self.passes,
            compute=self.wide,
        )

    def norm(self, x: Tensor, kind: str, eps: float, name: str) -> Tensor:
        """With the weight of that name, if it is not folded."""
        return norm_reference(x, self.model.tensors.get(name), kind=kind, eps=eps)[0]

    def vision(self, pixels_V3SS: Tensor) -> Tensor:
        """Image tokens ``[V · K, M]``."""
        config = self.model.config.vision
        x = pixels_V3SS.to(self.passes)
        for i, width in enumerate(config.stem):
            windows = torch.nn.functional.unfold(x.double(), 3, stride=2, padding=1)
            side = x.shape[-1] // 2
            rows = (
                windows.unflatten(1, (x.shape[1], 9)).permute(0, 3, 2, 1).flatten(2).flatten(0, 1)
            )
            made = self.linear(f"vision.stem.{i}", rows.to(self.passes), activation="relu")
            x = made.view(len(x), side, side, width).permute(0, 3, 1, 2)
        place = self.model.tensors["vision.place"].to(self.wide)
        streams = [self._view(one, place) for one in x]
        stream, rows = torch.cat(streams), len(place)
        for i in range(config.layers):
            stream = self._block(f"vision.{i}", stream, rows)
        if config.final_norm:
            stream = self.norm(stream, "layer", config.eps, "vision.final_norm")
        kept = stream.unflatten(0, (-1, rows))[:, int(config.class_token) :]
        joined = pixel_shuffle(kept, config.pixel_shuffle).flatten(0, 1)
        if config.connector == "linear":
            return self.linear("connector.0", joined, out=self.wide)
        hidden = self.linear(
            "connector.0",
            self.norm(joined, "layer", config.eps, "connector.norm"),
            activation="gelu_erf",
        )
        return self.linear("connector.1", hidden, out=self.wide)

    def _view(self, plane_CSS: Tensor, place: Tensor) -> Tensor:
        config = self.model.config.vision
        side = config.patch_size // 2 ** len(config.stem)
        rows = torch.nn.functional.unfold(plane_CSS[None].double(), side, stride=side)[0].T
        if config.stem:
            rows = rows.unflatten(1, (len(plane_CSS), -1)).transpose(1, 2).flatten(1)
        first = int(config.class_token)
        patches = self.linear(
            "vision.patch", rows.to(self.passes), residual=place[first:], out=self.wide
        )
        return torch.cat([place[:first], patches])

    def _block(self, name: str, x: Tensor, rows: int) -> Tensor:
        config = self.model.config.vision
        qkv = self.linear(f"{name}.qkv", self.norm(x, "layer", config.eps, f"{name}.norm1"))
        q, k, v = qkv.unflatten(1, (3, config.heads, -1)).unbind(1)
        cu = torch.arange(0, len(x) + 1, rows)
        who = KvEnd(cu, cu, torch.full((len(x),), rows))
        out = shared_attention_reference(q, k, v, who)[0].flatten(1)
        x = self.linear(f"{name}.proj", out, residual=x, out=self.wide)
        gelu = "gelu_tanh" if config.activation == "gelu_tanh" else "gelu_erf"
        normed = self.norm(x, "layer", config.eps, f"{name}.norm2")
        hidden = self.linear(f"{name}.fc1", normed, activation=gelu)
        return self.linear(f"{name}.fc2", hidden, residual=x, out=self.wide)

    def prefix(self, batch: Batch, image_tokens: Tensor) -> Tensor:
        """Keys and values ``[layers, 2, T, G · D]``."""
        config, mot, layout = self.model.config, self.model.config.mot, batch.layout
        text = self.model.tensors["embed"][batch.tokens_L].to(self.wide)
        tokens, states = [text, image_tokens], self._states(batch)
        if config.state == "semantic":
            tokens.append(states)
        streams = {"semantic": torch.cat(tokens)[batch.semantic_order]}
        rows = {"semantic": layout.semantic_rows}
        if config.state == "action":
            streams["action"], rows["action"] = states, layout.action_rows
        owned = tuple(rows.values())
        order = torch.cat(owned).argsort()
        made = []
        for i in range(mot.layers):
            last = i == mot.layers - 1
            q, k, v = self._qkv(i, streams, owned, layout.positions, kv_only=last)
            seen = [k.flatten(1), v.flatten(1)]
            if mot.crosses(i):
                pairs = zip(("cross_k", "cross_v"), seen, strict=True)
                seen = [self.linear(f"action.{i}.{name}", one) for name, one in pairs]
            made.append(torch.stack(seen))
            if last:
                break
            out = shared_attention_reference(q, k, v, layout.who, rows=order)[0].flatten(1)
            parts = out.split([len(x) for x in streams.values()])
            for (expert, x), part in zip(list(streams.items()), parts, strict=True):
                streams[expert] = self._rest(f"{expert}.{i}", x, part)
        return torch.stack(made)

    def _states(self, batch: Batch) -> Tensor:
        config, states = self.model.config, batch.state_RS.to(self.wide)
        if config.state == "words":
            return states
        if config.state_encoder == "linear":
            return self.linear("state.0", states, out=self.wide)
        hidden = self.linear("state.0", states, activation="relu")
        return self.linear("state.1", hidden, out=self.wide)

    def _qkv(
        self,
        layer: int,
        streams: dict[str, Tensor],
        rows: tuple[Tensor, ...],
        positions: Tensor,
        kv_only: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mot = self.model.config.mot
        parts = []
        for expert, x in streams.items():
            # Of the last layer keys and values alone count: the engine multiplies no queries there.
            name = f"{expert}.{layer}.{'kv' if kv_only else 'qkv'}"
            normed = self.norm(x, "rms", mot.norm_eps, f"{expert}.{layer}.input_norm")
            qkv = self.linear(name, normed)
            none = qkv.new_zeros(len(qkv), mot.q_heads * mot.head_dim if kv_only else 0)
            parts.append(torch.cat([none, qkv], 1))
        return self._prepared(parts, list(streams), layer, rows, positions)

    def _prepared(
        self,
        parts: list[Tensor],
        experts: list[str],
        layer: int,
        rows: tuple[Tensor, ...],
        positions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mot, tensors = self.model.config.mot, self.model.tensors
        cos, sin = position_table(self.model.config, int(positions.max()) + 1)
        normed = experts if mot.qk_norm else []
        return qkv_prep_reference(
            parts,
            [tensors[f"{expert}.{layer}.q_norm"] for expert in normed],
            [tensors[f"{expert}.{layer}.k_norm"] for expert in normed],
            cos[positions].to(self.wide),
            sin[positions].to(self.wide),
            rows,
            heads=mot.q_heads,
            groups=mot.kv_heads,
            eps=mot.norm_eps,
        )

    def _rest(self, name: str, x: Tensor, attention: Tensor) -> Tensor:
        x = self.linear(f"{name}.o", attention, residual=x, out=self.wide)
        eps = self.model.config.mot.norm_eps
        normed = self.norm(x, "rms", eps, f"{name}.post_norm")
        return self.linear(f"{name}.down", self._gated(name, normed), residual=x, out=self.wide)

    def _gated(self, name: str, normed: Tensor) -> Tensor:
        silu = self.model.config.mot.activation == "silu"
        gate = "silu_gate" if silu else "gelu_tanh_gate"
        return self.linear(f"{name}.gate_up", normed, activation=gate)

    def _attention(
        self, layer: int, normed: Tensor, kv: Tensor, layout: Layout, cached: int
    ) -> Tensor:
        """Of the actions after a prefix of ``cached`` rows."""
        mot, rows = self.model.config.mot, (layout.action_rows,)
        heads = (mot.kv_heads, mot.head_dim)
        seen = [one[:cached].unflatten(-1, heads) for one in kv[layer]]
        if not mot.crosses(layer):
            parts = [self.linear(f"action.{layer}.qkv", normed)]
            q, k, v = self._prepared(parts, ["action"], layer, rows, layout.positions)
            return shared_attention_reference(q, k, v, layout.who, *seen)[0].flatten(1)
        assert layout.alone is not None
        q = self.linear(f"action.{layer}.q", normed)
        none = q.new_zeros(len(q), 2 * mot.kv_heads * mot.head_dim)
        parts = [torch.cat([q, none], 1)]
        q, k, v = self._prepared(parts, ["action"], layer, rows, layout.alone.positions)
        own = (q, k[:0], v[:0])
        return shared_attention_reference(*own, layout.alone.who, *seen)[0].flatten(1)

    def velocity(
        self,
        x_NHA: Tensor,
        kv: Tensor,
        cu_prefix: Tensor,
        prefix_index: Tensor,
        times: Tensor,
    ) -> Tensor:
        """dx/dτ; ``times`` are each position's part of the time table ``[N, H, ...]``."""
        config, mot = self.model.config, self.model.config.mot
        layout = action_layout(config, cu_prefix.long(), prefix_index.long())
        x, cached = x_NHA.flatten(0, 1), int(cu_prefix[-1])
        times = times.flatten(0, 1).to(self.wide)
        if mot.action.adaptive:
            normed = self._adaptive(x, kv, layout, cached, times)
        else:
            stream = self._embed(x, times)
            for i in range(mot.layers):
                normed = self.norm(stream, "rms", mot.norm_eps, f"action.{i}.input_norm")
                out = self._attention(i, normed, kv, layout, cached)
                stream = self._rest(f"action.{i}", stream, out)
            normed = self.norm(stream, "rms", mot.norm_eps, "action.norm")
        if config.action_decoder == "mlp":
            normed = self.linear("action_out.first", normed, activation="relu")
        made = self.linear("action_out.last", normed, out=self.wide)
        return made.unflatten(0, x_NHA.shape[:2])

    def _adaptive(
        self, x: Tensor, kv: Tensor, layout: Layout, cached: int, times: Tensor
    ) -> Tensor:
        """Final-normed rows; ``times`` are scale, shift and gate of each row and norm."""
        eps, layers = self.model.config.mot.norm_eps, self.model.config.mot.layers
        stream = self.linear("action_in.first", x.to(self.wide), out=self.wide)

        def norm(i: int) -> Tensor:
            scale, shift, _ = times[:, i].unbind(1)
            return norm_reference(stream, kind="rms", scale=scale, shift=shift, eps=eps)[0]

        for i in range(layers):
            out = self._attention(i, norm(2 * i), kv, layout, cached)
            added = self.linear(f"action.{i}.o", out, out=self.wide)
            stream = stream + times[:, 2 * i, 2] * added
            hidden = self._gated(f"action.{i}", norm(2 * i + 1))
            added = self.linear(f"action.{i}.down", hidden, out=self.wide)
            stream = stream + times[:, 2 * i + 1, 2] * added
        return norm(2 * layers)

    def _time_table(self, steps: int, solver: str) -> Tensor:
        adaptive = self.model.config.mot.action.adaptive
        return (modulation_table if adaptive else time_table)(self.model, steps, solver)

    def velocities(
        self,
        x_NHA: Tensor,
        kv: Tensor,
        cu_prefix: Tensor,
        prefix_index: Tensor,
        steps: int,
        solver: str,
        frozen: Frozen | None = None,
    ) -> Tensor:
        """dx/dτ at one x and every time of a solver: ``[evaluations, N, H, A]``."""
        table, done = self._time_table(steps, solver), _done(x_NHA, frozen)
        made = []
        for row in table[:-1]:
            times = _of_position(done, table[-1], row)
            made.append(self.velocity(x_NHA, kv, cu_prefix, prefix_index, times))
        return torch.stack(made)

    def _embed(self, x: Tensor, times: Tensor) -> Tensor:
        first = self.linear("action_in.first", x.to(self.wide), out=self.wide) + times
        hidden = torch.nn.functional.silu(first).to(self.passes)
        return self.linear("action_in.last", hidden, out=self.wide)

    def integrate(
        self,
        noise_NHA: Tensor,
        kv: Tensor,
        cu_prefix: Tensor,
        prefix_index: Tensor,
        steps: int,
        solver: str,
        frozen: Frozen | None = None,
        slot_mask: Tensor | None = None,
    ) -> Tensor:
        """Actions ``[N, H, A]``."""
        table = self._time_table(steps, solver)
        x, done = noise_NHA.to(self.wide), _done(noise_NHA, frozen)
        action = length = None
        if frozen is not None:
            action, length = frozen.action_RHA.to(self.wide), frozen.length_R
            x = torch.where(done[..., None], action, x)
        tau, dtau = x.new_zeros(len(x)), x.new_full((len(x),), 1.0 / steps)
        evaluation = 0
        for _ in range(steps):
            stage_x, first = x, None
            for stage in SOLVERS[solver]:
                times = _of_position(done, table[-1], table[evaluation])
                v = self.velocity(stage_x, kv, cu_prefix, prefix_index, times)
                stage_x, _ = ode_step(
                    x,
                    v,
                    tau,
                    dtau,
                    stage=stage,
                    v0=first if stage == "heun" else None,
                    frozen=action,
                    frozen_len=length,
                    slot_mask=slot_mask,
                    backend="reference",
                )
                first, evaluation = v, evaluation + 1
            x = stage_x
        return x


def _done(x_NHA: Tensor, frozen: Frozen | None) -> Tensor:
    """Which positions are frozen, bool ``[N, H]``."""
    if frozen is None:
        return torch.zeros(x_NHA.shape[:2], dtype=torch.bool)
    return torch.arange(x_NHA.shape[1]) < frozen.length_R[:, None]


def _of_position(done_NH: Tensor, frozen: Tensor, free: Tensor) -> Tensor:
    """A part of the time table for every position."""
    return torch.where(done_NH.view(*done_NH.shape, *[1] * free.ndim), frozen, free)
