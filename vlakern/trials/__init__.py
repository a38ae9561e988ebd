"""Statistics of success counts that are honest at small sample sizes.

Only :func:`wilson`, the Newcombe intervals, :func:`mcnemar`, :func:`holm` and
:func:`compact_letters` do without scipy, which the extra ``[blind]`` brings.
"""

from vlakern.trials.agreement import Kappa, cohen_kappa
from vlakern.trials.blinding import (
    BlindingIndex,
    bang_index,
    guess_test,
    james_index,
    mean_bang_index,
)
from vlakern.trials.bradley_terry import BradleyTerry, Strength, bradley_terry, bradley_terry_blocks
from vlakern.trials.exact import McNemar, boschloo, boschloo_table, mcnemar
from vlakern.trials.intervals import (
    beta,
    bounded_mean,
    newcombe,
    newcombe_paired,
    newcombe_stratified,
    wilson,
)
from vlakern.trials.multiple import compact_letters, holm
from vlakern.trials.order import OrderEffect, order_effect
from vlakern.trials.power import (
    PowerRow,
    SequentialPower,
    power,
    power_sentence,
    power_table,
    sequential_power,
    visible_gap,
)
from vlakern.trials.sequential import (
    EProcess,
    anytime_p,
    confidence_sequence,
    first_crossing,
    paired_e_process,
    paired_log_e,
    two_sample_e_process,
)
from vlakern.trials.stratified import (
    MantelHaenszel,
    Stratum,
    cochran_mantel_haenszel,
    risk_difference,
    stratified_exact,
)

__all__ = [
    "BlindingIndex",
    "BradleyTerry",
    "EProcess",
    "Kappa",
    "MantelHaenszel",
    "McNemar",
    "OrderEffect",
    "PowerRow",
    "SequentialPower",
    "Stratum",
    "Strength",
    "anytime_p",
    "bang_index",
    "beta",
    "boschloo",
    "boschloo_table",
    "bounded_mean",
    "bradley_terry",
    "bradley_terry_blocks",
    "cochran_mantel_haenszel",
    "cohen_kappa",
    "compact_letters",
    "confidence_sequence",
    "first_crossing",
    "guess_test",
    "holm",
    "james_index",
    "mcnemar",
    "mean_bang_index",
    "newcombe",
    "newcombe_paired",
    "newcombe_stratified",
    "order_effect",
    "paired_e_process",
    "paired_log_e",
    "power",
    "power_sentence",
    "power_table",
    "risk_difference",
    "sequential_power",
    "stratified_exact",
    "two_sample_e_process",
    "visible_gap",
    "wilson",
]
