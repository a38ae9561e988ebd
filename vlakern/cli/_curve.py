"""What ``vlakern train`` shows while it runs and when it has ended."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlakern.cli._common import Progress, console, write_report
from vlakern.errors import Unsupported

if TYPE_CHECKING:
    from vlakern.cli.train import Args
    from vlakern.data.corpus import Corpus
    from vlakern.train.config import Recipe, Stage
    from vlakern.train.parallel import World
    from vlakern.train.report import Summary

__all__ = ["Curve", "beside", "report", "utilisation"]

# Of the sums behind the rate that is shown: of about the last ten steps.
DECAY = 0.9


def beside(out: Path, kind: str) -> Path:
    """``OUT.kind``."""
    return out.parent / f"{out.name}.{kind}"


class Curve:
    """The bar, the JSON lines and TensorBoard; on the first rank alone.

    Args:
        after: the step that the run continues after, None if it begins.
    """

    def __init__(self, args: "Args", recipe: "Recipe", world: "World", after: int | None) -> None:
        self._args, self._recipe, self._first, self._after = args, recipe, world.first, after
        self._steps = self._waited = self._took = 0.0
        self._closing: list[Callable[[], None]] = []

    def __enter__(self) -> "Curve":
        from vlakern.records import to_dict
        from vlakern.train.report import Events, JsonLines

        if not self._first:
            return self
        args, recipe = self._args, self._recipe
        head = {**to_dict(recipe), "seed": args.seed}
        self._log = JsonLines(beside(args.out, "jsonl"), head, self._after)
        self._closing.append(self._log.close)
        self._bar = Progress(recipe.train.steps, "train")
        self._bar.update(self._after or 0)
        self._closing.append(self._bar.close)
        self._events = Events(beside(args.out, "events")) if args.tensorboard else None
        if self._events is not None:
            self._closing.append(self._events.close)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for close in self._closing:
            close()
        # Else the same command with its words put right would be refused.
        if self._first and kind is not None and self._after is None and not self._took:
            beside(self._args.out, "jsonl").unlink(missing_ok=True)

    def on_step(self, step: int, row: dict[str, Any]) -> None:
        """Takes a row of the curve."""
        if not self._first:
            return
        self._steps = DECAY * self._steps + 1
        self._waited = DECAY * self._waited + row["wait_s"]
        self._took = DECAY * self._took + row["step_s"]
        rate = self._recipe.train.batch_size * self._steps / self._took
        share = self._waited / self._took
        words = f"loss {row['loss']:.4f}, {rate:.1f} samples/s, {share:.0%} waiting for data"
        self._bar.update(1, words)
        self._log.add({"step": step, **row})
        if self._events is not None:
            self._events.add(step, {n: v for n, v in row.items() if isinstance(v, (int, float))})


def report(
    args: "Args",
    recipe: "Recipe",
    corpus: "Corpus",
    summary: "Summary",
    world: "World",
) -> None:
    """The summary for people, the picture and the file for programs."""
    from vlakern.train.report import curve_rows, write_curves

    rate = summary.samples / max(summary.seconds, 1e-9)

    def say(words: str) -> None:
        console().print(words, highlight=False, soft_wrap=True)

    # After SIGTERM there may be no time to measure the machine.
    used = None if summary.stopped else utilisation(recipe, corpus, summary, world)
    say(
        f"{summary.steps} steps, {summary.samples} samples in {summary.seconds:.0f} s"
        f" ({rate:.1f} samples/s), mean loss of the last tenth {summary.loss:.4f}"
    )
    say(
        f"waited for data {summary.wait_share:.1%} of the time, peak memory"
        f" {summary.peak_memory_bytes / 2**30:.2f} GiB, {summary.skipped} updates skipped,"
        f" {len(summary.quarantine['reasons'])} damaged samples"
    )
    if used is not None:
        say(_sentence(used))
    if args.plot is not None:
        rows = curve_rows(beside(args.out, "jsonl"))
        write_curves(args.plot, rows, f"{args.out.name}: {recipe.preset}, {summary.steps} steps")
        say(f"curves: {args.plot}")
    if summary.stopped:
        say(f"stopped by SIGTERM after step {summary.steps}; go on with --resume auto")
    else:
        say(f"policy: {args.out}")
    if args.json:
        told = {"train": dataclasses.asdict(summary), "frames": corpus.frames.to_json()}
        told |= {"utilisation": used, "quarantine": told["train"].pop("quarantine")}
        write_report(args.json, args, told)


def utilisation(
    recipe: "Recipe", corpus: "Corpus", summary: "Summary", world: "World"
) -> dict[str, Any]:
    """Operations per second that the mathematics needs over those that the machine can do.

    See :func:`vlakern.bench.roofline.training` for what is counted.
    """
    from vlakern.bench.machine import measure
    from vlakern.bench.roofline import Shape, training

    dtype = "bf16" if recipe.train.bf16 else "fp32"
    total = 0.0
    for stage, samples in _by_stage(recipe, summary):  # none if nothing was left to do
        share = samples / summary.samples
        shape = Shape(1, round(summary.prefix_tokens / summary.samples), samples)
        views, flow = round(share * summary.views), recipe.train.flow_samples
        total += training(corpus.config, shape, views, flow, _semantic(recipe, stage))
    rate = total / summary.seconds if summary.seconds else 0.0
    found: dict[str, Any] = {"operations": total, "rate": rate, "dtype": dtype}
    try:
        peak = measure((dtype,), world.device.type).peaks[dtype] * world.size
    except Unsupported as error:
        return {**found, "peak": None, "share": None, "why": str(error)}
    return {**found, "peak": peak, "share": rate / peak}


def _by_stage(recipe: "Recipe", summary: "Summary") -> list[tuple["Stage", int]]:
    """The stages that this process trained, and how many samples each."""
    size = recipe.train.batch_size
    first = summary.steps - summary.samples // size
    found = []
    for stage in recipe.train.stages:
        steps = min(stage.end, summary.steps) - max(stage.begin, first)
        if steps > 0:
            found.append((stage, steps * size))
    return found


def _semantic(recipe: "Recipe", stage: "Stage") -> Any:
    if stage.part == "all" and not recipe.train.lora.rank:
        return "trained"
    return "constant" if recipe.train.detach else "frozen"


def _sentence(used: dict[str, Any]) -> str:
    rate = f"{used['rate'] / 1e9:.2f} GFLOP/s in {used['dtype']}"
    if used["share"] is None:
        return f"model FLOP utilisation not measured: {rate}, and {used['why']}"
    return (
        f"model FLOP utilisation {used['share']:.1%}: {rate} of {used['peak'] / 1e9:.0f};"
        " operations are 3 x forward, 2 x where weights are frozen, 1 x below all that trains"
    )
