"""Text to token ids through a ``tokenizer.json`` of the tokenizers library."""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vlakern.errors import CheckpointError, InputError
from vlakern.untrusted import read_bounded

__all__ = ["TextTokenizer", "fit_tokenizer"]

MOST_BYTES = 64 << 20  # that of a quarter of a million words has 33 MiB


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
        content = read_bounded(path, MOST_BYTES, "a policy directory needs its tokenizer")
        with _Reading(path):
            tokenizer = Tokenizer.from_str(content.decode("utf-8"))
        return cls(tokenizer, vocab_size, str(path))

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, no special tokens added.

        Raises:
            InputError: the text holds half a surrogate pair, which has no UTF-8.
        """
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{text!r} is not text: it holds half a surrogate pair")
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def to_json(self) -> str:
        """The content of ``tokenizer.json``."""
        return self._tokenizer.to_str(pretty=False)


class _Reading:
    """Turns what goes wrong inside the block into a CheckpointError.

    The library raises plain ``Exception`` for whatever it cannot read, so its exact class is asked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is Exception or isinstance(error, UnicodeDecodeError):
            raise CheckpointError(
                f"{self._path} is not a tokenizer of the tokenizers library ({error}); copy it"
                " again"
            ) from error


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
