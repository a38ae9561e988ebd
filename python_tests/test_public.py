"""The flat public names: they resolve, they are lazy, and they are the only ones."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import vlakern

HEAVY = ("torch", "numpy", "mujoco", "metaworld", "pyarrow", "av", "triton", "scipy")


def modules() -> list[str]:
    """Every Python module of the package, by full name."""
    root = Path(vlakern.__file__).parents[1]
    paths = sorted(Path(vlakern.__file__).parent.rglob("*.py"))
    parts = [path.relative_to(root).with_suffix("").parts for path in paths]
    return [".".join(names).removesuffix(".__init__") for names in parts]


def loaded_by(statement: str) -> set[str]:
    """The heavy packages in a fresh interpreter after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*[n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("name", modules())
def test_all_resolves(name: str) -> None:
    """Every name in a module's ``__all__`` is there, and listed once."""
    module = importlib.import_module(name)
    for public in module.__all__:
        assert getattr(module, public) is not None
    assert len(set(module.__all__)) == len(module.__all__)


def test_public_names_live_where_their_rooms_are() -> None:
    """A public name is the very object of its room, not a copy."""
    from vlakern import errors, ops, types
    from vlakern.infer import policy

    assert vlakern.load is policy.load
    assert vlakern.Policy is policy.Policy
    assert vlakern.explain is ops.explain
    assert vlakern.Observation is types.Observation
    assert vlakern.ActionChunk is types.ActionChunk
    for name in errors.__all__:
        assert getattr(vlakern, name) is getattr(errors, name)


def test_every_error_is_one_that_the_command_line_catches() -> None:
    """All errors share one base, and wrong input is also a ValueError."""
    from vlakern import errors

    assert all(issubclass(getattr(errors, n), errors.VlakernError) for n in errors.__all__)
    assert issubclass(errors.InputError, ValueError)


def test_dir_shows_the_public_names_before_they_are_used() -> None:
    """Tab completion sees the lazy names."""
    assert set(vlakern.__all__) <= set(dir(vlakern))


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that is not public says so."""
    with pytest.raises(AttributeError, match="module 'vlakern' has no attribute 'lod'"):
        vlakern.lod  # type: ignore[attr-defined]  # noqa: B018


def test_import_is_light() -> None:
    """``import vlakern`` loads nothing heavy, not even numpy."""
    assert loaded_by("import vlakern; vlakern.VlakernError; vlakern.__version__") == set()


def test_command_line_import_is_light() -> None:
    """The command line's import loads none of the packages that only some verbs need."""
    assert loaded_by("import vlakern.cli") <= {"numpy"}


def test_the_probe_sees_heavy_imports() -> None:
    """The two tests above would notice an import."""
    assert "numpy" in loaded_by("import vlakern; vlakern.Observation")


def test_version_without_an_installation(tmp_path: Path) -> None:
    """A source tree that is not installed says so in its version."""
    tree = tmp_path / "vlakern"
    tree.mkdir()
    source = Path(vlakern.__file__).read_text()
    (tree / "__init__.py").write_text(source)
    code = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
    code += f"sys.path.insert(0, {str(tmp_path)!r})\nimport vlakern\nprint(vlakern.__version__)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "0+source", done.stderr
