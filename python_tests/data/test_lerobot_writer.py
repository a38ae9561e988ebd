"""The LeRobot v3.0 writer: the format's files, nothing half-written, bad episodes refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from vlakern.data.lerobot import LeRobotDataset, LeRobotWriter
from vlakern.data.stats import vector_stats
from vlakern.errors import DatasetError, InputError


def writer(root: Path, **options) -> LeRobotWriter:
    return LeRobotWriter(
        root,
        fps=20.0,
        views={"left": (16, 24)},
        state_names=("x", "y"),
        action_names=("dx", "dy", "grip"),
        robot_type="arm",
        **options,
    )


def parts(length: int, number: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    random = np.random.default_rng(number)
    frames = np.full((length, 16, 24, 3), 20 * number + 10, np.uint8)
    frames[:, :8] = 200
    states = random.normal(size=(length, 2)).astype(np.float32)
    return {"left": frames}, states, random.normal(size=(length, 3)).astype(np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with writer(tmp_path / "set") as out:
        for number, (length, task) in enumerate([(5, "push"), (3, "reach"), (7, "push")]):
            out.add_episode(*parts(length, number), task)
    return tmp_path / "set"


def test_files_of_the_format(root: Path):
    """The files and fields that LeRobot v3.0 readers look for."""
    found = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    assert found == {
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
        "videos/observation.images.left/chunk-000/file-000.mp4",
    }
    info = json.loads((root / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 15, 2)
    assert info["fps"] == 20
    assert info["splits"] == {"train": "0:3"}
    features = info["features"]
    assert features["observation.state"]["names"] == ["x", "y"]
    assert features["action"]["shape"] == [3]
    image = features["observation.images.left"]
    assert (image["dtype"], image["shape"]) == ("video", [16, 24, 3])
    assert image["info"]["video.codec"] == "h264"


def test_frame_table(root: Path):
    """One row an instant, with the index columns the format defines."""
    table = parquet.read_table(root / "data/chunk-000/file-000.parquet")
    assert table["index"].to_pylist() == list(range(15))
    assert table["episode_index"].to_pylist() == [0] * 5 + [1] * 3 + [2] * 7
    assert table["frame_index"].to_pylist() == [*range(5), *range(3), *range(7)]
    assert table["task_index"].to_pylist() == [0] * 5 + [1] * 3 + [0] * 7
    np.testing.assert_allclose(table["timestamp"].to_numpy()[5:8], [0, 0.05, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(np.stack(table["action"].to_numpy())[5:8], parts(3, 1)[2])


def test_episode_table(root: Path):
    """Where each episode lies in the tables and in the video."""
    rows = parquet.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    key = "videos/observation.images.left"
    assert [r["length"] for r in rows] == [5, 3, 7]
    assert [r["tasks"] for r in rows] == [["push"], ["reach"], ["push"]]
    assert [(r["dataset_from_index"], r["dataset_to_index"]) for r in rows] == [
        (0, 5),
        (5, 8),
        (8, 15),
    ]
    seconds = [(r[f"{key}/from_timestamp"], r[f"{key}/to_timestamp"]) for r in rows]
    np.testing.assert_allclose(seconds, [(0, 0.25), (0.25, 0.4), (0.4, 0.75)])


def test_task_table_is_a_pandas_index(root: Path):
    """The tasks are stored so that pandas makes the sentence the index, as LeRobot expects."""
    table = parquet.read_table(root / "meta/tasks.parquet")
    assert table.to_pydict() == {"task_index": [0, 1], "task": ["push", "reach"]}
    assert table.schema.pandas_metadata["index_columns"] == ["task"]
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(root / "meta/tasks.parquet")
    assert frame.loc["reach"].task_index == 1


def test_stats(root: Path):
    """meta/stats.json holds the exact statistics of all frames."""
    stats = json.loads((root / "meta/stats.json").read_text())
    states = np.concatenate([parts(n, k)[1] for k, n in enumerate((5, 3, 7))])
    for name, value in vector_stats(states).items():
        np.testing.assert_allclose(stats["observation.state"][name], value)
    frames = np.concatenate([parts(n, k)[0]["left"] for k, n in enumerate((5, 3, 7))])
    image = stats["observation.images.left"]
    np.testing.assert_allclose(np.ravel(image["mean"]), frames.mean((0, 1, 2)) / 255)
    assert image["count"] == [15]
    assert np.shape(image["std"]) == (3, 1, 1)


def test_full_video_file_is_followed_by_the_next(tmp_path: Path):
    """Episodes after a full file go to a new one, and every episode reads back."""
    with writer(tmp_path / "set", video_megabytes=0.0) as out:
        for number in range(3):
            out.add_episode(*parts(4, number), "push")
    names = sorted(p.name for p in (tmp_path / "set").rglob("*.mp4"))
    assert names == ["file-000.mp4", "file-001.mp4", "file-002.mp4"]
    dataset = LeRobotDataset(tmp_path / "set")
    for number in range(3):
        level = dataset.frames(number, "left")[:, 10:].mean()
        assert level == pytest.approx(20 * number + 10, abs=3)


def test_exception_leaves_nothing(tmp_path: Path):
    """A run that breaks leaves no directory, neither whole nor half."""

    def interrupted() -> None:
        with writer(tmp_path / "set") as out:
            out.add_episode(*parts(4), "push")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_empty_dataset(tmp_path: Path):
    """A dataset without an episode is refused and leaves nothing."""
    with pytest.raises(DatasetError, match="no episode"), writer(tmp_path / "set"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_existing_root(root: Path):
    """An existing dataset is replaced only on demand, and only when the new one is complete."""
    with pytest.raises(DatasetError, match="exists"):
        writer(root)
    with pytest.raises(InputError), writer(root, overwrite=True) as out:
        out.add_episode({}, *parts(4)[1:], "push")
    assert LeRobotDataset(root).num_episodes == 3
    with writer(root, overwrite=True) as out:
        out.add_episode(*parts(4), "push")
    assert LeRobotDataset(root).num_episodes == 1


def test_outside_its_block(tmp_path: Path):
    """A writer that was not entered says so."""
    with pytest.raises(DatasetError, match="`with` block"):
        writer(tmp_path / "set").add_episode(*parts(4), "push")


def test_bad_episode_changes_nothing(tmp_path: Path):
    """A refused episode leaves no trace in the dataset."""
    images, states, actions = parts(4)
    bad = states.copy()
    bad[2, 1] = np.nan
    cases = [
        ({}, states, actions, "has views"),
        (images | {"top": images["left"]}, states, actions, "has views"),
        ({"left": images["left"][:3]}, states, actions, "'left' is uint8"),
        ({"left": images["left"] / 255.0}, states, actions, "'left' is float64"),
        (images, states[:, :1], actions, r"observation.state has shape \(4, 1\)"),
        (images, states, actions[:3], r"action has shape \(3, 3\)"),
        (images, bad, actions, "observation.state has an entry that is not finite"),
        ({"left": images["left"][:0]}, states[:0], actions[:0], "T >= 1"),
    ]
    with writer(tmp_path / "set") as out:
        out.add_episode(images, states, actions, "push")
        for pictures, some_states, some_actions, message in cases:
            with pytest.raises(InputError, match=message):
                out.add_episode(pictures, some_states, some_actions, "other")
    dataset = LeRobotDataset(tmp_path / "set")
    assert (dataset.num_episodes, dataset.num_frames, dataset.tasks) == (1, 4, {0: "push"})


def test_overwriting_spares_what_is_not_a_dataset(tmp_path: Path) -> None:
    """A mistyped directory keeps its files."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DatasetError, match="is not a dataset"):
        writer(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_flipped_bits_of_tables(root: Path, seed: int):
    """A bit flipped in the rows of a table that was written never changes a number unseen."""
    path = root / "data/chunk-000/file-000.parquet"
    content = path.read_bytes()
    dataset = LeRobotDataset(root)
    expected = [dataset.episode(k) for k in range(3)]
    rows = parquet.read_metadata(path).row_group(0)
    pages = max(
        rows.column(k).data_page_offset + rows.column(k).total_compressed_size
        for k in range(rows.num_columns)
    )
    refused = 0
    for place in np.random.default_rng(seed).integers(4, pages, size=150).tolist():
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = [LeRobotDataset(root).episode(k) for k in range(3)]
        except DatasetError:
            refused += 1
            continue
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.states, other.states)
            np.testing.assert_array_equal(one.actions, other.actions)
            assert one.task == other.task
    assert refused > 60
