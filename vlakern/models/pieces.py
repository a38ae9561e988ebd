"""Text to token ids through a SentencePiece model, as openpi's tokenizer files are."""

from typing import Any

from vlakern.errors import CheckpointError, Unsupported
from vlakern.models.tokenizer import TextTokenizer, check_size, check_text

__all__ = ["PieceTokenizer"]


class PieceTokenizer(TextTokenizer):
    """A :class:`TextTokenizer` whose file is a SentencePiece model; it needs the extra ``spm``."""

    file = "tokenizer.model"

    def __init__(self, content: bytes, vocab_size: int, where: str = "tokenizer.model") -> None:
        """Reads the content of a model's file.

        Raises:
            Unsupported: SentencePiece is not installed.
            CheckpointError: the content is no SentencePiece model, or has too many tokens.
        """
        self._pieces = _processor(content, where)
        self._content = content
        check_size(self._pieces.get_piece_size(), vocab_size, where)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, no special tokens added; raises as :class:`TextTokenizer`."""
        check_text(text)
        return self._pieces.encode(text, add_bos=False, add_eos=False)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name, None if there is none."""
        found = self._pieces.piece_to_id(token)
        # Whatever is not there has the id of the unknown.
        return found if self._pieces.id_to_piece(found) == token else None

    def to_json(self) -> str:
        """Refused: a SentencePiece model has no JSON."""
        raise CheckpointError(f"a SentencePiece model is written as {self.file}, not as JSON")

    def to_bytes(self) -> bytes:
        """The content of the file that it was read from."""
        return self._content


def _processor(content: bytes, where: str) -> Any:
    try:
        from sentencepiece import SentencePieceProcessor  # pyright: ignore
    except ImportError as error:
        raise Unsupported(
            f"{where} is a SentencePiece model, and SentencePiece is not installed; install"
            " vlakern[spm], or put the same tokenizer's tokenizer.json beside it"
        ) from error
    processor = SentencePieceProcessor()
    try:
        read = bool(content) and processor.LoadFromSerializedProto(content)
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{where} is not a SentencePiece model; copy it again") from error
    if not read:
        raise CheckpointError(f"{where} is not a SentencePiece model; copy it again")
    return processor
