"""An interim look of a sequential design: which comparisons are decided, and of whom is not said.

The e-process is valid at any time, so a study may end as soon as enough is decided. Pairs go by
aliases that the sealed salt gives: the same at every look, in an order that says nothing.
"""

import hashlib
from itertools import combinations, takewhile

from vlakern.blind.opened import named
from vlakern.blind.report_compare import chosen_pairs, compare
from vlakern.blind.seal import Key, PublicPlan
from vlakern.blind.state import State
from vlakern.errors import StudyError

__all__ = ["look"]


def look(plan: PublicPlan, key: Key, state: State) -> dict[str, bool]:
    """Alias of each comparison -> whether it is decided.

    Only trials before the first one without an outcome count: judges see videos in another order,
    and the e-process is valid along one order alone.

    Raises:
        StudyError: the design is fixed, and looks once, at the end.
        ConfigError: scipy is not installed.
    """
    if key.study.analysis.design != "sequential":
        raise StudyError(
            'the analysis plan says design = "fixed", which looks once, at the end; a study that'
            ' may be looked at is locked with design = "sequential"'
        )
    study = named(plan, key, state)
    done = {row.code for row in study.results}
    kept = [code for code in state.started if state.trials[code].aborted is None]
    first = set(takewhile(done.__contains__, kept))
    seen = [row for row in study.results if row.code in first]
    together = [{*pair} for group in study.groups for pair in combinations(group, 2)]
    names = [pair for pair in chosen_pairs(study) if {*pair} in together]
    decided = {frozenset((row.first, row.second)): row.different for row in compare(study, seen)}
    shuffled = sorted(names, key=lambda pair: _mixed(key.salt, pair))
    return {
        f"comparison {index + 1}": decided.get(frozenset(pair), False)
        for index, pair in enumerate(shuffled)
    }


def _mixed(salt: str, pair: tuple[str, str]) -> str:
    return hashlib.sha256("\n".join((salt, "look", *sorted(pair))).encode()).hexdigest()
