"""LeRobot's directories: what config.json says becomes records, what it cannot be is named."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import vlakern
from vlakern.errors import ConfigError
from vlakern.models.processing import ImageRule
from vlakern.models.weights.families import open_policy
from vlakern.models.weights.lerobot import read_settings, vectors
from vlakern.types import Observation

KINDS = ("pi0", "pi05", "smolvla")
Change = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize("kind", KINDS)
def test_records(kind: str, goldens: ModuleType, tmp_path: Path) -> None:
    """Sizes, cameras in order without the empty ones, chunk, steps, statistics and prompt rule."""
    opened = open_policy(goldens.lerobot_directory(tmp_path / kind, kind))
    records = opened.records
    config, robot = records.config, records.embodiment
    assert opened.family.name == ("LeRobot SmolVLA" if kind == "smolvla" else f"LeRobot {kind}")
    assert (config.state_dim, config.action_dim, config.chunk, config.steps) == (9, 7, 6, 10)
    assert config.vision.image_size == goldens.SIDES[kind]
    assert (robot.state_width, robot.action_width) == goldens.WIDTHS[kind]
    assert robot.views == ("top", "wrist")
    p = records.processing
    assert (p.execute, p.epsilon, p.frame) == (5, "lerobot", "native")
    case = json.loads((goldens.GOLDEN / "processing/cases.json").read_text())[kind]
    seen = records.space.encode_state(np.array(case["state"]), np.float64)[..., : robot.state_width]
    np.testing.assert_allclose(seen.squeeze(), case["normalised"], rtol=1e-6, atol=1e-6)
    assert p.prompt.has_state == (kind == "pi05")
    assert p.prompt.bos == ("" if kind == "smolvla" else "<bos>")
    # LeRobot up to 0.4 padded pi's images with -1 in [0, 1], SmolVLA's with 0.
    fit, pad = ("lerobot", 0) if kind == "smolvla" else ("openpi", -255)
    assert p.image == ImageRule(fit=fit, filter="bilinear", pad=pad)


@pytest.mark.parametrize("kind", KINDS)
def test_it_acts(kind: str, goldens: ModuleType, tmp_path: Path) -> None:
    """From camera images and words to commands, by the one call; a view may be missing."""
    policy = vlakern.load(goldens.lerobot_directory(tmp_path / kind, kind), device="cpu")
    rng = np.random.default_rng(0)
    images = {view: rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for view in ("wrist", "top")}
    state = rng.uniform(-1, 1, policy.robot.state_width).astype(np.float32)
    both = policy.act(Observation(images, state, "pick up the cube"), seed=1).actions
    assert both.shape == (6, policy.robot.action_width)
    assert np.isfinite(both).all()
    del images["wrist"]
    one = policy.act(Observation(images, state, "pick up the cube"), seed=1).actions
    assert np.abs(one - both).max() > 1e-4


def shape_of(key: str, name: str, shape: Any) -> Change:
    return lambda config: config[key][name].update(shape=shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("input_features"), "input_features has no image"),
        (lambda c: c.update(output_features={}), "output_features has nothing in the place of"),
        (shape_of("input_features", "observation.state", [0]), "expected a list of positive"),
        (shape_of("output_features", "action", [8]), "action has 8 numbers, the model takes at"),
        (lambda c: c.update(chunk_size="6"), "chunk_size is '6', expected int"),
        (lambda c: c.update(chunk_size=0), "chunk is 0, expected 1 to"),
        (lambda c: c.update(min_period=True), "min_period is 'True', expected float"),
        (lambda c: c.update(adapt_to_pi_aloha=True), "adapt_to_pi_aloha is true: joints with"),
        (lambda c: c.update(n_action_steps=7), "execute is 7, expected 1 to the chunk length 6"),
        (lambda c: c.update(image_resolution=[48, 64]), "image_resolution is .*positions for 56"),
        (lambda c: c.update(rtc_config="on"), "rtc_config is 'on', expected null or LeRobot's"),
        (lambda c: c.update(rtc_config={"enabled": 1}), "rtc_config .* true or false for enabled"),
        (lambda c: c.update(type="pi05"), "type is of pi05, but .* tensors of pi0;"),
    ],
)
def test_what_cannot_be_is_named(
    change: Change, message: str, goldens: ModuleType, tmp_path: Path
) -> None:
    """By the file's key."""
    directory = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        _ = open_policy(directory).records.space


@pytest.mark.parametrize("kind", ["pi0", "pi05", "smolvla"])
def test_real_time_chunking_is_not_dropped_in_silence(
    kind: str, goldens: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LeRobot's settings of it are of its own loop: once, a warning says what to ask for here."""
    rtc: dict[str, Any] = {"prefix_attention_schedule": "LINEAR", "execution_horizon": 10}
    for name, given, said in (
        ("none", None, ""),
        ("off", rtc | {"enabled": False}, ""),
        ("on", rtc, "LoopConfig(prefix=True, form='cheap')"),
        ("trained", rtc | {"enabled": True, "mode": "trained"}, "form='frozen'"),
    ):
        directory = goldens.lerobot_directory(tmp_path / name, kind)
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"rtc_config": given}))
        caplog.clear()
        for _ in range(2):
            open_policy(directory)
        warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
        assert len(warnings) == bool(said)
        if said:
            assert warnings[0].startswith(f"{directory / 'config.json'}.rtc_config is not applied")
            assert said in warnings[0]


def test_pi0_up_to_lerobot_03(goldens: ModuleType, tmp_path: Path) -> None:
    """Its key of the images' side says that they are fitted to the right and the bottom."""
    directory = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    config = json.loads((directory / "config.json").read_text())
    config["resize_imgs_with_padding"] = config.pop("image_resolution")
    config["num_steps"] = config.pop("num_inference_steps") + 1
    (directory / "config.json").write_text(json.dumps(config))
    records = open_policy(directory).records
    assert records.processing.image == ImageRule("lerobot", "bilinear", 0)
    assert records.config.steps == 11
    config["resize_imgs_with_padding"] = [224, 224]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"resize_imgs_with_padding is \[224, 224\]"):
        open_policy(directory)


def test_whole_numbers_are_periods_too(goldens: ModuleType, tmp_path: Path) -> None:
    """JSON writes 4.0 as 4."""
    directory = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    text = (directory / "config.json").read_text().replace('"max_period": 4.0', '"max_period": 4')
    (directory / "config.json").write_text(text)
    assert read_settings(directory).get("max_period", float, 1.0) == 4.0
    assert open_policy(directory).records.config.time.max_period == 4.0


def test_vectors_are_the_robots_numbers_in_order() -> None:
    """What the model has more is no slot."""
    robot, state, action = vectors("arm", (3, 2), (5, 4), ("top",), 30.0)
    assert (state.width, action.width) == (5, 4)
    assert state.names() == ("state.0", "state.1", "state.2", "unnamed.3", "unnamed.4")
    assert robot.action_width == 2
