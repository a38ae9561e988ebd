"""Measuring latency honestly: stages, floors, and baselines in one run."""

__all__: list[str] = []
