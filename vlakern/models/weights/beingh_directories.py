"""Directories of Being-H0.5, as its release writes them.

Which robot's numbers go where in the unified vectors is in the release's code and not in its
checkpoints: states and actions are the 200 unified numbers themselves, in the units the policy was
trained with.
"""

from pathlib import Path

from vlakern.errors import ConfigError
from vlakern.models.config import VLAConfig
from vlakern.models.processing import ImageRule, Processing
from vlakern.models.tokenizer import TextTokenizer, tokenizer_file
from vlakern.models.weights.beingh import beingh_config, beingh_table
from vlakern.models.weights.beingh_prompt import beingh_prompt
from vlakern.models.weights.family import Family, native_shapes, peek
from vlakern.models.weights.lerobot import vectors
from vlakern.models.weights.mixed import check_tensors
from vlakern.models.weights.names import Folded, fold_weights
from vlakern.models.weights.native import PolicyRecords
from vlakern.models.weights.statistics import read_object
from vlakern.models.weights.weights_file import open_directory
from vlakern.space import VectorStats

__all__ = ["BEINGH", "IMAGE"]

# The release evaluates with at most three; their names are in its code.
VIEWS = ("view_0", "view_1", "view_2")
COMMANDS_PER_SECOND = 10.0
# With ImageNet's mean and deviation.
IMAGE = ImageRule(
    "cover", "bicubic_antialias", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
EXECUTE = 8
SYSTEM = {
    "being_h0": "You are Being-H0, a helpful and harmless AI assistant developed by BeingBeyond."
}


def _weights(directory: Path, config: VLAConfig) -> Folded:
    path = directory / "config.json"
    positions = beingh_config(read_object(path), str(path))[1]
    table, tensors = beingh_table(config, positions), open_directory(directory)
    check_tensors(["being_h05"], f"{path}.model_type", tensors.shapes, tensors.where)
    return fold_weights(table, native_shapes(config), tensors)


def _read(directory: Path) -> PolicyRecords:
    path = directory / "config.json"
    values = read_object(path)
    if "system_message" not in values:
        template = values.get("template")
        if not isinstance(template, str) or template not in SYSTEM:
            raise ConfigError(
                f"{path}.template is {str(template)[:40]!r}, expected {' or '.join(SYSTEM)}; write"
                " the conversation's system_message into the file"
            )
        values = values | {"system_message": SYSTEM[template]}
    config, _ = beingh_config(values, str(path))
    rule = beingh_prompt(values["system_message"], config.chunk)[1]
    width = (config.state_dim, config.action_dim)
    robot, state_map, action_map = vectors("being-h", width, width, VIEWS, COMMANDS_PER_SECOND)
    return PolicyRecords(
        config=config,
        embodiment=robot,
        state_map=state_map,
        action_map=action_map,
        processing=Processing(
            state="none",
            action="none",
            execute=min(EXECUTE, config.chunk),
            image=IMAGE,
            prompt=rule,
        ),
        state_stats=VectorStats.units(state_map.names()),
        action_stats=VectorStats.units(action_map.names()),
        tokenizer=TextTokenizer.from_file(tokenizer_file(directory), config.vocab_size),
    )


BEINGH = Family(
    "Being-H0.5",
    'config.json with "model_type": "beingh"',
    lambda directory: peek(directory / "config.json").get("model_type") == "beingh",
    _read,
    _weights,
)
