"""What happens around the network, as records: images, prompts, normalisation, relative actions.

Dimension letters: W indices of a slot map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from vlakern.errors import ConfigError
from vlakern.space.action_space import ActionFrame
from vlakern.space.normalize import Epsilon, Mode

__all__ = [
    "DEFAULT_IMAGES",
    "CameraName",
    "Cleaning",
    "ImageRule",
    "Processing",
    "PromptRule",
    "SlotMode",
    "discretised",
]

Cleaning = Literal["strip", "underscores", "newlines"]
CLEANERS = {
    "strip": str.strip,
    "underscores": lambda text: text.replace("_", " "),
    "newlines": lambda text: text.replace("\n", " "),
}
MOST_TOKENS = 1 << 16
MOST_BINS = 1 << 16


@dataclass(frozen=True)
class SlotMode:
    """The normalisation of one slot where it differs from the others'."""

    slot: str
    mode: Mode


@dataclass(frozen=True)
class ImageRule:
    """From a camera image to the vision tower's pixels; see :func:`vlakern.ops.image_prep`.

    ========== ======== =================== ===== ===============================================
    family     fit      filter              pad   source
    ========== ======== =================== ===== ===============================================
    openpi     openpi   bilinear_antialias  0     ``image_tools.resize_with_pad`` (Pillow)
    LeRobot pi openpi   bilinear            0     ``resize_with_pad_torch``; up to 0.4 the pad is
                                                  -255: images in [0, 1] got -1, which becomes -3;
                                                  up to 0.3 they are fitted as SmolVLA's
    SmolVLA    lerobot  bilinear            0     ``resize_with_pad``, left and above
    Being-H    cover    bicubic_antialias   0     torchvision's Resize and CenterCrop, ImageNet's
                                                  mean and std
    ========== ======== =================== ===== ===============================================

    Attributes:
        pad: level of the border; 0 to 255, with the filter ``bilinear`` from -255 on.
        mean, std: per channel, of values in [0, 1]; empty for [-1, 1].
    """

    fit: Literal["letterbox", "openpi", "lerobot", "stretch", "cover"] = "letterbox"
    filter: Literal["bilinear_antialias", "bicubic_antialias", "bilinear"] = "bilinear_antialias"
    pad: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        least = -255 if self.filter == "bilinear" else 0
        if not least <= self.pad <= 255:
            raise ConfigError(
                f"image.pad is {self.pad}, expected a level of {least} to 255 with the filter"
                f" {self.filter}"
            )
        given = (len(self.mean), len(self.std))
        if given not in ((0, 0), (3, 3)) or not all(value > 0 for value in self.std):
            raise ConfigError(
                f"image.mean is {list(self.mean)} and image.std {list(self.std)}, expected one"
                " number per channel each, std above 0, or neither"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments of ``image_prep``."""
        names = {"fit": self.fit, "filter": self.filter, "pad": self.pad}
        return names | {"mean": self.mean, "std": self.std}


DEFAULT_IMAGES = ImageRule()


@dataclass(frozen=True)
class PromptRule:
    """From an instruction to the text of a document; the default is the instruction as it is.

    Attributes:
        clean: what is done to the instruction, in order: ``strip`` white space at both ends,
            ``underscores`` and ``newlines`` become spaces.
        ending: what follows the instruction unless it ends so.
        parts: texts with the fields ``{instruction}``, once, and ``{state}``; each is encoded on
            its own.
        bos: the token that comes before all parts, by name; empty for none.
        most_tokens: longer prompts lose their end, as the families' own do.
        bins: the numbers of ``{state}`` are bins of [-1, 1], from -1 (below) to ``bins - 1``.
        numbers: which ``{state}`` has: those of the ``robot``, or all that the model takes, which
            are ``padded`` with zeros (LeRobot up to 0.4).
    """

    clean: tuple[Cleaning, ...] = ()
    ending: str = ""
    parts: tuple[str, ...] = ("{instruction}",)
    bos: str = ""
    most_tokens: int | None = None
    bins: int = 256
    numbers: Literal["robot", "padded"] = "robot"

    def __post_init__(self) -> None:
        for one in self.clean:
            if one not in get_args(Cleaning):
                raise ConfigError(
                    f"prompt.clean holds {one!r}, expected {', '.join(get_args(Cleaning))}"
                )
        count = sum(part.count("{instruction}") for part in self.parts)
        if count != 1:
            raise ConfigError(
                f"prompt.parts hold {{instruction}} {count} times, expected once: every document"
                " has an instruction"
            )
        if self.most_tokens is not None and not 1 <= self.most_tokens <= MOST_TOKENS:
            raise ConfigError(
                f"prompt.most_tokens is {self.most_tokens}, expected 1 to {MOST_TOKENS}"
            )
        if not 2 <= self.bins <= MOST_BINS:
            raise ConfigError(f"prompt.bins is {self.bins}, expected 2 to {MOST_BINS}")

    @property
    def has_state(self) -> bool:
        """Whether the text holds the state's numbers."""
        return any("{state}" in part for part in self.parts)

    def texts(self, instruction: str, state_S: np.ndarray | None = None) -> list[str]:
        """The parts as text; ``state_S`` is normalised, and needed if a part names it."""
        for one in self.clean:
            instruction = CLEANERS[one](instruction)
        if not instruction.endswith(self.ending):
            instruction += self.ending
        words = ""
        if self.has_state:
            assert state_S is not None
            words = " ".join(str(number) for number in discretised(state_S, self.bins))
        # The state first: whatever the instruction holds is text.
        return [
            part.replace("{state}", words).replace("{instruction}", instruction)
            for part in self.parts
        ]


def discretised(state_S: np.ndarray, bins: int = 256) -> list[int]:
    """The bin of each number among ``bins`` equal ones of [-1, 1]; -1 below the first.

    Numbers from 1 on are in the last bin (openpi, ``PaligemmaTokenizer``).
    """
    edges = np.linspace(-1, 1, bins + 1)[:-1]
    return [int(bin_) for bin_ in np.digitize(state_S, bins=edges) - 1]


@dataclass(frozen=True)
class CameraName:
    """Another name of a view: observations may call ``view`` by it."""

    called: str
    view: str


@dataclass(frozen=True)
class Processing:
    """What happens around the network.

    Attributes:
        state, action: normalisation of every slot that ``state_slots`` or ``action_slots`` do not
            name.
        execute: how many actions of a chunk are run before the next prediction.
        frame: parametrisation of the actions; ``native`` predicts the numbers of the robot's own
            controller.
        state_slots, action_slots: exceptions by slot, such as a binary gripper.
        epsilon: whose rule for slots that hardly move, see :class:`vlakern.space.Normalizer`.
        image: how camera images become pixels.
        prompt: how an instruction becomes text.
        cameras: other names of the embodiment's views. Views that an observation lacks have no
            tokens: the families mask them, which is the same.
        relative: numbers of a command that are predicted relative to the number of the same index
            in the state of the chunk's start, before they are normalised; for the frame ``native``.
    """

    state: Mode = "zscore"
    action: Mode = "zscore"
    execute: int = 8
    frame: ActionFrame = "native"
    state_slots: tuple[SlotMode, ...] = ()
    action_slots: tuple[SlotMode, ...] = ()
    epsilon: Epsilon = "vlakern"
    image: ImageRule = DEFAULT_IMAGES
    prompt: PromptRule = PromptRule()
    cameras: tuple[CameraName, ...] = ()
    relative: tuple[int, ...] = ()

    def view_of(self, names: Sequence[str]) -> dict[str, str]:
        """The view of every name that an observation may use.

        Raises:
            ConfigError: a camera of a view that is not among ``names``, or a name used twice.
        """
        views = {name: name for name in names}
        for camera in self.cameras:
            if camera.view not in names:
                raise ConfigError(
                    f"processing.cameras: view {camera.view!r} is not one of the embodiment's,"
                    f" which are {', '.join(names)}"
                )
            if views.get(camera.called, camera.view) != camera.view:
                raise ConfigError(
                    f"processing.cameras: {camera.called!r} is the name of two views,"
                    f" {views[camera.called]!r} and {camera.view!r}; give each its own"
                )
            views[camera.called] = camera.view
        return views
