"""The lock: a study's folder with its public plan, its sealed key, and the commitment to both.

``plan.json`` and ``record/`` hold no name, path or option of a model. ``sealed/`` is the runner's
alone: the allocation, the salt, the study file. The commitment, SHA-256 of all of that with a
random salt, is shown at the lock and proves later that nothing was changed.
"""

import dataclasses
import hashlib
import random
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vlakern import __version__
from vlakern.blind.events import canonical
from vlakern.blind.plan import Allocation, Plan, draw
from vlakern.blind.store import Store
from vlakern.blind.study import PoolModel, Study, read_study
from vlakern.errors import ConfigError, StudyError
from vlakern.files import atomic_directory, write_bytes, write_json
from vlakern.records import from_dict, to_dict
from vlakern.untrusted import read_json

__all__ = [
    "PLAN",
    "SEALED",
    "Key",
    "PublicPlan",
    "check_model",
    "identities",
    "lock",
    "open_key",
    "read_plan",
]

PLAN, SEALED = "plan.json", "sealed"
KEY, STUDY = "key.json", "study.toml"
LIMIT = 16 << 20  # bytes of a plan of 10,000 trials
FORMAT = 1


@dataclass(frozen=True)
class PublicTask:
    """A task as operators and judges read it; see :class:`vlakern.blind.study.Task`."""

    name: str
    criterion: str
    instruction: str
    milestones: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class PublicPlan:
    """What everyone may read.

    Attributes:
        guess_choices: what an operator is asked to choose from after a trial.
        commitment: SHA-256 of salt, study, plan, allocation and identities.
        analysis: SHA-256 of salt and analysis plan.
        locked: UTC [s since 1970].
    """

    format: int
    title: str
    tasks: tuple[PublicTask, ...]
    plan: Plan
    trials: int
    judges: int
    break_every: int
    break_minutes: float
    group_minutes: float
    abort_reasons: tuple[str, ...]
    failure_tags: tuple[str, ...]
    guess_choices: tuple[str, ...]
    commitment: str
    analysis: str
    locked: float
    vlakern: str


@dataclass(frozen=True)
class Key:
    """What the runner alone reads.

    Attributes:
        identities: model -> SHA-256 of its files and options.
        file, file_sha256: the study file at the lock.
    """

    study: Study
    plan: Plan
    allocation: Allocation
    identities: Mapping[str, str]
    salt: str
    file: str
    file_sha256: str

    @property
    def commitment(self) -> str:
        """SHA-256 of everything that was decided at the lock."""
        return _digest(
            self.salt,
            {
                "study": to_dict(self.study),
                "plan": to_dict(self.plan),
                "allocation": to_dict(self.allocation),
                "identities": dict(self.identities),
            },
        )


def lock(file: Path, folder: Path, source: random.Random | None = None) -> PublicPlan:
    """Draws groups, queue and aliases, and writes the study's folder in one step.

    Args:
        source: the operating system's entropy by default; another one in tests alone.

    Raises:
        ConfigError, CheckpointError: the study file or a policy is wrong.
        StudyError: the folder is there already, or two models are the same.
    """
    if folder.exists():
        raise StudyError(f"{folder} is there already; a study is locked once, into a new folder")
    study = read_study(file)
    found = identities(study)
    plan, allocation = draw(study, source or random.SystemRandom())
    content = file.read_bytes()
    key = Key(
        study,
        plan,
        allocation,
        found,
        secrets.token_hex(32),
        str(file.resolve()),
        hashlib.sha256(content).hexdigest(),
    )
    public = _public(key)
    with atomic_directory(folder) as there:
        there.chmod(0o700)  # whoever watches the files grow learns what the pages do not say
        write_json(there / PLAN, to_dict(public))
        with Store(there / "record") as store:
            store.append("lock", "runner", "locked", {"commitment": public.commitment})
        (there / "videos").mkdir(mode=0o700)
        (there / SEALED).mkdir(mode=0o700)
        write_bytes(there / SEALED / STUDY, content)
        write_json(there / SEALED / KEY, to_dict(key))
        for path in (there / PLAN, there / SEALED / STUDY, there / SEALED / KEY):
            path.chmod(0o600)
    return public


def _public(key: Key) -> PublicPlan:
    study = key.study
    nicknames = tuple(sorted(model.nickname for model in study.models if model.nickname))
    return PublicPlan(
        format=FORMAT,
        title=study.title,
        tasks=tuple(
            PublicTask(
                task.name,
                task.criterion,
                task.instruction or task.name,
                task.milestones,
                task.seconds,
            )
            for task in study.tasks
        ),
        plan=key.plan,
        trials=study.trials,
        judges=study.judges,
        break_every=study.breaks.every,
        break_minutes=study.breaks.minutes,
        group_minutes=study.breaks.between_groups,
        abort_reasons=study.abort_reasons,
        failure_tags=study.failure_tags,
        guess_choices=nicknames or ("same", "different"),
        commitment=key.commitment,
        analysis=_digest(key.salt, to_dict(study.analysis)),
        locked=time.time(),
        vlakern=__version__,
    )


def read_plan(folder: Path) -> PublicPlan:
    """The public plan of a study's folder.

    Raises:
        StudyError: there is none, or it is damaged.
    """
    needed = "`vlakern blind lock` makes one"
    values = read_json(folder / PLAN, LIMIT, needed, StudyError)
    try:
        found = from_dict(PublicPlan, values, str(folder / PLAN))
    except ConfigError as error:
        raise StudyError(f"{error}; copy the study again") from error
    if found.format != FORMAT:
        raise StudyError(f"{folder / PLAN} has format {found.format}, expected {FORMAT}")
    return found


def open_key(folder: Path) -> Key:
    """The sealed key, checked against the public plan and the study file.

    Raises:
        StudyError: others may read it, it does not give the commitment that was shown, or the study
            file was changed after the lock.
    """
    sealed, public = folder / SEALED, read_plan(folder)
    for path in (sealed, sealed / KEY):
        if path.exists() and path.stat().st_mode & 0o077:
            raise StudyError(
                f"other users may read {path}; `chmod go= {path}`, and ask who has seen it"
            )
    try:
        key = from_dict(Key, read_json(sealed / KEY, LIMIT, error=StudyError), str(sealed / KEY))
    except ConfigError as error:
        raise StudyError(f"{error}; the sealed key was changed after the lock") from error
    if key.commitment != public.commitment or key.plan != public.plan:
        raise StudyError(
            f"the sealed key does not give the commitment {public.commitment[:12]} of {PLAN}; one"
            " of the two was changed after the lock, and the study cannot be trusted"
        )
    wrong = _changed(public, key)
    if wrong:
        raise StudyError(
            f"{folder / PLAN} was changed after the lock: its {', '.join(wrong)} differ from the"
            " sealed study's; restore it from a copy"
        )
    for path in (sealed / STUDY, Path(key.file)):
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != key.file_sha256:
            raise StudyError(
                f"{path} was changed after the lock; put it back, or lock a new study with it"
            )
    return key


def _changed(public: PublicPlan, key: Key) -> list[str]:
    """Fields of the public plan that do not follow from the sealed study."""
    own = {"locked", "vlakern"}  # said by the lock alone
    expected = _public(key)
    return [
        field.name
        for field in dataclasses.fields(public)
        if field.name not in own and getattr(public, field.name) != getattr(expected, field.name)
    ]


def identities(study: Study) -> dict[str, str]:
    """Model -> SHA-256 of its files and of how it is run.

    Raises:
        StudyError: two models are the same.
    """
    found: dict[str, str] = {}
    for model in study.models:
        identity = identity_of(model)
        twin = next((name for name, one in found.items() if one == identity), None)
        if twin is not None:
            raise StudyError(
                f"models {twin!r} and {model.name!r} have one checkpoint hash ({identity[:12]}) and"
                " the same options; give each model once"
            )
        found[model.name] = identity
    return found


def identity_of(model: PoolModel) -> str:
    """SHA-256 of a model's files and of how it is run."""
    folder = _folder(model)
    files = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    options = {
        "dtype": model.dtype,
        "steps": model.steps,
        "drop_views": sorted(model.drop_views),
        "drop_state": model.drop_state,
    }
    return hashlib.sha256(canonical({"files": files, "options": options})).hexdigest()


def check_model(key: Key, model: PoolModel) -> None:
    """Refuses a model whose files are not those of the lock.

    Raises:
        StudyError: naming the model.
    """
    if identity_of(model) != key.identities[model.name]:
        raise StudyError(
            f"the policy of model {model.name!r} was changed after the lock; put it back, or lock a"
            " new study with it"
        )


def _folder(model: PoolModel) -> Path:
    """Where the model's files are."""
    shipped = Path(str(resources.files("vlakern") / "policies" / model.policy))
    for folder in (Path(model.policy), shipped):
        if folder.is_dir() and any(folder.iterdir()):
            return folder
    raise StudyError(
        f"policy {model.policy!r} of model {model.name!r} is neither a directory nor one that ships"
    )


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _digest(salt: str, value: Any) -> str:
    return hashlib.sha256(salt.encode() + b"\n" + canonical(value)).hexdigest()
