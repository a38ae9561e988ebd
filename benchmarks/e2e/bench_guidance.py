"""What prefixes cost: one policy's ``act`` plain, frozen, led cheaply and led exactly, by turns.

``python benchmarks/e2e/bench_guidance.py [--policy NAME] [--calls N]``. The exact form runs through
torch's autograd; the plain call through torch stands beside it.
"""

import argparse
import time

import numpy as np
import torch

from vlakern.infer import Policy, load, shipped_policies
from vlakern.types import ActionPrefix, Observation, PrefixForm

__all__ = ["measure"]

CASES: list[tuple[str, PrefixForm | None]] = [
    ("auto", None),
    ("auto", "frozen"),
    ("auto", "cheap"),
    ("torch", None),
    ("torch", "cheap"),
    ("torch", "exact"),
]


def measure(name: str, calls: int) -> dict[str, list[float]]:
    """Total latencies [ms] of each case, after one call to warm up."""
    policies: dict[str, Policy] = {
        "auto": load(name, device="cpu"),
        "torch": load(name, device="cpu", backend="torch"),
    }
    one, rng = policies["auto"], np.random.default_rng(1)
    image = rng.integers(0, 256, (one.image_size, one.image_size, 3), dtype=np.uint8)
    state = np.zeros(one.robot.state_width, np.float32)
    seen = Observation(dict.fromkeys(one.views, image), state, "open it")
    decided = one.act(seen, seed=0).actions[: one.chunk - 2]
    found: dict[str, list[float]] = {f"{b}, {f or 'no prefix'}": [] for b, f in CASES}
    for call in range(calls + 1):
        for backend, form in CASES:
            prefix = None if form is None else ActionPrefix(decided, 2, form)
            begin = time.perf_counter()
            policies[backend].act(seen, seed=call, prefix=prefix)
            if call:
                took = 1e3 * (time.perf_counter() - begin)
                found[f"{backend}, {form or 'no prefix'}"].append(took)
    return found


def main() -> None:
    """Prints a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default=shipped_policies()[0])
    parser.add_argument("--calls", type=int, default=20)
    given = parser.parse_args()
    print(f"{given.policy}, fp32, CPU, {torch.get_num_threads()} threads, {given.calls} calls")
    for case, took in measure(given.policy, given.calls).items():
        p50, p95 = np.percentile(took, [50, 95])
        print(f"{case:20}  p50 {p50:8.2f} ms  p95 {p95:8.2f} ms")


if __name__ == "__main__":
    main()
