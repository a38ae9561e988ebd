"""Being-H's chat: the order of its tokens and its sentence around an instruction."""

from vlakern.errors import ConfigError
from vlakern.models.config import PromptConfig
from vlakern.models.processing import PromptRule

__all__ = ["INSTRUCTION", "beingh_prompt"]

# What its server says unless it is told otherwise.
INSTRUCTION = (
    "According to the instruction '{task_description}', what's the micro-step actions in the next"
    " {k} steps?"
)


def beingh_prompt(
    system: str, chunk: int, instruction: str = INSTRUCTION, *, one_wrap: bool = True
) -> tuple[PromptConfig, PromptRule]:
    """The document's order and the instruction's text.

    Args:
        system: the system message of the checkpoint.
        chunk: actions of a chunk, the sentence's ``{k}``.
        instruction: the sentence, with ``{task_description}``.
        one_wrap: image tags once around all views, as its inference has it; around each, as its
            training has it, otherwise.

    Raises:
        ConfigError: a sentence without the instruction.
    """
    if instruction.count("{task_description}") != 1:
        raise ConfigError(
            f"instruction template is {instruction!r}, expected {{task_description}} once"
        )
    sentence = instruction.replace("{k}", str(chunk)).replace("{task_description}", "{instruction}")
    template = (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        "{views}",
        "<|state_start|>",
        "{state}",
        "<|state_end|>",
        "{instruction}",
        "<|im_end|>\n<|im_start|>assistant\n",
    )
    wrap = "all" if one_wrap else "each"
    return PromptConfig(template, "<img>", "</img>", wrap), PromptRule(parts=(sentence,))
