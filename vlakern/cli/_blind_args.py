"""What ``vlakern blind`` is asked for: a dataclass of words for each step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

__all__ = [
    "Args",
    "BackupArgs",
    "DemoArgs",
    "ExportArgs",
    "LockArgs",
    "LookArgs",
    "PlanArgs",
    "ReportArgs",
    "ServeArgs",
    "StatusArgs",
    "TokensArgs",
    "UnblindArgs",
    "VerifyArgs",
]


@dataclass
class PlanArgs:
    """Look at a study before anything is locked: groups, hours, what so many trials show."""

    study: tyro.conf.Positional[Path]
    """the study's TOML file; examples/blind_study.toml shows all of it"""
    json: Path | None = None
    """write the plan for programs to this file"""


@dataclass
class LockArgs:
    """Draw groups, order and aliases, and seal them; shows the commitment and all tokens once."""

    study: tyro.conf.Positional[Path]
    """the study's TOML file"""
    folder: tyro.conf.Positional[Path]
    """new folder of the study"""


@dataclass
class TokensArgs:
    """Draw new tokens for all roles; the earlier ones are void."""

    folder: tyro.conf.Positional[Path]
    """of a locked study"""


@dataclass
class ServeArgs:
    """Run a locked study: the robot's endpoint (openpi's protocol) and the people's pages."""

    folder: tyro.conf.Positional[Path]
    """of a locked study"""
    host: str = "127.0.0.1"
    """Address of both; for one that other machines reach, the robot's client needs a token."""
    port: int = 8000
    """Port of the robot's endpoint; 0 takes a free one."""
    web_port: int = 8080
    """Port of the pages; 0 takes a free one."""
    names: tuple[str, ...] = ()
    """Host names under which browsers may ask for the pages, beside --host."""


@dataclass
class StatusArgs:
    """Say where a study stands, without a name; a study that is served says it on its pages."""

    folder: tyro.conf.Positional[Path]
    """of a locked study"""
    json: Path | None = None
    """write it for programs to this file"""


@dataclass
class VerifyArgs:
    """Check the record's two copies, the sealed key against its commitment, and every video."""

    folder: tyro.conf.Positional[Path]
    """of a locked study"""
    head: str = ""
    """the record's head that `status` showed earlier: shows that no end was cut off since"""


@dataclass
class BackupArgs:
    """Copy the record into a new folder, checked, while the study is served or not."""

    folder: tyro.conf.Positional[Path]
    """of a locked study"""
    to: tyro.conf.Positional[Path]
    """new folder, better on another disk"""


@dataclass
class ExportArgs:
    """Write all trials so far as CSV, while the study is served or not; names once unblinded."""

    folder: tyro.conf.Positional[Path]
    """of a locked study"""
    csv: Path
    """the file to write"""


@dataclass
class LookArgs:
    """In a sequential design: which comparisons are decided, without names; it is logged."""

    folder: tyro.conf.Positional[Path]
    """of a study whose server is ended for the look; it goes on where it was"""


@dataclass
class UnblindArgs:
    """Give the names of a closed study, in two logged steps: without --commitment the first."""

    folder: tyro.conf.Positional[Path]
    """of a closed study"""
    commitment: str = ""
    """the second step: the commitment that the lock showed"""


@dataclass
class ReportArgs:
    """Write the report of a study that was closed and unblinded: HTML, JSON, CSV."""

    folder: tyro.conf.Positional[Path]
    """of a study"""
    out: Path = Path("blind-report")
    """folder to write report.html and the tables into"""
    json: Path | None = None
    """write the report for programs to this file"""


@dataclass
class DemoArgs:
    """Run a whole study in Meta-World: four ways to run metaworld-small, in two groups."""

    out: Path = Path("blind-demo")
    """new folder for the study and its report"""
    trials: int = 5
    """of each model at each task"""
    tasks: tuple[str, ...] = ("reach-v3", "drawer-open-v3")
    """tasks of Meta-World"""
    json: Path | None = None
    """write the report for programs to this file"""


Do = (
    Annotated[PlanArgs, tyro.conf.subcommand("plan")]
    | Annotated[LockArgs, tyro.conf.subcommand("lock")]
    | Annotated[TokensArgs, tyro.conf.subcommand("tokens")]
    | Annotated[ServeArgs, tyro.conf.subcommand("serve")]
    | Annotated[StatusArgs, tyro.conf.subcommand("status")]
    | Annotated[VerifyArgs, tyro.conf.subcommand("verify")]
    | Annotated[BackupArgs, tyro.conf.subcommand("backup")]
    | Annotated[ExportArgs, tyro.conf.subcommand("export")]
    | Annotated[LookArgs, tyro.conf.subcommand("look")]
    | Annotated[UnblindArgs, tyro.conf.subcommand("unblind")]
    | Annotated[ReportArgs, tyro.conf.subcommand("report")]
    | Annotated[DemoArgs, tyro.conf.subcommand("demo")]
)


@dataclass
class Args:
    """Compare policies blind: plan, lock, serve, judge, unblind, report."""

    do: tyro.conf.OmitSubcommandPrefixes[Do]
