"""``vlakern convert``: another family's directory as ours, and a report that it is the same."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.table import Table

from vlakern.cli._common import Progress, check_json, check_writable, console, write_report

if TYPE_CHECKING:
    from vlakern.types import Observation

__all__ = ["Args", "run"]

# Of golden numbers, in fp32; DESIGN.md's figure for other implementations.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Args:
    """Write another family's checkpoint as a native policy directory, or one of ours as theirs."""

    source: Annotated[Path, tyro.conf.Positional]
    """The policy directory that is read: LeRobot's, openpi's PyTorch code's, Being-H's or ours."""
    target: Annotated[Path, tyro.conf.Positional]
    """The directory that is written; it must not be there yet."""
    export: Literal["lerobot"] | None = None
    """Write LeRobot's files instead (pi0, pi0.5 and SmolVLA)."""
    golden: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """An .npz of another implementation's inputs and outputs, compared stage by stage."""
    actions: bool = True
    """Load both directories and compare their actions for one observation."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """In which both act."""
    seed: int = 0
    """Of the observation and the noise."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the report to this file as well."""


def run(args: Args) -> int:
    """Converts and reports; returns 1 where a number is not what it was."""
    check_json(args.json)
    from vlakern.models.weights.export import to_lerobot

    found = _convert(args, _native if args.export is None else to_lerobot)
    if args.json is not None:
        write_report(args.json, args, found)
    _show(args, found)
    return 0 if found["same"] else 1


def _native(source: Path, target: Path, seen: Callable[[str], None]) -> Any:
    from vlakern.models.weights.convert import to_native

    return to_native(source, target, seen)


def _convert(
    args: Args, write: Callable[[Path, Path, Callable[[str], None]], Any]
) -> dict[str, Any]:
    """Writes the target and compares what it says with the source."""
    from vlakern.infer.directories import policy_directory
    from vlakern.models.weights.convert import check_new, distances, skipped
    from vlakern.models.weights.families import open_policy

    check_new(args.target)
    check_writable(args.target)
    source = policy_directory(args.source)
    opened = open_policy(source)
    with Progress(opened.count, "tensors") as bar:
        write(source, args.target, lambda name: bar.update())
    reread = open_policy(args.target)
    weights = distances(opened, reread)
    found: dict[str, Any] = {
        "family": opened.family.name,
        "tensors": len(weights),
        "identical": sum(distance == 0.0 for distance in weights.values()),
        "largest_difference": max(weights.values(), default=0.0),
        "skipped": skipped(opened),
    }
    # A fold that is undone and done again may round once; nothing else may.
    found["same"] = found["largest_difference"] <= (0.0 if args.export is None else 2.0**-22)
    if args.golden is not None:
        found["golden"] = _golden(args.target, args.golden)
        found["same"] &= all(error < TOLERANCE for error in found["golden"].values())
    if args.actions:
        found["actions_differ_by"] = _actions(args)
        found["same"] &= found["actions_differ_by"] <= (0.0 if args.export is None else 1e-4)
    return found


def _golden(directory: Path, golden: Path) -> dict[str, float]:
    """Relative distance by stage of the network in fp32."""
    from vlakern.models.weights.families import read_policy
    from vlakern.models.weights.golden import compare, read_golden

    return compare(read_policy(directory).model, read_golden(golden))


def _actions(args: Args) -> float:
    """The largest difference between the two directories' actions for one observation."""
    import numpy as np

    import vlakern

    made = []
    for directory in (args.source, args.target):
        policy = vlakern.load(directory, device="cpu", dtype=args.dtype)
        made.append(policy.act(_observation(policy, args.seed), seed=args.seed).actions)
        del policy
    return float(np.abs(made[0] - made[1]).max())


def _observation(policy: Any, seed: int) -> "Observation":
    """Noise in every camera, a state near 0 and a few words."""
    import numpy as np

    from vlakern.types import Observation

    rng = np.random.default_rng(seed)
    size = (policy.image_size, policy.image_size, 3)
    images = {view: rng.integers(0, 256, size, dtype=np.uint8) for view in policy.views}
    state = rng.uniform(-0.1, 0.1, policy.robot.state_width).astype(np.float32)
    return Observation(images=images, state=state, instruction="pick up the cube")


def _show(args: Args, found: dict[str, Any]) -> None:
    table = Table(title=f"{args.source} ({found['family']}) → {args.target}")
    for column in ("what", "found", ""):
        table.add_column(column, overflow="fold")

    def row(what: str, value: str, good: bool) -> None:
        table.add_row(what, value, "ok" if good else "differs")

    exact = args.export is None
    largest = found["largest_difference"]
    same = f"{found['identical']} of {found['tensors']}, largest difference {largest:.1e}"
    row("identical tensors", same, largest == 0.0 or not exact)
    for name, reason in sorted(found["skipped"].items()):
        table.add_row(f"not used: {name}", reason, "")
    for stage, error in found.get("golden", {}).items():
        row(f"golden {stage}", f"{error:.1e} relative", error < TOLERANCE)
    if "actions_differ_by" in found:
        differ = found["actions_differ_by"]
        row("actions", f"largest difference {differ:.1e}", differ <= (0.0 if exact else 1e-4))
    console().print(table)
    if not found["same"]:
        print(f"vlakern: {args.target} is not the same as {args.source}", file=sys.stderr)
