"""The programs of prefixes and of integration on fixed memory.

Dimension letters: E rows of the semantic expert, R observations, J = E + R joint rows, N chunks, H
positions of a chunk, M = N · H, A slots, G key-value heads, D head dim.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vlakern.flow.guidance import times_left
from vlakern.flow.solver import SOLVERS
from vlakern.infer.device_buffers import Inbox
from vlakern.infer.device_calls import Attention
from vlakern.infer.device_experts import Experts, Modulations, Stream, gather
from vlakern.infer.device_loop import NOT_LED, LoopChoice, bind_loop, chosen_loop
from vlakern.infer.graph import Run
from vlakern.infer.packing import modulation_table, time_table
from vlakern.ops.action_embed import action_embed_out
from vlakern.ops.action_unembed import action_unembed_out
from vlakern.ops.ode_step import Led, ode_step_out
from vlakern.ops.shared_attention import KvEnd

__all__ = ["ActionStage", "PrefixStage"]


class PrefixStage:
    """From image tokens, words and states to keys and values."""

    def __init__(self, experts: Experts, inbox: Inbox) -> None:
        self._e, self._inbox = experts, inbox

    def program(self, tokens: int) -> list[Run]:
        """The calls for ``tokens`` semantic rows and the states of all observations."""
        e, inbox = self._e, self._inbox.device
        b, layers = e.b, e.config.mot.layers
        states = len(inbox["action_rows"])
        joint = tokens + states
        streams = [e.stream("semantic", tokens, 0, inbox["semantic_rows"], joint)]
        if states:
            streams.append(e.stream("action", states, tokens, inbox["action_rows"], joint))
        runs = [*self._rows(streams), *e.angles(inbox["positions"][:joint])]
        runs += [e.norm(stream) for stream in streams]
        who = self._who(joint)
        for i in range(layers):
            crosses, last = e.config.mot.crosses(i), i == layers - 1
            k, v = e.heads(b.cross if crosses else b.kv[i], joint)
            for stream in streams:
                runs += e.qkv(i, stream, k, v, "kv" if last else "qkv")
            if crosses:
                runs += e.crossed(i, joint)
            if last:
                break
            order = inbox["joint_order"][:joint]
            attention = Attention(b.q[:joint], k, v, b.out[:joint], who, rows=order)
            runs.append(e.calls.attend(attention))
            for stream in streams:
                runs += e.rest(i, stream)
        return runs

    def _rows(self, streams: list[Stream]) -> list[Run]:
        """Words embedded, states encoded, and the semantic expert's rows in their order."""
        e, inbox, b = self._e, self._inbox.device, self._e.b
        semantic = streams[0].x
        tokens, words = len(semantic), len(inbox["tokens"])
        images = len(b.joined)
        table, text = e.calls.model.tensors["embed"], b.sources[images : images + tokens]
        runs = [gather(table, inbox["tokens"][:tokens], text)]
        if e.config.state != "words":
            own = e.config.state == "action"
            runs += self._states(streams[1].x if own else b.sources[images + words :])
        return [*runs, gather(b.sources, inbox["order"][:tokens], semantic)]

    def _states(self, to: Tensor) -> list[Run]:
        calls, state, hidden = self._e.calls, self._inbox.device["state"], self._e.b.state
        if self._e.config.state_encoder == "linear":
            return [calls.linear("state.0", state, to)]
        first = calls.linear("state.0", state, hidden, "relu")
        return [first, calls.linear("state.1", hidden, to)]

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
        led: Inbox,
        longest: int,
        steps: int,
        solver: str,
        loop: LoopChoice = "auto",
    ) -> None:
        """Tables.

        Args:
            inbox: what every integration brings.
            led: what one with guidance brings besides.
            longest: the most prefix tokens that one observation may have.
            loop: whether all steps are one kernel, see ``chosen_loop``.
        """
        self._e, self._inbox, self._led, self._longest = experts, inbox, led, longest
        self._steps, self._stages = steps, SOLVERS[solver]
        self._solver, self._loop = solver, loop
        device = experts.calls.model.device
        made = modulation_table if experts.config.mot.action.adaptive else time_table
        self._times = made(experts.calls.model, steps, solver).to(device)
        most = inbox.device["kv_end"].shape[0]
        self._rows = torch.arange(most, dtype=torch.int32, device=device)
        chunk = experts.config.chunk
        cu = torch.arange(most // chunk + 1, dtype=torch.int32) * chunk
        self._cu, self._no_keys = cu.to(device), torch.zeros_like(cu, device=device)
        # Where actions see the prefix alone their positions count from 0.
        places = torch.arange(chunk, device=device).repeat(most // chunk)
        self._alone = tuple(table[:chunk][places] for table in experts.angle_tables)

    def led_refusal(self, rows: int) -> str | None:
        """Why so many chunks are not led to decided actions, None if they are."""
        bind = chosen_loop(self._loop, self._e.calls.model, rows)
        return None if bind is None else NOT_LED

    def program(self, rows: int) -> list[Run]:
        """The calls for so many chunks."""
        bind = chosen_loop(self._loop, self._e.calls.model, rows)
        if bind is not None:
            model = self._e.calls.model
            return [bind_loop(bind, model, self._inputs(rows), rows, self._steps, self._solver)]
        inbox, b = self._inbox.device, self._e.b
        count = rows * self._e.config.chunk
        start, x, stage_x = inbox["noise"][:rows], b.x[:rows], b.stage_x[:rows]
        stream = self._stream(count)
        runs = self._e.angles(inbox["positions"][:count])
        embed = {one: self._embed(one, stream) for one in (start, x, stage_x)}
        layers = self._layers(rows, stream)
        unembed = [self._unembed(stream, b.velocity[i, :rows]) for i in (0, 1)]
        evaluation, left = 0, times_left(self._steps, self._solver)
        for k in range(self._steps):
            begin = at = x if k else start
            for i, stage in enumerate(self._stages):
                runs += [self._time(evaluation, count), embed[at], *layers, unembed[i]]
                to = x if i == len(self._stages) - 1 else stage_x
                runs.append(self._step(stage, begin, to, i, self._led_from(at, left[evaluation])))
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

    def _stream(self, count: int) -> Stream:
        b, stream = self._e.b, self._e.stream("action", count, 0, self._rows, count)
        if not self._e.config.mot.action.adaptive:
            return stream
        return replace(stream, times=Modulations(self._times, b.group[:count], b.added[:count]))

    def _time(self, evaluation: int, count: int) -> Run:
        """Flow time of one evaluation to where its layers read it."""
        b, times = self._e.b, self._inbox.device["times"][evaluation, :count]
        if self._e.config.mot.action.adaptive:
            return partial(b.group[:count].copy_, times)
        return gather(self._times, times, b.time[:count])

    def _embed(self, x: Tensor, stream: Stream) -> Run:
        matrices, backend = self._e.calls.model.matrices, self._e.calls.backend
        flat = x.flatten(0, 1)
        if self._e.config.action_encoder == "plain":
            return self._e.calls.linear("action_in.first", flat, stream.x)
        first, last = matrices["action_in.first"], matrices["action_in.last"]
        time = self._e.b.time[: len(stream.x)]
        return action_embed_out(flat, first, time, last, out=stream.x, backend=backend)

    def _unembed(self, stream: Stream, velocity: Tensor) -> Run:
        matrices, backend = self._e.calls.model.matrices, self._e.calls.backend
        out = velocity.flatten(0, 1)
        if self._e.config.action_decoder == "linear":
            return self._e.calls.linear("action_out.last", stream.normed, out)
        first, last = matrices["action_out.first"], matrices["action_out.last"]
        return action_unembed_out(stream.normed, first, last, out=out, backend=backend)

    def _layers(self, rows: int, stream: Stream) -> list[Run]:
        """All layers of one evaluation; the same calls in every one."""
        e, b, mot = self._e, self._e.b, self._e.config.mot
        count = len(stream.x)
        k, v = b.own_k[:count], b.own_v[:count]
        cos, sin = (one[:count] for one in self._alone)
        alone = replace(stream, cos=cos, sin=sin)
        whole = self._who(rows)
        crossing = self._who(rows, alone=True) if mot.cross_every else whole
        runs = [e.norm(stream)]
        for i in range(mot.layers):
            cached = e.heads(b.kv[i])
            if mot.crosses(i):
                runs += e.qkv(i, alone, k, v, "q")
                own, who = (k[:0], v[:0]), crossing
            else:
                runs += e.qkv(i, stream, k, v, "qkv")
                own, who = (k, v), whole
            runs.append(e.calls.attend(Attention(b.q[:count], *own, b.out[:count], who, *cached)))
            runs += e.rest(i, stream)
        return runs

    def _who(self, rows: int, alone: bool = False) -> KvEnd:
        """Ranges over a prefix and the chunk, or over a prefix alone."""
        inbox, chunk = self._inbox.device, self._e.config.chunk
        return KvEnd.trusted(
            cu_q=self._cu[: rows + 1],
            cu_k=(self._no_keys if alone else self._cu)[: rows + 1],
            kv_end=inbox["prefix_end" if alone else "kv_end"][: rows * chunk],
            cu_prefix=inbox["cu_prefix"],
            prefix_index=inbox["prefix_index"][:rows],
            max_q=chunk,
            max_keys=self._longest + (0 if alone else chunk),
            queries=rows * chunk,
            keys=0 if alone else rows * chunk,
            prefix_keys=self._e.b.kv.shape[2],
        )

    def _led_from(self, at: Tensor, left: float) -> Led | None:
        """Guidance of the velocity found at ``at``; at τ = 1 there is nothing left to correct."""
        if left <= 0:
            return None
        rows, sent = len(at), self._led.device
        most = self._inbox.device["most"][:rows]
        return Led(at, sent["decided"][:rows], sent["weights"][:rows], most, left)

    def _step(self, stage: str, x: Tensor, to: Tensor, i: int, led: Led | None) -> Run:
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
            led=led,
            backend=self._e.calls.backend,
        )
