"""A policy behind a server, as the control loop asks for one."""

from typing import Any

from vlakern.errors import ConfigError
from vlakern.serve.client import Client, actions_of
from vlakern.serve.prefix import prefix_message
from vlakern.types import ActionChunk, ActionPrefix, Observation

__all__ = ["RemotePolicy"]


class RemotePolicy:
    """Chunks of a server for :class:`vlakern.robot.Loop`.

    Args:
        client: with a time limit below the chunk's length: the loop goes on with the former chunk,
            asks again, and stops the robot once that is over.
        keys: view -> key of a message; ``images/VIEW`` by default.
        control: of the robot here, a :class:`vlakern.space.NativeControl`, where the policy's
            chunks hold the numbers of the robot's own controller.
    """

    def __init__(
        self, client: Client, keys: dict[str, str] | None = None, control: Any = None
    ) -> None:
        self._client, self._keys, self._control = client, keys or {}, control

    @property
    def frame(self) -> str | None:
        """``native`` where chunks hold the numbers of a controller, if the server says so."""
        said = self._client.metadata
        if said.get("controller") is None:  # then they are commands, and nobody adds them up
            return None
        found = said.get("frame")
        return found if isinstance(found, str) else None

    @property
    def control(self) -> Any:
        """From commands to those numbers and back.

        Raises:
            ConfigError: nobody gave one.
        """
        if self._control is None:
            said = self._client.metadata
            raise ConfigError(
                f"the server's chunks are steps of {str(said.get('controller'))[:40]!r}, the"
                f" controller of {str(said.get('robot'))[:40]!r}; give RemotePolicy its control"
            )
        return self._control

    @property
    def robot(self) -> Any:
        """The embodiment of :attr:`control`."""
        return self.control.robot

    def act(
        self,
        observation: Observation,
        seed: int | None = None,
        *,
        prefix: ActionPrefix | None = None,
    ) -> ActionChunk:
        """The chunk for an observation.

        Raises:
            InputError: a prefix that the server does not take.
            ServerError: no reply in time, an error, or no actions.
        """
        images = {self._keys.get(v, f"images/{v}"): one for v, one in observation.images.items()}
        message = {**images, "state": observation.state, "prompt": observation.instruction}
        if seed is not None:
            message["seed"] = seed
        if prefix is not None:
            message.update(prefix_message(prefix, self._client.metadata))
        return ActionChunk(actions_of(self._client.infer(message)))
