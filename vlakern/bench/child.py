"""Cold start and peak memory of one variant, measured in a process of its own."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlakern.errors import VlakernError

if TYPE_CHECKING:
    from vlakern.bench.latency import BenchConfig

__all__ = ["ChildResult", "main", "measure"]

WORDS = "import time; b = time.perf_counter(); from vlakern.bench.child import main; main(b)"
CALLS = 3  # the peak is of these; the first is the cold start


@dataclass(frozen=True)
class ChildResult:
    """What a process of its own used.

    Attributes:
        cold_start_s: from the first import to the first actions.
        peak_memory_bytes: the largest resident memory.
        weights_bytes: of the packed weights.
    """

    cold_start_s: float
    peak_memory_bytes: int
    weights_bytes: int | None


def measure(config: "BenchConfig") -> ChildResult:
    """Runs ``config``'s own variant in a fresh Python, which finds packed weights in the cache.

    Raises:
        VlakernError: the process failed.
    """
    policy = config.policy
    if policy is not None and Path(policy).is_dir():
        policy = str(Path(policy).resolve())
    words = json.dumps(asdict(replace(config, policy=policy, against=())))
    command = [sys.executable, "-c", WORDS]
    # Python looks for modules in the working directory first: a checkout there is not what runs.
    with tempfile.TemporaryDirectory() as empty:
        run = subprocess.run(
            command, input=words, capture_output=True, text=True, check=False, cwd=empty
        )
    if run.returncode != 0:
        last = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise VlakernError(f"the process that measures cold start failed: {last}")
    return ChildResult(**json.loads(run.stdout.splitlines()[-1]))


def main(begin: float) -> None:
    """Reads a configuration from standard input and writes a :class:`ChildResult`."""
    import torch

    from vlakern.bench.contenders import EngineContender, Place
    from vlakern.bench.latency import BenchConfig, timed, workload

    values = json.loads(sys.stdin.read())
    config = BenchConfig(**{**values, "against": ()})
    threads = config.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    work = workload(config)
    place = Place(config.device, config.backend, threads)
    contender = EngineContender(work, config.dtype, place)
    spent = 0.0
    for index in range(CALLS):
        timed(contender, work, index, time.perf_counter)
        spent = spent or time.perf_counter() - begin
    print(json.dumps(asdict(ChildResult(spent, _peak(), contender.weights_bytes))))


def _peak() -> int:
    """The largest resident memory of this program [byte].

    The kernel's VmHWM: ``getrusage`` counts what the parent held when it forked.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
