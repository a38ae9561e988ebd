"""From camera images and prompts to action chunks: one engine, packed and allocated once.

Dimension letters: R observations, V views of all of them, T prefix tokens, N action chunks, H
positions of a chunk, A slots, G key-value heads, D head dim.
"""

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.flow.solver import SOLVERS, Frozen
from vlakern.infer.backends import EngineBackend, Plan, Stages, make_stages
from vlakern.infer.buffers import Limits
from vlakern.infer.graph_engine import GraphEngine
from vlakern.infer.packing import PackedModel
from vlakern.models.config import Solver, VLAConfig
from vlakern.models.sequence import Batch
from vlakern.models.vla import VLA

__all__ = ["Engine", "Prefix"]

# Numbers prefills across engines: a prefix of one cannot pass for the last one of another.
_TURNS = itertools.count(1)
MOST_STEPS = 1 << 16  # as in a config
WORDS = 128  # text tokens of a prompt that an engine has room for by default


@dataclass(frozen=True)
class Prefix:
    """Keys and values of everything before the actions, exact over all ODE steps.

    It lies in its engine's memory and ends with the engine's next prefill; ``clone`` keeps it.

    Attributes:
        kv: ``[layers, 2, T, G · D]``, keys and then values of each layer.
        cu: int32 ``[R + 1]``, first row of each observation.
        turn: the prefill it came from; None for a copy, which lasts.
    """

    kv: Tensor
    cu: Tensor
    turn: int | None

    def __len__(self) -> int:
        """Observations."""
        return len(self.cu) - 1

    def clone(self) -> "Prefix":
        """A copy that lasts."""
        rows = int(self.cu[-1])
        return replace(self, kv=self.kv[:, :, :rows].clone(), cu=self.cu.clone(), turn=None)


class Engine:
    """Inference with fixed memory, for up to a stated number of observations and chunks.

    ``act`` is ``prepare``, ``prefill`` and ``integrate``. Calls from several threads take turns.

    Attributes:
        config: of the model.
        limits: the most that one call may bring.
        steps, solver: of the integration.
    """

    def __init__(
        self,
        model: PackedModel | VLA,
        *,
        max_batch: int = 1,
        max_candidates: int = 1,
        max_views: int = 2,
        max_prefix: int | None = None,
        steps: int | None = None,
        solver: Solver | None = None,
        threads: int | None = None,
        backend: EngineBackend = "auto",
        image_sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Allocates everything.

        Args:
            model: packed weights, or a network, whose dtype and device are kept and whose weights
                are packed (copied), unless it runs through torch.
            max_batch: R, observations of one prefill.
            max_candidates: chunks per observation of one integration.
            max_views: images per observation.
            max_prefix: prefix tokens per observation; by default the images' and 128 more.
            steps, solver: of the integration; the model's by default.
            threads: of the CPU engine; torch's number by default.
            backend: ``native`` is the CPU engine, ``graph`` that of NVIDIA GPUs (CUDA graphs; not
                measured), ``torch`` runs the network's modules.
            image_sizes: height and width [px] of one observation's camera images, in order: with
                ``graph``, ``act`` of such images is one launch.

        Raises:
            InputError: a number below 1, or the memory is not there.
            Unsupported: the backend does not run this model here.
        """
        config = model.config
        self.config: VLAConfig = config
        self.steps = config.steps if steps is None else steps
        self.solver: Solver = config.solver if solver is None else solver
        if not 1 <= self.steps <= MOST_STEPS or self.solver not in SOLVERS:
            raise InputError(
                f"steps = {self.steps} and solver = {self.solver!r}; expected at least one step, at"
                f" most {MOST_STEPS}, and one of {', '.join(SOLVERS)}"
            )
        if threads is not None and threads < 1:
            raise InputError(f"an engine of {threads} threads; expected at least 1")
        tokens = max_views * config.vision.tokens + WORDS if max_prefix is None else max_prefix
        self.limits = Limits(
            max_batch, max_batch * max_views, max_batch * tokens, max_batch * max_candidates
        )
        count = torch.get_num_threads() if threads is None else threads
        plan = Plan(self.limits, self.steps, self.solver, count, image_sizes)
        self._stages: Stages = make_stages(model, plan, backend)
        self._lock = threading.RLock()  # calls consist of calls
        self._turn = 0
        self._prepared = self._seen = 0  # views that wait for vision, and for a prefix

    @property
    def dtype(self) -> str:
        """``fp32``, ``bf16``, ``int8`` or ``fp8``: of the large products."""
        return self._stages.dtype

    def prepare(self, images: Sequence[np.ndarray]) -> None:
        """Resizes, pads and normalises camera images for the next prefill.

        Args:
            images: uint8 ``[height, width, 3]`` each, all views of all observations in order.

        Raises:
            InputError: another dtype or shape, or more views than the engine is built for.
        """
        self._fits(views=len(images))
        with self._lock:
            self._prepared = 0  # also if an image is refused
            self._stages.prepare(images)
            self._prepared = len(images)

    def vision(self, views: int) -> Tensor:
        """Image tokens of the prepared images, in the engine's memory."""
        self._fits(views=views)
        with self._lock:
            if views != self._prepared:
                raise InputError(f"vision of {views} views, but {self._prepared} were prepared")
            tokens = self._stages.vision(views)
            self._seen = views
            return tokens

    def prefix(self, batch: Batch) -> Prefix:
        """Keys and values of packed prompts and the image tokens of the last ``vision``."""
        self._check_batch(batch)
        views = len(batch.pixels_V3SS)
        with self._lock:
            if views != self._seen:
                raise InputError(f"a prefix of {views} views, but vision saw {self._seen}")
            self._turn = next(_TURNS)
            self._stages.prefix(batch, views)
            return Prefix(self._stages.kv, batch.cu_prefix.int(), self._turn)

    def prefill(self, batch: Batch) -> Prefix:
        """Everything that does not depend on the ODE variable.

        Args:
            batch: packed prompts; its pixels, or the images of the last ``prepare`` if it has none
                (``[V, 3, 0, 0]``).

        Raises:
            InputError: more than the engine is built for, pixels of another size, or pixels or a
                state that are not finite.
        """
        views, pixels = len(batch.pixels_V3SS), batch.pixels_V3SS
        self._fits(views=views)
        with self._lock:
            if pixels.numel():
                self._check_pixels(pixels)
                self._prepared = 0
                self._stages.take_pixels(pixels)
                self._prepared = views
            self.vision(views)
            return self.prefix(batch)

    def integrate(
        self,
        prefix: Prefix,
        noise_NHA: Tensor,
        *,
        n: int = 1,
        frozen: Frozen | None = None,
        slot_mask: Tensor | None = None,
    ) -> Tensor:
        """Noise to actions: all ODE steps in one call.

        Args:
            prefix: of R observations.
            noise_NHA: fp32 ``[R · n, H, A]``, the ``n`` candidates of an observation side by side.
            n: chunks per observation.
            frozen: leading positions whose actions are already decided (real-time chunking).
            slot_mask: ``[A]`` or ``[R · n, A]``; slots at 0 keep their noise.

        Returns:
            Actions ``[R · n, H, A]`` fp32.

        Raises:
            InputError: shapes that do not fit, values that are not finite, or a prefix that a
                later prefill overwrote.
        """
        index, mask = self._check_chunks(len(prefix), noise_NHA, n, frozen, slot_mask)
        with self._lock:
            if prefix.turn is not None and prefix.turn != self._turn:
                raise InputError(
                    "this prefix is not of the engine's last prefill: it was overwritten or is of"
                    " another engine; keep one with prefix.clone()"
                )
            kv = prefix.kv
            return self._stages.integrate(noise_NHA, kv, prefix.cu, index, frozen, mask)

    def act(
        self,
        images: Sequence[np.ndarray],
        batch: Batch,
        noise_NHA: Tensor,
        *,
        n: int = 1,
        frozen: Frozen | None = None,
        slot_mask: Tensor | None = None,
    ) -> Tensor:
        """Camera images and prompts to actions ``[R · n, H, A]``; see the calls it consists of."""
        with self._lock:
            if isinstance(self._stages, GraphEngine) and not batch.pixels_V3SS.numel():
                return self._act_at_once(
                    self._stages, images, batch, noise_NHA, n, frozen, slot_mask
                )
            self.prepare(images)
            prefix = self.prefill(batch)
            return self.integrate(prefix, noise_NHA, n=n, frozen=frozen, slot_mask=slot_mask)

    def _act_at_once(
        self,
        stages: GraphEngine,
        images: Sequence[np.ndarray],
        batch: Batch,
        noise_NHA: Tensor,
        n: int,
        frozen: Frozen | None,
        slot_mask: Tensor | None,
    ) -> Tensor:
        """The same calls without a stop between them."""
        self._fits(views=len(images))
        self._check_batch(batch)
        if len(images) != len(batch.pixels_V3SS):
            views = len(batch.pixels_V3SS)
            raise InputError(f"a prefix of {views} views, but found {len(images)} images")
        rest = (frozen, slot_mask)
        index, mask = self._check_chunks(len(batch.cu_prefix) - 1, noise_NHA, n, *rest)
        self._prepared = self._seen = 0  # also if an image is refused
        self._turn = next(_TURNS)
        actions = stages.act(images, batch, noise_NHA, index, frozen, mask)
        self._prepared = self._seen = len(images)
        return actions

    def _check_batch(self, batch: Batch) -> None:
        cu = batch.cu_prefix
        self._fits(views=len(batch.pixels_V3SS), observations=len(cu) - 1, tokens=int(cu[-1]))
        if not torch.isfinite(batch.state_RS).all():
            raise InputError("a state holds a value that is not finite; expected numbers")

    def _check_chunks(
        self,
        prefixes: int,
        noise_NHA: Tensor,
        n: int,
        frozen: Frozen | None,
        slot_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The prefix of each chunk, and the mask as uint8 ``[N, A]``."""
        rows = prefixes * n
        self._check_noise(noise_NHA, rows, f"{prefixes} prefixes and n = {n}")
        self._fits(rows=rows)
        index = torch.arange(prefixes, dtype=torch.int32).repeat_interleave(n)
        mask = None if slot_mask is None else self._mask(slot_mask, rows)
        if frozen is not None:
            _check_frozen(frozen, noise_NHA)
        return index, mask

    def _check_noise(self, noise_NHA: Tensor, rows: int, why: str) -> None:
        expected = (rows, self.config.chunk, self.config.action_dim)
        if tuple(noise_NHA.shape) != expected or noise_NHA.dtype != torch.float32:
            raise InputError(
                f"noise is {noise_NHA.dtype} {list(noise_NHA.shape)}, expected fp32"
                f" {list(expected)} for {why}"
            )
        if not torch.isfinite(noise_NHA).all():
            raise InputError("noise holds a value that is not finite; draw it again")

    def _check_pixels(self, pixels_V3SS: Tensor) -> None:
        side = self.config.vision.image_size
        if tuple(pixels_V3SS.shape[1:]) != (3, side, side):
            raise InputError(
                f"pixels are {list(pixels_V3SS.shape)}, expected [V, 3, {side}, {side}]"
            )
        if not torch.isfinite(pixels_V3SS).all():
            raise InputError("an image holds a value that is not finite; expected -1 to 1")

    def _mask(self, slot_mask: Tensor, rows: int) -> Tensor:
        """uint8 ``[N, A]``, 0 and 1."""
        slots, found = self.config.action_dim, tuple(slot_mask.shape)
        if found not in ((slots,), (rows, slots)):
            raise InputError(f"slot_mask is {list(found)}, expected [{slots}] or [{rows}, {slots}]")
        return (slot_mask != 0).to(torch.uint8).expand(rows, slots)

    def _fits(self, **found: int) -> None:
        for name, count in found.items():
            most = getattr(self.limits, name)
            if count > most:
                raise InputError(
                    f"found {count} {_WORDS[name]}, the engine is built for at most {most}; build"
                    f" it with a larger {_ARGUMENTS[name]}"
                )


def _check_frozen(frozen: Frozen, noise_NHA: Tensor) -> None:
    action, length = frozen.action_RHA, frozen.length_R
    rows, chunk, _ = noise_NHA.shape
    if action.shape != noise_NHA.shape:
        raise InputError(
            f"frozen actions are {list(action.shape)}, expected the noise's {list(noise_NHA.shape)}"
        )
    if tuple(length.shape) != (rows,) or length.is_floating_point():
        raise InputError(
            f"frozen lengths are {length.dtype} {list(length.shape)}, expected whole [{rows}]"
        )
    if bool(((length < 0) | (length > chunk)).any()):
        raise InputError(f"frozen lengths are {length.tolist()}, expected 0 to {chunk} each")
    done_RH = torch.arange(chunk, device=length.device) < length[:, None]
    if not torch.isfinite(action[done_RH]).all():
        raise InputError("frozen actions hold a value that is not finite")


_WORDS = {
    "observations": "observations",
    "views": "views",
    "tokens": "prefix tokens",
    "rows": "action chunks",
}
_ARGUMENTS = {
    "observations": "max_batch",
    "views": "max_views or max_batch",
    "tokens": "max_prefix",
    "rows": "max_candidates",
}
