"""A cached prefix in the order in which the native kernels read it, made once for many calls."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vlakern import env
from vlakern.errors import InputError, Unsupported
from vlakern.ops import _native
from vlakern.ops.shared_attention.kv_end import KvEnd

__all__ = ["PackedPrefix", "shared_attention_pack_prefix"]


@dataclass(frozen=True)
class PackedPrefix:
    """What ``shared_attention_pack_prefix`` made; calling it packs again what its inputs hold now.

    Attributes:
        data: uint8, an address that 64 divides.
        sources: the tensors that it was made of, kept alive.
    """

    data: Tensor
    sources: tuple[Tensor, ...]
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()


def shared_attention_pack_prefix(
    prefix_k: Tensor, prefix_v: Tensor, who: KvEnd, *, out: Tensor | None = None
) -> PackedPrefix:
    """Packs the cached keys and values that ``who.cu_prefix`` divides, for a CPU.

    With it ``shared_attention_out`` gives the same bits in less time, which pays from the second
    call on the same prefix: the steps of an integration. The unpacked tensors are still read for
    the last keys of a prefix, fewer than 32.

    Args:
        prefix_k, prefix_v: ``[P, G, D]`` bf16, D at most 256 and a multiple of 8.
        who: the ranges that the queries see; only ``cu_prefix`` is looked at.
        out: uint8, of as many bytes as the result's ``data`` has, at an address that 64 divides.

    Raises:
        InputError: a shape, dtype or device does not fit, or there is no ``cu_prefix``.
        Unsupported: the instruction set, the dtype or the head dim has no such form.
    """
    native, isa = _native.cpu_module(), env.cpu_isa()
    cu_prefix = who.cu_prefix
    if cu_prefix is None or prefix_k.device.type != "cpu" or prefix_k.shape != prefix_v.shape:
        raise InputError(
            "shared_attention_pack_prefix: expected prefix_k and prefix_v of one shape on the CPU"
            f" and cu_prefix in who; got {list(prefix_k.shape)} and {list(prefix_v.shape)} on"
            f" {prefix_k.device}{', no cu_prefix' if cu_prefix is None else ''}"
        )
    k, v, cu = (_native.view(x) for x in (prefix_k, prefix_v, cu_prefix))
    supported, size = native.shared_attention_prefix_bytes(k, cu, isa)
    if not supported:
        raise Unsupported(
            "shared_attention_pack_prefix: needs AVX-512-BF16, bf16 and a head dim of at most 256;"
            f" found {native.selected_isa(isa)}, {prefix_k.dtype}, {prefix_k.shape[2]}; leave the"
            " packed prefix out"
        )
    if out is None:
        room = torch.empty(size + 64, dtype=torch.uint8)
        out = room[-room.data_ptr() % 64 :][:size]
    threads = torch.get_num_threads()
    packs = partial(native.shared_attention_pack_prefix, k, v, cu, _native.view(out), isa, threads)
    packed = PackedPrefix(out, (prefix_k, prefix_v, cu_prefix), packs)
    packed()
    return packed
