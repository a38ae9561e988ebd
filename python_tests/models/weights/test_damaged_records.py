"""Any value of any JSON file of a checkpoint may be of another type: each is one clear error."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vlakern.errors import VlakernError
from vlakern.models.weights.beingh_lerobot import LEROBOT_BEINGH
from vlakern.models.weights.families import LEROBOT_PI0, LEROBOT_PI05, LEROBOT_SMOLVLA
from vlakern.models.weights.family import Family
from vlakern.models.weights.lerobot import is_recent
from vlakern.models.weights.lerobot_processors import read_processors

FAMILIES = {"pi0": LEROBOT_PI0, "pi05": LEROBOT_PI05, "smolvla": LEROBOT_SMOLVLA}
VALUES: tuple[Any, ...] = (None, -1, 1.5, True, "x", [], [None], {}, {"a": 1})
FEW: tuple[Any, ...] = (-1, "x", [[1]], {"a": 1})
Place = tuple[str | int, ...]


def places(value: Any, so_far: Place = ()) -> Iterator[Place]:
    """Where a value of a JSON file stands, of long lists the first two."""
    yield so_far
    if isinstance(value, dict):
        for key, one in value.items():
            yield from places(one, (*so_far, key))
    if isinstance(value, list):
        for i, one in enumerate(value[: None if so_far == ("steps",) else 2]):
            yield from places(one, (*so_far, i))


def put(value: Any, place: Place, other: Any) -> Any:
    """A copy with another value at this place."""
    made = {"": copy.deepcopy(value)}
    *above, last = ("", *place)
    at: Any = made
    for key in above:
        at = at[key]
    at[last] = other
    return made[""]


def survives(call: Callable[[], object], what: str) -> bool:
    """Whether it is refused; anything but a clear error fails."""
    try:
        call()
    except VlakernError as error:
        said = str(error)
    except (TypeError, AttributeError, ValueError, KeyError, IndexError) as error:
        pytest.fail(f"{what}: {type(error).__name__}: {error}")
    else:
        return False
    assert said.isprintable(), what
    return True


@pytest.mark.parametrize("kind", FAMILIES)
def test_processors_of_other_types(kind: str, goldens: ModuleType, tmp_path: Path) -> None:
    """In both files, with the step of relative actions where there is one."""
    relative = () if kind == "smolvla" else (0, 2)
    directory = goldens.lerobot_directory(tmp_path / kind, kind, recent=True, relative=relative)
    refused = 0
    for path in directory.glob("policy_*.json"):
        text = path.read_text()
        for place in places(json.loads(text)):
            for other in VALUES:
                path.write_text(json.dumps(put(json.loads(text), place, other)))
                what = f"{path.name} {place} {other!r}"
                refused += survives(
                    lambda: (read_processors(directory), is_recent(directory)), what
                )
        path.write_text(text)
    assert refused > 100
    read_processors(directory)


@pytest.mark.parametrize("kind", FAMILIES)
def test_settings_of_other_types(kind: str, goldens: ModuleType, tmp_path: Path) -> None:
    """In config.json, up to the statistics and the tokenizer."""
    family: Family = FAMILIES[kind]
    directory = goldens.lerobot_directory(tmp_path / kind, kind)
    path = directory / "config.json"
    values = json.loads(path.read_text())
    refused = 0
    for place in places(values):
        for other in FEW:
            path.write_text(json.dumps(put(values, place, other)))
            refused += survives(lambda: family.read(directory), f"{place} {other!r}")
    assert refused > 50


def test_beingh_settings_of_other_types(goldens: ModuleType, tmp_path: Path) -> None:
    """The file of LeRobot's port, whose readers are its own."""
    directory = tmp_path / "port"
    shutil.copytree(goldens.GOLDEN / "processing" / "lerobot_being_h05", directory)
    path = directory / "config.json"
    values = json.loads(path.read_text())
    refused = 0
    for key in values:
        for other in FEW:
            path.write_text(json.dumps(values | {key: other}))
            refused += survives(lambda: LEROBOT_BEINGH.read(directory), f"{key} {other!r}")
    assert refused > 10
