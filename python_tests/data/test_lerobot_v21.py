"""LeRobot v2.1 and v2.0: the older layout gives the same dataset, and damage is named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from vlakern.data.dataset import Dataset, open_dataset
from vlakern.data.lerobot import LeRobotDataset
from vlakern.data.stats import vector_stats
from vlakern.data.video import VideoWriter
from vlakern.errors import DatasetError

LENGTHS = (4, 3, 6)
FPS = 10
INFO = {
    "codebase_version": "v2.1",
    "robot_type": "arm",
    "total_episodes": 3,
    "total_frames": 13,
    "total_tasks": 2,
    "total_videos": 3,
    "total_chunks": 2,
    "chunks_size": 2,
    "fps": FPS,
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    "features": {
        "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["x", "y"]}},
        "action": {"dtype": "float64", "shape": [1], "names": None},
        "observation.images.left": {
            "dtype": "video",
            "shape": [16, 24, 3],
            "names": ["height", "width", "channel"],
        },
    },
}


def states(episode: int) -> np.ndarray:
    return np.random.default_rng(episode).normal(size=(LENGTHS[episode], 2)).astype(np.float32)


def pictures(episode: int) -> np.ndarray:
    levels = 60 * episode + 7 * np.arange(LENGTHS[episode]) + 20
    return np.broadcast_to(levels[:, None, None, None], (len(levels), 16, 24, 3)).astype(np.uint8)


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_episode(root: Path, episode: int) -> None:
    length, first = LENGTHS[episode], sum(LENGTHS[:episode])
    chunk = f"chunk-{episode // 2:03d}"
    columns = {
        "observation.state": states(episode).tolist(),
        "action": [float(k) for k in range(length)],
        "timestamp": pa.array(np.arange(length) / FPS, pa.float32()),
        "frame_index": list(range(length)),
        "episode_index": [episode] * length,
        "index": list(range(first, first + length)),
        "task_index": [episode % 2] * length,
    }
    path = root / f"data/{chunk}/episode_{episode:06d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    name = f"videos/{chunk}/observation.images.left/episode_{episode:06d}.mp4"
    video = VideoWriter(root / name, FPS, 16, 24)
    video.append(pictures(episode))
    video.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "old"
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(INFO))
    for episode in range(3):
        write_episode(root, episode)
    tasks = ("push", "reach")
    write_lines(
        root / "meta/tasks.jsonl", [{"task_index": k, "task": t} for k, t in enumerate(tasks)]
    )
    write_lines(
        root / "meta/episodes.jsonl",
        [{"episode_index": k, "tasks": [tasks[k % 2]], "length": n} for k, n in enumerate(LENGTHS)],
    )
    stats = [{k: v.tolist() for k, v in vector_stats(states(e)).items()} for e in range(3)]
    write_lines(
        root / "meta/episodes_stats.jsonl",
        [{"episode_index": e, "stats": {"observation.state": s}} for e, s in enumerate(stats)],
    )
    return root


def test_everything_is_read(root: Path):
    """Vectors, tasks, statistics and pictures of every episode, from files in several chunks."""
    dataset = open_dataset(root)
    assert isinstance(dataset, Dataset)
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, 13, 10.0)
    assert list(dataset.lengths) == list(LENGTHS)
    assert (dataset.state_names, dataset.action_names) == (["x", "y"], ["action.0"])
    assert dataset.views == {"left": (16, 24)}
    for number, task in enumerate(("push", "reach", "push")):
        episode = dataset.episode(number)
        assert (episode.task, episode.instructions) == (task, {"task": task})
        np.testing.assert_array_equal(episode.states, states(number))
        np.testing.assert_array_equal(episode.actions[:, 0], np.arange(LENGTHS[number]))
        assert episode.actions.dtype == np.float32
        whole = dataset.frames(number, "left")
        np.testing.assert_allclose(whole, pictures(number), atol=3)
        np.testing.assert_array_equal(dataset.picture(number, "left", 2), whole[2])


def test_statistics(root: Path):
    """Those of the episodes are read, and merged they are those of all rows at once."""
    dataset = LeRobotDataset(root)
    for number in range(3):
        for name, value in vector_stats(states(number)).items():
            found = dataset.episode_stats(number)["observation.state"][name]
            np.testing.assert_allclose(found, value)
    expected = vector_stats(np.concatenate([states(number) for number in range(3)]))
    found = dataset.stats["observation.state"]
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(found[name], expected[name])


def test_version_2_0(root: Path):
    """The version before has one file of statistics and none of the episodes'."""
    (root / "meta/episodes_stats.jsonl").unlink()
    (root / "meta/stats.json").write_text('{"action": {"mean": [1.5]}}')
    change(root, lambda info: info.update(codebase_version="v2.0"))
    dataset = LeRobotDataset(root)
    assert dataset.stats["action"]["mean"] == [1.5]
    assert dataset.episode_stats(0) == {}


@pytest.mark.parametrize("name", ["tasks", "episodes", "episodes_stats"])
def test_missing_table(root: Path, name: str):
    """A table that is missing, cut off or empty is named."""
    path = root / f"meta/{name}.jsonl"
    content = path.read_text()
    path.unlink()
    with pytest.raises(DatasetError, match=rf"{name}\.jsonl is missing"):
        LeRobotDataset(root)
    path.write_text(content[:-9])
    with pytest.raises(DatasetError, match=rf"{name}\.jsonl, line \d, is not JSON"):
        LeRobotDataset(root)
    path.write_text("{}")
    with pytest.raises(DatasetError, match=rf"{name}\.jsonl, entry 1: \w+ is None"):
        LeRobotDataset(root)


@pytest.mark.parametrize("kind", ["parquet", "mp4"])
def test_missing_or_truncated_file(root: Path, kind: str):
    """A missing file of an episode is named when it is asked for; others can be read."""
    path = next(root.rglob(f"episode_000001.{kind}"))
    content = path.read_bytes()
    for keep in (None, 0, len(content) // 2):
        path.unlink()
        if keep is not None:
            path.write_bytes(content[:keep])
        dataset = LeRobotDataset(root)
        assert len(dataset.episode(0).states) == len(dataset.frames(0, "left"))
        with pytest.raises(DatasetError, match=rf"episode_000001\.{kind}"):
            read_all(dataset, 1)
        path.touch()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("total_episodes", 4, r"total_episodes is 4 but .*episodes\.jsonl lists 3"),
        ("total_frames", 12, r"total_frames is 12 but .*episodes\.jsonl has 13"),
        ("chunks_size", 0, "chunks_size is 0"),
        ("chunks_size", 9, r"chunk-000/episode_000002\.parquet is missing"),
        ("data_path", "data/{x}", "expected a pattern of episode_chunk, episode_index"),
        ("fps", 20, r"timestamp says .* 6 rows of episode 2 last 0\.5000 s, but at fps 20"),
    ],
)
def test_contradictions(root: Path, field: str, value: object, message: str):
    """What info.json says must be what is there."""
    change(root, lambda info: info.update({field: value}))
    with pytest.raises(DatasetError, match=message):
        LeRobotDataset(root).episode(2)


def test_wrong_rate_of_a_video(root: Path):
    """Pictures of a video at another rate than the dataset's are refused."""
    change(root, lambda info: info.update(fps=20))
    with pytest.raises(DatasetError, match="plays 10 frames a second, but the dataset's fps is 20"):
        LeRobotDataset(root).picture(0, "left", 1)


def test_empty_episode(root: Path):
    """An episode without instants is refused."""
    path = root / "meta/episodes.jsonl"
    path.write_text(path.read_text().replace('"length": 3', '"length": 0'))
    change(root, lambda info: info.update(total_frames=10))
    with pytest.raises(DatasetError, match=r"episodes\.jsonl: episode 1 has length 0"):
        LeRobotDataset(root)


def read_all(dataset: LeRobotDataset, episode: int) -> None:
    dataset.episode(episode)
    dataset.frames(episode, "left")


def change(root: Path, edit: Callable[[dict], object]) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    edit(info)
    path.write_text(json.dumps(info))
