"""A training batch holds the right frames, states and actions, and what augmentation may do."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from vlakern.data.collate import (
    Augment,
    Clip,
    TrainBatch,
    chunks_at,
    collate_clips,
    kept_views,
    to_pixels,
)
from vlakern.models import VLAConfig, preset
from vlakern.models.tokenizer import TextTokenizer, fit_tokenizer
from vlakern.models.weights import Processing
from vlakern.models.weights.native import make_space
from vlakern.space import ActionSpace, Embodiment, Field, Slot, SlotMap, VectorStats
from vlakern.space.controller import NativeControl

CONFIG: VLAConfig = preset("tiny")
VIEWS: tuple[str, ...] = ("front", "wrist")
LENGTHS = (9, 4, 7)
WORDS = ("push", "open", "push")


def plain_space() -> ActionSpace:
    """A robot whose numbers are the model's."""
    state, action = (SlotMap("arm", n, (Slot("all", "1", 0, n),)) for n in (7, 5))
    fields = (Field("all", (0, 7)),), (Field("all", (0, 5)),)
    robot = Embodiment("arm", "arm", 20.0, VIEWS, 7, 5, *fields)
    units = (VectorStats.units(slots.names()) for slots in (state, action))
    return make_space(robot, state, action, Processing("none", "none"), *units)


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


def collate(
    config: VLAConfig,
    views: Sequence[str],
    tokenizer: TextTokenizer,
    store: ClipStore,
    pairs: np.ndarray,
    augment: Augment,
    rng: np.random.Generator,
) -> TrainBatch:
    """Makes one batch of episodes in memory; everything random comes from ``rng``."""
    clips = []
    for number, (episode, frame) in enumerate((int(e), int(f)) for e, f in pairs):
        kept = kept_views(views, augment.drop_view, rng)
        states = store.states[episode]
        vectors = states, store.actions[episode]
        chunk, inside = chunks_at(*vectors, [frame], config.chunk, store.control, store.stride)
        clip = Clip(
            f"{episode}/{frame}",
            number,
            0,
            store.space,
            store.instructions[episode],
            [store.frames[episode][view][frame] for view in kept],
            states[frame],
            states[-1],
            chunk[0],
            inside[0],
            rng.random() >= augment.drop_state,
            rng,
        )
        clips.append(clip)
    return collate_clips(config, tokenizer, clips, augment)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    """Spells the instructions."""
    return fit_tokenizer(WORDS, 300)


@pytest.fixture(scope="module")
def store() -> ClipStore:
    """Three episodes in which every number says where it comes from."""
    frames, states, actions = [], [], []
    for episode, length in enumerate(LENGTHS):
        instants = np.arange(length)
        codes = {view: 100 * v + 20 * episode + instants for v, view in enumerate(VIEWS)}
        frames.append(
            {
                view: np.broadcast_to(code[:, None, None, None], (length, 28, 28, 3)).astype("u1")
                for view, code in codes.items()
            }
        )
        states.append(np.repeat((100 * episode + instants)[:, None], 7, 1).astype(np.float32))
        actions.append(np.repeat((1000 * episode + instants)[:, None], 5, 1).astype(np.float32))
    return ClipStore(frames, states, actions, WORDS, plain_space())


def make(
    store: ClipStore,
    tokenizer: TextTokenizer,
    pairs: list[tuple[int, int]],
    augment: Augment | None = None,
    seed: int = 0,
) -> TrainBatch:
    rng = np.random.default_rng(seed)
    return collate(CONFIG, VIEWS, tokenizer, store, np.array(pairs), augment or Augment(), rng)


def codes(batch: TrainBatch) -> list[int]:
    """The number that each (constant) picture carries."""
    pixels = (batch.prefix.pixels_V3SS + 1.0) * 127.5
    assert bool((pixels == pixels[:, :1, :1, :1]).all())
    return pixels[:, 0, 0, 0].round().int().tolist()


def test_samples_are_the_frames_that_were_asked_for(
    store: ClipStore, tokenizer: TextTokenizer
) -> None:
    """Pictures view by view, the state of the instant and the chunk that begins there."""
    batch = make(store, tokenizer, [(0, 2), (2, 0)])
    assert codes(batch) == [2, 102, 40, 140]
    assert batch.prefix.state_RS[:, 0].tolist() == [2.0, 200.0]
    assert batch.action_BHA[:, :, 4].tolist() == [
        [2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
        [2000.0, 2001.0, 2002.0, 2003.0, 2004.0, 2005.0],
    ]
    assert bool((batch.mask_BHA == 1).all())
    text = tokenizer.encode("Robot. ") + tokenizer.encode("<img>")
    assert batch.prefix.tokens_L[: len(text)].tolist() == text


def test_the_outcome_is_the_last_state_of_the_episode_and_views_know_their_sample(
    store: ClipStore, tokenizer: TextTokenizer
) -> None:
    """Whatever the frame; a dropped view leaves no row behind."""
    batch = make(store, tokenizer, [(0, 0), (0, 2), (1, 1)])
    last = [store.states[e][-1].tolist() for e in (0, 0, 1)]
    assert batch.outcome_BS.tolist() == last
    assert batch.view_rows.tolist() == [0, 0, 1, 1, 2, 2]
    dropped = make(store, tokenizer, [(0, 0)] * 50, Augment(drop_view=0.5))
    assert len(dropped.view_rows) == len(dropped.prefix.pixels_V3SS) < 100
    assert set(dropped.view_rows.tolist()) == set(range(50))


def test_a_chunk_past_the_end_repeats_the_last_action_and_is_masked(
    store: ClipStore, tokenizer: TextTokenizer
) -> None:
    """Frame 2 of 4: two actions exist, four are copies that the loss does not see."""
    batch = make(store, tokenizer, [(1, 2), (1, 3)])
    assert batch.action_BHA[:, :, 0].tolist() == [
        [1002.0, 1003.0, 1003.0, 1003.0, 1003.0, 1003.0],
        [1003.0] * 6,
    ]
    assert batch.mask_BHA[:, :, 0].tolist() == [[1.0, 1, 0, 0, 0, 0], [1.0, 0, 0, 0, 0, 0]]
    assert batch.mask_BHA.shape == batch.action_BHA.shape


def test_the_same_generator_gives_the_same_batch(
    store: ClipStore, tokenizer: TextTokenizer
) -> None:
    """Everything random comes from it."""
    augment = Augment(drop_state=0.5, drop_view=0.5, shift=2, jitter=0.3)
    pairs = [(0, i) for i in range(8)]
    one, two = (make(store, tokenizer, pairs, augment, seed=3) for _ in range(2))
    other = make(store, tokenizer, pairs, augment, seed=4)
    assert torch.equal(one.prefix.pixels_V3SS, two.prefix.pixels_V3SS)
    assert torch.equal(one.prefix.state_RS, two.prefix.state_RS)
    assert one.prefix.pixels_V3SS.shape != other.prefix.pixels_V3SS.shape or not torch.equal(
        one.prefix.pixels_V3SS, other.prefix.pixels_V3SS
    )


def test_dropping_the_state_zeroes_all_of_it_at_its_rate(
    store: ClipStore, tokenizer: TextTokenizer
) -> None:
    """Whole vectors, about 30 % of 400; none at rate 0."""
    pairs = [(2, 1)] * 400
    state = make(store, tokenizer, pairs, Augment(drop_state=0.3)).prefix.state_RS
    zero = (state == 0).all(1)
    assert bool((zero == (state == 0).any(1)).all())
    assert 0.3 * 400 - 37 < int(zero.sum()) < 0.3 * 400 + 37
    assert not bool((make(store, tokenizer, pairs).prefix.state_RS == 0).any())


def test_dropping_views_keeps_at_least_one(store: ClipStore, tokenizer: TextTokenizer) -> None:
    """Tokens and pictures go together, both views get their turn, and none is a rate of 0."""
    pairs = [(0, 0)] * 300
    batch = make(store, tokenizer, pairs, Augment(drop_view=0.6))
    full = int(make(store, tokenizer, pairs[:1]).prefix.cu_prefix[1])
    one_view = CONFIG.vision.tokens + len(tokenizer.encode("<img>") + tokenizer.encode("</img>"))
    lengths = Counter(batch.prefix.cu_prefix.diff().tolist())
    assert set(lengths) == {full, full - one_view}
    # Both stay with 0.4², or one of two stays, drawn or because all were dropped.
    assert 0.16 * 300 - 32 < lengths[full] < 0.16 * 300 + 32
    assert Counter(codes(batch)).keys() == {0, 100}
    assert len(codes(batch)) == 2 * lengths[full] + lengths[full - one_view]
    alone = codes(make(store, tokenizer, pairs, Augment(drop_view=0.999)))
    assert len(alone) == 300
    assert 100 < alone.count(0) < 200


def test_shift_moves_by_whole_pixels_and_repeats_the_border(
    store: ClipStore, tokenizer: TextTokenizer
) -> None:
    """Every shifted view is a window of the padded picture, and all offsets occur."""
    ramp = np.arange(28, dtype=np.uint8)
    picture = np.stack([np.tile(ramp, (28, 1)), np.tile(ramp[:, None], (1, 28))] * 2, -1)[..., :3]
    clip = dict.fromkeys(VIEWS, picture[None])
    states, actions = [store.states[0][:1]], [store.actions[0][:1]]
    one = ClipStore([clip], states, actions, ["push"], store.space)
    batch = make(one, tokenizer, [(0, 0)] * 200, Augment(shift=2))
    pixels = ((batch.prefix.pixels_V3SS + 1.0) * 127.5).round()
    seen = set()
    for view in pixels:
        dx, dy = int(view[0, 14, 14]) - 14, int(view[1, 14, 14]) - 14
        seen.add((dx, dy))
        line = torch.arange(28)
        assert torch.equal(view[0], (line + dx).clamp(0, 27).expand(28, 28).float())
        assert torch.equal(view[1], (line + dy).clamp(0, 27)[:, None].expand(28, 28).float())
    assert seen == {(x, y) for x in range(-2, 3) for y in range(-2, 3)}


def test_jitter_is_one_gain_and_one_offset_per_view(
    store: ClipStore, tokenizer: TextTokenizer
) -> None:
    """Within the given share of full scale; constant pictures stay constant."""
    batch = make(store, tokenizer, [(0, 0)] * 100, Augment(jitter=0.2))
    pixels = batch.prefix.pixels_V3SS
    assert torch.equal(pixels, pixels[:, :1, :1, :1].expand_as(pixels))
    before = to_pixels(np.full((1, 28, 28, 3), 0, np.uint8))[0, 0, 0, 0]
    moved = pixels[0::2, 0, 0, 0] - before
    assert float(moved.abs().max()) <= 0.4
    assert float(moved.max()) > 0.1
    assert float(moved.min()) < -0.1


def test_pixels_span_minus_one_to_one() -> None:
    """uint8 0 and 255 are the ends; planes come first."""
    picture = np.zeros((1, 2, 3, 3), np.uint8)
    picture[0, 1, 2] = (255, 51, 0)
    found = to_pixels(picture)
    assert found.shape == (1, 3, 2, 3)
    assert found[0, :, 1, 2].tolist() == pytest.approx([1.0, -0.6, -1.0])
    assert bool((found[0, :, 0] == -1).all())
