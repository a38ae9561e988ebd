"""Flow matching: the path, its target and its solvers."""

from vlakern.flow.guidance import Guidance, guided, soft_mask
from vlakern.flow.path import TauConfig, interpolate, masked_loss, sample_tau, target
from vlakern.flow.solver import SOLVERS, Frozen, integrate

__all__ = [
    "SOLVERS",
    "Frozen",
    "Guidance",
    "TauConfig",
    "guided",
    "integrate",
    "interpolate",
    "masked_loss",
    "sample_tau",
    "soft_mask",
    "target",
]
