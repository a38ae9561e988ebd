"""One dataset of a mixture, opened: its robot, its episodes, its pictures in memory or on disk."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from vlakern.data.body import Body, resized, resolve_body
from vlakern.data.dataset import Dataset, open_dataset
from vlakern.data.episode import Episode
from vlakern.data.mixture import DatasetEntry, Mixture
from vlakern.data.quarantine import Damage
from vlakern.data.stride import Source, Stride, suggest_stride
from vlakern.errors import ConfigError, DatasetError, VlakernError
from vlakern.space import Embodiment, SlotMap, robot_and_slots, shipped_embodiments
from vlakern.space.action_space import ActionFrame

__all__ = ["Recording", "naming", "open_recording", "robot_of"]


class Recording:
    """A dataset as the mixture uses it.

    Attributes:
        entry: what the mixture says about it.
        dataset: the files.
        body: its robot, slot maps, frame and stride.
        views: name in the mixture -> recorded name, in the mixture's order.
    """

    def __init__(
        self, entry: DatasetEntry, dataset: Dataset, body: Body, views: Mapping[str, str]
    ) -> None:
        self.entry, self.dataset = entry, dataset
        self.views = dict(views)
        self.use(body)
        self.lengths = [int(length) for length in dataset.lengths]
        self._episodes: dict[int, Episode] = {}
        self._frames: dict[tuple[int, str], np.ndarray] = {}
        self._damaged: dict[int, str] = {}
        self._affine: dict[str, list[tuple[slice, float, float]]] = {}

    def use(self, body: Body) -> None:
        """Goes on with another slot map of the same robot."""
        self.body, self.control = body, body.control

    def use_slot_units(self) -> None:
        """Reads joints and grippers in the units of their slots: degrees become radians.

        The robot's record then says that these are its numbers, and its frame is native. Beside
        robots whose poses are in a frame, a slot so has one unit, as in every other frame.
        """
        robot = self.body.robot
        plain = {"degrees": False, "closed": None, "open": None}
        for part, fields in (("states", robot.state), ("actions", robot.action)):
            self._affine[part] = [(slice(*field.native), *field.affine) for field in fields]
        state, action = (
            tuple(replace(field, **plain) for field in fields)
            for fields in (robot.state, robot.action)
        )
        self.use(replace(self.body, robot=replace(robot, state=state, action=action)))

    def _in_units(self, episode: Episode) -> Episode:
        """The episode with its numbers in the units that are used."""
        changed = {}
        for part, runs in self._affine.items():
            values = np.array(getattr(episode, part), np.float32)
            for run, scale, offset in runs:
                values[:, run] = values[:, run] * scale + offset
            changed[part] = values
        return replace(episode, **changed) if changed else episode

    @property
    def name(self) -> str:
        """By which messages call it."""
        return self.entry.name

    @property
    def source(self) -> Source:
        """As the report of effective frames sees it."""
        rate = Stride(float(self.dataset.fps), self.body.stride)
        return Source(self.name, self.lengths, rate)

    @property
    def effective(self) -> float:
        """Start frames that it contributes to a pass."""
        return sum(max(length / self.body.stride, 1.0) for length in self.lengths)

    @property
    def in_memory(self) -> bool:
        """Whether its pictures are decoded already."""
        return bool(self._frames) or bool(self._damaged)

    def size(self, side: int) -> int:
        """Memory that its pictures take when decoded to ``side`` pixels [bytes]."""
        return sum(self.lengths) * len(self.views) * side * side * 3

    def episode(self, i: int) -> Episode:
        """Episode ``i`` without pictures; raises DatasetError if it is damaged."""
        if i in self._damaged:
            raise DatasetError(self._damaged[i])
        return self._episodes.get(i) or self._in_units(self.dataset.episode(i))

    def words(self, i: int, read: Episode | None = None) -> tuple[str, ...]:
        """The instructions of episode ``i`` that samples draw from; ``read`` if it is at hand.

        Raises:
            DatasetError: the episode has none of the fields that the mixture names.
        """
        episode = read or self.episode(i)
        if not self.entry.instructions:
            return (episode.task,)
        found = (episode.instructions.get(key, "") for key in self.entry.instructions)
        words = tuple(text for text in found if text)
        if not words:
            raise DatasetError(
                f"{self.dataset.root}: episode {i} has no instruction in the fields"
                f" {', '.join(self.entry.instructions)}; it has"
                f" {', '.join(episode.instructions) or 'none'}"
            )
        return words

    def picture(self, i: int, view: str, frame: int, side: int) -> np.ndarray:
        """A view by its name in the mixture: uint8 ``[side, side, 3]``, letterboxed.

        Raises:
            DatasetError: it cannot be decoded.
        """
        if i in self._damaged:
            raise DatasetError(self._damaged[i])
        held = self._frames.get((i, view))
        if held is not None:
            return held[frame]
        return resized(self.dataset.picture(i, self.views[view], frame)[None], side)[0]

    def load(self, side: int, on_episode: Callable[[], None]) -> list[Damage]:
        """Decodes every episode into memory; returns those that are damaged."""
        found = []
        for i in range(len(self.lengths)):
            try:
                episode = self.episode(i)
                for name, recorded in self.views.items():
                    self._frames[i, name] = resized(self.dataset.frames(i, recorded), side)
                self._episodes[i] = episode
            except DatasetError as error:
                self._damaged[i] = str(error)
                found.append(Damage(f"{self.name}/{i}", str(error)))
            on_episode()
        return found


@contextmanager
def naming(mixture: Mixture, entry: DatasetEntry) -> Iterator[None]:
    """What goes wrong inside is said of this dataset of the mixture."""
    try:
        yield
    except VlakernError as error:
        at = f"mixture {mixture.name!r}, dataset {entry.name!r}"
        raise type(error)(f"{at}: {error}") from error


def open_recording(
    mixture: Mixture, entry: DatasetEntry, frame: ActionFrame, chunk: int, among: bool = False
) -> Recording:
    """Opens a dataset and finds its robot, with the robot's own slot map.

    Args:
        among: other robots: one without any pose, such as an arm of joints, then takes part in
            every frame, which says nothing about joints; see :meth:`Recording.use_slot_units`.

    Raises:
        DatasetError: missing files, another rate than the mixture says, vectors of other widths
            than the robot's, an episode shorter than a chunk where the mixture refuses it.
        ConfigError: no such robot, or a view or an instruction that the dataset does not have.
    """
    with naming(mixture, entry):
        dataset = open_dataset(entry.path, entry.kind, **entry.options)
        if not dataset.num_episodes:
            raise DatasetError(f"{entry.path} has no episodes; nothing to train on")
        rate = float(dataset.fps)
        if entry.rate is not None and abs(entry.rate - rate) > 1e-3 * rate:
            raise DatasetError(
                f"{entry.path} has fps {rate:g}, the mixture says rate {entry.rate:g}; correct one"
            )
        robot = robot_of(entry, dataset)
        stride = _stride(mixture, entry, rate)
        joints = among and frame != "native" and robot is not None and not _has_pose(*robot)
        frame = "native" if joints else frame
        body = resolve_body(dataset, robot[1].width if robot else 0, frame, robot, stride)
        views = _views(entry, dataset)
        body = replace(body, robot=replace(body.robot, views=tuple(views)))
        # Raises for a frame that the robot cannot have, before minutes of decoding.
        body.plain_space()
        found = Recording(entry, dataset, body, views)
        if joints:
            found.use_slot_units()
        _check_instructions(found)
        if mixture.short_episodes == "refuse":
            _check_lengths(found, chunk)
        return found


def robot_of(entry: DatasetEntry, dataset: Dataset) -> tuple[Embodiment, SlotMap] | None:
    """The robot that the mixture or the dataset names, None if it has no record."""
    if entry.embodiment:
        return robot_and_slots(entry.embodiment)
    if dataset.robot_type in shipped_embodiments():
        return robot_and_slots(dataset.robot_type)
    return None


def _has_pose(robot: Embodiment, slots: SlotMap) -> bool:
    return any(slots.slot(field.slot).kind == "position" for field in robot.action)


def _stride(mixture: Mixture, entry: DatasetEntry, rate: float) -> int:
    if entry.stride is not None:
        return entry.stride
    target = entry.target_rate or mixture.target_rate
    return 1 if target is None else suggest_stride(rate, target)


def _views(entry: DatasetEntry, dataset: Dataset) -> dict[str, str]:
    """Name in the mixture -> recorded name."""
    unknown = next((view for view in entry.views if view not in dataset.views), None)
    if unknown is not None:
        raise ConfigError(
            f"views names {unknown!r}, which {dataset.root} does not have; it has"
            f" {', '.join(dataset.views) or 'none'}"
        )
    if not entry.views:
        return {view: view for view in dataset.views}
    return {name: recorded for recorded, name in entry.views.items()}


def _check_instructions(found: Recording) -> None:
    if not found.entry.instructions:
        return
    known = found.dataset.episode(0).instructions
    unknown = next((key for key in found.entry.instructions if key not in known), None)
    if unknown is not None:
        raise ConfigError(
            f"instructions names the field {unknown!r}, which {found.dataset.root} does not have;"
            f" it has {', '.join(known) or 'none'}"
        )


def _check_lengths(found: Recording, chunk: int) -> None:
    for i, length in enumerate(found.lengths):
        steps = -(-length // found.body.stride)
        if steps < chunk:
            raise DatasetError(
                f"{Path(found.dataset.root)}: episode {i} has {length} frames, {steps} steps at"
                f" stride {found.body.stride}, a chunk has {chunk}; leave it out, lower the stride"
                ' or say short_episodes = "mask"'
            )
