"""Meta-World with the two cameras of vlakern's own policies, as an environment of LeRobot."""
# pyright: reportMissingImports=false

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

__all__ = ["Sawyer", "SawyerConfig"]

VIEWS, SIDE = ("left", "right"), 96
NAME = "lerobot_policy_vlakern/sawyer"


def _features() -> dict[str, PolicyFeature]:
    image = PolicyFeature(FeatureType.VISUAL, (SIDE, SIDE, 3))
    four = (("action", FeatureType.ACTION), ("agent_pos", FeatureType.STATE))
    found = {name: PolicyFeature(kind, (4,)) for name, kind in four}
    return found | {f"pixels/{view}": image for view in VIEWS}


def _names() -> dict[str, str]:
    images = {f"pixels/{view}": f"observation.images.{view}" for view in VIEWS}
    return {"action": "action", "agent_pos": "observation.state", **images}


@EnvConfig.register_subclass("vlakern_sawyer")
@dataclass
class SawyerConfig(EnvConfig):
    """Options of ``--env.type=vlakern_sawyer``; ``task`` is one of Meta-World's, such as
    drawer-open-v3."""

    task: str | None = "drawer-open-v3"
    fps: int = 80
    episode_length: int = 300
    features: dict[str, PolicyFeature] = field(default_factory=_features)
    features_map: dict[str, str] = field(default_factory=_names)

    @property
    def package_name(self) -> str:
        return "lerobot_policy_vlakern"

    @property
    def gym_id(self) -> str:
        return NAME

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"task": self.task, "episode_length": self.episode_length}


class Sawyer(gym.Env):
    """One task of ``vlakern.sim.MetaWorldEnv``; an episode ends when it is solved.

    The seed of a reset is the scene's, as in ``vlakern rollout``; without one the next scene comes.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012

    def __init__(self, task: str, episode_length: int = 300, render_mode: Any = None) -> None:
        from vlakern.sim.metaworld import MetaWorldEnv

        self.render_mode = render_mode
        self.task, self._max_episode_steps = task, episode_length
        self._env = MetaWorldEnv(task, views=VIEWS, image_size=SIDE)
        self.task_description = self._env.task.instruction
        self._scene, self._steps = -1, 0
        pixels = gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(
            {
                "pixels": gym.spaces.Dict(dict.fromkeys(VIEWS, pixels)),
                "agent_pos": gym.spaces.Box(-np.inf, np.inf, (4,), np.float32),
            }
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._scene = self._scene + 1 if seed is None else seed
        self._steps = 0
        self._env.reset(self._scene)
        return self._observe(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        success = self._env.step(action).success
        self._steps += 1
        late = self._steps >= self._max_episode_steps
        return self._observe(), float(success), success, late, {"is_success": success}

    def render(self) -> np.ndarray:
        return np.concatenate([self._env.render(view) for view in VIEWS], axis=1)

    def close(self) -> None:
        self._env.close()

    def _observe(self) -> dict[str, Any]:
        seen = self._env.observe()
        return {"pixels": dict(seen.images), "agent_pos": seen.state}


if NAME not in gym.registry:
    # LeRobot asks the environment itself for its task, so no wrapper may be around it.
    gym.register(
        NAME, entry_point=f"{__name__}:Sawyer", order_enforce=False, disable_env_checker=True
    )
