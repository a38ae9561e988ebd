"""The ops: name -> the module that declares its ``BACKENDS``. A new op is one line here."""

__all__ = ["OPS"]

OPS = {
    "ode_step": "vlakern.ops.ode_step",
}
