"""The errors vlakern raises on purpose; each says what, expected, found and what to do."""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "InputError",
    "RenderError",
    "StudyError",
    "Unsupported",
    "VlakernError",
]


class VlakernError(Exception):
    """Base of every error that the command line turns into one sentence and exit code 1."""


class ConfigError(VlakernError):
    """A configuration with a missing, unknown or contradictory key."""


class CheckpointError(VlakernError):
    """A policy directory or weight file that is missing, truncated or does not fit the model."""


class DatasetError(VlakernError):
    """A dataset that is missing, incomplete or not what it declares."""


class InputError(VlakernError, ValueError):
    """An observation, state, action or tensor argument of the wrong shape, dtype or value."""


class RenderError(VlakernError):
    """No usable renderer, or a frame that is not a real picture."""


class StudyError(VlakernError):
    """A blind study that cannot be planned, locked, continued or opened."""


class Unsupported(VlakernError):
    """A backend that was asked for by name and refuses the case, with its reason."""
