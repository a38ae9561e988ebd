"""Random access to training samples and their collation into packed batches.

Dimension letters: B samples, V views of all samples, S image side or state width, H chunk, A action
width, T frames of an episode.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlakern.data.stride import draw_offset, start_frames
from vlakern.errors import DatasetError
from vlakern.models.config import VLAConfig
from vlakern.models.sequence import Batch, Document, document, pack
from vlakern.models.tokenizer import TextTokenizer
from vlakern.space import ActionSpace
from vlakern.space.controller import NativeControl

__all__ = ["Augment", "Chunks", "ClipStore", "TrainBatch", "chunks_at", "collate", "to_pixels"]


@dataclass(frozen=True)
class TrainBatch:
    """Prefixes with the chunks that follow them.

    Attributes:
        prefix: B packed prefixes.
        action_BHA: normalised actions.
        mask_BHA: 1 where the action exists, 0 past the end of its episode and in slots that the
            robot does not have.
        slots_BA: 1 in the slots that the robot of the sample has.
        outcome_BS: normalised proprioception at the end of the episode: where the hand will be.
        view_rows: int64, the sample that each view of ``prefix`` belongs to.
        robots_B: int64, the embodiment of each sample in a mixture; None for one embodiment.
    """

    prefix: Batch
    action_BHA: Tensor
    mask_BHA: Tensor
    slots_BA: Tensor
    outcome_BS: Tensor
    view_rows: Tensor
    robots_B: Tensor | None = None
    numbers_B: Tensor | None = None
    sample_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Augment:
    """Random changes of a training sample; see :class:`vlakern.train.config.TrainConfig`."""

    drop_state: float = 0.0
    drop_view: float = 0.0
    shift: int = 0
    jitter: float = 0.0


@dataclass(frozen=True)
class ClipStore:
    """Episodes in memory: decoded frames, states, commands and instructions of one robot.

    Attributes:
        frames: per episode, view name -> uint8 ``[T, S, S, 3]``.
        states: per episode, native ``[T, S]``.
        actions: per episode, ``[T, N]`` as recorded: commands, or the numbers of the robot's own
            controller.
        instructions: per episode.
        space: from states and commands to the model's numbers, or from the controller's numbers if
            its frame is native.
        control: from the controller's numbers to commands; None if ``space`` takes ``actions``.
        stride: frames from one step of a chunk to the next.
    """

    frames: Sequence[Mapping[str, np.ndarray]]
    states: Sequence[np.ndarray]
    actions: Sequence[np.ndarray]
    instructions: Sequence[str]
    space: ActionSpace
    control: NativeControl | None = None
    stride: int = 1


class Chunks:
    """Which (episode, frame) pairs a run draws from: every task equally often.

    With a stride, chunks start that many frames apart, from an offset that every episode draws anew
    for each pass over the data.
    """

    def __init__(self, store: ClipStore) -> None:
        if not store.instructions:
            raise DatasetError("the dataset has no episodes; nothing to train on")
        self._store = store
        self._pairs: list[np.ndarray] = []
        self._left = 0

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """``[count, 2]`` pairs of episode and frame."""
        if self._left <= 0:
            self._pairs = self._starts(rng)
            self._left = sum(len(pairs) for pairs in self._pairs)
        self._left -= count
        tasks = rng.integers(len(self._pairs), size=count)
        return np.stack([self._pairs[t][rng.integers(len(self._pairs[t]))] for t in tasks])

    def _starts(self, rng: np.random.Generator) -> list[np.ndarray]:
        """The pairs of one pass, by task."""
        store, stride = self._store, self._store.stride
        starts = []
        for actions in store.actions:
            offset = draw_offset(len(actions), stride, rng) if stride > 1 else 0
            starts.append(start_frames(len(actions), stride, offset))
        return [
            np.array(
                [
                    (episode, frame)
                    for episode, words in enumerate(store.instructions)
                    if words == task
                    for frame in starts[episode]
                ]
            )
            for task in sorted(set(store.instructions))
        ]


def collate(
    config: VLAConfig,
    views: Sequence[str],
    tokenizer: TextTokenizer,
    store: ClipStore,
    pairs: np.ndarray,
    augment: Augment,
    rng: np.random.Generator,
) -> TrainBatch:
    """Makes one batch; everything random comes from ``rng``."""
    documents: list[Document] = []
    images: list[np.ndarray] = []
    kept_states, starts, chunks, inside, outcomes, view_rows = [], [], [], [], [], []
    for episode, frame in ((int(e), int(f)) for e, f in pairs):
        kept = _kept_views(views, augment.drop_view, rng)
        images += [store.frames[episode][view][frame] for view in kept]
        view_rows += [len(documents)] * len(kept)
        words = store.instructions[episode]
        documents.append(document(config.prompt, tokenizer.encode, words, len(kept)))
        kept_states.append(rng.random() >= augment.drop_state)
        starts.append(store.states[episode][frame])
        vectors = store.states[episode], store.actions[episode]
        chunk, valid = chunks_at(*vectors, [frame], config.chunk, store.control, store.stride)
        chunks.append(chunk[0])
        inside.append(valid[0])
        outcomes.append(store.states[episode][-1])
    pixels = to_pixels(np.stack(images))
    pixels = _translate(_recolour(pixels, augment.jitter, rng), augment.shift, rng)
    space, valid_BH = store.space, np.stack(inside)
    # A dropped state is zero for the model; actions stay relative to where the hand really is.
    state_BS = space.encode_state(np.stack(starts)) * np.array(kept_states, np.float32)[:, None]
    prefix = pack(config, documents, pixels, torch.from_numpy(state_BS))
    actions_BHA = space.encode(np.stack(chunks), np.stack(starts), valid_BH)
    slots_BA = np.broadcast_to(space.action_mask, (len(actions_BHA), config.action_dim))
    return TrainBatch(
        prefix,
        torch.from_numpy(actions_BHA),
        torch.from_numpy(np.float32(valid_BH[..., None] & slots_BA[:, None])),
        torch.from_numpy(np.float32(slots_BA)),
        torch.from_numpy(space.encode_state(np.stack(outcomes))),
        torch.tensor(view_rows),
    )


def to_pixels(images_VSS3: np.ndarray) -> Tensor:
    """uint8 ``[V, S, S, 3]`` to fp32 ``[V, 3, S, S]`` in [-1, 1]."""
    return torch.from_numpy(images_VSS3).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def chunks_at(
    states_TS: np.ndarray,
    actions_TN: np.ndarray,
    frames: Sequence[int],
    chunk: int,
    control: NativeControl | None = None,
    stride: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """The chunks that begin at B frames of one episode, the last action repeated past its end.

    A chunk takes every ``stride``-th frame, see :mod:`vlakern.data.stride`.

    Numbers of a controller become commands chunk by chunk: where its steps start from what was
    commanded, they add up from the measured pose at the chunk's start. That is where a rollout
    starts them again, so the robot gets back the recorded numbers, however far it lags behind and
    whatever noise was added to what the demonstrator asked for.

    Returns:
        ``[B, H, N]`` and, bool ``[B, H]``, which of them exist.
    """
    # Every frame on the way: the steps of a controller add up also between those that are taken.
    index_BT = np.asarray(frames)[:, None] + np.arange((chunk - 1) * stride + 1)
    inside_BT, index_BT = index_BT < len(actions_TN), np.minimum(index_BT, len(actions_TN) - 1)
    chunks_BTN = actions_TN[index_BT]
    if control is not None:
        chunks_BTN = control.to_commands(chunks_BTN, states_TS[index_BT])
    return chunks_BTN[:, ::stride], inside_BT[:, ::stride]


def _kept_views(views: Sequence[str], drop: float, rng: np.random.Generator) -> list[str]:
    kept = [view for view in views if rng.random() >= drop]
    return kept or [views[int(rng.integers(len(views)))]]


def _recolour(pixels_V3SS: Tensor, jitter: float, rng: np.random.Generator) -> Tensor:
    if not jitter:
        return pixels_V3SS
    draws = rng.uniform(-jitter, jitter, size=(2, len(pixels_V3SS), 1, 1, 1)).astype(np.float32)
    gain, offset = torch.from_numpy(draws)
    return pixels_V3SS * (1.0 + gain) + offset


def _translate(pixels_V3SS: Tensor, shift: int, rng: np.random.Generator) -> Tensor:
    """Moves each view by whole pixels, the border repeated."""
    if not shift:
        return pixels_V3SS
    side = pixels_V3SS.shape[-1]
    padded = torch.nn.functional.pad(pixels_V3SS, (shift,) * 4, mode="replicate")
    moves = rng.integers(0, 2 * shift + 1, size=(len(pixels_V3SS), 2))
    views = [v[:, y : y + side, x : x + side] for v, (y, x) in zip(padded, moves, strict=True)]
    return torch.stack(views)
