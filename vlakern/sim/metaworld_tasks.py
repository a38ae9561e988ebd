"""The fifty Meta-World tasks, each with a sentence of its own, and named groups of them."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from vlakern.errors import InputError

__all__ = ["SUITES", "TASKS", "Task", "task_names"]


@dataclass(frozen=True)
class Task:
    """One task: the simulator's name and what a policy is told."""

    name: str
    instruction: str


_INSTRUCTIONS = {
    "assembly-v3": "put the ring onto the peg",
    "basketball-v3": "drop the basketball into the hoop",
    "bin-picking-v3": "move the block from one bin to the other",
    "box-close-v3": "put the lid on the box",
    "button-press-topdown-v3": "press the button from above",
    "button-press-topdown-wall-v3": "press the button behind the wall from above",
    "button-press-v3": "press the button from the front",
    "button-press-wall-v3": "reach over the wall and press the button from the front",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "lift the ring off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door",
    "hand-insert-v3": "put the block into the hole",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-open-v3": "turn the faucet on",
    "faucet-close-v3": "turn the faucet off",
    "hammer-v3": "hammer the nail into the wall",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up from the side",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "pick-place-wall-v3": "carry the puck over the wall to the goal",
    "pick-out-of-hole-v3": "take the puck out of the hole",
    "pick-place-v3": "pick up the puck and hold it at the goal",
    "plate-slide-v3": "slide the plate into the net",
    "plate-slide-side-v3": "slide the plate sideways into the net",
    "plate-slide-back-v3": "slide the plate back out of the net",
    "plate-slide-back-side-v3": "slide the plate sideways out of the net",
    "peg-insert-side-v3": "insert the peg into the hole in the side of the box",
    "peg-unplug-side-v3": "pull the peg out of the socket",
    "soccer-v3": "push the ball into the soccer goal",
    "stick-push-v3": "push the kettle with the stick",
    "stick-pull-v3": "pull the kettle with the stick",
    "push-v3": "push the puck to the goal",
    "push-wall-v3": "push the puck around the wall to the goal",
    "push-back-v3": "pull the puck back to the goal",
    "reach-v3": "move the hand to the goal",
    "reach-wall-v3": "move the hand around the wall to the goal",
    "shelf-place-v3": "place the block on the shelf",
    "sweep-into-v3": "sweep the block into the hole",
    "sweep-v3": "sweep the block off the table",
    "window-open-v3": "slide the window open",
    "window-close-v3": "slide the window shut",
}

TASKS: Mapping[str, Task] = {
    name: Task(name, instruction) for name, instruction in _INSTRUCTIONS.items()
}

SUITES: Mapping[str, tuple[str, ...]] = {
    "mw5": (
        "reach-v3",
        "push-v3",
        "drawer-open-v3",
        "door-open-v3",
        "button-press-topdown-v3",
    ),
}


def task_names(words: str) -> tuple[str, ...]:
    """The tasks that a comma-separated list of tasks and suites names, each once, in its order.

    Raises:
        InputError: a word that is neither, with the words that it resembles.
    """
    names: dict[str, None] = {}
    for word in (part.strip() for part in words.split(",")):
        if word not in SUITES and word not in TASKS:
            close = difflib.get_close_matches(word, [*SUITES, *TASKS], n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(close)}?" if close else f"try {', '.join(SUITES)}"
            raise InputError(f"unknown task {word!r} in --tasks; {hint}")
        names.update(dict.fromkeys(SUITES.get(word, (word,))))
    return tuple(names)
