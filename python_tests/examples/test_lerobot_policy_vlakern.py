"""LeRobot's own evaluation drives the engine through the plugin.

LeRobot and the plugin lie in a folder that .ci/run installs them into; of what LeRobot imports,
hardware drivers and data set tools are replaced by empty modules, since none is used here.
"""
# pyright: reportMissingImports=false

import importlib
import importlib.util
import json
import sys
import types
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vlakern

pytestmark = pytest.mark.lerobot

ABSENT = "torchvision diffusers accelerate cv2 datasets pandas serial deepdiff jsonlines"
WEIGHTS = Path(__file__).parents[1] / "models" / "weights"


class Absent(MetaPathFinder, Loader):
    """Packages that LeRobot imports and that nothing here calls."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in ABSENT.split():
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__dict__.update(__path__=[], __version__="0", __getattr__=self.attribute)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        return

    @staticmethod
    def attribute(name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *_, **__: None})


@pytest.fixture(scope="module")
def plugins() -> Any:
    """LeRobot with the plugins that it finds by itself."""
    sys.meta_path.append(Absent())
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    return sys.modules["lerobot"]


def policy_of(*words: str, **options: Any) -> tuple[Any, Any, Any]:
    """Policy and pipelines as ``lerobot-eval`` makes them."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.envs.configs import EnvConfig
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    if words:
        config = PreTrainedConfig.from_pretrained(words[0])
        config.pretrained_path = Path(words[0])
    else:
        config = PreTrainedConfig.get_choice_class("vlakern")(device="cpu", **options)
    policy = make_policy(config, env_cfg=EnvConfig.get_choice_class("vlakern_sawyer")())
    overrides = {"rename_observations_processor": {"rename_map": {}}}
    return policy, *make_pre_post_processors(
        config, config.pretrained_path, preprocessor_overrides=overrides
    )


def seen(views: tuple[str, ...], width: int, size: tuple[int, int]) -> list[vlakern.Observation]:
    rng = np.random.default_rng(5)
    return [
        vlakern.Observation(
            {view: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for view in views},
            rng.uniform(0.1, 0.9, width).astype(np.float32),
            words,
        )
        for words in ("open the drawer", "press the button")
    ]


def batch_of(observations: list[vlakern.Observation]) -> dict[str, Any]:
    """As LeRobot's evaluation has them."""
    images = {
        f"observation.images.{view}": torch.from_numpy(
            np.stack([o.images[view] for o in observations])
        ).permute(0, 3, 1, 2)
        / 255
        for view in observations[0].images
    }
    states = torch.from_numpy(np.stack([o.state for o in observations]))
    return {**images, "observation.state": states, "task": [o.instruction for o in observations]}


def expected(policy: vlakern.Policy, observations: list[vlakern.Observation]) -> np.ndarray:
    seeds = torch.randint(2**62, (len(observations),)).tolist()
    return np.stack([chunk.actions for chunk in policy.act_batch(observations, seeds)])


def test_lerobot_eval_solves_a_task(
    plugins: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own entry point, four scenes of a task that the shipped policy always solves."""
    from lerobot.scripts import lerobot_eval

    monkeypatch.setattr(lerobot_eval, "write_video", lambda *_: None)
    words = "--policy.type=vlakern --policy.source=metaworld-small --policy.device=cpu"
    words += " --env.type=vlakern_sawyer --env.task=drawer-open-v3 --eval.n_episodes=4"
    words += f" --eval.batch_size=2 --eval.use_async_envs=false --seed=0 --output_dir={tmp_path}"
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", *words.split()])
    lerobot_eval.main()
    overall = json.loads((tmp_path / "eval_info.json").read_text())["overall"]
    assert overall["n_episodes"] == 4
    assert overall["pc_success"] == 100.0
    assert overall["avg_max_reward"] == 1.0


def test_actions_are_the_engines(plugins: Any) -> None:
    """To the bit: LeRobot's images in [0, 1] are the camera's levels again, its seed the noise's;
    a chunk is asked for when the actions to run are used up, and after a reset."""
    policy, before, after = policy_of(source="metaworld-small", n_action_steps=3)
    engine = vlakern.load("metaworld-small", device="cpu")
    observations = seen(("left", "right"), 4, (96, 96))
    torch.manual_seed(3)
    found = [after(policy.select_action(before(batch_of(observations)))) for _ in range(4)]
    policy.reset()
    found.append(after(policy.select_action(before(batch_of(observations)))))
    torch.manual_seed(3)
    chunks = [expected(engine, observations) for _ in range(3)]
    rows = [chunks[0][:, 0], chunks[0][:, 1], chunks[0][:, 2], chunks[1][:, 0], chunks[2][:, 0]]
    for left, right in zip(found, rows, strict=True):
        assert left.dtype == torch.float32
        np.testing.assert_array_equal(left.numpy(), right)
    assert not np.array_equal(chunks[0], chunks[1])


def test_a_directory_for_a_path(plugins: Any, tmp_path: Path) -> None:
    """LeRobot's own pi0 becomes a directory for --policy.path: nothing is normalised twice, and
    cameras may have other names."""
    spec = importlib.util.spec_from_file_location("goldens", WEIGHTS / "goldens.py")
    assert spec is not None
    assert spec.loader is not None
    goldens = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(goldens)
    source = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    target = tmp_path / "target"
    command = importlib.import_module("lerobot_policy_vlakern.__main__").main
    assert command([str(source), str(target)]) == 0
    assert command([str(source), str(target)]) == 1  # it is there
    assert command([str(source)]) == 2
    assert json.loads((target / "config.json").read_text())["device"] is None
    policy, before, after = policy_of(str(target))
    engine = vlakern.load(source, device="cpu")
    assert policy.config.n_action_steps == engine.execute == 5
    policy.config.views = {"front": "top"}
    observations = seen(("top", "wrist"), 8, (48, 64))
    torch.manual_seed(4)
    batch = batch_of(observations)
    batch["observation.images.front"] = batch.pop("observation.images.top")
    found = after(policy.predict_action_chunk(before(batch)))
    torch.manual_seed(4)
    np.testing.assert_array_equal(found.numpy(), expected(engine, observations))
    assert found.shape == (2, 6, 7)


def test_what_cannot_be_is_refused(plugins: Any) -> None:
    """In one sentence each."""
    with pytest.raises(ValueError, match=r"policy\.source is empty"):
        policy_of()
    with pytest.raises(ValueError, match="n_action_steps is 17, expected 1 to the policy's chunk"):
        policy_of(source="metaworld-small", n_action_steps=17)
    with pytest.raises(vlakern.CheckpointError, match="no policy 'nothing'"):
        policy_of(source="nothing")
    policy, before, _ = policy_of(source="metaworld-small")
    batch = before(batch_of(seen(("left", "right"), 4, (96, 96))))
    with pytest.raises(ValueError, match="take no inference_delay"):
        policy.predict_action_chunk(batch, inference_delay=2)
    with pytest.raises(ValueError, match=r"no observation\.state"):
        policy.select_action({"task": ["open the drawer"]})
    with pytest.raises(NotImplementedError, match="do not train"):
        policy.forward(batch)
