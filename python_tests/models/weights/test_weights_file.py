"""One safetensors file: mapped, and checked before anything is read."""

import json
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlakern.errors import CheckpointError
from vlakern.models.weights.weights_file import (
    INDEX,
    WEIGHTS,
    check_finite,
    open_directory,
    open_file,
    open_sharded,
)

EXPECTED = {"a": (2, 3), "b": (4,)}


def written(path: Path, **changes: torch.Tensor | None) -> Path:
    """A good file but for the changes; None takes a tensor away."""
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    tensors = {k: v for k, v in (tensors | changes).items() if v is not None}
    save_file(tensors, path / "weights.safetensors")
    return path / "weights.safetensors"


def test_tensors_come_by_name_in_their_own_dtype(tmp_path: Path) -> None:
    """Values, shapes and dtypes are those of the file."""
    get = open_file(written(tmp_path), EXPECTED)
    assert torch.equal(get("a"), torch.arange(6.0).view(2, 3))
    assert get("b").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": None}, "lacks 'a'.*1 tensors missing, 0 unknown"),
        ({"c": torch.ones(1)}, "holds 'c', which is unknown"),
        ({"a": torch.ones(3, 2)}, r"'a' has shape \(3, 2\).*needs \(2, 3\)"),
        ({"b": torch.ones(4, dtype=torch.int64)}, "'b' is I64, expected one of BF16"),
        ({"a": torch.ones(2, 3, dtype=torch.uint8)}, "'a' is U8"),
    ],
)
def test_other_tensors_than_expected_are_named(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    """One sentence: the file, the tensor, what was found and what is needed."""
    path = written(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        open_file(path, EXPECTED)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 4, 8, 60, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    """Cut anywhere: in the length, in the header, in the values."""
    path = written(tmp_path)
    content = path.read_bytes()
    size = int(keep * len(content)) if isinstance(keep, float) else keep
    path.write_bytes(content[:size])
    with pytest.raises(
        CheckpointError, match=r"truncated or not a safetensors file.*copy it again"
    ):
        open_file(path, EXPECTED)


@pytest.mark.parametrize("content", [b"\xff" * 64, b"PK\x03\x04" + bytes(100), b"\x80\x04" * 40])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """A header of absurd length, an archive, a pickle: none is read."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        open_file(path, EXPECTED)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """And so is a directory of that name."""
    with pytest.raises(CheckpointError, match="is missing; a policy directory needs"):
        open_file(tmp_path / "none", EXPECTED)
    with pytest.raises(CheckpointError, match="is a directory, expected a regular file"):
        open_file(tmp_path, EXPECTED)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt", "weights.pth"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    """A sentence says what to do, and nothing is read; beside safetensors they are ignored."""
    os.mkfifo(tmp_path / name)
    for call in (lambda: open_directory(tmp_path), lambda: open_file(tmp_path / WEIGHTS, EXPECTED)):
        with pytest.raises(CheckpointError, match=rf"{name} may run code .*convert it to safeten"):
            call()
    written(tmp_path).rename(tmp_path / WEIGHTS)
    assert open_directory(tmp_path).shapes == EXPECTED


def test_a_renamed_pickle_is_called_one(tmp_path: Path) -> None:
    """torch.save's file under the name of safetensors: the sentence says to convert it."""
    torch.save({"a": torch.ones(2)}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"torch\.save, which may run code.*convert it"):
        open_directory(tmp_path)


def sharded(directory: Path, **places: str) -> Path:
    """Two files and their index; ``places`` changes where the index says that a tensor is."""
    save_file({"a": torch.arange(6.0).view(2, 3)}, directory / "x-1.safetensors")
    save_file({"b": torch.ones(4), "c": torch.zeros(1)}, directory / "x-2.safetensors")
    known = {"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-2.safetensors"}
    index = {"metadata": {"total_size": 44}, "weight_map": known | places}
    (directory / INDEX).write_text(json.dumps(index))
    return directory


def test_files_with_an_index_are_one(tmp_path: Path) -> None:
    """Values of every file; what is expected is checked over all of them."""
    found = open_directory(sharded(tmp_path))
    assert found.shapes == {"a": (2, 3), "b": (4,), "c": (1,)}
    assert torch.equal(found("a"), torch.arange(6.0).view(2, 3))
    assert torch.equal(found("b"), torch.ones(4))
    assert open_sharded(tmp_path, expected=found.shapes).shapes == found.shapes
    with pytest.raises(CheckpointError, match="holds 'c', which is unknown"):
        open_sharded(tmp_path, expected=EXPECTED)
    with pytest.raises(CheckpointError, match="lacks 'd'"):
        found("d")


def test_files_of_the_hub_are_links_to_its_blobs(tmp_path: Path) -> None:
    """A download's snapshot links to the blobs beside it; elsewhere no link may lead."""
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in list(sharded(snapshot).iterdir()):
        path.rename(tmp_path / "blobs" / f"{path.name}-sum")
        path.symlink_to(f"../../blobs/{path.name}-sum")
    assert set(open_directory(snapshot).infos) == {"a", "b", "c"}
    (tmp_path / "blobs/x-1.safetensors-sum").rename(tmp_path / "secret")
    (snapshot / "x-1.safetensors").unlink()
    (snapshot / "x-1.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="a link out of"):
        open_directory(snapshot)


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    """The tensor's name and where it was; finite ones pass."""
    check_finite({"a": torch.ones(2), "empty": torch.empty(0)}, tmp_path)
    for value in (float("nan"), float("inf")):
        with pytest.raises(CheckpointError, match="tensor 'b' holds values that are not finite"):
            check_finite({"a": torch.ones(2), "b": torch.tensor([0.0, value])}, tmp_path)


def test_opening_reads_no_values(tmp_path: Path) -> None:
    """A file of a gigabyte with holes opens at once: tensors are read when they are used."""
    size = 1 << 30
    header = json.dumps({"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}})
    path = tmp_path / "weights.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    open_file(path, {"a": (size // 4,)})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
