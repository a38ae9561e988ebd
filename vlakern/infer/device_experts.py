"""The layers of both experts on fixed memory, for streams of one or of both.

Dimension letters: E rows of the semantic expert, R observations, J joint rows, M positions of all
chunks, B rows of a table of modulations, G key-value heads, D head dim.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from vlakern.infer.device_buffers import PARTS, DeviceBuffers
from vlakern.infer.device_calls import Calls
from vlakern.infer.graph import Run
from vlakern.infer.packing import position_table
from vlakern.models.config import VLAConfig
from vlakern.ops.linear.with_norm import Adaptive
from vlakern.ops.qkv_prep import qkv_prep_out

__all__ = ["Experts", "Modulations", "Stream", "gather"]


def gather(table: Tensor, rows: Tensor, out: Tensor) -> Run:
    """``out[i] = table[rows[i]]``."""
    run = partial(torch.index_select, table, 0, rows, out=out)
    run()
    return run


@dataclass(frozen=True)
class Modulations:
    """What flow time makes of a stream's norms.

    Attributes:
        table: fp32 ``[B, norms, 3, width]``, scale, shift and gate of each norm, see
            ``modulation_table``.
        group: int32, the table's row for each row of the stream.
        added: room for what a gate multiplies.
    """

    table: Tensor
    group: Tensor
    added: Tensor

    def of(self, norm: int) -> Adaptive:
        """The norm of that place; what comes before it is gated as the norm before says."""
        scale, shift = self.table[:, norm, 0], self.table[:, norm, 1]
        gate = self.table[:, max(norm - 1, 0), 2]
        return Adaptive(scale, shift, gate, self.group, self.added)


@dataclass(frozen=True)
class Stream:
    """One expert's rows of one call.

    Attributes:
        first: its first row of q and out, where the experts' rows lie end to end.
        at: int32 ``[rows]``, the joint row of each.
        cos, sin: ``[J, D / 2]`` fp32, of the joint rows.
        times: of adaptive norms.
    """

    expert: str
    x: Tensor
    normed: Tensor
    qkv: Tensor
    hidden: Tensor
    first: int
    at: Tensor
    cos: Tensor
    sin: Tensor
    times: Modulations | None = None

    def adaptive(self, norm: int) -> Adaptive | None:
        return None if self.times is None else self.times.of(norm)


class Experts:
    """The layers, for streams of one or of both experts."""

    def __init__(self, calls: Calls, buffers: DeviceBuffers, positions: int) -> None:
        self.calls, self.b = calls, buffers
        self.config: VLAConfig = calls.model.config
        tables = position_table(self.config, positions)
        self.angle_tables = tuple(one.to(calls.model.device) for one in tables)

    def stream(self, expert: str, rows: int, first: int, at: Tensor, joint: int) -> Stream:
        """The first ``rows`` rows of an expert's memory, among ``joint`` joint ones."""
        memory = getattr(self.b, expert)
        x, normed, qkv, hidden = (memory[part][:rows] for part in PARTS)
        angles = (self.b.cos[:joint], self.b.sin[:joint])
        return Stream(expert, x, normed, qkv, hidden, first, at[:rows], *angles)

    def angles(self, positions: Tensor) -> list[Run]:
        """Rows of the rotary tables to the joint rows."""
        to = (self.b.cos, self.b.sin)
        count = len(positions)
        pairs = zip(self.angle_tables, to, strict=True)
        return [gather(table, positions, out[:count]) for table, out in pairs]

    def heads(self, pair: Tensor, rows: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values ``[rows, G, D]`` of ``[2, J, G · D]``."""
        mot = self.config.mot
        k, v = (one[:rows].unflatten(1, (mot.kv_heads, mot.head_dim)) for one in pair)
        return k, v

    def norm(self, stream: Stream) -> Run:
        """The first norm of a pass."""
        adaptive, eps = stream.adaptive(0), self.config.mot.norm_eps
        if adaptive is not None:
            return self.calls.adapted(stream.x, stream.normed, eps, adaptive, first=True)
        return self.calls.norm(stream.x, stream.normed, "rms", eps, f"{stream.expert}.0.input_norm")

    def qkv(
        self, layer: int, stream: Stream, k: Tensor, v: Tensor, part: Literal["qkv", "kv", "q"]
    ) -> list[Run]:
        """The projections of normed rows, q to its rows, k and v to their joint ones.

        What is not in ``part`` is made of what its columns held; nobody reads it.
        """
        mot, name = self.config.mot, f"{stream.expert}.{layer}"
        tensors, rows = self.calls.model.tensors, len(stream.x)
        q_width = mot.q_heads * mot.head_dim
        columns = {"qkv": slice(None), "kv": slice(q_width, None), "q": slice(q_width)}[part]
        product = self.calls.linear(f"{name}.{part}", stream.normed, stream.qkv[:, columns])
        prepared = qkv_prep_out(
            [stream.qkv],
            tensors.get(f"{name}.q_norm"),
            tensors.get(f"{name}.k_norm"),
            stream.cos,
            stream.sin,
            stream.at,
            q_out=self.b.q[stream.first : stream.first + rows],
            k_out=k,
            v_out=v,
            heads=mot.q_heads,
            groups=mot.kv_heads,
            eps=mot.norm_eps,
            backend=self.calls.backend,
        )
        return [product, prepared]

    def crossed(self, layer: int, rows: int) -> list[Run]:
        """The keys and values of a layer in which actions see the prefix alone, as the action
        expert projects them once more."""
        return [
            self.calls.linear(f"action.{layer}.cross_{name}", seen[:rows], to[:rows])
            for name, seen, to in zip("kv", self.b.cross, self.b.kv[layer], strict=True)
        ]

    def rest(self, layer: int, stream: Stream) -> list[Run]:
        """Output projection and MLP, added to the stream, which ends normed for what follows."""
        name, s = f"{stream.expert}.{layer}", stream
        out = self.b.out[s.first : s.first + len(s.x)].flatten(1)
        added = self.calls.added(
            f"{name}.o", out, s.x, s.normed, s.adaptive(2 * layer + 1), f"{name}.post_norm"
        )
        last = layer == self.config.mot.layers - 1
        following = f"{s.expert}.norm" if last else f"{s.expert}.{layer + 1}.input_norm"
        adaptive = s.adaptive(2 * layer + 2)
        return [added, *self.calls.mlp(name, s.x, s.normed, s.hidden, adaptive, following)]
