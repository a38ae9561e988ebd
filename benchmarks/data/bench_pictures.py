"""Samples per second of the dataset readers: a picture of each view from a random place.

A table: ``python benchmarks/data/bench_pictures.py``. The same moving scene is written in every
format; nobody is timed whose pictures are not the scene's.
"""

import argparse
import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vlakern.data.dataset import Dataset, open_dataset
from vlakern.data.lerobot import LeRobotWriter
from vlakern.data.rlds_records import framed
from vlakern.testing import interleave

VIEWS: tuple[str, ...] = ("left", "wrist")
WIDTH = 7


@dataclass(frozen=True)
class Size:
    """Episodes, frames of each, side of the pictures [pixels]."""

    episodes: int
    frames: int
    side: int


def scene(size: Size, episode: int) -> np.ndarray:
    """A disc that moves over a smooth ground, without noise: uint8 ``[T, S, S, 3]``."""
    y, x = np.mgrid[: size.side, : size.side] / size.side
    ground = np.stack([90 + 60 * np.sin(6 * x), 110 + 50 * np.cos(9 * y), 60 + 90 * x * y], axis=-1)
    frames = np.repeat(ground[None], size.frames, axis=0)
    for t, frame in enumerate(frames):
        away = np.hypot(x - 0.5 - 0.3 * np.cos(t / 20 + episode), y - 0.5 - 0.3 * np.sin(t / 15))
        frame[away < 0.15] = (200, 60, 40)
    return frames.astype(np.uint8)


def vectors(size: Size, episode: int) -> np.ndarray:
    return np.random.default_rng(episode).normal(size=(size.frames, WIDTH)).astype(np.float32)


def write_lerobot(root: Path, size: Size, pixel_format: str) -> Dataset:
    names = [f"x{k}" for k in range(WIDTH)]
    with LeRobotWriter(
        root,
        fps=20,
        views=dict.fromkeys(VIEWS, (size.side, size.side)),
        state_names=names,
        action_names=names,
        robot_type="arm",
        pixel_format=pixel_format,
    ) as out:
        for k in range(size.episodes):
            pictures = dict.fromkeys(VIEWS, scene(size, k))
            out.add_episode(pictures, vectors(size, k), vectors(size, k), "push")
    return open_dataset(root)


def write_hdf5(root: Path, size: Size) -> Dataset:
    import h5py

    root.mkdir()
    with h5py.File(root / "push.hdf5", "w") as file:
        settings = {"control_freq": 20, "robots": ["arm"]}
        file.create_group("data").attrs["env_args"] = json.dumps({"env_kwargs": settings})
        for k in range(size.episodes):
            file[f"data/demo_{k}/actions"] = file[f"data/demo_{k}/obs/ee_states"] = vectors(size, k)
            for view in VIEWS:
                file[f"data/demo_{k}/obs/{view}_rgb"] = scene(size, k)
    return open_dataset(root, state="ee_states")


def write_rlds(root: Path, size: Size, codec: str) -> Dataset:
    root.mkdir()
    image = {"shape": {"dimensions": [str(size.side)] * 2 + ["3"]}, "dtype": "uint8"}
    tensor = {"shape": {"dimensions": [str(WIDTH)]}, "dtype": "float32", "encoding": "none"}
    observation = {view: {"image": image} for view in VIEWS} | {"state": {"tensor": tensor}}
    steps = {
        "action": {"tensor": tensor},
        "observation": {"featuresDict": {"features": observation}},
    }
    inside = {"sequence": {"feature": {"featuresDict": {"features": steps}}}}
    tree = {"featuresDict": {"features": {"steps": inside}}}
    (root / "features.json").write_text(json.dumps(tree))
    encode = encoder(codec, size.side)
    with (root / "push-train.tfrecord-00000-of-00001").open("wb") as file:
        for k in range(size.episodes):
            pictures = _message(1, b"".join(_message(1, encode(p)) for p in scene(size, k)))
            numbers = _message(2, _message(1, vectors(size, k).tobytes()))
            values = {f"steps/observation/{view}": pictures for view in VIEWS}
            values |= {"steps/action": numbers, "steps/observation/state": numbers}
            entries = (_message(1, n.encode()) + _message(2, v) for n, v in values.items())
            content = b"".join(_message(1, entry) for entry in entries)
            file.write(framed(_message(1, content)))
    return open_dataset(root, fps=20)


def encoder(codec: str, side: int) -> Callable[[np.ndarray], bytes]:
    """Pictures to PNG, or to JPEG of high quality."""
    import av

    def encode(picture: np.ndarray) -> bytes:
        context: Any = av.CodecContext.create(codec, "w")
        context.width = context.height = side
        context.time_base = Fraction(1, 20)
        context.pix_fmt = "rgb24" if codec == "png" else "yuvj444p"
        if codec == "mjpeg":
            context.qmin = context.qmax = 2
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        packets = context.encode(frame.reformat(format=context.pix_fmt)) + context.encode(None)
        return b"".join(map(bytes, packets))

    return encode


def _message(number: int, content: bytes) -> bytes:
    """A protobuf field of bytes."""
    size, parts = len(content), [number << 3 | 2]
    while size >= 128:
        parts.append(size & 127 | 128)
        size >>= 7
    return struct.pack(f"{len(parts) + 1}B", *parts, size) + content


def check(name: str, dataset: Dataset, size: Size) -> None:
    """Raises AssertionError if pictures or vectors are not what was written."""
    for k in (0, size.episodes - 1):
        frame = size.frames // 2
        found = dataset.picture(k, VIEWS[0], frame).astype(float)
        error = np.abs(found - scene(size, k)[frame]).mean()
        assert error < 3, f"{name}: pictures differ by {error:.1f} levels"
        np.testing.assert_array_equal(dataset.episode(k).actions, vectors(size, k))


def sampler(dataset: Dataset, size: Size) -> Callable[[], None]:
    """One sample at a place that a fixed generator draws."""
    random = np.random.default_rng(0)

    def sample() -> None:
        episode, frame = int(random.integers(size.episodes)), int(random.integers(size.frames))
        for view in VIEWS:
            dataset.picture(episode, view, frame)
        dataset.episode(episode)

    return sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--samples", type=int, default=300)
    words = parser.parse_args()
    size = Size(words.episodes, words.frames, words.side)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        datasets = {
            "lerobot yuv420p": write_lerobot(root / "a", size, "yuv420p"),
            "lerobot yuv444p": write_lerobot(root / "b", size, "yuv444p"),
            "robomimic": write_hdf5(root / "c", size),
            "rlds png": write_rlds(root / "d", size, "png"),
            "rlds jpeg": write_rlds(root / "e", size, "mjpeg"),
        }
        for name, dataset in datasets.items():
            check(name, dataset, size)
        work = {name: sampler(dataset, size) for name, dataset in datasets.items()}
        times = interleave(work, words.samples)
        load = Path("/proc/loadavg").read_text()[:4]
        print(f"{'samples/s':>10} {'best':>8}  {len(VIEWS)} views of {size.side}, load {load}")
        for name, time in times.items():
            print(f"{1 / time.median:10.0f} {1 / time.best:8.0f}  {name}")


if __name__ == "__main__":
    main()
