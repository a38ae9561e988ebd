"""The wheel for every supported Python: builds without torch, is small, computes without torch."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

SOAK = pytest.mark.soak

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
LARGEST = 20 * 2**20  # [bytes]

# x + dtau * v with one frozen position and one absent slot, through the native module alone.
COMPUTE = """
import sys
import numpy as np
import vlakern
import vlakern._native as native

def view(a):
    return a.ctypes.data, a.dtype.name, a.shape, tuple(s // a.itemsize for s in a.strides)

B, H, A = 3, 5, 7
rng = np.random.default_rng(0)
x, v, frozen = (rng.standard_normal((B, H, A)).astype("float32") for _ in range(3))
tau, dtau = np.zeros((B, 1), "float32"), np.array([0.25, 0.5, 1.0], "float32")
frozen_len = np.array([0, 1, H], "int32")
mask = np.ones((B, A), "uint8")
mask[:, 3] = 0
expected = np.where(mask[:, None, :] == 1, x + dtau[:, None, None] * v, x)
expected = np.where(np.arange(H)[None, :, None] < frozen_len[:, None, None], frozen, expected)
for isa in native.isas():
    out, tau_out = np.full_like(x, np.nan), np.full_like(tau, np.nan)
    native.ode_step(
        view(x), view(v), None, view(tau), view(dtau), view(frozen), view(frozen_len), view(mask),
        view(out), view(tau_out), False, (0.0, 1.0, 1.0), isa, 1,
    )
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6, err_msg=isa)
    np.testing.assert_array_equal(tau_out[:, 0], dtau, err_msg=isa)
assert "torch" not in sys.modules
print("isas", *native.isas())
"""


def run(*words: str | Path, cwd: Path) -> str:
    """Runs a command away from the checkout's modules; its output, or a failure that shows it."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(w) for w in words], cwd=cwd, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def interpreter(version: str) -> Path | None:
    """A Python of this version, from PATH or pyenv, if this machine has one."""
    candidates = [shutil.which(f"python{version}")]
    candidates += sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2], sys.executable)"
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.startswith(f"{version} "):
            return Path(done.stdout.split(maxsplit=1)[1].strip())
    return None


def environment(python: Path, folder: Path) -> Path:
    """A fresh virtual environment's Python."""
    run(python, "-m", "venv", folder, cwd=folder.parent)
    return folder / "bin/python"


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    version = next(version for version in PYTHONS if interpreter(version))
    python = interpreter(version)
    assert python is not None
    builder = environment(python, folder / "environment")
    run(builder, "-m", "pip", "install", "--quiet", "build", cwd=folder)
    run(builder, "-m", "build", "--sdist", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("vlakern-*.tar.gz")
    return path


# The oldest and the newest; what lies between is built before a release.
@pytest.mark.parametrize(
    "version",
    [
        pytest.param(one, marks=pytest.mark.ci if one in (PYTHONS[0], PYTHONS[-1]) else SOAK)
        for one in PYTHONS
    ],
)
def test_wheel(version: str, sdist: Path, tmp_path: Path) -> None:
    """From the source distribution to numbers: build, install, import and compute without torch."""
    found = interpreter(version)
    if found is None:
        pytest.skip(f"this machine has no Python {version}")
    python = environment(found, tmp_path / "environment")
    run(python, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, sdist, cwd=tmp_path)
    (wheel,) = tmp_path.glob("vlakern-*.whl")
    check_contents(wheel)
    run(python, "-m", "pip", "install", "--quiet", "numpy", cwd=tmp_path)
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
    assert "scalar" in run(python, "-I", "-c", COMPUTE, cwd=tmp_path)
    has_torch = "import importlib.util as u; print(u.find_spec('torch'))"
    assert run(python, "-I", "-c", has_torch, cwd=tmp_path).strip() == "None"


def check_contents(wheel: Path) -> None:
    """Small, with everything the package needs and nothing that only the repository needs."""
    assert wheel.stat().st_size < LARGEST
    names = zipfile.ZipFile(wheel).namelist()
    assert all(name.startswith(("vlakern/", "vlakern-")) for name in names)
    strangers = [name for name in names if name.endswith((".cpp", ".cu", ".h", ".cuh", ".pyc"))]
    # Those that C++ programs include, see vlakern.cmake.
    strangers = [name for name in strangers if not name.startswith("vlakern/cpp/include/vlakern/")]
    assert "vlakern/cpp/lib/cmake/vlakern/vlakernConfig.cmake" in names
    assert "vlakern/cpp/include/vlakern/policy/policy.h" in names
    strangers += [name for name in names if Path(name).name.startswith(("test_", "conftest"))]
    assert strangers == []
    assert len([name for name in names if name.startswith("vlakern/_native.")]) == 1
    assert "vlakern/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {name for name in names if name.startswith("vlakern/")} >= tracked_package_files()


def tracked_package_files() -> set[str]:
    """The package's files that the repository tracks, none outside a checkout."""
    words = ["git", "-C", str(ROOT), "ls-files", "vlakern"]
    done = subprocess.run(words, capture_output=True, text=True)
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}
