"""The Mixture-of-Transformers against a model that goes token by token, and RoPE's own laws."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from vlakern.models import VLA, VLAConfig, preset
from vlakern.models.config import MoTConfig
from vlakern.models.expert import AdaptiveNorm, Expert, ExpertLayer, KeyValues, RMSNorm
from vlakern.models.mot import MoT, rotary
from vlakern.models.sequence import Batch, action_layout
from vlakern.ops import qkv_prep
from vlakern.testing import generator

Network = Callable[[VLAConfig], VLA]
MakeBatch = Callable[[VLAConfig, Sequence[tuple[str, int]]], Batch]
Same = Callable[[Tensor, Tensor], None]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turn(x_HD: Tensor, position: int, theta: float) -> Tensor:
    """RoPE as complex numbers: the pair (i, i + D/2) times exp(j · position · theta^(-2i/D))."""
    half = x_HD.shape[-1] // 2
    angle = position * theta ** (-torch.arange(half, dtype=torch.float64) * 2 / x_HD.shape[-1])
    pair = torch.complex(x_HD[..., :half], x_HD[..., half:])
    pair = pair * torch.complex(angle.cos(), angle.sin())
    return torch.cat([pair.real, pair.imag], dim=-1)


def plain_norm(
    module: nn.Module, x: Tensor, condition: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """A normed token, and the gate of what follows."""
    if isinstance(module, AdaptiveNorm):
        assert condition is not None
        scale, shift, gate = (module.dense.weight @ condition + module.dense.bias).chunk(3)
        return rms(x, 1 + scale, eps) + shift, gate
    assert isinstance(module, RMSNorm)
    return rms(x, module.weight, eps), torch.ones_like(x)


def plain_mlp(config: MoTConfig, block: ExpertLayer, h: Tensor) -> Tensor:
    gate, up = block.gate_proj.weight @ h, block.up_proj.weight @ h
    if config.activation == "silu":
        bent = gate * torch.sigmoid(gate)
    else:
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        bent = 0.5 * gate * (1 + torch.tanh(inner))
    return block.down_proj.weight @ (bent * up)


def plain(
    model: MoT,
    tokens: list[Tensor],
    owners: list[Expert],
    ends: list[int],
    condition: Tensor | None = None,
) -> list[Tensor]:
    """One document in fp64, one token and one head at a time; ``owners`` is each token's expert."""
    config = model.config
    group, eps = config.q_heads // config.kv_heads, config.norm_eps
    begin = sum(owner is model.semantic for owner in owners)  # of actions, if layers cross
    x = list(tokens)
    for layer in range(config.layers):
        blocks = [owner.layer(layer) for owner in owners]
        heads_of = [(config.q_heads, config.head_dim), (config.kv_heads, config.head_dim)]
        qs, ks, vs, gates = [], [], [], []
        for i, block in enumerate(blocks):
            alone = config.crosses(layer) and owners[i] is model.action
            h, gate = plain_norm(block.input_norm, x[i], condition, eps)
            q = (block.q_proj.weight @ h).view(heads_of[0])
            if config.qk_norm:
                q = rms(q, block.q_norm.weight, eps)
            qs.append(turn(q, i - begin if alone else i, config.rope_theta))
            gates.append(gate)
            if alone:
                continue
            k = (block.k_proj.weight @ h).view(heads_of[1])
            if config.qk_norm:
                k = rms(k, block.k_norm.weight, eps)
            ks.append(turn(k, i, config.rope_theta))
            vs.append((block.v_proj.weight @ h).view(heads_of[1]))
        for i, block in enumerate(blocks):
            keys, values, end = ks, vs, ends[i]
            if config.crosses(layer) and owners[i] is model.action:
                keys = [(block.k_proj.weight @ k.flatten()).view(heads_of[1]) for k in ks]
                values = [(block.v_proj.weight @ v.flatten()).view(heads_of[1]) for v in vs]
                end = begin
            heads = []
            for head in range(config.q_heads):
                g, visible = head // group, range(end)
                scores = torch.stack([qs[i][head] @ keys[j][g] for j in visible])
                weights = torch.softmax(scores / math.sqrt(config.head_dim), 0)
                heads.append(sum(weights[j] * values[j][g] for j in visible))
            mixed = block.o_proj.weight @ torch.cat([torch.as_tensor(h) for h in heads])
            x[i] = x[i] + gates[i] * mixed
            h, gate = plain_norm(block.post_norm, x[i], condition, eps)
            x[i] = x[i] + gate * plain_mlp(config, block, h)
    return [plain_norm(o.norm, t, condition, eps)[0] for t, o in zip(x, owners, strict=True)]


def embed(model: VLA, batch: Batch) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model.embed_prefix(batch)


@torch.no_grad()
def test_equals_a_token_by_token_model(
    config: VLAConfig, network: Network, batch: MakeBatch, same: Same
) -> None:
    """Under every mask: residuals, norms, RoPE, head mapping, SwiGLU and who owns which token."""
    model, given = network(config), batch(config, [("go", 1), ("push it", 2)])
    semantic, state = embed(model, given)
    found_semantic, found_action, _ = model.mot(semantic, state, given.layout)
    wide = network(config).double().mot
    layout, end = given.layout, given.cu_prefix.tolist()
    for document in range(2):
        rows = range(end[document], end[document + 1])
        tokens, owners, found = [], [], []
        for row in rows:
            in_action = (layout.action_rows == row).nonzero().flatten().tolist()
            in_semantic = (layout.semantic_rows == row).nonzero().flatten().tolist()
            assert len(in_action) + len(in_semantic) == 1
            source, output, owner, place = (
                (state, found_action, wide.action, in_action)
                if in_action
                else (semantic, found_semantic, wide.semantic, in_semantic)
            )
            tokens.append(source[place[0]].double())
            found.append(output[place[0]])
            owners.append(owner)
        expected = plain(wide, tokens, owners, layout.who.kv_end[list(rows)].tolist())
        for one, other in zip(found, expected, strict=True):
            same(one, other.float())


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny", "tiny-pi0", "tiny-pi05", "tiny-smolvla"])
def test_velocities_are_a_token_by_token_models(
    name: str, network: Network, batch: MakeBatch, same: Same
) -> None:
    """Actions behind a prefix: what they see, adaptive norms, and layers with the prefix alone."""
    config = preset(name)
    model, given = network(config), batch(config, [("go", 1)])
    x = torch.randn(1, config.chunk, config.action_dim, generator=generator("noise"))
    tau, wide = torch.tensor([0.3]), network(config).double()
    found = model.velocity(model.prefill(given), x, tau)[0]
    semantic, state = embed(model, given)
    rows = {
        int(row): (semantic[i], wide.mot.semantic)
        for i, row in enumerate(given.layout.semantic_rows)
    }
    rows |= {
        int(row): (state[i], wide.mot.action) for i, row in enumerate(given.layout.action_rows)
    }
    prefix, ends = [rows[i] for i in range(len(rows))], given.layout.who.kv_end.tolist()
    tokens = [token.double() for token, _ in prefix]
    tokens += list(wide.embed_actions(x.double(), tau))
    seen = [i + 1 if config.mask.actions == "causal" else config.chunk for i in range(config.chunk)]
    ends += [len(prefix) + i for i in seen]
    owners = [owner for _, owner in prefix] + [wide.mot.action] * config.chunk
    condition = wide.condition(tau)
    made = plain(wide.mot, tokens, owners, ends, None if condition is None else condition[0])
    same(found, wide.action_decoder(torch.stack(made[len(prefix) :])).float())


def test_rotary_depends_on_distance_alone() -> None:
    """q at p + 3 against k at p has one product for every p, and norms stay."""
    x_THD = torch.randn(2, 1, 8, generator=generator("rope"))
    products, rows = [], torch.arange(2, dtype=torch.int32)
    for p in (0, 5, 1000):
        angles = rotary(torch.tensor([p + 3, p]), 8, 1e4)
        q_THD, _, _ = qkv_prep([x_THD.flatten(1)] * 3, [], [], *angles, [rows], heads=1, groups=1)
        q, k = q_THD.flatten(1)
        products.append(q @ k)
        torch.testing.assert_close(q.norm(), x_THD[0].norm())
    torch.testing.assert_close(torch.stack(products), products[0].expand(3), rtol=0, atol=1e-6)
    assert abs(float(products[0] - x_THD[0, 0] @ x_THD[1, 0])) > 0.1


def test_rotary_angles_are_exact_at_large_positions() -> None:
    """At position 100,003 the table still has fp32's precision: its angles are made in fp64."""
    cos, sin = rotary(torch.tensor([0, 1, 100_003]), 8, 1e6)
    for i, exponent in enumerate((0.0, 0.25, 0.5, 0.75)):
        for row, position in enumerate((0, 1, 100_003)):
            angle = position * 1e6**-exponent
            assert float(cos[row, i]) == pytest.approx(math.cos(angle), abs=6e-8)
            assert float(sin[row, i]) == pytest.approx(math.sin(angle), abs=6e-8)


@torch.no_grad()
def test_action_rows_do_not_influence_the_prefix(
    network: Network, batch: MakeBatch, same: Same
) -> None:
    """Cached keys and values are those of a pass without actions, whatever the actions are."""
    config = preset("tiny")
    model, given = network(config), batch(config, [("go", 1)])
    prefix = model.prefill(given)
    before = [(layer.k_TGD.clone(), layer.v_TGD.clone()) for layer in prefix.layers]
    rng, shape = generator("actions"), (1, config.chunk, config.action_dim)
    outs = [
        model.velocity(prefix, torch.randn(shape, generator=rng), torch.full((1,), 0.3))
        for _ in range(2)
    ]
    assert not torch.equal(*outs)
    for layer, (k, v) in zip(prefix.layers, before, strict=True):
        assert torch.equal(layer.k_TGD, k)
        assert torch.equal(layer.v_TGD, v)


@torch.no_grad()
def test_each_expert_may_be_alone(network: Network, batch: MakeBatch) -> None:
    """No semantic rows (an ODE step) and no prefix at all run, and give the action rows alone."""
    config = preset("tiny")
    model = network(config).mot
    cu = torch.zeros(2, dtype=torch.int64)
    layout = action_layout(config, cu, torch.zeros(1, dtype=torch.int64))
    x = torch.randn(config.chunk, config.mot.action.hidden, generator=generator("alone"))
    none = torch.zeros(0, config.mot.semantic.hidden)
    empty = [
        KeyValues(*(torch.zeros(0, config.mot.kv_heads, config.mot.head_dim) for _ in "kv"))
        for _ in range(config.mot.layers)
    ]
    semantic, action, made = model(none, x, layout, empty)
    assert semantic.shape == (0, config.mot.semantic.hidden)
    assert action.shape == x.shape
    assert [layer.k_TGD.shape[0] for layer in made] == [config.chunk] * config.mot.layers


@pytest.mark.parametrize("name", ["tiny", "tiny-pi0", "tiny-pi05", "tiny-smolvla"])
def test_gradients_flow_from_actions_into_both_experts(
    name: str, network: Network, batch: MakeBatch
) -> None:
    """A loss on the velocity reaches every weight that some action can see through the prefix."""
    config = preset(name)
    model, given = network(config), batch(config, [("go", 1), ("push", 2)])
    x = torch.randn(2, config.chunk, config.action_dim, generator=generator("gradients"))
    model.velocity(model.prefill(given), x, torch.tensor([0.2, 0.8])).square().sum().backward()
    unreached = [
        name
        for name, weight in model.named_parameters()
        if weight.grad is None or not bool(weight.grad.abs().sum() > 0)
    ]
    last = config.mot.layers - 1
    # Nothing reads the prefix after its last layer's keys and values.
    parts = ["q_proj", "o_proj", "post_norm", "gate_proj", "up_proj", "down_proj"]
    parts += ["q_norm"] if config.mot.qk_norm else []
    expected = [f"mot.semantic.layers.{last}.{part}.weight" for part in parts]
    assert sorted(unreached) == sorted([*expected, "mot.semantic.norm.weight"])
