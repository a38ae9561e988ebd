"""The loop on the robot."""

from vlakern.robot.executor import Executor, ExecutorConfig, Limits, SharedCommands

__all__ = ["Executor", "ExecutorConfig", "Limits", "SharedCommands"]
