"""The ops: name -> the module that declares its ``BACKENDS``. A new op is one line here."""

__all__ = ["OPS"]

OPS = {
    "action_decode": "vlakern.ops.action_decode",
    "action_embed": "vlakern.ops.action_embed",
    "action_unembed": "vlakern.ops.action_unembed",
    "flow_loss": "vlakern.ops.flow_loss",
    "gated_mlp": "vlakern.ops.gated_mlp",
    "image_prep": "vlakern.ops.image_prep",
    "linear": "vlakern.ops.linear",
    "norm": "vlakern.ops.norm",
    "ode_step": "vlakern.ops.ode_step",
    "qkv_prep": "vlakern.ops.qkv_prep",
    "shared_attention": "vlakern.ops.shared_attention",
}
