"""A policy directory comes back as it was written, and a damaged one is named in one sentence."""

import dataclasses
import json
import math
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlakern.errors import CheckpointError, ConfigError, VlakernError
from vlakern.models import VLA, preset
from vlakern.models.tokenizer import fit_tokenizer
from vlakern.models.weights import PolicyFiles, Processing, SlotMode, native, read, write
from vlakern.space import Embodiment, Field, Slot, SlotMap, VectorStats

NAMES = {"config.json", "model.safetensors", "stats.json", "tokenizer.json"}


HAND, JOINTS, GRIP = Slot("hand", "m", 0, 3), Slot("joints", "rad", 3, 7), Slot("grip", "1", 3, 5)
STATE_MAP, ACTION_MAP = SlotMap("arm", 7, (HAND, JOINTS)), SlotMap("arm", 5, (HAND, GRIP))
ARM = Embodiment(
    "arm",
    "arm",
    20.0,
    ("front", "wrist"),
    7,
    5,
    state=(Field("hand", (0, 3)), Field("joints", (3, 7))),
    action=(Field("hand", (0, 3)), Field("grip", (3, 5))),
)


def stats(width: int, names: tuple[str, ...] = ()) -> VectorStats:
    rows = [tuple(scale * (i + 0.1) for i in range(width)) for scale in (1, 2, -3, 3, -2.5, 2.5)]
    return VectorStats(*rows, names=names)


@pytest.fixture(scope="module")
def files() -> PolicyFiles:
    """A whole policy of the smallest size."""
    torch.manual_seed(0)
    return PolicyFiles(
        VLA(preset("tiny")),
        ARM,
        STATE_MAP,
        ACTION_MAP,
        Processing("zscore", "quantile", execute=3, action_slots=(SlotMode("grip", "min_max"),)),
        stats(7, STATE_MAP.names()),
        stats(5, ACTION_MAP.names()),
        fit_tokenizer(["push the puck"], 300),
    )


@pytest.fixture
def directory(files: PolicyFiles, tmp_path: Path) -> Path:
    """The policy on disk."""
    write(tmp_path / "policy", files)
    return tmp_path / "policy"


def test_what_is_written_is_read(files: PolicyFiles, directory: Path) -> None:
    """Weights have the bits of their bfloat16 rounding; every record is equal."""
    found = read(directory)
    assert {path.name for path in directory.iterdir()} == NAMES
    expected, weights = files.model.state_dict(), found.model.state_dict()
    assert list(weights) == list(expected)
    for name, weight in weights.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected[name].bfloat16().float())
    for field in (
        "embodiment",
        "state_map",
        "action_map",
        "processing",
        "state_stats",
        "action_stats",
    ):
        assert getattr(found, field) == getattr(files, field)
    assert found.model.config == files.model.config
    assert not found.model.training
    assert found.tokenizer.encode("push it") == files.tokenizer.encode("push it")


def test_reading_and_writing_again_keeps_every_byte(directory: Path, tmp_path: Path) -> None:
    """A policy that was loaded in bfloat16 and saved is the same four files."""
    write(tmp_path / "again", read(directory, torch.bfloat16))
    for name in NAMES:
        assert (tmp_path / "again" / name).read_bytes() == (directory / name).read_bytes(), name


def test_fp32_weights_survive_exactly(files: PolicyFiles, tmp_path: Path) -> None:
    """Written in fp32, nothing is rounded."""
    write(tmp_path / "exact", files, torch.float32)
    for name, weight in read(tmp_path / "exact").model.state_dict().items():
        assert torch.equal(weight, files.model.state_dict()[name])


def edit_json(name: str, change: Callable[[Any], Any]) -> Callable[[Path], object]:
    def edit(directory: Path) -> None:
        values = json.loads((directory / name).read_text())
        found = change(values)
        (directory / name).write_text(json.dumps(values if found is None else found))

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], object]:
    def edit(directory: Path) -> None:
        path = directory / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return edit


def cut(name: str, keep: float) -> Callable[[Path], object]:
    def edit(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: int(len(content) * keep)])

    return edit


def put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(content)


def remove(name: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).unlink()


BIAS = "action_decoder.2.bias"
DAMAGES = {
    "no config": (remove("config.json"), CheckpointError, r"config\.json is missing"),
    "no weights": (remove("model.safetensors"), CheckpointError, "needs its weights"),
    "no stats": (remove("stats.json"), CheckpointError, r"stats\.json is missing"),
    "no tokenizer": (remove("tokenizer.json"), CheckpointError, r"tokenizer\.json is missing"),
    "half a config": (cut("config.json", 0.5), CheckpointError, r"config\.json is not valid JSON"),
    "half the weights": (cut("model.safetensors", 0.5), CheckpointError, "is truncated or not a"),
    "a byte short": (cut("model.safetensors", 0.99999), CheckpointError, "is truncated or not a"),
    "no weight bytes": (put("model.safetensors", b""), CheckpointError, "is truncated or not a"),
    "a header too long": (
        put("model.safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
        CheckpointError,
        "is truncated or not a safetensors file",
    ),
    "half a tokenizer": (cut("tokenizer.json", 0.5), CheckpointError, "is not a tokenizer of"),
    "config of bytes": (put("config.json", b"\xff\xfe{"), CheckpointError, "is not valid JSON"),
    "deep config": (put("config.json", b"[" * 100_000), CheckpointError, "is not valid JSON"),
    "huge number": (put("stats.json", b"9" * 5000), CheckpointError, "is not valid JSON"),
    "huge config": (
        put("config.json", b" " * (1 << 20) + b"{}"),
        CheckpointError,
        r"config\.json is larger than 1048576 bytes",
    ),
    "config is a list": (put("config.json", b"[]"), ConfigError, r"config\.json: expected an obj"),
    "unknown key": (
        edit_json("config.json", lambda c: c["model"]["mot"].update(layer=3)),
        ConfigError,
        r"config\.json\.model\.mot: unknown key 'layer'; the keys of MoTConfig are",
    ),
    "missing key": (
        edit_json("config.json", lambda c: c["embodiment"].pop("views") and None),
        ConfigError,
        r"config\.json\.embodiment: key 'views' of Embodiment is missing",
    ),
    "newer format": (
        edit_json("config.json", lambda c: c.update(format=3, new=1)),
        ConfigError,
        r"config\.json\.format is 3, this version reads 2",
    ),
    "older format": (
        edit_json("config.json", lambda c: c.update(format=1)),
        ConfigError,
        r"config\.json\.format is 1, this version reads 2",
    ),
    "other family": (
        edit_json("config.json", lambda c: c.update(family="pi0")),
        ConfigError,
        r"config\.json\.family: expected one of \('vlakern',\), found 'pi0'",
    ),
    "no views": (
        edit_json("config.json", lambda c: c["embodiment"].update(views=[])),
        ConfigError,
        r"config\.json\.embodiment: views is \[\], expected names that differ",
    ),
    "one view twice": (
        edit_json("config.json", lambda c: c["embodiment"].update(views=["a", "a"])),
        ConfigError,
        r"embodiment: views is \['a', 'a'\]",
    ),
    "no rate": (
        edit_json("config.json", lambda c: c["embodiment"].update(control_rate=0)),
        ConfigError,
        r"config\.json\.embodiment: control_rate is 0\.0, expected more than 0 Hz",
    ),
    "executes too much": (
        edit_json("config.json", lambda c: c["processing"].update(execute=7)),
        ConfigError,
        r"config\.json\.processing\.execute is 7, expected 1 to the chunk length 6",
    ),
    "slot outside": (
        edit_json("config.json", lambda c: c["state_map"]["slots"][0].update(stop=8)),
        ConfigError,
        r"config\.json\.state_map: slot map 'arm': slot 'hand' covers \[0, 8\)",
    ),
    "map of another width": (
        edit_json("config.json", lambda c: c["action_map"].update(width=6)),
        ConfigError,
        r"config\.json\.action_map is 'arm' with 6 indices, the model has 5",
    ),
    "field of an unknown slot": (
        edit_json("config.json", lambda c: c["embodiment"]["action"][1].update(slot="claw")),
        ConfigError,
        r"arm: action: slot 'claw' is not in slot map 'arm'; it has hand, grip",
    ),
    "exception of an unknown slot": (
        edit_json("config.json", lambda c: c["processing"]["action_slots"][0].update(slot="x")),
        ConfigError,
        r"processing\.action_slots: slot 'x' is not in slot map 'arm'",
    ),
    "unknown frame": (
        edit_json("config.json", lambda c: c["processing"].update(frame="hand")),
        ConfigError,
        r"config\.json\.processing\.frame: expected one of \('native', 'world_relative'",
    ),
    "stats of another map": (
        edit_json("stats.json", lambda s: s["state"]["names"].__setitem__(4, "elbow")),
        ConfigError,
        r"arm: state statistics.*'elbow'",
    ),
    "stats of one vector": (
        edit_json("stats.json", lambda s: s.pop("action") and None),
        ConfigError,
        r"stats\.json: expected an object with the keys frame, state and action",
    ),
    "stats too short": (
        edit_json("stats.json", lambda s: s.update(state=s["action"])),
        ConfigError,
        r"stats\.json\.state has 5 slots, the model's config says 7",
    ),
    "stats not finite": (
        edit_json("stats.json", lambda s: s["action"]["std"].__setitem__(1, math.nan)),
        CheckpointError,
        r"stats\.json is not valid JSON: NaN is not a number of JSON",
    ),
    "tensor missing": (
        edit_weights(lambda w: w.pop(BIAS)),
        CheckpointError,
        rf"lacks '{BIAS}' \(1 tensors missing, 0 unknown\)",
    ),
    "tensor unknown": (
        edit_weights(lambda w: w.update(extra=torch.zeros(1))),
        CheckpointError,
        r"holds 'extra', which is unknown \(0 tensors missing, 1 unknown\)",
    ),
    "tensor misshapen": (
        edit_weights(lambda w: w.update({BIAS: torch.zeros(6)})),
        CheckpointError,
        rf"tensor '{BIAS}' has shape \(6,\), the model in config\.json needs \(5,\)",
    ),
    "tensor of integers": (
        edit_weights(lambda w: w.update({BIAS: torch.zeros(5, dtype=torch.int64)})),
        CheckpointError,
        rf"tensor '{BIAS}' is I64, expected one of BF16, F16, F32, F64",
    ),
    "tensor with NaN": (
        edit_weights(lambda w: w[BIAS].__setitem__(3, math.nan)),
        CheckpointError,
        rf"tensor '{BIAS}' holds values that are not finite",
    ),
    "another model": (
        edit_json("config.json", lambda c: c["model"]["mot"].update(layers=3)),
        CheckpointError,
        r"lacks 'mot\.action\.layers\.2\..* it was written for another model",
    ),
    "layers without end": (
        edit_json("config.json", lambda c: c["model"]["mot"].update(layers=10**9)),
        ConfigError,
        r"config\.json\.model\.mot: MoTConfig\.layers is 1000000000, expected 1 to 1024",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_sentence(name: str, directory: Path) -> None:
    """Every damage raises its class and says what, where, what was expected and found."""
    damage, kind, sentence = DAMAGES[name]
    damage(directory)
    with pytest.raises(kind, match=sentence) as caught:
        read(directory)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_beginning_of_every_file_is_refused(name: str, directory: Path) -> None:
    """A file cut anywhere is an error of the package's own, never another one or a success."""
    content = (directory / name).read_bytes().rstrip()
    for part in range(16):
        (directory / name).write_bytes(content[: len(content) * part // 16])
        with pytest.raises(VlakernError):
            read(directory)


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    """Missing, or a file."""
    (tmp_path / "file").write_text("x")
    for name in ("nothing", "file"):
        with pytest.raises(CheckpointError, match="is not a directory; expected a policy"):
            read(tmp_path / name)


@pytest.mark.parametrize("moment", ["save_file", "json.dumps"])
def test_an_interrupted_write_leaves_the_old_policy(
    moment: str, files: PolicyFiles, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails on the way, the old four files are there with their bytes, and no other."""
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(native, *([moment, fail] if moment == "save_file" else ["json", Broken]))
    with pytest.raises(OSError, match="no space left"):
        write(directory, dataclasses.replace(files, processing=Processing(execute=1)))
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert [path.name for path in directory.parent.iterdir()] == ["policy"]


def test_a_full_disk_is_one_sentence(files: PolicyFiles, directory: Path) -> None:
    """Weights that do not fit are a CheckpointError, and the old policy is still there."""
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"policy cannot be written \(.*too large"):
            write(directory, files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert [path.name for path in directory.parent.iterdir()] == ["policy"]


class Broken:
    """A json module whose disk is full."""

    @staticmethod
    def dumps(*args: Any, **kwargs: Any) -> str:
        raise OSError("no space left on device")


def test_a_policy_replaces_a_policy(files: PolicyFiles, directory: Path) -> None:
    """The new one is read afterwards and nothing of the old one stays beside it."""
    write(directory, dataclasses.replace(files, processing=Processing(execute=1)))
    assert read(directory).processing == Processing(execute=1)
    assert [path.name for path in directory.parent.iterdir()] == ["policy"]


def test_a_directory_of_something_else_is_never_replaced(
    files: PolicyFiles, tmp_path: Path
) -> None:
    """Someone's data and someone's file stay; an empty directory may become a policy."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/results.csv").write_text("1")
    (tmp_path / "file").write_text("1")
    for name in ("data", "file"):
        with pytest.raises(CheckpointError, match="is not a policy directory; choose another one"):
            write(tmp_path / name, files)
    assert (tmp_path / "data/results.csv").read_text() == "1"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", files)
    assert read(tmp_path / "empty").embodiment == files.embodiment


def test_a_policy_that_could_not_be_read_again_is_not_written(
    files: PolicyFiles, tmp_path: Path
) -> None:
    """Contradictions and weights that are not finite are found before the old one goes."""
    broken = VLA(preset("tiny"))
    with torch.no_grad():
        broken.action_encoder.w1.bias[0] = math.inf
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": broken}, r"'action_encoder\.w1\.bias' holds values that are not finite"),
        ({"state_stats": stats(6)}, r"state: 7 modes for 6 slots"),
        ({"action_map": STATE_MAP}, r"action_map is 'arm' with 7 indices, the model has 5"),
        ({"state_map": dataclasses.replace(STATE_MAP, name="leg")}, "the state map is 'leg'"),
        ({"processing": Processing(execute=0)}, r"processing\.execute is 0"),
    ]
    for change, sentence in cases:
        with pytest.raises(VlakernError, match=sentence):
            write(tmp_path / "policy", dataclasses.replace(files, **change))
    assert list(tmp_path.iterdir()) == []
