"""The programs of prefixes and of integration on fixed memory.

Dimension letters: E rows of the semantic expert, R observations, J = E + R joint rows, N chunks, H
positions of a chunk, M = N · H, A slots, G key-value heads, D head dim.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vlakern.flow.solver import SOLVERS
from vlakern.infer.device_buffers import PARTS, DeviceBuffers, Inbox
from vlakern.infer.device_calls import Attention, Calls
from vlakern.infer.device_loop import LoopChoice, bind_loop, chosen_loop
from vlakern.infer.graph import Run
from vlakern.infer.packing import position_table, time_table
from vlakern.models.config import VLAConfig
from vlakern.ops.action_embed import action_embed_out
from vlakern.ops.action_unembed import action_unembed_out
from vlakern.ops.ode_step import ode_step_out
from vlakern.ops.qkv_prep import qkv_prep_out
from vlakern.ops.shared_attention import KvEnd

__all__ = ["ActionStage", "Experts", "PrefixStage", "gather"]


def gather(table: Tensor, rows: Tensor, out: Tensor) -> Run:
    """``out[i] = table[rows[i]]``."""
    run = partial(torch.index_select, table, 0, rows, out=out)
    run()
    return run


@dataclass(frozen=True)
class Stream:
    """One expert's rows of one call.

    Attributes:
        first: its first row of q and out, where the experts' rows lie end to end.
        at: int32 ``[rows]``, the joint row of each.
    """

    expert: str
    x: Tensor
    normed: Tensor
    qkv: Tensor
    hidden: Tensor
    first: int
    at: Tensor


class Experts:
    """The layers, for streams of one or of both experts."""

    def __init__(self, calls: Calls, buffers: DeviceBuffers, positions: int) -> None:
        self.calls, self.b = calls, buffers
        self.config: VLAConfig = calls.model.config
        tables = position_table(self.config, positions)
        self.angle_tables = tuple(one.to(calls.model.device) for one in tables)

    def stream(self, expert: str, rows: int, first: int, at: Tensor) -> Stream:
        memory = getattr(self.b, expert)
        x, normed, qkv, hidden = (memory[part][:rows] for part in PARTS)
        return Stream(expert, x, normed, qkv, hidden, first, at[:rows])

    def angles(self, positions: Tensor) -> list[Run]:
        """Rows of the rotary tables to the joint rows."""
        to = (self.b.cos, self.b.sin)
        count = len(positions)
        pairs = zip(self.angle_tables, to, strict=True)
        return [gather(table, positions, out[:count]) for table, out in pairs]

    def norm(self, stream: Stream) -> Run:
        return self.calls.norm(stream.x, stream.normed, "rms", self.config.mot.norm_eps)

    def qkv(self, layer: int, stream: Stream, k: Tensor, v: Tensor, kv_only: bool) -> list[Run]:
        """The projections of normed rows, q to its rows, k and v to their joint ones."""
        mot, name = self.config.mot, f"{stream.expert}.{layer}"
        tensors, rows = self.calls.model.tensors, len(stream.x)
        q_width = mot.q_heads * mot.head_dim
        # Without queries the columns before hold what they held; nobody reads what becomes of it.
        part = ("kv", stream.qkv[:, q_width:]) if kv_only else ("qkv", stream.qkv)
        product = self.calls.linear(f"{name}.{part[0]}", stream.normed, part[1])
        prepared = qkv_prep_out(
            [stream.qkv],
            tensors[f"{name}.q_norm"],
            tensors[f"{name}.k_norm"],
            self.b.cos[: len(k)],
            self.b.sin[: len(k)],
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

    def rest(self, layer: int, stream: Stream) -> list[Run]:
        """Output projection and MLP, added to the stream, which ends normed for what follows."""
        name, s = f"{stream.expert}.{layer}", stream
        out = self.b.out[s.first : s.first + len(s.x)].flatten(1)
        added = self.calls.added(f"{name}.o", out, s.x, s.normed)
        return [added, *self.calls.mlp(name, s.x, s.normed, s.hidden)]


class PrefixStage:
    """From image tokens, words and states to keys and values."""

    def __init__(self, experts: Experts, inbox: Inbox) -> None:
        self._e, self._inbox = experts, inbox

    def program(self, tokens: int) -> list[Run]:
        """The calls for ``tokens`` semantic rows and the states of all observations."""
        e, inbox = self._e, self._inbox.device
        b, calls, mot = e.b, e.calls, e.config.mot
        states = len(inbox["state"])
        joint = tokens + states
        images = len(b.sources) - len(b.semantic["x"])
        table = calls.model.tensors["embed"]
        semantic = e.stream("semantic", tokens, 0, inbox["semantic_rows"])
        action = e.stream("action", states, tokens, inbox["action_rows"])
        runs = [
            gather(table, inbox["tokens"][:tokens], b.sources[images : images + tokens]),
            gather(b.sources, inbox["order"][:tokens], semantic.x),
            calls.linear("state.0", inbox["state"], b.state, "relu"),
            calls.linear("state.1", b.state, action.x),
            *e.angles(inbox["positions"][:joint]),
        ]
        streams = (semantic, action)
        runs += [e.norm(stream) for stream in streams]
        who = self._who(joint)
        for i in range(mot.layers):
            last = i == mot.layers - 1
            k, v = (b.kv[i, j, :joint].unflatten(1, (mot.kv_heads, mot.head_dim)) for j in (0, 1))
            for stream in streams:
                runs += e.qkv(i, stream, k, v, kv_only=last)
            if last:
                break
            order = inbox["joint_order"][:joint]
            runs.append(calls.attend(Attention(b.q[:joint], k, v, b.out[:joint], who, rows=order)))
            for stream in streams:
                runs += e.rest(i, stream)
        return runs

    def _who(self, joint: int) -> KvEnd:
        """Ranges that lie in the inbox: any documents of so many rows together."""
        inbox = self._inbox.device
        return KvEnd.trusted(
            cu_q=inbox["cu"],
            cu_k=inbox["cu"],
            kv_end=inbox["kv_end"][:joint],
            cu_prefix=None,
            prefix_index=None,
            max_q=joint,
            max_keys=joint,
            queries=joint,
            keys=joint,
            prefix_keys=0,
        )


class ActionStage:
    """From noise to actions: every step of the solver, one after the other."""

    def __init__(
        self,
        experts: Experts,
        inbox: Inbox,
        longest: int,
        steps: int,
        solver: str,
        loop: LoopChoice = "auto",
    ) -> None:
        """Tables.

        Args:
            longest: the most prefix tokens that one observation may have.
            loop: whether all steps are one kernel, see ``chosen_loop``.
        """
        self._e, self._inbox, self._longest = experts, inbox, longest
        self._steps, self._stages = steps, SOLVERS[solver]
        self._solver, self._loop = solver, loop
        device = experts.calls.model.device
        self._times = time_table(experts.calls.model, steps, solver).to(device)
        most = inbox.device["kv_end"].shape[0]
        self._rows = torch.arange(most, dtype=torch.int32, device=device)
        chunk = experts.config.chunk
        cu = torch.arange(most // chunk + 1, dtype=torch.int32) * chunk
        self._cu = cu.to(device)

    def program(self, rows: int) -> list[Run]:
        """The calls for so many chunks."""
        bind = chosen_loop(self._loop, self._e.calls.model, rows)
        if bind is not None:
            model = self._e.calls.model
            return [bind_loop(bind, model, self._inputs(rows), rows, self._steps, self._solver)]
        inbox, b = self._inbox.device, self._e.b
        count = rows * self._e.config.chunk
        start, x, stage_x = inbox["noise"][:rows], b.x[:rows], b.stage_x[:rows]
        stream = self._e.stream("action", count, 0, self._rows)
        runs = self._e.angles(inbox["positions"][:count])
        embed = {one: self._embed(one, stream) for one in (start, x, stage_x)}
        layers = self._layers(rows, stream)
        unembed = [self._unembed(stream, b.velocity[i, :rows]) for i in (0, 1)]
        evaluation = 0
        for k in range(self._steps):
            begin = at = x if k else start
            for i, stage in enumerate(self._stages):
                times = inbox["times"][evaluation, :count]
                runs += [gather(self._times, times, b.time[:count]), embed[at], *layers, unembed[i]]
                to = x if i == len(self._stages) - 1 else stage_x
                runs.append(self._step(stage, begin, to, i))
                at, evaluation = stage_x, evaluation + 1
        return runs

    def _inputs(self, rows: int) -> dict[str, Tensor]:
        """What one kernel reads and writes of the engine's memory."""
        inbox, count = self._inbox.device, rows * self._e.config.chunk
        chunks = ("noise", "frozen", "frozen_len", "slot_mask", "prefix_index")
        found = {name: inbox[name][:rows] for name in chunks}
        found |= {name: inbox[name][:count] for name in ("kv_end", "positions")}
        found |= {"times": inbox["times"][:, :count], "cu_prefix": inbox["cu_prefix"]}
        cos, sin = self._e.angle_tables
        found |= {"x": self._e.b.x[:rows], "kv": self._e.b.kv, "cos": cos, "sin": sin}
        return found | {"time_table": self._times}

    def _embed(self, x: Tensor, stream: Stream) -> Run:
        matrices, backend = self._e.calls.model.matrices, self._e.calls.backend
        first, last = matrices["action_in.first"], matrices["action_in.last"]
        time = self._e.b.time[: len(stream.x)]
        flat = x.flatten(0, 1)
        return action_embed_out(flat, first, time, last, out=stream.x, backend=backend)

    def _unembed(self, stream: Stream, velocity: Tensor) -> Run:
        matrices, backend = self._e.calls.model.matrices, self._e.calls.backend
        first, last = matrices["action_out.first"], matrices["action_out.last"]
        out = velocity.flatten(0, 1)
        return action_unembed_out(stream.normed, first, last, out=out, backend=backend)

    def _layers(self, rows: int, stream: Stream) -> list[Run]:
        """All layers of one evaluation; the same calls in every one."""
        e, b, mot = self._e, self._e.b, self._e.config.mot
        count = len(stream.x)
        k, v = b.own_k[:count], b.own_v[:count]
        who = self._who(rows)
        runs = [e.norm(stream)]
        for i in range(mot.layers):
            cached = (b.kv[i, j].unflatten(1, (mot.kv_heads, mot.head_dim)) for j in (0, 1))
            runs += e.qkv(i, stream, k, v, kv_only=False)
            attention = Attention(b.q[:count], k, v, b.out[:count], who, *cached)
            runs.append(e.calls.attend(attention))
            runs += e.rest(i, stream)
        return runs

    def _who(self, rows: int) -> KvEnd:
        inbox, chunk = self._inbox.device, self._e.config.chunk
        return KvEnd.trusted(
            cu_q=self._cu[: rows + 1],
            cu_k=self._cu[: rows + 1],
            kv_end=inbox["kv_end"][: rows * chunk],
            cu_prefix=inbox["cu_prefix"],
            prefix_index=inbox["prefix_index"][:rows],
            max_q=chunk,
            max_keys=self._longest + chunk,
            queries=rows * chunk,
            keys=rows * chunk,
            prefix_keys=self._e.b.kv.shape[2],
        )

    def _step(self, stage: str, x: Tensor, to: Tensor, i: int) -> Run:
        """The update from a step's start; ``i`` counts the stages of the step."""
        rows, inbox, b = len(x), self._inbox.device, self._e.b
        return ode_step_out(
            x,
            b.velocity[i, :rows],
            b.tau[:rows],
            b.dtau[:rows],
            x_out=to,
            tau_out=b.tau_next[:rows],
            stage=stage,
            v0=b.velocity[0, :rows] if stage == "heun" else None,
            frozen=inbox["frozen"][:rows],
            frozen_len=inbox["frozen_len"][:rows],
            slot_mask=inbox["slot_mask"][:rows],
            backend=self._e.calls.backend,
        )
