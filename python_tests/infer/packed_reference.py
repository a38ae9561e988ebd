"""What the CPU engine computes, dull and slow: packed weights through the ops' references.

With ``wide`` fp64 nothing is rounded but the activations that int8 products quantise; with fp32 the
roundings are the engine's own. Letters: V views, T prefix tokens, N chunks, H positions, A slots.
"""

import torch
from torch import Tensor

from vlakern.flow.solver import SOLVERS, Frozen
from vlakern.infer.packing import PackedModel, position_table, time_table
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

    def norm(self, x: Tensor, kind: str, eps: float) -> Tensor:
        return norm_reference(x, kind=kind, eps=eps)[0]

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
        kept = stream.unflatten(0, (-1, rows))[:, int(config.class_token) :]
        joined = pixel_shuffle(kept, config.pixel_shuffle).flatten(0, 1)
        hidden = self.linear(
            "connector.0", self.norm(joined, "layer", config.eps), activation="gelu_erf"
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
        qkv = self.linear(f"{name}.qkv", self.norm(x, "layer", config.eps))
        q, k, v = qkv.unflatten(1, (3, config.heads, -1)).unbind(1)
        cu = torch.arange(0, len(x) + 1, rows)
        who = KvEnd(cu, cu, torch.full((len(x),), rows))
        out = shared_attention_reference(q, k, v, who)[0].flatten(1)
        x = self.linear(f"{name}.proj", out, residual=x, out=self.wide)
        hidden = self.linear(
            f"{name}.fc1", self.norm(x, "layer", config.eps), activation="gelu_erf"
        )
        return self.linear(f"{name}.fc2", hidden, residual=x, out=self.wide)

    def prefix(self, batch: Batch, image_tokens: Tensor) -> Tensor:
        """Keys and values ``[layers, 2, T, G · D]``."""
        mot, layout = self.model.config.mot, batch.layout
        text = self.model.tensors["embed"][batch.tokens_L].to(self.wide)
        streams = {"semantic": torch.cat([text, image_tokens])[batch.semantic_order]}
        hidden = self.linear("state.0", batch.state_RS.to(self.wide), activation="relu")
        streams["action"] = self.linear("state.1", hidden, out=self.wide)
        rows = (layout.semantic_rows, layout.action_rows)
        order = torch.cat(rows).argsort()
        made = []
        for i in range(mot.layers):
            last = i == mot.layers - 1
            q, k, v = self._qkv(i, streams, rows, layout.positions, kv_only=last)
            made.append(torch.stack([k.flatten(1), v.flatten(1)]))
            if last:
                break
            out = shared_attention_reference(q, k, v, layout.who, rows=order)[0].flatten(1)
            parts = out.split([len(x) for x in streams.values()])
            for (expert, x), part in zip(list(streams.items()), parts, strict=True):
                streams[expert] = self._rest(f"{expert}.{i}", x, part)
        return torch.stack(made)

    def _qkv(
        self,
        layer: int,
        streams: dict[str, Tensor],
        rows: tuple[Tensor, ...],
        positions: Tensor,
        kv_only: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mot, tensors = self.model.config.mot, self.model.tensors
        parts = []
        for expert, x in streams.items():
            # Of the last layer keys and values alone count: the engine multiplies no queries there.
            name = f"{expert}.{layer}.{'kv' if kv_only else 'qkv'}"
            qkv = self.linear(name, self.norm(x, "rms", mot.norm_eps))
            none = qkv.new_zeros(len(qkv), mot.q_heads * mot.head_dim if kv_only else 0)
            parts.append(torch.cat([none, qkv], 1))
        cos, sin = position_table(self.model.config, int(positions.max()) + 1)
        return qkv_prep_reference(
            parts,
            [tensors[f"{expert}.{layer}.q_norm"] for expert in streams],
            [tensors[f"{expert}.{layer}.k_norm"] for expert in streams],
            cos[positions].to(self.wide),
            sin[positions].to(self.wide),
            rows,
            heads=mot.q_heads,
            groups=mot.kv_heads,
            eps=mot.norm_eps,
        )

    def _rest(self, name: str, x: Tensor, attention: Tensor) -> Tensor:
        eps = self.model.config.mot.norm_eps
        x = self.linear(f"{name}.o", attention, residual=x, out=self.wide)
        hidden = self.linear(f"{name}.gate_up", self.norm(x, "rms", eps), activation="silu_gate")
        return self.linear(f"{name}.down", hidden, residual=x, out=self.wide)

    def velocity(
        self,
        x_NHA: Tensor,
        kv: Tensor,
        cu_prefix: Tensor,
        prefix_index: Tensor,
        times_NHM: Tensor,
    ) -> Tensor:
        """dx/dτ; ``times_NHM`` are each position's row of the time table."""
        config, mot = self.model.config, self.model.config.mot
        layout = action_layout(config, cu_prefix.long(), prefix_index.long())
        stream = self._embed(x_NHA.flatten(0, 1), times_NHM.flatten(0, 1).to(self.wide))
        heads = (mot.kv_heads, mot.head_dim)
        for i in range(mot.layers):
            q, k, v = self._qkv(i, {"action": stream}, (layout.action_rows,), layout.positions)
            cached = [one[: int(cu_prefix[-1])].unflatten(-1, heads) for one in kv[i]]
            out = shared_attention_reference(q, k, v, layout.who, *cached)[0]
            stream = self._rest(f"action.{i}", stream, out.flatten(1))
        normed = self.norm(stream, "rms", mot.norm_eps)
        hidden = self.linear("action_out.first", normed, activation="relu")
        made = self.linear("action_out.last", hidden, out=self.wide)
        return made.unflatten(0, x_NHA.shape[:2])

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
        table, done = time_table(self.model, steps, solver), _done(x_NHA, frozen)
        made = []
        for row in table[:-1]:
            times = torch.where(done[..., None], table[-1], row)
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
        table = time_table(self.model, steps, solver)
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
                times = torch.where(done[..., None], table[-1], table[evaluation])
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
