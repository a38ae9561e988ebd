"""Inputs that repeat: a generator from a name, and memory that shows when it was not written."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["generator", "poison", "poisoned_allocations"]


def generator(name: str, device: str = "cpu") -> torch.Generator:
    """A generator whose seed depends on ``name`` alone."""
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def poison(tensor: Tensor) -> Tensor:
    """Fills a tensor with NaN, or its smallest value if it has no NaN; returns it."""
    if tensor.is_floating_point():
        return tensor.fill_(float("nan"))
    return tensor.fill_(torch.iinfo(tensor.dtype).min)


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Inside, every ``torch.empty`` is poisoned and nondeterministic torch ops raise."""
    # fill_uninitialized_memory is on by default and takes effect in deterministic mode.
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
