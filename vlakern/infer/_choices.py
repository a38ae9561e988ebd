"""Where a policy runs, and in which numbers, from the words of a caller."""

import torch

from vlakern.errors import Unsupported

__all__ = ["DTYPES", "choose_device", "choose_dtype"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUANTISED = {"cpu": ("int8",), "cuda": ("int8", "fp8")}  # of vlakern's engines alone


def choose_device(name: str) -> str:
    """``cpu`` or ``cuda:N`` of ``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise Unsupported(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise Unsupported(f"device {name!r} was asked for, but torch sees no NVIDIA GPU; use cpu")
    if int(index or 0) >= torch.cuda.device_count():
        raise Unsupported(f"device {name!r} is not there; torch sees {torch.cuda.device_count()}")
    # The one that is torch's current now, wherever the policy is called later.
    return name if index else f"cuda:{torch.cuda.current_device()}"


def choose_dtype(name: str, device: str) -> str:
    """A name of ``DTYPES``, or a quantised one that the device has."""
    if name == "auto":
        return "fp32" if device == "cpu" else "bf16"
    known = (*DTYPES, *QUANTISED["cpu" if device == "cpu" else "cuda"])
    if name in QUANTISED["cuda"] and name not in known:
        raise Unsupported(
            f"dtype {name!r} needs an NVIDIA GPU of sm_89 or newer; on {device} use"
            f" {', '.join(known)}"
        )
    if name not in known:
        raise Unsupported(
            f"dtype {name!r} is not supported on {device}; use auto, {', '.join(known)}"
        )
    return name
