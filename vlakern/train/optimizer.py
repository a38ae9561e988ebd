"""From gradients to weights: AdamW on fp32 masters, its schedule, clipping, and the average.

Everything that a run must keep is plain tensors by name, so a checkpoint needs no pickle. Nothing
here talks to other ranks: add up what :attr:`Optimizer.gradients` returns before an update.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vlakern.errors import CheckpointError
from vlakern.train.config import TrainConfig
from vlakern.train.lora import LoraLinear

__all__ = ["Average", "Optimizer", "in_bf16", "learning_rate"]


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine from the peak to ``final_lr`` times it; anew in each stage."""
    stage = config.stage(step)
    length, at = stage.end - stage.begin, step - stage.begin
    share = config.warmup_share
    warmup = config.warmup if share is None else min(config.warmup, round(share * length))
    if at < warmup:
        return config.learning_rate * (at + 1) / warmup
    progress = (at - warmup) / max(1, length - warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_lr + (1.0 - config.final_lr) * cosine)


def in_bf16(module: nn.Module) -> nn.Module:
    """Stores the weights of products, convolutions and embeddings in bfloat16; norms stay fp32.

    With an :class:`Optimizer`, whose masters are fp32, autocast has no weights left to cast: for
    GPUs, where reading weights is what a step costs.
    """
    for one in module.modules():
        if isinstance(one, (nn.Linear, nn.Conv2d, nn.Embedding, LoraLinear)):
            one.to(torch.bfloat16)
    return module


class Optimizer:
    """AdamW that decays matrices only: norms, biases, positions and embeddings keep their scale.

    Weights in lower precision have an fp32 master each, which is what is updated; the weight is its
    rounding. Gradients of micro-batches are added in fp32.

    Attributes:
        weights: the weights that train, by name.
        masters: their fp32 masters; the weight itself where it is fp32.
    """

    def __init__(self, module: nn.Module, config: TrainConfig) -> None:
        self.clip = config.clip
        self.weights = {n: w for n, w in module.named_parameters() if w.requires_grad}
        self.masters = {name: _master(weight) for name, weight in self.weights.items()}
        groups: dict[float, list[Tensor]] = {config.weight_decay: [], 0.0: []}
        for name, master in self.masters.items():
            plain = master.ndim < 2 or "embed_tokens" in name or "position" in name
            groups[0.0 if plain else config.weight_decay].append(master)
        self.adamw = torch.optim.AdamW(
            [{"params": params, "weight_decay": decay} for decay, params in groups.items()],
            lr=config.learning_rate,
            betas=config.betas,
            fused=True,
        )
        for master in self.masters.values():
            # From the start, so that a checkpoint always holds the same tensors.
            self.adamw.state[master] = {
                "step": torch.zeros((), device=master.device),
                "exp_avg": torch.zeros_like(master, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(master, requires_grad=False),
            }

    def accumulate(self) -> None:
        """Moves the gradients of low-precision weights to their masters; after each backward."""
        for name, weight in self.weights.items():
            master = self.masters[name]
            if master is weight or weight.grad is None:
                continue
            if master.grad is None:
                master.grad = weight.grad.to(master.dtype)
            else:
                master.grad += weight.grad
            weight.grad = None

    @property
    def gradients(self) -> dict[str, Tensor]:
        """The fp32 gradients so far by name, zeros where there is none; in place, not copied."""
        found = {}
        for name, master in self.masters.items():
            if master.grad is None:
                master.grad = torch.zeros_like(master, requires_grad=False)
            found[name] = master.grad
        return found

    def update(self, rate: float) -> float:
        """One step at a learning rate; returns the gradients' norm before they are clipped.

        A norm that is not finite updates nothing. Gradients are gone afterwards.
        """
        masters = [one for one in self.masters.values() if one.grad is not None]
        norm = nn.utils.get_total_norm([one.grad for one in masters if one.grad is not None])
        # Of a weight that lies in shards: the norm of all of them.
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # pyright: ignore
        found = float(norm)
        if math.isfinite(found):
            nn.utils.clip_grads_with_norm_(masters, self.clip, norm)
            for group in self.adamw.param_groups:
                group["lr"] = rate
            self.adamw.step()
            self.settle()
        self.forget()
        return found

    def forget(self) -> None:
        """Drops all gradients."""
        for name, weight in self.weights.items():
            weight.grad = self.masters[name].grad = None

    def masters_under(self, prefix: str) -> dict[str, Tensor]:
        """The masters of low-precision weights, by their names behind a prefix."""
        return {
            name.removeprefix(prefix): self.masters[name]
            for name, weight in self.weights.items()
            if name.startswith(prefix) and self.masters[name] is not weight
        }

    def state_dict(self) -> dict[str, Tensor]:
        """What AdamW keeps, as ``exp_avg/NAME`` and so on, and ``master/NAME``; not copied."""
        found = {}
        for name, master in self.masters.items():
            if master is not self.weights[name]:
                found[f"master/{name}"] = master.detach()
            found |= {f"{key}/{name}": one for key, one in self.adamw.state[master].items()}
        return found

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues where another optimizer of the same weights was.

        Raises:
            CheckpointError: a tensor is missing, unknown or misshapen.
        """
        _fill("optimizer", self.state_dict(), tensors)
        self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Rounds masters to weights; for who filled what :meth:`state_dict` gives in place."""
        for name, master in self.masters.items():
            if master is not self.weights[name]:
                self.weights[name].copy_(master)


def _master(weight: nn.Parameter) -> Tensor:
    if weight.dtype in (torch.float32, torch.float64):
        return weight
    return weight.detach().float().requires_grad_()


def _fill(what: str, targets: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Copies tensors of the same names and shapes; raises CheckpointError for others."""
    wrong = sorted(targets.keys() ^ source.keys())
    if wrong:
        where = "lacks" if wrong[0] in targets else "holds an unknown"
        raise CheckpointError(
            f"the state of the {what} {where} {wrong[0]!r}; it is of a run with other weights or in"
            " another stage"
        )
    for name, target in targets.items():
        if source[name].shape != target.shape:
            raise CheckpointError(
                f"the state of the {what} has {name!r} of shape {list(source[name].shape)},"
                f" expected {list(target.shape)}"
            )
        target.copy_(source[name])


class Average:
    """An exponential moving average of a model's weights, fp32."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {
            name: weight.detach().to(_wide(weight), copy=True)
            for name, weight in model.state_dict().items()
        }
        self.updates = 0

    def update(self, model: nn.Module, masters: Mapping[str, Tensor] | None = None) -> None:
        """Moves towards the model; early on the average is short, so it forgets the start.

        Args:
            masters: weights by name that are more precise than the model's.
        """
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        current = model.state_dict() | dict(masters or {})
        with torch.no_grad():
            for name, held in self.weights.items():
                held.lerp_(current[name].to(held.dtype), 1.0 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights, not copied; ``updates`` is a number to be kept beside them."""
        return dict(self.weights)

    def load_state_dict(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Continues another average of the same weights.

        Raises:
            CheckpointError: a tensor is missing, unknown or misshapen.
        """
        _fill("average", self.weights, tensors)
        self.updates = updates


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
