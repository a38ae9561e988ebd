"""Makes a directory for LeRobot's ``--policy.path`` of a policy that vlakern reads.

python -m lerobot_policy_vlakern SOURCE TARGET
"""
# pyright: reportMissingImports=false

import sys
from pathlib import Path

from lerobot_policy_vlakern.configuration_vlakern import VlakernConfig
from lerobot_policy_vlakern.processor_vlakern import make_vlakern_pre_post_processors
from vlakern.errors import VlakernError
from vlakern.files import atomic_directory
from vlakern.models.weights.convert import check_new, to_native

__all__ = ["write"]


def write(source: Path, target: Path) -> None:
    """Writes LeRobot's files, and the native policy in the folder ``policy`` beside them.

    Raises:
        CheckpointError, ConfigError: ``source`` cannot be read or ``target`` is there.
    """
    check_new(target)
    config = VlakernConfig(source="policy")
    config.device = None  # that of the machine which reads it
    with atomic_directory(target) as temporary:
        to_native(source, temporary / config.source)
        config.save_pretrained(temporary)
        for pipeline in make_vlakern_pre_post_processors(config):
            pipeline.save_pretrained(temporary)
        for entry in temporary.iterdir():
            entry.chmod(0o755 if entry.is_dir() else 0o644)


def main(words: list[str]) -> int:
    """0, 1 if it failed, 2 if the words are wrong."""
    if len(words) != 2:
        print("usage: python -m lerobot_policy_vlakern SOURCE TARGET", file=sys.stderr)
        return 2
    try:
        write(Path(words[0]), Path(words[1]))
    except VlakernError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
