"""Directories of other families: told apart, and opened by the same call."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vlakern
from vlakern.errors import CheckpointError
from vlakern.infer import policy as infer
from vlakern.models.config import VLAConfig
from vlakern.models.vla import VLA
from vlakern.models.weights import families, native
from vlakern.models.weights.families import family_of
from vlakern.models.weights.family import Family
from vlakern.models.weights.names import NEGATE, Rule, Table, bind
from vlakern.types import Observation

SHIPPED = "metaworld-small"
NEGATED = "action_decoder.2.weight"


def fake_table(config: VLAConfig) -> tuple[Table, dict[str, tuple[int, ...]]]:
    """Every name with ``net.`` before it, and the last product of the other sign."""
    with torch.device("meta"):
        shapes = {name: tuple(w.shape) for name, w in VLA(config).state_dict().items()}
    rules = [
        Rule(n, (f"net.{n}",), NEGATE) if n == NEGATED else Rule(n, (f"net.{n}",)) for n in shapes
    ]
    return Table(tuple(rules), skipped=((r"dead", "never used"),)), shapes


def fake_weights(directory: Path, config: VLAConfig):
    table, shapes = fake_table(config)
    tensors = load_file(directory / "weights.safetensors")
    found = {name: tuple(w.shape) for name, w in tensors.items()}
    return bind(table, shapes, found, str(directory)).weights(tensors.__getitem__)


FAKE = Family(
    "fake",
    "fake.json",
    lambda directory: (directory / "fake.json").is_file(),
    lambda directory: native.read_records(directory / "ours"),
    fake_weights,
    lambda directory: directory / "weights.safetensors",
)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped policy as another family would store it."""
    monkeypatch.setattr(families, "FAMILIES", (FAKE,))
    ours = Path(infer.__file__).parents[1] / "policies" / SHIPPED
    if not ours.is_dir():
        pytest.skip(f"{SHIPPED} does not ship")
    shutil.copytree(ours, tmp_path / "ours")
    tensors = load_file(ours / "model.safetensors")
    named = {f"net.{n}": -w if n == NEGATED else w for n, w in tensors.items()}
    save_file(named | {"dead": torch.ones(2)}, tmp_path / "weights.safetensors")
    (tmp_path / "fake.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("engine", [True, False])
def test_the_same_call_opens_another_family(
    fake: Path, engine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same actions as from our own directory, by vlakern's engine and by the reference."""
    if not engine:
        monkeypatch.setattr(infer._native, "missing", lambda: "not built")
    ours, theirs = vlakern.load(SHIPPED, device="cpu"), vlakern.load(fake, device="cpu")
    generator = torch.Generator().manual_seed(0)
    size = (ours.image_size, ours.image_size, 3)
    images = {
        view: torch.randint(0, 256, size, generator=generator, dtype=torch.uint8).numpy()
        for view in ours.views
    }
    state = torch.rand(ours.robot.state_width, generator=generator).numpy()
    seen = Observation(images=images, state=state, instruction="push the button")
    left, right = ours.act(seen, seed=1), theirs.act(seen, seed=1)
    assert (left.actions == right.actions).all()


def test_ours_comes_first(fake: Path) -> None:
    """A directory with our config is ours, whatever else lies in it."""
    (fake / "ours" / "fake.json").write_text("{}")
    assert family_of(fake / "ours").name == "vlakern"
    assert family_of(fake).name == "fake"


def test_an_unknown_directory_is_refused(tmp_path: Path) -> None:
    """In one sentence that says what was looked for."""
    (tmp_path / "config.json").write_text(json.dumps({"type": "act"}))
    with pytest.raises(
        CheckpointError, match=r"vlakern: config\.json with the key family; fake: fake\.json"
    ):
        family_of(tmp_path, (FAKE,))


def test_what_is_there_instead_is_said(tmp_path: Path) -> None:
    """Another policy's type, an adapter alone, or the folder above."""
    (tmp_path / "params").mkdir()
    with pytest.raises(CheckpointError, match=r"parameters of JAX; convert them with openpi's"):
        family_of(tmp_path)
    for last in ("checkpoints/last/pretrained_model", "last/pretrained_model", "pretrained_model"):
        (tmp_path / last).mkdir(parents=True)
        with pytest.raises(CheckpointError, match=f"name its folder {last}; expected one of"):
            family_of(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="it holds an adapter alone; merge it"):
        family_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"type": "act"}))
    with pytest.raises(CheckpointError, match=r"its config\.json is of type 'act'"):
        family_of(tmp_path)


def test_damaged_config_is_called_so(tmp_path: Path) -> None:
    """Not unknown: the file is there and cannot be read."""
    (tmp_path / "config.json").write_text("{")
    assert family_of(tmp_path, (FAKE,)).name == "vlakern"
