"""Every buffer that a device engine works in, allocated once, and how inputs get there.

Dimension letters: V views, X rows of a view in the tower, P patches of a view, W tower width, K
image tokens of a view, E rows of the semantic expert, R observations, J = E + R joint rows, N
chunks, H positions of a chunk, M = N · H, A slots, S state width, D head dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vlakern.infer.buffers import Limits, room
from vlakern.models.config import VLAConfig

__all__ = [
    "PARTS",
    "DeviceBuffers",
    "Inbox",
    "chunk_inbox",
    "device_buffers",
    "led_inbox",
    "prefix_inbox",
]

LINE = 256  # bytes: what kernels read begins at multiples
Fields = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
I32, F32 = torch.int32, torch.float32
PARTS = ("x", "normed", "qkv", "hidden")  # of an expert


class Inbox:
    """Arrays that one copy takes from the host to the device.

    Attributes:
        host, device: the arrays by name; those of the host are page-locked for a GPU.
    """

    def __init__(self, fields: Fields, device: torch.device) -> None:
        places, size = {}, 0
        for name, (shape, dtype) in fields.items():
            count = torch.Size(shape).numel() * dtype.itemsize
            places[name] = slice(size, size + count)
            size += -(-count // LINE) * LINE
        on_gpu = device.type == "cuda"
        self._from = torch.zeros(size, dtype=torch.uint8, pin_memory=on_gpu)
        self._to = torch.zeros(size, dtype=torch.uint8, device=device)
        self._sent = torch.cuda.Event() if on_gpu else None
        self.host, self.device = (
            {n: whole[places[n]].view(dtype).view(shape) for n, (shape, dtype) in fields.items()}
            for whole in (self._from, self._to)
        )

    def open(self) -> dict[str, Tensor]:
        """The host's arrays, once the last copy has left them."""
        if self._sent is not None:
            self._sent.synchronize()
        return self.host

    def send(self) -> None:
        """Copies all arrays; a GPU does it in the order of its stream."""
        self._to.copy_(self._from, non_blocking=True)
        if self._sent is not None:
            self._sent.record()


@dataclass(frozen=True)
class DeviceBuffers:
    """The memory of a device engine; ``act`` is the dtype of activations.

    Attributes:
        pixels: ``[V, rows, columns]`` act, of patches or, before a stem, of pixels.
        vision_x, vision_normed, vision_out: ``[V, X, W]`` act.
        vision_qkv: ``[V, X, 3 W]`` act.
        vision_hidden: ``[V, X, mlp]`` act.
        joined, joined_normed: ``[V · K, W s²]`` act, squares of patches.
        connected: ``[V · K, semantic]`` act.
        sources: ``[V · K + E, semantic]`` act, image tokens and then embedded text; then ``R``
            states where they are the semantic expert's.
        kv: ``[layers, 2, J, G · D]`` act, keys and values of the prefixes.
        semantic: of the semantic expert, by what it is: ``x``, ``normed``, ``qkv`` and ``hidden``;
            ``[E, ·]`` act.
        action: likewise of the action expert, ``[max(R, M), ·]``.
        state: ``[R, width]`` act, the state encoder's hidden layer.
        cross: ``[2, J, G · D]`` act, keys and values before the action expert projects them once
            more; no rows where no layer crosses.
        added: ``[M, action]`` act, what adaptive norms add to the stream; else no rows.
        group: int32 ``[M]``, the row of the modulations for each position; else no rows.
        q, out: ``[max(J, M), heads, D]`` act.
        own_k, own_v: ``[M, G, D]`` act.
        cos, sin: ``[max(J, M), D / 2]`` fp32, of each joint row.
        lse: fp32, the most rows times heads of any attention.
        time: ``[M, action]`` fp32, what flow time adds to each position.
        x, stage_x: ``[N, H, A]`` fp32.
        velocity: ``[2, N, H, A]`` fp32.
        tau, tau_next, dtau: ``[N]`` fp32.
    """

    pixels: Tensor
    vision_x: Tensor
    vision_normed: Tensor
    vision_out: Tensor
    vision_qkv: Tensor
    vision_hidden: Tensor
    joined: Tensor
    joined_normed: Tensor
    connected: Tensor
    sources: Tensor
    kv: Tensor
    semantic: dict[str, Tensor]
    action: dict[str, Tensor]
    state: Tensor
    cross: Tensor
    added: Tensor
    group: Tensor
    q: Tensor
    out: Tensor
    own_k: Tensor
    own_v: Tensor
    cos: Tensor
    sin: Tensor
    lse: Tensor
    time: Tensor
    x: Tensor
    stage_x: Tensor
    velocity: Tensor
    tau: Tensor
    tau_next: Tensor
    dtau: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        held = [one if isinstance(one, dict) else {"": one} for one in vars(self).values()]
        return [tensor for group in held for tensor in group.values()]

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self.tensors)


def device_buffers(
    config: VLAConfig, limits: Limits, steps: int, act: torch.dtype, device: torch.device
) -> DeviceBuffers:
    """Allocates; only ``dtau``, ``tau`` and ``group`` have a content.

    Raises:
        InputError: the memory is not there.
    """
    sizes = _sizes(config, limits)
    shapes = {name: (shape, act) for name, shape in sizes.items()}
    shapes |= {name: (shape, F32) for name, shape in _wide_sizes(config, limits).items()}
    shapes["group"] = (shapes["added"][0][:1], I32)
    size = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in shapes.values())
    with room(size, "what its stages pass on"):
        made = {
            name: torch.empty(shape, dtype=dtype, device=device)
            for name, (shape, dtype) in shapes.items()
        }
        made["dtau"].fill_(1.0 / steps)
        made["tau"].zero_()
        made["group"].zero_()  # calls that are bound run once, and follow it
    semantic, action = (
        {part: made.pop(f"{expert}.{part}") for part in PARTS} for expert in ("semantic", "action")
    )
    return DeviceBuffers(**made, semantic=semantic, action=action)


def joint_rows(config: VLAConfig, tokens: int, limits: Limits) -> int:
    """Rows of a prefill of ``tokens`` semantic rows: the action expert has those of its states."""
    return tokens + (limits.observations if config.state == "action" else 0)


def _sizes(config: VLAConfig, limits: Limits) -> dict[str, tuple[int, ...]]:
    vision, mot, views = config.vision, config.mot, limits.views
    rows = vision.grid**2 + int(vision.class_token)
    side = 1 if vision.stem else vision.patch_size
    joined = (views * vision.tokens, vision.hidden * vision.pixel_shuffle**2)
    chunks, joint = limits.rows * config.chunk, joint_rows(config, limits.tokens, limits)
    q_width, kv_width = mot.q_heads * mot.head_dim, mot.kv_heads * mot.head_dim
    heads = (max(joint, chunks), mot.q_heads, mot.head_dim)
    own = (chunks, mot.kv_heads, mot.head_dim)
    semantic = mot.semantic.hidden
    inline = limits.observations if config.state == "semantic" else 0
    found: dict[str, tuple[int, ...]] = {
        "pixels": (views, (vision.image_size // side) ** 2, 3 * side * side),
        "vision_x": (views, rows, vision.hidden),
        "vision_normed": (views, rows, vision.hidden),
        "vision_out": (views, rows, vision.hidden),
        "vision_qkv": (views, rows, 3 * vision.hidden),
        "vision_hidden": (views, rows, vision.mlp),
        "joined": joined,
        "joined_normed": joined,
        "connected": (joined[0], semantic),
        "sources": (joined[0] + limits.tokens + inline, semantic),
        "kv": (mot.layers, 2, joint, kv_width),
        "state": (limits.observations, semantic if inline else mot.action.hidden),
        "cross": (2, joint if mot.cross_every else 0, kv_width),
        "added": (chunks if mot.action.adaptive else 0, mot.action.hidden),
        "q": heads,
        "out": heads,
        "own_k": own,
        "own_v": own,
    }
    most = max(chunks, limits.observations)
    both = (("semantic", limits.tokens, mot.semantic), ("action", most, mot.action))
    for expert, count, widths in both:
        found[f"{expert}.x"] = found[f"{expert}.normed"] = (count, widths.hidden)
        found[f"{expert}.qkv"] = (count, q_width + 2 * kv_width)
        found[f"{expert}.hidden"] = (count, widths.mlp)
    return found


def _wide_sizes(config: VLAConfig, limits: Limits) -> dict[str, tuple[int, ...]]:
    vision, mot = config.vision, config.mot
    chunks, joint = limits.rows * config.chunk, joint_rows(config, limits.tokens, limits)
    tower = limits.views * (vision.grid**2 + int(vision.class_token)) * vision.heads
    x = (limits.rows, config.chunk, config.action_dim)
    return {
        "cos": (max(joint, chunks), mot.head_dim // 2),
        "sin": (max(joint, chunks), mot.head_dim // 2),
        "lse": (max(tower, max(joint, chunks) * mot.q_heads),),
        "time": (chunks, mot.action.hidden),
        "x": x,
        "stage_x": x,
        "velocity": (2, *x),
        "tau": (limits.rows,),
        "tau_next": (limits.rows,),
        "dtau": (limits.rows,),
    }


def prefix_inbox(config: VLAConfig, limits: Limits, device: torch.device) -> Inbox:
    """What one prefill brings besides images; J joint rows are E semantic rows, then R states."""
    tokens, most = limits.tokens, limits.observations
    joint = joint_rows(config, tokens, limits)
    fields: Fields = {
        "tokens": ((tokens,), I32),
        "order": ((tokens,), I32),  # row of image tokens and text for each semantic row
        "semantic_rows": ((tokens,), I32),
        "action_rows": ((joint - tokens,), I32),  # none where states are not the action expert's
        "joint_order": ((joint,), I32),  # row of [semantic | states] for each joint row
        "positions": ((joint,), I32),
        "kv_end": ((joint,), I32),
        "cu": ((most + 2,), I32),  # the last document holds the rows that are filled up
        "state": ((most, config.state_dim), F32),
    }
    return Inbox(fields, device)


def chunk_inbox(config: VLAConfig, limits: Limits, evaluations: int, device: torch.device) -> Inbox:
    """What one integration brings."""
    count = limits.rows * config.chunk
    x = (limits.rows, config.chunk, config.action_dim)
    fields: Fields = {
        "noise": (x, F32),
        "frozen": (x, F32),
        "frozen_len": ((limits.rows,), I32),
        "slot_mask": ((limits.rows, config.action_dim), torch.uint8),
        "prefix_index": ((limits.rows,), I32),
        "cu_prefix": ((limits.observations + 1,), I32),
        "kv_end": ((count,), I32),
        "positions": ((count,), I32),
        "times": ((evaluations, count), I32),  # row of the time table or of the modulations
        "most": ((limits.rows,), F32),  # of guidance; a chunk at 0 is not led
    }
    if config.mot.cross_every:
        fields = {**fields, "prefix_end": ((count,), I32)}
    return Inbox(fields, device)


def led_inbox(config: VLAConfig, limits: Limits, device: torch.device) -> Inbox:
    """What one integration with guidance brings besides; others do not send it."""
    x = (limits.rows, config.chunk, config.action_dim)
    return Inbox({"decided": (x, F32), "weights": (x, F32)}, device)
