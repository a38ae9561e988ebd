"""The GPU engine: every stage a recorded program of our kernels over packed weights, fixed memory.

On a GPU: not measured. Dimension letters: V views, K tokens of a view, M width of the semantic
expert, T prefix tokens, N chunks, H positions of a chunk, A slots.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import InputError, Unsupported
from vlakern.flow.guidance import Guidance
from vlakern.flow.solver import Frozen, evaluation_times
from vlakern.infer._checks import check_cheap
from vlakern.infer.buckets import Bucket, Ladders, ladders, whole_calls
from vlakern.infer.buffers import Limits
from vlakern.infer.device_buffers import chunk_inbox, device_buffers, led_inbox, prefix_inbox
from vlakern.infer.device_calls import calls_for
from vlakern.infer.device_experts import Experts
from vlakern.infer.device_images import Cameras
from vlakern.infer.device_inputs import (
    Chunks,
    Sources,
    fill_chunks,
    fill_led,
    fill_nothing,
    fill_prefix,
    on_host,
)
from vlakern.infer.device_loop import LoopChoice
from vlakern.infer.device_stages import ActionStage, PrefixStage
from vlakern.infer.device_vision import VisionStage
from vlakern.infer.graph import CudaRecorder, Graphs, Recorder, Run
from vlakern.infer.packing import PackedModel
from vlakern.models.config import Solver
from vlakern.models.processing import DEFAULT_IMAGES, ImageRule
from vlakern.models.sequence import Batch

__all__ = ["GraphEngine"]


class GraphEngine:
    """Vision, prefix and integration of packed weights (``isa="rows"``) on their device.

    A call is filled up to the next of a few sizes (``ladders``), whose programs were recorded at
    construction: prompts and numbers of views are data. Within a size the same inputs give the
    same bits, whatever fills it up; between sizes kernels may sum in another order.

    Attributes:
        model: the packed weights.
        limits: the most that one call may bring.
        graphs: the programs, and whether they are replayed or run kernel by kernel.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(
        self,
        model: PackedModel,
        limits: Limits,
        *,
        steps: int,
        solver: Solver,
        image_sizes: Sequence[tuple[int, int]] = (),
        image: ImageRule = DEFAULT_IMAGES,
        sizes: Ladders | None = None,
        ops: str = "triton",
        loop: LoopChoice = "auto",
        recorder: Recorder | None = None,
    ) -> None:
        """Allocates, binds and records everything.

        Args:
            image_sizes: height and width [px] of the camera images of one observation, in order;
                ``act`` of such images is one launch, for which more programs are recorded. Others
                are prepared image by image, and the stages are launched one after the other.
            image: how camera images become pixels.
            sizes: that programs are recorded for, up to the limits; ``ladders`` of them by default.
            ops: backend of the kernels.
            loop: ``cuda`` integrates in one kernel, see ``chosen_loop``.
            recorder: of programs; CUDA graphs on a GPU, none elsewhere by default.
        """
        self.model, self.limits = model, limits
        self._config, self._device = model.config, model.device
        self._done = torch.cuda.Event() if self._device.type == "cuda" else None
        with self._here():
            if recorder is None and self._device.type == "cuda":
                recorder = CudaRecorder(self._device)
            act, longest = model.activation_dtype, limits.tokens
            self.buffers = device_buffers(self._config, limits, steps, act, self._device)
            self._prefix = prefix_inbox(self._config, limits, self._device)
            evaluations = len(evaluation_times(steps, solver))
            self._chunk = chunk_inbox(self._config, limits, evaluations, self._device)
            self._led = led_inbox(self._config, limits, self._device)
            self.sizes = ladders(limits) if sizes is None else sizes
            self._cameras = Cameras(
                self._config.vision, self.buffers.pixels, image_sizes, ops, image
            )
            calls = calls_for(model, limits, self.sizes, self.buffers.lse, ops)
            experts = Experts(calls, self.buffers, longest + self._config.chunk)
            self.graphs = Graphs(recorder)
            self._build(
                VisionStage(calls, self.buffers),
                PrefixStage(experts, self._prefix),
                ActionStage(experts, self._chunk, self._led, longest, steps, solver, loop),
            )

    def _build(self, vision: VisionStage, prefix: PrefixStage, action: ActionStage) -> None:
        towers = {views: vision.program(views) for views in self.sizes.views}
        prefixes: dict[int, list[Run]] = {}
        for tokens in self.sizes.tokens:
            fill_nothing(self._prefix, tokens)
            prefixes[tokens] = prefix.program(tokens)
            self.graphs.add(("prefix", tokens), prefixes[tokens])
        solvers = {rows: action.program(rows) for rows in self.sizes.rows}
        self._not_led = {rows: action.led_refusal(rows) for rows in self.sizes.rows}
        for views, program in towers.items():
            self.graphs.add(("vision", views), program)
        for rows, program in solvers.items():
            self.graphs.add(("integrate", rows), program)
        if not self._cameras.recorded:
            return
        every = self._cameras.program(self.limits.views)
        self.graphs.warm_up(every)
        for size in whole_calls(self.sizes, self.limits, self._config.vision.tokens):
            fill_nothing(self._prefix, size.tokens)
            cameras = self._cameras.program(size.views)
            parts = (cameras, towers[size.views], prefixes[size.tokens], solvers[size.rows])
            self.graphs.add(size, [run for part in parts for run in part], warm=True)

    @contextmanager
    def _here(self) -> Iterator[None]:
        """The device as torch's current one, after all earlier calls; nothing on a CPU."""
        with torch.cuda.device_of(self.model.tensors["embed"]):
            if self._done is None:
                yield
                return
            self._done.wait()  # that call may have been on another stream, and in this memory
            try:
                yield
            finally:
                self._done.record()

    @property
    def kv(self) -> Tensor:
        """Keys and values of the prefixes: ``[layers, 2, T, G · D]``."""
        return self.buffers.kv

    @property
    def dtype(self) -> str:
        """Of the large products."""
        return self.model.dtype

    @torch.no_grad()
    def prepare(self, images: Sequence[np.ndarray]) -> None:
        """Camera images to the pixels of the first views, by one kernel each."""
        with self._here():
            self._cameras.send(images)
            self._cameras.prepare(images)

    @torch.no_grad()
    def take_pixels(self, pixels_V3SS: Tensor) -> None:
        """Normalised pixels to the first views."""
        with self._here():
            self._cameras.take(pixels_V3SS)

    @torch.no_grad()
    def vision(self, views: int) -> Tensor:
        """Image tokens ``[V · K, M]`` of the prepared pixels; a view of memory."""
        if views:
            with self._here():
                self.graphs.run(("vision", *self.sizes.of(views=views)))
        return self.buffers.sources[: views * self._config.vision.tokens]

    @torch.no_grad()
    def prefix(self, batch: Batch, views: int) -> None:
        """Keys and values of the prefixes after :meth:`vision`, into :attr:`kv`."""
        with self._here():
            self.graphs.run(("prefix", self._fill_prefix(batch, views)))

    def _fill_prefix(self, batch: Batch, views: int) -> int:
        """Sends a batch; the size of the program for it."""
        (tokens,) = self.sizes.of(tokens=len(batch.semantic_order))
        config, limits = self._config, self.limits
        images = limits.views * config.vision.tokens
        sources = Sources(images, limits.tokens, config.vocab_size, config.state)
        fill_prefix(self._prefix, on_host(batch), tokens, sources, views * config.vision.tokens)
        return tokens

    @torch.no_grad()
    def integrate(
        self,
        noise_NHA: Tensor,
        kv: Tensor,
        cu_prefix: Tensor,
        prefix_index: Tensor,
        frozen: Frozen | None = None,
        slot_mask: Tensor | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Noise to actions, a copy of the engine's own memory.

        Raises:
            Unsupported: guidance through the Jacobian, or in the integration as one kernel.
        """
        check_cheap(guidance)
        if len(noise_NHA) == 0:
            return self.buffers.x[:0].clone()
        where = (cu_prefix.cpu(), prefix_index.cpu())
        chunks = Chunks(noise_NHA, *where, frozen, slot_mask, guidance)
        with self._here():
            rows = self._fill_chunks(chunks)
            if kv.data_ptr() == self.kv.data_ptr():
                self.graphs.run(("integrate", rows))
            else:
                self._run_on(kv, int(chunks.cu_prefix[-1]), rows)
            return self.buffers.x[: len(noise_NHA)].clone()

    def _fill_chunks(self, chunks: Chunks) -> int:
        (rows,) = self.sizes.of(rows=len(chunks.noise_NHA))
        reason = self._not_led[rows]
        if chunks.guidance is not None and reason is not None:
            raise Unsupported(reason)
        fill_chunks(self._chunk, chunks, rows, self._config.mask.actions == "causal")
        if chunks.guidance is not None:
            fill_led(self._led, chunks.guidance)
        return rows

    def _run_on(self, kv: Tensor, tokens: int, rows: int) -> None:
        """Integrates from other keys and values: programs read the engine's own, so these take
        their place for the time of the call."""
        own = self.kv[:, :, :tokens]
        fits = kv.ndim == 4 and kv[:, :, :tokens].shape == own.shape and kv.dtype == own.dtype
        # The tables of positions end there, although the memory has room for more.
        if tokens > self.limits.tokens:
            raise InputError(
                f"engine: prefixes of {tokens} tokens, it is built for {self.limits.tokens}"
            )
        if not fits:
            raise InputError(
                f"engine: kv is {kv.dtype} {list(kv.shape)}, expected {own.dtype} {list(own.shape)}"
            )
        kept = own.clone()
        own.copy_(kv[:, :, :tokens])
        try:
            self.graphs.run(("integrate", rows))
        finally:
            own.copy_(kept)

    def at_once(self, images: Sequence[np.ndarray], batch: Batch, rows: int) -> bool:
        """Whether ``act`` of so many chunks is one launch."""
        return self.graphs.why_eager is None and self._whole(images, batch, rows) is not None

    def _whole(self, images: Sequence[np.ndarray], batch: Batch, rows: int) -> Bucket | None:
        """The program of a whole call of this size, if there is one."""
        tokens = len(batch.semantic_order)
        size = Bucket(*self.sizes.of(views=len(images), tokens=tokens, rows=rows))
        return size if size in self.graphs and self._cameras.knows(images) else None

    @torch.no_grad()
    def act(
        self,
        images: Sequence[np.ndarray],
        batch: Batch,
        noise_NHA: Tensor,
        prefix_index: Tensor,
        frozen: Frozen | None = None,
        slot_mask: Tensor | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Camera images, prompts and noise to actions, in one launch where that was recorded.

        Raises:
            Unsupported: guidance through the Jacobian, or in the integration as one kernel.
        """
        check_cheap(guidance)
        where = (batch.cu_prefix.cpu(), prefix_index.cpu())
        chunks = Chunks(noise_NHA, *where, frozen, slot_mask, guidance)
        with self._here():
            self._cameras.send(images)
            tokens, rows = self._fill_prefix(batch, len(images)), self._fill_chunks(chunks)
            whole = self._whole(images, batch, len(noise_NHA))
            if whole is not None:
                self.graphs.run(whole)
            else:
                self._cameras.prepare(images)
                (views,) = self.sizes.of(views=len(images))
                for part in (("vision", views), ("prefix", tokens), ("integrate", rows)):
                    self.graphs.run(part)
            return self.buffers.x[: len(noise_NHA)].clone()
