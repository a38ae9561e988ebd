"""Simulated robots: environments, scripted experts and rollouts."""

__all__: list[str] = []
