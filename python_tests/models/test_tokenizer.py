"""The tokenizer spells any text, survives its file, and refuses what is not one."""

from pathlib import Path

import pytest

from vlakern.errors import CheckpointError, InputError
from vlakern.models.tokenizer import TextTokenizer, fit_tokenizer

TEXTS = ["push the puck to the goal", "open the drawer", "press the button"]


def test_any_text_is_spelt() -> None:
    """Words that were never seen become bytes; nothing is dropped or unknown."""
    tokenizer = fit_tokenizer(TEXTS, 300)
    for text in (*TEXTS, "Zzz!", "ü 机器人 🤖", " two  spaces\n"):
        assert tokenizer._tokenizer.decode(tokenizer.encode(text)) == text


def test_seen_words_are_shorter_than_their_letters() -> None:
    """The merges come from the texts."""
    tokenizer = fit_tokenizer(TEXTS, 400)
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0]) / 2


def test_fitting_repeats(tmp_path: Path) -> None:
    """The order of the texts and repeats of one do not matter."""
    one = fit_tokenizer(TEXTS, 300).to_json()
    assert fit_tokenizer([*reversed(TEXTS), TEXTS[1]], 300).to_json() == one


def test_the_file_gives_the_same_tokenizer(tmp_path: Path) -> None:
    """Written and read it encodes the same ids."""
    tokenizer = fit_tokenizer(TEXTS, 300)
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    again = TextTokenizer.from_file(path, 300)
    assert again.encode("push 🤖") == tokenizer.encode("push 🤖")


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b'{"model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}', b"\xff\xfe"],
)
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    """Empty, foreign, contradictory or not even text: one sentence with the path."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer"):
        TextTokenizer.from_file(path, 300)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    """Every beginning of a good file is refused."""
    path, text = tmp_path / "tokenizer.json", fit_tokenizer(TEXTS, 300).to_json()
    for length in (1, 100, len(text) // 2, len(text) - 1):
        path.write_text(text[:length], encoding="utf-8")
        with pytest.raises(CheckpointError, match="copy it again"):
            TextTokenizer.from_file(path, 300)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Not an error of the operating system."""
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        TextTokenizer.from_file(tmp_path / "tokenizer.json", 300)


def test_more_tokens_than_the_model_has_are_refused(tmp_path: Path) -> None:
    """An id beyond the embedding would read past its end."""
    path = tmp_path / "tokenizer.json"
    path.write_text(fit_tokenizer(TEXTS, 270).to_json(), encoding="utf-8")
    assert TextTokenizer.from_file(path, 270)
    with pytest.raises(CheckpointError, match=r"has 270 tokens, more than .* vocab_size 269"):
        TextTokenizer.from_file(path, 269)


def test_half_a_surrogate_pair_is_not_text() -> None:
    """It has no UTF-8, so the library could not take it."""
    with pytest.raises(InputError, match="half a surrogate pair"):
        fit_tokenizer(TEXTS, 300).encode("push \ud83e")
