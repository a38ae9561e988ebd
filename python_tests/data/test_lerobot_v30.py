"""LeRobot v3.0 beyond what the writer makes: several files, pictures in rows, texts, other keys."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from vlakern.data.lerobot import LeRobotDataset, LeRobotWriter
from vlakern.data.stats import vector_stats
from vlakern.errors import DatasetError, InputError

LENGTHS = (4, 3, 6)
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
SECOND = "data/chunk-000/file-001.parquet"


def states(episode: int) -> np.ndarray:
    return np.random.default_rng(episode).normal(size=(LENGTHS[episode], 2)).astype(np.float32)


def picture(episode: int, frame: int) -> np.ndarray:
    return np.full((8, 12, 3), 40 * episode + 5 * frame, np.uint8)


def png(episode: int, frame: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(episode, frame)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Rows in two files, the last two episodes in the second; pictures and texts in the rows."""
    root = tmp_path / "set"
    names = {"state_names": ("x", "y"), "action_names": ("x",)}
    with LeRobotWriter(root, fps=20, views={}, robot_type="arm", **names) as out:
        for number, task in enumerate(("push", "reach", "push")):
            out.add_episode({}, states(number), states(number)[:, :1], task)
    path = root / "data/chunk-000/file-000.parquet"
    table = parquet.ParquetFile(path).read()
    cells = [(e, k) for e, n in enumerate(LENGTHS) for k in range(n)]
    images = [{"bytes": png(*cell), "path": f"frame-{cell[1]}.png"} for cell in cells]
    table = table.append_column("top", pa.array(images))
    table = table.append_column("language", pa.array([f"text {e}" for e, _ in cells]))
    table = table.append_column("remark", pa.array([None] * len(cells), pa.string()))
    parquet.write_table(table.slice(0, 4), path)
    parquet.write_table(table.slice(4), root / SECOND, row_group_size=5)
    change_table(root / EPISODES, lambda table: replaced(table, "data/file_index", [0, 1, 1]))

    def declare(info: dict) -> None:
        names = ["height", "width", "channels"]
        info["features"]["top"] = {"dtype": "image", "shape": [8, 12, 3], "names": names}
        for key in ("language", "remark"):
            info["features"][key] = {"dtype": "string", "shape": [1], "names": None}

    change_info(root, declare)
    return root


def test_several_files_and_pictures_in_rows(root: Path):
    """Episodes are found in any file and over row groups; their pictures are exact."""
    dataset = LeRobotDataset(root)
    assert dataset.views == {"top": (8, 12)}
    for number in (2, 0, 1):
        np.testing.assert_array_equal(dataset.episode(number).states, states(number))
        whole = dataset.frames(number, "top")
        assert whole.shape == (LENGTHS[number], 8, 12, 3)
        for frame in range(LENGTHS[number]):
            np.testing.assert_array_equal(whole[frame], picture(number, frame))
            np.testing.assert_array_equal(dataset.picture(number, "top", frame), whole[frame])


def test_texts_are_instructions(root: Path):
    """Every text of the episode's first row is given by its field, and so are more tasks."""
    assert LeRobotDataset(root).episode(2).instructions == {"task": "push", "language": "text 2"}
    tasks = [["push", "shove"], ["reach"], ["push"]]
    change_table(root / EPISODES, lambda table: replaced(table, "tasks", tasks))
    found = LeRobotDataset(root).episode(0)
    assert found.task == "push"
    assert found.instructions == {"task": "push", "task 2": "shove", "language": "text 0"}


def test_other_keys(root: Path):
    """State and action may be other features, and several joined."""
    dataset = LeRobotDataset(root, state=("action", "observation.state"), action="timestamp")
    assert dataset.state_names == ["action.x", "observation.state.x", "observation.state.y"]
    assert dataset.action_names == ["timestamp.0"]
    found = dataset.episode(1)
    np.testing.assert_array_equal(found.states, np.hstack([states(1)[:, :1], states(1)]))
    np.testing.assert_allclose(found.actions[:, 0], [0, 0.05, 0.1], rtol=1e-6)
    with pytest.raises(DatasetError, match=r"info\.json: features lacks the vector 'speed'"):
        LeRobotDataset(root, action="speed")
    with pytest.raises(DatasetError, match="lacks the vector 'language'"):
        LeRobotDataset(root, state="language")
    with pytest.raises(InputError, match="names of different features"):
        LeRobotDataset(root, state=())


def test_statistics_of_an_episode(root: Path):
    """The writer's statistics per episode are exact, and read back with LeRobot's shapes."""
    dataset = LeRobotDataset(root)
    for number in (1, 0, 2):
        stats = dataset.episode_stats(number)
        for name, value in vector_stats(states(number)).items():
            np.testing.assert_allclose(stats["observation.state"][name], value)
        assert stats["episode_index"]["max"] == [number]
        assert stats["timestamp"]["max"] == pytest.approx((LENGTHS[number] - 1) / 20)
        assert stats["action"]["count"] == [LENGTHS[number]]
    with pytest.raises(DatasetError, match=r"episodes 0\.\.2"):
        dataset.episode_stats(3)

    def bare(table: pa.Table) -> pa.Table:
        return table.select([c for c in table.column_names if not c.startswith("stats/")])

    change_table(root / EPISODES, bare)
    assert LeRobotDataset(root).episode_stats(0) == {}


def test_picture_file_beside_the_tables(root: Path):
    """A row may name a file of the dataset instead; outside of it nothing is read."""
    outside = root.parent / "secret.png"
    for path in (root / "images/a.png", outside):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(2, 5))
    names = ["images/a.png", "images/b.png", "../secret.png", str(outside)]
    cells = [{"bytes": None, "path": name} for name in names]
    change_table(root / SECOND, lambda table: replaced(table, "top", cells + [None] * 5))
    dataset = LeRobotDataset(root)
    np.testing.assert_array_equal(dataset.picture(1, "top", 0), picture(2, 5))
    with pytest.raises(DatasetError, match=r"top of row 1 names .*b\.png, which cannot be read"):
        dataset.picture(1, "top", 1)
    for place in ((1, 2), (2, 0)):
        with pytest.raises(DatasetError, match=r"secret\.png, which is not in the dataset"):
            dataset.picture(place[0], "top", place[1])
    with pytest.raises(DatasetError, match="top of row 5 holds no picture"):
        dataset.picture(2, "top", 2)


def test_damaged_picture(root: Path):
    """A picture of noise or of another size is refused with file, feature and row."""
    cells = [{"bytes": content, "path": ""} for content in (b"noise", png(0, 0)[:60])]
    change_table(root / SECOND, lambda table: replaced(table, "top", (cells * 5)[:9]))
    for frame in (0, 1):
        with pytest.raises(DatasetError, match=rf"file-001\.parquet: top of row {frame} is "):
            LeRobotDataset(root).picture(1, "top", frame)
    change_info(root, lambda info: info["features"]["top"].update(shape=[12, 8, 3]))
    with pytest.raises(DatasetError, match=r"top of row 0 has frames \(8, 12\)"):
        LeRobotDataset(root).picture(0, "top", 0)


def test_wrong_rate(root: Path):
    """An fps that the rows' clock contradicts is refused."""
    change_info(root, lambda info: info.update(fps=10))
    message = r"file-000\.parquet: timestamp says .* last 0\.1500 s, but at fps 10 .* 0\.3000 s"
    with pytest.raises(DatasetError, match=message):
        LeRobotDataset(root).episode(0)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("length", [4, 3, 0], "total_frames is 13 but the episodes have 7"),
        ("length", [4, None, 6], "episode 1 has None as length"),
        ("dataset_from_index", [0, 3, 7], "episode 1 has length 3 but another index range"),
        ("data/file_index", [0, 0, 1], "does not hold the 3 rows of episode 1 from index 4"),
    ],
)
def test_contradicting_episodes(root: Path, column: str, values: list, message: str):
    """An episode table that contradicts itself or the rows is refused."""
    change_table(root / EPISODES, lambda table: replaced(table, column, values))
    with pytest.raises(DatasetError, match=message):
        LeRobotDataset(root).episode(1)


def test_empty_episode(root: Path):
    """An episode without instants is refused."""

    def empty(table: pa.Table) -> pa.Table:
        for column, values in (
            ("length", [4, 9, 0]),
            ("dataset_to_index", [4, 13, 13]),
            ("dataset_from_index", [0, 4, 13]),
        ):
            table = replaced(table, column, values)
        return table

    change_table(root / EPISODES, empty)
    with pytest.raises(DatasetError, match="episode 2 has length 0, expected at least 1"):
        LeRobotDataset(root)


def change_info(root: Path, change: Callable[[dict], object]) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def change_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    parquet.write_table(change(parquet.ParquetFile(path).read()), path)


def replaced(table: pa.Table, column: str, values: object) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, pa.array(values))
