"""``vlakern doctor``: what is installed, what the machine has, and which backends can run."""

import csv
import ctypes.util
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table
from rich.text import Text

from vlakern import __version__, env
from vlakern.cli._common import check_json, commit, console, machine, write_report
from vlakern.errors import ConfigError, VlakernError

__all__ = ["Args", "diagnose", "run"]

# distribution -> the extra that brings it; "" marks a core dependency
PACKAGES = {
    "torch": "",
    "numpy": "",
    "triton": "triton",
    "mujoco": "sim",
    "metaworld": "sim",
    "av": "data",
    "pyarrow": "data",
}
# our name -> names in /proc/cpuinfo, any of which means the CPU has it
FEATURES = {
    "avx2": {"avx2"},
    "avx512f": {"avx512f"},
    "avx512_bf16": {"avx512_bf16"},
    "vnni": {"avx512_vnni", "avx_vnni"},
    "neon": {"asimd", "neon"},
}
# name -> its library and what to install for it
RENDERERS = {
    "egl": ("EGL", "apt install libegl1 libgl1-mesa-dri"),
    "osmesa": ("OSMesa", "apt install libosmesa6"),
}
RENDER_ONCE = """
import mujoco, numpy
from mujoco.{name} import GLContext
context = GLContext(64, 64)
context.make_current()
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom type='plane' size='9 9 1'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
scene, camera = mujoco.MjvScene(model, 10), mujoco.MjvCamera()
mujoco.mjv_defaultFreeCamera(model, camera)
mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, camera, 7, scene)
picture, view = numpy.zeros((64, 64, 3), numpy.uint8), mujoco.MjrRect(0, 0, 64, 64)
drawing = mujoco.MjrContext(model, 100)
mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, drawing)
mujoco.mjr_render(view, scene, drawing)
mujoco.mjr_readPixels(picture, None, view, drawing)
assert picture.std() > 0, "the picture is constant"
"""


@dataclass(frozen=True)
class Args:
    """Say what is installed, what this machine has and which backends can run."""

    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the findings to this file as well."""
    policy: str | None = None
    """A policy: say what int8 or fp8 would cost it, layer by layer and in its actions."""
    dtype: Literal["int8", "fp8"] = "int8"
    """The number format that `policy` is asked about."""
    seed: int = 0
    """Of the observations and noises that `policy` is asked with."""


def run(args: Args) -> int:
    """Prints the findings; returns 0 if a policy can run here, else 1."""
    check_json(args.json)
    found = diagnose()
    _show(found)
    if args.policy is not None:
        from vlakern.cli._quantisation import report

        found |= {"quantisation": report(args.policy, args.dtype, args.seed)}
    if args.json is not None:
        write_report(args.json, args, found)
    problem = _problem(found)
    if problem:
        print(f"vlakern: no policy can run here: {problem}", file=sys.stderr)
        return 1
    return 0


def diagnose() -> dict[str, Any]:
    """Every finding as plain data: the ``doctor`` object of the JSON format without its head."""
    found: dict[str, Any] = {
        "packages": {name: _package(name, extra) for name, extra in PACKAGES.items()},
        "cpu_features": _cpu_features(_cpuinfo()),
        "gpus": _gpus(),
        "renderers": {name: _renderer(name) for name in RENDERERS},
        "environment": {variable.name: env.current(variable.name) for variable in env.VARIABLES},
    }
    return found | _native_and_backends()


def _native_and_backends() -> dict[str, Any]:
    # Here and not above: a doctor must be able to say that torch is missing or broken.
    try:
        from vlakern import ops

        return {"native": ops.native_info(), "backends": ops.verdicts(_device())}
    except (ImportError, VlakernError) as error:
        reason = f"{type(error).__name__}: {error}"
        return {"native": {"built": False, "reason": reason}, "backends": {}, "failure": reason}


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _problem(found: Mapping[str, Any]) -> str:
    """Why no policy can run, ``""`` if one can: every op needs its reference and what is forced."""
    if found.get("failure"):
        return found["failure"]
    try:
        forced = env.backend()
        env.renderer()
    except ConfigError as error:
        return str(error)
    for op, verdicts in found["backends"].items():
        if forced != "auto" and verdicts.get(forced) != "ok":
            return f"VLAKERN_BACKEND={forced}, but {op} says {verdicts.get(forced, 'nothing')!r}"
        if verdicts.get("reference") != "ok":
            return f"the reference of {op} says {verdicts.get('reference', 'nothing')!r}"
    return ""


def _package(name: str, extra: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        what = f"vlakern[{extra}]" if extra else name
        return f"not installed (pip install '{what}')"


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _cpu_features(cpuinfo: str) -> dict[str, bool]:
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    flags = set(lines[0].split()) if lines else set()
    return {name: bool(flags & aliases) for name, aliases in FEATURES.items()}


def _gpus() -> list[dict[str, str]]:
    """One row per GPU that the NVIDIA driver lists: name, driver, capability, memory."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap,memory.total"]
    try:
        answer = subprocess.run(
            [*query, "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return _gpus_of_torch()
    return _parse_gpus(answer.stdout) if answer.returncode == 0 else _gpus_of_torch()


def _parse_gpus(text: str) -> list[dict[str, str]]:
    keys = ("name", "driver", "capability", "memory")
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return [dict(zip(keys, row, strict=True)) for row in rows if row]


def _gpus_of_torch() -> list[dict[str, str]]:
    """What torch sees where ``nvidia-smi`` is missing, as on Jetson."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    rows = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        capability, memory = f"{facts.major}.{facts.minor}", f"{facts.total_memory >> 20} MiB"
        row = {"name": facts.name, "driver": "unknown", "capability": capability, "memory": memory}
        rows.append(row)
    return rows


def _renderer(name: str) -> str:
    """``"ok"`` or the reason; in a process of its own, because a driver may abort the process."""
    if importlib.util.find_spec("mujoco") is None:
        return "mujoco is not installed (pip install 'vlakern[sim]')"
    library, remedy = RENDERERS[name]
    if ctypes.util.find_library(library) is None:
        return f"lib{library} is not on this machine ({remedy})"
    words = [sys.executable, "-c", RENDER_ONCE.format(name=name)]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return f"no picture within 120 s ({remedy})"
    if answer.returncode == 0:
        return "ok"
    lines = answer.stderr.strip().splitlines() or [f"it ended with {answer.returncode}"]
    return f"{lines[-1]} ({remedy})"


def _show(found: Mapping[str, Any]) -> None:
    facts = machine()
    versions = {
        "vlakern": __version__,
        "commit": commit() or "not a checkout",
        "python": facts["python"],
        **found["packages"],
    }
    cores = f"{facts['cores']} of {os.cpu_count()} usable"
    features = [name for name, has in found["cpu_features"].items() if has]
    computer = {
        "cpu": f"{facts['cpu']} ({platform.machine()})",
        "cores": cores,
        "memory": f"{facts['memory_gib']} GiB",
        "features": ", ".join(features) or "none of " + ", ".join(FEATURES),
    }
    for index, gpu in enumerate(found["gpus"]):
        computer[f"gpu {index}"] = _gpu_line(gpu)
    if not found["gpus"]:
        computer["gpu"] = "none found"
    computer |= {f"renderer {name}": verdict for name, verdict in found["renderers"].items()}
    native = {key: value for key, value in found["native"].items() if value is not None}
    computer |= {f"native {key}": _words(value) for key, value in native.items()}
    _table("Versions", ("what", "version"), versions.items())
    _table("Machine", ("what", "found"), computer.items())
    _table("Backends", ("op", "backend", "verdict"), _backend_rows(found["backends"]))
    _table("Environment variables", ("name", "value", "default", "meaning"), _variables())


def _gpu_line(gpu: Mapping[str, str]) -> str:
    return "{name}, driver {driver}, capability {capability}, {memory}".format(**gpu)


def _backend_rows(backends: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str, str]]:
    return [
        (op, backend, verdict)
        for op, verdicts in backends.items()
        for backend, verdict in verdicts.items()
    ]


def _variables() -> list[tuple[str, str, str, str]]:
    return [
        (variable.name, env.current(variable.name) or "not set", variable.default, variable.meaning)
        for variable in env.VARIABLES
    ]


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)


def _table(title: str, columns: Sequence[str], rows: Any) -> None:
    table = Table(title=title, title_justify="left", show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, not markup: a reason may hold brackets.
        table.add_row(*map(Text, row))
    console().print(table)
    console().print()
