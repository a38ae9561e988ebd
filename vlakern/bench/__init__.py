"""Measuring latency honestly: stages, floors, and baselines in one run."""

__all__ = []
