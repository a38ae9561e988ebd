"""A writer of RLDS records that shares no code with the reader."""

import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    parts = []
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def block(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(values: Sequence[Any]) -> bytes:
    """A Feature of bytes, floats or integers, numbers packed as TensorFlow packs them."""
    if isinstance(values[0], bytes):
        return block(1, b"".join(block(1, value) for value in values))
    if isinstance(values[0], float):
        return block(2, block(1, struct.pack(f"<{len(values)}f", *values)))
    return block(3, block(1, b"".join(varint(int(value)) for value in values)))


def example(features: Mapping[str, Sequence[Any]]) -> bytes:
    entries = [block(1, key.encode()) + block(2, feature(v)) for key, v in features.items()]
    return block(1, b"".join(block(1, entry) for entry in entries))


def crc(data: bytes) -> int:
    """CRC-32C bit by bit, masked."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    state ^= 0xFFFFFFFF
    return ((state >> 15 | state << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", crc(length)) + data + struct.pack("<I", crc(data))


class RldsWriter:
    """What the tests of the reader write with."""

    varint, block, feature = staticmethod(varint), staticmethod(block), staticmethod(feature)
    example, crc, record = staticmethod(example), staticmethod(crc), staticmethod(record)

    @staticmethod
    def tensor(shape: Sequence[int], dtype: str, encoding: str = "none") -> dict[str, Any]:
        dimensions = {"dimensions": [str(size) for size in shape]} if shape else {}
        return {"tensor": {"shape": dimensions, "dtype": dtype, "encoding": encoding}}

    @staticmethod
    def image(shape: Sequence[int], form: str = "jpeg") -> dict[str, Any]:
        dimensions = [str(size) for size in shape]
        return {
            "image": {
                "shape": {"dimensions": dimensions},
                "dtype": "uint8",
                "encodingFormat": form,
            }
        }

    @staticmethod
    def tree(nodes: Mapping[str, Any]) -> dict[str, Any]:
        return {"featuresDict": {"features": dict(nodes)}}

    @classmethod
    def write(
        cls,
        root: Path,
        steps: Mapping[str, Any],
        shards: Sequence[Sequence[Mapping[str, Sequence[Any]]]],
        split: str = "train",
    ) -> None:
        """A directory of one split; ``shards`` are lists of episodes, feature -> values."""
        root.mkdir(parents=True, exist_ok=True)
        nodes = {
            "steps": {"sequence": {"feature": cls.tree(steps), "length": "-1"}},
            "episode_metadata": cls.tree({"file_path": {"text": {}}}),
        }
        (root / "features.json").write_text(json.dumps(cls.tree(nodes)))
        lengths = [str(len(shard)) for shard in shards]
        info = {"name": "toy_arm", "splits": [{"name": split, "shardLengths": lengths}]}
        (root / "dataset_info.json").write_text(json.dumps(info))
        for number, shard in enumerate(shards):
            name = f"toy_arm-{split}.tfrecord-{number:05d}-of-{len(shards):05d}"
            (root / name).write_bytes(b"".join(record(example(one)) for one in shard))


@pytest.fixture(scope="session")
def rlds_writer() -> type[RldsWriter]:
    """Encoders, and a writer of whole directories."""
    return RldsWriter


def collect_set(
    root: Path,
    robot: str = "metaworld_sawyer",
    widths: tuple[int, int] = (4, 4),
    views: tuple[str, ...] = ("left", "right"),
    lengths: Sequence[int] = (12, 7, 9),
    tasks: Sequence[str] = ("push", "open", "push"),
    fps: float = 20,
    names: tuple[Sequence[str], Sequence[str]] | None = None,
    vectors: Sequence[tuple[Any, Any]] | None = None,
) -> Path:
    """A LeRobot dataset of 28-pixel noise, or of the given states and actions of each episode."""
    import numpy as np

    from vlakern.data.lerobot import LeRobotWriter

    rng = np.random.default_rng(zlib.crc32(root.name.encode()))
    state, action = widths
    found = names or ([f"s{i}" for i in range(state)], [f"a{i}" for i in range(action)])
    with LeRobotWriter(
        root,
        fps=fps,
        views=dict.fromkeys(views, (28, 28)),
        state_names=found[0],
        action_names=found[1],
        robot_type=robot,
    ) as writer:
        for i, length in enumerate(lengths):
            frames = {v: rng.integers(0, 256, (length, 28, 28, 3), dtype="u1") for v in views}
            states = rng.normal(size=(length, state)).astype(np.float32)
            actions = rng.uniform(-1, 1, size=(length, action)).astype(np.float32)
            if vectors is not None:
                states, actions = (np.asarray(v, np.float32) for v in vectors[i])
            writer.add_episode(frames, states, actions, tasks[i % len(tasks)])
    return root


@pytest.fixture(scope="session")
def collect() -> Callable[..., Path]:
    """Writes a small dataset."""
    return collect_set


@pytest.fixture(scope="session")
def robots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the datasets of three robots: ``sawyer``, ``panda`` and ``so100``."""
    root = tmp_path_factory.mktemp("robots")
    collect_set(root / "sawyer")
    collect_set(root / "panda", "libero_panda", (8, 7), ("agent", "wrist"), (16, 5, 11))
    collect_set(root / "so100", "so100", (6, 6), ("front",), (8, 10), fps=30)
    return root


@pytest.fixture(scope="session")
def mixture() -> Callable[..., Any]:
    """Makes a mixture of the named datasets below a directory, with other fields of its own."""
    import dataclasses

    from vlakern.data.mixture import DatasetEntry, Mixture

    def make(root: Path, *names: str, **more: Any) -> Mixture:
        entries = tuple(DatasetEntry(name, str(root / name)) for name in names)
        return dataclasses.replace(Mixture("m", entries), **more)

    return make


@pytest.fixture(scope="session")
def clip_batch() -> Callable[..., Any]:
    """Makes a batch of a corpus's samples, each with a generator seeded by its place."""
    import numpy as np

    from vlakern.data.collate import Augment, collate_clips

    def make(corpus: Any, samples: Sequence[Any], augment: Any = None) -> Any:
        augment = augment or Augment()
        clips = [
            corpus.clip(one, i, augment, np.random.default_rng(i)) for i, one in enumerate(samples)
        ]
        return collate_clips(corpus.config, corpus.tokenizer, clips, augment)

    return make


@pytest.fixture(scope="session")
def refused() -> Callable[..., None]:
    """Checks that a call raises an error of a kind whose one line matches a sentence."""

    def check(build: Callable[[], Any], kind: type[Exception], sentence: str) -> None:
        with pytest.raises(kind, match=sentence) as caught:
            build()
        assert "\n" not in str(caught.value)

    return check
