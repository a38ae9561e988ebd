"""A SentencePiece model encodes as the library itself does; without the library it is refused."""

import sys
from pathlib import Path

import pytest

from vlakern.errors import CheckpointError, InputError, Unsupported
from vlakern.models.pieces import PieceTokenizer
from vlakern.models.tokenizer import TextTokenizer, tokenizer_file

FILE = Path(__file__).parent / "weights" / "golden" / "processing" / "tokenizer.model"


def test_without_the_extra_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with what to install."""
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(Unsupported, match=r"tokenizer\.model is a SentencePiece .* vlakern\[spm\]"):
        TextTokenizer.from_file(FILE, 400)


def test_it_is_the_librarys(tmp_path: Path) -> None:
    """Ids, names of tokens, and the file that is written."""
    library = pytest.importorskip("sentencepiece")
    peer = library.SentencePieceProcessor(model_file=str(FILE))
    found = TextTokenizer.from_file(FILE, 400)
    for text in (
        "open the drawer",
        "  two  spaces\n",
        "ü 机器人 🤖",
        "State: -1 255;\nAction: ",
        "",
    ):
        assert found.encode(text) == peer.encode(text)
    assert [found.id_of(name) for name in ("<bos>", "<s>", "nothing")] == [2, None, None]
    (tmp_path / found.file).write_bytes(found.to_bytes())
    again = TextTokenizer.from_file(tokenizer_file(tmp_path), 400)
    assert again.encode("press") == found.encode("press")


def test_what_is_no_model_is_refused() -> None:
    """Foreign bytes, too many tokens, text without UTF-8."""
    pytest.importorskip("sentencepiece")
    for content in (b"", b"not a model", FILE.read_bytes()[:2000]):
        with pytest.raises(CheckpointError, match="is not a SentencePiece model"):
            PieceTokenizer(content, 400, "x.model")
    with pytest.raises(CheckpointError, match=r"x\.model has 380 tokens, more than .* 300"):
        PieceTokenizer(FILE.read_bytes(), 300, "x.model")
    with pytest.raises(InputError, match="half a surrogate pair"):
        PieceTokenizer(FILE.read_bytes(), 400).encode("\ud800")
