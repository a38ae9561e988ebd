"""LeRobot's policy interface in front of vlakern's engine.

Dimension letters: B observations, H chunk, A action width.
"""
# pyright: reportMissingImports=false

from collections import deque
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

import vlakern
from lerobot_policy_vlakern.configuration_vlakern import VlakernConfig

__all__ = ["VlakernPolicy"]


class VlakernPolicy(PreTrainedPolicy):
    """A policy of any family that ``vlakern.load`` reads."""

    config_class = VlakernConfig
    name = "vlakern"

    def __init__(self, config: VlakernConfig, *_: Any, directory: Any = None, **__: Any) -> None:
        super().__init__(config)
        self.options = config
        self.engine = vlakern.load(
            config.where(directory), device=config.device or "auto", dtype=config.dtype
        )
        if self.engine.frame != "native" and self.engine.robot.controller is not None:
            raise ValueError(
                f"policy {self.engine.name} gives poses ({self.engine.frame}), the controller of"
                f" {self.engine.robot.name} takes other numbers; use `vlakern rollout` or vlakern's"
                " own loop, which know both"
            )
        config.chunk_size = self.engine.chunk
        config.n_action_steps = config.n_action_steps or self.engine.execute
        if not 1 <= config.n_action_steps <= self.engine.chunk:
            raise ValueError(
                f"n_action_steps is {config.n_action_steps}, expected 1 to the policy's chunk of"
                f" {self.engine.chunk}"
            )
        self._queue: deque[Tensor] = deque()

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: Any = None, **kwargs: Any
    ) -> "VlakernPolicy":
        """A policy from a directory that ``python -m lerobot_policy_vlakern`` has written."""
        config = config or VlakernConfig.from_pretrained(pretrained_name_or_path)
        return cls(config, directory=pretrained_name_or_path).eval()

    def reset(self) -> None:
        self._queue.clear()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """The next action ``[B, A]`` of each row."""
        if not self._queue:
            chunk_BHA = self.predict_action_chunk(batch, **kwargs)
            self._queue.extend(chunk_BHA[:, : self.options.n_action_steps].unbind(1))
        return self._queue.popleft()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Actions ``[B, H, A]`` in the robot's own units; LeRobot's seed decides the noise."""
        refused = sorted(name for name, value in kwargs.items() if value is not None)
        if refused:
            raise ValueError(
                f"policies of type vlakern take no {', '.join(refused)}; for real-time chunking use"
                " vlakern's own loop"
            )
        seen = self._observations(batch)
        seeds = torch.randint(2**62, (len(seen),)).tolist()
        chunks = self.engine.act_batch(seen, seeds)
        return torch.from_numpy(np.stack([chunk.actions for chunk in chunks]))

    def _observations(self, batch: dict[str, Any]) -> list[vlakern.Observation]:
        if "observation.state" not in batch or not isinstance(batch.get("task"), list | tuple):
            raise ValueError(
                "the batch has no observation.state, or no task for each row; the policy needs both"
            )
        states, tasks = batch["observation.state"].float().cpu().numpy(), batch["task"]
        images = {
            self._view(name): _levels(value)
            for name, value in batch.items()
            if name == "observation.image" or name.startswith("observation.images.")
        }
        return [
            vlakern.Observation(
                {view: rows[i] for view, rows in images.items()},
                state,
                task or self.options.instruction,
            )
            for i, (state, task) in enumerate(zip(states, tasks, strict=True))
        ]

    def _view(self, name: str) -> str:
        called = name.removeprefix("observation.").removeprefix("images.")
        return self.options.views.get(called, called)

    def forward(self, batch: dict[str, Tensor], *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(
            "policies of type vlakern run and do not train in LeRobot; use `vlakern train`"
        )

    def get_optim_params(self) -> dict[str, Any]:
        return {}


def _levels(images_BCHW: Tensor) -> np.ndarray:
    """The uint8 ``[B, H, W, C]`` that LeRobot divided by 255."""
    levels = images_BCHW
    if levels.dtype != torch.uint8:
        levels = (levels * 255.0).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
