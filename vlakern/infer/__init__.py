"""Inference: a policy directory becomes a policy that acts."""

from vlakern.infer.policy import Policy, load, shipped_policies

__all__ = ["Policy", "load", "shipped_policies"]
