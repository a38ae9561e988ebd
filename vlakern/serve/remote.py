"""A policy behind a server, as the control loop asks for one."""

from vlakern.errors import InputError
from vlakern.serve.client import Client, actions_of
from vlakern.types import ActionChunk, ActionPrefix, Observation

__all__ = ["RemotePolicy"]


class RemotePolicy:
    """Chunks of a server for :class:`vlakern.robot.Loop`.

    Args:
        client: with a time limit below the chunk's length: the loop goes on with the former chunk,
            asks again, and stops the robot once that is over.
        keys: view -> key of a message; ``images/VIEW`` by default.
    """

    def __init__(self, client: Client, keys: dict[str, str] | None = None) -> None:
        self._client, self._keys = client, keys or {}

    def act(self, observation: Observation, *, prefix: ActionPrefix | None = None) -> ActionChunk:
        """The chunk for an observation.

        Raises:
            InputError: a prefix, which openpi's protocol has no room for.
            ServerError: no reply in time, an error, or no actions.
        """
        if prefix is not None:
            raise InputError("a server takes no prefix; give the loop prefix=False")
        images = {self._keys.get(v, f"images/{v}"): one for v, one in observation.images.items()}
        reply = self._client.infer(
            {**images, "state": observation.state, "prompt": observation.instruction}
        )
        return ActionChunk(actions_of(reply))
