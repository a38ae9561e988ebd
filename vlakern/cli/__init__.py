"""The command line: one file per verb, each a dataclass of options and a function over it."""

import errno
import os
import sys
from collections.abc import Callable, Sequence

import tyro

from vlakern import __version__
from vlakern.cli import bench, blind, collect, convert, data, doctor, rollout, serve, train
from vlakern.errors import VlakernError

__all__ = ["VERBS", "main"]

VERBS = {
    "doctor": doctor,
    "bench": bench,
    "data": data,
    "collect": collect,
    "train": train,
    "rollout": rollout,
    "serve": serve,
    "blind": blind,
    "convert": convert,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns 0 (done) or 1 (it failed); wrong words exit with 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        print(f"vlakern {__version__}")
        return 0
    verbs = {name: module.Args for name, module in VERBS.items()}
    args = tyro.extras.subcommand_cli_from_dict(verbs, prog="vlakern", args=words)
    verb = next(module for module in VERBS.values() if isinstance(args, module.Args))
    return _guarded(lambda: verb.run(args))


def _guarded(work: Callable[[], int]) -> int:
    """Runs ``work`` and turns what can go wrong outside the program into one sentence."""
    try:
        code = work()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader left; the interpreter's own flush at exit must not complain a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except VlakernError as error:
        print(f"vlakern: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"vlakern: {_sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vlakern: interrupted", file=sys.stderr)
        return 1


def _sentence(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason += "; free some space or write elsewhere, nothing half-written was left"
    return f"{error.filename}: {reason}" if error.filename is not None else reason
