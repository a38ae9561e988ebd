"""What is written opens in LeRobot's own reader and the reverse, where that package imports."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from vlakern.data.lerobot import LeRobotDataset, LeRobotWriter

LENGTHS = (5, 3, 7)


class _VideoReader:
    """The part of torchvision's class of this name that LeRobot calls, over PyAV."""

    def __init__(self, path: str, stream: str) -> None:
        import av

        self.container: Any = av.open(path)
        self._stream = self.container.streams.video[0]

    def seek(self, seconds: float, keyframes_only: bool) -> None:
        self.container.seek(int(seconds / self._stream.time_base), stream=self._stream)

    def __iter__(self) -> Any:
        for frame in self.container.decode(self._stream):
            picture = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            yield {"pts": float(frame.pts * self._stream.time_base), "data": picture}


def _to_tensor() -> Any:
    return lambda image: torch.from_numpy(np.array(image)) / 255.0


def _stub(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__, module.__path__ = ModuleSpec(name, None), []
    module.__dict__.update(members, __version__="0")
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """LeRobot's own dataset class; what it imports and does not need here is stood in for."""
    if importlib.util.find_spec("lerobot") is None:
        pytest.skip("lerobot is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    # PyPI's torchvision does not load beside a CPU build of torch; accelerate is only for training.
    transforms = _stub(monkeypatch, "torchvision.transforms", ToTensor=_to_tensor)
    io = _stub(monkeypatch, "torchvision.io", VideoReader=_VideoReader)
    members = {"transforms": transforms, "io": io, "set_video_backend": lambda name: None}
    _stub(monkeypatch, "torchvision", **members)
    if importlib.util.find_spec("accelerate") is None:
        _stub(monkeypatch, "accelerate", Accelerator=object)
    try:
        from lerobot.datasets.lerobot_dataset import (  # pyright: ignore[reportMissingImports]
            LeRobotDataset as Peer,
        )
    except ImportError as error:
        pytest.skip(f"lerobot does not import here: {error}")
    return Peer


def vectors(number: int, width: int) -> np.ndarray:
    random = np.random.default_rng(10 * number + width)
    return random.normal(size=(LENGTHS[number], width)).astype(np.float32)


def pictures(number: int) -> np.ndarray:
    random = np.random.default_rng(number)
    return random.integers(256, size=(LENGTHS[number], 16, 24, 3), dtype=np.uint8)


def test_peer_reads_what_is_written(peer: Any, tmp_path: Path):
    """Tasks, vectors, chunks, pictures and statistics are the same through LeRobot's reader."""
    root = tmp_path / "set"
    names = {"state_names": ("x", "y"), "action_names": ("dx", "dy", "grip")}
    views = {"left": (16, 24)}
    with LeRobotWriter(
        root, fps=20, views=views, robot_type="arm", video_megabytes=1e-3, **names
    ) as out:
        for number, task in enumerate(("push", "reach", "push")):
            images = {"left": pictures(number)}
            out.add_episode(images, vectors(number, 2), vectors(number, 3), task)
    ours = LeRobotDataset(root)
    ahead = {"action": [0.0, 0.05, 0.1]}
    theirs = peer("a/b", root=root, video_backend="pyav", delta_timestamps=ahead)
    assert (len(theirs), theirs.num_episodes, theirs.fps) == (15, 3, 20)
    place = 0
    for number, length in enumerate(LENGTHS):
        episode = ours.episode(number)
        for frame in range(length):
            item = theirs[place]
            place += 1
            assert item["task"] == episode.task
            np.testing.assert_array_equal(item["observation.state"], episode.states[frame])
            steps = np.minimum(frame + np.arange(3), length - 1)
            np.testing.assert_array_equal(item["action"], episode.actions[steps])
            picture = (item["observation.images.left"] * 255).round().numpy()
            np.testing.assert_array_equal(picture, ours.picture(number, "left", frame))
    for name, value in ours.stats["observation.images.left"].items():
        np.testing.assert_allclose(theirs.meta.stats["observation.images.left"][name], value)


@pytest.mark.parametrize("videos", [False, True])
def test_what_peer_writes_is_read(peer: Any, tmp_path: Path, videos: bool):
    """Datasets that LeRobot writes, with pictures in rows or as videos, read back the same."""
    root = tmp_path / "set"
    kind = "video" if videos else "image"
    channels = ["height", "width", "channels"]
    features = {
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "action": {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]},
        "observation.images.left": {"dtype": kind, "shape": (16, 24, 3), "names": channels},
    }
    options = {"vcodec": "h264"} if videos else {}
    out = peer.create(
        "a/b", fps=20, features=features, root=root, robot_type="arm", use_videos=videos, **options
    )
    for number in range(3):
        for frame in range(LENGTHS[number]):
            out.add_frame(
                {
                    "observation.state": vectors(number, 2)[frame],
                    "action": vectors(number, 3)[frame],
                    "observation.images.left": pictures(number)[frame],
                    "task": f"task {number}",
                }
            )
        out.save_episode()
    out.finalize()
    theirs = peer("a/b", root=root, video_backend="pyav")
    ours = LeRobotDataset(root)
    assert list(ours.lengths) == list(LENGTHS)
    assert ours.views == {"left": (16, 24)}
    for number in range(3):
        episode = ours.episode(number)
        assert episode.task == f"task {number}"
        np.testing.assert_array_equal(episode.states, vectors(number, 2))
        np.testing.assert_array_equal(episode.actions, vectors(number, 3))
        if not videos:
            np.testing.assert_array_equal(ours.frames(number, "left"), pictures(number))
        stats = ours.episode_stats(number)["observation.state"]
        np.testing.assert_allclose(stats["mean"], vectors(number, 2).mean(axis=0), rtol=1e-5)
    for place in range(15):
        number = int(np.searchsorted(np.cumsum(LENGTHS), place, side="right"))
        frame = place - sum(LENGTHS[:number])
        picture = np.asarray(theirs[place]["observation.images.left"] * 255).round()
        picture = picture.transpose(1, 2, 0) if picture.shape[0] == 3 else picture
        np.testing.assert_array_equal(picture, ours.picture(number, "left", frame))
