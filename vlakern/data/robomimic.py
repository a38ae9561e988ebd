"""robomimic's HDF5 files, and LIBERO's, which have their layout: ``data/demo_<i>/...``."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from vlakern.data.episode import Episode
from vlakern.data.pool import Pool
from vlakern.errors import DatasetError, InputError

__all__ = ["RobomimicDataset", "Turn"]

Turn = Literal["none", "half", "upside_down"]
_STATES = (
    ("ee_states", "gripper_states"),
    ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),
)
_PICTURE_ENDS = ("_image", "_rgb")
# LIBERO's file names: KITCHEN_SCENE1_open_the_drawer_demo.hdf5.
_SCENE = re.compile(r"^[A-Z0-9_]+_SCENE\d+_")
_OPEN_FILES = 16


@dataclass(frozen=True)
class _Demo:
    path: Path
    name: str
    length: int


@dataclass(frozen=True)
class _Facts:
    """What a file says of all its demonstrations."""

    fps: float | None
    robot: str | None
    task: str | None
    convention: str | None


class RobomimicDataset:
    """One HDF5 file, or every one of a directory (LIBERO has a file per task).

    May be pickled, and used by several threads. HDF5 has no checksums unless the recorder asked for
    them, so a changed number inside a picture is not found.

    Attributes:
        root: the file or the directory.
        fps: instants per second [Hz].
        robot_type: the argument; ``libero_panda`` for LIBERO's files; else the simulator's name.
        views: view -> (height, width) [pixels], named as the pictures less ``_image`` or ``_rgb``.
        state_names, action_names: one per number.
        lengths: instants of each episode.
        turn: what was done to every picture: ``none``; ``half``, a rotation by 180 degrees, as
            policies trained on converted LIBERO data expect it; ``upside_down``, rows in reverse.
        image_convention: what the file says of its pictures' rows: ``opengl`` (the first is the
            lowest, so that they look upside down), ``opencv``, or None where it says nothing.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        state: str | Sequence[str] | None = None,
        action: str = "actions",
        views: Sequence[str] | None = None,
        split: str | None = None,
        turn: Turn = "none",
        fps: float | None = None,
        robot_type: str | None = None,
    ) -> None:
        """Opens ``root``.

        Args:
            state: observations that are joined to the state; those of LIBERO or of robomimic's
                low-dimensional sets where they are there.
            action: vector of a demonstration that is the action.
            views: those to offer; all pictures if left out.
            split: filter of ``mask/`` that names the demonstrations; all if left out.
            turn: see above; pictures stay as they are stored unless it is given.
            fps: of the recording [Hz]; that of ``env_args`` if left out.
            robot_type: see above.

        Raises:
            DatasetError: something missing, damaged or contradicting; names file and field.
            InputError: an unknown ``turn``, or a rate that is not positive.
        """
        if turn not in get_args(Turn):
            raise InputError(f"turn is {turn!r}, expected one of {get_args(Turn)}")
        if fps is not None and not fps > 0:
            raise InputError(f"fps is {fps!r}, expected a positive number")
        self.root = Path(root)
        self.turn: Turn = turn
        self._split, self._action = split, action
        self._demos: list[_Demo] = []
        self._tasks: dict[Path, str] = {}
        self._state: tuple[str, ...] = (state,) if isinstance(state, str) else tuple(state or ())
        self._widths: dict[str, int] = {}
        self._pictures: dict[str, str] = {}
        self.views: dict[str, tuple[int, int]] = {}
        for path in self._paths():
            with _opened(path) as file:
                facts = _read_facts(path, file)
                self._check_same(path, "fps", fps or facts.fps)
                self._check_same(path, "robot_type", robot_type or facts.robot or "unknown")
                self._check_same(path, "image_convention", facts.convention)
                self._tasks[path] = facts.task or _task_of_name(path)
                for demo in self._demonstrations(path, file):
                    if not self._demos:
                        self._describe(path, file[f"data/{demo.name}"], views)
                    self._check(demo, file[f"data/{demo.name}"])
                    self._demos.append(demo)
        if not self._demos:
            raise DatasetError(f"{self.root} holds no demonstration")

    fps: float
    robot_type: str
    image_convention: str | None

    @property
    def state_names(self) -> list[str]:
        """The observation's name and a number."""
        return _numbered(self._state, self._widths)

    @property
    def action_names(self) -> list[str]:
        """``action`` and a number."""
        return _numbered((self._action,), self._widths)

    @property
    def num_episodes(self) -> int:
        """Demonstrations."""
        return len(self._demos)

    @property
    def num_frames(self) -> int:
        """Instants over all episodes."""
        return sum(self.lengths)

    @property
    def lengths(self) -> list[int]:
        """Instants of each episode."""
        return [demo.length for demo in self._demos]

    def episode(self, i: int) -> Episode:
        """Episode ``i`` (0 <= i < num_episodes) without its pictures.

        ``instructions`` has the file's, ``task``, and the demonstration's own, ``lang``, if any.

        Raises:
            DatasetError: damaged data, or numbers that are not finite.
        """
        demo = self._demo(i)
        with _opened(demo.path) as file:
            group = file[f"data/{demo.name}"]
            parts = [_vector(demo, group, f"obs/{key}") for key in self._state]
            actions = _vector(demo, group, self._action)
            own = _text(group.attrs.get("lang")) or _language(group.attrs.get("ep_meta"))
        instructions = {"task": self._tasks[demo.path]} | ({"lang": own} if own else {})
        task = own or instructions["task"]
        return Episode(i, task, np.concatenate(parts, axis=1), actions, instructions)

    def frames(self, i: int, view: str) -> np.ndarray:
        """Every picture of ``view`` in episode ``i``: uint8 ``[T, H, W, 3]`` RGB.

        Raises:
            DatasetError: a view that is not there, or data that cannot be read.
        """
        return self._read(i, view, slice(None))

    def picture(self, i: int, view: str, frame: int) -> np.ndarray:
        """Picture ``frame`` of ``view`` in episode ``i``: uint8 ``[H, W, 3]`` RGB.

        Raises as :meth:`frames`, and for a frame that the episode does not have.
        """
        demo = self._demo(i)
        if not 0 <= frame < demo.length:
            raise DatasetError(
                f"{self.root}: episode {i} has frames 0..{demo.length - 1}, not {frame}"
            )
        return self._read(i, view, slice(frame, frame + 1))[0]

    def _read(self, i: int, view: str, part: slice) -> np.ndarray:
        demo = self._demo(i)
        if view not in self.views:
            raise DatasetError(f"{self.root} has no view {view!r}; it has {sorted(self.views)}")
        with _opened(demo.path) as file:
            pictures = file[f"data/{demo.name}/obs/{self._pictures[view]}"][part]
        if self.turn == "none":
            return pictures
        turned = pictures[:, ::-1, ::-1] if self.turn == "half" else pictures[:, ::-1]
        return np.ascontiguousarray(turned)

    def _demo(self, i: int) -> _Demo:
        if not 0 <= i < len(self._demos):
            raise DatasetError(f"{self.root} has episodes 0..{len(self._demos) - 1}, not {i}")
        return self._demos[i]

    def _paths(self) -> list[Path]:
        if self.root.is_file():
            return [self.root]
        found = sorted([*self.root.glob("*.hdf5"), *self.root.glob("*.h5")])
        if not found:
            raise DatasetError(f"{self.root} is no HDF5 file and no directory that holds any")
        return found

    def _check_same(self, path: Path, name: str, value: Any) -> None:
        """Keeps what the first file says and holds the others against it."""
        if name == "fps" and value is None:
            raise DatasetError(
                f"{path}: data has no attribute env_args with env_kwargs.control_freq; give fps"
            )
        if getattr(self, name, value) != value:
            raise DatasetError(
                f"{path}: {name} is {value!r}, but {getattr(self, name)!r} in the files before it;"
                " open them as datasets of their own"
            )
        setattr(self, name, value)

    def _demonstrations(self, path: Path, file: Any) -> Iterator[_Demo]:
        names = sorted(file["data"], key=_number)
        if self._split is not None:
            masks = sorted(file["mask"]) if "mask" in file else []
            if self._split not in masks:
                raise DatasetError(f"{path} has no filter mask/{self._split}; it has {masks}")
            chosen = {_text(name) or "" for name in file[f"mask/{self._split}"][()]}
            lost = sorted(name for name in chosen if name not in names)
            if lost:
                raise DatasetError(
                    f"{path}: mask/{self._split} names {lost[0]}, which is not there"
                )
            names = [name for name in names if name in chosen]
        for name in names:
            group = file[f"data/{name}"]
            if self._action not in group:
                raise DatasetError(f"{path}: data/{name} lacks {self._action!r}")
            yield _Demo(path, name, len(group[self._action]))

    def _describe(self, path: Path, group: Any, views: Sequence[str] | None) -> None:
        """Widths and views, as the first demonstration has them."""
        there = dict(group["obs"]) if "obs" in group else {}
        if not self._state:
            known = [keys for keys in _STATES if all(key in there for key in keys)]
            vectors = sorted(key for key, value in there.items() if len(value.shape) == 2)
            if not known:
                raise DatasetError(
                    f"{path}: {group.name}/obs has none of the usual states; name some of {vectors}"
                )
            self._state = known[0]
        for key in self._state:
            if key not in there or len(there[key].shape) != 2:
                raise DatasetError(f"{path}: {group.name}/obs lacks the vector {key!r}")
            self._widths[key] = there[key].shape[1]
        shape = group[self._action].shape
        if len(shape) != 2:
            raise DatasetError(f"{path}: {group.name}/{self._action} has shape {shape}, no vectors")
        self._widths[self._action] = shape[1]
        for key, value in there.items():
            if value.dtype == np.uint8 and len(value.shape) == 4 and value.shape[3] == 3:
                name = next((key.removesuffix(e) for e in _PICTURE_ENDS if key.endswith(e)), key)
                if views is None or name in views:
                    self._pictures[name] = key
                    self.views[name] = value.shape[1:3]
        lost = sorted(set(views or ()) - set(self.views))
        if lost:
            raise DatasetError(f"{path}: {group.name}/obs has no pictures {lost[0]!r}")

    def _check(self, demo: _Demo, group: Any) -> None:
        """A demonstration has what the first has, and all of it for the same instants."""
        where = f"{demo.path}: data/{demo.name}"
        if demo.length < 1:
            raise DatasetError(f"{where} has no instants; remove it or leave it out with a filter")
        declared = group.attrs.get("num_samples", demo.length)
        if declared != demo.length:
            raise DatasetError(f"{where} has num_samples {declared}, but {demo.length} actions")
        pictures = {key: (*self.views[view], 3) for view, key in self._pictures.items()}
        expected = {
            **{f"obs/{key}": (self._widths[key],) for key in self._state},
            **{f"obs/{key}": shape for key, shape in pictures.items()},
            self._action: (self._widths[self._action],),
        }
        for key, shape in expected.items():
            found = group[key].shape if key in group else None
            if found != (demo.length, *shape):
                raise DatasetError(
                    f"{where}/{key} has shape {found}, expected {(demo.length, *shape)}"
                )


_pool: Pool[Any] = Pool(_OPEN_FILES)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file of the pool for a block; what HDF5 finds wrong with it is a DatasetError."""

    def make() -> Any:
        import h5py

        # Readers need no lock, which read-only network folders refuse.
        return h5py.File(path, "r", locking=False)

    try:
        with _pool.borrow(path, make) as file:
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        raise DatasetError(f"{path} cannot be read ({error})") from error


def _read_facts(path: Path, file: Any) -> _Facts:
    if "data" not in file:
        raise DatasetError(f"{path} has no group 'data'; is it a robomimic file?")
    attributes = file["data"].attrs
    settings = _object(path, "env_args", attributes).get("env_kwargs") or {}
    problem = _object(path, "problem_info", attributes)
    rate = settings.get("control_freq")
    robots = settings.get("robots")
    robot = robots[0] if isinstance(robots, list) and len(robots) == 1 else robots
    if problem and robot in ("Panda", "MountedPanda", "OnTheGroundPanda"):
        robot = "libero_panda"
    return _Facts(
        float(rate) if isinstance(rate, (int, float)) and rate > 0 else None,
        str(robot) if robot else None,
        _clean(problem.get("language_instruction")),
        _text(attributes.get("macros_image_convention")),
    )


def _object(path: Path, name: str, attributes: Any) -> dict[str, Any]:
    """An attribute that holds a JSON object; {} where it is not there."""
    text = _text(attributes.get(name))
    if not text:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}: attribute {name} of data is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{path}: attribute {name} of data is no JSON object")
    return value


def _language(meta: Any) -> str | None:
    """RoboCasa's instruction of one demonstration."""
    text = _text(meta)
    value = json.loads(text) if text else None
    return _clean(value.get("lang")) if isinstance(value, dict) else None


def _clean(value: Any) -> str | None:
    """An instruction; LIBERO has it with quotation marks, or as a list of letters."""
    text = "".join(map(str, value)) if isinstance(value, list) else value
    return text.strip().strip('"').strip() or None if isinstance(text, str) else None


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else None if value is None else str(value)


def _task_of_name(path: Path) -> str:
    """The instruction that LIBERO's and robomimic's file names hold."""
    name = _SCENE.sub("", path.stem.removesuffix("_demo"))
    return name.replace("_", " ").strip()


def _number(name: str) -> tuple[int, str]:
    """Demonstrations in the order of their numbers, ``demo_2`` before ``demo_10``."""
    digits = name.rpartition("_")[2]
    return (int(digits) if digits.isdigit() else 1 << 62), name


def _numbered(keys: Sequence[str], widths: Mapping[str, int]) -> list[str]:
    return [f"{key}.{k}" for key in keys for k in range(widths[key])]


def _vector(demo: _Demo, group: Any, key: str) -> np.ndarray:
    values = group[key][()].astype(np.float32)
    if not np.isfinite(values).all():
        raise DatasetError(f"{demo.path}: data/{demo.name}/{key} has an entry that is not finite")
    return values
