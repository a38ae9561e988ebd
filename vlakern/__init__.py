"""Run, train and honestly evaluate Mixture-of-Transformers flow-matching robot policies."""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlakern.cmake import cmake_prefix
    from vlakern.errors import (
        CheckpointError,
        ConfigError,
        DatasetError,
        InputError,
        RenderError,
        StudyError,
        Unsupported,
        VlakernError,
    )
    from vlakern.infer.policy import Policy, load
    from vlakern.ops import explain
    from vlakern.types import ActionChunk, Observation

__all__ = [
    "ActionChunk",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "InputError",
    "Observation",
    "Policy",
    "RenderError",
    "StudyError",
    "Unsupported",
    "VlakernError",
    "__version__",
    "cmake_prefix",
    "explain",
    "load",
]

_HOMES = {
    "vlakern.cmake": ("cmake_prefix",),
    "vlakern.errors": (
        "CheckpointError",
        "ConfigError",
        "DatasetError",
        "InputError",
        "RenderError",
        "StudyError",
        "Unsupported",
        "VlakernError",
    ),
    "vlakern.infer.policy": ("Policy", "load"),
    "vlakern.ops": ("explain",),
    "vlakern.types": ("ActionChunk", "Observation"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def _version() -> str:
    try:
        return metadata.version("vlakern")
    except metadata.PackageNotFoundError:
        return "0+source"


__version__ = _version()


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'vlakern' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
