"""Prefixes of real-time chunking in a message, which openpi's protocol has no room for.

A server whose policy takes them says so in its metadata, as ``keys.prefix``; a client that knows
nothing of them sends none. Dimension letters: K decided actions, A action width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlakern.errors import InputError
from vlakern.types import ActionPrefix, PrefixForm

__all__ = ["PREFIX", "PrefixRule", "forms_of", "prefix_message"]

PREFIX = "prefix"
PARTS = ("actions", "frozen", "form")
PLACES = tuple(f"{PREFIX}/{name}" for name in PARTS)
DTYPES = ("float32", "float64")
MOST_STEPS = 4096  # actions


@dataclass(frozen=True)
class PrefixRule:
    """What a server's policy takes.

    Attributes:
        forms: of prefixes, none for a policy that knows of none.
        width: A, any by default.
    """

    forms: tuple[PrefixForm, ...] = ()
    width: int | None = None

    def announced(self) -> dict[str, Any]:
        """For the handshake; empty where there is nothing to say."""
        if not self.forms:
            return {}
        actions = {"dtype": list(DTYPES), "shape": ["steps", self.width], "most_steps": MOST_STEPS}
        return {PREFIX: {"key": PREFIX, "forms": list(self.forms), "actions": actions}}

    def taken(self, flat: dict[str, Any]) -> ActionPrefix | None:
        """The prefix of a message with flat keys, which are taken out of it.

        Raises:
            InputError: a part that is missing or wrong, or a form that the policy does not take.
        """
        if not any(place in flat for place in PLACES):
            return None
        if not self.forms:
            raise InputError("this policy takes no prefix; send none")
        missing = [place for place in PLACES if place not in flat]
        if missing:
            raise InputError(f"{missing[0]} is missing; a prefix has {', '.join(PARTS)}")
        actions, frozen, form = (flat.pop(place) for place in PLACES)
        actions = self._actions(actions)
        return ActionPrefix(actions, _frozen(frozen, len(actions)), self._form(form))

    def _form(self, form: Any) -> PrefixForm:
        for one in self.forms if isinstance(form, str) else ():  # an array equals item by item
            if form == one:
                return one
        raise InputError(
            f"a prefix of the form {str(form)[:40]!r}, which this policy's engine does not have; it"
            f" has {', '.join(self.forms)}"
        )

    def _actions(self, actions: Any) -> np.ndarray:
        if not isinstance(actions, np.ndarray):
            found = type(actions).__name__
            raise InputError(f"actions of a prefix that are a {found}, expected an array")
        width = "width" if self.width is None else self.width
        fits = actions.ndim == 2 and self.width in (None, actions.shape[1])
        if actions.dtype.name not in DTYPES or not fits or len(actions) > MOST_STEPS:
            raise InputError(
                f"actions of a prefix are {actions.dtype.name}{list(actions.shape)}, expected"
                f" {' or '.join(DTYPES)} [steps, {width}] of at most {MOST_STEPS} steps"
            )
        if not np.isfinite(actions).all():
            raise InputError("actions of a prefix with numbers that are not finite")
        return actions


def _frozen(frozen: Any, steps: int) -> int:
    if type(frozen) is not int or not 0 <= frozen <= steps:
        found = str(frozen)[:40]
        raise InputError(f"{PREFIX}/frozen is {found!r}, expected a whole number from 0 to {steps}")
    return frozen


def forms_of(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Forms of prefixes that a server with this metadata takes."""
    keys = metadata.get("keys")
    said = keys.get(PREFIX) if isinstance(keys, Mapping) else None
    forms = said.get("forms") if isinstance(said, Mapping) else None
    return tuple(one for one in forms if isinstance(one, str)) if isinstance(forms, list) else ()


def prefix_message(prefix: ActionPrefix, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A prefix as what a message holds of it.

    Raises:
        InputError: the server with this metadata does not take it.
    """
    forms = forms_of(metadata)
    if not forms:
        raise InputError("this server takes no prefix; give the loop prefix=False")
    if prefix.form not in forms:
        raise InputError(
            f"this server takes prefixes of the form {' or '.join(forms)}, found {prefix.form!r};"
            " give the loop another form, or serve a policy with an engine that has it"
        )
    actions = np.asarray(prefix.actions)
    return {PREFIX: dict(zip(PARTS, (actions, int(prefix.frozen), prefix.form), strict=True))}
