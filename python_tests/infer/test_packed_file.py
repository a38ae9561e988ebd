"""The file of packed weights: written once, mapped after that, and never trusted."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vlakern.errors import CheckpointError
from vlakern.infer import packed_file
from vlakern.infer.packed_file import cache_path, cached_model, read_packed, write_packed
from vlakern.infer.packing import PackedModel
from vlakern.ops import _native

LINE = 64


def same(found: PackedModel, expected: PackedModel) -> bool:
    """Bit for bit, with all facts."""
    facts = ("n", "k", "kind", "gate", "has_bias", "layout", "isa")
    return (
        (found.config, found.dtype) == (expected.config, expected.dtype)
        and found.tensors.keys() == expected.tensors.keys()
        and found.matrices.keys() == expected.matrices.keys()
        and all(torch.equal(found.tensors[k], v) for k, v in expected.tensors.items())
        and all(
            torch.equal(found.matrices[k].data, v.data)
            and all(getattr(found.matrices[k], one) == getattr(v, one) for one in facts)
            for k, v in expected.matrices.items()
        )
    )


@pytest.fixture
def path(lab: ModuleType, tmp_path: Path) -> Path:
    """A packed file of the smallest network in bf16."""
    network, path = lab.network("tiny"), tmp_path / "packed"
    write_packed(path, "key", network.config, "bf16", network.state_dict().__getitem__)
    return path


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_what_is_read_is_what_was_packed(lab: ModuleType, tmp_path: Path, dtype: str) -> None:
    """Every array bit for bit, with its facts; the arrays lie on cache lines."""
    network, path = lab.network("metaworld-small"), tmp_path / "packed"
    write_packed(path, "key", network.config, dtype, network.state_dict().__getitem__)
    found = read_packed(path, "key")
    assert same(found, lab.packed("metaworld-small", dtype))
    arrays = [*found.tensors.values(), *(one.data for one in found.matrices.values())]
    assert {one.data_ptr() % LINE for one in arrays} == {0}
    assert os.listdir(tmp_path) == ["packed"]


def test_another_key_is_stale(path: Path) -> None:
    """One sentence with the path."""
    with pytest.raises(CheckpointError, match="packed from other weights or by another version"):
        read_packed(path, "other")


def test_pages_are_shared_until_written(path: Path) -> None:
    """The mapping is private: what one process does to its weights is not in the file."""
    content = path.read_bytes()
    read_packed(path, "key").tensors["vision.place"].fill_(7)
    assert path.read_bytes() == content


@pytest.mark.parametrize("at", [0, 1, 7, 8, 15, 16, 23, 24, 55, -1, -40, -1000])
def test_a_flipped_byte_of_front_or_header_is_found(path: Path, at: int) -> None:
    """In the magic, where the header is, its sum, or the header itself."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a whole file|damaged header"):
        read_packed(path, "key")


def test_every_flipped_bit_of_the_arrays_is_found(path: Path) -> None:
    """Of 300 bits anywhere between front and header, and of the sum itself."""
    content = path.read_bytes()
    end, draw = int.from_bytes(content[8:16], "little"), np.random.default_rng(0)
    bits = [8 * LINE, 8 * end - 1, *(8 * 56 + i for i in (0, 17, 63))]
    bits += draw.integers(8 * LINE, 8 * end, 300).tolist()
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="its arrays are not those that were written"):
            read_packed(path, "key")
    path.write_bytes(content)
    read_packed(path, "key")


def test_the_sum_knows_order_and_length() -> None:
    """Exchanged lines, exchanged megabytes and zeros behind the end change it; threads do not."""
    checksum = _native.cpu_module().checksum
    data = torch.randint(0, 256, (3 << 20,), dtype=torch.uint8)
    whole = checksum(data.data_ptr(), data.nbytes, 1)
    assert checksum(data.data_ptr(), data.nbytes, 2) == whole
    for size in (64, 1 << 20):
        other = torch.cat([data[size : 2 * size], data[:size], data[2 * size :]])
        assert checksum(other.data_ptr(), other.nbytes, 1) != whole
    longer = torch.cat([data, torch.zeros(64, dtype=torch.uint8)])
    sums = {checksum(longer.data_ptr(), len(data) + more, 1) for more in (0, 1, 8, 64)}
    assert len(sums) == 4
    assert whole in sums


@pytest.mark.parametrize("keep", [0, 1, 8, 63, 64, 1000, 0.5, 0.999])
def test_a_truncated_file_is_found(path: Path, keep: float) -> None:
    """Cut anywhere, or with something behind its end."""
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="not a whole file of packed weights"):
        read_packed(path, "key")
    path.write_bytes(content + b"x")
    with pytest.raises(CheckpointError, match="not a whole file of packed weights"):
        read_packed(path, "key")


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Another header, whose sum and place are right."""
    content = path.read_bytes()
    begin = int.from_bytes(content[8:16], "little")
    header = json.loads(content[begin:])
    text = json.dumps(change(header) or header).encode()
    seal(path, content, begin, text)


def seal(path: Path, content: bytes, begin: int, text: bytes) -> None:
    sizes = begin.to_bytes(8, "little") + len(text).to_bytes(8, "little")
    front = content[:8] + sizes + hashlib.sha256(text).digest()
    path.write_bytes(front + content[56:begin] + text)


NAME, DTYPE, SHAPE, OFFSET, MATRIX = range(5)


def array(field: int, value: Any, which: str = "embed") -> Callable[[dict[str, Any]], None]:
    """Changes one field of one array's entry."""

    def change(header: dict[str, Any]) -> None:
        entry = next(one for one in header["arrays"] if one[NAME] == which)
        entry[field] = value

    return change


def fact(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Changes one fact of a matrix."""

    def change(header: dict[str, Any]) -> None:
        entry = next(one for one in header["arrays"] if one[NAME] == "connector.0")
        entry[MATRIX][name] = value

    return change


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a list for a header": lambda h: [1],
    "no arrays": lambda h: h.pop("arrays") and None,
    "arrays of another kind": lambda h: h.update(arrays={"a": 1}),
    "an entry that is a number": lambda h: h["arrays"].append(3),
    "an entry that is short": lambda h: h["arrays"][0].pop() and None,
    "no dtype": lambda h: h.pop("dtype") and None,
    "another dtype": lambda h: h.update(dtype="fp4"),
    "a dtype that is a list": lambda h: h.update(dtype=["bf16"]),
    "no config": lambda h: h.pop("config") and None,
    "a config without vision": lambda h: h["config"].pop("vision") and None,
    "a name that is a list": array(NAME, ["embed"]),
    "an attribute for a dtype": array(DTYPE, "__class__"),
    "a function for a dtype": array(DTYPE, "load"),
    "a dtype of its own": array(DTYPE, "float64"),
    "a dtype that is a number": array(DTYPE, 3),
    "a negative side": array(SHAPE, [-512, -64]),
    "one negative side": array(SHAPE, [-512, 64]),
    "a fractional side": array(SHAPE, [512.0, 64]),
    "a side that is true": array(SHAPE, [True, 64]),
    "a large side": array(SHAPE, [1 << 40, 64]),
    "sides beyond 64 bits": array(SHAPE, [1 << 47] * 9),
    "a shape that is a number": array(SHAPE, 512),
    "an offset before the file": array(OFFSET, -64),
    "an offset behind the file": array(OFFSET, 1 << 40),
    "an offset between lines": array(OFFSET, 65),
    "an offset that is a word": array(OFFSET, "64"),
    "facts that are a list": array(MATRIX, [1], "connector.0"),
    "another fact": fact("data", 3),
    "the layout as a fact": fact("layout", 1),
    "negative rows": fact("n", -64),
    "fractional rows": fact("k", 1.5),
    "a kind of its own": fact("kind", "fp4"),
    "a kind that is a list": fact("kind", ["bf16"]),
    "a gate that is a number": fact("gate", 1),
    "a matrix of floats": array(DTYPE, "float32", "connector.0"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused(path: Path, case: str) -> None:
    """One sentence that names the file; nothing outside the file is read."""
    rewrite(path, HOSTILE[case])
    with pytest.raises(CheckpointError) as error:
        read_packed(path, "key")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000])
def test_a_header_that_is_not_json_is_refused(path: Path, text: bytes) -> None:
    """Nothing, half of something, no text, too deep, too long a number."""
    content = path.read_bytes()
    seal(path, content, int.from_bytes(content[8:16], "little"), text)
    with pytest.raises(CheckpointError, match="damaged header"):
        read_packed(path, "key")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """Nothing there, a directory, a pipe."""
    os.mkfifo(tmp_path / "pipe")
    for one in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with pytest.raises(CheckpointError, match="is not there"):
            read_packed(one, "key")


@pytest.fixture
def policy(lab: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with weights that are not small any more, and a cache elsewhere."""
    monkeypatch.setattr(packed_file, "SMALL", 0)
    monkeypatch.setenv("VLAKERN_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "policy"
    directory.mkdir()
    save_file(lab.network("tiny").state_dict(), directory / "model.safetensors")
    return directory


def cached(lab: ModuleType, policy: Path, dtype: str = "bf16") -> tuple[PackedModel, list[str]]:
    """The model, and what was packed for it."""
    network, heard = lab.network("tiny"), []
    weights = network.state_dict().__getitem__
    file = policy / "model.safetensors"
    return cached_model(policy, network.config, dtype, file, weights, heard.append), heard


def test_weights_are_packed_once(lab: ModuleType, policy: Path) -> None:
    """The second call maps the file beside the policy and packs nothing."""
    expected = lab.packed("tiny", "bf16")
    first, heard = cached(lab, policy)
    assert len(heard) == len(expected.matrices) + len(expected.tensors)
    second, nothing = cached(lab, policy)
    assert nothing == []
    assert same(first, expected)
    assert same(second, expected)
    assert [one.suffix for one in (policy / "packed").iterdir()] == [".vlakern"]


def test_each_dtype_has_its_file(lab: ModuleType, policy: Path) -> None:
    """One does not replace the other."""
    for dtype in ("bf16", "int8", "fp32"):
        assert cached(lab, policy, dtype)[1] != []
    for dtype in ("bf16", "int8", "fp32"):
        found, heard = cached(lab, policy, dtype)
        assert (found.dtype, heard) == (dtype, [])


@pytest.mark.parametrize("change", ["size", "time", "header"])
def test_weights_that_changed_are_packed_again(lab: ModuleType, policy: Path, change: str) -> None:
    """Other bytes, another time of change, other names: each makes the packed file stale."""
    file = policy / "model.safetensors"
    cached(lab, policy)
    status, content = file.stat(), bytearray(file.read_bytes())
    if change == "size":
        file.write_bytes(content + b"\0")
    elif change == "header":
        content[20] ^= 1
        file.write_bytes(content)
    later = status.st_mtime_ns + (change == "time")
    os.utime(file, ns=(status.st_atime_ns, later))
    assert cached(lab, policy)[1] != []
    assert cached(lab, policy)[1] == []
    assert len(list((policy / "packed").iterdir())) == 1


@pytest.mark.parametrize("damage", ["truncated", "magic", "header", "config", "arrays", "empty"])
def test_a_damaged_file_is_replaced(lab: ModuleType, policy: Path, damage: str) -> None:
    """The weights are there, so nothing is lost: the file is written again."""
    cached(lab, policy)
    (path,) = (policy / "packed").iterdir()
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:-10])
    elif damage == "magic":
        path.write_bytes(b"PK" + content[2:])
    elif damage == "header":
        path.write_bytes(content[:-9] + b"\0" * 9)
    elif damage == "config":
        rewrite(path, lambda header: header.update(config={"vision": 1}))
    elif damage == "arrays":
        content[1000] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(b"")
    found, heard = cached(lab, policy)
    assert heard != []
    assert same(found, lab.packed("tiny", "bf16"))
    assert cached(lab, policy)[1] == []


def test_a_mapped_file_outlives_its_replacement(lab: ModuleType, policy: Path) -> None:
    """A process that runs on the old file keeps it when another writes the new one."""
    found, _ = cached(lab, policy)
    os.utime(policy / "model.safetensors", ns=(1, 1))
    cached(lab, policy)
    (policy / "packed" / cache_path(policy, "bf16", "k").name).unlink()
    assert same(found, lab.packed("tiny", "bf16"))


def test_a_directory_that_cannot_be_written_uses_the_cache(
    lab: ModuleType, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is in VLAKERN_CACHE, named by its key, and is found there again."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    found, heard = cached(lab, policy)
    assert heard != []
    assert cached(lab, policy)[1] == []
    assert same(found, lab.packed("tiny", "bf16"))
    assert not (policy / "packed").exists()
    assert len(list((policy.parent / "cache" / "packed").iterdir())) == 1


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(28, "full")])
def test_where_nothing_can_be_written_weights_are_packed_in_memory(
    lab: ModuleType, policy: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, caplog: Any
) -> None:
    """A full disk or a read-only home costs the file, not the policy; a warning says so."""

    def fail(path: Path, fill: object) -> None:
        raise error

    monkeypatch.setattr(packed_file, "write_file", fail)
    found, heard = cached(lab, policy)
    assert heard != []
    assert same(found, lab.packed("tiny", "bf16"))
    assert "packed weights could not be written" in caplog.text


def test_a_crash_while_writing_leaves_nothing(lab: ModuleType, policy: Path) -> None:
    """An error in the middle: no file, whole or half, and the next call writes it."""
    network = lab.network("tiny")
    states, count = network.state_dict(), 0

    def stops(name: str) -> torch.Tensor:
        nonlocal count
        count += 1
        if count > 30:
            raise KeyboardInterrupt
        return states[name]

    with pytest.raises(KeyboardInterrupt):
        cached_model(policy, network.config, "bf16", policy / "model.safetensors", stops)
    assert list((policy / "packed").iterdir()) == []
    assert same(cached(lab, policy)[0], lab.packed("tiny", "bf16"))


def test_weights_that_are_not_finite_are_not_written(lab: ModuleType, policy: Path) -> None:
    """The tensor is named, and no file is left."""
    network = lab.network("tiny")
    states = dict(network.state_dict())
    states["mot.action.layers.1.o_proj.weight"] = torch.full((48, 64), float("inf"))
    file = policy / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"'mot.action.layers.1.o_proj.weight' holds values"):
        cached_model(policy, network.config, "bf16", file, states.__getitem__)
    assert list((policy / "packed").iterdir()) == []


def test_small_models_write_nothing(
    lab: ModuleType, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are packed in memory every time, faster than a file is found."""
    monkeypatch.setattr(packed_file, "SMALL", 64 << 20)
    for _ in range(2):
        found, heard = cached(lab, policy)
        assert heard != []
        assert same(found, lab.packed("tiny", "bf16"))
    assert [one.name for one in policy.iterdir()] == ["model.safetensors"]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's /proc")
def test_processes_share_the_pages(path: Path) -> None:
    """Reading every weight makes no page of the mapping private to the process."""
    model = read_packed(path, "key")
    assert all(int(one.data.sum()) is not None for one in model.matrices.values())
    blocks = Path("/proc/self/smaps").read_text().split(f"{path}\n")[1:]
    private = [line.split()[1] for line in blocks[0].splitlines() if "Private_Dirty" in line]
    assert private[0] == "0"
