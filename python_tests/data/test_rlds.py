"""RLDS datasets: episodes, pictures and texts come back; damage of any bit never passes."""

import copy
import io
import multiprocessing
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlakern.data.dataset import Dataset, open_dataset
from vlakern.data.rlds import RldsDataset
from vlakern.errors import DatasetError, InputError

LENGTHS = (4, 3, 6)
SHARD = "toy_arm-train.tfrecord-00000-of-00002"


def values(episode: int, width: int) -> np.ndarray:
    random = np.random.default_rng(10 * episode + width)
    return random.normal(size=(LENGTHS[episode], width)).astype(np.float32)


def picture(episode: int, frame: int) -> np.ndarray:
    y, x = np.mgrid[:16, :24]
    return np.stack([8 * x, 8 * y, 0 * x + 40 * episode + 6 * frame], axis=-1).astype(np.uint8)


def encoded(episode: int, frame: int, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(episode, frame)).save(buffer, form, quality=95)
    return buffer.getvalue()


def features(episode: int) -> dict[str, list]:
    length = LENGTHS[episode]
    return {
        "steps/action": values(episode, 7).ravel().tolist(),
        "steps/is_first": [k == 0 for k in range(length)],
        "steps/reward": [0.0] * length,
        "steps/observation/state": values(episode, 3).ravel().tolist(),
        "steps/observation/joints": list(range(2 * length)),
        "steps/observation/packed": [zlib.compress(v.tobytes()) for v in values(episode, 5)],
        "steps/observation/image": [encoded(episode, k, "JPEG") for k in range(length)],
        "steps/observation/wrist": [encoded(episode, k, "PNG") for k in range(length)],
        "steps/language_instruction": [f"pick {episode}".encode() if episode else b""] * length,
        "steps/other_instruction": [b"take it"] * length,
        "episode_metadata/file_path": [f"/raw/{episode}.pkl".encode()],
    }


@pytest.fixture
def steps(rlds_writer: Any) -> dict[str, Any]:
    tensor, image = rlds_writer.tensor, rlds_writer.image
    observation = {
        "state": tensor([3], "float32"),
        "joints": tensor([2], "int32"),
        "packed": tensor([5], "float32", "zlib"),
        "image": image([16, 24, 3]),
        "wrist": image([-1, -1, 3], "png"),
    }
    return {
        "action": tensor([7], "float32"),
        "is_first": tensor([], "bool"),
        "reward": tensor([], "float32"),
        "observation": rlds_writer.tree(observation),
        "language_instruction": {"text": {}},
        "other_instruction": tensor([], "string"),
    }


@pytest.fixture
def root(tmp_path: Path, rlds_writer: Any, steps: dict[str, Any]) -> Path:
    shards = [[features(0), features(1)], [features(2)]]
    rlds_writer.write(tmp_path / "set", steps, shards)
    return tmp_path / "set"


def test_everything_is_read(root: Path):
    """Vectors to the bit, PNG to the bit, JPEG closely, from several files."""
    dataset = open_dataset(root, fps=5)
    assert isinstance(dataset, Dataset)
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, 13, 5.0)
    assert (list(dataset.lengths), dataset.robot_type) == (list(LENGTHS), "toy_arm")
    assert dataset.views == {"image": (16, 24), "wrist": (16, 24)}
    assert dataset.action_names == [f"action.{k}" for k in range(7)]
    assert dataset.state_names == [f"observation/state.{k}" for k in range(3)]
    for number in (2, 0, 1):
        episode = dataset.episode(number)
        np.testing.assert_array_equal(episode.states, values(number, 3))
        np.testing.assert_array_equal(episode.actions, values(number, 7))
        exact = dataset.frames(number, "wrist")
        assert exact.shape == (LENGTHS[number], 16, 24, 3)
        for frame in range(LENGTHS[number]):
            np.testing.assert_array_equal(exact[frame], picture(number, frame))
            close = dataset.picture(number, "image", frame).astype(int)
            assert np.abs(close - picture(number, frame)).mean() < 4
            np.testing.assert_array_equal(close, dataset.frames(number, "image")[frame])


def test_instructions(root: Path):
    """The task is the first text that is not empty; all texts are given by their names."""
    dataset = RldsDataset(root, fps=5)
    assert [dataset.episode(i).task for i in range(3)] == ["", "pick 1", "pick 2"]
    assert dataset.episode(1).instructions == {
        "language_instruction": "pick 1",
        "other_instruction": "take it",
        "episode_metadata/file_path": "/raw/1.pkl",
    }
    chosen = ("language_instruction", "other_instruction")
    dataset = RldsDataset(root, fps=5, instruction=chosen)
    assert [dataset.episode(i).task for i in range(2)] == ["take it", "pick 1"]


def test_choices(root: Path):
    """State and action of several features, of integers, and of tensors packed one by one."""
    dataset = RldsDataset(
        root,
        fps=5,
        state=("observation/joints", "observation/packed"),
        action=("action", "is_first"),
        robot_type="arm",
    )
    episode = dataset.episode(1)
    np.testing.assert_array_equal(episode.states[:, :2], np.arange(6).reshape(3, 2))
    np.testing.assert_array_equal(episode.states[:, 2:], values(1, 5))
    np.testing.assert_array_equal(episode.actions[:, 7], [1, 0, 0])
    assert (len(dataset.state_names), dataset.robot_type) == (7, "arm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": None}, "do not say their rate; give fps"),
        ({"state": "observation/speed"}, "no vector 'observation/speed'.*; name the state"),
        ({"action": "observation/image"}, "no vector 'observation/image'.*; name the action"),
        ({"split": "val"}, r"no \*-val\.tfrecord files"),
    ],
)
def test_wrong_choices(root: Path, options: dict, message: str):
    """What is asked for and not there is named with what is."""
    with pytest.raises(DatasetError, match=message):
        RldsDataset(root, **{"fps": 5.0, **options})
    with pytest.raises(InputError, match="fps is -1"):
        RldsDataset(root, fps=-1)
    with pytest.raises(InputError, match="state is"):
        RldsDataset(root, fps=5, state=())


def test_no_such_episode_view_or_frame(root: Path):
    """Numbers and views that are not there are errors that say what is."""
    dataset = RldsDataset(root, fps=5)
    with pytest.raises(DatasetError, match=r"episodes 0\.\.2, not 3"):
        dataset.frames(3, "image")
    with pytest.raises(DatasetError, match=r"no view 'top'; it has \['image', 'wrist'\]"):
        dataset.picture(0, "top", 0)
    with pytest.raises(DatasetError, match=r"episode 1 has frames 0\.\.2, not 3"):
        dataset.picture(1, "image", 3)


def test_bit_flips(root: Path, seed: int):
    """Whatever bit of a shard is flipped, the file is refused by name and record."""
    path = root / SHARD
    content = path.read_bytes()
    for place in np.random.default_rng(seed).integers(8 * len(content), size=60).tolist():
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(DatasetError, match=rf"{SHARD}.*record [01]"):
            read_all(root)
    path.write_bytes(content)
    read_all(root)


def test_damage_after_indexing(root: Path, seed: int):
    """An index that is kept hides no damage, even if the file's time did not change."""
    path = root / SHARD
    content, facts = path.read_bytes(), path.stat()
    read_all(root)
    for place in np.random.default_rng(seed).integers(len(content), size=20).tolist():
        flipped = bytearray(content)
        flipped[place] ^= 16
        path.write_bytes(flipped)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        with pytest.raises(DatasetError, match=SHARD):
            read_all(root)


def test_truncation(root: Path):
    """A shard cut off anywhere is refused, between records because one is missing."""
    path = root / SHARD
    content = path.read_bytes()
    first = next(iter(RldsDataset(root, fps=5)._records))
    between = first.offset + first.length + 4
    for keep in (0, 5, 12, 300, between, between + 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:keep])
        message = "records, .*shardLengths" if keep in (0, between) else "truncated"
        with pytest.raises(DatasetError, match=rf"{SHARD}.*{message}"):
            RldsDataset(root, fps=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps/action": [0.0] * 20}, "steps/action has 20 values, expected 21 for 3 steps"),
        ({"steps/action": [0.0] * 20 + [np.nan]}, "steps/action has a value not finite"),
        ({"steps/action": [1] * 21}, "steps/action: it holds integers, expected floats"),
        ({"steps/observation/image": [b"x"]}, "image has 1 values, expected 3 for 3 steps"),
        ({"steps/observation/image": [b"x"] * 3}, "image of step 0 is no JPEG or PNG"),
        ({"steps/language_instruction": [b"\xff"] * 3}, "language_instruction is no UTF-8"),
        ({"episode_metadata/file_path": [b"a", b"b"]}, "file_path has 2 values, expected 1"),
        ({"steps/observation/packed": [b"xyz"] * 3}, "packed: Error"),
        ({"steps/observation/packed": [zlib.compress(b"x")] * 3}, "packed has 1 bytes a step"),
        ({"steps/observation/packed": [zlib.compress(bytes(9999))] * 3}, "packed has 21 bytes"),
    ],
)
def test_damaged_contents(
    tmp_path: Path, rlds_writer: Any, steps: dict[str, Any], change: dict, message: str
):
    """Records that are whole but hold something else than declared are named by feature."""
    root = tmp_path / "other"
    rlds_writer.write(root, steps, [[features(0), {**features(1), **change}]])
    dataset = RldsDataset(root, fps=5, state="observation/packed")
    dataset.episode(0)
    with pytest.raises(DatasetError, match=rf"record 1: .*{message}"):
        read_both(dataset)


def test_missing_feature_and_size(tmp_path: Path, rlds_writer: Any, steps: dict[str, Any]):
    """A record without a declared feature, and pictures of another size, are refused."""
    lacking = features(1)
    del lacking["steps/observation/wrist"]
    small = {**features(2), "steps/observation/image": features(2)["steps/observation/wrist"]}
    buffer = io.BytesIO()
    Image.fromarray(picture(0, 0)[:8]).save(buffer, "PNG")
    small["steps/observation/image"][2] = buffer.getvalue()
    rlds_writer.write(tmp_path / "other", steps, [[features(0), lacking, small]])
    dataset = RldsDataset(tmp_path / "other", fps=5)
    with pytest.raises(DatasetError, match=r"record 1 lacks the feature 'steps/obs.*/wrist'"):
        dataset.episode(1)
    dataset.picture(2, "image", 1)
    message = r"image of step 2 has frames \(8, 24\), expected \(16, 24\)"
    with pytest.raises(DatasetError, match=message):
        dataset.frames(2, "image")


def test_threads_copies_and_forks(root: Path):
    """Threads, copies and forked children read the same pictures."""
    dataset = RldsDataset(root, fps=5)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: dataset.picture(2, "wrist", k % 6), range(60)))
    assert all((one == picture(2, k % 6)).all() for k, one in enumerate(found))
    again = copy.deepcopy(dataset)
    assert len(again._recent) == 0
    np.testing.assert_array_equal(again.picture(0, "wrist", 3), picture(0, 3))
    with dataset._recent._lock:
        child = multiprocessing.get_context("fork").Process(target=_check, args=(dataset,))
        child.start()
    child.join(30)
    alive = child.is_alive()
    child.kill()
    assert (alive, child.exitcode) == (False, 0)


def _check(dataset: RldsDataset) -> None:
    np.testing.assert_array_equal(dataset.picture(1, "wrist", 2), picture(1, 2))


def test_another_writer(root: Path, tmp_path: Path):
    """Records of the package tfrecord, over Google's protobuf and a C checksum, read the same."""
    writer = pytest.importorskip("tfrecord.writer", reason="tfrecord is not installed")
    out = writer.TFRecordWriter(str(root / SHARD))
    for number in range(2):
        kinds = {float: "float", bytes: "byte", int: "int"}
        plain = features(number)
        plain["steps/is_first"] = [int(flag) for flag in plain["steps/is_first"]]
        out.write({key: (one, kinds[type(one[0])]) for key, one in plain.items()})
    out.close()
    dataset = RldsDataset(root, fps=5)
    for number in range(2):
        np.testing.assert_array_equal(dataset.episode(number).actions, values(number, 7))
        np.testing.assert_array_equal(dataset.picture(number, "wrist", 1), picture(number, 1))


def read_both(dataset: RldsDataset) -> None:
    dataset.episode(1)
    dataset.picture(1, "image", 0)


def read_all(root: Path) -> None:
    dataset = RldsDataset(root, fps=5)
    for i in range(dataset.num_episodes):
        dataset.episode(i)
