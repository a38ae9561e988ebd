"""An op in plain PyTorch, as benchmarks hand it to whatever can compute it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Named", "Plain", "Run", "Task", "called", "cast", "eager", "flat", "replaced"]

Run = Callable[[], object]


class Named(nn.Module):
    """A function of named tensors as a module of positional ones; what else it takes is fixed."""

    def __init__(self, function: Callable[..., Any], names: Sequence[str], **fixed: Any):
        super().__init__()
        self.function, self.names, self.fixed = function, tuple(names), fixed

    def forward(self, *given: Tensor) -> Any:
        return self.function(**dict(zip(self.names, given, strict=True)), **self.fixed)


@dataclass(frozen=True)
class Task:
    """What a rival is made from: a module, its inputs, and which passes are timed.

    ``passes`` is ``forward``, ``backward`` (of a graph that is kept) or ``both``.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    passes: str = "forward"


@dataclass(frozen=True)
class Plain:
    """An op in plain PyTorch, in fp32; integers among the inputs stay what they are.

    Attributes:
        modules: by the name of the way it is written; one way needs no name.
        inputs: of all of them, or by the same name.
        right: results of the op's definition in fp64; None takes those of the module in fp64.
        rounding: of the definition, which plain PyTorch does not imitate, as a relative error.
        checked: where a module draws its own random numbers: the same with the op's, to be checked.
        passes: if not ``forward``, the results are the gradients of all floating inputs, of the sum
            of all outputs.
    """

    modules: Mapping[str, nn.Module]
    inputs: tuple[Tensor, ...] | Mapping[str, tuple[Tensor, ...]]
    right: tuple[Tensor, ...] | None = None
    rounding: float = 0.0
    checked: nn.Module | None = None
    passes: str = "forward"

    @property
    def has_linear(self) -> bool:
        """Whether there are layers with weights to be laid out."""
        return any(isinstance(one, nn.Linear) for m in self.modules.values() for one in m.modules())

    def task(self, variant: str) -> Task:
        """What a rival is made from."""
        given = self.inputs[variant] if isinstance(self.inputs, Mapping) else self.inputs
        return Task(self.modules[variant], given, self.passes)

    @cached_property
    def exact(self) -> tuple[Tensor, ...]:
        """What every rival must give."""
        if self.right is not None:
            return self.right
        task = self.task(next(iter(self.modules)))
        module = task.module if self.checked is None else self.checked
        with torch.set_grad_enabled(self.passes != "forward"):
            return flat(eager(Task(module, task.inputs, self.passes), torch.float64)())


def flat(found: Any) -> tuple[Tensor, ...]:
    """One result or several, as tensors."""
    several = found if isinstance(found, tuple | list) else (found,)
    return tuple(torch.as_tensor(one) for one in several)


def cast(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """Copies, the floating ones in this dtype."""
    return [
        one.detach().to(dtype if one.is_floating_point() else one.dtype, copy=True)
        for one in inputs
    ]


def eager(task: Task, dtype: torch.dtype) -> Run:
    """Plain PyTorch."""
    return called(copy.deepcopy(task.module).to(dtype), cast(task.inputs, dtype), task.passes)


def called(module: Callable[..., Any], given: list[Tensor], passes: str = "forward") -> Run:
    """The call; gradients of the floating inputs; or both together."""
    if passes == "forward":
        return lambda: module(*given)
    leaves = [one.requires_grad_() for one in given if one.is_floating_point()]
    found = [one for one in flat(module(*given)) if one.requires_grad]
    seeds = [torch.ones_like(one) for one in found]
    if passes == "backward":
        return lambda: torch.autograd.grad(found, leaves, seeds, retain_graph=True)

    def both() -> tuple[Tensor, ...]:
        found = [one for one in flat(module(*given)) if one.requires_grad]
        return torch.autograd.grad(found, leaves, seeds)

    return both


def replaced(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """A copy with every linear layer made anew."""
    own = copy.deepcopy(module)
    for name, one in list(own.named_modules()):
        if isinstance(one, nn.Linear):
            own.set_submodule(name, make(one))
    return own
