"""What calls of an engine may bring: one sentence for everything that does not fit.

Dimension letters: R observations, V views, N action chunks, H positions of a chunk, A slots.
"""

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import InputError, Unsupported
from vlakern.flow.guidance import Guidance
from vlakern.flow.solver import Frozen
from vlakern.infer.buffers import Limits
from vlakern.models.config import VLAConfig
from vlakern.models.sequence import Batch

__all__ = [
    "check_batch",
    "check_cheap",
    "check_chunks",
    "check_fits",
    "check_guidance",
    "check_image",
    "check_pixels",
    "check_seed",
]

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


def check_fits(limits: Limits, **found: int) -> None:
    """Counts by the names of the limits."""
    for name, count in found.items():
        most = getattr(limits, name)
        if count > most:
            raise InputError(
                f"found {count} {_WORDS[name]}, the engine is built for at most {most}; build"
                f" it with a larger {_ARGUMENTS[name]}"
            )


def check_batch(limits: Limits, batch: Batch) -> None:
    """Its sizes and its states."""
    cu = batch.cu_prefix
    views = len(batch.pixels_V3SS)
    check_fits(limits, views=views, observations=len(cu) - 1, tokens=int(cu[-1]))
    if not torch.isfinite(batch.state_RS).all():
        raise InputError("a state holds a value that is not finite; expected numbers")


def check_pixels(config: VLAConfig, pixels_V3SS: Tensor) -> None:
    """Their size and values."""
    side = config.vision.image_size
    if tuple(pixels_V3SS.shape[1:]) != (3, side, side):
        raise InputError(f"pixels are {list(pixels_V3SS.shape)}, expected [V, 3, {side}, {side}]")
    if not torch.isfinite(pixels_V3SS).all():
        raise InputError("an image holds a value that is not finite; expected -1 to 1")


def check_chunks(
    config: VLAConfig,
    limits: Limits,
    prefixes: int,
    noise_NHA: Tensor,
    n: int,
    frozen: Frozen | None,
    slot_mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The prefix of each of ``n`` chunks per prefix, int32 ``[N]``, and the mask, uint8 ``[N, A]``
    of 0 and 1."""
    rows = prefixes * n
    _check_noise(config, noise_NHA, rows, f"{prefixes} prefixes and n = {n}")
    check_fits(limits, rows=rows)
    index = torch.arange(prefixes, dtype=torch.int32).repeat_interleave(n)
    mask = None if slot_mask is None else _mask(config, slot_mask, rows)
    if frozen is not None:
        _check_frozen(frozen, noise_NHA)
    return index, mask


def _check_noise(config: VLAConfig, noise_NHA: Tensor, rows: int, why: str) -> None:
    expected = (rows, config.chunk, config.action_dim)
    if tuple(noise_NHA.shape) != expected or noise_NHA.dtype != torch.float32:
        raise InputError(
            f"noise is {noise_NHA.dtype} {list(noise_NHA.shape)}, expected fp32"
            f" {list(expected)} for {why}"
        )
    if not torch.isfinite(noise_NHA).all():
        raise InputError("noise holds a value that is not finite; draw it again")


def _mask(config: VLAConfig, slot_mask: Tensor, rows: int) -> Tensor:
    slots, found = config.action_dim, tuple(slot_mask.shape)
    if found not in ((slots,), (rows, slots)):
        raise InputError(f"slot_mask is {list(found)}, expected [{slots}] or [{rows}, {slots}]")
    return (slot_mask != 0).to(torch.uint8).expand(rows, slots)


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


def check_cheap(guidance: Guidance | None) -> None:
    """Raises Unsupported for guidance through the Jacobian, which packed weights do not have."""
    if guidance is not None and guidance.exact:
        raise Unsupported(
            "packed weights have no backward pass, so guidance is not exact: use the form 'cheap',"
            " or load the policy with backend='torch'"
        )


def check_guidance(guidance: Guidance, noise_NHA: Tensor) -> None:
    """Its shapes, and that what counts is finite."""
    decided, weights = guidance.decided_RHA, guidance.weights_RHA
    if not decided.shape == weights.shape == noise_NHA.shape:
        raise InputError(
            f"decided actions are {list(decided.shape)} with weights {list(weights.shape)},"
            f" expected the noise's {list(noise_NHA.shape)} of both"
        )
    if not 0 <= guidance.most < float("inf"):
        raise InputError(f"guidance is at most {guidance.most}, expected a number of 0 or more")
    if not bool(((weights >= 0) & (weights <= 1)).all()):
        raise InputError("a weight of guidance is not from 0 to 1")
    if not torch.isfinite(decided[weights > 0]).all():
        raise InputError("decided actions hold a value that is not finite")


def check_seed(seed: int) -> None:
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 1 << 63:
        raise InputError(f"seed is {seed!r}, expected a whole number from 0 to 2^63 - 1")


def check_image(image: np.ndarray, view: str) -> np.ndarray:
    """Checks a camera image."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"view {view!r} is {image.dtype}{list(image.shape)}, expected uint8 [height, width, 3]"
        )
    return image
