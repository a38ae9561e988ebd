"""Tokens: one per role, shown once, kept as hashes, void after their time."""

import stat
from pathlib import Path

import pytest

from vlakern.blind.seal import lock
from vlakern.blind.tokens import draw_tokens, read_tokens, roles
from vlakern.errors import StudyError


@pytest.fixture
def folder(study_file: Path, tmp_path: Path) -> Path:
    """A locked study."""
    lock(study_file, tmp_path / "s")
    return tmp_path / "s"


def test_each_role_has_a_token_of_its_own(folder: Path) -> None:
    """A token opens its role alone; the file holds none of them and is its owner's."""
    tokens = draw_tokens(folder, 2, 30.0, now=0.0)
    kept = read_tokens(folder)
    assert tuple(tokens) == roles(2)
    assert len(set(tokens.values())) == len(tokens) == 5
    for role, token in tokens.items():
        assert kept.role(token, now=1.0) == role
    path = folder / "sealed/tokens.json"
    assert not any(token in path.read_text() for token in tokens.values())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_token_that_expired_is_named(folder: Path) -> None:
    """Two days after its end it says so, and what draws a new one."""
    token = draw_tokens(folder, 1, 30.0, now=0.0)["operator"]
    with pytest.raises(StudyError, match=r"expired 2\.0 days ago; `vlakern blind tokens`"):
        read_tokens(folder).role(token, now=32 * 86_400.0)


def test_other_words_are_nobodys(folder: Path) -> None:
    """Nothing, a part, and a token from before the last draw are refused alike."""
    old = draw_tokens(folder, 1, 30.0)["operator"]
    new = draw_tokens(folder, 1, 30.0)["operator"]
    for word in ("", new[:-1], new + "x", old, "Ω"):
        with pytest.raises(StudyError, match="not known"):
            read_tokens(folder).role(word)


def test_one_judge_needs_no_adjudicator() -> None:
    """Only two can disagree."""
    assert roles(1) == ("operator", "judge-1", "analyst")
