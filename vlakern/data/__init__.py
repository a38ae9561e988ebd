"""Demonstrations on disk: LeRobot in and out, robomimic and RLDS in, and their statistics."""

__all__ = []
