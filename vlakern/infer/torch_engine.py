"""The engine's stages through the network's own modules, for devices without native code."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vlakern import ops
from vlakern.flow.guidance import Guidance, guided
from vlakern.flow.solver import Frozen, integrate
from vlakern.infer.buffers import Limits
from vlakern.models.config import Solver
from vlakern.models.expert import KeyValues
from vlakern.models.processing import DEFAULT_IMAGES, ImageRule
from vlakern.models.sequence import Batch
from vlakern.models.vla import VLA, Prefix

__all__ = ["TorchEngine"]


class TorchEngine:
    """Vision, prefix and integration of a network where it is.

    Attributes:
        model: the network, in inference mode.
        kv: keys and values of the prefixes ``[layers, 2, T, G · D]``.
    """

    def __init__(
        self,
        model: VLA,
        limits: Limits,
        *,
        steps: int,
        solver: Solver,
        image: ImageRule = DEFAULT_IMAGES,
    ) -> None:
        self.model = model.eval()
        self._image = image.settings
        self.steps = steps
        self.solver: Solver = solver
        mot, weight = model.config.mot, model.embed_tokens.weight
        self._dtype, self._device = weight.dtype, weight.device
        shape = (mot.layers, 2, limits.tokens, mot.kv_heads * mot.head_dim)
        self.kv = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        side = model.config.vision.image_size
        pixels = (limits.views, 3, side, side)
        self._pixels = torch.empty(pixels, dtype=weight.dtype, device=weight.device)
        self._views = torch.empty(0)

    @property
    def dtype(self) -> str:
        return {torch.float32: "fp32", torch.bfloat16: "bf16"}.get(self._dtype, str(self._dtype))

    def prepare(self, images: Sequence[np.ndarray]) -> None:
        side = self.model.config.vision.image_size
        for slot, image in zip(self._pixels, images, strict=False):
            slot.copy_(ops.image_prep(image, size=side, **self._image)[0])

    def take_pixels(self, pixels_V3SS: Tensor) -> None:
        self._pixels[: len(pixels_V3SS)].copy_(pixels_V3SS)

    @torch.inference_mode()
    def vision(self, views: int) -> Tensor:
        self._views = self.model.vision(self._pixels[:views])
        return self._views.flatten(0, 1)

    @torch.inference_mode()
    def prefix(self, batch: Batch, views: int) -> None:
        made = self.model.prefill(batch, self._views[:views])
        rows = int(batch.cu_prefix[-1])
        for layer, slot in zip(made.layers, self.kv[:, :, :rows], strict=True):
            slot[0].copy_(layer.k_TGD.flatten(1))
            slot[1].copy_(layer.v_TGD.flatten(1))

    def integrate(
        self,
        noise_NHA: Tensor,
        kv: Tensor,
        cu_prefix: Tensor,
        prefix_index: Tensor,
        frozen: Frozen | None,
        slot_mask: Tensor | None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        if guidance is None or not guidance.exact:
            with torch.inference_mode():
                rest = (frozen, slot_mask, guidance)
                return self._integrate(noise_NHA, kv, cu_prefix, prefix_index, *rest)
        # Backward keeps what it needs, but never tensors of inference mode: copies are none.
        with torch.inference_mode(False), torch.no_grad():
            mask = None if slot_mask is None else slot_mask.clone()
            decided, weights = guidance.decided_RHA.clone(), guidance.weights_RHA.clone()
            led = replace(guidance, decided_RHA=decided, weights_RHA=weights)
            if frozen is not None:
                frozen = Frozen(frozen.action_RHA.clone(), frozen.length_R.clone())
            noise, kv = noise_NHA.clone(), kv.clone()
            cu, index = cu_prefix.clone(), prefix_index.clone()
            return self._integrate(noise, kv, cu, index, frozen, mask, led)

    def _integrate(
        self,
        noise_NHA: Tensor,
        kv: Tensor,
        cu_prefix: Tensor,
        prefix_index: Tensor,
        frozen: Frozen | None,
        slot_mask: Tensor | None,
        guidance: Guidance | None,
    ) -> Tensor:
        mot, rows = self.model.config.mot, int(cu_prefix[-1])
        heads = (mot.kv_heads, mot.head_dim)
        layers = tuple(
            KeyValues(layer[0, :rows].unflatten(-1, heads), layer[1, :rows].unflatten(-1, heads))
            for layer in kv
        )
        prefix = Prefix(layers, cu_prefix.long().to(self._device))
        index = prefix_index.long().to(self._device)

        def velocity(x_NHA: Tensor, tau: Tensor) -> Tensor:
            return self.model.velocity(prefix, x_NHA.to(self._dtype), tau, index).float()

        led = velocity
        if guidance is not None:
            decided = guidance.decided_RHA.float().to(self._device)
            weights = guidance.weights_RHA.float().to(self._device)
            led = guided(velocity, decided, weights, guidance.most, guidance.exact)
        noise = noise_NHA.to(self._device)
        mask = None if slot_mask is None else slot_mask.to(self._device)
        if frozen is not None:
            frozen = Frozen(
                frozen.action_RHA.float().to(self._device), frozen.length_R.int().to(self._device)
            )
        steps, solver = self.steps, self.solver
        return integrate(led, noise, steps=steps, solver=solver, frozen=frozen, slot_mask=mask)
