"""The last stage of ``gpu_check.py``: a training step beside padded batches in plain PyTorch."""

from typing import Any

from gpu_report import read_rows
from gpu_run import Result

__all__ = ["OPS", "train_stage"]

# What a training step launches besides torch's own products.
OPS = ("norm", "qkv_prep", "shared_attention", "flow_loss")


def train_stage(check: Any, limit: float) -> Result:
    """Times the step unless one of its ops is red; an op that no GPU kernel serves is red."""
    reasons = {op: check.red_because(op) for op in OPS}
    red = [f"{op}: {reason}" for op, reason in reasons.items() if reason is not None]
    if red:
        check.say(f"train: not measured, {red[0]}")
        return Result(1, 0.0, False, red[0])
    rows = check.work / "train.jsonl"
    script = check.root / "benchmarks/train/bench_step.py"
    command = [check.python, str(script), "--device", "cuda", "--json", str(rows)]
    # Two sizes of network: the second begins only if the first left time for it.
    result = check.runner.run("train", [*command, "--limit", f"{0.5 * limit:.0f}"], limit)
    found = read_rows(rows)
    slow = set()
    for row in found:
        check.add("train", **row)
        backends: dict[str, list[str]] = row.get("backends", {})
        slow |= {f"{op} by {'+'.join(by)}" for op, by in backends.items() if "reference" in by}
    for one in sorted(slow):
        check.fail(f"train: {one}, which is no GPU kernel")
    check.say(f"train: {result.status}, {len(found)} lines")
    if result.status == "ok" and (slow or not found):
        return Result(1, result.seconds, False, result.output)
    return result
