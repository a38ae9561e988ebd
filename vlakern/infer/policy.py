"""Observation to action chunk.

Dimension letters: B observations, V views, S image side or state width, H chunk, A action width.
"""

import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import ConfigError, InputError, Unsupported
from vlakern.infer._checks import check_image, check_seed
from vlakern.infer._choices import DTYPES, choose_device, choose_dtype
from vlakern.infer._clock import Clock
from vlakern.infer._prefix import Decided, decided_of
from vlakern.infer.backends import EngineBackend, graph_refusal
from vlakern.infer.directories import policy_directory, shipped_policies
from vlakern.infer.engine import MOST_STEPS, Engine
from vlakern.infer.packed_file import cached_model
from vlakern.infer.packing import PackedModel, not_packed, pack_model
from vlakern.models.prompts import Prompts
from vlakern.models.sequence import Batch, document, pack
from vlakern.models.vla import VLA
from vlakern.models.weights.families import open_policy, read_policy
from vlakern.models.weights.native import PolicyRecords
from vlakern.ops import _native
from vlakern.ops.linear.packed import ROWS
from vlakern.space.controller import NativeControl
from vlakern.types import ActionChunk, ActionPrefix, Observation

__all__ = ["Policy", "load", "shipped_policies"]

# Attention grows with the square of the prompt: longer text would fill the memory, not be obeyed.
MOST_CHARACTERS = 4096


def load(
    name_or_directory: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    steps: int | None = None,
    backend: Literal["auto", "torch"] = "auto",
) -> "Policy":
    """Loads a policy that ships with the package, or a policy directory of any known family.

    Args:
        name_or_directory: a name of :func:`shipped_policies` or a path.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.
        dtype: of weights and products: ``fp32``, ``bf16``, ``int8`` or, on GPUs of sm_89 and newer,
            ``fp8``; ``auto`` is fp32 on the CPU and bf16 on a GPU.
        steps: of the flow's integration; the policy's own by default.
        backend: ``torch`` runs the network's own modules, which have a backward pass, in place of
            vlakern's engine: for prefixes of the form ``exact``.

    Raises:
        CheckpointError, ConfigError: the directory is missing, damaged or contradicts itself.
        Unsupported: the device or dtype is not there.
    """
    device = choose_device(device)
    chosen = choose_dtype(dtype, device)
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"steps is {steps}, expected 1 to {MOST_STEPS}")
    if backend not in ("auto", "torch"):
        raise ConfigError(f"backend is {backend!r}, expected auto or torch")
    directory = policy_directory(name_or_directory)
    reason = _native.missing() if device == "cpu" else graph_refusal(device, chosen)
    opened = open_policy(directory)
    reason = reason or not_packed(opened.records.config, None if device == "cpu" else ROWS)
    if backend == "torch":
        reason = "the backend is torch"
    if reason is None:
        records, weights = opened.records, opened.weights
        if device == "cpu":
            packed = cached_model(directory, records.config, chosen, opened.file, weights)
        else:
            there = torch.device(device)
            packed = pack_model(
                records.config, lambda name: weights(name).to(there), chosen, isa=ROWS
            )
        return Policy(records, packed, directory.resolve().name, device, chosen, steps)
    if chosen not in DTYPES:
        raise Unsupported(f"dtype {chosen!r} needs vlakern's own engine: {reason}")
    files = read_policy(directory, DTYPES[chosen], device)
    return Policy(
        files.records, files.model, directory.resolve().name, device, chosen, steps, backend
    )


class Policy:
    """A network with everything that surrounds it.

    Attributes:
        name: of its directory.
        views: camera names it knows, in the order it sees them.
        image_size: side of the square images it sees [px]; others are resized with padding.
        chunk, execute: actions per prediction, and how many to run before the next one.
        control_rate: of its actions [Hz].
        device, dtype: where it runs and what its weights and products are.
        steps: of the flow's integration.
        robot: the embodiment that it acts for.
        frame: parametrisation of its actions. With ``native`` its chunks hold the numbers of the
            robot's own controller; else absolute commands, see :class:`vlakern.space.ActionSpace`.
        space: the way between the robot's numbers and the model's.
    """

    def __init__(
        self,
        records: PolicyRecords,
        model: PackedModel | VLA,
        name: str,
        device: str,
        dtype: str,
        steps: int | None = None,
        backend: Literal["auto", "torch"] = "auto",
    ) -> None:
        self.name = name
        self.views = records.embodiment.views
        self.image_size = records.config.vision.image_size
        self.chunk = records.config.chunk
        self.execute = records.processing.execute
        self.control_rate = records.embodiment.control_rate
        self.device = device
        self.dtype = dtype
        self.steps = records.config.steps if steps is None else steps
        self.robot = records.embodiment
        self.frame = records.processing.frame
        self.space = records.space
        self._records = records
        self._words = Prompts(records.processing.prompt, records.tokenizer)
        self._called = records.processing.view_of(self.views)
        self._model = model
        self._backend: EngineBackend = backend
        self._engine: Engine | None = None
        self._turn = threading.Lock()  # of threads at the engine, for all stages of a call
        # Slots that the robot lacks start at 0 and stay there, if the model was trained that way.
        self._slot_mask: Tensor | None = None
        if records.config.unused_slots == "zero":
            self._slot_mask = torch.from_numpy(self.space.action_mask)

    @property
    def control(self) -> NativeControl:
        """From the commands of its chunks to the numbers of the robot's own controller.

        Raises:
            ConfigError: the robot declares no controller, because it takes commands themselves.
        """
        return NativeControl(self.robot, self._records.action_map)

    @torch.inference_mode()
    def act(
        self,
        observation: Observation,
        seed: int | None = None,
        *,
        prefix: ActionPrefix | None = None,
    ) -> ActionChunk:
        """The next chunk for one observation; see :meth:`act_batch`.

        Args:
            prefix: what the robot does until the chunk is there (real-time chunking), which it
                begins with or is led to, as the prefix's form says.

        Raises:
            InputError: as :meth:`act_batch`, or a prefix that does not fit.
            Unsupported: a form of prefix that the engine does not have.
        """
        return self.act_batch([observation], None if seed is None else [seed], [prefix])[0]

    @torch.inference_mode()
    def act_batch(
        self,
        observations: Sequence[Observation],
        seeds: Sequence[int] | None = None,
        prefixes: Sequence[ActionPrefix | None] | None = None,
    ) -> list[ActionChunk]:
        """The next chunk for each observation, in one pass through the network.

        Args:
            observations: they may differ in instruction and, if a camera dropped out, in views.
            seeds: of each row's noise; the same seed, weights and device give the same actions.
                Fresh random seeds by default, found in each chunk's ``info``.
            prefixes: of each row's robot, as in :meth:`act`; None for a row without. All of a call
                have one form.

        Raises:
            InputError: an image, state, instruction or prefix that the policy cannot take.
            Unsupported: a form of prefix that the engine does not have.
        """
        if not observations:
            return []
        if seeds is None:
            seeds = [secrets.randbits(63) for _ in observations]
        if len(seeds) != len(observations):
            raise InputError(
                f"found {len(seeds)} seeds for {len(observations)} observations; give one each"
            )
        return self._chunks(observations, seeds, 1, prefixes)

    @torch.inference_mode()
    def act_candidates(
        self, observation: Observation, n: int, seeds: Sequence[int] | None = None
    ) -> list[ActionChunk]:
        """``n`` chunks for one observation, from noises of their own and one prefix.

        Images and prompt are looked at once, so that eight candidates cost far less than eight
        calls. On the CPU each is, to the last bit, what :meth:`act` gives for its seed.

        Args:
            n: how many.
            seeds: one per candidate; fresh random ones by default.

        Raises:
            InputError: as :meth:`act_batch`, or ``n`` below 1, or another number of seeds.
        """
        if n < 1:
            raise InputError(f"n is {n}, expected at least one candidate")
        if seeds is None:
            seeds = [secrets.randbits(63) for _ in range(n)]
        if len(seeds) != n:
            raise InputError(f"found {len(seeds)} seeds for {n} candidates; give one each")
        return self._chunks([observation], seeds, n)

    def _chunks(
        self,
        observations: Sequence[Observation],
        seeds: Sequence[int],
        n: int,
        prefixes: Sequence[ActionPrefix | None] | None = None,
    ) -> list[ActionChunk]:
        """``n`` chunks per observation, side by side; with prefixes ``n`` is 1."""
        for seed in seeds:
            check_seed(seed)
        clock = Clock(self.device)
        with clock.stage("preprocess"):
            states_BS = [self._checked_state(o.state) for o in observations]
            seen = [self._images(o) for o in observations]
            batch = self._prompts(observations, states_BS)
            noise_BHA = self._noise(seeds)
            told = [None] * len(states_BS) if prefixes is None else prefixes
            decided = decided_of(told, states_BS, self.space, self.chunk)
        with self._turn:
            x_BHA = self._run(clock, seen, batch, noise_BHA, n, decided)
        with clock.stage("postprocess"):
            actions_BHN = self.space.decode(x_BHA.cpu(), np.repeat(states_BS, n, axis=0))
        latency = clock.finish()
        return [
            ActionChunk(actions, latency, {"seed": seed})
            for actions, seed in zip(actions_BHN, seeds, strict=True)
        ]

    def _run(
        self,
        clock: Clock,
        seen: Sequence[Sequence[np.ndarray]],
        batch: Batch,
        noise_BHA: Tensor,
        n: int,
        decided: Decided,
    ) -> Tensor:
        """Actions ``[B, H, A]`` of the model, from the images of each observation."""
        images = [image for views in seen for image in views]
        with clock.stage("preprocess"):
            engine = self._engine_for(batch, n, max(seen, key=len))
        given = {"n": n, "slot_mask": self._slot_mask, **vars(decided)}
        if engine.at_once(images, batch, n):
            with clock.stage("model"):
                return engine.act(images, batch, noise_BHA, **given)
        with clock.stage("preprocess"):
            engine.prepare(images)
        with clock.stage("vision"):
            engine.vision(len(images))
        with clock.stage("prefix"):
            prefix = engine.prefix(batch)
        with clock.stage("ode"):
            return engine.integrate(prefix, noise_BHA, **given)

    def _prompts(
        self, observations: Sequence[Observation], states_BS: Sequence[np.ndarray]
    ) -> Batch:
        """Packed prompts; their images stay with the engine."""
        config, encode = self._records.config, self._records.tokenizer.encode
        said_BS = self._words.states(self.space, np.stack(states_BS))
        no_token = "" if config.state == "words" else None  # the rule of prompts says the state
        documents, views = [], 0
        for observation, state_S in zip(observations, said_BS, strict=True):
            words = observation.instruction
            if not isinstance(words, str) or not words.strip():
                raise InputError(f"instruction is {words!r}, expected words that name the task")
            if len(words) > MOST_CHARACTERS:
                raise InputError(
                    f"instruction has {len(words)} characters, expected at most {MOST_CHARACTERS}"
                )
            ids = self._words(words, state_S)
            made = document(config.prompt, encode, ids, len(observation.images), no_token)
            documents.append(made)
            views += len(observation.images)
        unified = torch.from_numpy(self.space.encode_state(np.stack(states_BS)))
        device = "cpu" if isinstance(self._model, PackedModel) else self.device
        pixels = torch.empty(views, 3, 0, 0, device=device)
        dtype = torch.float32 if isinstance(self._model, PackedModel) else DTYPES[self.dtype]
        return pack(config, documents, pixels, unified.to(device, dtype))

    def _engine_for(self, batch: Batch, n: int, views_seen: Sequence[np.ndarray]) -> Engine:
        """The engine, built again with the same weights for a call that is larger than any yet.

        Cameras keep their sizes: those of the call that it is built for are the ones that a GPU's
        graphs of whole calls are recorded for.
        """
        rows, tokens = len(batch.cu_prefix) - 1, int(batch.cu_prefix[-1])
        views = len(batch.pixels_V3SS)
        now = self._engine.limits if self._engine is not None else None
        if (
            self._engine is None
            or now is None
            or (rows > now.observations or tokens > now.tokens or views > now.views)
            or rows * n > now.rows
        ):
            largest = max(rows, now.observations if now else 0)
            each, room = -(-tokens // rows), now.tokens // now.observations if now else 0
            most = max(rows * n, now.rows if now else 0)
            if each > room:
                # For other words: growing costs a moment, on a GPU seconds, and the robot waits.
                step = 32 if self.device == "cpu" else 128
                room = each + step - each % step
            self._engine = None  # its memory is the next one's
            self._engine = Engine(
                self._model,
                max_batch=largest,
                max_candidates=-(-most // largest),
                max_views=len(self.views),
                max_prefix=room,
                image_sizes=[(image.shape[0], image.shape[1]) for image in views_seen],
                image=self._records.processing.image,
                steps=self.steps,
                backend=self._backend,
            )
        return self._engine

    def _images(self, observation: Observation) -> list[np.ndarray]:
        """The views there are, in the policy's order, checked."""
        images: dict[str, np.ndarray] = {}
        for name, image in observation.images.items():
            view = self._called.get(name)
            if view is None:
                raise InputError(
                    f"view {name!r} is unknown to policy {self.name}; its views are"
                    f" {', '.join(self._called)}"
                )
            if view in images:
                raise InputError(f"the observation has two images of view {view!r}; give one")
            images[view] = check_image(image, name)
        if not images:
            raise InputError(f"the observation has no view; expected {', '.join(self.views)}")
        return [images[view] for view in self.views if view in images]

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
        shape = (self.chunk, self._records.config.action_dim)
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        rows = [torch.randn(shape, generator=generator) for generator in generators]
        noise_BHA = torch.stack(rows)
        return noise_BHA if self._slot_mask is None else noise_BHA * self._slot_mask
