"""Is one policy better than another? Two rollouts over the same scenes, compared honestly.

Run it (needs the extra ``[blind]``):
    vlakern rollout --policy A --episodes 50 --json a.json
    vlakern rollout --policy B --episodes 50 --json b.json
    python examples/compare_rollouts.py a.json b.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from vlakern.trials import (
    mcnemar,
    newcombe,
    newcombe_paired,
    newcombe_stratified,
    power_sentence,
    stratified_exact,
    wilson,
)

SCENES = ("env", "arms", "tasks", "seed", "max_steps")


def points(value: float) -> str:
    return f"{100 * value:+.0f}"


def rate(successes: int, n: int) -> str:
    low, high = wilson(successes, n)
    return f"{successes}/{n} ({100 * low:.0f}-{100 * high:.0f} %)"


def row(name: str, a: tuple[int, int], b: tuple[int, int], bounds: tuple[float, float]) -> str:
    gap, low, high = map(points, (a[0] / a[1] - b[0] / b[1], *bounds))
    return f"{name:20} {rate(*a):>18} {rate(*b):>18} {gap:>5} ({low} to {high})"


one, other = (json.loads(Path(path).read_text()) for path in sys.argv[1:3])
for key in SCENES:
    if one["config"].get(key) != other["config"].get(key):
        sys.exit(f"the rollouts differ in --{key}: their scenes cannot be matched; run one again")


def outcomes(report: dict[str, Any]) -> dict[tuple[str, int], bool]:
    return {(e["task"], e["episode"]): e["success"] for e in report["episodes"]}


a, b = outcomes(one), outcomes(other)
scenes = sorted(a.keys() & b.keys())
strata = []
for task in dict.fromkeys(task for task, _ in scenes):
    here = [scene for scene in scenes if scene[0] == task]
    counts = (sum(a[s] for s in here), len(here), sum(b[s] for s in here), len(here))
    strata.append(counts)
    print(row(task, counts[:2], counts[2:], newcombe(*counts)))

first = sum(a[s] and not b[s] for s in scenes)  # scenes that only the first solved
second = sum(b[s] and not a[s] for s in scenes)
both = sum(a[s] and b[s] for s in scenes)
print(
    row(
        "all",
        (both + first, len(scenes)),
        (both + second, len(scenes)),
        newcombe_paired(both, first, second, len(scenes) - both - first - second),
    )
)
estimate, low, high = newcombe_stratified(strata)
print(
    f"over tasks: {points(estimate)} points ({points(low)} to {points(high)}), "
    f"exact p {stratified_exact(strata):.3f}"
)
print(
    f"same scenes: only the first {first}, only the second {second}, "
    f"McNemar's exact p {mcnemar(first, second).exact:.3f}"
)
print(power_sentence(strata[0][1]))
