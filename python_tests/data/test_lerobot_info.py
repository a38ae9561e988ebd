"""meta/info.json: what it declares is understood in every way recorders write it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlakern.data.lerobot_info import Info, read_json, read_lines, read_stats
from vlakern.errors import DatasetError

COLOUR = ["height", "width", "channels"]


def info(root: Path, features: Any, **fields: Any) -> Info:
    (root / "meta").mkdir(exist_ok=True)
    known = {"codebase_version": "v3.0", "fps": 10, "total_episodes": 1, "total_frames": 2}
    paths = {"data_path": "d/{file_index}", "video_path": "v/{video_key}"}
    text = json.dumps({**known, **paths, "features": features, **fields})
    (root / "meta/info.json").write_text(text)
    return Info(root)


def test_views(tmp_path: Path):
    """Colour pictures are views, channel first or last; depth and masks are none."""
    features = {
        "observation.images.top": {"dtype": "video", "shape": [48, 64, 3], "names": COLOUR},
        "observation.image": {"dtype": "image", "shape": [3, 48, 64], "names": None},
        "wrist": {"dtype": "image", "shape": [3, 3, 3], "names": ["channels", "height", "width"]},
        "observation.images.mask": {"dtype": "video", "shape": [48, 64, 1], "names": COLOUR},
        "observation.images.depth": {
            "dtype": "video",
            "shape": [48, 64, 3],
            "names": COLOUR,
            "info": {"video.is_depth_map": True},
        },
    }
    views = info(tmp_path, features).views
    assert {name: view.size for name, view in views.items()} == {
        "top": (48, 64),
        "image": (48, 64),
        "wrist": (3, 3),
    }
    assert [view.video for view in views.values()] == [True, False, False]
    assert views["top"].key == "observation.images.top"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x", "y"], ["x", "y"]),
        ({"motors": ["x", "y"]}, ["x", "y"]),
        ({"x": 0, "y": 1}, ["x", "y"]),
        (None, ["a.0", "a.1"]),
        (["x"], ["a.0", "a.1"]),
    ],
)
def test_names(tmp_path: Path, names: Any, expected: list[str]):
    """Names come as a list, in groups, as an index or not at all."""
    found = info(tmp_path, {"a": {"dtype": "float32", "shape": [2], "names": names}})
    assert found.names("a") == expected


def test_widths(tmp_path: Path):
    """A vector has one dimension of numbers; what has not is refused with what there is."""
    features = {
        "a": {"dtype": "float32", "shape": [7]},
        "b": {"dtype": "bool", "shape": []},
        "grid": {"dtype": "float32", "shape": [2, 2]},
        "text": {"dtype": "string", "shape": [1]},
    }
    found = info(tmp_path, features)
    assert (found.width("a"), found.width("b"), found.texts) == (7, 1, ["text"])
    for key in ("grid", "text", "gone"):
        with pytest.raises(DatasetError, match=rf"lacks the vector '{key}'; it has \['a', 'b'\]"):
            found.width(key)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fps": True}, "fps is True"),
        ({"fps": -1}, "fps is -1"),
        ({"total_frames": "2"}, "total_frames is '2', expected a count"),
        ({"features": [1]}, "features is not an object"),
        ({"video_path": None}, "lacks the field 'video_path'"),
    ],
)
def test_nonsense(tmp_path: Path, fields: dict, message: str):
    """A field that makes no sense is named."""
    features = {"top": {"dtype": "video", "shape": [4, 4, 3], "names": COLOUR}}
    with pytest.raises(DatasetError, match=message):
        info(tmp_path, **{"features": features, **fields})


def test_small_files(tmp_path: Path):
    """JSON that is none says where, lines by number; statistics must be numbers."""
    path = tmp_path / "a.json"
    path.write_text("[1]")
    with pytest.raises(DatasetError, match="holds a list"):
        read_json(path)
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a"')
    with pytest.raises(DatasetError, match=r"a\.json, line 4, is not JSON"):
        list(read_lines(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_json(path)
    stats = read_stats({"a": {"mean": [1, 2]}}, "here")
    np.testing.assert_array_equal(stats["a"]["mean"], [1.0, 2.0])
    with pytest.raises(DatasetError, match="here: statistics of 'a'"):
        read_stats({"a": {"mean": "high"}}, "here")
