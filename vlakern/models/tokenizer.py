"""Text to token ids through a ``tokenizer.json`` of the tokenizers library."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vlakern.errors import CheckpointError

__all__ = ["TextTokenizer", "fit_tokenizer"]


class TextTokenizer:
    """Encodes prompt text; ids are checked against the model's vocabulary."""

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, where: str = "tokenizer.json"
    ) -> None:
        found = tokenizer.get_vocab_size(with_added_tokens=True)
        if found > vocab_size:
            raise CheckpointError(
                f"{where} has {found} tokens, more than the model's vocab_size {vocab_size}; it"
                " belongs to another model"
            )
        self._tokenizer = tokenizer

    @classmethod
    def from_file(cls, path: Path, vocab_size: int) -> "TextTokenizer":
        """Reads ``path``.

        Raises:
            CheckpointError: when the file is missing or not a tokenizer.
        """
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; a policy directory needs its tokenizer")
        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain Exception for whatever it cannot read
            raise CheckpointError(
                f"{path} is not a tokenizer of the tokenizers library ({error}); copy it again"
            ) from error
        return cls(tokenizer, vocab_size, str(path))

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, no special tokens added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def to_json(self) -> str:
        """The content of ``tokenizer.json``."""
        return self._tokenizer.to_str(pretty=False)


def fit_tokenizer(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """A byte-level BPE over ``texts`` that can still spell any other text."""
    tokenizer = Tokenizer(models.BPE())
    # The library's stubs declare these settable properties read-only.
    setattr(tokenizer, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False))  # noqa: B010
    setattr(tokenizer, "decoder", decoders.ByteLevel())  # noqa: B010
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    return TextTokenizer(tokenizer, vocab_size)
