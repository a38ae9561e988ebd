"""Safetensors files, one or a set with an index: checked first, then mapped, never unpickled."""

import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlakern.errors import CheckpointError
from vlakern.models.weights.header import DTYPES, HeaderError, TensorInfo, read_header
from vlakern.untrusted import open_regular, read_json, shown

__all__ = [
    "INDEX",
    "WEIGHTS",
    "WEIGHT_DTYPES",
    "Tensors",
    "check_finite",
    "check_tensors",
    "open_directory",
    "open_file",
    "open_sharded",
    "open_tensors",
]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
INDEX_LIMIT = 16 << 20  # bytes
MOST_FILES = 1000
WEIGHT_DTYPES = ("BF16", "F16", "F32", "F64")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
Shapes = Mapping[str, tuple[int, ...]]


class _Mapped:
    """A file in memory that is read where it is touched; writing changes a private copy."""

    def __init__(self, path: Path, handle: int) -> None:
        try:
            self._bytes = mmap.mmap(handle, 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be mapped ({error.strerror})") from error

    def tensor(self, info: TensorInfo) -> torch.Tensor:
        """A view of the file; a copy where the bytes do not begin where the dtype may."""
        dtype = DTYPES[info.dtype]
        if info.begin == info.end:
            return torch.empty(info.shape, dtype=dtype)
        if info.begin % dtype.itemsize:
            held = bytearray(self._bytes[info.begin : info.end])
            return torch.frombuffer(held, dtype=dtype).view(info.shape)
        count = (info.end - info.begin) // dtype.itemsize
        flat = torch.frombuffer(self._bytes, dtype=dtype, count=count, offset=info.begin)
        return flat.view(info.shape)


@dataclass(frozen=True)
class Tensors:
    """The tensors of one or several mapped files; calling it with a name gives the tensor.

    Attributes:
        where: the file, or the index.
        infos: dtype and shape by name, in the files' order.
    """

    where: Path
    infos: Mapping[str, TensorInfo]
    _files: Mapping[str, _Mapped]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by name."""
        return {name: info.shape for name, info in self.infos.items()}

    def __call__(self, name: str) -> torch.Tensor:
        """The tensor in the file's dtype, read when it is used.

        Raises:
            CheckpointError: there is none of that name.
        """
        if name not in self.infos:
            raise CheckpointError(f"{self.where} lacks {shown(name)}; it is of another model")
        return self._files[name].tensor(self.infos[name])


def open_file(path: Path, expected: Shapes) -> Tensors:
    """The tensors of a safetensors file by name; names, shapes and dtypes are checked first.

    Raises:
        CheckpointError: the file is missing or damaged, or holds other tensors than expected.
    """
    found = open_tensors(path)
    check_tensors(found, expected)
    return found


def open_tensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, whatever they are.

    Raises:
        CheckpointError: the file is missing, damaged, or no safetensors file.
    """
    with open_regular(path, _needed(path)) as file:
        try:
            infos = read_header(file)
        except HeaderError as error:
            advice = "convert it" if "torch.save" in str(error) else "copy it again"
            if "git-lfs" in str(error):
                advice = "run git lfs pull there"
            raise CheckpointError(
                f"{path} is truncated or not a safetensors file ({error}); {advice}"
            ) from error
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
        mapped = _Mapped(path, file.fileno())
    return Tensors(path, infos, dict.fromkeys(infos, mapped))


def open_sharded(
    directory: Path, index_file: str = INDEX, expected: Shapes | None = None
) -> Tensors:
    """The tensors of all files that an index names.

    Args:
        index_file: name of the index in ``directory``: ``{"weight_map": {tensor: file}}``.
        expected: names and shapes; None takes them as they are.

    Raises:
        CheckpointError: as :func:`open_file`; or the index names a file outside the directory, or
            says otherwise than the files where a tensor is.
    """
    index = directory / index_file
    places = _weight_map(index)
    infos: dict[str, TensorInfo] = {}
    files: dict[str, _Mapped] = {}
    for name in dict.fromkeys(places.values()):
        part = open_tensors(_inside(directory, name, index))
        for tensor in part.infos:
            if places.get(tensor) != name:
                raise CheckpointError(
                    f"{part.where} holds {shown(tensor)}, which {index_file} places in"
                    f" {shown(places.get(tensor, 'no file'))}; copy the files again"
                )
        infos |= part.infos
        files |= part._files
    missing = next((tensor for tensor in places if tensor not in infos), None)
    if missing is not None:
        raise CheckpointError(
            f"{index} places {shown(missing)} in {places[missing]}, which lacks it; copy the files"
            " again"
        )
    found = Tensors(index, infos, files)
    if expected is not None:
        check_tensors(found, expected)
    return found


def open_directory(directory: Path) -> Tensors:
    """The weights of a directory: ``model.safetensors``, or the files of its index.

    Raises:
        CheckpointError: as :func:`open_sharded`; or there are none, or only pickled ones.
    """
    if not (directory / WEIGHTS).exists() and (directory / INDEX).exists():
        return open_sharded(directory)
    return open_tensors(directory / WEIGHTS)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file name, each a bare one."""
    values = read_json(index, INDEX_LIMIT, _needed(index))
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map from tensors to files; copy it again")
    for name in places.values():
        if not _is_bare(name):
            raise CheckpointError(
                f"{index} names the file {shown(name)}; expected the bare name of a .safetensors"
                " file in the same directory"
            )
    count = len(set(places.values()))
    if count > MOST_FILES:
        raise CheckpointError(f"{index} names {count} files, at most {MOST_FILES} are read")
    return places


def _is_bare(name: Any) -> bool:
    """Whether ``name`` can only be a file in the same directory, on every system."""
    if not isinstance(name, str) or len(name) > 255 or not name.isprintable():
        return False
    plain = not set(name) & set("/\\:") and not name.startswith(".")
    return plain and name.endswith(".safetensors")


def _inside(directory: Path, name: str, index: Path) -> Path:
    """The file's real path, which no link may lead out of the directory."""
    root = directory.resolve()
    roots = [root]
    if root.parent.name == "snapshots":
        # Downloads of the Hugging Face hub are links to the blobs beside their snapshots.
        roots.append(root.parent.parent / "blobs")
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{index} names {name}, a link that leads nowhere") from error
    if path.parent not in roots:
        raise CheckpointError(
            f"{index} names {name}, a link out of {directory}; put the file itself there"
        )
    return path


def _needed(path: Path) -> str:
    """What to do about weights, if they are not there."""
    if os.path.exists(path):
        return ""
    pickled = _pickled(path.parent)
    if pickled:
        return (
            f"{pickled} may run code when it is read and is refused: convert it to safetensors"
            " where you trust it"
        )
    if (path.parent / "adapter_config.json").exists():
        return "what lies there is an adapter alone: merge it into its base model and save that"
    return "a policy directory needs its weights"


def _pickled(directory: Path) -> str:
    """Name of a file there that torch.save wrote, ``""`` if there is none."""
    try:
        names = sorted(os.listdir(directory))
    except (OSError, ValueError):
        return ""
    return next((name for name in names if name.endswith(PICKLES)), "")


def check_tensors(found: Tensors, expected: Shapes) -> None:
    """Compares names, shapes and dtypes with those of a model.

    Raises:
        CheckpointError: naming a tensor that is missing, unknown, misshapen or not floating.
    """
    _check_names(found.where, expected, found.infos)
    for name, shape in expected.items():
        info = found.infos[name]
        if info.shape != tuple(shape):
            raise CheckpointError(
                f"{found.where}: tensor {name!r} has shape {info.shape}, the model in config.json"
                f" needs {tuple(shape)}"
            )
        if info.dtype not in WEIGHT_DTYPES:
            raise CheckpointError(
                f"{found.where}: tensor {name!r} is {info.dtype}, expected one of"
                f" {', '.join(WEIGHT_DTYPES)}"
            )


def _check_names(path: Path, expected: Iterable[str], infos: Iterable[str]) -> None:
    wanted, found = set(expected), set(infos)
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"holds {extra[0]!r}, which is unknown"
        raise CheckpointError(
            f"{path} {what} ({len(missing)} tensors missing, {len(extra)} unknown); it was written"
            " for another model than config.json describes"
        )


def check_finite(tensors: Mapping[str, torch.Tensor], where: Path) -> None:
    """Raises CheckpointError naming a tensor that holds infinities or NaN."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{where}: tensor {name!r} holds values that are not finite")
