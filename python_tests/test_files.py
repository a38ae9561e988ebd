"""Atomic writing: the old content or the new, never half, never a stray file."""

import json
import os
import stat
from pathlib import Path

import pytest

from vlakern import files


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_write_creates_folders_and_replaces(tmp_path: Path) -> None:
    """A file is created with its folders, then replaced, and nothing else is left."""
    path = tmp_path / "a/b/c.bin"
    files.write_bytes(path, b"old")
    files.write_bytes(path, b"new")
    assert content(tmp_path) == {"a/b/c.bin": b"new"}


def test_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    """An error while writing leaves the old file and no temporary one."""
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def half(temporary: Path) -> None:
        temporary.write_bytes(b"ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.write_file(path, half)
    assert content(tmp_path) == {"x": b"old"}


def test_interrupted_write_leaves_no_file(tmp_path: Path) -> None:
    """Ctrl-C while writing leaves nothing behind."""

    def interrupt(temporary: Path) -> None:
        temporary.write_bytes(b"ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_file(tmp_path / "x", interrupt)
    assert content(tmp_path) == {}


def test_old_content_is_in_place_while_the_new_is_written(tmp_path: Path) -> None:
    """A reader sees the old file until the new one is complete, with the same suffix beside it."""
    path = tmp_path / "x.json"
    path.write_bytes(b"old")
    seen: list[tuple[bytes, str]] = []

    def fill(temporary: Path) -> None:
        temporary.write_bytes(b"new")
        seen.append((path.read_bytes(), temporary.suffix))

    files.write_file(path, fill)
    assert seen == [(b"old", ".json")]
    assert path.read_bytes() == b"new"


def test_data_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is flushed to disk while it still has its temporary name, the folder afterwards."""
    synced: list[bool] = []
    path = tmp_path / "x"
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(path.exists()), real(handle))[1])
    files.write_bytes(path, b"1")
    assert synced == [False, True]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_file_mode_follows_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    """A new file has the permissions that open() would have given it."""
    before = os.umask(umask)
    try:
        files.write_bytes(tmp_path / "x", b"")
        with files.atomic_directory(tmp_path / "d"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o777 & ~umask


def test_json_is_readable_and_finite(tmp_path: Path) -> None:
    """JSON comes back as it went in; NaN is refused and leaves nothing."""
    path = tmp_path / "x.json"
    files.write_json(path, {"a": [1, None, "ü"]})
    assert json.loads(path.read_text()) == {"a": [1, None, "ü"]}
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "nan.json", {"a": float("nan")})
    assert list(content(tmp_path)) == ["x.json"]


def test_directory_appears_complete(tmp_path: Path) -> None:
    """A directory is absent until the block ends, then holds everything."""
    target = tmp_path / "deep/out"
    with files.atomic_directory(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub/a").write_bytes(b"1")
        assert not target.exists()
    assert content(tmp_path) == {"deep/out/sub/a": b"1"}


def test_directory_replaces_the_old_one(tmp_path: Path) -> None:
    """Nothing of the old directory survives, and nothing temporary either."""
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_bytes(b"0")
    with files.atomic_directory(target) as folder:
        (folder / "new").write_bytes(b"1")
        assert (target / "old").exists()
    assert content(tmp_path) == {"out/new": b"1"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_failed_directory_keeps_the_old_one(tmp_path: Path) -> None:
    """An error inside the block leaves the old directory and no temporary one."""
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_bytes(b"0")

    def fill() -> None:
        with files.atomic_directory(target) as folder:
            (folder / "new").write_bytes(b"1")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fill()
    assert content(tmp_path) == {"out/old": b"0"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_failed_swap_puts_the_old_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the new directory cannot take the name, the old one gets it back."""
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_bytes(b"0")
    real = Path.rename

    def rename(self: Path, to: Path) -> Path:
        if self.is_dir() and (self / "new").exists():
            raise OSError(5, "Input/output error")
        return real(self, to)

    def fill() -> None:
        with files.atomic_directory(target) as folder:
            (folder / "new").write_bytes(b"1")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        fill()
    assert content(tmp_path) == {"out/old": b"0"}
