"""Ops bound to packed weights and fixed memory: what the programs of a device engine consist of."""

from collections.abc import Iterator
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
from vlakern.ops.linear.with_norm import linear_norm_out
from vlakern.ops.norm import norm_out
from vlakern.ops.shared_attention import KvEnd, attention_workspace_bytes, shared_attention_out

__all__ = ["Attention", "Calls", "calls_for"]

LEAST_WORKSPACE = 256


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

    def added(self, name: str, x: Tensor, stream: Tensor, normed: Tensor) -> Run:
        """``stream += x Wᵀ``, and its RMS norm."""
        return linear_norm_out(
            x,
            self.model.matrices[name],
            stream=stream,
            normed=normed,
            eps=self.model.config.mot.norm_eps,
            workspace=self.workspace,
            backend=self.backend,
        )

    def mlp(self, name: str, stream: Tensor, normed: Tensor, hidden: Tensor) -> list[Run]:
        """``stream += mlp(normed)`` of an expert's layer, and its RMS norm."""
        gate_up, down = (self.model.matrices[f"{name}.{one}"] for one in ("gate_up", "down"))
        if not quantises(down.kind, len(stream)):
            first = self.linear(f"{name}.gate_up", normed, hidden, "silu_gate")
            return [first, self.added(f"{name}.down", hidden, stream, normed)]
        # The op quantises the hidden layer where it makes it.
        both = gated_mlp_out(
            normed,
            gate_up,
            down,
            activation="silu_gate",
            out=stream,
            residual=stream,
            workspace=self.workspace,
            backend=self.backend,
        )
        return [both, self.norm(stream, normed, "rms", self.model.config.mot.norm_eps)]

    def norm(self, x: Tensor, out: Tensor, kind: str, eps: float) -> Run:
        """A norm whose weights are in the product that follows."""
        return norm_out(x, y_out=out, kind=kind, eps=eps, backend=self.backend)

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
    matrices, config = model.matrices, model.config
    vision = config.vision
    rows = vision.grid**2 + int(vision.class_token)
    for views in sizes.views:
        for name in ("qkv", "proj", "fc2"):
            yield workspace_bytes(views * rows, matrices[f"vision.0.{name}"], "none")
        yield workspace_bytes(views * rows, matrices["vision.0.fc1"], "gelu_erf")
        yield workspace_bytes(views * vision.tokens, matrices["connector.0"], "gelu_erf")
        yield workspace_bytes(views * vision.tokens, matrices["connector.1"], "none")
        for i in range(len(vision.stem)):
            side = vision.image_size >> (i + 1)
            yield workspace_bytes(views * side**2, matrices[f"vision.stem.{i}"], "relu")
    yield workspace_bytes(vision.grid**2, matrices["vision.patch"], "none")
    for i, activation in enumerate(("relu", "none")):
        yield workspace_bytes(limits.observations, matrices[f"state.{i}"], activation)
    last = config.mot.layers - 1
    chunks = [limits.observations, *(n * config.chunk for n in sizes.rows)]
    for expert, counts in (("semantic", sizes.tokens), ("action", chunks)):
        for count in counts:
            yield workspace_bytes(count, matrices[f"{expert}.{last}.kv"], "none")
            if f"{expert}.0.qkv" not in matrices:
                continue  # of one layer alone, which has no queries
            yield workspace_bytes(count, matrices[f"{expert}.0.qkv"], "none")
            yield workspace_bytes(count, matrices[f"{expert}.0.o"], "none")
            both = (matrices[f"{expert}.0.gate_up"], matrices[f"{expert}.0.down"])
            yield mlp_workspace_bytes(count, *both, "silu_gate")
