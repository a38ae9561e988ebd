"""Loading the native modules, and tensors as the integers they take. Imports no torch."""

import importlib
import importlib.util
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vlakern import env
from vlakern.errors import Unsupported

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["cpu_module", "cuda_archs", "cuda_module", "missing", "native_info", "runs_on", "view"]

BUILD = "run `pip install .` in the repository (`pip install --no-build-isolation -e .` to develop)"

View = tuple[int, str, tuple[int, ...], tuple[int, ...]]


def missing() -> str | None:
    """Why there is no native module, None if there is one. A module that is broken is an error."""
    if env.no_native():
        return "VLAKERN_NO_NATIVE=1 hides the native module"
    if importlib.util.find_spec("vlakern._native") is None:
        return f"the native module is not built; {BUILD}"
    return None


@cache
def _load(name: str) -> ModuleType:
    return importlib.import_module(f"vlakern.{name}")


def cpu_module() -> Any:
    """``vlakern._native``; raises Unsupported if it is not built."""
    reason = missing()
    if reason is not None:
        raise Unsupported(reason)
    return _load("_native")


def cuda_module() -> Any:
    """``vlakern._native_cuda``; to be called only where a driver is."""
    if not cuda_archs():
        raise Unsupported(missing() or f"the native module has no CUDA kernels; {BUILD}")
    return _load("_native_cuda")


def cuda_archs() -> tuple[int, ...]:
    """The GPU targets that were built, e.g. ``(80, 90)`` for sm_80 and sm_90."""
    if missing() is not None:
        return ()
    return tuple(int(arch) for arch in cpu_module().cuda_archs.split(",") if arch)


def runs_on(arch: int, built: tuple[int, ...]) -> bool:
    """Whether code for one of the ``built`` targets runs: the same major, no newer minor."""
    return any(one // 10 == arch // 10 and one <= arch for one in built)


def native_info() -> dict[str, Any]:
    """What of the native code is there: built, reason, isa, isas, cuda, cuda_archs."""
    reason = missing()
    if reason is not None:
        return {
            "built": False,
            "reason": reason,
            "isa": None,
            "isas": [],
            "cuda": False,
            "cuda_archs": [],
        }
    native = cpu_module()
    return {
        "built": True,
        "reason": None,
        "isa": native.selected_isa(env.cpu_isa()),
        "isas": native.isas(),
        "cuda": bool(cuda_archs()),
        "cuda_archs": list(cuda_archs()),
    }


def view(tensor: "Tensor | None") -> View | None:
    """Pointer, dtype, shape and strides [elements] of a tensor; the caller keeps it alive."""
    if tensor is None:
        return None
    return tensor.data_ptr(), _dtype_name(tensor.dtype), tensor.shape, tensor.stride()


@cache
def _dtype_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
