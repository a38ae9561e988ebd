"""Reasons to refuse that ops share: pure functions of a key, combined per backend."""

import importlib.util
from collections.abc import Callable

from vlakern.ops import _native
from vlakern.ops._dispatch import Key

__all__ = ["any_of", "needs_cpu", "needs_cuda", "needs_triton", "never", "only_dtypes"]

Refusal = Callable[[Key], str | None]


def never(key: Key) -> str | None:
    """Refuses nothing."""
    return None


def any_of(*checks: Refusal) -> Refusal:
    """Refuses with the first reason that any of the checks gives."""

    def refuses(key: Key) -> str | None:
        reasons = (check(key) for check in checks)
        return next((reason for reason in reasons if reason is not None), None)

    return refuses


def only_dtypes(*allowed: str) -> Refusal:
    """Refuses a tensor of any other dtype."""

    def refuses(key: Key) -> str | None:
        other = [dtype for dtype in key.dtypes if dtype not in allowed]
        return f"takes {' or '.join(allowed)}, not {other[0]}" if other else None

    return refuses


def needs_cpu(key: Key) -> str | None:
    """Refuses other devices and a native module that is not built."""
    if key.device != "cpu":
        return f"computes on the CPU, the tensors are on {key.device}"
    return _native.missing()


def needs_cuda(key: Key) -> str | None:
    """Refuses other devices and GPUs that the CUDA module was not built for."""
    if key.device != "cuda":
        return f"needs an NVIDIA GPU, the tensors are on {key.device}"
    missing, built = _native.missing(), _native.cuda_archs()
    if missing is not None:
        return missing
    if not built:
        return f"the native module has no CUDA kernels; {_native.BUILD} with nvcc on PATH"
    if not _native.runs_on(key.arch, built):
        names = ", ".join(f"sm_{arch}" for arch in built)
        return f"built for {names}, the GPU is sm_{key.arch}; rebuild on this machine"
    return None


def needs_triton(key: Key) -> str | None:
    """Refuses other devices, unless Triton interprets, and a missing Triton."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install 'vlakern[triton]'"
    if key.device == "cpu" and not key.interpret:
        return "needs an NVIDIA GPU (by name, TRITON_INTERPRET=1 interprets it on the CPU)"
    if key.device == "cuda" and key.arch < 80:
        return f"needs sm_80 or newer, the GPU is sm_{key.arch}"
    return None
