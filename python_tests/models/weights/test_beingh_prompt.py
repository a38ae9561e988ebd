"""Being-H's chat has the tokens that its own inference puts together piece by piece."""

import pytest
from tokenizers import Tokenizer

from vlakern.errors import ConfigError
from vlakern.models.prompts import Prompts
from vlakern.models.sequence import document
from vlakern.models.tokenizer import TextTokenizer, fit_tokenizer
from vlakern.models.weights.beingh_prompt import INSTRUCTION, beingh_prompt

SPECIAL = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<|state_start|>", "<|state_end|>"]
SYSTEM = "You are a robot.\nBe careful."


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    """A byte-level BPE with the chat's special tokens, as Qwen's is."""
    plain = fit_tokenizer([SYSTEM, INSTRUCTION, "system\n user\n assistant\n\n open the door"], 400)
    made = Tokenizer.from_str(plain.to_json())
    made.add_special_tokens(SPECIAL)
    return TextTokenizer(made, 500)


def pieces(tokenizer: TextTokenizer, views: int, said: str) -> list[int | str]:
    """The order of ``_prepare_packed_inputs`` of Being-H0.5, piece by piece."""
    bos, eos, image, no_image, state, no_state = (tokenizer.id_of(name) or -1 for name in SPECIAL)
    (newline,) = tokenizer.encode("\n")
    system = [bos, *tokenizer.encode(f"system\n{SYSTEM}"), eos, newline]
    user = [bos, *tokenizer.encode("user\n"), image, *["view"] * views, no_image]
    told = [state, "state", no_state, *tokenizer.encode(said), eos, newline]
    return [*system, *user, *told, bos, *tokenizer.encode("assistant\n")]


@pytest.mark.parametrize("views", [1, 3])
def test_tokens_are_those_of_its_inference(tokenizer: TextTokenizer, views: int) -> None:
    """All views inside one pair of tags, the state before the instruction."""
    config, rule = beingh_prompt(SYSTEM, 16)
    ids = Prompts(rule, tokenizer)("open the door")
    segments = document(config, tokenizer.encode, ids, views)
    found = [one for s in segments for one in (s.tokens if s.kind == "text" else [s.kind])]
    said = INSTRUCTION.format(task_description="open the door", k=16)
    assert found == pieces(tokenizer, views, said)


def test_tags_around_each_view(tokenizer: TextTokenizer) -> None:
    """As in its training: two more tags for each further view."""
    lengths = []
    for one_wrap in (True, False):
        config, _ = beingh_prompt(SYSTEM, 16, "{task_description}", one_wrap=one_wrap)
        segments = document(config, tokenizer.encode, [1], 3)
        lengths.append(sum(len(one.tokens) for one in segments))
    assert lengths[1] - lengths[0] == 4


def test_a_sentence_without_the_instruction_is_refused() -> None:
    """The field's name is in the sentence."""
    with pytest.raises(ConfigError, match=r"expected {task_description} once"):
        beingh_prompt(SYSTEM, 16, "do it in {k} steps")
