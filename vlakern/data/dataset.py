"""What every recorded dataset offers, whatever its format, and the door that opens any of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from vlakern.data.episode import Episode
from vlakern.errors import ConfigError, DatasetError

__all__ = ["Dataset", "Kind", "open_dataset"]

Kind = Literal["auto", "lerobot", "robomimic", "rlds"]


@runtime_checkable
class Dataset(Protocol):
    """Demonstrations of one robot on disk. Picklable, and safe in threads and after a fork.

    Whatever is missing or damaged raises DatasetError with file and field; a picture that cannot be
    decoded is never made up.
    """

    @property
    def root(self) -> Path:
        """Where the dataset is."""
        ...

    @property
    def fps(self) -> float:
        """Instants per second [Hz]."""
        ...

    @property
    def robot_type(self) -> str:
        """What the dataset calls its robot."""
        ...

    @property
    def views(self) -> Mapping[str, tuple[int, int]]:
        """View -> (height, width) [pixels]."""
        ...

    @property
    def state_names(self) -> list[str]:
        """One name per state number."""
        ...

    @property
    def action_names(self) -> list[str]:
        """One name per action number."""
        ...

    @property
    def num_episodes(self) -> int:
        """Demonstrations in the dataset."""
        ...

    @property
    def num_frames(self) -> int:
        """Instants over all episodes."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """Instants of each episode, at least 1."""
        ...

    def episode(self, i: int) -> Episode:
        """Episode ``i`` (0 <= i < num_episodes) without its pictures."""
        ...

    def frames(self, i: int, view: str) -> np.ndarray:
        """Every picture of ``view`` in episode ``i``: uint8 ``[T, H, W, 3]`` RGB."""
        ...

    def picture(self, i: int, view: str, frame: int) -> np.ndarray:
        """One picture: uint8 ``[H, W, 3]`` RGB, the same numbers as ``frames(i, view)[frame]``."""
        ...


def open_dataset(root: str | Path, kind: Kind = "auto", **options: Any) -> Dataset:
    """Opens the dataset at ``root``.

    Args:
        root: a directory, or one file of robomimic.
        kind: its format; ``auto`` looks at the files.
        options: what the reader of the kind takes by name, such as ``state`` and ``action``.

    Raises:
        ConfigError: an unknown kind, or an option that this kind does not take.
        DatasetError: nothing that can be read, or something missing or damaged.
    """
    import inspect

    if kind not in get_args(Kind):
        raise ConfigError(f"dataset kind {kind!r} is not known; use one of {get_args(Kind)}")
    found = _recognise(Path(root)) if kind == "auto" else kind
    reader = _reader(found)
    known = [name for name in inspect.signature(reader).parameters if name != "root"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"{root}: a {found} dataset takes no option {unknown[0]!r}; it takes {', '.join(known)}"
        )
    for name, value in options.items():
        if not _suits(name, value):
            expected = _EXPECTED.get(name, "a name or a list of names")
            raise ConfigError(f"{root}: option {name} is {value!r}, expected {expected}")
    return reader(root, **options)


_EXPECTED = {"fps": "a number", "partial": "true or false"}


def _suits(name: str, value: Any) -> bool:
    """Whether a value from a mixture's file has the type that the readers take."""
    if name == "partial":
        return isinstance(value, bool)
    if name == "fps":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(value, (list, tuple)):
        return all(isinstance(one, str) for one in value)
    return value is None or isinstance(value, str)


def _reader(kind: str) -> Any:
    from vlakern.data.lerobot import LeRobotDataset
    from vlakern.data.rlds import RldsDataset
    from vlakern.data.robomimic import RobomimicDataset

    return {"lerobot": LeRobotDataset, "robomimic": RobomimicDataset, "rlds": RldsDataset}[kind]


def _recognise(root: Path) -> str:
    """The kind that the files at ``root`` have."""
    if (root / "meta/info.json").is_file():
        return "lerobot"
    if root.suffix in (".hdf5", ".h5") or any(root.glob("*.hdf5")) or any(root.glob("*.h5")):
        return "robomimic"
    if (root / "features.json").is_file() or any(root.glob("*.tfrecord*")):
        return "rlds"
    inside = [*root.glob("*/meta/info.json"), *root.glob("*/features.json")]
    hint = f"; did you mean {root.name}/{inside[0].relative_to(root).parts[0]}?" if inside else ""
    raise DatasetError(
        f"{root} is no dataset: it has neither meta/info.json (LeRobot), nor *.hdf5 (robomimic),"
        f" nor features.json with *.tfrecord files (RLDS){hint}"
    )
