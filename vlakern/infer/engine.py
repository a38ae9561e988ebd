"""From camera images and prompts to action chunks: one engine, packed and allocated once.

Dimension letters: R observations, V views of all of them, T prefix tokens, N action chunks, H
positions of a chunk, A slots, G key-value heads, D head dim.
"""

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.flow.guidance import Guidance
from vlakern.flow.solver import SOLVERS, Frozen
from vlakern.infer._checks import (
    check_batch,
    check_chunks,
    check_fits,
    check_guidance,
    check_pixels,
)
from vlakern.infer.backends import EngineBackend, Plan, Stages, make_stages
from vlakern.infer.buffers import Limits
from vlakern.infer.graph_engine import GraphEngine
from vlakern.infer.packing import PackedModel
from vlakern.models.config import Solver, VLAConfig
from vlakern.models.processing import DEFAULT_IMAGES, ImageRule
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


@dataclass(frozen=True)
class _Held:
    """Views whose images an engine holds, and the thread that brought them."""

    views: int = 0
    thread: int | None = None

    @classmethod
    def of(cls, views: int) -> "_Held":
        return cls(views, threading.get_ident())

    def check(self, views: int, words: str) -> None:
        """Raises InputError unless this thread brought so many."""
        if views and self.thread not in (None, threading.get_ident()):
            raise InputError(
                "another thread's images came to the engine in between; make calls that build on"
                " each other inside 'with engine.sequence():', or call act"
            )
        if views != self.views:
            raise InputError(words.format(views, self.views))


class Engine:
    """Inference with fixed memory, for up to a stated number of observations and chunks.

    ``act`` is ``prepare``, ``prefill`` and ``integrate``. Calls from several threads take turns, so
    that ``act`` is safe in any of them. Of calls that build on each other the engine refuses the
    later one where another thread's came in between; ``sequence`` keeps the others out.

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
        image: ImageRule = DEFAULT_IMAGES,
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
                measured), ``cuda`` the same with the whole integration as one kernel (not
                measured), ``torch`` runs the network's modules.
            image_sizes: height and width [px] of one observation's camera images, in order: with
                ``graph``, ``act`` of such images is one launch.
            image: how camera images become pixels.

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
        plan = Plan(self.limits, self.steps, self.solver, count, image_sizes, image)
        self._stages: Stages = make_stages(model, plan, backend)
        self._lock = threading.RLock()  # calls consist of calls
        self._turn = 0
        self._prepared = self._seen = _Held()  # what waits for vision, and for a prefix

    @property
    def dtype(self) -> str:
        """``fp32``, ``bf16``, ``int8`` or ``fp8``: of the large products."""
        return self._stages.dtype

    @contextmanager
    def sequence(self) -> Iterator[None]:
        """Inside, no other thread's call comes between two of this thread's; others wait."""
        with self._lock:
            yield

    def prepare(self, images: Sequence[np.ndarray]) -> None:
        """Resizes, pads and normalises camera images for the next prefill.

        Args:
            images: uint8 ``[height, width, 3]`` each, all views of all observations in order.

        Raises:
            InputError: another dtype or shape, or more views than the engine is built for.
        """
        check_fits(self.limits, views=len(images))
        with self._lock:
            self._prepared = _Held()  # also if an image is refused
            self._stages.prepare(images)
            self._prepared = _Held.of(len(images))

    def vision(self, views: int) -> Tensor:
        """Image tokens of the prepared images, in the engine's memory."""
        check_fits(self.limits, views=views)
        with self._lock:
            self._prepared.check(views, "vision of {} views, but {} were prepared")
            self._seen = _Held()
            tokens = self._stages.vision(views)
            self._seen = _Held.of(views)
            return tokens

    def prefix(self, batch: Batch) -> Prefix:
        """Keys and values of packed prompts and the image tokens of the last ``vision``."""
        check_batch(self.limits, batch)
        views = len(batch.pixels_V3SS)
        with self._lock:
            self._seen.check(views, "a prefix of {} views, but vision saw {}")
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
        check_fits(self.limits, views=views)
        with self._lock:
            if pixels.numel():
                check_pixels(self.config, pixels)
                self._prepared = _Held()
                self._stages.take_pixels(pixels)
                self._prepared = _Held.of(views)
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
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Noise to actions: all ODE steps in one call.

        Args:
            prefix: of R observations.
            noise_NHA: fp32 ``[R · n, H, A]``, the ``n`` candidates of an observation side by side.
            n: chunks per observation.
            frozen: leading positions whose actions are already decided (real-time chunking).
            slot_mask: ``[A]`` or ``[R · n, A]``; slots at 0 keep their noise.
            guidance: what the chunks are led to.

        Returns:
            Actions ``[R · n, H, A]`` fp32.

        Raises:
            Unsupported: guidance of a form that the backend does not have.
            InputError: shapes that do not fit, values that are not finite, or a prefix that a
                later prefill overwrote.
        """
        index, mask = self._chunks(len(prefix), noise_NHA, n, frozen, slot_mask)
        if guidance is not None:
            check_guidance(guidance, noise_NHA)
        with self._lock:
            if prefix.turn is not None and prefix.turn != self._turn:
                raise InputError(
                    "this prefix is not of the engine's last prefill: it was overwritten or is of"
                    " another engine; keep one with prefix.clone()"
                )
            kv = prefix.kv
            return self._stages.integrate(noise_NHA, kv, prefix.cu, index, frozen, mask, guidance)

    def act(
        self,
        images: Sequence[np.ndarray],
        batch: Batch,
        noise_NHA: Tensor,
        *,
        n: int = 1,
        frozen: Frozen | None = None,
        slot_mask: Tensor | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Camera images and prompts to actions ``[R · n, H, A]``; see the calls it consists of."""
        with self._lock:
            if isinstance(self._stages, GraphEngine) and not batch.pixels_V3SS.numel():
                return self._act_at_once(
                    self._stages, images, batch, noise_NHA, n, frozen, slot_mask, guidance
                )
            self.prepare(images)
            rest = {"frozen": frozen, "slot_mask": slot_mask, "guidance": guidance}
            return self.integrate(self.prefill(batch), noise_NHA, n=n, **rest)

    def at_once(self, images: Sequence[np.ndarray], batch: Batch, n: int = 1) -> bool:
        """Whether ``act`` of such a call is one launch of a graph that was recorded for its size.

        Raises:
            InputError: more than the engine is built for.
        """
        stages = self._stages
        if not isinstance(stages, GraphEngine) or batch.pixels_V3SS.numel():
            return False
        most, observations = self.limits, len(batch.cu_prefix) - 1
        rows, tokens = observations * n, int(batch.cu_prefix[-1])
        check_fits(most, views=len(images), observations=observations, tokens=tokens, rows=rows)
        with self._lock:
            return stages.at_once(images, batch, rows)

    def _act_at_once(
        self,
        stages: GraphEngine,
        images: Sequence[np.ndarray],
        batch: Batch,
        noise_NHA: Tensor,
        n: int,
        frozen: Frozen | None,
        slot_mask: Tensor | None,
        guidance: Guidance | None,
    ) -> Tensor:
        """The same calls without a stop between them."""
        check_fits(self.limits, views=len(images))
        check_batch(self.limits, batch)
        if len(images) != len(batch.pixels_V3SS):
            views = len(batch.pixels_V3SS)
            raise InputError(f"a prefix of {views} views, but found {len(images)} images")
        observations = len(batch.cu_prefix) - 1
        index, mask = self._chunks(observations, noise_NHA, n, frozen, slot_mask)
        if guidance is not None:
            check_guidance(guidance, noise_NHA)
        self._prepared = self._seen = _Held()  # also if an image is refused
        self._turn = next(_TURNS)
        actions = stages.act(images, batch, noise_NHA, index, frozen, mask, guidance)
        self._prepared = self._seen = _Held.of(len(images))
        return actions

    def _chunks(
        self,
        prefixes: int,
        noise_NHA: Tensor,
        n: int,
        frozen: Frozen | None,
        slot_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        rest = (noise_NHA, n, frozen, slot_mask)
        return check_chunks(self.config, self.limits, prefixes, *rest)
