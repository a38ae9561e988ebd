"""Longer proofs of the native code: sanitizers, another processor, every CUDA target."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlakern.ops.ode_step.cases import BENCH, CASES, Case
from vlakern.ops.ode_step.reference import STAGES

pytestmark = pytest.mark.ci

ROOT = Path(__file__).parents[2]
CUDA_ARCHS = (80, 87, 90, 100, 110, 120)
CUDA_SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/*/*.cu"))


def line(case: Case) -> str:
    """A case as the host test program reads it."""
    stage = STAGES[case.stage]
    dtypes = [str(one).removeprefix("torch.") for one in (case.x_dtype, case.v_dtype)]
    gap, step = {"dense": (0, 1), "padded": (3, 1), "slots apart": (0, 2)}[case.layout]
    flags = [bool(case.frozen), bool(case.mask), case.per_position]
    sizes = [case.rows, case.positions, case.slots]
    return " ".join(map(str, [*sizes, *dtypes, *stage, *map(int, flags), gap, step]))


LARGE = tuple(case for case in BENCH if case.rows == 64)  # enough for several threads
INPUT = "\n".join(line(case) for case in (*CASES, *LARGE))


def tool(name: str, *packages: str) -> str:
    """Path of a program; Debian's packages are installed if it is not there."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name) or (str(beside) if beside.exists() else None)
    if found is None and packages and shutil.which("apt-get"):
        prefix = [] if os.getuid() == 0 else ["sudo", "-n"]
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-yqq", *packages]):
            subprocess.run([*prefix, *command], check=True, stdout=subprocess.DEVNULL)
        found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed; install {' '.join(packages) or name}")
    return found


def build_host_test(folder: Path, *options: str) -> Path:
    """The C++ test program, with warnings as errors."""
    cmake = tool("cmake", "cmake")
    configure = ["-DVLAKERN_PYTHON=OFF", "-DVLAKERN_TESTS=ON", "-DVLAKERN_WERROR=ON", *options]
    build = ["--build", str(folder), "--parallel", str(os.cpu_count() or 1)]
    for command in (["-S", str(ROOT), "-B", str(folder), *configure], build):
        done = subprocess.run([cmake, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "vlakern_host_test"


def run_host_test(*command: str) -> str:
    done = subprocess.run(command, input=INPUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_action_decode(*command: str) -> None:
    """Tables in range decode to what the formulas say, every other table is refused."""
    decoded, refused = re.findall(r"\d+", run_host_test(*command))
    assert int(decoded) >= 500
    assert int(refused) >= 10_000


def check_image_prep(*command: str) -> None:
    """Random problems come out as computed one by one, broken ones are refused."""
    assert run_host_test(*command) == "300 problems, 300 broken ones refused\n"


def check_shared_attention(*command: str) -> None:
    """Random documents give the sums in double, and the same bits on one and three threads."""
    assert run_host_test(*command, "40").startswith("40 problems:")


def check_linear(*command: str) -> list[str]:
    """Random products and layers are right on every instruction set; returns the sets."""
    listed = run_host_test(*command)
    assert listed.startswith("150 problems:")
    return listed.split(":")[1].split()


def check_flow_loss(*command: str) -> None:
    """Random problems have the scalar kernel's bits on every instruction set."""
    listed = run_host_test(*command)
    assert listed.startswith("200 problems:")
    assert listed.split()[-1] == "scalar"


def check_ode_loop(program: Path) -> None:
    """The integration's device code, its warps as threads, gives what the formulas give; and what
    forgets a wait, a sync or a meeting of all blocks does not."""
    assert run_host_test(str(program), "7") == "7 problems\n"
    for mistake in ("wait", "sync", "meeting"):
        done = subprocess.run([str(program), "2", mistake], capture_output=True)
        assert done.returncode != 0, mistake


def check_rows(program: Path, *emulator: str) -> None:
    """norm and qkv_prep: values in double, and the scalar bits of values and gradients."""
    for op, said in (("norm", "60 norms\n"), ("qkv_prep", "60 preparations\n")):
        test = program.with_name(f"vlakern_{op}_test")
        assert run_host_test(*emulator, str(test), "60") == said


def check_executor(program: Path) -> None:
    """Commands stay inside their limits, ends of inference are met in time, threads do not race."""
    lines = run_host_test(str(program.with_name("vlakern_executor_test")), "300").splitlines()
    assert [line.split(":")[0] for line in lines] == ["limits", "watchdog", "threads"]


def check_executor_faults(program: Path, strikes: int) -> None:
    """Numbers that are spoilt on their way to the sink do not reach it; calls come in any order."""
    test = str(program.with_name("vlakern_executor_faults_test"))
    lines = run_host_test(test, str(strikes)).splitlines()
    assert [line.split(":")[0] for line in lines] == ["faults", "orders", "sinks", "lifecycle"]
    struck = [int(one) for one in re.findall(r"\d+", lines[0])]
    assert sum(struck) >= strikes
    assert min(struck) > 0.2 * strikes


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers(sanitizers: str, tmp_path: Path) -> None:
    """Every instruction set of this machine runs every case clean, on one and three threads."""
    flags = f"-fsanitize={sanitizers} -fno-sanitize-recover=all"
    # Little optimisation and line numbers only: the kernels are many, and a sanitizer is slow.
    fast = "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1"
    kind = "-DCMAKE_BUILD_TYPE=RelWithDebInfo"
    program = build_host_test(tmp_path, kind, fast, f"-DCMAKE_CXX_FLAGS={flags}")
    listed = run_host_test(str(program))
    assert listed.startswith(f"{len(CASES) + len(LARGE)} cases:")
    assert listed.split()[-1] == "scalar"
    check_action_decode(str(program.with_name("vlakern_action_decode_test")))
    check_image_prep(str(program.with_name("vlakern_image_prep_test")))
    check_shared_attention(str(program.with_name("vlakern_shared_attention_test")))
    check_flow_loss(str(program.with_name("vlakern_flow_loss_test")))
    assert check_linear(str(program.with_name("vlakern_linear_test")))[-1] == "scalar"
    check_ode_loop(program.with_name("vlakern_ode_loop_test"))
    check_rows(program)
    check_executor(program)
    check_executor_faults(program, 4000)


def test_aarch64_under_emulation(tmp_path: Path) -> None:
    """The NEON kernels give the scalar kernel's bits on an emulated AArch64."""
    compiler = tool("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    emulator = tool("qemu-aarch64-static", "qemu-user-static")
    program = build_host_test(
        tmp_path,
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={compiler}",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    )
    listed = run_host_test(emulator, str(program))
    assert listed.split(":")[1].split() == ["neon", "scalar"]
    check_action_decode(emulator, str(program.with_name("vlakern_action_decode_test")))
    check_image_prep(emulator, str(program.with_name("vlakern_image_prep_test")))
    check_shared_attention(emulator, str(program.with_name("vlakern_shared_attention_test")))
    check_flow_loss(emulator, str(program.with_name("vlakern_flow_loss_test")))
    program = program.with_name("vlakern_linear_test")
    assert check_linear(emulator, str(program)) == ["neon", "scalar"]
    check_rows(program, emulator)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler here")
@pytest.mark.parametrize("source", CUDA_SOURCES)
def test_cuda_compiles_without_spills(source: str, tmp_path: Path) -> None:
    """Every CUDA file compiles for every target, and no kernel uses local memory."""
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in CUDA_ARCHS]
    warnings = ["-Xptxas", "-v", "-Xcompiler", "-Wall", "--Werror", "all-warnings"]
    options = ["-std=c++17", "-O3", "--fmad=false", "--threads", "0", "-I", str(ROOT / "csrc")]
    output = [*warnings, "-c", str(ROOT / source), "-o", str(tmp_path / "object.o")]
    done = subprocess.run(["nvcc", *options, *targets, *output], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", done.stderr)
    built = set(re.findall(r"for 'sm_(\d+)'", done.stderr))
    assert built == {str(arch) for arch in CUDA_ARCHS}
    assert len(spills) >= len(CUDA_ARCHS)
    assert set(spills) == {("0", "0")}
