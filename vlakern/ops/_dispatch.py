"""The single dispatch: which backend serves a call, decided from static facts and said aloud."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any

from vlakern import env
from vlakern.errors import ConfigError, Unsupported
from vlakern.ops._table import OPS

__all__ = ["Backend", "Key", "backends_of", "made_by", "refusals", "resolve"]

log = logging.getLogger("vlakern.ops")

Kernel = Callable[..., Any]  # what its arguments and result are is each op's own affair


@dataclass(frozen=True)
class Key:
    """The static facts of a call, all that a backend may decide on.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        arch: 90 for sm_90; 0 on the CPU.
        dtypes: torch's names of the tensors' dtypes, without ``torch.``.
        dims: sizes that a kernel may be limited in, by letter.
        flags: what else the call asks for, e.g. ``"deterministic"``.
        interpret: Triton may interpret on the CPU; never set for ``auto``.
    """

    device: str = "cpu"
    arch: int = 0
    dtypes: tuple[str, ...] = ()
    dims: tuple[tuple[str, int], ...] = ()
    flags: frozenset[str] = frozenset()
    interpret: bool = False


@dataclass(frozen=True)
class Backend:
    """One way to compute an op.

    Attributes:
        name: ``cuda``, ``triton``, ``cpu`` or ``reference``.
        load: returns the kernel, bound to the settings of ``vlakern.env``; called once per key, and
            only after the backend did not refuse.
        refuses: the reason why a case is not served, None if it is.
    """

    name: str
    load: Callable[[], Kernel]
    refuses: Callable[[Key], str | None]


def made_by(module: str, name: str) -> Callable[[], Kernel]:
    """A loader that imports ``module`` and calls its function ``name``, and only when called."""
    return lambda: getattr(import_module(module), name)()


def backends_of(op: str) -> tuple[Backend, ...]:
    """The backends of an op, best first; raises ConfigError for an unknown op."""
    if op not in OPS:
        raise ConfigError(f"{op!r} is not an op; the ops are {', '.join(OPS)}")
    return import_module(OPS[op]).BACKENDS


def refusals(op: str, key: Key) -> dict[str, str | None]:
    """Backend -> reason why it refuses the case, None if it serves it."""
    named = replace(key, interpret=env.triton_interpret())
    return {backend.name: backend.refuses(named) for backend in backends_of(op)}


def resolve(op: str, key: Key, backend: str = "auto") -> Kernel:
    """The kernel that serves ``key``.

    Args:
        op: name in the table.
        key: static facts of the calls to come.
        backend: a backend's name, or ``auto``: what ``VLAKERN_BACKEND`` names, else the first that
            does not refuse.

    Raises:
        Unsupported: the named backend refuses, with its reason.
        ConfigError: the op has no backend of that name.
    """
    return _resolve_under(env.settings(), op, key, backend)


@cache
def _resolve_under(written: tuple[Any, ...], op: str, key: Key, backend: str) -> Kernel:
    """``resolve`` while the environment is as written; to read its meaning takes ten times as long
    as to see that it has not changed."""
    if backend == "auto":
        backend = env.backend()
    interpret = backend != "auto" and env.triton_interpret()
    settings = (env.no_native(), env.cpu_isa())
    return _resolve(op, replace(key, interpret=interpret), backend, settings)


@cache
def _resolve(op: str, key: Key, name: str, settings: tuple[bool, str]) -> Kernel:
    chosen = _first(op, key) if name == "auto" else _named(op, key, name)
    log.info("%s: %s for %s", op, chosen.name, key)
    return chosen.load()


def _first(op: str, key: Key) -> Backend:
    reasons = []
    for backend in backends_of(op):
        reason = backend.refuses(key)
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise Unsupported(f"no backend of {op} serves {key}; {'; '.join(reasons)}")


def _named(op: str, key: Key, name: str) -> Backend:
    known = {backend.name: backend for backend in backends_of(op)}
    if name not in known:
        raise ConfigError(f"{op} has no backend {name!r}; it has {', '.join(known)}")
    reason = known[name].refuses(key)
    if reason is not None:
        raise Unsupported(f"backend {name} of {op} refuses: {reason}")
    return known[name]
