"""Demonstrations on disk: LeRobot v3.0 in and out, and their statistics."""

__all__ = []
