"""Prints the machine as one JSON object: the GPU after a first sum on it, driver, clocks, versions.

Run by ``gpu_check.py`` in a process of its own; fails where there is no usable GPU.
"""

import json
import os
import platform
import re
import subprocess
from importlib import metadata
from typing import Any

CLOCKS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit")


def said_by(*command: str) -> str:
    """What a command prints, or nothing where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def parse_smi(text: str) -> dict[str, Any]:
    """Driver and clocks [MHz] and power [W] of the first GPU; None where it does not say."""
    values = [one.strip() for one in (text.splitlines() or [""])[0].split(",")]
    values += [""] * (1 + len(CLOCKS) - len(values))
    known = [one if one and "N/A" not in one and "Not" not in one else None for one in values]
    numbers = [re.match(r"[\d.]+", one or "") for one in known[1:]]
    clocks = {
        name: float(number.group()) if number else None
        for name, number in zip(CLOCKS, numbers, strict=False)
    }
    return {"driver": known[0], "clocks": clocks}


def parse_nvcc(text: str) -> str | None:
    """``13.0`` of nvcc's last line."""
    found = re.search(r"release ([\d.]+)", text)
    return found.group(1) if found else None


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def gpu() -> dict[str, Any]:
    """What torch says of the current GPU; raises if it cannot add on it."""
    import torch

    if float(torch.ones(1024, device="cuda").sum()) != 1024:
        raise RuntimeError("the GPU adds wrongly")
    seen = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": seen.name,
        "capability": f"{seen.major}{seen.minor}",
        "multiprocessors": seen.multi_processor_count,
        "l2_bytes": getattr(seen, "L2_cache_size", None),
        "memory_bytes": seen.total_memory,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
    }


def main() -> None:
    query = ",".join(("driver_version", *CLOCKS))
    smi = said_by("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits")
    print(
        json.dumps(
            gpu()
            | parse_smi(smi)
            | {
                "triton": version_of("triton"),
                "flash_attn": version_of("flash-attn"),
                "nvcc": parse_nvcc(said_by("nvcc", "--version")),
                "python": platform.python_version(),
                "cpus": os.cpu_count(),
                "system": f"{platform.system()} {platform.machine()}",
            }
        )
    )


if __name__ == "__main__":
    main()
