"""What LeRobot runs around the policy: names, a batch's axis and devices. The engine does the rest.

Normalisation, prompts and image sizes are in the policy directory and belong to the engine.
"""
# pyright: reportMissingImports=false

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

from lerobot_policy_vlakern.configuration_vlakern import VlakernConfig

__all__ = ["make_vlakern_pre_post_processors"]


def make_vlakern_pre_post_processors(
    config: VlakernConfig, dataset_stats: Any = None, **_: Any
) -> tuple[Any, Any]:
    """Pipelines before and after the policy; statistics of a data set are not used."""
    before = PolicyProcessorPipeline[dict[str, Any], dict[str, Any]](
        steps=[
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            DeviceProcessorStep(device="cpu"),  # images are uint8 there, whatever runs the network
        ],
        name="policy_preprocessor",
    )
    after = PolicyProcessorPipeline[PolicyAction, PolicyAction](
        steps=[DeviceProcessorStep(device="cpu")],
        name="policy_postprocessor",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return before, after
