"""The one table of tolerances, the same for every test on every machine."""

import torch

__all__ = ["FACTOR", "ROUNDING", "ROUNDINGS"]

# How much larger the error may be than plain PyTorch's error in the same precision.
FACTOR = {"value": 2.0, "gradient": 2.0, "documented gradient": 3.0}

# Error of one rounding relative to the largest value.
ROUNDING = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}

# So many roundings plain PyTorch is granted where it was more exact by luck. In fp32 a sum is
# rounded at every term, in an order that is each kernel's own; 16 bits are rounded once, from fp32.
ROUNDINGS = {torch.float64: 1, torch.float32: 4, torch.bfloat16: 1, torch.float16: 1}
