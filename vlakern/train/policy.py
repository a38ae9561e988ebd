"""From averaged weights to policy directories, and what decides the result of a run."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlakern.data.corpus import Corpus
from vlakern.models.vla import VLA
from vlakern.models.weights.native import PolicyFiles, PolicyRecords, check_target, write
from vlakern.records import to_dict
from vlakern.train.config import Recipe

__all__ = ["check_targets", "identity", "targets", "write_policies"]


def targets(corpus: Corpus, out: Path) -> list[Path]:
    """The policy directory of each robot: ``out`` itself if there is one, else below it by name."""
    robots = corpus.embodiments
    return [out] if len(robots) == 1 else [out / robot.name for robot in robots]


def check_targets(corpus: Corpus, out: Path) -> None:
    """Refuses before the work what could not be replaced.

    Raises:
        CheckpointError: naming a directory that holds something else than a policy.
    """
    for path in targets(corpus, out):
        check_target(path)


def write_policies(corpus: Corpus, out: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes a policy directory per robot, all with the same weights, each in one step.

    Raises:
        OSError: the disk takes no more; the older policies stay.
        CheckpointError: as :func:`vlakern.models.weights.native.write`.
    """
    with torch.device("meta"):
        model = VLA(corpus.config)
    model.load_state_dict(dict(weights), assign=True)
    for robot, path in enumerate(targets(corpus, out)):
        records = corpus.records(robot)
        parts = {one.name: getattr(records, one.name) for one in fields(PolicyRecords)}
        del parts["config"]
        write(path, PolicyFiles(model, **parts))


def identity(corpus: Corpus, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Plain JSON that decides the result of a run; where the data lie does not."""
    data = {
        one.name: {
            "robot": one.body.robot.name,
            "stride": one.body.stride,
            "views": list(one.views),
            "episodes": len(one.lengths),
            "frames": sum(one.lengths),
            "share": share,
        }
        for one, share in zip(corpus.recordings, corpus.shares, strict=True)
    }
    told = [_told(corpus.records(robot)) for robot in range(len(corpus.embodiments))]
    return {
        "recipe": to_dict(recipe),
        "seed": seed,
        "data": data,
        "records": hashlib.sha256(json.dumps(told).encode()).hexdigest(),
    }


def _told(records: PolicyRecords) -> list[Any]:
    """Everything but the weights, as plain JSON."""
    parts = records.config, records.embodiment, records.state_map, records.action_map
    stats = records.state_stats.to_json(), records.action_stats.to_json()
    return [*map(to_dict, parts), *stats, records.tokenizer.to_json()]
