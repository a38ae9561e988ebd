"""From an instruction and a state to the token ids of a document's text.

Dimension letters: B observations, N native numbers of a state, W indices of a slot map, S numbers
that a prompt holds.
"""

import logging
from collections.abc import Sequence

import numpy as np

from vlakern.errors import ConfigError
from vlakern.models.processing import PromptRule
from vlakern.models.tokenizer import TextTokenizer
from vlakern.space.action_space import ActionSpace

__all__ = ["Prompts"]

log = logging.getLogger("vlakern.models")


class Prompts:
    """A prompt rule with the tokenizer that it is for.

    Attributes:
        rule: from an instruction to text.
    """

    def __init__(self, rule: PromptRule, tokenizer: TextTokenizer) -> None:
        """Finds the first token.

        Raises:
            ConfigError: the tokenizer does not have it.
        """
        self.rule = rule
        self._tokenizer = tokenizer
        self._first: list[int] = []
        self._told = False
        if rule.bos:
            first = tokenizer.id_of(rule.bos)
            if first is None:
                raise ConfigError(
                    f"processing.prompt.bos is {rule.bos!r}, which the tokenizer does not have; it"
                    " belongs to another model"
                )
            self._first = [first]

    def states(self, space: ActionSpace, native_BN: np.ndarray) -> Sequence[np.ndarray | None]:
        """The normalised numbers of each state that its text holds, None if it holds none."""
        if not self.rule.has_state:
            return [None] * len(native_BN)
        exact_BW = space.encode_state(native_BN, np.float64)
        return list(exact_BW if self.rule.numbers == "padded" else exact_BW[:, space.state_mask])

    def __call__(self, instruction: str, state_S: np.ndarray | None = None) -> list[int]:
        """Token ids of one instruction.

        Args:
            state_S: the normalised state that the text holds, for rules that have one.

        Raises:
            InputError: the instruction is not text.
        """
        ids = list(self._first)
        for text in self.rule.texts(instruction, state_S):
            ids += self._tokenizer.encode(text)
        most = self.rule.most_tokens
        if most is None or len(ids) <= most:
            return ids
        if not self._told:
            log.warning(
                "a prompt of %d tokens is cut to %d, as the model's own code does: its end is lost;"
                " say it in fewer words",
                len(ids),
                most,
            )
            self._told = True
        return ids[:most]
