"""The one table of tolerances, the same for every test on every machine."""

import torch

__all__ = ["FACTOR", "ROUNDING"]

# How much larger the error may be than plain PyTorch's error in the same precision.
FACTOR = {"value": 2.0, "gradient": 2.0, "documented gradient": 3.0}

# Error of one rounding relative to the largest value: plain PyTorch may be exact by luck.
ROUNDING = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
