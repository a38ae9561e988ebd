"""Frozen records from plain JSON or TOML values and back; every key is checked."""

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from vlakern.errors import ConfigError
from vlakern.untrusted import shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

__all__ = ["from_dict", "read_toml", "to_dict"]

C = TypeVar("C")
# A record's file is small; a larger one is something else.
TOML_LIMIT = 1 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ConfigError: it is missing, cannot be read, or is too large or not TOML.
    """
    try:
        if not path.is_file():
            raise ConfigError(f"{path} is missing; expected a TOML file")
        if path.stat().st_size > TOML_LIMIT:
            raise ConfigError(
                f"{path} is larger than {TOML_LIMIT} bytes; expected a small TOML file"
            )
        text = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(
            f"{str(path)[:80]} cannot be read ({reason}); expected a path to a TOML file"
        ) from error
    try:
        return tomllib.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """The record as plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(cls: type[C], values: Any, where: str = "config") -> C:
    """Builds ``cls`` from JSON values; every key must be known and every required one there.

    Raises:
        ConfigError: naming the key's full path, what was expected and what was found.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected an object, found {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(
            f"{where}: unknown key {shown(unknown[0])}; the keys of {cls.__name__} are"
            f" {', '.join(sorted(fields))}"
        )
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise ConfigError(f"{where}: key {name!r} of {cls.__name__} is missing")
    found = {name: _convert(hints[name], values[name], f"{where}.{name}") for name in values}
    try:
        return cls(**found)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as ``hint``: a JSON scalar, a record, a tuple, a mapping, a Literal or a union."""
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # pyright: ignore[reportArgumentType]
    if origin is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{where}: expected one of {get_args(hint)}, found {shown(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, found {shown(value)}")
        item = get_args(hint)[0]
        return tuple(_convert(item, entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected an object, found {shown(value)}")
        item = get_args(hint)[1]
        return {str(key): _convert(item, one, f"{where}.{key}") for key, one in value.items()}
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in get_args(hint):
            return None
        return _convert(next(a for a in get_args(hint) if a is not type(None)), value, where)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        # JSON's integers have no limit, and Python's reader takes NaN and Infinity.
        if not -sys.float_info.max <= value <= sys.float_info.max:
            raise ConfigError(f"{where}: expected a finite number, found {str(value)[:20]}")
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, found {shown(value)}")
    return value
