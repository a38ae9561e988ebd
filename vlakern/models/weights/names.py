"""From another family's tensor names to ours: tables of rules, aliases and folds.

A table says for every tensor of the native model which tensors of the source it is made of and how.
Folds keep the engine at one convention and can be undone, so that a table serves both ways.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlakern.errors import CheckpointError
from vlakern.models.weights.weights_file import WEIGHT_DTYPES, Tensors

__all__ = [
    "NEGATE",
    "PLUS_ONE",
    "SAME",
    "Binding",
    "Fold",
    "Folded",
    "Rule",
    "Shapes",
    "Table",
    "bind",
    "fold_weights",
    "joined",
    "scaled",
    "zeros",
]

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Fold:
    """How one native tensor is made of source tensors, and back.

    Attributes:
        apply: source tensors to the native one.
        undo: the native tensor to the source's.
        shapes: the native shape to the source's.
        exact: undo gives the source's bits back.
    """

    apply: Callable[[Sequence[Tensor]], Tensor]
    undo: Callable[[Tensor], Sequence[Tensor]]
    shapes: Callable[[Shape], Sequence[Shape]]
    exact: bool = True


def _one(
    apply: Callable[[Tensor], Tensor], undo: Callable[[Tensor], Tensor], exact: bool = True
) -> Fold:
    """A fold of one tensor that keeps its shape."""
    return Fold(lambda parts: apply(parts[0]), lambda w: [undo(w)], lambda shape: [shape], exact)


def scaled(factor: float) -> Fold:
    """The tensor times a constant, in fp32: bf16 would round the products once more."""

    def apply(w: Tensor) -> Tensor:
        # In place: a table of words is the largest tensor of all.
        return w.to(torch.float32, copy=True).mul_(factor)

    return _one(apply, lambda w: w.float() / factor, exact=False)


def joined(count: int) -> Fold:
    """``count`` tensors of one shape under each other, such as split q, k and v."""
    return Fold(
        lambda parts: torch.cat(list(parts)),
        lambda w: [part.contiguous() for part in w.chunk(count)],
        lambda shape: [(shape[0] // count, *shape[1:])] * count,
    )


def zeros() -> Callable[[Shape], Fold]:
    """A tensor that the source does not have: a bias of nothing."""
    return lambda shape: Fold(lambda parts: torch.zeros(shape), lambda w: [], lambda shape: [])


SAME = _one(lambda w: w, lambda w: w)
# Gemma's norms multiply by 1 + w, in fp32: the sum would lose digits of w in bf16.
PLUS_ONE = _one(lambda w: 1.0 + w.float(), lambda w: w.float() - 1.0, exact=False)
# Time that runs from the action to the noise has velocities of the other sign.
NEGATE = _one(torch.neg, torch.neg)


@dataclass(frozen=True)
class Rule:
    """One native tensor, or one per layer where the names hold ``{n}``.

    Attributes:
        native: its name.
        sources: names of the tensors it is made of.
        fold: how, or what says how for a shape.
        layers: how many there are of it.
    """

    native: str
    sources: tuple[str, ...]
    fold: Fold | Callable[[Shape], Fold] = SAME
    layers: int = 1

    def each(self) -> list[tuple[str, tuple[str, ...]]]:
        """Native name and sources of every layer."""
        return [
            (
                self.native.replace("{n}", str(n)),
                tuple(s.replace("{n}", str(n)) for s in self.sources),
            )
            for n in range(self.layers)
        ]


@dataclass(frozen=True)
class Table:
    """All names of a family.

    Attributes:
        rules: what each native tensor is made of.
        aliases: pattern and replacement, tried on a name of the file one after the other.
        stand_ins: a missing name and the name of the tied tensor that takes its place.
        skipped: pattern of canonical names that are not used, and the reason.
    """

    rules: tuple[Rule, ...]
    aliases: tuple[tuple[str, str], ...] = ()
    stand_ins: tuple[tuple[str, str], ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    def canonical(self, name: str) -> str:
        """The name that the rules use for a name of a file."""
        for pattern, replacement in self.aliases:
            name = re.sub(pattern, replacement, name)
        return name

    def reason(self, name: str) -> str | None:
        """Why a canonical name is not used, None if it has to be."""
        return next((why for pattern, why in self.skipped if re.fullmatch(pattern, name)), None)


@dataclass(frozen=True)
class Binding:
    """A table that has met a file.

    Attributes:
        made: native name to the file's names and their fold.
        skipped: the file's names that are not used, with the reason.
    """

    made: dict[str, tuple[tuple[str, ...], Fold]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def weights(self, get: Callable[[str], Tensor]) -> "Folded":
        """Native tensors by name, each made when it is asked for."""
        return Folded(self, get)


@dataclass(frozen=True)
class Folded:
    """The native tensors of a file: calling it with a name makes the tensor.

    Attributes:
        binding: what each is made of.
        get: the file's tensors by name.
    """

    binding: Binding
    get: Callable[[str], Tensor]

    def __call__(self, name: str) -> Tensor:
        """The tensor, in the file's dtype where nothing is computed and in fp32 elsewhere."""
        sources, fold = self.binding.made[name]
        return fold.apply([self.get(source) for source in sources])


def origin(weights: Callable[[str], Tensor], name: str) -> str:
    """A native tensor as a sentence can name it: the file and its name there, where it has one."""
    names, get = [name], weights
    if isinstance(weights, Folded):
        names, get = list(weights.binding.made[name][0]), weights.get
    where = f"{get.where}: " if isinstance(get, Tensors) else ""
    return f"{where}tensor {' or '.join(map(repr, names)) or repr(name)}"


def fold_weights(table: Table, native: Shapes, tensors: Tensors) -> Folded:
    """Binds a table to the tensors of a checkpoint.

    Raises:
        CheckpointError: as :func:`bind`, or a tensor that is used is not floating point.
    """
    binding = bind(table, native, tensors.shapes, str(tensors.where))
    for names, _ in binding.made.values():
        for name in names:
            dtype = tensors.infos[name].dtype
            if dtype not in WEIGHT_DTYPES:
                raise CheckpointError(
                    f"{tensors.where}: tensor {name!r} is {dtype}, expected one of"
                    f" {', '.join(WEIGHT_DTYPES)}"
                )
    return binding.weights(tensors)


def bind(table: Table, native: Shapes, found: Shapes, where: str) -> Binding:
    """Says for each native tensor what it is made of, before anything is read.

    Args:
        native: names and shapes of the model.
        found: names and shapes of the file.

    Raises:
        CheckpointError: naming a tensor that is missing, misshapen, there twice or left over.
    """
    names = _canonical(table, found, where)
    made: dict[str, tuple[tuple[str, ...], Fold]] = {}
    used: set[str] = set()
    missing: list[str] = []
    for rule in table.rules:
        for name, sources in rule.each():
            if name not in native:
                raise CheckpointError(
                    f"{where}: the table of names makes {name!r}, which the model in config.json"
                    " does not have"
                )
            fold = rule.fold if isinstance(rule.fold, Fold) else rule.fold(native[name])
            absent = [source for source in sources if source not in names]
            missing += absent
            if absent:
                continue
            in_file = tuple(names[source] for source in sources)
            _check_shapes(in_file, fold.shapes(native[name]), found, where)
            made[name] = in_file, fold
            used.update(sources)
    left = [name for name in names if name not in used]
    skipped = {names[name]: reason for name in left if (reason := table.reason(name)) is not None}
    unknown = sorted(names[name] for name in left if names[name] not in skipped)
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"holds {unknown[0]!r}, which is unknown"
        raise CheckpointError(
            f"{where} {what} ({len(missing)} tensors missing, {len(unknown)} unknown); it was"
            " written for another model than config.json describes, or by a version that names"
            " tensors otherwise"
        )
    unmade = sorted(set(native) - set(made))
    if unmade:
        raise CheckpointError(f"{where}: no rule makes {unmade[0]!r} ({len(unmade)} tensors)")
    return Binding(made, skipped)


def _canonical(table: Table, found: Shapes, where: str) -> dict[str, str]:
    """Canonical names, each with the name in the file."""
    names: dict[str, str] = {}
    for name in found:
        known_as = table.canonical(name)
        if known_as in names:
            raise CheckpointError(
                f"{where}: tensors {names[known_as]!r} and {name!r} are one tensor under two names;"
                " keep one of them"
            )
        names[known_as] = name
    for missing, tied in table.stand_ins:
        if missing not in names and tied in names:
            names[missing] = names.pop(tied)
    return names


def _check_shapes(
    names: Sequence[str], expected: Sequence[Shape], found: Shapes, where: str
) -> None:
    for name, shape in zip(names, expected, strict=True):
        if tuple(found[name]) != tuple(shape):
            raise CheckpointError(
                f"{where}: tensor {name!r} has shape {tuple(found[name])}, the model in config.json"
                f" needs {tuple(shape)}"
            )
