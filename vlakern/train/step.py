"""Batch to loss to step, with no input or output.

Dimension letters: B prefixes, R = B · samples rows, H chunk, A action width, V views, K tokens of a
view, M width of the semantic expert, S state width.
"""

import math

import torch
from torch import Tensor, nn

from vlakern.data.collate import TrainBatch
from vlakern.flow.path import interpolate, masked_loss, sample_tau, target
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
) -> Tensor:
    """The flow-matching loss; the prefix is computed once for all its (τ, noise) draws.

    ``views_VKM`` are the batch's image tokens, if the vision tower has run already.
    """
    count = config.flow_samples
    index = torch.arange(batch.action_BHA.shape[0]).repeat_interleave(count)
    action_RHA, mask_RHA = batch.action_BHA[index], batch.mask_BHA[index]
    noise_RHA = torch.randn(action_RHA.shape, generator=generator)
    if model.config.unused_slots == "zero":
        noise_RHA = noise_RHA * batch.slots_BA[index, None]
    tau_R = sample_tau(len(index), config.tau, generator)
    prefix = model.prefill(batch.prefix, views_VKM)
    x_RHA = interpolate(noise_RHA, action_RHA, tau_R)
    velocity_RHA = model.velocity(prefix, x_RHA, tau_R, index)
    return masked_loss(velocity_RHA, target(noise_RHA, action_RHA), mask_RHA)


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
