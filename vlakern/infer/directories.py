"""From what a user calls a policy to its directory."""

import re
from importlib import resources
from pathlib import Path

from vlakern.errors import CheckpointError
from vlakern.untrusted import shown

__all__ = ["policy_directory", "shipped_policies"]

MOST = 320  # letters of a path in a sentence
# An owner and a name, as the Hugging Face hub has them.
HUB = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)")


def shipped_policies() -> list[str]:
    """Names of the policies inside the package."""
    root = resources.files("vlakern") / "policies"
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if (entry / "config.json").is_file())


def policy_directory(name_or_directory: str | Path) -> Path:
    """The directory of a policy that ships, or the one that is named.

    Raises:
        CheckpointError: there is none; says what is there instead and what to do.
    """
    name = str(name_or_directory)
    if name in shipped_policies():
        return Path(str(resources.files("vlakern") / "policies" / name))
    path, called = Path(name_or_directory), _called(name)
    try:
        if name and path.is_dir():
            return path
        is_file, is_link = path.is_file(), path.is_symlink()
    except (OSError, ValueError):  # too long for a path, or with a byte that no path has
        is_file = is_link = False
    if is_file:
        raise CheckpointError(
            f"{called} is a file, expected a policy directory; name the directory that holds it"
        )
    if is_link:
        raise CheckpointError(
            f"{called} is a link that leads nowhere, expected a policy directory; link it again"
        )
    found = HUB.fullmatch(name)
    if found is not None and not path.parent.is_dir():
        raise CheckpointError(
            f"no policy {called}: not a directory, and nothing is downloaded from the Hugging"
            f" Face hub here; run: hf download {found[1]} --local-dir DIRECTORY, and name that"
        )
    raise CheckpointError(
        f"no policy {called}: neither a directory nor one that ships"
        f" ({', '.join(shipped_policies()) or 'none'})"
    )


def _called(name: str) -> str:
    """The name as a sentence quotes it, whole unless it is absurd."""
    return repr(name) if name.isprintable() and len(name) <= MOST else shown(name)
