"""From a LeRobot dataset to a policy that loads, with the statistics and words of the dataset."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlakern import ops
from vlakern.data.collate import to_pixels
from vlakern.data.lerobot import LeRobotDataset, LeRobotWriter
from vlakern.errors import CheckpointError, ConfigError, VlakernError
from vlakern.infer import load
from vlakern.models import preset
from vlakern.models.weights import Processing, read
from vlakern.train import Recipe, TrainConfig, loop
from vlakern.types import Observation

CONFIG = preset("tiny")
RUN = TrainConfig(steps=2, batch_size=3, flow_samples=2, warmup=1, bf16=False)
RECIPE = Recipe("tiny", RUN, Processing("zscore", "quantile", execute=2))
STATE = (*(f"s{i} [m]" for i in range(5)), "grip", "turn [rad]")
ACTION = tuple(f"a{i}" for i in range(5))


def collect(
    root: Path, side: int = 28, state: tuple[str, ...] = STATE, views: tuple[str, ...] = ("b", "a")
) -> LeRobotDataset:
    """Three short episodes of noise over two tasks."""
    rng = np.random.default_rng(0)
    with LeRobotWriter(
        root,
        fps=20,
        views=dict.fromkeys(views, (side, side)),
        state_names=list(state),
        action_names=list(ACTION),
        robot_type="arm",
    ) as writer:
        for length, task in ((8, "push"), (6, "open"), (7, "push")):
            frames = {v: rng.integers(0, 256, (length, side, side, 3), dtype="u1") for v in views}
            states = rng.normal(2.0, 3.0, size=(length, len(state))).astype(np.float32)
            actions = rng.normal(-1.0, 0.5, size=(length, 5)).astype(np.float32)
            writer.add_episode(frames, states, actions, task)
    return LeRobotDataset(root)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """A dataset in the sizes of the smallest network."""
    return collect(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def prepared(dataset: LeRobotDataset) -> loop.Prepared:
    """That dataset, decoded and normalised."""
    return loop.prepare(dataset, CONFIG, RECIPE.processing)


def test_a_dataset_is_prepared_as_it_states(
    dataset: LeRobotDataset, prepared: loop.Prepared
) -> None:
    """Frames, words, views in the dataset's order, units of slots, and every episode reported."""
    calls: list[tuple[int, int]] = []
    loop.prepare(
        dataset, CONFIG, RECIPE.processing, lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert prepared.embodiment.views == tuple(dataset.views)
    assert (prepared.embodiment.name, prepared.embodiment.control_rate) == ("arm", 20.0)
    slots = prepared.state_map.slots
    assert [(f.slot, f.native) for f in prepared.embodiment.state] == [
        (s.name, (s.start, s.stop)) for s in slots
    ]
    assert [(s.name, s.unit, s.start, s.stop) for s in slots[4:]] == [
        ("s4", "m", 4, 5),
        ("grip", "1", 5, 6),
        ("turn", "rad", 6, 7),
    ]
    assert list(prepared.store.instructions) == ["push", "open", "push"]
    for view in ("a", "b"):
        assert np.array_equal(prepared.store.frames[1][view], dataset.frames(1, view))


def test_vectors_are_normalised_by_their_own_statistics(
    dataset: LeRobotDataset, prepared: loop.Prepared
) -> None:
    """States have mean 0 and std 1 over all frames; action quantiles lie at -1 and 1."""
    store = prepared.store
    states = store.space.encode_state(np.concatenate(store.states))
    actions = np.concatenate(
        [
            store.space.encode(chunk, state)
            for chunk, state in zip(store.actions, (s[0] for s in store.states), strict=True)
        ]
    )
    np.testing.assert_allclose(states.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(states.std(0), 1, atol=1e-5)
    np.testing.assert_allclose(np.quantile(actions, 0.01, axis=0), -1, atol=1e-5)
    np.testing.assert_allclose(np.quantile(actions, 0.99, axis=0), 1, atol=1e-5)
    raw = np.concatenate([dataset.episode(i).actions for i in range(3)])
    np.testing.assert_allclose(prepared.action_stats.min, raw.min(0))
    np.testing.assert_allclose(prepared.state_stats.mean[0], 2.0, atol=2.5)


def test_two_steps_give_a_policy_that_acts(prepared: loop.Prepared, tmp_path: Path) -> None:
    """Every step reports its metrics, and the directory loads and answers an observation."""
    steps: list[tuple[int, dict[str, float]]] = []
    summary = loop.train(
        RECIPE, prepared, tmp_path / "policy", 0, 0, lambda step, m: steps.append((step, m))
    )
    assert [step for step, _ in steps] == [1, 2]
    assert set(steps[0][1]) == {"loss", "foresight", "grad_norm", "wait_s", "lr"}
    assert (summary.steps, summary.samples) == (2, 6)
    assert summary.loss == steps[1][1]["loss"]
    files = read(tmp_path / "policy")
    assert (files.embodiment, files.processing) == (prepared.embodiment, RECIPE.processing)
    assert files.action_stats == prepared.action_stats
    picture = np.zeros((28, 28, 3), np.uint8)
    seen = Observation({"a": picture, "b": picture}, np.zeros(7, np.float32), "push")
    assert load(tmp_path / "policy", "cpu").act(seen, seed=0).actions.shape == (6, 5)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return read(directory).model.state_dict()


def test_the_seed_decides_the_weights(prepared: loop.Prepared, tmp_path: Path) -> None:
    """Two runs of one seed end in the same bits, another seed in others."""
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        torch.rand(7)
        loop.train(RECIPE, prepared, tmp_path / name, seed, 0)
    one, two, other = (weights(tmp_path / name) for name in ("one", "two", "other"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_the_averaged_weights_are_saved(
    prepared: loop.Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk is the average, not the last step's weights."""
    held: list[Any] = []

    class Watched(loop.Average):
        def __init__(self, model: torch.nn.Module, decay: float) -> None:
            super().__init__(model, decay)
            held[:] = [self, model]

    monkeypatch.setattr(loop, "Average", Watched)
    loop.train(RECIPE, prepared, tmp_path / "policy", 0, 0)
    average, model = held
    saved, last = weights(tmp_path / "policy"), model.state_dict()
    assert average.updates == RUN.steps
    assert all(torch.equal(saved[k], average.weights[k].bfloat16().float()) for k in saved)
    assert not all(torch.equal(saved[k], last[k].bfloat16().float()) for k in saved)


def test_policies_on_the_way_are_saved(
    prepared: loop.Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every save_every steps and once at the end, never twice for the last step."""
    saves: list[Path] = []
    monkeypatch.setattr(loop, "save", lambda out, *rest: saves.append(out))
    recipe = dataclasses.replace(RECIPE, train=dataclasses.replace(RUN, steps=4))
    for save_every, count in ((0, 1), (1, 4), (2, 2), (3, 2), (9, 1)):
        saves.clear()
        loop.train(recipe, prepared, tmp_path / "policy", 0, save_every)
        assert len(saves) == count, save_every


def losses(values: list[float]) -> Any:
    """A train_step that reports these losses."""
    left = iter(values)
    return lambda *args: {"loss": next(left), "grad_norm": 1.0}


def test_three_bad_steps_in_a_row_stop_the_run(
    prepared: loop.Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are survived and do not enter the mean loss; nothing is written by a run that stops."""
    nan, run = math.nan, dataclasses.replace(RUN, steps=6)
    recipe = dataclasses.replace(RECIPE, train=run)
    monkeypatch.setattr(loop, "train_step", losses([1.0, nan, nan, 2.0, nan, nan]))
    assert loop.train(recipe, prepared, tmp_path / "survived", 0, 0).loss == 2.0
    monkeypatch.setattr(loop, "train_step", losses([1.0, nan, 2.0, nan, math.inf, nan]))
    with pytest.raises(VlakernError, match=r"step 5: loss nan .* for 3 steps in a row; lower"):
        loop.train(recipe, prepared, tmp_path / "stopped", 0, 0)
    assert not (tmp_path / "stopped").exists()


def test_a_run_without_a_finite_loss_writes_nothing(
    prepared: loop.Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps are too few to stop, and too bad to keep."""
    monkeypatch.setattr(loop, "train_step", losses([math.nan, math.nan]))
    with pytest.raises(VlakernError, match="none of 2 steps had a finite loss"):
        loop.train(RECIPE, prepared, tmp_path / "policy", 0, 0)
    assert not (tmp_path / "policy").exists()


def test_someone_elses_directory_is_refused_before_the_first_step(
    prepared: loop.Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of training must not end in this sentence."""
    monkeypatch.setattr(loop, "train_step", losses([]))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not a policy directory"):
        loop.train(RECIPE, prepared, tmp_path, 0, 0)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({"state": (*STATE[:6], "s0 [m]")}, ConfigError, r"two slots are called 's0'"),
        ({"state": (*STATE[:6], "turn [deg]")}, ConfigError, r"slot 'turn' has unit 'deg'"),
        ({"views": ()}, ConfigError, r"views is \[\], expected names that differ"),
    ],
)
def test_a_dataset_that_makes_no_policy_is_refused_first(
    change: dict[str, Any], kind: type[VlakernError], sentence: str, tmp_path: Path
) -> None:
    """Sizes, and names and units that the policy directory would not accept at the end."""
    found = collect(tmp_path / "set", **change)
    with pytest.raises(kind, match=sentence):
        loop.prepare(found, CONFIG, RECIPE.processing)


def test_pictures_and_widths_of_any_dataset_fit(tmp_path: Path) -> None:
    """Pictures are letterboxed as a policy does it; the model becomes as wide as the vectors."""
    found = collect(tmp_path / "set", side=40, state=STATE[:6])
    prepared = loop.prepare(found, CONFIG, RECIPE.processing)
    assert (prepared.model.state_dim, prepared.model.action_dim) == (6, 5)
    image = found.frames(0, "a")[3]
    kept = to_pixels(prepared.store.frames[0]["a"][3:4])
    assert torch.equal(kept, ops.image_prep(image, size=28))
    loop.train(RECIPE, prepared, tmp_path / "policy", 0, 0)
    policy = load(tmp_path / "policy")
    seen = Observation({"a": image, "b": image}, np.zeros(6, np.float32), "push")
    assert policy.act(seen).actions.shape == (CONFIG.chunk, 5)


def test_the_log_keeps_every_row_of_a_run_that_died(tmp_path: Path) -> None:
    """Each row is on disk when it is added; the first is the recipe."""
    log = loop.JsonLines(tmp_path / "deep/run.jsonl", RECIPE)
    log.add({"step": 1, "loss": 0.5})
    rows = [json.loads(line) for line in (tmp_path / "deep/run.jsonl").read_text().splitlines()]
    log.close()
    assert rows[0]["train"]["batch_size"] == 3
    assert rows[1] == {"step": 1, "loss": 0.5}
