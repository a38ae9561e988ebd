"""What a mixture holds: frames, shares of datasets, groups and slots, ranges, and oddities."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from vlakern.data.lerobot import LeRobotDataset
from vlakern.data.measure import Count, measure
from vlakern.data.mixture import Mixture, shares
from vlakern.data.motion import motion_flags
from vlakern.data.recording import Recording
from vlakern.data.stats import SlotStats
from vlakern.data.stride import effective_frames
from vlakern.data.unify import open_recordings
from vlakern.errors import DatasetError
from vlakern.space.action_space import ActionFrame

__all__ = ["Row", "Survey", "survey"]

RANGES = ("mean", "std", "min", "q01", "q99", "max")
# A quantile range this much narrower than the whole one means outliers.
OUTLIERS = 100.0


@dataclass(frozen=True)
class Row:
    """One dataset.

    Attributes:
        name, group, robot: of it.
        raw, effective: frames, and start frames that it contributes.
        stride: frames from one step of a chunk to the next.
        rate: of a chunk's steps [Hz].
        span: of a chunk [s].
        share: of all samples.
        views: names in the mixture.
        state, action: slots that it fills.
        short: episodes with fewer steps than a chunk.
    """

    name: str
    group: str
    robot: str
    raw: int
    effective: int
    stride: int
    rate: float
    span: float
    share: float
    views: tuple[str, ...]
    state: tuple[str, ...]
    action: tuple[str, ...]
    short: int


@dataclass(frozen=True)
class Survey:
    """The report.

    Attributes:
        mixture, frame, chunk: of what.
        rows: of the datasets of weight above 0.
        left_out: names of the others.
        groups: name -> share of all samples.
        slots: slot of the action -> share of the samples whose robot has it.
        missing: dataset -> slots of the action that others of the mixture fill and it does not.
        ranges: robot -> ``state`` and ``action`` -> slot -> its statistics after the transform.
        flags: sentences about what looks odd.
        damaged: episode -> why it cannot be read.
        sampled: sentences about datasets of which only a part was read.
    """

    mixture: str
    frame: str
    chunk: int
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    groups: dict[str, float]
    slots: dict[str, float]
    missing: dict[str, tuple[str, ...]]
    ranges: dict[str, dict[str, dict[str, dict[str, float]]]]
    flags: tuple[str, ...]
    damaged: dict[str, str]
    sampled: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def survey(
    mixture: Mixture,
    frame: ActionFrame,
    chunk: int,
    width: int,
    on_episode: Callable[[int, int], None] = lambda done, total: None,
) -> Survey:
    """Reads every dataset without its pictures.

    Args:
        width: of a model's vectors: a single robot whose slot map is not as wide gets a compact
            one.
        on_episode: called with the episodes done and all of them.

    Raises:
        VlakernError: as :func:`vlakern.data.unify.open_recordings` and
            :func:`vlakern.data.measure.measure`.
    """
    recordings = open_recordings(mixture, frame, width, chunk)
    report = effective_frames([one.source for one in recordings], chunk)
    names = {one.name for one in recordings}
    kept = tuple(entry for entry in mixture.datasets if entry.name in names)
    part = shares(
        replace(mixture, datasets=kept),
        [sum(one.lengths) for one in recordings],
        [one.effective for one in recordings],
    )
    count = Count(sum(len(one.lengths) for one in recordings), on_episode)
    measured = measure(recordings, chunk, count)
    rows = tuple(
        Row(
            one.name,
            one.entry.group,
            one.body.robot.name,
            line.raw,
            line.effective,
            line.stride,
            line.effective_rate,
            line.span,
            share,
            one.body.robot.views,
            tuple(field.slot for field in one.body.robot.state),
            tuple(field.slot for field in one.body.robot.action),
            sum(-(-length // line.stride) < chunk for length in one.lengths),
        )
        for one, line, share in zip(recordings, report.rows, part, strict=True)
    )
    groups: dict[str, float] = {}
    slots: dict[str, float] = {}
    for row in rows:
        groups[row.group] = groups.get(row.group, 0.0) + row.share
        for slot in row.action:
            slots[slot] = slots.get(slot, 0.0) + row.share
    ranges: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    flags: list[str] = []
    for one in recordings:
        flags += motion_flags(one, chunk)
        flags += _unreadable(one)
        flags += _absent(one)
        robot = one.body.robot.name
        if robot not in ranges:
            ranges[robot] = {
                "state": _ranges(measured.state.level(robot)),
                "action": _ranges(measured.action.level(robot)),
            }
            flags += _odd(robot, ranges[robot])
    flags += [
        f"{row.name}: {row.short} episodes have fewer steps than a chunk; their missing steps are"
        " masked"
        for row in rows
        if row.short
    ]
    return Survey(
        mixture.name,
        frame,
        chunk,
        rows,
        tuple(entry.name for entry in mixture.datasets if entry.name not in names),
        groups,
        slots,
        {row.name: tuple(s for s in slots if s not in row.action) for row in rows},
        ranges,
        tuple(flags),
        {damage.name: damage.reason for damage in measured.damaged},
        tuple(measured.sampled),
    )


def _absent(recording: Recording) -> list[str]:
    """Features that a LeRobot dataset declares and none of its files holds."""
    dataset = recording.dataset
    found = dataset.absent() if isinstance(dataset, LeRobotDataset) else []
    return [
        f"{recording.name}: meta/info.json declares the feature {key}, which no data file holds;"
        " write it, or remove it from meta/info.json"
        for key in found
    ]


def _unreadable(recording: Recording) -> list[str]:
    """Views whose last picture cannot be read in the first, middle or last episode."""
    last = len(recording.lengths) - 1
    found = []
    for view, recorded in recording.views.items():
        for i in sorted({0, last // 2, last}):
            try:
                recording.dataset.picture(i, recorded, recording.lengths[i] - 1)
            except DatasetError as error:
                found.append(f"{recording.name}: view {view} cannot be read: {error}")
                break
    return found


def _ranges(stats: SlotStats) -> dict[str, dict[str, float]]:
    """Of the slots that are there."""
    values, count = stats.summary(), stats.count
    return {
        name: {key: float(values[key][i]) for key in RANGES}
        for i, name in enumerate(stats.names)
        if count[i]
    }


def _odd(robot: str, ranges: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Slots that never move, and slots with outliers."""
    found = []
    for part, slots in ranges.items():
        still = [slot for slot, one in slots.items() if one["min"] == one["max"]]
        if still:
            found.append(f"{robot}: {part} never moves in {', '.join(still)}")
        for slot, one in slots.items():
            narrow, wide = one["q99"] - one["q01"], one["max"] - one["min"]
            if narrow > 0 and wide > OUTLIERS * narrow:
                found.append(
                    f"{robot}: {part} {slot} goes from {one['min']:.3g} to {one['max']:.3g}, but 98"
                    f" % of it from {one['q01']:.3g} to {one['q99']:.3g}; look for outliers"
                )
    return found
