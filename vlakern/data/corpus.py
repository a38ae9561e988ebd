"""The datasets of a mixture, opened together: one slot map, statistics, words, and samples."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from vlakern.data.body import Body
from vlakern.data.collate import Augment, Clip, chunks_at, kept_views
from vlakern.data.measure import Count, Measured, measure
from vlakern.data.mixture import Mixture, shares
from vlakern.data.recording import Recording
from vlakern.data.sampler import Leaf, Sample, Sampler
from vlakern.data.stride import EffectiveFrames, effective_frames
from vlakern.data.unify import open_recordings
from vlakern.errors import ConfigError, DatasetError
from vlakern.models.config import VLAConfig
from vlakern.models.processing import DEFAULT_IMAGES, PromptRule
from vlakern.models.tokenizer import TextTokenizer, fit_tokenizer
from vlakern.models.weights.native import PolicyRecords, Processing, check_parts, make_space
from vlakern.space import ActionSpace, Embodiment, VectorStats

__all__ = ["MEMORY", "Corpus", "open_corpus"]

# Of decoded pictures that are held in memory [bytes].
MEMORY = 4 << 30
OnEpisode = Callable[[int, int], None]


class Corpus:
    """Samples of a mixture, and what a policy directory says about each of its robots.

    Attributes:
        config: the model, as wide as the slot map.
        mixture: its entries are those of the recordings; what has weight 0 is left out.
        processing: around the network.
        recordings: the datasets, in the order of ``Sample.dataset``.
        embodiments: the robots, each once.
        robots: of each recording, its number in ``embodiments``.
        shares: of each recording; they add up to 1.
        measured: statistics and words.
        tokenizer: of the instructions.
    """

    def __init__(
        self,
        config: VLAConfig,
        mixture: Mixture,
        processing: Processing,
        recordings: Sequence[Recording],
        measured: Measured,
        tokenizer: TextTokenizer | None = None,
    ) -> None:
        if (processing.image, processing.prompt) != (DEFAULT_IMAGES, PromptRule()):
            raise ConfigError(
                "processing has rules for images or prompts that training does not follow yet;"
                " train with the default ones"
            )
        self.mixture, self.processing, self.recordings = mixture, processing, tuple(recordings)
        self.measured = measured
        body = recordings[0].body
        self.state_map, self.action_map = body.state_map, body.action_map
        self.config = replace(
            config, state_dim=self.state_map.width, action_dim=self.action_map.width
        )
        names = list(dict.fromkeys(one.body.robot.name for one in recordings))
        self.robots = tuple(names.index(one.body.robot.name) for one in recordings)
        raw = [sum(one.lengths) for one in recordings]
        self.shares = shares(mixture, raw, [one.effective for one in recordings])
        self.embodiments = tuple(self._main(robot) for robot in range(len(names)))
        self._spaces = [self._space(one.body) for one in recordings]
        words = (text for texts in measured.words for one in texts.values() for text in one)
        self.tokenizer = tokenizer or fit_tokenizer(words, config.vocab_size)

    @property
    def frames(self) -> EffectiveFrames:
        """The report of raw and effective frames."""
        return effective_frames([one.source for one in self.recordings], self.config.chunk)

    @property
    def placement(self) -> list[str]:
        """Where each dataset's pictures are, a line each."""
        side = self.config.vision.image_size
        return [
            f"{one.name}: {one.size(side) / 2**20:.0f} MiB of pictures,"
            f" {'in memory' if one.in_memory else 'read from disk frame by frame'}"
            for one in self.recordings
        ]

    def sampler(self, seed: int) -> Sampler:
        """Which sample comes when, see :class:`vlakern.data.sampler.Sampler`."""
        leaves = [leaf for i in range(len(self.recordings)) for leaf in self._leaves(i)]
        return Sampler(leaves, seed)

    def name(self, sample: Sample) -> str:
        """``dataset/episode/frame``."""
        return f"{self.recordings[sample.dataset].name}/{sample.episode}/{sample.frame}"

    def clip(self, sample: Sample, number: int, augment: Augment, rng: np.random.Generator) -> Clip:
        """One sample, with the views that it keeps; all that is random comes from ``rng``.

        Raises:
            DatasetError: it is damaged, naming file and field.
        """
        recording = self.recordings[sample.dataset]
        i, frame, side = sample.episode, sample.frame, self.config.vision.image_size
        kept = kept_views(tuple(recording.views), augment.drop_view, rng)
        keep_state = bool(rng.random() >= augment.drop_state)
        episode = recording.episode(i)
        words = recording.words(i, episode)
        text = words[int(rng.integers(len(words)))]
        body = recording.body
        vectors = episode.states, episode.actions
        chunk, inside = chunks_at(
            *vectors, [frame], self.config.chunk, recording.control, body.stride
        )
        clip = Clip(
            self.name(sample),
            number,
            self.robots[sample.dataset],
            self._spaces[sample.dataset],
            text,
            [recording.picture(i, view, frame, side) for view in kept],
            episode.states[frame],
            episode.states[-1],
            chunk[0],
            inside[0],
            keep_state,
            rng,
        )
        for what, numbers in (
            ("observation.state", np.stack([clip.state, clip.outcome])),
            ("action", clip.chunk),
        ):
            if not np.isfinite(numbers).all():
                raise DatasetError(
                    f"{recording.dataset.root}: {what} of episode {i} has a number that is not"
                    f" finite at or after frame {frame}"
                )
        return clip

    def records(self, robot: int = 0) -> PolicyRecords:
        """What a policy directory of one of the robots says.

        Views and rate are those of its dataset with the largest share.
        """
        body = next(o.body for o, r in zip(self.recordings, self.robots, strict=True) if r == robot)
        return PolicyRecords(
            self.config,
            self.embodiments[robot],
            self.state_map,
            self.action_map,
            self._processing(body),
            *self._stats(body),
            self.tokenizer,
        )

    def _main(self, robot: int) -> Embodiment:
        """The robot's record as its largest dataset has it."""
        mine = [i for i, one in enumerate(self.robots) if one == robot]
        return self.recordings[max(mine, key=lambda i: self.shares[i])].body.robot

    def _stats(self, body: Body) -> tuple[VectorStats, VectorStats]:
        level = body.robot.name if self.mixture.statistics == "embodiment" else None
        trees = self.measured.state, self.measured.action
        state, action = (tree.level(level).result() for tree in trees)
        return state, action

    def _space(self, body: Body) -> ActionSpace:
        maps = self.state_map, self.action_map
        return make_space(body.robot, *maps, self._processing(body), *self._stats(body))

    def _processing(self, body: Body) -> Processing:
        """An arm of joints among others is native, in the units of its slots."""
        return replace(self.processing, frame=body.frame)

    def _leaves(self, i: int) -> list[Leaf]:
        one, share, stride = self.recordings[i], self.shares[i], self.recordings[i].body.stride
        if one.entry.balance == "frames":
            return [Leaf(i, share, stride, range(len(one.lengths)), one.lengths)]
        tasks: dict[tuple[str, ...], list[int]] = {}
        for episode, words in self.measured.words[i].items():
            tasks.setdefault(words, []).append(episode)
        return [
            Leaf(i, share / len(tasks), stride, episodes, [one.lengths[e] for e in episodes])
            for _, episodes in sorted(tasks.items())
        ]


def open_corpus(
    mixture: Mixture,
    config: VLAConfig,
    processing: Processing,
    *,
    memory: int = MEMORY,
    tokenizer: TextTokenizer | None = None,
    on_episode: OnEpisode = lambda done, total: None,
) -> Corpus:
    """Opens every dataset of the mixture, computes statistics, and decodes what fits into memory.

    Args:
        config: the model; its widths become those of the slot map.
        memory: of decoded pictures [bytes]; the smallest datasets are decoded, the others are read
            frame by frame.
        tokenizer: of the model; by default one is fitted to the instructions.
        on_episode: called with the episodes done and all of them.

    Raises:
        VlakernError: as :func:`open_recordings` and :func:`measure`, or a policy that could not be
            loaded again.
    """
    recordings = open_recordings(mixture, processing.frame, config.state_dim, config.chunk)
    body, where = recordings[0].body, f"mixture {mixture.name!r}"
    wide = replace(config, state_dim=body.state_map.width, action_dim=body.action_map.width)
    check_parts(wide, body.state_map, body.action_map, processing, where)
    kept = {one.entry.name for one in recordings}
    entries = tuple(entry for entry in mixture.datasets if entry.name in kept)
    mixture = replace(mixture, datasets=entries)
    side = config.vision.image_size
    loaded = _fitting(recordings, side, memory)
    total = 2 * sum(len(one.lengths) for one in recordings)
    done = Count(total, on_episode)
    for one in recordings:
        if one in loaded:
            one.load(side, done)
        else:
            done(len(one.lengths))
    measured = measure(recordings, config.chunk, done)
    return Corpus(config, mixture, processing, recordings, measured, tokenizer)


def _fitting(recordings: Sequence[Recording], side: int, memory: int) -> list[Recording]:
    """The smallest of them, as many as fit."""
    chosen, left = [], memory
    for one in sorted(recordings, key=lambda r: r.size(side)):
        if one.size(side) <= left:
            chosen.append(one)
            left -= one.size(side)
    return chosen
