"""Between openpi's flat keys and a policy's observations.

Dimension letters: H image height, W image width, S state width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from vlakern.errors import ConfigError, InputError
from vlakern.serve.prefix import PrefixRule
from vlakern.types import ActionPrefix, Observation

__all__ = ["REQUEST", "Asked", "Keys", "asked", "observation", "parse_keys"]

PROMPTS = ("prompt", "task")
STATES = ("observation/state", "state", "observation.state")
PLACES = ("observation/{}", "images/{}", "observation/images/{}", "observation.images.{}", "{}")
SEED = "seed"
# A number that comes back with the reply: openpi's protocol cannot tell a reply from an older one.
REQUEST = "request"
LEAVES = (np.ndarray, str, int)  # the second question takes longer
MOST_SIDE = 4096  # pixels
# Attention takes time by the square of the tokens, and a byte may be one [bytes of UTF-8].
MOST_PROMPT = 1024


@dataclass(frozen=True)
class Keys:
    """Which keys of a message hold what.

    Attributes:
        views: of the policy.
        of_view: view -> key, where the sender calls it otherwise than ``PLACES`` say.
        state: keys whose numbers are joined in this order; one of ``STATES`` by default.
        state_width: numbers of the state, any by default.
        prefix: which decided actions a message may hold, none by default.
    """

    views: tuple[str, ...]
    of_view: Mapping[str, str] = field(default_factory=dict)
    state: tuple[str, ...] = ()
    state_width: int | None = None
    prefix: PrefixRule = field(default_factory=PrefixRule)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.of_view) - set(self.views))
        if unknown:
            raise ConfigError(
                f"key of view {unknown[0]!r}: the policy's views are {', '.join(self.views)}"
            )

    def announced(self) -> dict[str, Any]:
        """What a message may hold, for the handshake."""
        views = {view: list(self._places(view)) for view in self.views}
        return {
            "views": views,
            "image": {"dtype": "uint8", "shape": ["height", "width", 3], "most_side": MOST_SIDE},
            "state": list(self.state or STATES),
            "state_width": self.state_width,
            "prompt": list(PROMPTS),
            "prompt_most": MOST_PROMPT,
            "seed": SEED,
            "request": REQUEST,
            **self.prefix.announced(),
        }

    @cached_property
    def _view_at(self) -> dict[str, str]:
        """Key -> view; a key that two views have is the first one's."""
        pairs = [(key, view) for view in self.views for key in self._places(view)]
        return dict(reversed(pairs))

    def _places(self, view: str) -> tuple[str, ...]:
        if view in self.of_view:
            return (self.of_view[view],)
        return tuple(place.format(view) for place in PLACES)

    def split(
        self, message: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Any, Any, ActionPrefix | None]:
        """Images by view, state, prompt and prefix of a message.

        Raises:
            InputError: a key that is unknown, missing or there twice.
        """
        flat = _flat(message)
        images: dict[str, Any] = {}
        for key in [key for key in flat if key in self._view_at]:
            view = self._view_at[key]
            if view in images:
                raise InputError(f"view {view!r} is there twice, the second as {key!r}")
            images[view] = flat.pop(key)
        state = self._state(flat)
        prompt = next((flat.pop(key) for key in PROMPTS if key in flat), None)
        flat.pop(SEED, None)
        flat.pop(REQUEST, None)
        prefix = self.prefix.taken(flat)
        if flat:
            known = [*self.views, *(self.state or STATES[:1]), PROMPTS[0]]
            raise InputError(
                f"key {min(flat)[:80]!r} is unknown; this policy takes {', '.join(known)}"
            )
        return images, state, prompt, prefix

    def _state(self, flat: dict[str, Any]) -> np.ndarray:
        if not self.state:
            found = [flat.pop(key) for key in STATES if key in flat]
        else:
            missing = [key for key in self.state if key not in flat]
            if missing:
                raise InputError(f"key {missing[0]!r} is missing; it holds a part of the state")
            found = [flat.pop(key) for key in self.state]
        if not found:
            raise InputError(f"the state is missing; send it as {STATES[0]!r}")
        numbers = [_numbers(one) for one in found]
        state = numbers[0] if len(numbers) == 1 else np.concatenate(numbers)
        if self.state_width not in (None, len(state)):
            raise InputError(f"a state of {len(state)} numbers, expected {self.state_width}")
        if not np.isfinite(state).all():
            raise InputError("a state with numbers that are not finite")
        return state


def _flat(message: Mapping[str, Any]) -> dict[str, Any]:
    """Keys joined by ``/``: openpi's ALOHA clients nest their images."""
    if not isinstance(message, Mapping):
        raise InputError(f"a message that is a {type(message).__name__}, expected a map of keys")
    flat: dict[str, Any] = {}
    for key, value in message.items():
        if not isinstance(key, str):
            raise InputError(f"key {key!r} is no word")
        if not isinstance(value, LEAVES) and isinstance(value, Mapping):
            flat.update({f"{key}/{inner}": one for inner, one in value.items()})
        else:
            flat[key] = value
    return flat


def _numbers(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        return value.ravel()
    if not isinstance(value, (np.ndarray, list, float, int)):
        raise InputError(f"a state that is a {type(value).__name__}, expected an array of numbers")
    try:
        found = np.asarray(value)
        if found.dtype.kind not in "fiub":  # words of digits would become numbers
            raise TypeError(found.dtype.name)
        with np.errstate(over="ignore"):  # an infinity then, which is refused
            return found.astype(np.float32).ravel()
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError("a state that is no list of numbers; send an array") from error


def _picture(image: Any, view: str) -> np.ndarray:
    """``[H, W, 3]`` uint8; openpi's ALOHA clients send ``[3, H, W]``."""
    if not isinstance(image, np.ndarray):
        raise InputError(f"view {view!r} is a {type(image).__name__}, expected an array")
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        image = image.transpose(1, 2, 0)
    expected = ""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        expected = "uint8 [height, width, 3]"
    elif min(image.shape) < 1 or max(image.shape) > MOST_SIDE:
        expected = f"sides of 1 to {MOST_SIDE}"
    if expected:
        found = f"{image.dtype.name}{list(image.shape)}"
        raise InputError(f"view {view!r} is {found}, expected {expected}")
    return np.ascontiguousarray(image)


@dataclass(frozen=True)
class Asked:
    """What a message asks for."""

    observation: Observation
    seed: int | None
    prefix: ActionPrefix | None


def asked(message: Mapping[str, Any], keys: Keys) -> Asked:
    """What a message holds.

    Raises:
        InputError: naming the key that is wrong.
    """
    images, state, prompt, prefix = keys.split(message)
    if not isinstance(prompt, str):
        raise InputError(f"the prompt is a {type(prompt).__name__}, expected words as 'prompt'")
    size = len(prompt.encode(errors="surrogatepass"))
    if size > MOST_PROMPT:
        raise InputError(f"a prompt of {size} bytes, expected at most {MOST_PROMPT}")
    for key in (SEED, REQUEST):
        value = message.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < 1 << 63):
            found = str(value)[:40]
            raise InputError(f"{key} is {found!r}, expected a whole number from 0 to 2^63 - 1")
    pictures = {view: _picture(images[view], view) for view in keys.views if view in images}
    return Asked(Observation(pictures, state, prompt), message.get(SEED), prefix)


def observation(message: Mapping[str, Any], keys: Keys) -> tuple[Observation, int | None]:
    """Observation and seed of :func:`asked`."""
    found = asked(message, keys)
    return found.observation, found.seed


def parse_keys(
    views: Sequence[str], words: Sequence[str], state: Sequence[str], state_width: int | None = None
) -> Keys:
    """From ``VIEW=KEY`` words.

    Raises:
        ConfigError: a word without ``=``, or a view that the policy does not have.
    """
    bad = [word for word in words if "=" not in word]
    if bad:
        raise ConfigError(f"key {bad[0]!r}: expected VIEW=KEY")
    named = dict(word.split("=", 1) for word in words)
    return Keys(tuple(views), named, tuple(state), state_width)
