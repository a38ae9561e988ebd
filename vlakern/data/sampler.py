"""Which frame is sample number i of a run: a pure function of the seed and the number.

A mixture is a set of *leaves*, each with a share: a dataset, or one task of a dataset that draws
its tasks equally often. Sample i comes from the leaf that a binary tree over the shares leads to.
The k-th visitor of a node goes left if ``floor((k + 1) p + u) > floor(k p + u)``, with p the left
side's part of the node's share and u in [0, 1) from the seed, so ``floor(k p + u)`` visitors went
left before it: every leaf knows which of its own draws this is, in closed form. Over seeds u is
uniform, so every sample has exactly the shares' probabilities; within a run the draws of a leaf
among any n in a row differ from n times its share by less than 2 per level of the tree, where
independent draws would differ by the root of n.

A leaf's draws come in *passes*. A pass visits every start frame of the pass once, in a new random
order. With a stride the starts of an episode lie a stride apart from an offset that every episode
draws anew for each pass. An episode of L frames has ceil(L / stride) places in a pass; where the
last of them is past its end a random place with an offset of its own is drawn instead. So every
frame is a start with exactly the same probability, or 1 / L of an episode's where L < stride, and
an episode counts max(L / stride, 1), as the report of effective frames says.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlakern.errors import ConfigError, InputError

__all__ = ["Leaf", "Sample", "Sampler"]

_MASK = (1 << 64) - 1
# Shares are whole multiples of this part of the mixture.
_UNIT = 1 << 62
# At least half of all places with random offsets are starts.
_MOST_TRIES = 256
_TREE, _ORDER, _OFFSET, _AGAIN, _INSTEAD = range(1, 6)


@dataclass(frozen=True)
class Sample:
    """A dataset of the mixture, its episode, and the frame where the chunk starts."""

    dataset: int
    episode: int
    frame: int


@dataclass(frozen=True)
class Leaf:
    """Episodes that share a weight.

    Attributes:
        dataset: that they belong to.
        share: of the mixture; leaves of share 0 are never drawn.
        stride: frames from one start to the next.
        episodes: their numbers in the dataset.
        lengths: of these episodes [frames], at least 1.
    """

    dataset: int
    share: float
    stride: int
    episodes: Sequence[int]
    lengths: Sequence[int]


class Sampler:
    """Samples by their number in the run; nothing depends on what was asked before.

    It holds two numbers per episode and none per frame.

    Args:
        seed: of the run; other seeds give other orders.

    Raises:
        ConfigError: no leaf has a share.
        InputError: a leaf without episodes, or lengths or strides below 1.
    """

    def __init__(self, leaves: Sequence[Leaf], seed: int) -> None:
        used = [leaf for leaf in leaves if leaf.share > 0]
        if not used:
            raise ConfigError("the weight of every dataset is 0; give at least one of them more")
        self._leaves = [_Places(leaf) for leaf in used]
        self._seed = _mix(seed & _MASK, seed >> 64)
        total = sum(leaf.share for leaf in used)
        ends = np.cumsum([leaf.share / total for leaf in used])
        self._ends = [0, *(round(float(end) * _UNIT) for end in ends[:-1]), _UNIT]

    def sample(self, index: int) -> Sample:
        """Sample ``index`` >= 0.

        Raises:
            InputError: a negative index.
        """
        leaf, count = self._draw(index)
        return self._start(leaf, count)

    def instead(self, index: int, attempt: int) -> Sample:
        """What takes the place of sample ``index`` if it is damaged, for ``attempt`` 1, 2, ...

        Drawn at random from the same leaf, so that shares stay what they are.
        """
        leaf, count = self._draw(index)
        place = self._leaves[leaf]
        word = _mix(self._seed, _INSTEAD, leaf, index, attempt)
        return self._start(leaf, count // place.places * place.places + word % place.places)

    def passes(self, index: int) -> list[tuple[int, float]]:
        """Of every leaf: its dataset, and how often it was passed through before ``index``."""
        counts = [0] * len(self._leaves)
        stack = [(0, len(self._leaves), index)]
        while stack:
            low, high, visits = stack.pop()
            if high - low == 1:
                counts[low] = visits
                continue
            middle, left = self._split(low, high, visits)
            stack += [(low, middle, left), (middle, high, visits - left)]
        leaves = zip(self._leaves, counts, strict=True)
        return [(leaf.dataset, count / leaf.places) for leaf, count in leaves]

    def _draw(self, index: int) -> tuple[int, int]:
        """The leaf of sample ``index``, and how often the leaf was drawn before."""
        if index < 0:
            raise InputError(f"sample {index} is asked for; samples count from 0")
        low, high, visits = 0, len(self._leaves), index
        while high - low > 1:
            middle, left = self._split(low, high, visits)
            if self._split(low, high, visits + 1)[1] > left:
                high, visits = middle, left
            else:
                low, visits = middle, visits - left
        return low, visits

    def _split(self, low: int, high: int, visits: int) -> tuple[int, int]:
        """Where the leaves ``[low, high)`` part, and how many of the first visits went left."""
        ends, middle = self._ends, (low + high) // 2
        whole, left = ends[high] - ends[low], ends[middle] - ends[low]
        if not whole:
            return middle, visits
        shift = _mix(self._seed, _TREE, low, high) * whole >> 64
        return middle, (visits * left + shift) // whole

    def _start(self, leaf: int, count: int) -> Sample:
        """Draw ``count`` of a leaf."""
        places = self._leaves[leaf]
        turn, place = divmod(count, places.places)
        place = _permute(place, places.places, _mix(self._seed, _ORDER, leaf, turn))
        at = places.find(place)
        bits = _mix(self._seed, _OFFSET, leaf, turn, at)
        for attempt in range(_MOST_TRIES):
            offset = bits * places.spans[at] >> 64
            frame = offset + (place - places.begins[at]) * places.stride
            if frame < places.lengths[at]:
                return Sample(places.dataset, places.episodes[at], frame)
            bits = _mix(self._seed, _AGAIN, leaf, count, attempt)
            place, bits = bits % places.places, _mix(bits, attempt)
            at = places.find(place)
        raise InputError(f"no start frame found for draw {count} of dataset {places.dataset}")


class _Places:
    """The places of a leaf's episodes in a pass, one after the other."""

    def __init__(self, leaf: Leaf) -> None:
        lengths = np.asarray(leaf.lengths, np.int64)
        if leaf.stride < 1 or not len(lengths) or len(lengths) != len(leaf.episodes):
            raise InputError(
                f"dataset {leaf.dataset}: {len(leaf.episodes)} episodes with {len(lengths)} lengths"
                f" and stride {leaf.stride}; expected at least one episode and a stride from 1 up"
            )
        if int(lengths.min()) < 1:
            raise InputError(f"dataset {leaf.dataset}: an episode has no frames; leave it out")
        ends = np.cumsum(-(-lengths // leaf.stride))
        self.dataset, self.stride = leaf.dataset, leaf.stride
        self.episodes = [int(episode) for episode in leaf.episodes]
        self.lengths: list[int] = lengths.tolist()
        self.spans: list[int] = np.minimum(lengths, leaf.stride).tolist()
        self.begins: list[int] = [0, *ends[:-1].tolist()]
        self.places = int(ends[-1])

    def find(self, place: int) -> int:
        """Which of the episodes has the place."""
        return bisect.bisect_right(self.begins, place) - 1


def _mix(*words: int) -> int:
    """64 random bits for these words: SplitMix64's finaliser over one after the other."""
    state = 0x9E3779B97F4A7C15
    for word in words:
        state = (state ^ word) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def _permute(number: int, count: int, key: int) -> int:
    """A random permutation of ``range(count)``: four Feistel rounds, walked until inside."""
    half = max(1, (max(count - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = number >> half, number & mask
        for turn in range(4):
            left, right = right, left ^ (_mix(key, turn, right) & mask)
        number = left << half | right
        if number < count:
            return number
