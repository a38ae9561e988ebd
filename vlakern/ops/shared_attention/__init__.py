"""Layerwise shared attention of the Mixture-of-Transformers."""

from vlakern.ops.shared_attention.reference import KvEnd, shared_attention

__all__ = ["KvEnd", "shared_attention"]
