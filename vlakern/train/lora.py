"""Low-rank updates of the semantic expert (arXiv 2106.09685), and their way into plain weights.

A product with weight W becomes ``x·Wᵀ + scale · (x·Aᵀ)·Bᵀ`` with W frozen. B starts at zero, so the
network starts as it was. Letters: O outputs, I inputs, K rank.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vlakern.models.vla import VLA
from vlakern.train.config import LoraConfig

__all__ = ["UPDATES", "LoraLinear", "add_lora", "merged"]

# The names of A and B behind the name of a product.
UPDATES = ("lora_a", "lora_b")


class LoraLinear(nn.Module):
    """A product without bias and its update; ``weight`` is the product's own."""

    def __init__(self, linear: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.scale = config.scale
        self.weight = linear.weight.requires_grad_(False)
        like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_a = nn.Parameter(torch.empty(config.rank, inputs, **like))
        self.lora_b = nn.Parameter(torch.zeros(outputs, config.rank, **like))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x_EI: Tensor) -> Tensor:
        narrow_EK = nn.functional.linear(x_EI, self.lora_a)
        update_EO = nn.functional.linear(narrow_EK, self.lora_b)
        return torch.add(nn.functional.linear(x_EI, self.weight), update_EO, alpha=self.scale)


def add_lora(model: VLA, config: LoraConfig) -> VLA:
    """Gives the named projections of every layer of the semantic expert an update."""
    for layer in model.mot.semantic.layers:
        for name in config.projections:
            linear = getattr(layer, name)
            assert isinstance(linear, nn.Linear)
            setattr(layer, name, LoraLinear(linear, config))
    return model


def merged(weights: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Plain weights by name, W + scale · B·A summed in fp32; the rest as it is."""
    found = {n: w for n, w in weights.items() if n.rpartition(".")[2] not in UPDATES}
    for name, a_KI in weights.items():
        product, _, last = name.rpartition(".")
        if last != UPDATES[0]:
            continue
        plain = found[f"{product}.weight"]
        b_OK = weights[f"{product}.{UPDATES[1]}"]
        update = config.scale * (b_OK.float() @ a_KI.float())
        found[f"{product}.weight"] = (plain.float() + update).to(plain.dtype)
    return found
