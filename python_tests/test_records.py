"""Records come back from their plain values, and a wrong key or value is named by its path."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from vlakern.errors import ConfigError
from vlakern.records import from_dict, read_toml, to_dict


@dataclass(frozen=True)
class Wheel:
    """A record inside another."""

    radius: float
    kind: Literal["plain", "omni"] = "plain"

    def __post_init__(self) -> None:
        if self.radius <= 0:
            raise ConfigError(f"radius is {self.radius}, expected more than 0")


@dataclass(frozen=True)
class Cart:
    """Every type that a record may hold."""

    name: str
    wheels: tuple[Wheel, ...]
    load: int = 0
    brakes: bool = False
    limit: float | None = None
    spare: Wheel | None = None
    tags: tuple[str, ...] = dataclasses.field(default_factory=tuple)
    colors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


GOOD = {"name": "a", "wheels": [{"radius": 2}]}


def test_a_record_comes_back_from_json() -> None:
    """Tuples become lists and back; whole numbers are numbers; None stays None."""
    wheels, spare = (Wheel(1.5, "omni"), Wheel(2.0)), Wheel(1.0)
    cart = Cart("a", wheels, 3, True, 2.5, spare, ("x", "y"), {"lid": "red"}, {"any": [1, "b"]})
    assert from_dict(Cart, json.loads(json.dumps(to_dict(cart)))) == cart
    plain = from_dict(Cart, GOOD)
    assert plain == Cart("a", (Wheel(2.0),))
    assert isinstance(plain.wheels[0].radius, float)
    assert from_dict(Cart, {**GOOD, "limit": None, "spare": None}) == plain


WRONG: dict[str, tuple[Any, str]] = {
    "a list": ([GOOD], r"cart: expected an object, found \[\{"),
    "nothing": (None, "cart: expected an object, found None"),
    "no mapping": (
        {**GOOD, "colors": ["red"]},
        r"cart.colors: expected an object, found \['red'\]",
    ),
    "mapped": ({**GOOD, "colors": {"lid": 1}}, "cart.colors.lid: expected str, found 1"),
    "unknown key": (
        {**GOOD, "weels": []},
        "cart: unknown key 'weels'; the keys of Cart are brakes",
    ),
    "missing key": ({"name": "a"}, "cart: key 'wheels' of Cart is missing"),
    "missing inside": (
        {**GOOD, "wheels": [{}]},
        r"cart\.wheels\[0\]: key 'radius' of Wheel is mis",
    ),
    "words for a number": ({**GOOD, "load": "3"}, r"cart\.load: expected int, found '3'"),
    "a flag for a number": ({**GOOD, "load": True}, r"cart\.load: expected int, found True"),
    "a flag for a float": ({**GOOD, "limit": False}, r"cart\.limit: expected float, found False"),
    "a fraction": ({**GOOD, "load": 1.5}, r"cart\.load: expected int, found 1\.5"),
    "a number for a flag": ({**GOOD, "brakes": 1}, r"cart\.brakes: expected bool, found 1"),
    "a number for words": ({**GOOD, "name": 7}, r"cart\.name: expected str, found 7"),
    "words for a list": ({**GOOD, "tags": "xy"}, r"cart\.tags: expected a list, found 'xy'"),
    "one wrong entry": ({**GOOD, "tags": ["x", 2]}, r"cart\.tags\[1\]: expected str, found 2"),
    "not a number": (
        {**GOOD, "limit": math.nan},
        r"cart\.limit: expected a finite number, found n",
    ),
    "endless": ({**GOOD, "limit": -math.inf}, r"cart\.limit: expected a finite number, found -inf"),
    "huge": ({**GOOD, "limit": 10**400}, r"cart\.limit: expected a finite number, found 1000000"),
    "no choice": (
        {**GOOD, "wheels": [{"radius": 1, "kind": "oval"}]},
        r"cart\.wheels\[0\]\.kind: expected one of \('plain', 'omni'\), found 'oval'",
    ),
    "no choice at all": (
        {**GOOD, "wheels": [{"radius": 1, "kind": ["plain"]}]},
        r"cart\.wheels\[0\]\.kind: expected one of .*, found \['plain'\]",
    ),
    "its own rule": (
        {**GOOD, "spare": {"radius": -1}},
        r"cart\.spare: radius is -1\.0, expected more than 0",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_named_by_its_path(name: str) -> None:
    """One sentence: where, what was expected and what was found."""
    values, sentence = WRONG[name]
    with pytest.raises(ConfigError, match=sentence) as caught:
        from_dict(Cart, values, "cart")
    assert "\n" not in str(caught.value)


def test_toml_is_read(tmp_path: Path) -> None:
    """Comments, tables and lists of tables are what TOML says they are."""
    path = tmp_path / "cart.toml"
    path.write_text('name = "a"  # [m]\n[[wheels]]\nradius = 2\n', encoding="utf-8")
    assert read_toml(path) == GOOD


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is missing; expected a TOML file"),
        (b"name = ", "is not valid TOML"),
        (b"\xff\xfe", "is not valid TOML"),
        (b"a = " + b"[" * 5000, "is not valid TOML"),
        (b"#" * ((1 << 20) + 1), "is larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_toml_is_one_sentence(
    content: bytes | None, sentence: str, tmp_path: Path
) -> None:
    """Missing, cut, in another encoding, nested without end, or far too large."""
    path = tmp_path / "cart.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"cart\.toml {sentence}") as caught:
        read_toml(path)
    assert len(str(caught.value)) < 400
