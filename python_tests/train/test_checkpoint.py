"""An acknowledged checkpoint survives kills and full disks, and damage is seen, not loaded."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlakern.errors import CheckpointError
from vlakern.train import checkpoint
from vlakern.train.checkpoint import TrainState, checkpoints, newest_good, read, save, verify

HERE = Path(__file__).parent


def state(step: int = 3, size: int = 50) -> TrainState:
    """Every dtype that is stored, a scalar, an empty tensor and one that is not contiguous."""
    draw = torch.Generator().manual_seed(step)
    odd = torch.randn(5, size, generator=draw).T
    kinds = {str(d)[6:]: odd.to(d) for d in checkpoint.DTYPES}
    edge = {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "ü": torch.ones(1)}
    config, progress = {"seed": 7, "lr": 1e-3}, {"samples": 12}
    return TrainState(step, 1, {"model": kinds, "optimizer": edge}, config, progress)


def same(one: TrainState, other: TrainState) -> bool:
    return (one.step, one.part, one.config, one.progress) == (
        other.step,
        other.part,
        other.config,
        other.progress,
    ) and all(
        one.tensors[file].keys() == other.tensors[file].keys()
        and all(torch.equal(t, other.tensors[file][name]) for name, t in tensors.items())
        for file, tensors in one.tensors.items()
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    """Bits, shapes, dtypes and JSON; the library's own reader agrees about the files."""
    path = save(tmp_path / "deep/er", state())
    assert same(read(path), state())
    assert read(path).versions["torch"] == torch.__version__
    for name, tensor in load_file(path / "model.safetensors").items():
        assert tensor.dtype == state().tensors["model"][name].dtype
    assert newest_good(tmp_path / "deep/er") == path
    listed = json.loads((path / "manifest.json").read_text())["files"]
    assert sorted(listed) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    for name, one in listed.items():
        words = ["sha256sum", str(path / name)]
        assert subprocess.check_output(words, text=True).split()[0] == one["sha256"]


def test_the_newest_are_kept_by_the_order_of_saving(tmp_path: Path) -> None:
    """A run that went back to an older step is the newest all the same."""
    for step in (10, 20, 30, 15):
        save(tmp_path, state(step), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "save-000003-step-00000030",
        "save-000004-step-00000015",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == [p.name for p in checkpoints(tmp_path)]
    assert newest_good(tmp_path / "nowhere") is None


def test_everything_is_on_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file and the directory are synced, then renamed, then the parent; all before save()
    returns. A crash of the machine could undo anything in another order."""
    events: list[str] = []
    sync, rename = os.fsync, Path.rename

    def fsync(handle: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    def renamed(self: Path, to: Path) -> Path:
        events.append(f"rename {to.name}")
        return rename(self, to)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", renamed)
    path = save(tmp_path / "saves", state())
    new, *files, folder, moved, parent = events
    assert new == tmp_path.name
    assert sorted(files) == sorted(entry.name for entry in path.iterdir())
    assert folder.startswith(f".{path.name}.")
    assert (moved, parent) == (f"rename {path.name}", "saves")


def kills(tmp_path: Path, rounds: int, seed: int) -> None:
    words = [sys.executable, str(HERE / "killed.py"), str(tmp_path / "k"), str(rounds), str(seed)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rounds"] == rounds
    # Otherwise the kills would prove nothing: they must fall into saves.
    assert told["halves"] > rounds // 4
    assert told["told"] >= rounds


def test_a_kill_while_saving_loses_nothing_acknowledged(tmp_path: Path, seed: int) -> None:
    """kill -9 at random points of saving: the newest acknowledged checkpoint loads, whole."""
    kills(tmp_path, 20, seed)


@pytest.mark.soak
def test_200_kills_while_saving(tmp_path: Path, seed: int) -> None:
    """The full count."""
    kills(tmp_path, 200, seed)


def flips(tmp_path: Path, count: int, seed: int) -> None:
    old, new = (save(tmp_path, state(step, 7)) for step in (1, 2))
    draw, files = random.Random(seed), sorted(new.iterdir())
    for i in range(count):
        file = files[i % len(files)]
        content = file.read_bytes()
        # The manifest itself is small, and every one of its bits is equally suspicious.
        bit = draw.randrange(8 * len(content))
        mutated = bytearray(content)
        mutated[bit // 8] ^= 1 << bit % 8
        file.write_bytes(mutated)
        said: list[str] = []
        assert newest_good(tmp_path, said.append) == old, (file.name, bit)
        assert len(said) == 1
        assert "falling back" in said[0]
        file.write_bytes(content)
    assert newest_good(tmp_path) == new


def test_a_flipped_bit_is_detected(tmp_path: Path, seed: int) -> None:
    """In any file, the manifest too: the run falls back to the one before and says so."""
    flips(tmp_path, 200, seed)


@pytest.mark.soak
def test_2000_flipped_bits_are_detected(tmp_path: Path, seed: int) -> None:
    """The full count."""
    flips(tmp_path, 2000, seed)


@pytest.mark.soak
def test_every_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    """All of them, one after the other."""
    path = save(tmp_path, state(1, 7))
    file = path / "manifest.json"
    content = file.read_bytes()
    for bit in range(8 * len(content)):
        mutated = bytearray(content)
        mutated[bit // 8] ^= 1 << bit % 8
        file.write_bytes(mutated)
        with pytest.raises(CheckpointError, match=r"manifest\.json|missing"):
            verify(path)


def test_truncated_and_missing_files_are_detected(tmp_path: Path) -> None:
    """Every file, cut to nothing, by one byte, lengthened by one, or gone."""
    old, new = (save(tmp_path, state(step)) for step in (1, 2))
    for file in sorted(new.iterdir()):
        content = file.read_bytes()
        for changed in (b"", content[:-1], content + b"\n", None):
            file.unlink() if changed is None else file.write_bytes(changed)
            said: list[str] = []
            assert newest_good(tmp_path, said.append) == old
            assert str(file) in said[0] or new.name in said[0]
            file.write_bytes(content)
    shutil.rmtree(new)
    new.mkdir()
    assert newest_good(tmp_path, lambda text: None) == old


def test_the_fall_back_is_loud_and_a_run_without_a_good_one_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Starting over in silence would throw days away; a run says what to do."""
    paths = [save(tmp_path, state(step)) for step in (1, 2)]
    (paths[1] / "state.json").write_text("{}")
    assert newest_good(tmp_path) == paths[0]
    assert "*** vlakern: checkpoint save-000002-step-00000002 cannot" in capsys.readouterr().err
    (paths[0] / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints in .* is undamaged"):
        newest_good(tmp_path)


def test_damaged_ones_do_not_push_out_the_good(tmp_path: Path) -> None:
    """What is newer than the good one no longer counts, is kept aside, and numbers go on."""
    paths = [save(tmp_path, state(step), keep=2) for step in (1, 2)]
    (paths[1] / "state.json").write_text("{}")
    checkpoint.set_aside(tmp_path, paths[0])
    assert checkpoints(tmp_path) == paths[:1]
    assert (tmp_path / f"{paths[1].name}.damaged").is_dir()
    save(tmp_path, state(2), keep=2)
    assert [read(path).step for path in checkpoints(tmp_path)] == [1, 2]
    checkpoint.check_directory(tmp_path)


def put_file(path: Path) -> None:
    (path / "notes.txt").write_text("mine")


def put_link(path: Path) -> None:
    (path / "state.json").rename(path.parent / "elsewhere.json")
    (path / "state.json").symlink_to(path.parent / "elsewhere.json")


def another_format(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))


def a_pickle(path: Path) -> None:
    """A manifest in order that names a file of another kind."""
    (path / "evil.pkl").write_bytes(b"x")
    hashes = checkpoint._read_manifest(path)
    hashes["evil.pkl"] = (1, checkpoint._digest(path / "evil.pkl"))
    (path / "manifest.json").write_bytes(checkpoint._manifest(hashes))


def huge_manifest(path: Path) -> None:
    (path / "manifest.json").write_bytes(b" " * (1 << 21))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put_file, r"notes\.txt is not in the manifest"),
        (put_link, r"state\.json is not a plain file"),
        (another_format, r"manifest\.json: format 2, this version reads 1"),
        (a_pickle, r"names 'evil\.pkl', which no checkpoint holds"),
        (huge_manifest, r"is larger than"),
        (shutil.rmtree, r"is not a checkpoint: it has no manifest\.json"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_strange_files_are_refused(tmp_path: Path, change: object, sentence: str) -> None:
    """In one sentence that names the file."""
    path = save(tmp_path, state())
    assert callable(change)
    change(path)
    with pytest.raises(CheckpointError, match=sentence):
        read(path)


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    """Old checkpoints are deleted there; nothing else may be near."""
    save(tmp_path, state())
    (tmp_path / ".save-000002-half").mkdir()
    checkpoint.check_directory(tmp_path)
    checkpoint.check_directory(tmp_path / "absent")
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(CheckpointError, match=r"holds 'thesis\.tex', which is not a checkpoint"):
        checkpoint.check_directory(tmp_path)
    with pytest.raises(CheckpointError, match="is not a directory"):
        checkpoint.check_directory(tmp_path / "thesis.tex")
    with pytest.raises(CheckpointError, match=r"'w' is torch\.complex64, which is not stored"):
        save(tmp_path, TrainState(1, 0, {"model": {"w": torch.zeros(1, dtype=torch.complex64)}}))


def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever write the space ends in: the error is raised, nothing half-written stays."""
    good = save(tmp_path, state(1))
    put = checkpoint._put
    for last in range(6):
        left = iter(range(last))

        def full(file: object, block: bytes, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise OSError(28, "No space left on device")
            put(file, block)  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(checkpoint, "_put", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, state(2))
        assert list(tmp_path.iterdir()) == [good]
        assert newest_good(tmp_path) == good


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs; the injected error covers the same code")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    """The third checkpoint of 400 kB does not fit in 1 MiB; the second stays and verifies."""
    big = {"model": {"w": torch.zeros(100_000)}}
    save(small_disk, TrainState(1, 0, big))
    second = save(small_disk, TrainState(2, 0, big))
    with pytest.raises(OSError, match="No space left"):
        save(small_disk, TrainState(3, 0, big))
    assert newest_good(small_disk) == second
    assert len(list(small_disk.iterdir())) == 2
