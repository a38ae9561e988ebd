"""A dataset of a known robot becomes a policy in any frame; of an unknown one, by its names."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation as Peer

from vlakern.data.body import resolve_body
from vlakern.data.collate import Augment, TrainBatch, collate_clips
from vlakern.data.corpus import Corpus, open_corpus
from vlakern.data.lerobot import LeRobotDataset, LeRobotWriter
from vlakern.data.mixture import single
from vlakern.data.sampler import Sample
from vlakern.errors import ConfigError, DatasetError, InputError, VlakernError
from vlakern.infer import load
from vlakern.models import VLA, preset
from vlakern.models.weights import Processing
from vlakern.space import SlotMap, embodiment, robot_and_slots
from vlakern.space.action_space import ActionFrame
from vlakern.train import TrainConfig, step
from vlakern.train.policy import write_policies
from vlakern.types import Observation

VIEWS = ("agentview", "robot0_eye_in_hand")
LENGTHS = (9, 5)
H = 6
# The compact map of a LIBERO arm: position, axis-angle, gripper and two finger positions.
COMPACT = dataclasses.replace(preset("tiny"), state_dim=9, action_dim=9)
WHOLE = dataclasses.replace(preset("tiny"), state_dim=200, action_dim=200)
RUN = TrainConfig(steps=1, batch_size=3, flow_samples=1, warmup=0, bf16=False)


def collect(root: Path, robot_type: str, state: int = 8, action: int = 7) -> LeRobotDataset:
    """Two episodes of noise in the numbers of LIBERO."""
    rng = np.random.default_rng(0)
    with LeRobotWriter(
        root,
        fps=10,
        views=dict.fromkeys(VIEWS, (28, 28)),
        state_names=[f"s{i}" for i in range(state)],
        action_names=[f"a{i}" for i in range(action)],
        robot_type=robot_type,
    ) as writer:
        for length in LENGTHS:
            frames = {v: rng.integers(0, 256, (length, 28, 28, 3), dtype="u1") for v in VIEWS}
            states = rng.normal(size=(length, state)).astype(np.float32)
            actions = rng.uniform(-1, 1, size=(length, action)).astype(np.float32)
            writer.add_episode(frames, states, actions, "push")
    return LeRobotDataset(root)


@pytest.fixture(scope="module")
def libero(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """A dataset that says which robot recorded it."""
    return collect(tmp_path_factory.mktemp("data") / "libero", "libero_panda")


def opened(dataset: LeRobotDataset, model: Any, processing: Processing, **entry: Any) -> Corpus:
    return open_corpus(single(dataset.root, **entry), model, processing)


def prepared(dataset: LeRobotDataset, frame: ActionFrame, model: Any = COMPACT) -> Corpus:
    return opened(dataset, model, Processing("zscore", "zscore", execute=2, frame=frame))


def batch_of(ready: Corpus, *pairs: tuple[int, int]) -> TrainBatch:
    """The samples that begin at these frames of these episodes."""
    rng, augment = np.random.default_rng(0), Augment()
    clips = [
        ready.clip(Sample(0, *pair), number, augment, rng) for number, pair in enumerate(pairs)
    ]
    return collate_clips(ready.config, ready.tokenizer, clips, augment)


def relative(dataset: LeRobotDataset, own: bool) -> np.ndarray:
    """Every step of every chunk: position, rotation, gripper, from the recorded numbers by scipy.

    LIBERO's controller adds 5 cm and turns by 0.5 rad, from the left, from the achieved pose.
    """
    rows = []
    for i in range(dataset.num_episodes):
        state = dataset.episode(i).states.astype(float)
        action = dataset.episode(i).actions.astype(float)
        turn = Peer.from_rotvec(state[:, 3:6])
        goal = state[:, :3] + 0.05 * action[:, :3]
        turned = Peer.from_rotvec(0.5 * action[:, 3:6]) * turn
        for t in range(len(state)):
            for k in range(t, min(t + H, len(state))):
                position, rotation = goal[k] - state[t, :3], turned[k] * turn[t].inv()
                if own:
                    position = turn[t].inv().apply(position)
                    rotation = turn[t].inv() * turned[k]
                grip = (1 - action[k, 6]) / 2
                rows.append(np.r_[position, rotation.as_rotvec(), grip])
    return np.array(rows)


@pytest.mark.parametrize("frame", ["world_relative", "eef_relative"])
def test_statistics_are_of_what_the_model_sees(libero: LeRobotDataset, frame: ActionFrame) -> None:
    """Computed after the transform, over every step that exists and over present slots alone."""
    found = prepared(libero, frame).records().action_stats
    rows = relative(libero, frame.startswith("eef"))
    np.testing.assert_allclose(found.mean[:7], rows.mean(0), atol=1e-9)
    np.testing.assert_allclose(found.std[:7], rows.std(0), atol=1e-9)
    np.testing.assert_allclose(found.min[:7], rows.min(0), atol=1e-9)
    np.testing.assert_allclose(found.max[:7], rows.max(0), atol=1e-9)
    np.testing.assert_allclose(found.q99[:7], np.quantile(rows, 0.99, axis=0), atol=1e-9)
    assert found.present_mask.tolist() == [True] * 7 + [False] * 2
    assert found.names[6:] == ("right_gripper", "finger_positions.0", "finger_positions.1")
    states = np.concatenate([libero.episode(i).states for i in range(2)])
    state_stats = prepared(libero, frame).records().state_stats
    assert state_stats.present_mask.tolist() == [True] * 6 + [False] + [True] * 2
    np.testing.assert_allclose(np.delete(state_stats.mean, 6)[:3], states.mean(0)[:3], atol=1e-6)


@pytest.mark.parametrize("frame", ["world_relative", "eef_relative", "native"])
def test_a_policy_in_a_frame_gives_absolute_commands(
    libero: LeRobotDataset, frame: ActionFrame, tmp_path: Path
) -> None:
    """Of random weights; the written policy's chunks move with the measured hand."""
    ready = prepared(libero, frame)
    torch.manual_seed(0)
    write_policies(ready, tmp_path / "policy", VLA(ready.config).state_dict())
    policy = load(tmp_path / "policy", device="cpu")
    assert (policy.frame, policy.robot.name, policy.views) == (frame, "libero_panda", VIEWS)
    assert policy.control_rate == 10.0
    images = {view: np.zeros((28, 28, 3), np.uint8) for view in VIEWS}
    state = np.random.default_rng(1).normal(size=8).astype(np.float32)
    chunk = policy.act(Observation(images, state, "push"), seed=0).actions
    assert chunk.shape == (H, 7)
    # The same normalised chunk, from a hand 10 m away, is 10 m away; controller numbers are not.
    moved = state + np.array([10, 0, 0, 0, 0, 0, 0, 0], np.float32)
    x = torch.from_numpy(policy.space.encode(chunk[None].astype(float), state[None].astype(float)))
    far = policy.space.decode(x, moved[None])[0]
    shift = far[:, :3] - chunk[:, :3]
    np.testing.assert_allclose(
        shift, np.tile([0 if frame == "native" else 10, 0, 0], (H, 1)), atol=1e-4
    )


def test_a_wide_model_takes_the_whole_map(libero: LeRobotDataset) -> None:
    """The robot's slots lie where every other robot's lie, and the loss sees no other."""
    body = resolve_body(libero, 200, "eef_delta")
    assert (body.robot.slot_map, body.action_map.width) == ("unified-200", 200)
    ready = prepared(libero, "eef_delta", WHOLE)
    batch = batch_of(ready, (0, 0), (0, 7), (1, 2))
    there = [*range(6), 18]
    assert batch.slots_BA[1].nonzero().flatten().tolist() == there
    assert batch.mask_BHA[1, :, there].sum(0).tolist() == [2.0] * 7
    assert not batch.action_BHA[:, :, [i for i in range(200) if i not in there]].any()
    assert not batch.prefix.state_RS[
        :, [i for i in range(200) if i not in [*range(6), 44, 45]]
    ].any()


def loss_of(model: VLA, batch: Any) -> torch.Tensor:
    run, draws = dataclasses.replace(RUN, foresight=0.0), step.Draws(3, torch.arange(2))
    return step.losses(model, batch, run, draws, step.counts(batch, run, draws))["loss"]


@pytest.mark.parametrize("unused", ["noise", "zero"])
def test_an_absent_slot_has_no_say_in_the_loss(libero: LeRobotDataset, unused: Any) -> None:
    """Neither its target nor the weights that predict it; what x_τ holds there is the config's."""
    config = dataclasses.replace(COMPACT, unused_slots=unused)
    ready = prepared(libero, "eef_relative", config)
    batch = batch_of(ready, (0, 0), (1, 1))
    torch.manual_seed(0)
    model = VLA(config)
    seen: list[torch.Tensor] = []
    velocity = model.velocity
    model.velocity = lambda prefix, x, *rest: (seen.append(x), velocity(prefix, x, *rest))[1]  # pyright: ignore
    loss = loss_of(model, batch)
    loss.backward()
    absent = seen[0][..., 7:]
    assert bool((absent == 0).all()) == (unused == "zero")
    assert float(seen[0][..., :7].detach().abs().min()) > 0
    last = dict(model.named_parameters())["action_decoder.2.weight"]
    assert last.grad is not None
    assert not last.grad[7:].any()
    assert last.grad[:7].any(dim=1).all()
    with torch.no_grad():
        last[7:] += 100.0
    assert float(loss_of(model, batch).detach()) == float(loss.detach())


def test_recorded_steps_add_up_from_each_chunks_start(tmp_path: Path) -> None:
    """Meta-World's point is not recorded: a chunk's world deltas are 1 cm times the numbers."""
    dataset = collect(tmp_path / "set", "metaworld_sawyer", 4, 4)
    model = dataclasses.replace(preset("tiny"), state_dim=4, action_dim=4)
    processing = Processing("zscore", "none", execute=2, frame="world_delta")
    batch = batch_of(opened(dataset, model, processing), (0, 2))
    native = dataset.episode(0).actions[2 : 2 + H]
    np.testing.assert_allclose(batch.action_BHA[0, :, :3], 0.01 * native[:, :3], atol=1e-7)
    np.testing.assert_allclose(batch.action_BHA[0, :, 3], (1 - native[:, 3]) / 2, atol=1e-6)
    relative_to_start = dataclasses.replace(processing, frame="world_relative")
    batch = batch_of(opened(dataset, model, relative_to_start), (0, 2))
    expected = np.cumsum(0.01 * native[:, :3].astype(float), axis=0)
    np.testing.assert_allclose(batch.action_BHA[0, :, :3], expected, atol=1e-6)


def test_an_unknown_robot_works_by_its_names_and_only_natively(tmp_path: Path) -> None:
    """A slot per name; its poses are unknown, so no other frame."""
    dataset = collect(tmp_path / "set", "homemade", 7, 5)
    ready = prepared(dataset, "native", preset("tiny"))
    assert ready.embodiments[0].name == "homemade"
    assert ready.action_map.names() == tuple(f"a{i}" for i in range(5))
    with pytest.raises(
        DatasetError,
        match=r"was recorded by 'homemade', which has no record here, .* frame eef_relative cannot"
        " be made; name a robot with --embodiment",
    ):
        prepared(dataset, "eef_relative", preset("tiny"))


def test_a_robot_can_be_named(tmp_path: Path) -> None:
    """The dataset's own word does not matter then; its rate and views do."""
    dataset = collect(tmp_path / "set", "homemade")
    processing = Processing(execute=2, frame="eef_relative")
    ready = opened(dataset, COMPACT, processing, embodiment="libero_panda")
    assert ready.embodiments[0].controller == embodiment("libero_panda").controller
    assert (ready.embodiments[0].control_rate, ready.embodiments[0].views) == (10.0, VIEWS)


def sawyer(dataset: LeRobotDataset) -> Any:
    return resolve_body(dataset, 9, "native", robot_and_slots("metaworld_sawyer"))


def without_rotation(dataset: LeRobotDataset) -> Any:
    robot, slots = robot_and_slots("libero_panda")
    still = tuple(f for f in robot.state if not f.rotation)
    robot = dataclasses.replace(robot, state=still)
    named: tuple[Any, SlotMap] = (robot, slots)
    return resolve_body(dataset, 200, "eef_relative", named).plain_space()


@pytest.mark.parametrize(
    ("build", "kind", "sentence"),
    [
        (sawyer, DatasetError, r"has 8 numbers, robot metaworld_sawyer has 4; name the robot"),
        (without_rotation, ConfigError, "needs slot 'right_eef_rotation' in the state"),
    ],
)
def test_a_robot_that_does_not_fit_is_refused(
    libero: LeRobotDataset,
    build: Any,
    kind: type[VlakernError],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is decoded or trained."""
    monkeypatch.setattr(LeRobotDataset, "frames", lambda *rest: pytest.fail("decoded"))
    with pytest.raises(kind, match=sentence):
        build(libero)


def test_a_stride_takes_every_nth_command_and_lowers_the_rate(libero: LeRobotDataset) -> None:
    """Targets two frames apart, relative to the same pose; the policy acts at half the rate."""
    arguments = (libero, COMPACT, Processing("none", "none", execute=2, frame="eef_relative"))
    dense, sparse = opened(*arguments), opened(*arguments, stride=2)
    rates = [one.embodiments[0].control_rate for one in (dense, sparse)]
    assert rates == [10.0, 5.0]

    def chunk(found: Corpus) -> tuple[torch.Tensor, torch.Tensor]:
        batch = batch_of(found, (0, 0))
        return batch.action_BHA[0], batch.mask_BHA[0, :, 0]

    (all_steps, _), (every_other, inside) = chunk(dense), chunk(sparse)
    torch.testing.assert_close(every_other[:3], all_steps[::2])
    # Nine frames hold five such steps.
    assert inside.tolist() == [1, 1, 1, 1, 1, 0]


def test_a_stride_that_would_lose_motion_is_refused(libero: LeRobotDataset, tmp_path: Path) -> None:
    """Native numbers are steps, or nobody knows what they are; and a stride below 1 is none."""
    plain = Processing("none", "none", execute=2)
    with pytest.raises(InputError, match=r"stride is 2.*libero_panda.*would lose their motion"):
        opened(libero, COMPACT, plain, stride=2)
    with pytest.raises(InputError, match=r"stride is 3.*'mystery', which has no record"):
        opened(collect(tmp_path / "m", "mystery"), COMPACT, plain, stride=3)
    with pytest.raises(InputError, match="stride"):
        resolve_body(libero, 9, "native", stride=0)
