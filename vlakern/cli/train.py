"""``vlakern train``: a dataset, or a mixture of them, becomes a policy directory."""

import dataclasses
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlakern.cli._common import Progress, check_json, check_writable, console
from vlakern.cli._curve import Curve, beside, report
from vlakern.errors import ConfigError

if TYPE_CHECKING:
    from vlakern.data.corpus import Corpus
    from vlakern.data.mixture import Mixture
    from vlakern.models.vla import VLA
    from vlakern.models.weights.native import Processing
    from vlakern.train.config import Recipe
    from vlakern.train.parallel import World

__all__ = ["STOPPED", "Args", "run"]

# As in vlakern.space, which would import torch for --help.
Mode = Literal["zscore", "quantile", "min_max", "none"]
Frame = Literal["native", "world_relative", "world_delta", "eef_relative", "eef_delta"]
# What sysexits.h calls EX_TEMPFAIL: SIGTERM came, the state is saved, try again with --resume auto.
STOPPED = 75


@dataclass
class Args:
    """Train a policy from demonstrations.

    Under torchrun the same command trains on several GPUs or processes. SIGTERM saves a checkpoint
    and exits with code 75; the same command with `--resume auto` continues where it stopped.
    """

    data: Path | None = None
    """Dataset directory, as ``vlakern collect`` writes it; a mixture of one."""
    mixture: Path | None = None
    """TOML file that names datasets, groups and weights; in the place of --data."""
    root: Path | None = None
    """Directory that the mixture's paths are relative to; the file's own by default."""
    out: Path = Path("outputs/policy")
    """Policy directory to write, or with several robots a directory of them. Beside it go the
    curve, OUT.jsonl, and OUT.checkpoints."""
    recipe: str = "metaworld-small"
    """Model, optimiser and augmentation by name."""
    set: tuple[str, ...] = ()
    """Fields of the recipe's training to change, such as `drop_view=0.5 lora.rank=8`."""
    embodiment: str | None = None
    """Robot that recorded the data: a name that ships or a TOML file; the dataset's by default."""
    frame: Frame | None = None
    """Parametrisation of the actions; the recipe's by default. `native` predicts the numbers of the
    robot's own controller, the others poses in the axes of the base or of the hand."""
    state_norm: Mode | None = None
    """Normalisation of the state; the recipe's by default."""
    action_norm: Mode | None = None
    """Normalisation of the actions; the recipe's by default."""
    binary: tuple[str, ...] = ()
    """Slots of the action that take one of two values, such as grippers."""
    epsilon: Literal["vlakern", "openpi", "lerobot"] | None = None
    """Whose rule for numbers that hardly move; the recipe's by default."""
    stride: int | None = None
    """Frames from one step of a chunk to the next; divides the rate at which the policy acts."""
    steps: int | None = None
    """Optimizer steps; the recipe's by default, its stages shortened or stretched alike."""
    batch_size: int | None = None
    """Prefixes per step, of all ranks and micro-batches; the recipe's by default."""
    learning_rate: float | None = None
    """Peak learning rate; the recipe's by default."""
    accumulate: int = 1
    """Micro-batches per step, whose gradients are added up."""
    seed: int = 0
    """Seed of weights, data order, noise and dropout."""
    init: Path | None = None
    """Policy directory to start from; what was loaded, missing and left over is printed."""
    rename: tuple[str, ...] = ()
    """OLD=NEW beginnings of tensor names in --init."""
    resume: str = "no"
    """`auto` continues from the newest good checkpoint in OUT.checkpoints, if there is one; a path
    continues from that checkpoint."""
    save_every: int = 500
    """Write a checkpoint and the policy every so many steps; 0 the policy only, at the end."""
    keep: int = 3
    """Checkpoints that are kept."""
    workers: int = 0
    """Processes that prepare batches; the result does not depend on them."""
    memory_gib: float = 4.0
    """Memory for decoded pictures [GiB]; what does not fit is decoded when it is drawn."""
    device: str = "auto"
    """auto, cpu or cuda; under torchrun each process takes its own GPU."""
    shard: Literal["ddp", "fsdp"] = "ddp"
    """What each rank keeps: everything, or its part of weights, gradients and optimizer."""
    overwrite: bool = False
    """Replace an existing --out with its curve and checkpoints."""
    plot: Path | None = None
    """Draw the curves of loss and learning rate into this PNG."""
    tensorboard: bool = False
    """Write scalars for TensorBoard to OUT.events."""
    json: Path | None = None
    """Write a summary for programs to this file."""


def run(args: Args) -> int:
    """Trains and writes the policy; returns 0, or 75 after SIGTERM."""
    if (args.data is None) == (args.mixture is None):
        raise ConfigError("name one dataset with --data, or a mixture's file with --mixture")
    if not 0 <= args.memory_gib < math.inf:
        raise ConfigError(f"--memory-gib is {args.memory_gib}, expected 0 or more")
    if args.rename and args.init is None:
        raise ConfigError("--rename is for the tensors of --init; name its directory")
    odd = next((one for one in args.rename if not all(one.partition("=")[:2])), None)
    if odd is not None:
        raise ConfigError(f"--rename {odd!r}: expected OLD=NEW")
    if args.root is not None and args.mixture is None:
        raise ConfigError("--root is for a mixture; with --data name the dataset's directory")
    from vlakern.train import parallel

    with parallel.start(_device(args.device)) as world:
        if args.shard == "fsdp" and world.size == 1:
            raise ConfigError("--shard is fsdp, which needs several ranks; start it under torchrun")
        start = _prepare(args, world)
        recipe = _recipe(args)
        _check_run(args, recipe, world)
        if start is not None and _finished(args, recipe, start):
            if world.first:
                steps = recipe.train.steps
                console().print(f"{args.out} is trained to step {steps}: nothing is left to do")
            return 0
        corpus = _corpus(args, recipe, world)
        return _train(args, recipe, corpus, start, world)


def _prepare(args: Args, world: "World") -> Path | None:
    """Everything that can be refused before the work; returns the checkpoint to continue from."""
    from vlakern.train.loop import find_start

    resume: Any = args.resume if args.resume in ("no", "auto") else Path(args.resume)
    begun = resume != "no"

    def check() -> str | None:
        checkpoints = beside(args.out, "checkpoints")
        start = find_start(checkpoints, resume)
        if start is None:
            # A run that died before its first checkpoint has left a curve and no policy.
            left = [args.out] if begun else [args.out, beside(args.out, "jsonl"), checkpoints]
            for path in left:
                if path.exists() and not args.overwrite:
                    raise ConfigError(
                        f"{path} exists; choose another --out, say --overwrite, or continue the run"
                        " that wrote it with --resume auto"
                    )
        check_writable(args.out)
        check_json(args.json)
        if args.plot is not None:
            from vlakern.drawing import check_drawing

            check_drawing()
            check_writable(args.plot)
        if args.tensorboard:
            from vlakern.train.report import check_tensorboard

            check_tensorboard()
        return None if start is None else str(start)

    found = world.on_first(check, None)
    return None if found is None else Path(found)


def _check_run(args: Args, recipe: "Recipe", world: "World") -> None:
    """Refuses before the data is read, which may take hours, what would be refused after it."""
    from vlakern.data.loader import check_batches
    from vlakern.models import preset
    from vlakern.train.loop import RunConfig
    from vlakern.train.step import check_model

    RunConfig(args.save_every, args.keep, args.accumulate, args.shard)
    size = recipe.train.batch_size
    check_batches(args.seed, size, args.workers, world.size, args.accumulate)
    check_model(preset(recipe.preset), recipe.train)
    if args.init is not None and not args.init.is_dir():
        raise ConfigError(f"--init {args.init} is not a directory; expected a policy directory")


def _finished(args: Args, recipe: "Recipe", start: Path) -> bool:
    """Whether a checkpoint is a run's last and its policies are written; reads no data.

    Raises:
        CheckpointError: it is of another recipe or seed.
    """
    from vlakern.records import to_dict
    from vlakern.train import checkpoint, loop

    found = checkpoint.facts(start)
    begun = found["config"]
    # What is known before the data are; the rest is compared when they are open.
    loop.check_same(start, {**begun, "recipe": to_dict(recipe), "seed": args.seed})
    robots = sorted({one["robot"] for one in begun["data"].values()})
    targets = [args.out] if len(robots) == 1 else [args.out / robot for robot in robots]
    files = [path / "model.safetensors" for path in targets]
    # The last policy is written after the last checkpoint; one before it is of fewer steps.
    begin = max(path.stat().st_mtime_ns for path in start.iterdir())
    written = all(one.exists() and one.stat().st_mtime_ns >= begin for one in files)
    asked = args.json is not None or args.plot is not None
    return written and not asked and found["step"] >= recipe.train.steps


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"--device is {name!r}, expected auto, cpu or cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device is {name!r}, but torch sees no GPU here; say cpu or auto")
    return name


def _recipe(args: Args) -> "Recipe":
    """The named one with what the command line says instead."""
    from vlakern.records import from_dict, to_dict
    from vlakern.train.config import TrainConfig, recipe

    chosen = recipe(args.recipe)
    train = chosen.train if args.steps is None else chosen.train.with_steps(args.steps)
    values = to_dict(train)
    for name in ("batch_size", "learning_rate"):
        if getattr(args, name) is not None:
            values[name] = getattr(args, name)
    for words in args.set:
        key, equals, text = words.partition("=")
        if not equals:
            raise ConfigError(f"--set {words!r}: expected NAME=VALUE")
        *path, last = key.split(".")
        inside = values
        for name in path:
            inside = inside.get(name)
            if not isinstance(inside, dict):
                raise ConfigError(f"--set {words!r}: train has no part {name!r}")
        inside[last] = _value(text)
    train = from_dict(TrainConfig, values, "train")
    processing = _processing(chosen.processing, args)
    return dataclasses.replace(chosen, train=train, processing=processing)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _processing(recipe: "Processing", args: Args) -> "Processing":
    """The recipe's, with what the command line says instead."""
    from vlakern.models.weights.native import SlotMode

    wishes = {
        "frame": args.frame,
        "state": args.state_norm,
        "action": args.action_norm,
        "epsilon": args.epsilon,
        "action_slots": tuple(SlotMode(slot, "binary") for slot in args.binary) or None,
    }
    given = {name: value for name, value in wishes.items() if value is not None}
    return dataclasses.replace(recipe, **given)


def _mixture(args: Args) -> "Mixture":
    from vlakern.data.mixture import read_mixture, single

    if args.data is not None:
        name = args.embodiment or ""
        robot = str(Path(name).absolute()) if name.endswith(".toml") else name
        return single(args.data, embodiment=robot, stride=args.stride or 1)
    for name in ("embodiment", "stride"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} is for --data; a mixture's file says it per dataset")
    assert args.mixture is not None
    return read_mixture(args.mixture, args.root)


def _corpus(args: Args, recipe: "Recipe", world: "World") -> "Corpus":
    """The datasets, opened and measured; refuses what could not become a policy."""
    from vlakern.data.corpus import open_corpus
    from vlakern.models import preset
    from vlakern.train.policy import check_targets

    mixture, memory = _mixture(args), int(args.memory_gib * 2**30)
    bars: list[Progress] = []
    before = [0]

    def on_episode(done: int, total: int) -> None:
        if world.first and not bars:
            bars.append(Progress(total, "read"))
        for bar in bars:
            bar.update(done - before[0])
        before[0] = done

    try:
        corpus = open_corpus(
            mixture, preset(recipe.preset), recipe.processing, memory=memory, on_episode=on_episode
        )
    finally:
        for bar in bars:
            bar.close()
    world.on_first(lambda: check_targets(corpus, args.out), None)
    if world.first:
        console().print(corpus.frames.table(), highlight=False)
        for line in (*corpus.placement, *corpus.measured.sampled):
            console().print(line, highlight=False)
    return corpus


def _train(
    args: Args, recipe: "Recipe", corpus: "Corpus", start: Path | None, world: "World"
) -> int:
    from vlakern.data.collate import Augment
    from vlakern.data.loader import Loader
    from vlakern.train import checkpoint, loop
    from vlakern.train.policy import identity, write_policies

    run = loop.RunConfig(args.save_every, args.keep, args.accumulate, args.shard)
    decisive, train = identity(corpus, recipe, args.seed), recipe.train
    after = None
    if start is not None:
        loop.check_same(start, decisive)
        after = checkpoint.facts(start)["step"]
    model = _model(args, corpus, world)
    checkpoints = beside(args.out, "checkpoints")
    if world.first and start is None and checkpoints.exists():
        shutil.rmtree(checkpoints)
    place = loop.Place(
        checkpoints, lambda weights: write_policies(corpus, args.out, weights), decisive
    )
    augment = Augment(train.drop_state, train.drop_view, train.shift, train.jitter)
    loader = Loader(
        corpus,
        corpus.sampler(args.seed),
        seed=args.seed,
        batch_size=train.batch_size,
        workers=args.workers,
        rank=world.rank,
        world=world.size,
        parts=args.accumulate,
        augment=augment,
    )
    curve = Curve(args, recipe, world, after)
    with loader, curve:
        summary = loop.train(
            model,
            train,
            args.seed,
            loader,
            place,
            run,
            start,
            world,
            len(corpus.embodiments),
            curve.on_step,
        )
    if world.first:
        report(args, recipe, corpus, summary, world)
    return STOPPED if summary.stopped else 0


def _model(args: Args, corpus: "Corpus", world: "World") -> "VLA":
    """With random values of the seed, or those of --init."""
    import torch

    from vlakern.models.vla import VLA
    from vlakern.train.stages import Meaning, start_from

    torch.manual_seed(args.seed)
    model = VLA(corpus.config)
    if args.init is not None:
        names: dict[str, str] = {}
        for one in args.rename:
            old, _, new = one.partition("=")
            names[old] = new
        meaning = Meaning(corpus.state_map, corpus.action_map, corpus.tokenizer)
        started = start_from(model, args.init, meaning, names)
        for line in started.lines() if world.first else ():
            console().print(line, highlight=False)
    return model
