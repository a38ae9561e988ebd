"""Which weights train when, what frozen means, and what a checkpoint gives to a new model."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern.errors import CheckpointError
from vlakern.models import VLA, VLAConfig, preset
from vlakern.models.config import PromptConfig
from vlakern.models.expert import KeyValues
from vlakern.models.tokenizer import fit_tokenizer
from vlakern.models.weights import PolicyFiles, Processing, write
from vlakern.space import Embodiment, Field, Slot, SlotMap, VectorStats
from vlakern.train import TrainConfig
from vlakern.train.config import LoraConfig
from vlakern.train.optimizer import Optimizer
from vlakern.train.stages import Meaning, select, start_from
from vlakern.train.step import Draws, Objective, counts

TINY = preset("tiny")
STATE_FIRST = dataclasses.replace(
    TINY, prompt=PromptConfig(("{state}", "{instruction}", "{views}"))
)
STATE_LAST = dataclasses.replace(TINY, prompt=PromptConfig())
SEMANTIC = ("model.vision", "model.embed_tokens", "model.mot.semantic")
Make = Callable[..., Any]


def gradients(objective: Objective, batch: Any, drawn: Draws) -> dict[str, Tensor]:
    objective.zero_grad()
    objective(batch, drawn, counts(batch, objective.config, drawn))["loss"].backward()
    return {n: w.grad.clone() for n, w in objective.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("model", [TINY, STATE_FIRST, STATE_LAST], ids=["tiny", "first", "last"])
@pytest.mark.parametrize("part", ["expert", "all"])
@pytest.mark.parametrize("rank", [0, 2])
def test_what_is_selected_is_what_has_a_gradient(
    fp32: TrainConfig,
    make_objective: Make,
    make_batch: Make,
    draws: Make,
    model: VLAConfig,
    part: Any,
    rank: int,
) -> None:
    """For every mix of losses: no weight waits in vain, and none with a gradient is left out."""
    for language, foresight, detach in itertools.product((0.0, 0.5), (0.0, 0.5), (False, True)):
        config = dataclasses.replace(
            fp32, language=language, foresight=foresight, detach=detach, lora=LoraConfig(rank)
        )
        objective = make_objective(config, model)
        batch = make_batch(model)
        # Everything that a loss reaches, found by asking for all gradients.
        for name, weight in objective.named_parameters():
            frozen = rank and name.startswith(SEMANTIC) and "lora_" not in name
            weight.requires_grad_(not frozen)
            if name.endswith("lora_b"):
                torch.nn.init.normal_(weight)
        found = gradients(objective, batch, draws())
        reached = {name for name, gradient in found.items() if gradient.any()}
        if part == "expert":
            reached = {n for n in reached if not n.startswith((*SEMANTIC, "foresight"))}
        names = select(objective, part)
        assert set(names) == reached
        assert {n for n, w in objective.named_parameters() if w.requires_grad} == reached
        assert set(gradients(objective, batch, draws())) == reached
        assert set(Optimizer(objective, config).weights) == reached


def test_gradients_pass_through_a_frozen_expert(
    fp32: TrainConfig, make_objective: Make, make_batch: Make, draws: Make
) -> None:
    """The action expert's gradients are those of the unfrozen run; a detached prefix's are not."""
    batch, drawn = make_batch(TINY), draws()
    free, frozen = make_objective(fp32), make_objective(fp32)
    cut = make_objective(dataclasses.replace(fp32, detach=True))
    select(free, "all")
    select(frozen, "expert")
    select(cut, "expert")
    all_, some, less = (gradients(one, batch, drawn) for one in (free, frozen, cut))
    assert set(some) == {name for name in all_ if not name.startswith(SEMANTIC)}
    assert all(torch.equal(some[name], all_[name]) for name in some)
    # The state before the words: they carry it on, through frozen layers.
    assert float(some["model.state_encoder.0.weight"].norm()) > 0
    assert "model.state_encoder.0.weight" not in less
    other = "model.mot.action.layers.0.v_proj.weight"
    assert not torch.allclose(less[other], some[other])


@pytest.mark.parametrize("model", [STATE_FIRST, STATE_LAST], ids=["before", "after"])
def test_text_after_the_state_carries_gradients_through_frozen_layers(
    fp32: TrainConfig,
    make_objective: Make,
    make_batch: Make,
    draws: Make,
    monkeypatch: pytest.MonkeyPatch,
    model: VLAConfig,
) -> None:
    """Cut off from the actions themselves, a state token before the words still has a gradient."""
    objective, batch = make_objective(fp32, model), make_batch(model)
    select(objective, "expert")
    prefill, layout = objective.model.prefill, batch.prefix.layout
    is_state = torch.zeros(len(layout.positions), 1, 1, dtype=torch.bool)
    is_state[layout.action_rows] = True

    def cut(*args: Any) -> Any:
        prefix = prefill(*args)
        layers = [
            KeyValues(*(torch.where(is_state, x.detach(), x) for x in (kv.k_TGD, kv.v_TGD)))
            for kv in prefix.layers
        ]
        return dataclasses.replace(prefix, layers=tuple(layers))

    monkeypatch.setattr(objective.model, "prefill", cut)
    found = gradients(objective, batch, draws())
    passed = float(found["model.state_encoder.0.weight"].norm()) > 0
    assert passed == (model is STATE_FIRST)
    assert not any(name.startswith(SEMANTIC) for name in found)


def test_stages_of_a_run() -> None:
    """One, or the expert alone first; frozen is the expert alone to the end."""
    config = TrainConfig(steps=10)
    assert [(s.begin, s.end, s.part) for s in config.stages] == [(0, 10, "all")]
    two = dataclasses.replace(config, expert_steps=4)
    assert [(s.begin, s.end, s.part) for s in two.stages] == [(0, 4, "expert"), (4, 10, "all")]
    assert [two.stage(step).part for step in (0, 3, 4, 9, 10)] == ["expert"] * 2 + ["all"] * 3
    for alone in ({"frozen": True}, {"frozen": True, "expert_steps": 3}, {"expert_steps": 10}):
        stages = dataclasses.replace(config, **alone).stages
        assert [(s.begin, s.end, s.part) for s in stages] == [(0, 10, "expert")]
    shorter = two.with_steps(5)
    assert [(s.begin, s.end) for s in shorter.stages] == [(0, 2), (2, 5)]


STATE = SlotMap("arm", 7, (Slot("all", "1", 0, 7),))
ACTION = SlotMap("arm", 5, (Slot("x", "m", 0, 3), Slot("turn", "rad", 3, 4), Slot("g", "1", 4, 5)))
TEXTS = ["push the door", "open it"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VLA, Any]:
    """A policy directory, its model and its tokenizer."""
    torch.manual_seed(3)
    model = VLA(TINY)
    tokenizer = fit_tokenizer(TEXTS, TINY.vocab_size)
    fields = (
        (Field("all", (0, 7)),),
        (
            Field("x", (0, 3)),
            Field("turn", (3, 4)),
            Field("g", (4, 5)),
        ),
    )
    robot = Embodiment("arm", "arm", 20.0, ("a", "b"), 7, 5, *fields)
    stats = VectorStats.units(STATE.names()), VectorStats.units(ACTION.names())
    path = tmp_path_factory.mktemp("policy") / "p"
    processing = Processing("none", "none", execute=2)
    write(
        path,
        PolicyFiles(model, robot, STATE, ACTION, processing, *stats, tokenizer),
        torch.float32,
    )
    return path, model, tokenizer


def test_a_checkpoint_fills_its_own_model(saved: Any) -> None:
    """Every tensor, bit by bit, and nothing to report."""
    path, source, tokenizer = saved
    model = VLA(TINY)
    for meaning in (None, Meaning(STATE, ACTION, tokenizer)):
        report = start_from(model, path, meaning)
        assert set(report.loaded) == set(model.state_dict())
        assert (report.renamed, report.partial, report.missing, report.left_over) == (
            (),
            {},
            (),
            {},
        )
        for name, weight in source.state_dict().items():
            assert torch.equal(model.state_dict()[name], weight)


def test_numbers_and_words_are_found_by_name(saved: Any) -> None:
    """A robot with other slots and another tokenizer: equal shapes with other meanings, too."""
    path, source, old = saved
    slots = (Slot("g", "1", 0, 1), Slot("spare", "1", 1, 2), Slot("x", "m", 2, 5))
    action, wide = SlotMap("other", 5, slots), SlotMap("wide", 9, (Slot("all", "1", 1, 8),))
    new = fit_tokenizer(["lift the door", "close it"], TINY.vocab_size)
    torch.manual_seed(9)
    model = VLA(dataclasses.replace(TINY, state_dim=9))
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    report = start_from(model, path, Meaning(wide, action, new))
    there, here = source.state_dict(), model.state_dict()
    enter, out = "action_encoder.w1.weight", "action_decoder.2.weight"
    assert torch.equal(here[enter][:, [0, 2, 3, 4]], there[enter][:, [4, 0, 1, 2]])
    assert torch.equal(here[enter][:, 1], start[enter][:, 1])
    assert torch.equal(here[out][[0, 2, 3, 4]], there[out][[4, 0, 1, 2]])
    assert torch.equal(here["action_decoder.2.bias"][0], there["action_decoder.2.bias"][4])
    state = "state_encoder.0.weight"
    assert torch.equal(here[state][:, 1:8], there[state])
    assert torch.equal(here[state][:, [0, 8]], start[state][:, [0, 8]])
    words = "embed_tokens.weight"
    for text in ("t", "the", " door"):
        (a,), (b,) = (old.encode(text)[:1], new.encode(text)[:1])
        assert torch.equal(here[words][b], there[words][a])
    lift = new.encode("lift")[-1]
    assert lift >= 256
    assert torch.equal(here[words][lift], start[words][lift])
    assert report.partial[enter] == (4, 5)
    assert report.partial[state] == (7, 9)
    assert 256 <= report.partial[words][0] < 300
    assert set(report.loaded) == set(here)
    assert f"{state}: 7 of 9 rows, by name" in report.lines()


def test_the_same_words_fit_a_longer_table(saved: Any) -> None:
    """Room for more words is no other meaning: those that are there are found."""
    path, source, tokenizer = saved
    model = VLA(dataclasses.replace(TINY, vocab_size=600))
    report = start_from(model, path, Meaning(STATE, ACTION, tokenizer))
    found, rows = report.partial["embed_tokens.weight"]
    assert 256 <= found < 300
    assert rows == 600
    assert report.left_over == {}
    there, here = (one.state_dict()["embed_tokens.weight"] for one in (source, model))
    assert torch.equal(here[:found], there[:found])


def test_what_does_not_fit_is_reported(saved: Any) -> None:
    """Renamed, missing and left over tensors, each by name; the rest is loaded."""
    path, source, _ = saved
    deeper = dataclasses.replace(
        TINY,
        mot=dataclasses.replace(TINY.mot, layers=3),
        vision=dataclasses.replace(TINY.vision, layers=1),
        state_dim=8,
    )
    model = VLA(deeper)
    rename = {"mot.action.layers.1.": "mot.action.layers.2."}
    report = start_from(model, path, rename=rename)
    assert ("mot.action.layers.1.q_proj.weight", "mot.action.layers.2.q_proj.weight") in (
        report.renamed
    )
    assert torch.equal(
        model.state_dict()["mot.action.layers.2.q_proj.weight"],
        source.state_dict()["mot.action.layers.1.q_proj.weight"],
    )
    missing = {name.split(".q_proj")[0] for name in report.missing if "q_proj" in name}
    assert missing == {"mot.action.layers.1", "mot.semantic.layers.2"}
    assert report.left_over["vision.blocks.1.proj.weight"] == "the model has no such tensor"
    assert report.left_over["state_encoder.0.weight"] == "its shape is [48, 7], the model's [48, 8]"
    assert "state_encoder.0.weight" in report.missing
    lines = report.lines()
    assert "missing: state_encoder.0.weight" in lines
    assert any(line.startswith("left over: vision.blocks.1.norm1.bias (") for line in lines)
    assert set(report.loaded) | set(report.missing) == set(model.state_dict())


def test_a_directory_that_gives_nothing_is_refused(saved: Any, tmp_path: Path) -> None:
    """Not a policy, or one of which no tensor fits."""
    with pytest.raises(CheckpointError, match="is missing"):
        start_from(VLA(TINY), tmp_path)
    with pytest.raises(CheckpointError, match="no tensor fits the model"):
        start_from(VLA(TINY), saved[0], rename={"": "other."})
