"""Simulated robots: environments, scripted experts and rollouts."""

__all__ = []
