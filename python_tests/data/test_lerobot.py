"""The LeRobot v3.0 reader: what was written comes back, and damage is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from vlakern.data.lerobot import LeRobotDataset, LeRobotWriter
from vlakern.errors import DatasetError

LENGTHS = (5, 3, 7)
VIDEO = "videos/observation.images.left/chunk-000/file-000.mp4"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def vectors(number: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(number)
    sizes = ((LENGTHS[number], 2), (LENGTHS[number], 3))
    states, actions = (random.normal(size=size).astype(np.float32) for size in sizes)
    return states, actions


def pictures(number: int) -> np.ndarray:
    """Frames that tell episode and instant by brightness."""
    levels = 60 * number + 7 * np.arange(LENGTHS[number]) + 20
    return np.broadcast_to(levels[:, None, None, None], (len(levels), 16, 24, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lerobot") / "set"
    names = {"state_names": ("x", "y"), "action_names": ("dx", "dy", "grip")}
    views = {"left": (16, 24)}
    with LeRobotWriter(root, fps=20.0, views=views, robot_type="arm", **names) as out:
        for number, task in enumerate(("push", "reach", "push")):
            out.add_episode({"left": pictures(number)}, *vectors(number), task)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "set"))


def test_round_trip(original: Path):
    """Vectors come back to the bit, pictures within what compression costs, tasks in words."""
    dataset = LeRobotDataset(original)
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, 15, 20.0)
    assert dataset.views == {"left": (16, 24)}
    assert dataset.tasks == {0: "push", 1: "reach"}
    for number, task in enumerate(("push", "reach", "push")):
        episode = dataset.episode(number)
        states, actions = vectors(number)
        assert (episode.index, episode.task) == (number, task)
        np.testing.assert_array_equal(episode.states, states)
        np.testing.assert_array_equal(episode.actions, actions)
        assert episode.states.dtype == episode.actions.dtype == np.float32
        found = dataset.frames(number, "left")
        assert found.dtype == np.uint8
        np.testing.assert_allclose(found, pictures(number), atol=3)


def test_stats_are_read(original: Path):
    """The dataset's statistics are arrays by feature and name."""
    states = np.concatenate([vectors(number)[0] for number in range(3)])
    stats = LeRobotDataset(original).stats
    np.testing.assert_allclose(stats["observation.state"]["mean"], states.mean(0), rtol=1e-5)
    assert stats["observation.images.left"]["std"].shape == (3, 1, 1)


def test_unnamed_task_index(root: Path):
    """Tasks written by pandas without an index name are found too."""
    path = root / "meta/tasks.parquet"
    table = parquet.read_table(path).rename_columns(["task_index", "__index_level_0__"])
    parquet.write_table(table, path)
    assert LeRobotDataset(root).tasks == {0: "push", 1: "reach"}


def test_no_such_episode_or_view(original: Path):
    """Numbers and views that are not there are errors that say what is."""
    dataset = LeRobotDataset(original)
    for i in (-1, 3):
        with pytest.raises(DatasetError, match=r"episodes 0\.\.2"):
            dataset.episode(i)
    with pytest.raises(DatasetError, match=r"no view 'top'.*left"):
        dataset.frames(0, "top")


@pytest.mark.parametrize(
    "name", ["meta/info.json", "meta/stats.json", "meta/tasks.parquet", EPISODES, DATA, VIDEO]
)
@pytest.mark.parametrize("keep", [None, 0.0, 0.6])
def test_missing_or_truncated_file(root: Path, name: str, keep: float | None):
    """Every file that is missing, empty or cut off is named; pictures are never made up."""
    path = root / name
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DatasetError, match=name.rpartition("/chunk")[0] or name):
        LeRobotDataset(root).frames(2, "left")


@pytest.mark.parametrize(
    "field", ["codebase_version", "fps", "features", "data_path", "video_path"]
)
def test_missing_info_field(root: Path, field: str):
    """A field that info.json lacks is named."""
    change_info(root, lambda info: info.pop(field))
    with pytest.raises(DatasetError, match=rf"info\.json lacks the field '{field}'"):
        LeRobotDataset(root)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("codebase_version", "v1.6", r"'v1\.6', expected one of v3\.0"),
        ("fps", 0, "fps is 0"),
        ("fps", "fast", "fps is 'fast'"),
        ("total_frames", 16, "total_frames is 16 but the episodes have 15"),
        ("total_episodes", 4, "total_episodes is 4 but meta/episodes lists 3"),
        ("data_path", "data/{x}.parquet", r"data_path is .*expected a pattern of chunk_index"),
        ("video_path", "{}.mp4", r"video_path is .*expected a pattern of video_key"),
        ("features", {}, r"features lacks the vector 'observation\.state'"),
    ],
)
def test_contradicting_info(root: Path, field: str, value: object, message: str):
    """What info.json says must be what is there."""
    change_info(root, lambda info: info.update({field: value}))
    with pytest.raises(DatasetError, match=message):
        LeRobotDataset(root)


def test_image_size_of_the_video(root: Path):
    """Frames of another size than declared are refused."""

    def taller(info: dict) -> None:
        info["features"]["observation.images.left"]["shape"] = [32, 24, 3]

    change_info(root, taller)
    with pytest.raises(DatasetError, match=r"\(16, 24\), meta/info.json says \(32, 24\)"):
        LeRobotDataset(root).frames(0, "left")


@pytest.mark.parametrize("column", ["length", "videos/observation.images.left/from_timestamp"])
def test_missing_episode_column(root: Path, column: str):
    """A column that the episode table lacks is named."""
    change_table(root / EPISODES, lambda table: table.drop_columns([column]))
    with pytest.raises(DatasetError, match=f"lacks the column '{column}'"):
        LeRobotDataset(root)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("length", [5, 4, 6], "episode 1 has length 4 but another index range"),
        ("videos/observation.images.left/to_timestamp", [0.25, 0.5, 0.75], r"lasts 0\.2500 s"),
        ("videos/observation.images.left/file_index", [0, 0, 1], r"file-001\.mp4 is missing"),
        ("episode_index", [0, 1, 1], "total_episodes is 3"),
        ("data/file_index", [0, 0, 2], r"file-002\.parquet is missing"),
    ],
)
def test_contradicting_episodes(root: Path, column: str, values: list, message: str):
    """An episode table that contradicts itself or the files is refused."""
    change_table(root / EPISODES, lambda table: replaced(table, column, values))
    with pytest.raises(DatasetError, match=message):
        LeRobotDataset(root)


def test_lost_rows(root: Path):
    """A frame table with fewer rows than declared is refused."""
    change_table(root / DATA, lambda table: table.slice(0, 14))
    with pytest.raises(DatasetError, match=r"has 14 rows, meta/info\.json says 15"):
        LeRobotDataset(root)


def test_shuffled_rows(root: Path):
    """Rows of another episode are not taken for this one's."""
    order = pa.array([14, *range(1, 14), 0])
    change_table(root / DATA, lambda table: table.take(order))
    with pytest.raises(DatasetError, match="damaged"):
        LeRobotDataset(root).episode(2)


def test_numbers_that_are_none(root: Path):
    """NaN in the data is refused by file and column, and costs no other episode."""

    def poison(table: pa.Table) -> pa.Table:
        values = table["action"].combine_chunks().flatten().to_numpy().copy()
        values[4] = np.nan
        return replaced(table, "action", pa.FixedSizeListArray.from_arrays(pa.array(values), 3))

    change_table(root / DATA, poison)
    with pytest.raises(DatasetError, match=r"file-000\.parquet: action has an entry"):
        LeRobotDataset(root).episode(0)
    np.testing.assert_array_equal(LeRobotDataset(root).episode(1).actions, vectors(1)[1])


def test_unknown_task(root: Path):
    """A frame of a task that no table names is refused."""
    change_table(root / DATA, lambda table: replaced(table, "task_index", [7] * 15))
    with pytest.raises(DatasetError, match="task_index 7 is not in"):
        LeRobotDataset(root).episode(0)


def test_video_shorter_than_declared(root: Path):
    """An episode that lies beyond the end of its video lacks frames."""

    def later(table: pa.Table) -> pa.Table:
        key = "videos/observation.images.left"
        table = replaced(table, f"{key}/from_timestamp", [0.0, 0.25, 0.5])
        return replaced(table, f"{key}/to_timestamp", [0.25, 0.4, 0.85])

    change_table(root / EPISODES, later)
    with pytest.raises(DatasetError, match=r"lacks frame 15 \(2 of 7"):
        LeRobotDataset(root).frames(2, "left")


def change_info(root: Path, change: Callable[[dict], object]) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def change_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    parquet.write_table(change(parquet.ParquetFile(path).read()), path)


def replaced(table: pa.Table, column: str, values: object) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, pa.array(values))


def test_single_pictures_are_those_of_the_episode(original: Path):
    """A picture in random order has the very numbers that the whole episode has there."""
    dataset = LeRobotDataset(original)
    assert dataset.lengths == list(LENGTHS)
    whole = [dataset.frames(number, "left") for number in range(3)]
    for place in np.random.default_rng(0).permutation(sum(LENGTHS)):
        number = int(np.searchsorted(np.cumsum(LENGTHS), place, side="right"))
        frame = int(place) - sum(LENGTHS[:number])
        found = dataset.picture(number, "left", frame)
        np.testing.assert_array_equal(found, whole[number][frame])
    with pytest.raises(DatasetError, match=r"episode 1 has frames 0\.\.2, not 3"):
        dataset.picture(1, "left", 3)
