"""Rules that several families share: SigLIP's transformer and the stacks of Gemma and Llama."""

from vlakern.errors import CheckpointError
from vlakern.models.weights.names import SAME, Fold, Rule, Shapes, joined

__all__ = ["both", "count", "siglip_rules", "size_of", "trunk_rules"]

ATTENTION = tuple(f"{part}_proj" for part in "qkvo")
MLP = ("gate_proj", "up_proj", "down_proj")


def both(native: str, source: str, fold: Fold = SAME, layers: int = 1) -> list[Rule]:
    """A weight and its bias."""
    return [
        Rule(f"{native}.{part}", (f"{source}.{part}",), fold, layers) for part in ("weight", "bias")
    ]


def siglip_rules(tower: str, layers: int) -> list[Rule]:
    """SigLIP's transformer under ``tower``; q, k and v lie under each other here."""
    block, theirs = "vision.blocks.{n}.", f"{tower}encoder.layers.{{n}}."
    rules = [
        *both("vision.patch", f"{tower}embeddings.patch_embedding"),
        Rule("vision.position", (f"{tower}embeddings.position_embedding.weight",)),
        *both("vision.final_norm", f"{tower}post_layernorm"),
    ]
    for i in (1, 2):
        rules += both(f"{block}norm{i}", f"{theirs}layer_norm{i}", layers=layers)
        rules += both(f"{block}fc{i}", f"{theirs}mlp.fc{i}", layers=layers)
    rules += both(f"{block}proj", f"{theirs}self_attn.out_proj", layers=layers)
    for part in ("weight", "bias"):
        sources = tuple(f"{theirs}self_attn.{one}_proj.{part}" for one in "qkv")
        rules.append(Rule(f"{block}qkv.{part}", sources, joined(3), layers))
    return rules


def trunk_rules(native: str, source: str, layers: int, norm: Fold | None) -> list[Rule]:
    """A Gemma or Llama stack; ``norm`` folds its norms' weights, None for adaptive norms."""
    ours, theirs = f"{native}layers.{{n}}.", f"{source}layers.{{n}}."
    rules = [
        Rule(f"{ours}{part}.weight", (f"{theirs}{group}.{part}.weight",), layers=layers)
        for group, parts in (("self_attn", ATTENTION), ("mlp", MLP))
        for part in parts
    ]
    norms = [
        (f"{ours}input_norm", f"{theirs}input_layernorm", layers),
        (f"{ours}post_norm", f"{theirs}post_attention_layernorm", layers),
        (f"{native}norm", f"{source}norm", 1),
    ]
    for mine, given, count in norms:
        if norm is None:
            rules += both(f"{mine}.dense", f"{given}.dense", layers=count)
        else:
            rules.append(Rule(f"{mine}.weight", (f"{given}.weight",), norm, count))
    return rules


def count(shapes: Shapes, start: str) -> int:
    """How many numbered layers begin so."""
    return len({name[len(start) :].split(".")[0] for name in shapes if name.startswith(start)})


def size_of(shapes: Shapes, name: str, axis: int, where: str) -> int:
    """One dimension of a tensor.

    Raises:
        CheckpointError: it is not there or has too few dimensions.
    """
    if axis >= len(shapes.get(name, ())):
        raise CheckpointError(
            f"{where} lacks {name!r}, or it has too few dimensions; expected a checkpoint of the"
            " family that config.json names"
        )
    return shapes[name][axis]
