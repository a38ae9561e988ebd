"""The program of the vision tower on fixed memory.

Dimension letters: V views, X rows of a view, W tower width, S side of a plane, C channels.
"""

from functools import partial

import torch
from torch import Tensor

from vlakern.infer.device_buffers import DeviceBuffers
from vlakern.infer.device_calls import Attention, Calls
from vlakern.infer.graph import Run
from vlakern.ops.shared_attention import KvEnd

__all__ = ["VisionStage"]


class VisionStage:
    """From pixels to image tokens in ``buffers.sources``, as models/vision.py has it."""

    def __init__(self, calls: Calls, buffers: DeviceBuffers) -> None:
        self._calls, self._b = calls, buffers
        self._config = calls.model.config.vision
        act = calls.model.activation_dtype
        # Added to rows of activations, and rounded as a network in that dtype has it.
        self._place = calls.model.tensors["vision.place"].to(act)
        self._stem = [self._plane(i) for i in range(len(self._config.stem))]
        if self._config.stem:
            columns = calls.model.matrices["vision.patch"].k
            shape = (len(buffers.pixels), self._config.grid**2, columns)
            self._patches = torch.empty(shape, dtype=act, device=self._place.device)

    def _plane(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of one convolution: the padded input, its windows side by side, and what it makes."""
        config, views = self._config, len(self._b.pixels)
        channels = (3, *config.stem)[i : i + 2]
        side = config.image_size >> i
        half = side // 2
        shapes = (
            (views, side + 2, side + 2, channels[0]),
            (views, half, half, 3, 3, channels[0]),
            (views, half, half, channels[1]),
        )
        like = self._b.pixels
        padded, windows, made = (like.new_zeros(shape) for shape in shapes)
        return padded, windows, made

    def program(self, views: int) -> list[Run]:
        """The calls for the first ``views`` views."""
        b, config, calls = self._b, self._config, self._calls
        x_VXW = b.vision_x[:views]
        runs, patches = self._stem_program(views)
        first = int(config.class_token)
        for i in range(views):
            # One view at a time: the class token's row lies before each.
            to, place = x_VXW[i, first:], self._place[first:]
            runs.append(calls.linear("vision.patch", patches[i], to, residual=place))
        if config.class_token:
            runs.append(partial(x_VXW[:, 0].copy_, self._place[0]))
        runs += self._blocks(views)
        return runs + self._connector(views)

    def _stem_program(self, views: int) -> tuple[list[Run], Tensor]:
        """Convolutions as products of gathered windows; the rows of patches after them."""
        config = self._config
        if not config.stem:
            return [], self._b.pixels[:views]
        runs: list[Run] = []
        side = config.image_size
        plane = self._b.pixels[:views].view(views, side, side, 3)
        for i, (padded, windows, made) in enumerate(self._stem):
            padded, windows, made = padded[:views], windows[:views], made[:views]
            runs.append(partial(padded[:, 1:-1, 1:-1].copy_, plane))
            gathered = padded.unfold(1, 3, 2).unfold(2, 3, 2).permute(0, 1, 2, 4, 5, 3)
            runs.append(partial(windows.copy_, gathered))
            rows, to = windows.flatten(3).flatten(0, 2), made.flatten(0, 2)
            runs.append(self._calls.linear(f"vision.stem.{i}", rows, to, "relu"))
            plane = made
        patch = config.patch_size >> len(config.stem)
        split = plane.unflatten(1, (config.grid, patch)).unflatten(3, (config.grid, patch))
        to = self._patches[:views]
        shape = (views, config.grid, config.grid, patch, patch, plane.shape[-1])
        runs.append(partial(to.view(shape).copy_, split.transpose(2, 3)))
        return runs, to

    def _blocks(self, views: int) -> list[Run]:
        b, config, calls = self._b, self._config, self._calls
        x, normed, out, qkv, hidden = (
            one[:views].flatten(0, 1)
            for one in (b.vision_x, b.vision_normed, b.vision_out, b.vision_qkv, b.vision_hidden)
        )
        heads = (config.heads, config.hidden // config.heads)
        q, k, v = (one.unflatten(1, heads) for one in qkv.chunk(3, 1))
        attend, activation = None, calls.vision_activation
        runs: list[Run] = []
        for i in range(config.layers):
            norms = [
                calls.norm(x, normed, "layer", config.eps, f"vision.{i}.norm{j}") for j in (1, 2)
            ]
            product = calls.linear(f"vision.{i}.qkv", normed, qkv)
            if attend is None:  # the same memory in every layer
                who = _whole_views(views, b.vision_x.shape[1], x.device)
                attend = calls.attend(Attention(q, k, v, out.unflatten(1, heads), who))
            runs += [norms[0], product, attend]
            runs.append(calls.linear(f"vision.{i}.proj", out, x, residual=x))
            runs += [norms[1], calls.linear(f"vision.{i}.fc1", normed, hidden, activation)]
            runs.append(calls.linear(f"vision.{i}.fc2", hidden, x, residual=x))
        return runs

    def _connector(self, views: int) -> list[Run]:
        b, config, calls = self._b, self._config, self._calls
        tokens = views * config.tokens
        runs, joined = self._joined(views)
        to = b.sources[:tokens]
        if config.connector == "linear":
            return [*runs, calls.linear("connector.0", joined, to)]
        normed = b.joined_normed[:tokens]
        return [
            *runs,
            calls.norm(joined, normed, "layer", config.eps, "connector.norm"),
            calls.linear("connector.0", normed, b.connected[:tokens], "gelu_erf"),
            calls.linear("connector.1", b.connected[:tokens], to),
        ]

    def _joined(self, views: int) -> tuple[list[Run], Tensor]:
        """Squares of patches side by side, after the norm whose weights are in the connector."""
        b, config, side = self._b, self._config, self._config.pixel_shuffle
        x_VXW, runs = b.vision_x[:views], []
        if config.final_norm:
            x, x_VXW = x_VXW.flatten(0, 1), b.vision_normed[:views]
            to = x_VXW.flatten(0, 1)
            runs.append(self._calls.norm(x, to, "layer", config.eps, "vision.final_norm"))
        if side == 1 and not config.class_token:
            return runs, x_VXW.flatten(0, 1)
        kept = x_VXW[:, int(config.class_token) :]
        squares = kept.unflatten(1, (config.grid // side, side, config.grid // side, side))
        joined = b.joined[: views * config.tokens]
        to = joined.view(squares.transpose(2, 3).shape)
        return [*runs, partial(to.copy_, squares.transpose(2, 3))], joined


def _whole_views(views: int, rows: int, device: torch.device) -> KvEnd:
    """Every row of a view sees the whole view."""
    cu = torch.arange(views + 1) * rows
    return KvEnd(cu, cu, torch.full((views * rows,), rows)).to(device)
