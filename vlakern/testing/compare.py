"""The accuracy rule: at most twice the error of plain PyTorch in the same low precision."""

import torch
from torch import Tensor

from vlakern.testing.tolerances import FACTOR, ROUNDING, ROUNDINGS

__all__ = ["assert_accurate", "largest_error"]


def largest_error(found: Tensor, exact: Tensor) -> float:
    """The largest absolute difference, in fp64; 0 for empty tensors."""
    if found.numel() == 0:
        return 0.0
    return float((found.double() - exact.double()).abs().max())


def assert_accurate(
    found: Tensor, exact: Tensor, plain: Tensor, what: str = "result", kind: str = "value"
) -> None:
    """Fails unless ``found`` obeys the rule.

    Args:
        found: the tested result; it must be finite and have ``plain``'s dtype and shape.
        exact: the reference, computed in a higher precision from the same inputs.
        plain: the same formula in plain PyTorch, in the precision of ``found``.
        what: name for the message.
        kind: row of the tolerance table.
    """
    if found.dtype != plain.dtype or found.shape != plain.shape or found.shape != exact.shape:
        raise AssertionError(
            f"{what} is {found.dtype} {list(found.shape)}, "
            f"expected {plain.dtype} {list(exact.shape)}"
        )
    if not bool(torch.isfinite(found).all()):
        bad = int((~torch.isfinite(found)).sum())
        raise AssertionError(f"{what} has {bad} of {found.numel()} elements that are not finite")
    error, allowed = largest_error(found, exact), largest_error(plain, exact)
    scale = float(exact.abs().max()) if exact.numel() else 0.0
    luck = ROUNDINGS[found.dtype] * ROUNDING[found.dtype] * scale
    limit = FACTOR[kind] * max(allowed, luck)
    if error > limit:
        raise AssertionError(
            f"{what} is off by {error:.3e}, plain PyTorch by {allowed:.3e}; "
            f"{FACTOR[kind]:g}x is allowed, {limit:.3e}"
        )
