"""A policy sees images, cameras, words and relative actions as its records say."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from vlakern.errors import ConfigError, InputError
from vlakern.infer import Policy, load
from vlakern.models.config import MaskConfig, PromptConfig
from vlakern.models.presets import preset
from vlakern.models.processing import CameraName, ImageRule, PromptRule
from vlakern.models.sequence import document, pack
from vlakern.models.weights import read, write
from vlakern.types import Observation


@pytest.fixture
def changed(directory: Path, tmp_path: Path):
    """The small policy with another processing, written and loaded again."""

    def make(**changes: object) -> Policy:
        files = read(directory)
        processing = dataclasses.replace(files.processing, **changes)  # pyright: ignore
        target = tmp_path / "-".join(changes)
        write(target, dataclasses.replace(files, processing=processing), torch.float32)
        return load(target, device="cpu", dtype="fp32")

    return make


def look(size: tuple[int, int] = (28, 28)) -> Observation:
    rng = np.random.default_rng(0)
    views = ("front", "wrist")
    images = {view: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for view in views}
    return Observation(images, rng.normal(size=7).astype(np.float32), "push the_puck ")


def ids_of(policy: Policy, seen: Observation) -> list[int]:
    return policy._prompts([seen], [seen.state]).tokens_L.tolist()


def test_images_by_their_rule(changed) -> None:
    """Another fit gives the actions of the same pixels, prepared by hand; the default others."""
    plain, covered = changed(execute=3), changed(image=ImageRule("cover"))
    seen = look((28, 40))
    cut = {view: image[:, 6:34] for view, image in seen.images.items()}
    by_hand = plain.act(dataclasses.replace(seen, images=cut), seed=1).actions
    assert np.array_equal(covered.act(seen, seed=1).actions, by_hand)
    assert not np.array_equal(plain.act(seen, seed=1).actions, by_hand)


def test_words_by_their_rule(changed) -> None:
    """Cleaned, ended and with the robot's own state in bins."""
    plain = changed(execute=3)
    clean = ("strip", "underscores")
    ended = changed(prompt=PromptRule(clean, "\n"))
    seen = look()
    said = dataclasses.replace(seen, instruction="push the puck\n")
    assert ids_of(ended, seen) == ids_of(plain, said)
    state = changed(prompt=PromptRule(clean, parts=("{instruction}: {state}",)))
    numbers = state.space.encode_state(seen.state.astype(np.float64), np.float64)
    bins = [int(np.digitize(n, np.linspace(-1, 1, 257)[:-1])) - 1 for n in numbers[0:7]]
    words = "push the puck: " + " ".join(map(str, bins))
    assert ids_of(state, seen) == ids_of(plain, dataclasses.replace(seen, instruction=words))


def test_cameras_by_their_names(changed) -> None:
    """A renamed camera is the view; two images of one view are refused, and unknown names."""
    policy = changed(cameras=(CameraName("top", "front"),))
    seen = look()
    renamed = {"wrist": seen.images["wrist"], "top": seen.images["front"]}
    other = dataclasses.replace(seen, images=renamed)
    assert np.array_equal(policy.act(other, seed=2).actions, policy.act(seen, seed=2).actions)
    with pytest.raises(InputError, match=r"has two images of view 'front'; give one"):
        policy.act(dataclasses.replace(seen, images={**seen.images, "top": seen.images["front"]}))
    with pytest.raises(InputError, match=r"'side' is unknown .* front, wrist, top"):
        policy.act(dataclasses.replace(seen, images={"side": seen.images["front"]}))
    with pytest.raises(ConfigError, match="view 'lens' is not one"):
        changed(cameras=(CameraName("top", "lens"),), execute=2)


def test_relative_numbers_get_the_state_back(changed) -> None:
    """The same network's numbers, plus the state of the chunk's start where they are relative."""
    seen = look()
    plain, relative = changed(execute=3), changed(relative=(1, 3))
    difference = relative.act(seen, seed=5).actions - plain.act(seen, seed=5).actions
    expected = np.zeros((6, 5), np.float32)
    expected[:, [1, 3]] = seen.state[[1, 3]]
    np.testing.assert_allclose(difference, expected, rtol=0, atol=1e-6)


def peer_attention(valid: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What sees what among padded tokens, and their positions, as openpi and LeRobot compute them.

    A token sees those of its own and earlier blocks that are no padding; its position is the
    running count of tokens that are none.
    """
    run = np.cumsum(blocks)
    sees = (run[None, :] <= run[:, None]) & valid[None, :] & valid[:, None]
    return sees, np.cumsum(valid) - 1


def test_a_missing_camera_is_a_masked_one() -> None:
    """Tokens that are left out give the masks and positions that masked tokens give the others."""
    tiny = preset("tiny")
    config = dataclasses.replace(
        tiny,
        prompt=PromptConfig(("{views}", "{instruction}", "{state}")),
        mask=MaskConfig("full", "block", "full"),
    )
    side, words = config.vision.image_size, 6
    one = document(config.prompt, lambda text: [], range(words), views=1)
    state = torch.zeros(1, config.state_dim)
    batch = pack(config, [one], torch.zeros(1, 3, side, side), state)
    # The peer's two views, of which the first is masked, its padded words, and the state's block.
    views = config.vision.tokens
    valid = np.array([False] * views + [True] * (views + words) + [False] * 5 + [True])
    sees, positions = peer_attention(valid, np.array([0] * (len(valid) - 1) + [1]))
    assert positions[valid].tolist() == batch.layout.positions.tolist()
    ends = batch.layout.who.kv_end.numpy()
    assert (np.arange(len(ends))[None, :] < ends[:, None]).tolist() == sees[valid][
        :, valid
    ].tolist()
