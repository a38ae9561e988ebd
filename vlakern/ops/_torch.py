"""Keys from torch devices and tensors."""

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor
from torch.nn import Parameter

from vlakern.ops._dispatch import Key

__all__ = ["key_for", "runs_directly", "stream_of"]


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


def stream_of(tensor: Tensor) -> int:
    """The current CUDA stream of a tensor's device, as an integer."""
    return torch.cuda.current_stream(tensor.device).cuda_stream


def runs_directly(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a call may go past torch.library: nothing records gradients, traces or fakes it."""
    if torch.compiler.is_compiling():
        return False
    given = [tensor for tensor in tensors if tensor is not None]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return False
    return all(type(tensor) in (Tensor, Parameter) for tensor in given)
