"""The ops: each a function with several backends behind one dispatch; imported on first use."""

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vlakern.ops._native import native_info
from vlakern.ops._table import OPS

if TYPE_CHECKING:
    from vlakern.ops._dispatch import Key, resolve
    from vlakern.ops.action_decode import action_decode, action_decode_out
    from vlakern.ops.action_embed import action_embed, action_embed_out, fold_action_encoder
    from vlakern.ops.action_unembed import FinalNorm, action_unembed, action_unembed_out
    from vlakern.ops.flow_loss import (
        flow_loss,
        flow_loss_out,
        flow_mix,
        flow_mix_out,
        flow_noise,
    )
    from vlakern.ops.gated_mlp import gated_mlp, gated_mlp_out
    from vlakern.ops.image_prep import image_prep, image_prep_out
    from vlakern.ops.linear import PackedLinear, linear, linear_out, pack_linear
    from vlakern.ops.norm import norm, norm_out
    from vlakern.ops.ode_step import ode_step, ode_step_out
    from vlakern.ops.qkv_prep import qkv_prep, qkv_prep_out
    from vlakern.ops.shared_attention import (
        shared_attention,
        shared_attention_out,
        shared_attention_pack_prefix,
    )

__all__ = [
    "FinalNorm",
    "Key",
    "PackedLinear",
    "action_decode",
    "action_decode_out",
    "action_embed",
    "action_embed_out",
    "action_unembed",
    "action_unembed_out",
    "explain",
    "flow_loss",
    "flow_loss_out",
    "flow_mix",
    "flow_mix_out",
    "flow_noise",
    "fold_action_encoder",
    "gated_mlp",
    "gated_mlp_out",
    "image_prep",
    "image_prep_out",
    "linear",
    "linear_out",
    "native_info",
    "norm",
    "norm_out",
    "ode_step",
    "ode_step_out",
    "pack_linear",
    "qkv_prep",
    "qkv_prep_out",
    "resolve",
    "shared_attention",
    "shared_attention_out",
    "shared_attention_pack_prefix",
    "verdicts",
]

_HOMES = {
    "Key": "vlakern.ops._dispatch",
    "resolve": "vlakern.ops._dispatch",
    "PackedLinear": "vlakern.ops.linear",
    "pack_linear": "vlakern.ops.linear",
    "shared_attention_pack_prefix": "vlakern.ops.shared_attention",
    "FinalNorm": "vlakern.ops.action_unembed",
    "fold_action_encoder": "vlakern.ops.action_embed",
    **OPS,
    **{f"{op}_out": home for op, home in OPS.items()},
    **dict.fromkeys(("flow_mix", "flow_mix_out", "flow_noise"), OPS["flow_loss"]),
}


class _Ops(ModuleType):
    """Lets ``vlakern.ops.<op>`` be the function although a sub-package has the same name."""

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and name in OPS:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Ops


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vlakern.ops' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def verdicts(device: str = "cpu") -> dict[str, dict[str, str]]:
    """Op -> backend -> ``"ok"`` or the reason why it cannot run on ``device``."""
    from vlakern.ops._dispatch import refusals
    from vlakern.ops._torch import key_for

    found = {op: refusals(op, key_for(device)) for op in OPS}
    return {
        op: {name: reason or "ok" for name, reason in reasons.items()}
        for op, reasons in found.items()
    }


def explain(device: str = "cpu") -> Mapping[str, Mapping[str, str]]:
    """Prints and returns every verdict: op, backend, ``ok`` or the reason."""
    found = verdicts(device)
    for op, backends in found.items():
        for name, verdict in backends.items():
            print(f"{op:<20} {name:<10} {verdict}")
    return found
