"""Random access to training samples and their collation into packed batches.

Dimension letters: B samples, V views of all samples, S image side or state width, H chunk, A action
width, T frames of an episode.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlakern.models.config import VLAConfig
from vlakern.models.sequence import Batch, document, pack
from vlakern.models.tokenizer import TextTokenizer
from vlakern.space import ActionSpace
from vlakern.space.controller import NativeControl

__all__ = [
    "Augment",
    "Clip",
    "TrainBatch",
    "chunks_at",
    "collate_clips",
    "kept_views",
    "to_pixels",
]


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
        numbers_B: int64, the number of each sample in the run, whatever the number of ranks.
        sample_ids: ``dataset/episode/frame`` of each sample, for messages.
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
    """Random changes of a training sample; see :class:`vlakern.train.config.TrainConfig`.

    Attributes:
        drop_state: probability that the whole proprioception is zeroed.
        drop_view: probability that each view is removed with its tokens; one always stays.
        shift: random translation of each view, up to this many pixels on each axis.
        jitter: random gain and offset of each view, up to this share of full scale.
    """

    drop_state: float = 0.0
    drop_view: float = 0.0
    shift: int = 0
    jitter: float = 0.0


@dataclass(frozen=True)
class Clip:
    """One sample before it is encoded, of a robot with S native state and N native action numbers.

    Attributes:
        name: ``dataset/episode/frame``.
        number: of the sample in the run.
        robot: its embodiment's number in the mixture.
        space: from states and commands to the model's numbers.
        words: the instruction.
        pictures: of the views that are kept, uint8 ``[S, S, 3]`` in the model's size.
        state, outcome: ``[S]`` at the frame and at the end of the episode.
        chunk: commands ``[H, N]``; inside: bool ``[H]``, which of them exist.
        keep_state: whether the model sees ``state``.
        rng: of everything random in this sample.
    """

    name: str
    number: int
    robot: int
    space: ActionSpace
    words: str
    pictures: Sequence[np.ndarray]
    state: np.ndarray
    outcome: np.ndarray
    chunk: np.ndarray
    inside: np.ndarray
    keep_state: bool
    rng: np.random.Generator

    def check(self) -> None:
        """Raises InputError if it cannot be encoded: no rotation, or numbers out of range."""
        self.space.encode_state(np.stack([self.state, self.outcome]))
        self.space.encode(self.chunk[None], self.state[None], self.inside[None])


def collate_clips(
    config: VLAConfig, tokenizer: TextTokenizer, clips: Sequence[Clip], augment: Augment
) -> TrainBatch:
    """One batch of samples, whose robots may differ but whose slot maps do not.

    A sample's numbers depend on the sample alone, not on the others in the batch.

    Raises:
        InputError: a number that is not finite, or no rotation where one is expected.
    """
    documents = [
        document(config.prompt, tokenizer.encode, clip.words, len(clip.pictures)) for clip in clips
    ]
    valid_BH = np.stack([clip.inside for clip in clips])
    state_BS = np.zeros((len(clips), config.state_dim), np.float32)
    outcome_BS = np.zeros_like(state_BS)
    action_BHA = np.zeros((len(clips), config.chunk, config.action_dim), np.float32)
    slots_BA = np.zeros((len(clips), config.action_dim), bool)
    for space, rows in _by_space(clips):
        starts = np.stack([clips[row].state for row in rows])
        state_BS[rows] = space.encode_state(starts)
        outcome_BS[rows] = space.encode_state(np.stack([clips[row].outcome for row in rows]))
        chunks = np.stack([clips[row].chunk for row in rows])
        # Actions stay relative to where the hand really is, also if the state is dropped.
        action_BHA[rows] = space.encode(chunks, starts, valid_BH[rows])
        slots_BA[rows] = space.action_mask
    state_BS *= np.array([clip.keep_state for clip in clips], np.float32)[:, None]
    prefix = pack(config, documents, _pixels(clips, augment), torch.from_numpy(state_BS))
    return TrainBatch(
        prefix,
        torch.from_numpy(action_BHA),
        torch.from_numpy(np.float32(valid_BH[..., None] & slots_BA[:, None])),
        torch.from_numpy(np.float32(slots_BA)),
        torch.from_numpy(outcome_BS),
        torch.tensor([row for row, clip in enumerate(clips) for _ in clip.pictures]),
        torch.tensor([clip.robot for clip in clips]),
        torch.tensor([clip.number for clip in clips]),
        tuple(clip.name for clip in clips),
    )


def _by_space(clips: Sequence[Clip]) -> list[tuple[ActionSpace, list[int]]]:
    """The rows of every space, in the order in which the spaces appear."""
    rows: dict[int, list[int]] = {}
    for row, clip in enumerate(clips):
        rows.setdefault(id(clip.space), []).append(row)
    return [(clips[found[0]].space, found) for found in rows.values()]


def _pixels(clips: Sequence[Clip], augment: Augment) -> Tensor:
    """All views of all samples, moved and recoloured by what each sample's generator draws."""
    pixels = to_pixels(np.stack([picture for clip in clips for picture in clip.pictures]))
    jitter, shift = augment.jitter, augment.shift
    if jitter:
        draws = [c.rng.uniform(-jitter, jitter, size=(len(c.pictures), 2)) for c in clips]
        pixels = _recolour(pixels, np.concatenate(draws).astype(np.float32))
    if shift:
        moves = [c.rng.integers(0, 2 * shift + 1, size=(len(c.pictures), 2)) for c in clips]
        pixels = _translate(pixels, shift, np.concatenate(moves))
    return pixels


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


def kept_views(views: Sequence[str], drop: float, rng: np.random.Generator) -> list[str]:
    """The views that a sample keeps: each with probability 1 - ``drop``, one at least."""
    kept = [view for view in views if rng.random() >= drop]
    return kept or [views[int(rng.integers(len(views)))]]


def _recolour(pixels_V3SS: Tensor, draws_V2: np.ndarray) -> Tensor:
    gain, offset = torch.from_numpy(draws_V2.T.copy())[..., None, None, None]
    return pixels_V3SS * (1.0 + gain) + offset


def _translate(pixels_V3SS: Tensor, shift: int, moves_V2: np.ndarray) -> Tensor:
    """Moves each view by whole pixels, the border repeated."""
    side = pixels_V3SS.shape[-1]
    padded = torch.nn.functional.pad(pixels_V3SS, (shift,) * 4, mode="replicate")
    pairs = zip(padded, moves_V2.tolist(), strict=True)
    return torch.stack([view[:, y : y + side, x : x + side] for view, (y, x) in pairs])
