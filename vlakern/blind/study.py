"""The study file: which models, tasks and rules; read from TOML and checked before anything else.

Names of the pool stay with the runner: nothing an operator or a judge reaches is made from them.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vlakern.blind.results import Analysis
from vlakern.errors import ConfigError
from vlakern.records import from_dict, read_toml

__all__ = ["Breaks", "PoolModel", "Study", "Task", "read_study"]

MOST_TRIALS = 10_000
ABORTS = ("hardware fault", "safety stop", "wrong initial condition", "operator error")
FAILURES = ("no contact", "dropped", "wrong object", "stuck", "timeout", "unsafe")


@dataclass(frozen=True)
class PoolModel:
    """One model of the pool: a policy and, for ablations, how it is run.

    Attributes:
        policy: name of a policy that ships, or a policy directory.
        nickname: what operators may call it when they guess; none where they may know nothing.
        dtype: as of :func:`vlakern.load`.
        steps: of the flow's integration; the policy's own by default.
        drop_views: cameras that it is not shown; drop_state: its proprioception is zeroed.
    """

    name: str
    policy: str
    nickname: str = ""
    dtype: str = "auto"
    steps: int | None = None
    drop_views: tuple[str, ...] = ()
    drop_state: bool = False

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.policy.strip():
            raise ConfigError(f"a model needs a name and a policy, found {self.name!r}")
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise ConfigError(f"steps of {self.name!r} is {self.steps}, expected 1 to 1000")


@dataclass(frozen=True)
class Task:
    """What is tried and when it counts as done.

    Attributes:
        criterion: of success, as a judge reads it.
        conditions: initial conditions that every model of a group meets alike.
        instruction: what the policy is told; the name by default.
        milestones: of the rubric, in order; progress is the fraction reached.
        seconds: after which a trial is over [s].
    """

    name: str
    criterion: str
    conditions: tuple[str, ...]
    instruction: str = ""
    milestones: tuple[str, ...] = ()
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if not self.conditions:
            raise ConfigError(f"task {self.name!r} has no initial condition; expected at least one")
        _different(self.conditions, f"condition of task {self.name!r}")
        _different(self.milestones, f"milestone of task {self.name!r}")
        if not 0.0 < self.seconds <= 86_400.0:
            raise ConfigError(
                f"seconds of task {self.name!r} is {self.seconds:g}, expected more than 0 and at"
                " most a day"
            )


@dataclass(frozen=True)
class Breaks:
    """Enforced pauses: after so many trials, and between groups [min]."""

    every: int = 20
    minutes: float = 5.0
    between_groups: float = 10.0

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"breaks.every is {self.every}, expected at least 1 trial")
        for name in ("minutes", "between_groups"):
            if not 0.0 <= getattr(self, name) <= 1440.0:
                raise ConfigError(
                    f"breaks.{name} is {getattr(self, name):g}, expected 0 to 1440 minutes"
                )


@dataclass(frozen=True)
class Study:
    """A whole study.

    Attributes:
        group_size: K, models that are interleaved with one another.
        trials: N, of every model at every task.
        bridge: a model of the pool that runs in every group, so that groups can be told apart from
            models.
        judges: 1 or 2 for every trial.
        deadline_ms: every reply leaves this long after its request [ms].
        horizon: rows of every reply; the shortest chunk of the pool by default.
        token_days: after which the tokens of operator, judges and analyst expire.
    """

    title: str
    models: tuple[PoolModel, ...]
    tasks: tuple[Task, ...]
    group_size: int
    trials: int
    bridge: str | None = None
    judges: int = 1
    deadline_ms: float = 500.0
    horizon: int | None = None
    token_days: float = 30.0
    breaks: Breaks = field(default_factory=Breaks)
    analysis: Analysis = field(default_factory=Analysis)
    abort_reasons: tuple[str, ...] = ABORTS
    failure_tags: tuple[str, ...] = FAILURES

    def __post_init__(self) -> None:
        _different((model.name for model in self.models), "model")
        _different((task.name for task in self.tasks), "task")
        _different(self.abort_reasons, "abort reason")
        _different(self.failure_tags, "failure tag")
        nicknames = [model.nickname for model in self.models if model.nickname]
        _different(nicknames, "nickname")
        if nicknames and len(nicknames) != len(self.models):
            raise ConfigError("some models have a nickname and others none; give all or none")
        self._check_counts()
        self._check_groups()
        self._check_analysis()

    def _check_counts(self) -> None:
        if not self.tasks or not self.abort_reasons or not self.failure_tags:
            raise ConfigError("a study needs a task, an abort reason and a failure tag")
        if not 1 <= self.trials <= MOST_TRIALS:
            raise ConfigError(f"trials is {self.trials}, expected 1 to {MOST_TRIALS}")
        if self.judges not in (1, 2):
            raise ConfigError(f"judges is {self.judges}, expected 1 or 2")
        if not 1.0 <= self.deadline_ms <= 60_000.0:
            raise ConfigError(f"deadline_ms is {self.deadline_ms:g}, expected 1 to 60000")
        if self.horizon is not None and not 1 <= self.horizon <= 4096:
            raise ConfigError(f"horizon is {self.horizon}, expected 1 to 4096 actions")
        if not 0.0 < self.token_days <= 3650.0:
            raise ConfigError(f"token_days is {self.token_days:g}, expected 0 to 3650")

    def _check_groups(self) -> None:
        names = [model.name for model in self.models]
        if self.bridge is not None and self.bridge not in names:
            raise ConfigError(f"bridge {self.bridge!r} is none of the models {', '.join(names)}")
        if not 2 <= self.group_size <= len(names):
            raise ConfigError(
                f"group_size is {self.group_size} and the pool has {len(names)} models; expected"
                f" 2 to {len(names)}"
            )
        if min(self.group_sizes) < 2:
            raise ConfigError(
                f"{len(names)} models in groups of {self.group_size} would leave a model alone in"
                " its group, where it cannot be blind; choose another group_size or a bridge"
            )
        if self.trials * len(self.tasks) * sum(self.group_sizes) > MOST_TRIALS:
            raise ConfigError(f"the study has more than {MOST_TRIALS} trials; make it smaller")

    def _check_analysis(self) -> None:
        if not 0.0 < self.analysis.alpha < 0.5:
            raise ConfigError(f"analysis.alpha is {self.analysis.alpha:g}, expected 0 to 0.5")
        names = {model.name for model in self.models}
        for pair in self.analysis.pairs:
            if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= names:
                raise ConfigError(
                    f"analysis.pairs holds {list(pair)}, expected two different models of the pool"
                )

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Models in each group, the bridge included; they differ by at most one."""
        bridged = int(self.bridge is not None)
        others = len(self.models) - bridged
        groups = math.ceil(others / (self.group_size - bridged))
        small, larger = divmod(others, groups)
        return tuple(small + bridged + (index < larger) for index in range(groups))

    @property
    def total(self) -> int:
        """Trials of the whole study."""
        return sum(self.group_sizes) * len(self.tasks) * self.trials


def read_study(path: Path) -> Study:
    """The study of a TOML file.

    Raises:
        ConfigError: naming the key, what was expected and what was found.
    """
    study = from_dict(Study, read_toml(path), str(path))
    folder = path.resolve().parent
    # A policy directory is meant from the file's place, whatever the shell's is.
    models = tuple(
        dataclasses.replace(model, policy=str(folder / model.policy))
        if (folder / model.policy).is_dir()
        else model
        for model in study.models
    )
    return dataclasses.replace(study, models=models)


def _different(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not name.strip():
            raise ConfigError(f"a {what} has no name; give it one")
        if name in seen:
            raise ConfigError(f"{what} {name!r} stands there twice; expected different ones")
        seen.add(name)
