"""A whole study in the simulator, from the lock to the report."""

from collections import Counter
from pathlib import Path

from vlakern.blind.demo import play, study_text
from vlakern.blind.report import report
from vlakern.blind.store import verify
from vlakern.blind.study import read_study


def test_a_whole_study_in_the_simulator(tmp_path: Path) -> None:
    """Four models in two groups, one trial each; everything is judged, opened and reported."""
    file = tmp_path / "study.toml"
    file.write_text(study_text(("drawer-open-v3",), 1))
    assert read_study(file).group_sizes == (2, 2)
    found = play(file, tmp_path / "s")
    assert found.verified
    assert Counter(one.model for one in found.results) == {
        "as shipped": 1, "one step": 1, "int8": 1, "one camera": 1,
    }  # fmt: skip
    assert next(one for one in found.results if one.model == "as shipped").success
    lock, trials, guesses, judgements, rests, ends = 1, 8, 3, 4, 2, 3
    assert verify(tmp_path / "s/record") == lock + trials + guesses + judgements + rests + ends
    assert len(report(found).rates) >= 4
