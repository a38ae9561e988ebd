"""``vlakern rollout``: drive simulated robots with a policy and report how often it succeeds."""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

import vlakern
from vlakern.cli._common import Progress, check_json, check_writable, console, write_report
from vlakern.errors import ConfigError, InputError
from vlakern.files import atomic_directory

__all__ = ["Args", "run"]


@dataclass
class Args:
    """Drive simulated robots with a policy; report success and latency, with videos."""

    env: Literal["metaworld", "robosuite"] = "metaworld"
    """Simulator."""
    tasks: str | None = None
    """A suite (mw5) or task names separated by commas; mw5 in metaworld and Lift in robosuite by
    default."""
    arms: str | None = None
    """robosuite's arms, separated by commas; the policy's own by default. One that the policy was
    not trained on can be named, too, if its numbers mean what those of the policy's robot do."""
    episodes: int = 5
    """Episodes per task and arm; episode e starts from scene seed `seed` + e."""
    policy: str = "metaworld-small"
    """Name of a policy that ships with vlakern, or a policy directory."""
    device: str = "auto"
    """Device of the policy: auto, cpu, cuda, cuda:1."""
    dtype: str = "auto"
    """Number format of the policy: auto, fp32, bf16, int8 (CPU)."""
    backend: Literal["auto", "torch"] = "auto"
    """What runs the network: vlakern's engine, or torch and the network's own modules."""
    seed: int = 0
    """First scene seed and root of the policy's noise; below 1,000,000 (training has the rest)."""
    batch: int | None = None
    """Most episodes running at once; 5 by default."""
    max_steps: int = 300
    """Control steps after which an episode has failed."""
    video: Literal["first", "all", "none"] | None = None
    """Views that are recorded, side by side; first by default."""
    out: Path | None = None
    """Directory for report.html and the videos, outputs/rollout by default; an earlier report there
    is replaced."""
    realtime: float | None = None
    """Control steps a second of a simulator that does not wait for the policy (metaworld; its own
    rate is 80): one episode at a time, no videos and no page."""
    latency: str | None = None
    """Milliseconds, separated by commas, that inference takes longer, with --realtime; each is run
    and counted on its own."""
    sudden: bool = False
    """With --realtime: they come once the robot moves, as where a network gets slower. The loop has
    not measured them before, so it refuses none, and starves."""
    prefix: Literal["none", "frozen", "cheap", "exact"] = "none"
    """With --realtime: how a chunk is made to agree with what is executed meanwhile; frozen is for
    policies trained with delays, exact needs --backend torch."""
    ensemble: float | None = None
    """With --realtime: m of temporal ensembling, which averages chunks with weights exp(-m i)."""
    json: Path | None = None
    """File for the results as JSON."""


def run(args: Args) -> int:
    """Runs the episodes, prints the tables, writes the report and returns 0."""
    if args.realtime is not None:
        return _realtime(args)
    for name in ("latency", "sudden", "prefix", "ensemble"):
        if getattr(args, name) not in (None, False, "none"):
            raise ConfigError(
                f"--{name} is for --realtime, which is not given; add it, or leave --{name} out"
            )
    return _turns(_filled(args))


def _turns(args: Any) -> int:
    """The policy and the simulator take turns."""
    from vlakern.sim.report import PAGE, check_folder, keep_video, write_page
    from vlakern.sim.rollout import Plan, rollout

    simulator = _simulator(args.env)
    out = args.out.resolve()
    check_folder(out)
    check_writable(out)
    check_json(args.json)
    policy = _load(args)
    tasks = _tasks(args, policy)
    plan = Plan(
        tasks=tasks,
        episodes=args.episodes,
        seed=args.seed,
        batch=args.batch,
        max_steps=args.max_steps,
        video=args.video,
        control_rate=simulator.CONTROL_RATE,
    )
    make_env = _environment(args.env, simulator, policy)
    with atomic_directory(out) as folder:
        with Progress(len(tasks) * args.episodes, "episodes") as bar:
            watch = _Watch(bar, functools.partial(keep_video, folder, plan))
            result = rollout(plan, policy, make_env, watch.keep, watch.on_round)
        write_page(folder, result, _settings(args, policy))
        write_report(folder / "rollout.json", args, result.payload())
    _show(result)
    if args.json is not None:
        write_report(args.json, args, result.payload())
    print(f"report: {args.out / PAGE}")
    return 0


def _filled(args: Args) -> Any:
    """With what an ordinary run has by default; Any, because nothing of it is None."""
    return replace(
        args,
        batch=5 if args.batch is None else args.batch,
        video=args.video or "first",
        out=args.out or Path("outputs/rollout"),
    )


def _realtime(args: Args) -> int:
    from vlakern.cli._realtime import Sweep, run

    if args.env != "metaworld":
        raise ConfigError(f"--realtime is for metaworld, found --env {args.env}; leave it out")
    for name in ("batch", "video", "out"):
        if getattr(args, name) is not None:
            raise ConfigError(
                "--realtime runs one episode at a time and writes neither videos nor a page; leave"
                f" --{name} out"
            )
    simulator = _simulator(args.env)
    sweep = Sweep.of(args, _tasks(args, None), simulator.CONTROL_RATE)
    policy = _load(args)
    if policy.frame != "native" or policy.robot.controller is None:
        raise ConfigError(
            f"--realtime drives policies in the frame native, {policy.name} has {policy.frame};"
            " leave --realtime out"
        )
    return run(args, sweep, policy, _environment(args.env, simulator, policy))


@dataclass
class _Watch:
    """Moves the progress bar: every round says how many steps, every episode counts one."""

    bar: Progress
    write: Callable[..., Any]
    steps: int = 0

    def keep(self, row: Any, frames: Any) -> Any:
        kept = self.write(row, frames)
        self.bar.update(1, self._note())
        return kept

    def on_round(self, steps: int) -> None:
        self.steps = steps
        self.bar.update(0, self._note())

    def _note(self) -> str:
        return f"{self.steps} control steps"


def _simulator(name: str) -> Any:
    extra = {"metaworld": "sim", "robosuite": "robosuite"}[name]
    for package in ("mujoco", name, "av"):
        if find_spec(package) is None:
            raise ConfigError(
                f"rollout needs the package {package!r}, which is not installed; "
                f"run: pip install 'vlakern[{extra}]'"
            )
    return importlib.import_module(f"vlakern.sim.{name}")


def _tasks(args: Args, policy: Any) -> tuple[str, ...]:
    """The names of all that is run."""
    if args.env == "metaworld":
        from vlakern.sim.metaworld_tasks import task_names

        if args.arms is not None:
            raise ConfigError("--arms is for robosuite; leave it out, or say --env robosuite")
        return task_names(args.tasks or "mw5")
    from vlakern.sim.robosuite_rollout import check_arms, pairs

    arms, found = pairs(args.arms, args.tasks or "Lift", policy)
    check_arms(policy, arms)
    return found


def _load(args: Args) -> Any:
    return vlakern.load(args.policy, device=args.device, dtype=args.dtype, backend=args.backend)


def _environment(name: str, simulator: Any, policy: Any) -> Callable[[str], Any]:
    if policy.control_rate != simulator.CONTROL_RATE:
        raise InputError(
            f"policy {policy.name} acts at {policy.control_rate:g} Hz, the simulator expects "
            f"{simulator.CONTROL_RATE:g} Hz; use a policy that was trained for this simulator"
            " (LeRobot's and openpi's directories do not say their rate: convert one that was, and"
            " set embodiment.control_rate in its config.json)"
        )
    make = simulator.MetaWorldEnv if name == "metaworld" else _robosuite_env
    make = functools.partial(make, views=policy.views, image_size=policy.image_size)
    if policy.frame == "native":
        return make
    from vlakern.sim.commands import CommandedEnv

    control = policy.control
    return lambda task: CommandedEnv(make(task), control)


def _robosuite_env(pair: str, **pictures: Any) -> Any:
    from vlakern.sim.robosuite_rollout import make_env

    return make_env(pair, **pictures)


def _settings(args: Args, policy: Any) -> dict[str, str]:
    """The line that says what the numbers on the page were measured with."""
    return {
        "env": args.env,
        "views": str(len(policy.views)),
        "chunk": f"{policy.chunk} (runs {policy.execute})",
        "seed": str(args.seed),
        "batch": str(args.batch),
        "max steps": str(args.max_steps),
        "device": policy.device,
        "dtype": str(policy.dtype).removeprefix("torch."),
        "vlakern": vlakern.__version__,
    }


def _show(result: Any) -> None:
    out = console()
    out.print(_success_table(result))
    out.print(_latency_table(result))
    cold = result.cold_start_ms.get("total")
    first = "not measured" if cold is None else f"{cold:.1f} ms"
    steps = sum(row.steps for row in result.episodes)
    out.print(
        f"cold start (first call, not in the table): {first}\n"
        f"{len(result.episodes)} episodes, {steps} control steps, {len(result.calls)} policy calls "
        f"of {result.mean_batch:.1f} episodes on average, {result.seconds:.1f} s",
        soft_wrap=True,
    )


def _success_table(result: Any) -> Table:
    table = Table(title=f"success of {escape(result.policy)}", title_justify="left")
    table.add_column("task")
    for name in ("successes", "rate", "Wilson 95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for task in result.tasks:
        _success_row(table, task.task, task.successes, task.episodes, task.wilson95)
    table.add_section()
    _success_row(table, "mean", result.successes, len(result.episodes), result.wilson95)
    return table


def _success_row(
    table: Table, name: str, successes: int, episodes: int, interval: tuple[float, float]
) -> None:
    low, high = (f"{100 * bound:.1f}" for bound in interval)
    rate = f"{100 * successes / episodes:.1f} %"
    table.add_row(name, f"{successes}/{episodes}", rate, f"{low} – {high} %")


def _latency_table(result: Any) -> Table:
    table = Table(title=escape("latency of a policy call [ms]"), title_justify="left")
    table.add_column("stage")
    for name in ("p50", "p95", "p99", "max", "p99-p50"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage, value in result.latency_ms.items():
        shown = (value["p50"], value["p95"], value["p99"], value["max"])
        row = (*shown, value["p99"] - value["p50"])
        table.add_row(stage, *(f"{milliseconds:.2f}" for milliseconds in row))
    if not result.latency_ms:
        table.add_row("not measured", *["-"] * 5)
    return table
