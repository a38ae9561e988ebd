"""Keys from torch devices and tensors, and calls that go past torch.library."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from vlakern.errors import InputError
from vlakern.ops._dispatch import Key

__all__ = [
    "check_index",
    "eager_function",
    "key_for",
    "processors",
    "runs_directly",
    "stream_of",
    "wants_gradients",
]


def check_index(what: str, index: Tensor, most: int) -> None:
    """Raises InputError unless all of ``index`` lies in ``[0, most)``; waits for a GPU."""
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < most:
        raise InputError(
            f"{what} must be in [0, {most}), found {int(index.min())} to {int(index.max())}"
        )


@cache
def _arch(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def _key(
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    dims: tuple[tuple[str, int], ...],
    flags: frozenset[str],
) -> Key:
    names = tuple(str(dtype).removeprefix("torch.") for dtype in dtypes)
    arch = _arch(device) if device.type == "cuda" else 0
    return Key(device.type, arch, names, dims, flags)


def key_for(
    device: str | torch.device,
    dtypes: tuple[torch.dtype, ...] = (),
    dims: tuple[tuple[str, int], ...] = (),
    flags: frozenset[str] = frozenset(),
) -> Key:
    """The key of calls on ``device`` with tensors of ``dtypes``."""
    return _key(torch.device(device), dtypes, dims, flags)


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of the GPU; 1 where Triton interprets."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def stream_of(tensor: Tensor) -> int:
    """The current CUDA stream of a tensor's device, as an integer."""
    return torch.cuda.current_stream(tensor.device).cuda_stream


def runs_directly(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a call may go past torch.library, whose dispatch costs more than a small kernel:
    nothing compiles, traces, transforms or fakes it."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return all(one is None or type(one) in (Tensor, Parameter) for one in tensors)


def wants_gradients(tensors: Iterable[Tensor | None]) -> bool:
    """Whether autograd would record a call with these arguments."""
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)


def eager_function(
    forward: Callable[..., Any], keep: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """The functions of a registered op as an autograd function for direct calls."""

    # With a setup_context of its own torch would bind every call to the signature: 20 us and more.
    def both(ctx: Any, *given: Any) -> Any:
        found = forward(*given)
        keep(ctx, given, found)
        return found

    statics = {"forward": staticmethod(both), "backward": staticmethod(backward)}
    return type("Eager", (torch.autograd.Function,), statics).apply
