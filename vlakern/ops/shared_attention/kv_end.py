"""Who sees what, as one integer per query: built and checked once per batch, on any device."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import InputError

__all__ = ["KvEnd"]

NAMES = ("cu_q", "cu_k", "kv_end", "cu_prefix", "prefix_index")


@dataclass(frozen=True, eq=False)
class KvEnd:
    """Query i sees the logical keys ``[0, kv_end[i])`` of its document.

    A document's logical keys are its cached prefix, if it has one, followed by its own keys.
    Letters: R documents, T queries, S own keys, N cached prefixes of P rows together.

    The tensors may be given in any integer dtype and become contiguous int32 on the device they
    are on. Their values are read and checked here, once, which waits for a GPU: build on the CPU
    and move with :meth:`to`, or build before the time that counts. They must not be changed after.

    Attributes:
        cu_q: int32 ``[R + 1]``, joint queries ``[cu_q[r], cu_q[r + 1])`` are document r's.
        cu_k: int32 ``[R + 1]``, likewise for the rows of its own keys.
        kv_end: int32 ``[T]``, counted from the document's first logical key; it does not decrease
            within a document, and 0 gives a zero output row.
        cu_prefix: int32 ``[N + 1]``, rows of each of the N cached prefixes.
        prefix_index: int32 ``[R]``, which prefix a document continues; several may share one.
        max_q: the most queries that a document has.
        max_keys: the most logical keys, cached and own, that a document has.
        queries, keys, prefix_keys: T, S and P.

    Raises:
        InputError: ranges that do not start at 0 or go back, a query that sees more keys than its
            document has, fewer than none, or fewer than the query before it.
    """

    cu_q: Tensor
    cu_k: Tensor
    kv_end: Tensor
    cu_prefix: Tensor | None = None
    prefix_index: Tensor | None = None
    max_q: int = field(init=False, default=0)
    max_keys: int = field(init=False, default=0)
    queries: int = field(init=False, default=0)
    keys: int = field(init=False, default=0)
    prefix_keys: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        for name in NAMES:
            given = getattr(self, name)
            if given is not None:
                _check_tensor(name, given)
                object.__setattr__(self, name, given.to(torch.int32).contiguous())
        self._check()

    def to(self, device: torch.device | str) -> "KvEnd":
        """The same ranges on another device, without checking or waiting again."""
        fields = self.__dict__.items()
        return KvEnd.trusted(**{n: v.to(device) if torch.is_tensor(v) else v for n, v in fields})

    @classmethod
    def trusted(cls, **values: Tensor | int | None) -> "KvEnd":
        """The fields of a checked one put together again; nothing is checked."""
        made = object.__new__(cls)
        for name, value in values.items():
            object.__setattr__(made, name, value)
        return made

    def _check(self) -> None:
        cu_q, cu_k = _counts("cu_q", self.cu_q), _counts("cu_k", self.cu_k)
        if len(cu_q) != len(cu_k):
            raise InputError(
                f"cu_q is of {len(cu_q) - 1} documents, cu_k of {len(cu_k) - 1}; expected as many"
            )
        prefix_R = self._prefix_lengths(len(cu_q) - 1)
        q_count, key_count = np.diff(cu_q), np.diff(cu_k) + prefix_R
        end = self.kv_end.cpu().numpy()
        if len(end) != cu_q[-1]:
            raise InputError(
                f"{len(end)} entries of kv_end for {cu_q[-1]} queries; expected one each"
            )
        if np.any((end < 0) | (end > np.repeat(key_count, q_count))):
            raise InputError(
                "kv_end leaves the keys of its document; expected 0 to the number of cached and own"
                " keys"
            )
        back = np.flatnonzero(np.diff(end) < 0) + 1  # a first query may see less than its neighbour
        if not np.isin(back, cu_q).all():
            raise InputError(
                "kv_end decreases within a document; order its queries by what they see"
            )
        numbers = {
            "max_q": q_count.max(initial=0),
            "max_keys": key_count.max(initial=0),
            "queries": cu_q[-1],
            "keys": cu_k[-1],
        }
        for name, number in numbers.items():
            object.__setattr__(self, name, int(number))

    def _prefix_lengths(self, documents: int) -> "np.ndarray":
        """Cached rows that each document continues; 0 without a cache."""
        if self.cu_prefix is None and self.prefix_index is None:
            return np.zeros(documents, dtype=np.int32)
        if self.cu_prefix is None or self.prefix_index is None:
            raise InputError("cu_prefix and prefix_index must be given together")
        cu, index = _counts("cu_prefix", self.cu_prefix), self.prefix_index.cpu().numpy()
        if len(index) != documents:
            raise InputError(f"prefix_index has {len(index)} entries for {documents} documents")
        if np.any((index < 0) | (index >= len(cu) - 1)):
            raise InputError(f"prefix_index leaves the {len(cu) - 1} cached prefixes")
        object.__setattr__(self, "prefix_keys", int(cu[-1]))
        return np.diff(cu)[index]


def _check_tensor(name: str, given: Tensor) -> None:
    whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if given.ndim != 1 or not whole:
        raise InputError(
            f"{name} must be integers of one dimension, found {given.dtype} {list(given.shape)}"
        )
    limits = torch.iinfo(torch.int32)
    if given.dtype == torch.int64 and not bool(
        ((given >= limits.min) & (given <= limits.max)).all()
    ):
        raise InputError(f"{name} holds numbers beyond int32; split the batch")


def _counts(name: str, cu: Tensor) -> "np.ndarray":
    """The checked cumulative lengths on the host."""
    host = cu.cpu().numpy()
    if len(host) == 0 or host[0] != 0 or np.any(np.diff(host) < 0):
        raise InputError(f"{name} must start with 0 and never decrease, found {host[:8].tolist()}")
    return host
