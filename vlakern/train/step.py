"""Batch to loss to step, with no input or output.

Dimension letters: B prefixes, R = B · samples rows, H chunk, A action width, V views, K tokens of a
view, M width of the semantic expert, S state width.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vlakern import ops
from vlakern.data.collate import TrainBatch
from vlakern.models.config import VLAConfig
from vlakern.models.vla import VLA
from vlakern.train.config import TrainConfig

__all__ = ["Average", "Foresight", "flow_loss", "learning_rate", "make_optimizer", "train_step"]


def flow_loss(
    model: VLA,
    batch: TrainBatch,
    config: TrainConfig,
    generator: torch.Generator,
    views_VKM: Tensor | None = None,
    noise_RHA: Tensor | None = None,
    tau_R: Tensor | None = None,
) -> Tensor:
    """The flow-matching loss; the prefix is computed once for all its (τ, noise) draws.

    The generator gives the seed of the draws, see :func:`vlakern.ops.flow_mix`; noise and τ that
    are given take their place. ``views_VKM`` are the batch's image tokens, if the vision tower has
    run already.
    """
    action_BHA, count, law = batch.action_BHA, config.flow_samples, config.tau
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    slots_BA = batch.slots_BA if model.config.unused_slots == "zero" else None
    draws: dict[str, Any] = {"seed": seed, "noise": noise_RHA, "slots": slots_BA}
    x_RHA, tau_R = ops.flow_mix(
        action_BHA, **draws, tau=tau_R, law=law.kind, alpha=law.alpha, s=law.s, samples=count
    )
    prefix = model.prefill(batch.prefix, views_VKM)
    index = torch.arange(len(action_BHA)).repeat_interleave(count)
    velocity_RHA = model.velocity(prefix, x_RHA, tau_R, index)
    return ops.flow_loss(velocity_RHA, action_BHA, **draws, mask=batch.mask_BHA)


class Foresight(nn.Module):
    """Reads a view's tokens and predicts the proprioception at the end of its episode.

    The flow loss alone hardly rewards seeing: state and task explain most of an action, and a tower
    trained from scratch stayed blind for over a thousand steps. Where the demonstrated hand will
    end up is in the picture, and is known from proprioception alone. Used in training only.
    """

    def __init__(self, model: VLAConfig) -> None:
        super().__init__()
        width = model.mot.semantic.hidden
        self.head = nn.Sequential(
            nn.Linear(model.vision.tokens * width, width),
            nn.ReLU(),
            nn.Linear(width, model.state_dim),
        )

    def loss(self, views_VKM: Tensor, batch: TrainBatch) -> Tensor:
        """Mean squared error of each view's prediction, in the state's normalised units."""
        found_VS = self.head(views_VKM.flatten(1)).float()
        return (found_VS - batch.outcome_BS[batch.view_rows]).square().mean()


def train_step(
    model: VLA,
    optimizer: torch.optim.Optimizer,
    batch: TrainBatch,
    config: TrainConfig,
    generator: torch.Generator,
    foresight: Foresight | None = None,
) -> dict[str, float]:
    """One update; returns the flow loss, the auxiliary loss and the gradient norm before clipping.

    A loss or gradient that is not finite updates nothing; the caller sees it in the metrics.
    """
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
        views_VKM = model.vision(batch.prefix.pixels_V3SS)
        loss = flow_loss(model, batch, config, generator, views_VKM)
        aside = foresight.loss(views_VKM, batch) if foresight else loss.new_zeros(())
    (loss + config.foresight * aside).backward()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(trained, config.clip))
    value = float(loss.detach())
    if math.isfinite(value) and math.isfinite(norm):
        optimizer.step()
    return {"loss": value, "foresight": float(aside.detach()), "grad_norm": norm}


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices only: norms, biases, positions and embeddings keep their scale."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or "embed_tokens" in name or "position" in name
        (others if plain else matrices).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99))


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine from the peak to ``final_lr`` times it."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_lr + (1.0 - config.final_lr) * cosine)


class Average:
    """An exponential moving average of a model's weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: w.detach().clone() for name, w in model.state_dict().items()}
        self.updates = 0

    def update(self, model: nn.Module) -> None:
        """Moves towards the model; early on the average is short, so it forgets the start."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        with torch.no_grad():
            for name, weight in model.state_dict().items():
                self.weights[name].lerp_(weight, 1.0 - decay)
