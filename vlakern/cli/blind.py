"""``vlakern blind``: policies compared by people who do not know which is which."""

import asyncio
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from vlakern.cli._blind_args import (
    Args,
    BackupArgs,
    DemoArgs,
    ExportArgs,
    LockArgs,
    LookArgs,
    PlanArgs,
    ReportArgs,
    ServeArgs,
    StatusArgs,
    TokensArgs,
    UnblindArgs,
    VerifyArgs,
)
from vlakern.cli._common import Progress, check_json, check_writable, console, write_report
from vlakern.errors import ConfigError, StudyError

__all__ = ["Args", "run"]

MINUTES = 2.0  # of a trial with its reset, for the estimate


def run(args: Args) -> int:
    """Runs the step; returns 0."""
    steps: dict[type, Callable[[Any], int]] = {
        PlanArgs: _plan,
        LockArgs: _lock,
        TokensArgs: _tokens,
        ServeArgs: _serve,
        StatusArgs: _status,
        VerifyArgs: _verify,
        BackupArgs: _backup,
        ExportArgs: _export,
        LookArgs: _look,
        UnblindArgs: _unblind,
        ReportArgs: _report,
        DemoArgs: _demo,
    }
    return steps[type(args.do)](args.do)


def _plan(args: PlanArgs) -> int:
    from vlakern.blind.study import read_study
    from vlakern.trials import power_sentence, power_table

    check_json(args.json)
    study = read_study(args.study)
    alpha, sequential = study.analysis.alpha, study.analysis.design == "sequential"
    rests = study.total / study.breaks.every * study.breaks.minutes
    rests += (len(study.group_sizes) - 1) * study.breaks.between_groups
    hours = (study.total * MINUTES + rests) / 60
    pairs = sum(size * (size - 1) // 2 for size in study.group_sizes)
    pairs = len(study.analysis.pairs) or pairs
    sizes = sorted({5, 10, 20, 50, 100, study.trials})
    rows = power_table(sizes, alpha=alpha, sequential=sequential)
    said = power_sentence(study.trials, alpha=alpha, pairs=pairs, sequential=sequential)
    out = console()
    out.print(
        f"{escape(study.title)}: {len(study.models)} models in groups of"
        f" {', '.join(map(str, study.group_sizes))}, {len(study.tasks)} tasks, {study.trials}"
        f" trials of each model at each task: {study.total} trials, about {hours:.1f} hours with"
        f" breaks, at {MINUTES:g} minutes a trial",
        soft_wrap=True,
    )
    table = Table("trials N", "gap seen with 80 % power", "Wilson 95 % at one half")
    for row in rows:
        gap = "none" if row.gap is None else f"{100 * row.gap:.0f} points"
        table.add_row(str(row.n), gap, f"± {100 * row.half_width:.0f} points")
    out.print(table)
    out.print(said, soft_wrap=True)
    if args.json is not None:
        payload = {"groups": list(study.group_sizes), "trials": study.total, "hours": hours}
        payload |= {"power": [{"n": row.n, "gap": row.gap} for row in rows], "sentence": said}
        write_report(args.json, args, payload)
    return 0


def _lock(args: LockArgs) -> int:
    from vlakern.blind.seal import lock, open_key
    from vlakern.blind.tokens import draw_tokens

    public = lock(args.study, args.folder)
    study = open_key(args.folder).study
    tokens = draw_tokens(args.folder, study.judges, study.token_days)
    print(f"{args.folder}: {len(public.plan.queue)} trials, locked")
    print(f"commitment {public.commitment}")
    print("Publish or mail the commitment now: it proves later that nothing was changed.")
    _show_tokens(tokens, study.token_days)
    return 0


def _tokens(args: TokensArgs) -> int:
    from vlakern.blind.seal import open_key
    from vlakern.blind.tokens import draw_tokens

    study = open_key(args.folder).study
    _show_tokens(draw_tokens(args.folder, study.judges, study.token_days), study.token_days)
    return 0


def _show_tokens(tokens: Mapping[str, str], days: float) -> None:
    print(f"Tokens, shown this once, for {days:g} days:")
    for role, token in tokens.items():
        print(f"  {role:<12} {token}")


def _serve(args: ServeArgs) -> int:
    import secrets

    from vlakern.blind.site import SiteConfig
    from vlakern.serve.settings import loopback

    token = None if loopback(args.host) else secrets.token_urlsafe(24)
    config = SiteConfig(args.host, args.port, args.web_port, args.names, token)
    if not 0 <= args.web_port < 1 << 16:
        raise ConfigError(f"web_port is {args.web_port}, expected 0 to 65535")
    asyncio.run(_serve_until_signal(args.folder, config))
    return 0


async def _serve_until_signal(folder: Path, config: Any) -> None:
    from vlakern.blind.site import Addresses, serve_study

    ending = asyncio.Event()
    for one in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(one, ending.set)

    def ready(addresses: Addresses) -> None:
        print(f"pages at {addresses.pages}, the robot's endpoint at {addresses.robot}", flush=True)
        if config.token is not None:
            print(f"the robot's client sends the token {config.token}")
            print("warning: nothing is encrypted; use a tunnel or a proxy with TLS", flush=True)

    await serve_study(folder, config, ready, ending)
    print("the study is saved; serve it again to go on")


def _status(args: StatusArgs) -> int:
    check_json(args.json)
    with closing(_desk(args.folder)) as desk:
        from vlakern.blind.web.views import analyst

        found = analyst(desk, {})
    names = "started", "ended", "judged", "entries", "head", "commitment", "missing", "step"
    said = {name: found[name] for name in names}
    for name, value in said.items():
        print(f"{name:<11} {'; '.join(value) if isinstance(value, list) else value}")
    if args.json is not None:
        write_report(args.json, args, said)
    return 0


def _verify(args: VerifyArgs) -> int:
    import hashlib

    from vlakern.blind.seal import open_key
    from vlakern.blind.store import verify

    key = open_key(args.folder)
    count = verify(args.folder / "record", args.head)
    with closing(_desk(args.folder)) as desk:
        trials = [one for one in desk.conduct.state.trials.values() if one.video is not None]
    for one in trials:
        path = args.folder / "videos" / str(one.video)
        if not path.is_file():
            raise StudyError(f"the video {path} of trial {one.trial.code} is missing")
        if hashlib.sha256(path.read_bytes()).hexdigest() != one.sha256:
            raise StudyError(f"the video {path} of trial {one.trial.code} was changed")
    print(
        f"{count} entries in both copies of the record, chained; the key gives the commitment"
        f" {key.commitment}; {len(trials)} videos are those that were recorded"
    )
    return 0


def _backup(args: BackupArgs) -> int:
    from vlakern.blind.store import backup, verify

    backup(args.folder / "record", args.to)
    print(f"{verify(args.to)} entries copied to {args.to} and checked")
    print("plan.json, videos/ and sealed/ are not in it: copy them too, sealed/ for the runner")
    return 0


def _export(args: ExportArgs) -> int:
    from vlakern.blind.opened import running_study
    from vlakern.blind.tables import trials
    from vlakern.files import write_bytes

    plan, key, state = running_study(args.folder)
    write_bytes(args.csv, trials(plan, state, key.allocation.models).encode())
    names = "without names" if state.unblinded is None else "with names"
    print(f"{args.csv}: {len(state.started)} trials, {names}")
    return 0


def _look(args: LookArgs) -> int:
    with closing(_desk(args.folder)) as desk:
        decided = desk.look(f"look {time.time_ns()}").data["decided"]
    for name, yes in decided.items():
        print(f"{name}: {'decided, it may stop' if yes else 'not decided, go on'}")
    print(f"{sum(decided.values())} of {len(decided)} are decided; the look is in the record")
    return 0


def _unblind(args: UnblindArgs) -> int:
    with closing(_desk(args.folder)) as desk:
        if not args.commitment:
            desk.request("request from the command line")
            print(
                "The request is logged. Second step: the same command with --commitment and the"
                " commitment that the lock showed."
            )
            return 0
        desk.unblind("names by the command line", args.commitment)
    print(f"The names are given; `vlakern blind report {args.folder}` writes the report.")
    return 0


def _report(args: ReportArgs) -> int:
    check_json(args.json)
    args.out.mkdir(parents=True, exist_ok=True)
    check_writable(args.out)
    from vlakern.blind.opened import open_study

    _write(open_study(args.folder), args.out, args.json, args)
    return 0


def _demo(args: DemoArgs) -> int:
    if args.trials < 1:
        raise ConfigError(f"trials is {args.trials}, expected at least 1")
    if args.out.exists():
        raise StudyError(f"{args.out} is there already; give a new folder with --out")
    check_json(args.json)
    from vlakern.blind.demo import play, study_text

    text = study_text(args.tasks, args.trials)
    args.out.mkdir(parents=True)
    file = args.out / "study.toml"
    file.write_text(text, encoding="utf-8")
    with Progress(4 * len(args.tasks) * args.trials, "trials") as bar:
        found = play(file, args.out / "study", lambda count: bar.update(1))
    _write(found, args.out, args.json, args)
    return 0


def _write(study: Any, out: Path, json: Path | None, args: Any) -> None:
    """The report in all its forms, and its findings on the terminal."""
    from vlakern.blind.report import report
    from vlakern.blind.report_csv import write_csv
    from vlakern.blind.report_html import write_html

    made = report(study)
    write_html(made, out / "report.html")
    write_csv(made, out)
    if json is not None:
        write_report(json, args, made.to_json())
    shown = console()
    for sentence in (*made.warnings, *made.findings):
        shown.print(f"- {escape(sentence)}", soft_wrap=True)
    print(f"report: {out / 'report.html'}")


def _desk(folder: Path) -> Any:
    """The study, opened for one step without its models."""
    from vlakern.blind.web.desk import Desk, NoModels

    return Desk(folder, NoModels())
