"""The losses of a step: what they are, on which draws, and that fused ops give what torch gives."""

import copy
import dataclasses
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlakern import ops
from vlakern.data.collate import TrainBatch
from vlakern.errors import ConfigError
from vlakern.flow import TauConfig, interpolate
from vlakern.models import VLAConfig, preset
from vlakern.models.config import MaskConfig, PromptConfig
from vlakern.testing import assert_accurate
from vlakern.train import TrainConfig
from vlakern.train.optimizer import Optimizer
from vlakern.train.step import Draws, Foresight, Objective, counts, instruction_targets

TINY = preset("tiny")
MakeBatch = Callable[..., TrainBatch]
MakeObjective = Callable[..., Objective]
MakeDraws = Callable[..., Draws]


def evaluate(objective: Objective, batch: TrainBatch, draws: Draws) -> dict[str, Tensor]:
    return objective(batch, draws, counts(batch, objective.config, draws, robots=3))


def gradients(objective: Objective, batch: TrainBatch, draws: Draws) -> dict[str, Tensor]:
    """Of the loss, by name; zero where there is none."""
    objective.zero_grad()
    evaluate(objective, batch, draws)["loss"].backward()
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, weight in objective.named_parameters()
    }


def relative(found: Tensor, exact: Tensor) -> float:
    """The length of the error over that of the exact tensor."""
    length = float(exact.norm())
    return float((found.double() - exact).norm()) / length if length else float(found.norm())


def test_the_loss_is_that_of_uncached_single_samples(
    fp32: TrainConfig, make_objective: MakeObjective, make_batch: MakeBatch, draws: MakeDraws
) -> None:
    """Each prefix serves its draws of (τ, noise) in order, and masked actions do not count."""
    objective, batch, drawn = make_objective(fp32), make_batch(TINY), draws()
    index = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    action, mask = batch.action_BHA[index], batch.mask_BHA[index]
    noise = ops.flow_noise(torch.arange(12), *action.shape[1:], seed=drawn.seed)
    _, tau = ops.flow_mix(action, seed=drawn.seed)
    found = evaluate(objective, batch, drawn)
    x, total = interpolate(noise, action, tau), 0.0
    with torch.no_grad():
        for draw in range(3):
            rows = slice(draw, None, 3)
            velocity = objective.model.velocity_uncached(batch.prefix, x[rows], tau[rows])
            error = (velocity - (action - noise)[rows]).square() * mask[rows]
            total += float(error.sum())
    assert float(found["flow"]) == pytest.approx(total / float(mask.sum()), rel=1e-5)
    assert float(found["loss"].detach()) == float(found["flow"])
    assert float(found["foresight"]) == float(found["language"]) == 0.0


@pytest.mark.parametrize("shares", ["elements", "embodiments", "samples"])
def test_what_counts_the_same_in_a_mixture(
    fp32: TrainConfig,
    make_objective: MakeObjective,
    make_batch: MakeBatch,
    draws: MakeDraws,
    shares: str,
) -> None:
    """Three embodiments with two, one and one sample, of which some lack steps or slots."""
    config = dataclasses.replace(fp32, shares=shares)
    objective, batch, drawn = make_objective(config), make_batch(TINY, robots=True), draws()
    alone, elements = [], []
    for n, robot in enumerate((0, 1, 0, 2)):
        one = make_batch(TINY, [n])
        alone.append(float(evaluate(objective, one, draws([n]))["flow"]))
        elements.append(float(one.mask_BHA.sum()))
        assert batch.robots_B is not None
        assert int(batch.robots_B[n]) == robot
    squares = [mean * count for mean, count in zip(alone, elements, strict=True)]
    first = (squares[0] + squares[2]) / (elements[0] + elements[2])
    expected = {
        "elements": sum(squares) / sum(elements),
        "embodiments": (first + alone[1] + alone[3]) / 3,
        "samples": (2 * first + alone[1] + alone[3]) / 4,
    }
    found = float(evaluate(objective, batch, drawn)["flow"])
    assert found == pytest.approx(expected[shares], rel=1e-5)
    assert len({round(value, 4) for value in expected.values()}) == 3


def test_flow_time_of_the_recipe_is_used(
    fp32: TrainConfig, make_objective: MakeObjective, make_batch: MakeBatch, draws: MakeDraws
) -> None:
    """Another law of τ is another loss on the same draws."""
    found = []
    for kind in ("beta", "uniform", "logit_normal"):
        config = dataclasses.replace(fp32, tau=TauConfig(kind))
        found.append(float(evaluate(make_objective(config), make_batch(TINY), draws())["flow"]))
    assert len(set(found)) == 3


def test_fused_losses_and_gradients_are_the_references_step_by_step(
    fp32: TrainConfig,
    make_objective: MakeObjective,
    make_batch: MakeBatch,
    draws: MakeDraws,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over four updates: no further from fp64 than twice what the reference ops are in fp32."""
    config = dataclasses.replace(fp32, shares="samples", foresight=0.5, language=0.1, delay=3)
    fused = make_objective(config)
    optimizer = Optimizer(fused, config)
    narrow = [make_batch(TINY, which, robots=True) for which in ([0, 1, 2, 3], [3, 1], [2], [1, 0])]
    wide = [
        make_batch(TINY, which, robots=True, dtype=torch.float64)
        for which in ([0, 1, 2, 3], [3, 1], [2], [1, 0])
    ]
    for step, numbers in enumerate(([0, 1, 2, 3], [3, 1], [2], [1, 0])):
        plain, exact = copy.deepcopy(fused), copy.deepcopy(fused).double()
        drawn = draws(numbers, seed=step)
        found = gradients(fused, narrow[step], drawn)
        with monkeypatch.context() as patch:
            patch.setenv("VLAKERN_BACKEND", "reference")
            expected = gradients(exact, wide[step], drawn)
            allowed = gradients(plain, narrow[step], drawn)
            losses = [
                evaluate(one, batch, drawn)["loss"].detach()
                for one, batch in ((exact, wide[step]), (plain, narrow[step]))
            ]
        loss = evaluate(fused, narrow[step], drawn)["loss"].detach()
        assert_accurate(loss, *losses, what=f"loss {step}")
        worst = {name: relative(found[name], one) for name, one in expected.items()}
        usual = {name: relative(allowed[name], one) for name, one in expected.items()}
        assert math.hypot(*worst.values()) < 2 * math.hypot(*usual.values())
        # A single small tensor may be exact by luck; sixteen roundings are granted to each.
        for name, error in worst.items():
            assert error < 2 * max(usual[name], 16 * 2.0**-24), (step, name)
        optimizer.update(1e-2)


def test_bf16_loss_and_gradients_are_near_fp32(
    fp32: TrainConfig, make_objective: MakeObjective, make_batch: MakeBatch, draws: MakeDraws
) -> None:
    """Products in bfloat16 leave weights and gradients in fp32 and move the loss by < 1 %."""
    losses, norms = [], []
    for config in (fp32, dataclasses.replace(fp32, bf16=True)):
        objective = make_objective(config)
        losses.append(float(evaluate(objective, make_batch(TINY), draws())["flow"]))
        found = gradients(objective, make_batch(TINY), draws())
        norms.append(math.hypot(*(float(one.norm()) for one in found.values())))
        assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert 0 < abs(losses[1] / losses[0] - 1) < 0.01
    assert abs(norms[1] / norms[0] - 1) < 0.05


def note(runs: list[nn.Module], module: nn.Module, *_: object) -> None:
    runs.append(module)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("language", [0.0, 0.5])
def test_recomputed_layers_give_the_same_bits(
    fp32: TrainConfig,
    make_objective: MakeObjective,
    make_batch: MakeBatch,
    draws: MakeDraws,
    bf16: bool,
    language: float,
) -> None:
    """And backward keeps less: every layer of both experts and of the tower runs twice."""
    config = dataclasses.replace(fp32, bf16=bf16, language=language, foresight=0.5)
    found, calls = [], []
    for recompute in (False, True):
        objective = make_objective(dataclasses.replace(config, recompute=recompute))
        runs: list[nn.Module] = []
        for one in (*objective.model.mot.semantic.layers, *objective.model.vision.blocks):
            norm = getattr(one, "input_norm", None) or one.norm1
            assert isinstance(norm, nn.Module)
            norm.register_forward_hook(partial(note, runs))
        found.append(gradients(objective, make_batch(TINY), draws()))
        calls.append(len(runs))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert calls[1] == 2 * calls[0]


def test_foresight_scores_each_view_against_its_own_episode(make_batch: MakeBatch) -> None:
    """Six views of four samples; a head that tells the truth of one episode errs on the others."""
    foresight, batch = Foresight(TINY), make_batch(TINY)
    last = foresight.head[-1]
    assert isinstance(last, nn.Linear)
    views = torch.randn(6, TINY.vision.tokens, TINY.mot.semantic.hidden)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(batch.outcome_BS[0])
    errors = (batch.outcome_BS[0] - batch.outcome_BS).square().sum(1)
    assert batch.view_rows.tolist() == [0, 0, 1, 2, 2, 3]
    assert float(foresight(views, batch).detach()) == pytest.approx(
        float(errors[1] + 2 * errors[2] + errors[3]), rel=1e-5
    )
    assert float(errors[0]) == 0.0


def test_foresight_adds_its_weighted_gradient_to_the_tower(
    fp32: TrainConfig, make_objective: MakeObjective, make_batch: MakeBatch, draws: MakeDraws
) -> None:
    """The tower's gradient is that of flow loss + weight x mean error; both are told apart."""
    batch, flow = make_batch(TINY), make_objective(fp32)
    objective = make_objective(dataclasses.replace(fp32, foresight=0.5))
    flow.model.load_state_dict(objective.model.state_dict())
    assert objective.foresight is not None
    views = objective.model.vision(batch.prefix.pixels_V3SS)
    mean = objective.foresight(views, batch) / (6 * TINY.state_dim)
    tower = dict(objective.model.vision.named_parameters(prefix="model.vision"))
    aside = torch.autograd.grad(mean, list(tower.values()))
    both, plain = gradients(objective, batch, draws()), gradients(flow, batch, draws())
    for name, own in zip(tower, aside, strict=True):
        torch.testing.assert_close(both[name], plain[name] + 0.5 * own, rtol=1e-4, atol=1e-6)
    found = evaluate(objective, batch, draws())
    assert float(found["foresight"]) == pytest.approx(float(mean.detach()), rel=1e-6)
    assert float(found["loss"].detach()) == pytest.approx(
        float(found["flow"]) + 0.5 * float(mean.detach()), rel=1e-6
    )


STATE_LAST = dataclasses.replace(TINY, prompt=PromptConfig())
SAID_FIRST = dataclasses.replace(
    TINY, prompt=PromptConfig(("{instruction}", " ok", "{state}", "{views}"))
)


@pytest.mark.parametrize(
    ("config", "first"), [(TINY, 1), (STATE_LAST, 1), (SAID_FIRST, 1)], ids=["tiny", "last", "said"]
)
def test_the_language_loss_by_hand(
    fp32: TrainConfig,
    make_objective: MakeObjective,
    make_batch: MakeBatch,
    draws: MakeDraws,
    config: VLAConfig,
    first: int,
) -> None:
    """Every letter of an instruction from the letter before it, by the words' own embedding."""
    weighted = dataclasses.replace(fp32, language=0.25)
    objective, batch = make_objective(weighted, config), make_batch(config)
    texts = ("push it", "open the door", "go", "pick the red cube up")
    model, total, count = objective.model, 0.0, 0
    with torch.no_grad():
        for n, text in enumerate(texts):
            one = make_batch(config, [n]).prefix
            _, rows = model.prefill_rows(one)
            ids = [ord(letter) % 512 for letter in text]
            begin = [
                i for i in range(len(one.tokens_L)) if one.tokens_L[i:].tolist()[:2] == ids[:2]
            ]
            # The semantic rows of the instruction's letters, from the first on.
            at = one.semantic_order.tolist().index(begin[0])
            for k in range(first, len(ids)):
                logits = model.embed_tokens.weight @ rows[at + k - 1]
                total -= float(F.log_softmax(logits, 0)[ids[k]])
                count += 1
    found = evaluate(objective, batch, draws())
    assert float(counts(batch, weighted, draws())[-1]) == count == 7 + 13 + 2 + 20 - 4
    assert float(found["language"]) == pytest.approx(total / count, rel=1e-5)
    assert float(found["loss"].detach()) == pytest.approx(
        float(found["flow"]) + 0.25 * total / count, rel=1e-5
    )


def test_words_are_predicted_from_the_text_right_before_them(make_batch: MakeBatch) -> None:
    """A word of the prompt before the instruction predicts its first; a state or view does not."""
    named = dataclasses.replace(
        TINY, prompt=PromptConfig(("{views}", "{state}", "do ", "{instruction}", " now"))
    )
    prefix = make_batch(named, [0, 2]).prefix
    at, targets = instruction_targets(prefix)
    assert targets.tolist() == [ord(letter) for letter in "push it" + "go"]
    before = prefix.tokens_L[prefix.semantic_order[at]]
    assert before.tolist() == [ord(letter) for letter in " push i" + " g"]
    _, inside = instruction_targets(make_batch(TINY, [0, 2]).prefix)
    assert inside.tolist() == [ord(letter) for letter in "ush it" + "o"]


def test_a_language_loss_that_sees_its_answers_is_refused(
    fp32: TrainConfig, make_objective: MakeObjective, make_batch: MakeBatch, draws: MakeDraws
) -> None:
    """In a full prefix every token sees the words that it would predict."""
    full = dataclasses.replace(TINY, mask=MaskConfig("full", "block", "full"))
    objective = make_objective(dataclasses.replace(fp32, language=0.5), full)
    with pytest.raises(
        ConfigError, match=r"train\.language is 0\.5, but .* mask\.prefix is 'full'"
    ):
        evaluate(objective, make_batch(full), draws())


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_one_batch_can_be_learnt_by_heart(
    fp32: TrainConfig,
    make_objective: MakeObjective,
    make_batch: MakeBatch,
    draws: MakeDraws,
    bf16: bool,
) -> None:
    """150 updates on fixed draws bring the loss to a hundredth."""
    config = dataclasses.replace(fp32, bf16=bf16, weight_decay=0.0, flow_samples=1)
    objective, batch, drawn = make_objective(config), make_batch(TINY), draws()
    optimizer = Optimizer(objective, config)
    losses = []
    for _ in range(150):
        found = evaluate(objective, batch, drawn)
        found["loss"].backward()
        optimizer.update(4e-3)
        losses.append(float(found["flow"]))
    assert losses[-1] < 0.01 * losses[0]
