"""Text to token ids through a policy's own file, of the tokenizers library or SentencePiece."""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vlakern.errors import CheckpointError, InputError
from vlakern.untrusted import read_bounded, shown

__all__ = [
    "FILES",
    "TextTokenizer",
    "check_size",
    "check_text",
    "fit_tokenizer",
    "tokenizer_file",
]

# What a directory may call its tokenizer, the first that is there being read.
FILES = ("tokenizer.json", "tokenizer.model", "paligemma_tokenizer.model")
MOST_BYTES = 64 << 20  # that of a quarter of a million words has 33 MiB


class TextTokenizer:
    """Encodes prompt text; ids are checked against the model's vocabulary.

    Attributes:
        file: what a policy directory calls it.
    """

    file = "tokenizer.json"

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, where: str = "tokenizer.json"
    ) -> None:
        check_size(tokenizer.get_vocab_size(with_added_tokens=True), vocab_size, where)
        # Prompts have their own rule for length, and documents are packed.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    @classmethod
    def from_file(cls, path: Path, vocab_size: int, whose: str = "") -> "TextTokenizer":
        """Reads ``path``: JSON of the tokenizers library, or a SentencePiece ``.model``.

        Args:
            whose: a repository that has this tokenizer, for the message where it is missing.

        Raises:
            CheckpointError: when the file is missing or not a tokenizer.
            Unsupported: a SentencePiece model, and the extra ``spm`` is not installed.
        """
        needed = "a policy directory needs its tokenizer"
        if whose:
            needed += f"; copy {FILES[0]} of {shown(whose)} there"
        content = read_bounded(path, MOST_BYTES, needed)
        if path.suffix == ".model":
            from vlakern.models.pieces import PieceTokenizer

            return PieceTokenizer(content, vocab_size, str(path))
        with _Reading(path):
            tokenizer = Tokenizer.from_str(content.decode("utf-8"))
        return cls(tokenizer, vocab_size, str(path))

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, no special tokens added.

        Raises:
            InputError: the text holds half a surrogate pair, which has no UTF-8.
        """
        check_text(text)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name, None if there is none."""
        return self._tokenizer.token_to_id(token)

    def to_json(self) -> str:
        """The content of ``tokenizer.json``."""
        return self._tokenizer.to_str(pretty=False)

    def to_bytes(self) -> bytes:
        """The content of :attr:`file`."""
        return self.to_json().encode("utf-8")


def tokenizer_file(directory: Path) -> Path:
    """The tokenizer of a directory; ``tokenizer.json`` where there is none at all."""
    found = (directory / name for name in FILES if (directory / name).is_file())
    return next(found, directory / FILES[0])


def check_text(text: str) -> None:
    """Raises InputError for text that has no UTF-8."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{text!r} is not text: it holds half a surrogate pair")


def check_size(found: int, vocab_size: int, where: str) -> None:
    """Raises CheckpointError for more tokens than the model has."""
    if found > vocab_size:
        raise CheckpointError(
            f"{where} has {found} tokens, more than the model's vocab_size {vocab_size}; it belongs"
            " to another model"
        )


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
