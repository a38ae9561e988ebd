"""The loop on the robot."""

from vlakern.robot.executor import Executor, ExecutorConfig, Limits, SharedCommands
from vlakern.robot.loop import Loop
from vlakern.robot.ports import ChunkPolicy, Rig, Robot, Seen, SimulatedArm, Trouble
from vlakern.robot.settings import LoopConfig, LoopReport

__all__ = [
    "ChunkPolicy",
    "Executor",
    "ExecutorConfig",
    "Limits",
    "Loop",
    "LoopConfig",
    "LoopReport",
    "Rig",
    "Robot",
    "Seen",
    "SharedCommands",
    "SimulatedArm",
    "Trouble",
]
