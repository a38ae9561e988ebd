"""Prompts are token by token those of openpi; what is too long is cut, which is said once."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlakern.errors import ConfigError
from vlakern.models.processing import Cleaning, PromptRule
from vlakern.models.prompts import Prompts
from vlakern.models.tokenizer import TextTokenizer, fit_tokenizer

# Written by weights/make_golden_processing.py with openpi's own tokenizer class.
GOLDEN = Path(__file__).parent / "weights" / "golden" / "processing"
CASES = json.loads((GOLDEN / "cases.json").read_text())
CLEAN: tuple[Cleaning, ...] = ("strip", "underscores", "newlines")
PI0 = PromptRule(CLEAN, "", ("{instruction}", "\n"), "<bos>", 48)
PI05 = PromptRule(CLEAN, "", ("Task: {instruction}, State: {state};\nAction: ",), "<bos>", 200)
WORDS = fit_tokenizer(["press the button"], 300)


def test_tokens_are_openpis() -> None:
    """With a SentencePiece file: first token, cleaned words, newline or state, and the cut."""
    pytest.importorskip("sentencepiece")
    tokenizer, case = TextTokenizer.from_file(GOLDEN / "tokenizer.model", 400), CASES["openpi"]
    pi0, pi05 = Prompts(PI0, tokenizer), Prompts(PI05, tokenizer)
    states = np.array(case["quantile"]["normalised"])
    for i, task in enumerate(CASES["tasks"]):
        assert pi0(task) == case["tokens_pi0"][i]
        assert pi05(task, states[i % 3]) == case["tokens_pi05"][i]
    cut = Prompts(replace(PI0, most_tokens=20), tokenizer)
    assert cut(CASES["tasks"][3]) == case["tokens_cut"] == pi0(CASES["tasks"][3])[:20]


def test_the_default_is_the_instruction() -> None:
    """No first token, no cut."""
    text = " press_the\nbutton " * 50
    assert Prompts(PromptRule(), WORDS)(text) == WORDS.encode(text)


def test_a_cut_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Every prompt that is too long is cut; the log has one line about it."""
    prompts = Prompts(PromptRule(most_tokens=3), WORDS)
    with caplog.at_level(logging.WARNING):
        assert prompts("xyz") == WORDS.encode("xyz")
        assert prompts("wxyz") == prompts("wxyzzz") == WORDS.encode("wxy")
    assert [one.getMessage()[:34] for one in caplog.records] == [
        "a prompt of 4 tokens is cut to 3, "
    ]


def test_a_first_token_that_is_not_there_is_refused() -> None:
    """The tokenizer belongs to another model."""
    with pytest.raises(ConfigError, match="bos is '<bos>', which the tokenizer does not have"):
        Prompts(PI0, WORDS)
