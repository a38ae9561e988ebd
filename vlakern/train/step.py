"""From a batch to its losses, as pure functions: no input, output, optimizer or state.

What is random in a sample depends on the run's seed and the sample's global number alone, and a
loss is divided by what counts in the whole update. So the losses of the parts of a batch, on any
number of ranks and in any number of micro-batches, add up to the loss of the whole, and so do their
gradients.

Dimension letters: B samples, R = B · flow samples rows, H chunk, A action width, V views, K tokens
of a view, M width of the semantic expert, E its rows, S state width, L text tokens, G embodiments.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlakern import ops
from vlakern.data.collate import TrainBatch
from vlakern.errors import ConfigError
from vlakern.flow.path import delays_at, taus_at
from vlakern.models.config import VLAConfig
from vlakern.models.expert import KeyValues
from vlakern.models.sequence import Batch
from vlakern.models.vla import VLA, Prefix
from vlakern.train.config import TrainConfig
from vlakern.train.lora import add_lora

__all__ = [
    "Draws",
    "Foresight",
    "Objective",
    "check_model",
    "counts",
    "instruction_targets",
    "losses",
]


@dataclass(frozen=True)
class Draws:
    """What decides the random numbers of a batch.

    Attributes:
        seed: of the run, 0 to 2^63 - 1.
        numbers_B: int64, the number of each sample among all that the run draws, on any device.
    """

    seed: int
    numbers_B: Tensor

    def rows(self, samples: int, device: torch.device) -> Tensor:
        """The addresses of ``samples`` rows of each sample, int64 ``[R]``."""
        first_B1 = self.numbers_B.to(device)[:, None] * samples
        return (first_B1 + torch.arange(samples, device=device)).flatten()


@dataclass(frozen=True)
class Rows:
    """The rows of the flow loss: ``samples`` next to each other for each of N actions.

    Attributes:
        rows_R: int64, the addresses of their draws.
        tau: fp32 ``[R, H]``, given where some actions are.
        robots_N: int64, the embodiment of each action.
    """

    action_NHA: Tensor
    mask_NHA: Tensor
    slots_NA: Tensor
    robots_N: Tensor
    rows_R: Tensor
    samples: int
    tau: Tensor | None = None


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

    def forward(self, views_VKM: Tensor, batch: TrainBatch) -> Tensor:
        """Sum of the squared errors of each view's prediction, in the state's normalised units."""
        found_VS = self.head(views_VKM.flatten(1)).float()
        return (found_VS - batch.outcome_BS[batch.view_rows]).square().sum()


class Objective(nn.Module):
    """The policy, and what helps to train it: :func:`losses` as the forward of one module.

    Its parameters are called ``model.*``, as in a policy directory, and ``foresight.*``. With
    ``config.lora`` the model gets its updates here; :func:`vlakern.train.lora.merged` undoes it.
    """

    def __init__(self, model: VLA, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.model = add_lora(model, config.lora) if config.lora.rank else model
        self.foresight = Foresight(model.config) if config.foresight else None
        model.mot.recompute = model.vision.recompute = config.recompute

    def forward(self, batch: TrainBatch, draws: Draws, totals: Tensor) -> dict[str, Tensor]:
        return losses(self.model, batch, self.config, draws, totals, self.foresight)


def check_model(model: VLAConfig, config: TrainConfig) -> None:
    """Refuses a run that the first step would refuse.

    Raises:
        ConfigError: delays that leave no action to predict, or a language loss on tokens that see
            what they predict.
    """
    _check_delay(model.chunk, config)
    if config.language:
        _check_language(model, config)


def _check_delay(chunk: int, config: TrainConfig) -> None:
    if config.delay > chunk:
        raise ConfigError(
            f"train.delay is {config.delay}, expected at most the chunk's {chunk} actions: the"
            f" largest delay, {config.delay - 1}, must leave one to predict"
        )


def _check_language(model: VLAConfig, config: TrainConfig) -> None:
    if model.mask.prefix != "causal":
        raise ConfigError(
            f"train.language is {config.language}, but the model's mask.prefix is"
            f" {model.mask.prefix!r}: every token sees the words that it would predict; set it to 0"
            " or take a causal prefix"
        )


def counts(batch: TrainBatch, config: TrainConfig, draws: Draws, robots: int = 1) -> Tensor:
    """What counts in a batch, fp64 ``[2·G + 2]`` on its device; adds up over ranks and parts.

    Elements of the rows of each embodiment; its samples; numbers that foresight predicts; words
    that the language loss predicts.

    Args:
        robots: G, embodiments of the whole mixture.

    Raises:
        ConfigError: the delays of real-time chunking leave no action to predict.
    """
    rows = _rows(batch, config, draws)
    device = rows.mask_NHA.device
    elements_G = _elements(rows, robots)
    samples_G = torch.bincount(_robots(batch), minlength=robots).double()
    words = len(instruction_targets(batch.prefix)[1]) if config.language else 0
    seen = batch.view_rows.numel() * batch.outcome_BS.shape[1] if config.foresight else 0
    others = torch.tensor([seen, words], dtype=torch.float64, device=device)
    return torch.cat([elements_G, samples_G, others])


def losses(
    model: VLA,
    batch: TrainBatch,
    config: TrainConfig,
    draws: Draws,
    totals: Tensor,
    foresight: Foresight | None = None,
) -> dict[str, Tensor]:
    """This batch's share of the losses of an update; the prefix is computed once for all its rows.

    Args:
        totals: :func:`counts`, summed over the ranks and micro-batches of the update.

    Returns:
        Scalars that add up over ranks and micro-batches: ``loss``, which is differentiable, and its
        parts without their weights, ``flow``, ``foresight`` and ``language``.

    Raises:
        ConfigError: a language loss on tokens that see what they predict, or as :func:`counts`.
    """
    device = batch.action_BHA.device
    rows = _rows(batch, config, draws)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
        views_VKM = model.vision(batch.prefix.pixels_V3SS)
        prefix, words_EM = _prefill(model, batch.prefix, config, views_VKM)
        slots_NA = rows.slots_NA if model.config.unused_slots == "zero" else None
        noise = {"seed": draws.seed, "rows": rows.rows_R, "slots": slots_NA}
        law = {"law": config.tau.kind, "alpha": config.tau.alpha, "s": config.tau.s}
        x_RHA, tau = ops.flow_mix(
            rows.action_NHA, **noise, tau=rows.tau, samples=rows.samples, **law
        )
        index_R = torch.arange(len(batch.action_BHA), device=device)
        index_R = index_R.repeat_interleave(config.flow_samples)
        velocity_RHA = model.velocity(prefix, x_RHA, tau, index_R)
        flow = _flow_loss(velocity_RHA, rows, noise, config, totals)
        zero = flow.new_zeros(())
        seen = foresight(views_VKM, batch) / totals[-2].to(zero.dtype) if foresight else zero
        said = zero if words_EM is None else _language_loss(model, batch.prefix, words_EM, totals)
    total = flow + config.foresight * seen + config.language * said
    parts = {"flow": flow, "foresight": seen, "language": said}
    return {"loss": total} | {name: part.detach() for name, part in parts.items()}


def instruction_targets(prefix: Batch) -> tuple[Tensor, Tensor]:
    """Semantic rows whose next token is a word of the instruction, and those words: int64 each.

    Only text predicts: the row before is text of the same document, and next to it.
    """
    order_E, row_E = prefix.semantic_order, prefix.layout.semantic_rows
    words = len(prefix.tokens_L)
    if not words:
        return order_E[:0], order_E[:0]
    is_text_E = order_E < words
    document_E = torch.searchsorted(prefix.cu_prefix, row_E, right=True)
    said_E = is_text_E & prefix.said_L[order_E.clamp(max=words - 1)]
    follows = (row_E.diff() == 1) & (document_E.diff() == 0) & is_text_E[:-1] & said_E[1:]
    at = follows.nonzero().squeeze(1)
    return at, prefix.tokens_L[order_E[at + 1]]


def _prefill(
    model: VLA, batch: Batch, config: TrainConfig, views_VKM: Tensor
) -> tuple[Prefix, Tensor | None]:
    """The prefix and, for the language loss, the semantic expert's rows."""
    if not config.language:
        if not config.detach:
            return model.prefill(batch, views_VKM), None
        with torch.no_grad():
            return model.prefill(batch, views_VKM), None
    _check_language(model.config, config)
    prefix, words_EM = model.prefill_rows(batch, views_VKM)
    if config.detach:
        layers = tuple(KeyValues(kv.k_TGD.detach(), kv.v_TGD.detach()) for kv in prefix.layers)
        prefix = replace(prefix, layers=layers)
    return prefix, words_EM


def _rows(batch: TrainBatch, config: TrainConfig, draws: Draws) -> Rows:
    """With delays every row gives its own number of leading actions, at τ = 1 and without loss."""
    device, count, chunk = batch.action_BHA.device, config.flow_samples, batch.action_BHA.shape[1]
    rows_R = draws.rows(count, device)
    robots_B = _robots(batch)
    parts = (batch.action_BHA, batch.mask_BHA, batch.slots_BA, robots_B)
    if not config.delay:
        return Rows(*parts, rows_R, count)
    _check_delay(chunk, config)
    action, mask, slots, robots = (part.repeat_interleave(count, 0) for part in parts)
    delay_R = delays_at(rows_R, config.delay, draws.seed)
    late_RH = torch.arange(chunk, device=device) >= delay_R[:, None]
    tau_RH = torch.where(late_RH, taus_at(rows_R, config.tau, draws.seed)[:, None], 1.0)
    mask = mask * late_RH[..., None]
    return Rows(action, mask, slots, robots, rows_R, 1, tau_RH.to(action.dtype))


def _robots(batch: TrainBatch) -> Tensor:
    """The embodiment of each sample, int64 ``[B]``."""
    if batch.robots_B is None:
        return torch.zeros(len(batch.action_BHA), dtype=torch.int64, device=batch.action_BHA.device)
    return batch.robots_B


def _elements(rows: Rows, robots: int) -> Tensor:
    """What counts in the rows of each embodiment: fp64 ``[G]``."""
    mask_N = rows.mask_NHA.sum((1, 2), dtype=torch.float64) * rows.samples
    return mask_N.new_zeros(robots).index_add(0, rows.robots_N, mask_N)


def _flow_loss(
    velocity_RHA: Tensor, rows: Rows, noise: dict[str, Any], config: TrainConfig, totals: Tensor
) -> Tensor:
    """Σ_g c_g · Σ m·(v - target)², c_g being the share of embodiment g in the whole update.

    The op divides by the weights and elements of this batch; its weights are chosen so that they
    cancel.
    """
    robots = (len(totals) - 2) // 2
    elements_G, samples_G = totals[:robots], totals[robots : 2 * robots]
    given: dict[str, Any] = {**noise, "mask": rows.mask_NHA}
    if config.shares == "elements" or robots == 1:
        here = _elements(rows, robots).sum() + 1e-8
        scale = here / (elements_G.sum() + 1e-8)
        loss = ops.flow_loss(velocity_RHA, rows.action_NHA, **given)
        return loss * scale.to(loss.dtype)
    of_G = (samples_G > 0).double() if config.shares == "embodiments" else samples_G
    share_G = of_G / of_G.sum() / (elements_G + 1e-8)
    weights_G = share_G * (_elements(rows, robots) + 1e-8)
    occurs_G = torch.bincount(rows.robots_N, minlength=robots) > 0
    given |= {"group": rows.robots_N.int(), "groups": robots}
    given["weights"] = weights_G.to(rows.action_NHA.dtype)
    loss = ops.flow_loss(velocity_RHA, rows.action_NHA, **given)
    return loss * (weights_G * occurs_G).sum().to(loss.dtype)


def _language_loss(model: VLA, batch: Batch, words_EM: Tensor, totals: Tensor) -> Tensor:
    """Cross-entropy of each word of the instructions, by the product with the words' embedding."""
    at, targets = instruction_targets(batch)
    logits = F.linear(words_EM[at], model.embed_tokens.weight).float()
    return F.cross_entropy(logits, targets, reduction="sum") / totals[-1].clamp(min=1).float()
