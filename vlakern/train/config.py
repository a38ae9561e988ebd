"""What a training run is made of, and the recipes that ship."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from vlakern.errors import ConfigError
from vlakern.flow.path import TauConfig
from vlakern.models.weights.native import Processing

__all__ = [
    "DROPOUT_ABLATION",
    "RECIPES",
    "LoraConfig",
    "Recipe",
    "Stage",
    "TrainConfig",
    "recipe",
]

Part = Literal["expert", "all"]
Shares = Literal["elements", "embodiments", "samples"]
Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Probabilities of drop_state and drop_view that arXiv 2602.09722 compares (Table VI); the paper
# trains with 0.2 and 0.2 and finds within one point of success rate between them.
DROPOUT_ABLATION = (0.0, 0.2, 0.5)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank updates of frozen projections of the semantic expert (arXiv 2106.09685).

    Attributes:
        rank: of the update ``(alpha / rank) · B·A`` of every projection; 0 for none.
        alpha: its scale.
        projections: which products of each layer have one. There is no dropout.
    """

    rank: int = 0
    alpha: float = 16.0
    projections: tuple[Projection, ...] = get_args(Projection)

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigError(f"train.lora.rank is {self.rank}, expected 0 or more")
        if not 0.0 < self.alpha < math.inf:
            raise ConfigError(f"train.lora.alpha is {self.alpha}, expected more than 0")
        known = get_args(Projection)
        if not self.projections or not set(self.projections) <= set(known):
            raise ConfigError(
                f"train.lora.projections is {list(self.projections)}, expected some of"
                f" {', '.join(known)}"
            )

    @property
    def scale(self) -> float:
        """What B·A is multiplied by."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Stage:
    """The steps ``[begin, end)`` in which the same part of the model trains on one schedule."""

    begin: int
    end: int
    part: Part


@dataclass(frozen=True)
class TrainConfig:
    """One run.

    Attributes:
        steps: optimizer steps of all stages.
        expert_steps: the leading steps that train the action expert alone; a stage of their own.
        frozen: the semantic expert (vision, words and trunk) never trains. Gradients still pass
            through it: text after the state token attends to it.
        detach: the prefix's keys and values are constants for the flow loss, so that it trains
            neither the semantic expert nor the state's encoder.
        lora: updates of the semantic expert that train in its place.
        batch_size: prefixes per step, of all ranks and micro-batches; each view is encoded once
            per prefix.
        flow_samples: (τ, noise) draws per prefix.
        learning_rate, final_lr: the peak, and where the cosine of each stage ends as a share of it.
        warmup, warmup_share: steps of linear warm-up of each stage, at most this share of them.
        weight_decay, betas, clip: AdamW on gradients clipped to a total norm.
        ema: decay of the averaged weights that are saved.
        drop_state, drop_view: probability that a sample's proprioception is zeroed, and that each
            view is removed (one always stays), after arXiv 2602.09722; see ``DROPOUT_ABLATION``.
        shift: random translation of each view, up to this many pixels on each axis.
        jitter: random gain and offset of each view, up to this share of full scale.
        foresight: weight of an auxiliary loss: every view tells where the hand will be at the end
            of its episode; see :class:`vlakern.train.step.Foresight`. 0 leaves it out.
        language: weight of the next-token loss on instructions; 0 leaves it out.
        shares: what counts the same in the flow loss of a mixture: every ``element`` of an action
            that exists; every one of the ``embodiments`` that occur in a batch; or all ``samples``,
            each embodiment's being averaged over its own elements.
        delay: training-time real-time chunking: the first d < ``delay`` actions are given, with
            P(d) ∝ exp(delay - 1 - d); 0 for none.
        recompute: activation checkpointing: backward computes the layers again, with the same bits.
        bf16: products in bfloat16; master weights, norms and loss stay fp32.
    """

    steps: int = 1800
    expert_steps: int = 0
    frozen: bool = False
    detach: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    batch_size: int = 64
    flow_samples: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 100
    warmup_share: float | None = None
    final_lr: float = 0.02
    clip: float = 1.0
    ema: float = 0.998
    drop_state: float = 0.0
    drop_view: float = 0.0
    shift: int = 0
    jitter: float = 0.05
    foresight: float = 0.5
    language: float = 0.0
    shares: Shares = "samples"
    delay: int = 0
    recompute: bool = False
    bf16: bool = True
    tau: TauConfig = field(default_factory=TauConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "flow_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}, expected at least 1")
        for name in ("drop_state", "drop_view", "ema"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"train.{name} is {getattr(self, name)}, expected [0, 1)")
        least_0 = ("warmup", "weight_decay", "final_lr", "shift", "jitter")
        for name in (*least_0, "foresight", "language", "delay"):
            _at_least_0(name, getattr(self, name))
        if self.warmup_share is not None:
            _at_least_0("warmup_share", self.warmup_share)
        for name in ("learning_rate", "clip"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"train.{name} is {getattr(self, name)}, expected more than 0")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(f"train.betas is {self.betas}, expected two numbers of [0, 1)")
        if self.shares not in get_args(Shares):
            known = ", ".join(get_args(Shares))
            raise ConfigError(f"train.shares is {self.shares!r}, expected one of {known}")
        if not 0 <= self.expert_steps <= self.steps:
            raise ConfigError(
                f"train.expert_steps is {self.expert_steps}, expected 0 to train.steps ="
                f" {self.steps}"
            )

        if self.frozen and self.lora.rank:
            raise ConfigError(
                "train.frozen and train.lora.rank exclude each other; set one of them"
            )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage, or the expert alone and then everything."""
        if self.frozen or self.expert_steps == self.steps:
            return (Stage(0, self.steps, "expert"),)
        whole = Stage(self.expert_steps, self.steps, "all")
        return (Stage(0, self.expert_steps, "expert"), whole) if self.expert_steps else (whole,)

    def stage(self, step: int) -> Stage:
        """The stage of a step; the last one after the end."""
        return next((one for one in self.stages if step < one.end), self.stages[-1])

    def with_steps(self, steps: int) -> "TrainConfig":
        """The same run in another number of steps, its stages shortened or stretched alike."""
        share = self.expert_steps / self.steps
        return replace(self, steps=steps, expert_steps=round(share * steps))


def _at_least_0(name: str, value: float) -> None:
    if not value >= 0:
        raise ConfigError(f"train.{name} is {value}, expected 0 or more")


@dataclass(frozen=True)
class Recipe:
    """A preset, how it is trained and what surrounds the network."""

    preset: str
    train: TrainConfig
    processing: Processing


def _metaworld_small() -> Recipe:
    return Recipe("metaworld-small", TrainConfig(), Processing("zscore", "zscore", execute=8))


def _arms_small() -> Recipe:
    """A camera on the hand cannot tell where the hand will be, so there is no foresight."""
    train = TrainConfig(steps=750, warmup=50, ema=0.99, flow_samples=2, foresight=0.0)
    processing = Processing("zscore", "zscore", execute=8, frame="eef_relative")
    return Recipe("arms-small", train, processing)


def _rethink() -> Recipe:
    """The schedule of arXiv 2602.09722; what it leaves open follows the released sibling's code.

    From the paper: 40k steps of the expert alone, 200k of everything, 256 samples a step, dropout
    0.2 and 0.2, no normalisation of what is in metres and radians.
    """
    train = TrainConfig(
        steps=240_000,
        expert_steps=40_000,
        batch_size=256,
        flow_samples=1,
        learning_rate=1e-4,
        weight_decay=1e-5,
        betas=(0.9, 0.999),
        warmup=2000,
        warmup_share=0.05,
        final_lr=1e-3,
        clip=1.0,
        ema=0.0,
        drop_state=0.2,
        drop_view=0.2,
        jitter=0.0,
        foresight=0.0,
        shares="elements",
        recompute=True,
    )
    return Recipe("rethink-2b", train, Processing("none", "none", execute=8, frame="eef_relative"))


RECIPES = {"metaworld-small": _metaworld_small, "arms-small": _arms_small, "rethink": _rethink}


def recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        ConfigError: naming the recipes there are.
    """
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; the recipes are {', '.join(RECIPES)}")
    return RECIPES[name]()
