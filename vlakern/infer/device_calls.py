"""Ops bound to packed weights and fixed memory: what the programs of a device engine consist of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlakern.infer.buckets import Ladders
from vlakern.infer.buffers import Limits, room
from vlakern.infer.graph import Run
from vlakern.infer.packing import PackedModel
from vlakern.ops.gated_mlp import gated_mlp_out, mlp_workspace_bytes
from vlakern.ops.linear import linear_out, workspace_bytes
from vlakern.ops.linear.reference import quantises
from vlakern.ops.linear.with_norm import Adaptive, linear_norm_out
from vlakern.ops.norm import norm_out
from vlakern.ops.shared_attention import KvEnd, attention_workspace_bytes, shared_attention_out

__all__ = ["Attention", "Calls", "calls_for"]

LEAST_WORKSPACE = 256
# A config's activations as the products call them.
GATES = {"silu": "silu_gate", "gelu_tanh": "gelu_tanh_gate"}
VISION = {"gelu": "gelu_erf", "gelu_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class Attention:
    """One attention's fixed memory: ``[rows, heads, D]`` and ``[rows, groups, D]``."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    who: KvEnd
    prefix_k: Tensor | None = None
    prefix_v: Tensor | None = None
    rows: Tensor | None = None


@dataclass(frozen=True)
class Calls:
    """Binds ops; every call runs once when it is bound, which compiles its kernels.

    Attributes:
        model: packed weights, on the device.
        backend: of the ops.
        workspace: uint8, that calls share since they run in turn; None where the backend has none.
        lse: fp32, where every attention leaves its log-sum-exp.
        parts: memory of attentions for which the workspace is too small; they share it as well.
    """

    model: PackedModel
    backend: str
    workspace: Tensor | None
    lse: Tensor
    parts: list[Tensor] = field(default_factory=list)

    @property
    def gate(self) -> str:
        """The activation of the experts' gated MLPs."""
        return GATES[self.model.config.mot.activation]

    @property
    def vision_activation(self) -> str:
        """That of the tower's MLPs."""
        return VISION[self.model.config.vision.activation]

    def linear(
        self,
        name: str,
        x: Tensor,
        out: Tensor,
        activation: str = "none",
        residual: Tensor | None = None,
    ) -> Run:
        """``out = act(x Wᵀ + b) + residual``."""
        return linear_out(
            x,
            self.model.matrices[name],
            out=out,
            activation=activation,
            residual=residual,
            workspace=self.workspace,
            backend=self.backend,
        )

    def added(
        self,
        name: str,
        x: Tensor,
        stream: Tensor,
        normed: Tensor,
        adaptive: Adaptive | None,
        following: str,
    ) -> Run:
        """``stream += x Wᵀ``, and its RMS norm, ``following``; both modulated if ``adaptive``."""
        return linear_norm_out(
            x,
            self.model.matrices[name],
            stream=stream,
            normed=normed,
            eps=self.model.config.mot.norm_eps,
            workspace=self.workspace,
            backend=self.backend,
            adaptive=adaptive,
            factors=self.model.tensors.get(following),
        )

    def mlp(
        self,
        name: str,
        stream: Tensor,
        normed: Tensor,
        hidden: Tensor,
        adaptive: Adaptive | None,
        following: str,
    ) -> list[Run]:
        """``stream += mlp(normed)`` of an expert's layer, and its RMS norm, ``following``."""
        gate_up, down = (self.model.matrices[f"{name}.{one}"] for one in ("gate_up", "down"))
        if not quantises(down.kind, len(stream)):
            first = self.linear(f"{name}.gate_up", normed, hidden, self.gate)
            last = self.added(f"{name}.down", hidden, stream, normed, adaptive, following)
            return [first, last]
        # The op quantises the hidden layer where it makes it.
        both = gated_mlp_out(
            normed,
            gate_up,
            down,
            activation=self.gate,
            out=stream if adaptive is None else adaptive.added,
            residual=stream if adaptive is None else None,
            workspace=self.workspace,
            backend=self.backend,
        )
        eps = self.model.config.mot.norm_eps
        if adaptive is None:
            return [both, self.norm(stream, normed, "rms", eps, following)]
        return [both, self.adapted(stream, normed, eps, adaptive)]

    def norm(self, x: Tensor, out: Tensor, kind: str, eps: float, name: str) -> Run:
        """A norm; its weight is the tensor of that name or in the product that follows."""
        weight = self.model.tensors.get(name)
        return norm_out(x, weight, y_out=out, kind=kind, eps=eps, backend=self.backend)

    def adapted(
        self, x: Tensor, out: Tensor, eps: float, adaptive: Adaptive, first: bool = False
    ) -> Run:
        """An adaptive norm after ``x += gate · added``; of x as it is if it is the first."""
        return norm_out(
            x,
            y_out=out,
            h_out=None if first else x,
            scale=adaptive.scale,
            shift=adaptive.shift,
            residual=None if first else adaptive.added,
            gate=None if first else adaptive.gate,
            row_group=adaptive.row_group,
            eps=eps,
            backend=self.backend,
        )

    def attend(self, a: Attention) -> Run:
        lse = self.lse[: a.q.shape[0] * a.q.shape[1]].view(a.q.shape[:2])
        cached = (a.prefix_k, a.prefix_v)
        workspace = self._parts(a)
        return shared_attention_out(
            a.q,
            a.k,
            a.v,
            a.who,
            *cached,
            out=a.out,
            lse=lse,
            rows=a.rows,
            workspace=workspace,
            backend=self.backend,
        )

    def _parts(self, a: Attention) -> Tensor | None:
        """Memory for the parts of an attention that is split over keys."""
        if self.workspace is None:
            return None
        size = attention_workspace_bytes(a.q, a.k, a.who)
        for one in (self.workspace, *self.parts):
            if size <= one.numel():
                return one
        self.parts.append(torch.empty(size, dtype=torch.uint8, device=a.q.device))
        return self.parts[-1]


def calls_for(
    model: PackedModel, limits: Limits, sizes: Ladders, lse: Tensor, backend: str
) -> Calls:
    """Allocates the workspace that the largest product of any size needs.

    Raises:
        InputError: the memory is not there.
    """
    if backend == "reference":
        return Calls(model, backend, None, lse)
    size = max((LEAST_WORKSPACE, *_needs(model, limits, sizes)))
    with room(size, "workspaces of its products"):
        workspace = torch.empty(size, dtype=torch.uint8, device=model.device)
    return Calls(model, backend, workspace, lse)


def _needs(model: PackedModel, limits: Limits, sizes: Ladders) -> Iterator[int]:
    """Bytes for each product and number of rows; the layers of a tower are alike."""
    config = model.config
    yield from _vision_needs(model, sizes)
    for name, activation in (("state.0", "relu"), ("state.1", "none")):
        if name in model.matrices:  # of states with tokens, in one product or two
            yield workspace_bytes(limits.observations, model.matrices[name], activation)
    states = [limits.observations] if config.state == "action" else []
    chunks = [n * config.chunk for n in sizes.rows]
    for count in chunks:
        for name in ("action_in.first", "action_out.last"):
            yield workspace_bytes(count, model.matrices[name], "none")
    yield from _expert_needs(model, "semantic", sizes.tokens)
    yield from _expert_needs(model, "action", [*states, *chunks])


def _vision_needs(model: PackedModel, sizes: Ladders) -> Iterator[int]:
    matrices, vision = model.matrices, model.config.vision
    rows = vision.grid**2 + int(vision.class_token)
    for views in sizes.views:
        for name in ("qkv", "proj", "fc2"):
            yield workspace_bytes(views * rows, matrices[f"vision.0.{name}"], "none")
        activation = VISION[vision.activation]
        yield workspace_bytes(views * rows, matrices["vision.0.fc1"], activation)
        yield workspace_bytes(views * vision.tokens, matrices["connector.0"], "gelu_erf")
        if vision.connector == "mlp":
            yield workspace_bytes(views * vision.tokens, matrices["connector.1"], "none")
        for i in range(len(vision.stem)):
            side = vision.image_size >> (i + 1)
            yield workspace_bytes(views * side**2, matrices[f"vision.stem.{i}"], "relu")
    yield workspace_bytes(vision.grid**2, matrices["vision.patch"], "none")


def _expert_needs(model: PackedModel, expert: str, counts: Sequence[int]) -> Iterator[int]:
    """Of its first layers, which stand for all; what crosses sees as many rows as the prefix."""
    matrices, mot = model.matrices, model.config.mot
    seen = range(min(mot.layers, max(mot.cross_every, 1)))
    parts = [f"{expert}.{i}.{part}" for i in seen for part in ("qkv", "q", "o")]
    parts.append(f"{expert}.{mot.layers - 1}.kv")
    if expert == "semantic":
        parts += [f"action.{i}.cross_{one}" for i in seen for one in "kv"]
    for count in counts:
        for name in parts:
            if name in matrices:
                yield workspace_bytes(count, matrices[name], "none")
        if f"{expert}.0.down" in matrices:  # not of one layer alone, which has no queries
            both = (matrices[f"{expert}.0.gate_up"], matrices[f"{expert}.0.down"])
            yield mlp_workspace_bytes(count, *both, GATES[mot.activation])
