"""features.json and dataset_info.json: leaves with their shapes, splits with their shards."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlakern.data.rlds_features import Features, find_shards
from vlakern.errors import DatasetError


@pytest.fixture
def root(tmp_path: Path, rlds_writer: Any) -> Path:
    tensor, image, tree = rlds_writer.tensor, rlds_writer.image, rlds_writer.tree
    steps = {
        "action": tree({"arm": tensor([6], "float32"), "grip": tensor([], "bool")}),
        "observation": tree(
            {
                "image": image([48, 64, 3]),
                "open": image([-1, -1, 3], ""),
                "depth": image([48, 64, 1], "png"),
                "far": {"image": {"shape": {"dimensions": ["4", "4", "3"]}, "dtype": "uint16"}},
                "grid": tensor([2, 3], "float32"),
                "ragged": tensor([-1], "float32"),
                "packed": tensor([7], "float64", "zlib"),
            }
        ),
        "language_instruction": {"text": {}},
        "remark": tensor([], "string"),
        "words": tensor([5], "string"),
        "kind": {"classLabel": {"numClasses": "3"}},
        "objects": {"sequence": {"feature": tensor([2], "float32"), "length": "-1"}},
    }
    rlds_writer.write(tmp_path / "set", steps, [[], [], []])
    return tmp_path / "set"


def test_leaves(root: Path):
    """Vectors, pictures in colour and texts are found at any depth; the rest is left out."""
    features = Features(root)
    assert sorted(features.steps) == [
        "action/arm",
        "action/grip",
        "kind",
        "language_instruction",
        "observation/grid",
        "observation/image",
        "observation/open",
        "observation/packed",
        "observation/ragged",
        "remark",
    ]
    assert features.steps["observation/image"].shape == (48, 64, 3)
    assert features.steps["observation/open"].shape == (None, None, 3)
    assert features.steps["remark"].kind == features.steps["language_instruction"].kind == "text"
    assert features.steps["observation/packed"].encoding == "zlib"
    assert [features.numeric(name).width for name in ("action/arm", "action/grip")] == [6, 1]
    assert list(features.others) == ["episode_metadata/file_path"]
    assert features.counter().key == "steps/action/grip"


@pytest.mark.parametrize("name", ["gone", "observation/image", "observation/grid", "remark"])
def test_no_vector(root: Path, name: str):
    """What is no vector of fixed width is refused with what there is."""
    with pytest.raises(DatasetError, match=rf"steps has no vector '{name}'; it has \['action/arm'"):
        Features(root).numeric(name)


def test_no_features(root: Path):
    """A file that is missing, no JSON or without steps is named."""
    path = root / "features.json"
    for content, message in (
        ("{", "is not JSON"),
        ("[]", "holds a list, expected an object"),
        ("{}", "has no feature 'steps'; is this an RLDS dataset"),
    ):
        path.write_text(content)
        with pytest.raises(DatasetError, match=rf"features\.json {message}"):
            Features(root)
    path.unlink()
    with pytest.raises(DatasetError, match=r"features\.json cannot be read"):
        Features(root)


def test_shards(root: Path):
    """Shards come in order with their declared records, and a missing one is named."""
    name, shards = find_shards(root, "train", partial=False)
    assert name == "toy_arm"
    assert [(shard.path.name[-5:], shard.records) for shard in shards] == [("00003", 0)] * 3
    (root / "toy_arm-train.tfrecord-00001-of-00003").unlink()
    with pytest.raises(DatasetError, match=r"lacks shard 1 of 3 of split train \(1 are missing\)"):
        find_shards(root, "train", partial=False)
    _, shards = find_shards(root, "train", partial=True)
    assert [shard.path.name[-14:-9] for shard in shards] == ["00000", "00002"]
    with pytest.raises(DatasetError, match=r"no \*-val\.tfrecord files; it has .*\['train'\]"):
        find_shards(root, "val", partial=False)


def test_without_info(root: Path):
    """Without dataset_info.json the files tell the name, and nobody the number of records."""
    (root / "dataset_info.json").unlink()
    name, shards = find_shards(root, "train", partial=False)
    assert (name, shards[0].records) == ("toy_arm", None)
    (root / "dataset_info.json").write_text(json.dumps({"splits": [{"name": "train"}]}))
    assert find_shards(root, "train", partial=False)[1][0].records is None


def test_one_file_without_numbers(tmp_path: Path):
    """A split may be one file that is not numbered."""
    (tmp_path / "toy-val.tfrecord").touch()
    name, shards = find_shards(tmp_path, "val", partial=False)
    assert (name, len(shards)) == ("toy", 1)
