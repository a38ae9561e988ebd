"""``vlakern data``: what a dataset or a mixture of datasets holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.table import Table

from vlakern.cli._common import Progress, check_json, check_writable, console, write_report
from vlakern.errors import ConfigError

if TYPE_CHECKING:
    from vlakern.data.mixture import Mixture
    from vlakern.data.survey import Survey

__all__ = ["Args", "run"]

# As in vlakern.space, which would import torch for --help.
Frame = Literal["native", "world_relative", "world_delta", "eef_relative", "eef_delta"]


@dataclass
class Args:
    """Look at a dataset or a mixture of datasets: frames, shares, slots, ranges, odd motion."""

    do: tyro.conf.Positional[Literal["inspect"]]
    """what to do with it"""
    path: tyro.conf.Positional[Path]
    """a mixture's TOML file, or one dataset"""
    root: Path | None = None
    """directory that the mixture's paths are relative to, instead of its own `root`"""
    embodiment: str = ""
    """of one dataset: a robot that ships or a TOML file; the dataset's by default"""
    stride: int | None = None
    """of one dataset: frames from one step of a chunk to the next"""
    frame: Frame = "native"
    """parametrisation of the actions that the statistics are of"""
    chunk: int = 16
    """steps of a chunk"""
    plot: Path | None = None
    """draw shares and slots into this PNG"""
    json: Path | None = None
    """write the report for programs to this file"""


def run(args: Args) -> int:
    """Inspects; returns 0, whatever it flags."""
    if not 1 <= args.chunk <= 1 << 16:
        raise ConfigError(f"--chunk is {args.chunk}, expected 1 to {1 << 16} steps")
    check_json(args.json)
    if args.plot is not None:
        from vlakern.drawing import check_drawing

        check_drawing()
        check_writable(args.plot)
    from vlakern.data.survey import survey

    mixture = _mixture(args)
    # A width of 0: a single robot's slots moved together; several share a whole map anyway.
    found = survey(mixture, args.frame, args.chunk, 0, _Reading())
    _print(found)
    if args.plot is not None:
        from vlakern.data.chart import write_chart

        write_chart(args.plot, found)
        console().print(f"plot: {args.plot}")
    if args.json is not None:
        write_report(args.json, args, {"data": found.to_json()})
    return 0


class _Reading:
    """A progress bar that begins when the number of episodes is known."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        self._bar = self._bar or Progress(total, "read")
        self._bar.update(done - self._done)
        self._done = done
        if done == total:
            self._bar.close()


def _mixture(args: Args) -> "Mixture":
    from vlakern.data.mixture import read_mixture, single

    if args.path.suffix != ".toml":
        if args.root is not None:
            raise ConfigError("--root is for mixtures; give the dataset's own path")
        return single(args.path, embodiment=args.embodiment, stride=args.stride)
    if args.embodiment or args.stride is not None:
        raise ConfigError(
            "--embodiment and --stride are for one dataset; say them in the mixture's file"
        )
    return read_mixture(args.path, args.root)


def _print(found: "Survey") -> None:
    out = console()
    table = Table("dataset", "group", "robot", "raw", "effective", "stride", "[Hz]", "share")
    for row in found.rows:
        numbers = (f"{row.raw:,}", f"{row.effective:,}", str(row.stride), f"{row.rate:.3g}")
        table.add_row(row.name, row.group, row.robot, *numbers, f"{row.share:.1%}")
    whole = sum(row.raw for row in found.rows), sum(row.effective for row in found.rows)
    table.add_row("total", "", "", f"{whole[0]:,}", f"{whole[1]:,}", "", "", "100.0%")
    out.print(table)
    out.print("groups: " + ", ".join(f"{name} {part:.1%}" for name, part in found.groups.items()))
    out.print(
        "action slots: " + ", ".join(f"{name} {part:.1%}" for name, part in found.slots.items())
    )
    for name, slots in found.missing.items():
        if slots:
            out.print(f"{name} lacks {', '.join(slots)}")
    if found.left_out:
        out.print(f"weight 0, left out: {', '.join(found.left_out)}")
    for sentence in found.sampled:
        out.print(f"sample: {sentence}", highlight=False)
    for robot, parts in found.ranges.items():
        for part, slots in parts.items():
            out.print(_ranges(f"{robot}: {part}", slots))
    for name, reason in found.damaged.items():
        out.print(f"damaged: {name}: {reason}")
    for flag in found.flags:
        out.print(f"look: {flag}")


def _ranges(title: str, slots: dict[str, dict[str, float]]) -> Table:
    table = Table(
        "slot", "mean", "std", "min", "1 %", "99 %", "max", title=title, title_justify="left"
    )
    for slot, one in slots.items():
        table.add_row(slot, *(f"{value:.3g}" for value in one.values()))
    return table
