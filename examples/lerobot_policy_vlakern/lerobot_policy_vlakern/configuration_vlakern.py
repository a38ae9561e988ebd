"""What LeRobot's command line can say about a policy that vlakern runs."""
# pyright: reportMissingImports=false

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.configs.policies import PreTrainedConfig

__all__ = ["VlakernConfig"]


@PreTrainedConfig.register_subclass("vlakern")
@dataclass
class VlakernConfig(PreTrainedConfig):
    """Options of ``--policy.type=vlakern``.

    Attributes:
        source: what ``vlakern.load`` takes: a policy that ships with vlakern, or a directory of any
            family that it reads. In a directory for ``--policy.path``, relative to that.
        dtype: auto, fp32, bf16, or a quantised format of the device.
        views: the policy's view of a camera, where the names differ: ``{"image": "left"}`` for
            ``observation.image`` or ``observation.images.image``.
        instruction: the task in words, where the environment says none.
        n_action_steps: actions of a chunk that are run; the policy's own number by default.
        chunk_size: actions of a chunk; the policy says it.
    """

    source: str = ""
    dtype: str = "auto"
    views: dict[str, str] = field(default_factory=dict)
    instruction: str = ""
    n_action_steps: int | None = None
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrained_path and not self.source:
            # The engine does what a checkpoint's own processors do: LeRobot must not load those.
            self.source, self.pretrained_path = str(self.pretrained_path), None

    def where(self, directory: str | Path | None = None) -> str | Path:
        """What to load.

        Raises:
            ValueError: nothing says what.
        """
        inside = Path(directory or ".", self.source)
        if self.source and inside.is_dir():
            return inside
        if not self.source:
            raise ValueError(
                "policy.source is empty, expected the name of a policy or its directory; give"
                " --policy.source=DIRECTORY"
            )
        return self.source

    def validate_features(self) -> None:
        """Nothing to check: the policy checks each observation."""

    def get_optimizer_preset(self) -> Any:
        raise NotImplementedError(
            "policies of type vlakern run and do not train in LeRobot; use `vlakern train`"
        )

    def get_scheduler_preset(self) -> None:
        return None

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size or 1))

    @property
    def reward_delta_indices(self) -> None:
        return None
