"""Observation to action chunk.

Dimension letters: B observations, V views, S image side or state width, H chunk, A action width.
"""

import secrets
import time
from collections.abc import Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlakern import ops
from vlakern.errors import CheckpointError, InputError, Unsupported
from vlakern.flow.solver import integrate
from vlakern.models.sequence import Batch, document, pack
from vlakern.models.weights.native import PolicyFiles, read
from vlakern.space.controller import NativeControl
from vlakern.types import ActionChunk, Observation

__all__ = ["Policy", "load", "shipped_policies"]

# Attention grows with the square of the prompt: longer text would fill the memory, not be obeyed.
MOST_CHARACTERS = 4096
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def shipped_policies() -> list[str]:
    """Names of the policies inside the package."""
    root = resources.files("vlakern") / "policies"
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if (entry / "config.json").is_file())


def load(name_or_directory: str | Path, device: str = "auto", dtype: str = "auto") -> "Policy":
    """Loads a policy that ships with the package, or a policy directory.

    Args:
        name_or_directory: a name of :func:`shipped_policies` or a path.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.
        dtype: of weights and products; ``auto`` is fp32 on the CPU and bf16 on a GPU.

    Raises:
        CheckpointError, ConfigError: the directory is missing, damaged or contradicts itself.
        Unsupported: the device or dtype is not there.
    """
    device = _device(device)
    chosen = _dtype(dtype, device)
    directory = Path(name_or_directory)
    if str(name_or_directory) in shipped_policies():
        directory = Path(str(resources.files("vlakern") / "policies" / str(name_or_directory)))
    elif not directory.is_dir():
        raise CheckpointError(
            f"no policy {str(name_or_directory)!r}: neither a directory nor one that ships"
            f" ({', '.join(shipped_policies()) or 'none'})"
        )
    return Policy(read(directory, chosen, device), name=directory.name, device=device, dtype=chosen)


class Policy:
    """A network with everything that surrounds it.

    Attributes:
        name: of its directory.
        views: camera names it knows, in the order it sees them.
        image_size: side of the square images it sees [px]; others are resized with padding.
        chunk, execute: actions per prediction, and how many to run before the next one.
        control_rate: of its actions [Hz].
        device, dtype: where it runs and what its weights and products are.
        robot: the embodiment that it acts for.
        frame: parametrisation of its actions. With ``native`` its chunks hold the numbers of the
            robot's own controller; else absolute commands, see :class:`vlakern.space.ActionSpace`.
        space: the way between the robot's numbers and the model's.
    """

    def __init__(self, files: PolicyFiles, name: str, device: str, dtype: torch.dtype) -> None:
        self.name = name
        self.views = files.embodiment.views
        self.image_size = files.model.config.vision.image_size
        self.chunk = files.model.config.chunk
        self.execute = files.processing.execute
        self.control_rate = files.embodiment.control_rate
        self._files = files
        self.device = device
        self.dtype = dtype
        self.robot = files.embodiment
        self.frame = files.processing.frame
        self.space = files.space
        # Slots that the robot lacks start at 0 and stay there, if the model was trained that way.
        self._slot_mask: Tensor | None = None
        if files.model.config.unused_slots == "zero":
            self._slot_mask = torch.from_numpy(self.space.action_mask).to(device)

    @property
    def control(self) -> NativeControl:
        """From the commands of its chunks to the numbers of the robot's own controller.

        Raises:
            ConfigError: the robot declares no controller, because it takes commands themselves.
        """
        return NativeControl(self.robot, self._files.action_map)

    def act(self, observation: Observation, seed: int | None = None) -> ActionChunk:
        """The next chunk for one observation; see :meth:`act_batch`."""
        return self.act_batch([observation], None if seed is None else [seed])[0]

    @torch.inference_mode()
    def act_batch(
        self, observations: Sequence[Observation], seeds: Sequence[int] | None = None
    ) -> list[ActionChunk]:
        """The next chunk for each observation, in one pass through the network.

        Args:
            observations: they may differ in instruction and, if a camera dropped out, in views.
            seeds: of each row's noise; the same seed, weights and device give the same actions.
                Fresh random seeds by default, found in each chunk's ``info``.

        Raises:
            InputError: an image, state or instruction that the policy cannot take.
        """
        if not observations:
            return []
        if seeds is None:
            seeds = [secrets.randbits(63) for _ in observations]
        if len(seeds) != len(observations):
            raise InputError(
                f"found {len(seeds)} seeds for {len(observations)} observations; give one each"
            )
        for seed in seeds:
            _check_seed(seed)
        clock = _Clock(self.device)
        model, config = self._files.model, self._files.model.config
        with clock.stage("preprocess"):
            states_BS = [self._checked_state(o.state) for o in observations]
            batch = self._prepare(observations, states_BS)
            noise_BHA = self._noise(seeds)
        with clock.stage("vision"):
            views = model.vision(batch.pixels_V3SS)
        with clock.stage("prefix"):
            prefix = model.prefill(batch, views)
        with clock.stage("ode"):
            x_BHA = integrate(
                lambda x, tau: model.velocity(prefix, x.to(self.dtype), tau).float(),
                noise_BHA,
                steps=config.steps,
                solver=config.solver,
                slot_mask=self._slot_mask,
            )
        with clock.stage("postprocess"):
            actions_BHN = self.space.decode(x_BHA.cpu(), np.stack(states_BS))
        latency = clock.finish()
        return [
            ActionChunk(actions, latency, {"seed": seed})
            for actions, seed in zip(actions_BHN, seeds, strict=True)
        ]

    def _prepare(
        self, observations: Sequence[Observation], states_BS: Sequence[np.ndarray]
    ) -> Batch:
        config, encode = self._files.model.config, self._files.tokenizer.encode
        documents, images = [], []
        for observation in observations:
            seen = self._images(observation)
            images += seen
            words = observation.instruction
            if not isinstance(words, str) or not words.strip():
                raise InputError(f"instruction is {words!r}, expected words that name the task")
            if len(words) > MOST_CHARACTERS:
                raise InputError(
                    f"instruction has {len(words)} characters, expected at most {MOST_CHARACTERS}"
                )
            documents.append(document(config.prompt, encode, words, len(seen)))
        pixels = torch.cat(images).to(self.device, self.dtype)
        unified = self.space.encode_state(np.stack(states_BS))
        state = torch.from_numpy(unified).to(self.device, self.dtype)
        return pack(config, documents, pixels, state)

    def _images(self, observation: Observation) -> list[Tensor]:
        """The views there are, in the policy's order, each ``[1, 3, S, S]``."""
        unknown = sorted(set(observation.images) - set(self.views))
        if unknown:
            raise InputError(
                f"view {unknown[0]!r} is unknown to policy {self.name}; its views are"
                f" {', '.join(self.views)}"
            )
        present = [view for view in self.views if view in observation.images]
        if not present:
            raise InputError(f"the observation has no view; expected {', '.join(self.views)}")
        return [_image(observation.images[view], view, self.image_size) for view in present]

    def _checked_state(self, state: np.ndarray) -> np.ndarray:
        width = self.robot.state_width
        state = np.asarray(state)
        if state.shape != (width,) or state.dtype.kind != "f":
            names = ", ".join(field.slot for field in self.robot.state)
            raise InputError(
                f"state is {state.dtype}{list(state.shape)}, expected floating-point [{width}]"
                f" ({names})"
            )
        return state

    def _noise(self, seeds: Sequence[int]) -> Tensor:
        """``[B, H, A]`` fp32; a generator per row, so that no row depends on its neighbours."""
        shape = (self.chunk, self._files.model.config.action_dim)
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        rows = [torch.randn(shape, generator=generator) for generator in generators]
        noise_BHA = torch.stack(rows).to(self.device)
        return noise_BHA if self._slot_mask is None else noise_BHA * self._slot_mask


class _Clock:
    """Wall time per stage; on a GPU every stage ends with a synchronisation."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._begin = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str):
        begin = time.perf_counter()
        yield
        if self._device.startswith("cuda"):
            torch.cuda.synchronize()
        self._stages[name] = (time.perf_counter() - begin) * 1e3

    def finish(self) -> dict[str, float]:
        return {**self._stages, "total": (time.perf_counter() - self._begin) * 1e3}


def _check_seed(seed: int) -> None:
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 1 << 63:
        raise InputError(f"seed is {seed!r}, expected a whole number from 0 to 2^63 - 1")


def _image(image: np.ndarray, view: str, side: int) -> Tensor:
    """Checks a camera image and brings it to ``[1, 3, side, side]`` in [-1, 1], with black bars."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"view {view!r} is {image.dtype}{list(image.shape)}, expected uint8 [height, width, 3]"
        )
    return ops.image_prep(image, size=side)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise Unsupported(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise Unsupported(f"device {name!r} was asked for, but torch sees no NVIDIA GPU; use cpu")
    if int(index or 0) >= torch.cuda.device_count():
        raise Unsupported(f"device {name!r} is not there; torch sees {torch.cuda.device_count()}")
    return name


def _dtype(name: str, device: str) -> torch.dtype:
    if name == "auto":
        name = "fp32" if device == "cpu" else "bf16"
    if name not in DTYPES:
        raise Unsupported(f"dtype {name!r} is not supported; use auto, {' or '.join(DTYPES)}")
    return DTYPES[name]
