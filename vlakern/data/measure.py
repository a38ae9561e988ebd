"""Statistics and instructions of a mixture, from its episodes without their pictures."""

from collections.abc import Callable, Sequence

from vlakern.data.quarantine import ALLOWED, Damage
from vlakern.data.recording import Recording
from vlakern.data.stats_tree import StatsTree
from vlakern.errors import DatasetError, VlakernError

__all__ = ["MEASURED", "Count", "Measured", "measure"]

# Frames of a dataset that enter its statistics; more of them are taken at even distances.
MEASURED = 200_000


class Count:
    """Counts episodes for the caller."""

    def __init__(self, total: int, tell: Callable[[int, int], None]) -> None:
        self._done, self._total, self._tell = 0, total, tell

    def __call__(self, count: int = 1) -> None:
        self._done += count
        self._tell(self._done, self._total)


class Measured:
    """What reading the episodes of a mixture told, without pictures.

    Attributes:
        state, action: statistics after the frame transform; the "task" of a level is the dataset.
        words: instructions of each dataset's episodes, episode -> texts, of those that were read.
        damaged: episodes that could not be read.
        sampled: of datasets that were not read whole, a sentence each.
    """

    def __init__(self, recordings: Sequence[Recording]) -> None:
        body = recordings[0].body
        self.state = StatsTree(body.state_map.names())
        self.action = StatsTree(body.action_map.names())
        self.words: list[dict[int, tuple[str, ...]]] = [{} for _ in recordings]
        self.damaged: list[Damage] = []
        self.sampled: list[str] = []


def measure(
    recordings: Sequence[Recording], chunk: int, done: Callable[[int], None] = lambda count: None
) -> Measured:
    """Reads episodes without pictures: statistics by robot and dataset, and instructions.

    Of a dataset of more than 200,000 frames it reads episodes at even distances, together about as
    many frames; all of them where tasks are drawn equally often.

    Raises:
        DatasetError: more than 0.1 % of a dataset's frames are in damaged episodes.
    """
    found = Measured(recordings)
    for one, words in zip(recordings, found.words, strict=True):
        body = one.body
        space, robot = body.plain_space(), body.robot.name
        every = 1 if one.entry.balance == "tasks" else max(1, round(sum(one.lengths) / MEASURED))
        if every > 1:
            read, whole = sum(one.lengths[::every]), sum(one.lengths)
            found.sampled.append(
                f"{one.name}: statistics and words are those of {len(one.lengths[::every]):,} of"
                f" {len(one.lengths):,} episodes, one in {every}: {read:,} of {whole:,} frames"
            )
        lost, damages = 0, []
        for i in range(0, len(one.lengths), every):
            try:
                episode, words[i] = one.episode(i), one.words(i)
                states, actions = episode.states, episode.actions
                unified = space.unify_state(states)
                rows = list(body.action_rows(space, states, actions, chunk))
            except VlakernError as error:
                lost += one.lengths[i]
                words.pop(i, None)
                damages.append(Damage(f"{one.name}/{i}", str(error)))
                continue
            finally:
                done(min(every, len(one.lengths) - i))
            found.state.add(robot, one.name, unified, space.state_mask)
            for part in rows:
                found.action.add(robot, one.name, part, space.action_mask)
        _check_damage(one, lost, damages)
        found.damaged += damages
    return found


def _check_damage(one: Recording, lost: int, damages: Sequence[Damage]) -> None:
    whole = sum(one.lengths)
    if damages and lost > ALLOWED * whole:
        raise DatasetError(
            f"dataset {one.name!r}: {lost} of {whole} frames are in damaged episodes, more than"
            f" {ALLOWED:.1%}; the first is {damages[0].name}: {damages[0].reason}"
        )
