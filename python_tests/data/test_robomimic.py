"""robomimic and LIBERO files: everything is found, nothing is turned silently, damage is named."""

import copy
import json
import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vlakern.data.dataset import Dataset, open_dataset
from vlakern.data.robomimic import RobomimicDataset
from vlakern.errors import DatasetError, InputError

LENGTHS = {"demo_0": 4, "demo_2": 3, "demo_10": 5}
LIBERO = "KITCHEN_SCENE1_open_the_bottom_drawer_demo.hdf5"


def vectors(name: str, width: int) -> np.ndarray:
    random = np.random.default_rng(int(name.split("_")[1]) + width)
    return random.normal(size=(LENGTHS[name], width))


def pictures(name: str) -> np.ndarray:
    random = np.random.default_rng(LENGTHS[name])
    return random.integers(256, size=(LENGTHS[name], 8, 12, 3), dtype=np.uint8)


def write(path: Path, obs: dict[str, int], ends: str, attributes: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(attributes)
        for name, length in LENGTHS.items():
            demo = data.create_group(name)
            demo.attrs["num_samples"] = length
            demo["actions"] = vectors(name, 7)
            for key, width in obs.items():
                demo[f"obs/{key}"] = vectors(name, width)
            demo[f"obs/agentview{ends}"] = pictures(name)
            demo[f"obs/depth{ends}"] = np.zeros((length, 8, 12, 1), np.uint8)
        file["mask/train"] = np.array(["demo_10", "demo_0"], dtype="S")


@pytest.fixture
def lift(tmp_path: Path) -> Path:
    obs = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
    settings = {"control_freq": 20, "robots": ["Panda"]}
    attributes = {"env_args": json.dumps({"env_name": "Lift", "env_kwargs": settings}), "total": 12}
    write(tmp_path / "lift_ph.hdf5", obs, "_image", attributes)
    return tmp_path / "lift_ph.hdf5"


@pytest.fixture
def libero(tmp_path: Path) -> Path:
    obs = {"ee_states": 6, "gripper_states": 2, "joint_states": 7}
    settings = {"control_freq": 20, "robots": ["Panda"]}
    attributes = {
        "env_args": json.dumps({"env_kwargs": settings}),
        "problem_info": json.dumps({"language_instruction": list('"open the drawer"')}),
        "macros_image_convention": "opengl",
    }
    root = tmp_path / "suite"
    root.mkdir()
    write(root / LIBERO, obs, "_rgb", attributes)
    attributes["problem_info"] = "{}"
    settings["robots"] = ["libero_panda"]
    attributes["env_args"] = json.dumps({"env_kwargs": settings})
    write(root / "pick_up_the_bowl_demo.hdf5", obs, "_rgb", attributes)
    return root


def test_robomimic(lift: Path):
    """State, actions, pictures and rate of a robomimic file, demonstrations in number order."""
    dataset = open_dataset(lift)
    assert isinstance(dataset, Dataset)
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, 12, 20.0)
    assert list(dataset.lengths) == [4, 3, 5]
    assert dataset.robot_type == "Panda"
    assert dataset.views == {"agentview": (8, 12)}
    assert dataset.action_names == [f"actions.{k}" for k in range(7)]
    assert dataset.state_names[:4] == [
        *(f"robot0_eef_pos.{k}" for k in range(3)),
        "robot0_eef_quat.0",
    ]
    for i, name in enumerate(LENGTHS):
        episode = dataset.episode(i)
        expected = np.hstack([vectors(name, width) for width in (3, 4, 2)])
        np.testing.assert_array_equal(episode.states, expected.astype(np.float32))
        np.testing.assert_array_equal(episode.actions, vectors(name, 7).astype(np.float32))
        assert (episode.index, episode.task) == (i, "lift ph")
        np.testing.assert_array_equal(dataset.frames(i, "agentview"), pictures(name))
        np.testing.assert_array_equal(dataset.picture(i, "agentview", 2), pictures(name)[2])


def test_libero(libero: Path):
    """A suite is a directory; the instruction is the problem's, else the file name's."""
    dataset = RobomimicDataset(libero)
    assert (dataset.num_episodes, dataset.robot_type, dataset.image_convention) == (
        6,
        "libero_panda",
        "opengl",
    )
    assert len(dataset.state_names) == 8
    assert [dataset.episode(i).task for i in (0, 3)] == ["open the drawer", "pick up the bowl"]
    assert dataset.turn == "none"
    np.testing.assert_array_equal(dataset.picture(0, "agentview", 0), pictures("demo_0")[0])
    alone = libero / f"LIVING_ROOM_SCENE12_{LIBERO.partition('SCENE1_')[2]}"
    shutil.copy(libero / LIBERO, alone)
    with h5py.File(alone, "a") as file:
        file["data"].attrs["problem_info"] = "{}"
    assert RobomimicDataset(alone).episode(0).task == "open the bottom drawer"


def test_turn_is_asked_for(libero: Path):
    """Pictures are turned or flipped only on demand, single ones and whole episodes alike."""
    original = pictures("demo_2")
    for turn, expected in (("half", original[:, ::-1, ::-1]), ("upside_down", original[:, ::-1])):
        dataset = RobomimicDataset(libero, turn=turn)  # pyright: ignore[reportArgumentType]
        assert dataset.turn == turn
        np.testing.assert_array_equal(dataset.frames(1, "agentview"), expected)
        np.testing.assert_array_equal(dataset.picture(1, "agentview", 2), expected[2])
    with pytest.raises(InputError, match="turn is 'left'"):
        RobomimicDataset(libero, turn="left")  # pyright: ignore[reportArgumentType]


def test_own_instruction(lift: Path):
    """A demonstration's own instruction goes before the file's, and both are given."""
    with h5py.File(lift, "a") as file:
        file["data/demo_2"].attrs["lang"] = "raise the cube"
        file["data/demo_10"].attrs["ep_meta"] = json.dumps({"lang": "up"})
    dataset = RobomimicDataset(lift)
    assert [dataset.episode(i).task for i in range(3)] == ["lift ph", "raise the cube", "up"]
    assert dataset.episode(1).instructions == {"task": "lift ph", "lang": "raise the cube"}


def test_choices(lift: Path):
    """Filter, state, action, views, rate and robot can be named."""
    dataset = open_dataset(
        lift, split="train", state=("object",), views=(), fps=10.0, robot_type="panda"
    )
    assert (list(dataset.lengths), dataset.views, dataset.fps) == ([4, 5], {}, 10.0)
    assert (len(dataset.state_names), dataset.robot_type) == (10, "panda")
    np.testing.assert_allclose(dataset.episode(1).states, vectors("demo_10", 10), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, r"lift_ph\.hdf5 has no filter mask/valid; it has \['train'\]"),
        ({"state": "speed"}, r"lift_ph\.hdf5: /data/demo_0/obs lacks the vector 'speed'"),
        ({"state": "agentview_image"}, "lacks the vector 'agentview_image'"),
        ({"action": "moves"}, "data/demo_0 lacks 'moves'"),
        ({"views": ["top"]}, "obs has no pictures 'top'"),
    ],
)
def test_unknown_choices(lift: Path, options: dict, message: str):
    """What is asked for and not there is named."""
    with pytest.raises(DatasetError, match=message):
        RobomimicDataset(lift, **options)


def cut(group: Any, key: str, length: int) -> None:
    values = group[key][:length]
    del group[key]
    group[key] = values


def poison(file: Any) -> None:
    values = file["data/demo_2/obs/robot0_eef_pos"]
    values[1, 0] = np.nan


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.move("data", "other"), "has no group 'data'"),
        (lambda f: f["data"].attrs.pop("env_args"), "control_freq; give fps"),
        (lambda f: f["data"].attrs.update(env_args="{"), "env_args of data is not JSON"),
        (lambda f: f["data"].attrs.update(env_args="[]"), "env_args of data is no JSON object"),
        (lambda f: cut(f["data/demo_2"], "actions", 0), "data/demo_2 has no instants"),
        (lambda f: cut(f["data/demo_2"], "actions", 2), "demo_2 has num_samples 3, but 2 actions"),
        (
            lambda f: cut(f["data/demo_2/obs"], "agentview_image", 2),
            r"demo_2/obs/agentview_image has shape \(2, 8, 12, 3\), expected \(3, 8, 12, 3\)",
        ),
        (lambda f: f.pop("data/demo_10/obs/agentview_image"), "agentview_image has shape None"),
        (poison, "demo_2/obs/robot0_eef_pos has an entry that is not finite"),
        (lambda f: f.pop("data/demo_0/obs"), "obs has none of the usual states"),
    ],
)
def test_damage(lift: Path, damage: Callable[[Any], Any], message: str):
    """Files that lack something or contradict themselves are refused by file and field."""
    with h5py.File(lift, "a") as file:
        damage(file)
    with pytest.raises(DatasetError, match=rf"lift_ph\.hdf5.*({message})"):
        RobomimicDataset(lift).episode(1)


def test_filter_of_what_is_gone(lift: Path):
    """A filter that names a lost demonstration is refused."""
    with h5py.File(lift, "a") as file:
        del file["data/demo_10"]
    with pytest.raises(DatasetError, match="mask/train names demo_10, which is not there"):
        RobomimicDataset(lift, split="train")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.8])
def test_truncated_file(lift: Path, keep: float):
    """A file that was cut off is an error that names it."""
    content = lift.read_bytes()
    lift.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DatasetError, match=r"lift_ph\.hdf5 cannot be read"):
        RobomimicDataset(lift).frames(2, "agentview")


def test_damaged_pictures(lift: Path):
    """Compressed pictures that were overwritten are an error, not zeros."""
    with h5py.File(lift, "a") as file:
        del file["data/demo_0/obs/agentview_image"]
        stored = file.create_dataset(
            "data/demo_0/obs/agentview_image",
            data=pictures("demo_0"),
            compression="gzip",
            chunks=(1, 8, 12, 3),
        )
        place = stored.id.get_chunk_info(2)
    content = bytearray(lift.read_bytes())
    middle = place.byte_offset + place.size // 2
    content[middle : middle + 8] = bytes(8)
    lift.write_bytes(content)
    dataset = RobomimicDataset(lift)
    np.testing.assert_array_equal(dataset.picture(0, "agentview", 1), pictures("demo_0")[1])
    with pytest.raises(DatasetError, match=r"lift_ph\.hdf5 cannot be read"):
        dataset.picture(0, "agentview", 2)


def test_files_that_differ(libero: Path):
    """A file of another rate does not join the dataset."""
    with h5py.File(libero / "pick_up_the_bowl_demo.hdf5", "a") as file:
        settings = {"control_freq": 10, "robots": ["libero_panda"]}
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": settings})
    with pytest.raises(DatasetError, match=r"pick_up.*fps is 10\.0, but 20\.0 in the files before"):
        RobomimicDataset(libero)


def test_missing(tmp_path: Path, lift: Path):
    """No file, no file in the directory, no such episode, view or frame."""
    for root in (tmp_path / "gone.hdf5", tmp_path / "empty"):
        with pytest.raises(DatasetError, match="is no HDF5 file and no directory that holds any"):
            RobomimicDataset(root)
    dataset = RobomimicDataset(lift)
    with pytest.raises(DatasetError, match=r"episodes 0\.\.2, not 3"):
        dataset.episode(3)
    with pytest.raises(DatasetError, match=r"no view 'top'; it has \['agentview'\]"):
        dataset.frames(0, "top")
    with pytest.raises(DatasetError, match=r"episode 1 has frames 0\.\.2, not 3"):
        dataset.picture(1, "agentview", 3)


def test_threads_copies_and_forks(lift: Path):
    """Threads, copies and forked children read the same pictures."""
    dataset = RobomimicDataset(lift)
    expected = pictures("demo_10")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: dataset.picture(2, "agentview", k % 5), range(40)))
    assert all((picture == expected[k % 5]).all() for k, picture in enumerate(found))
    again = copy.deepcopy(dataset).picture(2, "agentview", 1)
    np.testing.assert_array_equal(again, expected[1])
    child = multiprocessing.get_context("fork").Process(target=_check, args=(dataset, expected))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    np.testing.assert_array_equal(dataset.picture(2, "agentview", 3), expected[3])


def _check(dataset: RobomimicDataset, expected: np.ndarray) -> None:
    for frame in range(len(expected)):
        np.testing.assert_array_equal(dataset.picture(2, "agentview", frame), expected[frame])
