"""Every environment variable vlakern reads, in one table; nothing else reads ``os.environ``."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vlakern.errors import ConfigError

__all__ = [
    "VARIABLES",
    "Variable",
    "backend",
    "cache_directory",
    "cpu_isa",
    "current",
    "default_renderer",
    "no_native",
    "renderer",
    "settings",
    "triton_interpret",
]

Renderer = Literal["egl", "osmesa", "glfw"]
Isa = Literal["avx512_bf16", "avx512", "avx2", "neon", "scalar"]


@dataclass(frozen=True)
class Variable:
    """One row of the table in the README."""

    name: str
    values: str
    default: str
    meaning: str


VARIABLES = (
    Variable(
        "VLAKERN_BACKEND",
        "auto, cuda, triton, cpu, reference",
        "auto",
        "backend of every op that is not given one by argument",
    ),
    Variable(
        "VLAKERN_CPU_ISA",
        ", ".join(get_args(Isa)),
        "the best the CPU has",
        "instruction set of the native CPU kernels; asking for more than the CPU has is an error",
    ),
    Variable(
        "VLAKERN_NO_NATIVE",
        "0, 1",
        "0",
        "1 behaves as if the native module were not built",
    ),
    Variable(
        "TRITON_INTERPRET",
        "0, 1",
        "0",
        "1 lets the triton backend, asked for by name, run on the CPU in Triton's interpreter",
    ),
    Variable(
        "VLAKERN_CACHE",
        "a directory",
        "~/.cache/vlakern",
        "where packed weights and places of records go if their own directory cannot be written to",
    ),
    Variable(
        "MUJOCO_GL",
        ", ".join(get_args(Renderer)),
        "egl where its library loads, else osmesa",
        "off-screen renderer of the simulators",
    ),
)


def current(name: str) -> str:
    """The value that a variable of the table has now, ``""`` if it is not set."""
    if name not in {variable.name for variable in VARIABLES}:
        raise ConfigError(f"{name} is not in the table of environment variables")
    return os.environ.get(name, "")


def settings() -> tuple[Any, ...]:
    """The variables that decide which kernel serves a call, as they are written now: equal tuples
    mean equal decisions."""
    return tuple(map(_written.get, _deciding))


_DECIDING = ("VLAKERN_BACKEND", "VLAKERN_CPU_ISA", "VLAKERN_NO_NATIVE", "TRITON_INTERPRET")
# Under os.environ, which encodes and decodes in every look-up: 0.3 us instead of 4.
_written: dict[Any, Any] = vars(os.environ)["_data"]
_deciding = tuple(map(os.environ.encodekey, _DECIDING))


def _choice(name: str, allowed: tuple[str, ...], default: str) -> str:
    value = os.environ.get(name, "") or default
    if value not in allowed and value != default:
        raise ConfigError(f"{name}={value!r} is not known; use one of {', '.join(allowed)}")
    return value


def backend() -> str:
    """The backend named by ``VLAKERN_BACKEND``, ``"auto"`` if unset."""
    return _choice("VLAKERN_BACKEND", ("auto", "cuda", "triton", "cpu", "reference"), "auto")


def cpu_isa() -> str:
    """The instruction set forced by ``VLAKERN_CPU_ISA``, ``""`` if none is forced."""
    return _choice("VLAKERN_CPU_ISA", get_args(Isa), "")


def cache_directory() -> Path:
    """The directory named by ``VLAKERN_CACHE``, in the user's home if unset."""
    named = os.environ.get("VLAKERN_CACHE", "")
    return Path(named) if named else Path.home() / ".cache" / "vlakern"


def no_native() -> bool:
    """Whether ``VLAKERN_NO_NATIVE`` hides the native module."""
    return _choice("VLAKERN_NO_NATIVE", ("0", "1"), "0") == "1"


def triton_interpret() -> bool:
    """Whether ``TRITON_INTERPRET`` makes Triton interpret its kernels on the CPU."""
    return _choice("TRITON_INTERPRET", ("0", "1"), "0") == "1"


def renderer() -> str:
    """The renderer forced by ``MUJOCO_GL``, ``""`` if none is forced."""
    return _choice("MUJOCO_GL", get_args(Renderer), "")


def default_renderer(name: Renderer) -> str:
    """Sets ``MUJOCO_GL`` to ``name`` unless the user chose one; returns the one in force."""
    return os.environ.setdefault("MUJOCO_GL", name)
