"""What a training run is made of, and the recipes that ship."""

import math
from dataclasses import dataclass, field

from vlakern.errors import ConfigError
from vlakern.flow.path import TauConfig
from vlakern.models.weights.native import Processing

__all__ = ["RECIPES", "Recipe", "TrainConfig", "recipe"]


@dataclass(frozen=True)
class TrainConfig:
    """One run over one dataset.

    Attributes:
        steps: optimizer steps.
        batch_size: prefixes per step; each view is encoded once per prefix.
        flow_samples: (τ, noise) draws per prefix.
        learning_rate, weight_decay, warmup, clip: AdamW with linear warm-up [steps], cosine decay
            to ``final_lr`` times the peak, gradients clipped to a total norm.
        ema: decay of the averaged weights that are saved.
        drop_state, drop_view: probability that a sample's proprioception is zeroed, and that each
            view is removed (one always stays), after arXiv 2602.09722.
        shift: random translation of each view, up to this many pixels on each axis.
        jitter: random gain and offset of each view, up to this share of full scale.
        foresight: weight of an auxiliary loss: every view tells where the hand will be at the end
            of its episode; see :class:`vlakern.train.step.Foresight`. 0 leaves it out.
        bf16: products in bfloat16; weights, norms and loss stay fp32.
    """

    steps: int = 1800
    batch_size: int = 64
    flow_samples: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup: int = 100
    final_lr: float = 0.02
    clip: float = 1.0
    ema: float = 0.998
    drop_state: float = 0.0
    drop_view: float = 0.0
    shift: int = 0
    jitter: float = 0.05
    foresight: float = 0.5
    bf16: bool = True
    tau: TauConfig = field(default_factory=TauConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "flow_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}, expected at least 1")
        for name in ("drop_state", "drop_view", "ema"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"train.{name} is {getattr(self, name)}, expected [0, 1)")
        for name in ("warmup", "weight_decay", "final_lr", "shift", "jitter", "foresight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"train.{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("learning_rate", "clip"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"train.{name} is {getattr(self, name)}, expected more than 0")


@dataclass(frozen=True)
class Recipe:
    """A preset, how it is trained and what surrounds the network."""

    preset: str
    train: TrainConfig
    processing: Processing


def _metaworld_small() -> Recipe:
    return Recipe("metaworld-small", TrainConfig(), Processing("zscore", "zscore", execute=8))


RECIPES = {"metaworld-small": _metaworld_small}


def recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        ConfigError: naming the recipes there are.
    """
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; the recipes are {', '.join(RECIPES)}")
    return RECIPES[name]()
