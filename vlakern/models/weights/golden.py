"""What an independent implementation computes in every stage, and how far a network is from it.

Dimension letters: V views, S image side, K tokens of a view, M width of the semantic expert, L
layers, T prefix rows, G key-value heads, D head dim, P times, H chunk, A action width.
"""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import CheckpointError
from vlakern.flow.solver import integrate
from vlakern.models.sequence import Document, Segment, pack
from vlakern.models.vla import VLA

__all__ = ["STAGES", "Golden", "compare", "distance", "document_of", "read_golden"]

STAGES = ("vision", "keys", "values", "velocity", "chunk")
DIMS = {"images": 4, "tokens": 1, "state": 1, "noise": 2, "steps": 0, "x": 2, "taus": 1}
DIMS |= {"vision": 3, "keys": 4, "values": 4, "velocity": 3, "chunk": 2}
LIMIT = 256 << 20  # bytes


@dataclass(frozen=True)
class Golden:
    """Inputs and outputs of one observation, in fp32.

    Attributes:
        given: ``images`` uint8 ``[V, S, S, 3]``, ``tokens`` int64, normalised ``state``, ``noise``
            ``[H, A]``, the number of ``steps``, and ``x`` ``[H, A]`` with ``taus`` ``[P]`` for the
            velocity; ``parts``: how many words are before the views, and between them and the
            state.
        found: by stage: ``vision`` ``[V, K, M]``, ``keys`` and ``values`` ``[L, T, G, D]`` of the
            prefix's first T rows, ``velocity`` dx/dτ ``[P, H, A]``, ``chunk`` ``[H, A]``.
        gap: by stage, how far the implementation's own bf16 is from its fp32; empty if unknown.
    """

    given: dict[str, np.ndarray]
    found: dict[str, np.ndarray]
    gap: dict[str, float]


def read_golden(path: Path) -> Golden:
    """Reads an ``.npz`` of these arrays; ``bf16_vision`` and so on are the implementation's bf16.

    Raises:
        CheckpointError: the file is missing, damaged, or lacks an array or has one of another rank.
    """
    if not path.is_file() or path.stat().st_size > LIMIT:
        raise CheckpointError(f"{path} is missing or too large; expected an .npz of golden arrays")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, BadZipFile) as error:
        raise CheckpointError(f"{path} is no .npz of plain arrays ({error})") from error
    for name, dims in DIMS.items():
        if name not in arrays or arrays[name].ndim != dims:
            shape = list(arrays[name].shape) if name in arrays else "nothing"
            raise CheckpointError(f"{path}: {name!r} is {shape}, expected {dims} dimensions")
    # Without parts the views come first, the state last.
    parts = arrays.setdefault("parts", np.array([0, len(arrays["tokens"])]))
    if (
        parts.shape != (2,)
        or parts.dtype.kind != "i"
        or not 0 <= parts.min() <= parts.sum() <= len(arrays["tokens"])
    ):
        raise CheckpointError(f"{path}: 'parts' is not how many words are before views and state")
    found = {stage: arrays[stage].astype(np.float32) for stage in STAGES}
    gap = {
        stage: distance(arrays[f"bf16_{stage}"], found[stage])
        for stage in STAGES
        if f"bf16_{stage}" in arrays
    }
    given = {name: arrays[name] for name in (*DIMS, "parts") if name not in STAGES}
    return Golden(given, found, gap)


@torch.inference_mode()
def compare(network: VLA, golden: Golden) -> dict[str, float]:
    """Relative distance (Frobenius) of every stage, in the network's own dtype.

    Raises:
        InputError: inputs that do not fit the network.
    """
    config, weight = network.config, network.embed_tokens.weight
    dtype, device = weight.dtype, weight.device

    def given(name: str) -> Tensor:
        array = torch.from_numpy(golden.given[name]).to(device)
        return array.to(dtype) if array.is_floating_point() else array

    images = given("images").permute(0, 3, 1, 2)
    pixels = (images.float() / 255.0 * 2.0 - 1.0).to(dtype)
    doc = document_of(golden.given["tokens"], golden.given["parts"], len(images))
    if config.state == "words":
        doc = tuple(segment for segment in doc if segment.kind != "state")
    state = given("state")[None, : config.state_dim]
    state = torch.nn.functional.pad(state, (0, config.state_dim - state.shape[1]))
    batch = pack(config, [doc], pixels, state)
    views = network.vision(pixels)
    prefix = network.prefill(batch, views)
    rows = golden.found["keys"].shape[1]
    x, taus = given("x")[None], torch.from_numpy(golden.given["taus"]).to(device).float()
    velocities = [network.velocity(prefix, x, tau[None]) for tau in taus]
    chunk = integrate(
        lambda x, tau: network.velocity(prefix, x.to(dtype), tau).float(),
        torch.from_numpy(golden.given["noise"]).to(device)[None].float(),
        steps=int(golden.given["steps"]),
        solver=config.solver,
    )
    made = {
        "vision": views,
        "keys": torch.stack([layer.k_TGD[:rows] for layer in prefix.layers]),
        "values": torch.stack([layer.v_TGD[:rows] for layer in prefix.layers]),
        "velocity": torch.cat(velocities),
        "chunk": chunk[0],
    }
    return {
        stage: distance(made[stage].float().cpu().numpy(), golden.found[stage]) for stage in STAGES
    }


def document_of(tokens: np.ndarray, parts: np.ndarray, views: int) -> Document:
    """Words, the views, words, the state, words."""
    before, after, rest = np.split(tokens, np.cumsum(parts))
    texts = [Segment("text", tuple(one.tolist())) for one in (before, after, rest)]
    seen = (Segment("view"),) * views
    return (texts[0], *seen, texts[1], Segment("state"), texts[2])


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """‖found - expected‖ / ‖expected‖; infinite for other shapes."""
    if found.shape != expected.shape:
        return float("inf")
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(found - wide) / max(np.linalg.norm(wide), 1e-30))
