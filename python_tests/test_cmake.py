"""C++ programs against the installed package: find_package, both examples, and Python's actions."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import vlakern
from vlakern import cmake
from vlakern.models import VLA, VLAConfig, preset
from vlakern.models.weights import native
from vlakern.types import ActionPrefix, Observation

ROOT = Path(__file__).parents[1]
SHIPPED = Path(vlakern.__file__).parent / "policies" / "metaworld-small"
WORDS = "push the puck to the goal"

PROJECT = f"""
cmake_minimum_required(VERSION 3.20...3.31)
project(users LANGUAGES CXX)
find_package(vlakern 0.1 REQUIRED)
add_subdirectory({ROOT}/examples/cpp_native_loop native)
add_executable(policy_act {ROOT}/csrc/tests/policy_act.cpp)
target_link_libraries(policy_act PRIVATE vlakern::engine)
"""


def run(*words: str | Path, code: int = 0, **changes: str) -> str:
    """Output of a program, or its errors where it is expected to fail."""
    environment = os.environ | changes
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def cmake_program() -> str:
    """Path of CMake; Debian's package is installed if it is not there."""
    if shutil.which("cmake") is None and shutil.which("apt-get"):
        prefix = [] if os.getuid() == 0 else ["sudo", "-n"]
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-yqq", "cmake"]):
            subprocess.run([*prefix, *command], check=True, stdout=subprocess.DEVNULL)
    return shutil.which("cmake") or pytest.fail("cmake is not installed; install it")


def build(source: Path, folder: Path, *options: str) -> Path:
    program, strict = cmake_program(), "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"
    run(program, "-S", source, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", strict, *options)
    run(program, "--build", folder, "--parallel", "2")
    return folder


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native example and the program that acts once, built against the installed package."""
    folder = tmp_path_factory.mktemp("users")
    (folder / "CMakeLists.txt").write_text(PROJECT)
    return build(folder, folder / "build", f"-DCMAKE_PREFIX_PATH={vlakern.cmake_prefix()}")


def test_without_the_package_it_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what to run."""
    monkeypatch.setattr(cmake, "FOLDER", tmp_path)
    with pytest.raises(vlakern.Unsupported, match="holds no C\\+\\+ package: run `pip install"):
        vlakern.cmake_prefix()


def act_in_cpp(
    programs: Path,
    directory: Path,
    dtype: str,
    sides: tuple[int, int],
    prefix: ActionPrefix | None = None,
) -> float:
    """Largest difference between C++'s actions and those of ``policy.act``."""
    work, policy = programs.parent, vlakern.load(directory, device="cpu", dtype=dtype)
    rng = np.random.default_rng(5)
    images = {view: rng.integers(0, 256, (*sides, 3), dtype=np.uint8) for view in policy.views}
    state = np.array([0.02, 0.6, 0.2, 1.0])
    expected = policy.act(Observation(images, state, WORDS), seed=3, prefix=prefix).actions
    shape = (policy.chunk, policy.space.action_mask.size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3)).numpy()
    (work / "given").write_bytes(state.tobytes() + noise.tobytes() + content(prefix))
    words: list[str | Path] = [programs / "policy_act", directory, dtype, WORDS, work / "given"]
    words.append(work / "out")
    for view, image in images.items():
        (work / view).write_bytes(image.tobytes())
        words += [view, str(sides[0]), str(sides[1]), work / view]
    run(*words)
    found = np.fromfile(work / "out", np.float32).reshape(expected.shape)
    return float(np.abs(found - expected).max())


def content(prefix: ActionPrefix | None) -> bytes:
    """As ``policy_act`` reads it."""
    if prefix is None:
        return b""
    facts = np.array([("frozen", "cheap").index(prefix.form), prefix.frozen], np.int32)
    return facts.tobytes() + np.asarray(prefix.actions, np.float32).tobytes()


def decided(steps: int) -> np.ndarray:
    """Commands of Meta-World's arm."""
    return np.random.default_rng(9).uniform(-1, 1, (steps, 4)).astype(np.float32)


PREFIXES = {
    "frozen": ActionPrefix(decided(9), 3),
    "led": ActionPrefix(decided(9), 3, "cheap"),
    "led to more than a chunk": ActionPrefix(decided(40), 0, "cheap"),
    "led to nothing": ActionPrefix(decided(0), 0, "cheap"),
}


@pytest.mark.ci
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", PREFIXES)
def test_cpp_goes_on_from_a_prefix_as_python_does(programs: Path, dtype: str, name: str) -> None:
    """Actions that were decided before, in the robot's own numbers: the same bits in both forms."""
    assert act_in_cpp(programs, SHIPPED, dtype, (96, 96), PREFIXES[name]) == 0.0
    policy = vlakern.load(SHIPPED, device="cpu", dtype=dtype)
    images = {view: np.full((96, 96, 3), 90, np.uint8) for view in policy.views}
    seen = Observation(images, np.array([0.02, 0.6, 0.2, 1.0]), WORDS)
    free, found = (policy.act(seen, seed=3, prefix=one).actions for one in (None, PREFIXES[name]))
    assert np.array_equal(free, found) == (name == "led to nothing")


@pytest.mark.ci
@pytest.mark.parametrize(
    ("prefix", "sentence"),
    [
        (ActionPrefix(decided(2), 3), "at most as many as there are"),
        (ActionPrefix(decided(40), 17), "and a chunk's 16"),
        (ActionPrefix(decided(2), -1, "cheap"), "-1 frozen actions"),
        (ActionPrefix(decided(2)[:, :3], 0, "cheap"), "6 numbers and 0 frozen actions, expected"),
        (ActionPrefix(decided(2) * np.nan, 1, "cheap"), "of step 0 (slot"),
    ],
)
def test_cpp_refuses_a_prefix_that_does_not_fit(
    programs: Path, prefix: ActionPrefix, sentence: str, tmp_path: Path
) -> None:
    """In one sentence."""
    policy = vlakern.load(SHIPPED, device="cpu")
    state, noise = np.zeros(4), np.zeros((policy.chunk, policy.space.action_mask.size), np.float32)
    (tmp_path / "given").write_bytes(state.tobytes() + noise.tobytes() + content(prefix))
    words = (programs / "policy_act", SHIPPED, "fp32", WORDS, tmp_path / "given", tmp_path / "out")
    said = run(*words, code=1)
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.ci
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("sides", [(96, 96), (120, 161)])
def test_cpp_acts_as_python_does(programs: Path, dtype: str, sides: tuple[int, int]) -> None:
    """Same directory, observation and noise: the same bits, with weights that C++ packed."""
    assert act_in_cpp(programs, SHIPPED, dtype, sides) == 0.0


def tagged(config: VLAConfig) -> VLAConfig:
    return dataclasses.replace(config, state_dim=4, action_dim=4, chunk=16)


def semantic(config: VLAConfig) -> VLAConfig:
    """A state of the semantic expert behind one product, another solver, slots that are masked."""
    return dataclasses.replace(
        tagged(config), state="semantic", state_encoder="linear", action_decoder="linear",
        solver="heun", steps=3, unused_slots="zero",
    )  # fmt: skip


@pytest.mark.ci
@pytest.mark.parametrize("change", [tagged, semantic])
def test_cpp_packs_other_networks(
    programs: Path, change: Callable[[VLAConfig], VLAConfig], tmp_path: Path
) -> None:
    """Class tokens, patches without a stem, words around images: fp32 actions within 1e-5."""
    records, config = native.read_records(SHIPPED), change(preset("tiny"))
    torch.manual_seed(2)
    model = VLA(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    parts = {field.name: getattr(records, field.name) for field in dataclasses.fields(records)}
    del parts["config"]
    native.write(tmp_path / "made", native.PolicyFiles(model, **parts), torch.float32)
    for prefix in (None, PREFIXES["led"]):
        assert act_in_cpp(programs, tmp_path / "made", "fp32", (50, 40), prefix) < 1e-5


@pytest.mark.ci
def test_cpp_spells_as_the_tokenizer_does(programs: Path) -> None:
    """Byte-level BPE of ASCII text: contractions, runs of spaces, digits and signs."""
    tokenizer = native.read_records(SHIPPED).tokenizer
    texts = (WORDS, "it's  3   pucks,\tnow!", "  go ", "a_b{c}'ll 12x'LL", "x\n\n y", "\x7f~")
    for text in texts:
        spelt = run(programs / "policy_act", SHIPPED, "fp32", text).split()
        assert list(map(int, spelt)) == tokenizer.encode(text), text
    refused = run(programs / "policy_act", SHIPPED, "fp32", "öffne", code=1)
    assert refused.count("\n") == 1
    assert "not ASCII" in refused


def _header(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return damage


def _config(old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return damage


def _weights(content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(content(path.read_bytes()))

    return damage


NAME = "vision.patch.bias"
DAMAGES = {
    "truncated": (_weights(lambda b: b[:-9]), "do not end where it ends"),
    "claims": (_weights(lambda b: (1 << 40).to_bytes(8, "little") + b[8:]), "claims"),
    "not a number": (_weights(lambda b: b[:-2] + b"\xc0\x7f"), "not finite"),
    "overlap": (_header(lambda h: h[NAME].update(data_offsets=[0, 384])), "overlap"),
    "absurd": (_header(lambda h: h[NAME].update(shape=[0, 1 << 48, 9])), "not described"),
    "misshapen": (_header(lambda h: h[NAME].update(shape=[96, 2])), "config.json needs"),
    "renamed": (_header(lambda h: h.update(x=h.pop(NAME))), f"lacks tensor '{NAME}'"),
    "twice": (_config('"format": 2', '"format": 2, "format": 2'), "is there twice"),
    "infinite": (_config('"eps": 1e-06', '"eps": 1e999'), "beyond fp64"),
    "deep": (_config('"format": 2', '"format": ' + "[" * 99), "nested deeper"),
    "unknown": (_config('"format": 2', '"format": 2, "rank": 7'), "unknown key"),
    "too many": (_config('"layers": 3', '"layers": 5000'), "whole number from 1 to 1024"),
    "frame": (_config('"frame": "native"', '"frame": "eef_delta"'), "run this policy from Python"),
    "missing": (lambda folder: (folder / "stats.json").unlink(), "stats.json is missing"),
}


@pytest.mark.ci
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_directory_is_one_sentence(programs: Path, name: str, tmp_path: Path) -> None:
    """Whatever is wrong is said in a line, and nothing crashes."""
    damage, sentence = DAMAGES[name]
    shutil.copytree(SHIPPED, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    said = run(programs / "policy_act", tmp_path / "damaged", "fp32", WORDS, code=1)
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.ci
def test_random_damage_is_read_or_refused(tmp_path: Path) -> None:
    """800 variants each of a weights file, a config and a tokenizer, under sanitizers."""
    names = ("json", "bytes", "weights_file", "config", "tokenizer")
    sources = [ROOT / "csrc/tests/policy_files_test.cpp"]
    sources += [ROOT / f"csrc/policy/{name}.cpp" for name in names]
    sanitizers = "-fsanitize=address,undefined"
    flags = ["-std=c++17", "-O1", "-g1", sanitizers, "-fno-sanitize-recover=all"]
    run("g++", *flags, "-I", ROOT / "csrc", *sources, "-o", tmp_path / "test")
    said = run(tmp_path / "test", SHIPPED, tmp_path, "800")
    for passed, refused in re.findall(r"(\d+) read, (\d+) refused", said):
        assert int(passed) + int(refused) == 800
        assert int(refused) > 400
    assert said.count("refused") == 3


def check_ticks(said: str, seconds: float) -> None:
    """Every tick of the time was sent or counted as missed; most were sent."""
    found = re.search(r"ticks: (\d+) at 200 Hz, missed (\d+)", said)
    assert found, said
    ticks, missed = map(int, found.groups())
    assert ticks + missed >= 0.95 * 200 * seconds, said
    assert ticks >= 0.5 * (ticks + missed), said


@pytest.mark.ci
def test_the_native_loop_drives_its_arm(programs: Path) -> None:
    """The example loads the shipped policy without Python and keeps its tick."""
    said = run(programs / "native/cpp_native_loop", SHIPPED, "1.5")
    check_ticks(said, 1.5)
    assert int(re.findall(r"chunks begun: (\d+)", said)[0]) >= 2
    refused = run(programs / "native/cpp_native_loop", "nowhere", code=1)
    assert "config.json is missing" in refused


@pytest.mark.ci
def test_the_control_loop_ticks_while_python_infers(tmp_path: Path) -> None:
    """A C++ program with an embedded policy sends its commands while Python has the lock."""
    pybind11 = pytest.importorskip("pybind11")
    prefixes = f"{vlakern.cmake_prefix()};{pybind11.get_cmake_dir()}"
    source, options = ROOT / "examples/cpp_control_loop", [f"-DPython_EXECUTABLE={sys.executable}"]
    folder = build(source, tmp_path, *options, f"-DCMAKE_PREFIX_PATH={prefixes}")
    said = run(folder / "cpp_control_loop", "metaworld-small", "2", OMP_NUM_THREADS="1")
    check_ticks(said, 2.0)
    assert int(re.findall(r"made (\d+) chunks", said)[0]) >= 2


@pytest.mark.ci
def test_the_libraries_build_without_python(tmp_path: Path) -> None:
    """-DVLAKERN_PYTHON=OFF looks for no Python, and the executor builds by itself."""
    program, folder = cmake_program(), tmp_path / "build"
    run(program, "-S", ROOT, "-B", folder, "-DVLAKERN_PYTHON=OFF")
    assert "Python_EXECUTABLE" not in (folder / "CMakeCache.txt").read_text()
    run(program, "--build", folder, "--parallel", "2", "--target", "vlakern_executor")
    assert (folder / "libvlakern_executor.a").exists()
