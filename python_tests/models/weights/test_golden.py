"""Golden files: what they hold is compared, what they are not is refused."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import vlakern
from vlakern import env
from vlakern.errors import CheckpointError
from vlakern.infer._clock import Clock
from vlakern.infer._prefix import Decided
from vlakern.infer.graph_engine import GraphEngine
from vlakern.models.presets import preset
from vlakern.models.sequence import pack
from vlakern.models.vla import VLA
from vlakern.models.weights.golden import STAGES, compare, distance, document_of, read_golden


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """Of the right shapes for ``tiny``, without meaning."""
    config = preset("tiny")
    side, chunk, width = config.vision.image_size, config.chunk, config.action_dim
    draw = np.random.default_rng(0).standard_normal
    layers, heads, dim = config.mot.layers, config.mot.kv_heads, config.mot.head_dim
    return {
        "images": np.zeros((1, side, side, 3), np.uint8),
        "tokens": np.arange(3),
        "state": draw(config.state_dim).astype(np.float32),
        "noise": draw((chunk, width)).astype(np.float32),
        "steps": np.array(2),
        "x": draw((chunk, width)).astype(np.float32),
        "taus": np.array([0.0, 0.5], np.float32),
        "vision": draw((1, config.vision.tokens, config.mot.semantic.hidden)),
        "keys": draw((layers, 5, heads, dim)),
        "values": draw((layers, 5, heads, dim)),
        "velocity": draw((2, chunk, width)),
        "chunk": draw((chunk, width)),
        "bf16_chunk": np.zeros((chunk, width), np.float32),
    }


def test_stages_are_compared(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Another network's numbers are far away in each of them; gaps are theirs alone."""
    np.savez(tmp_path / "golden.npz", **arrays)  # pyright: ignore[reportArgumentType]
    golden = read_golden(tmp_path / "golden.npz")
    assert golden.gap == {"chunk": 1.0}
    errors = compare(VLA(preset("tiny")).eval(), golden)
    assert set(errors) == set(STAGES)
    assert min(errors.values()) > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": None}, "'noise' is nothing, expected 2 dimensions"),
        ({"noise": np.zeros(3)}, r"'noise' is \[3\], expected 2 dimensions"),
        ({"noise": np.array([{}])}, r"no \.npz of plain arrays"),
    ],
)
def test_other_files_are_refused(
    arrays: dict[str, np.ndarray], change: dict, message: str, tmp_path: Path
) -> None:
    """Objects in an array are not unpickled."""
    changed = {name: array for name, array in (arrays | change).items() if array is not None}
    np.savez(tmp_path / "golden.npz", **changed)  # pyright: ignore[reportArgumentType]
    with pytest.raises(CheckpointError, match=message):
        read_golden(tmp_path / "golden.npz")
    (tmp_path / "other.npz").write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(CheckpointError, match=r"no \.npz of plain arrays"):
        read_golden(tmp_path / "other.npz")


# TRITON_INTERPRET=1 pytest -m soak: minutes.
INTERPRETED = pytest.mark.skipif(not env.triton_interpret(), reason="Triton compiles here")
DEVICES = ("cpu", "as a gpu", pytest.param("interpreted", marks=(pytest.mark.soak, INTERPRETED)))


@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["pi0", "pi05", "smolvla"])
def test_the_engine_agrees(
    kind: str, dtype: str, device: str, goldens: ModuleType, tmp_path: Path
) -> None:
    """A loaded policy's own engine gives LeRobot's chunk: 1e-4 in fp32, twice their gap in bf16."""
    policy = vlakern.load(goldens.lerobot_directory(tmp_path / kind, kind), device, dtype)
    golden, config = read_golden(goldens.GOLDEN / f"{kind}.npz"), policy._records.config
    given = golden.given
    doc = document_of(given["tokens"], given["parts"], len(given["images"]))
    doc = tuple(one for one in doc if one.kind != "state" or config.state != "words")
    state = torch.zeros(1, config.state_dim)
    state[0] = torch.from_numpy(given["state"])
    batch = pack(config, [doc], torch.empty(len(given["images"]), 3, 0, 0), state)
    noise = torch.from_numpy(given["noise"])[None]
    chunk = policy._run(Clock("cpu"), [list(given["images"])], batch, noise, 1, Decided())[0]
    engine = policy._engine
    assert engine is not None
    assert isinstance(engine._stages, GraphEngine) == (device != "cpu")
    most = 1e-4 if dtype == "fp32" else 2 * golden.gap["chunk"]
    assert distance(chunk.float().numpy(), golden.found["chunk"]) < most


@pytest.mark.parametrize("kind", ["pi0", "pi05", "smolvla", "beingh"])
def test_the_runs_at_full_size_agree(kind: str, goldens: ModuleType) -> None:
    """As full_size.py stored them: 1e-4 in fp32, twice the peer's gap in bf16 in every stage."""
    stored = json.loads((goldens.GOLDEN / "full_size" / f"{kind}.json").read_text())
    gap, found = stored["bf16"]["peer_gap"], stored["bf16"]["distance"]
    assert max(stored["fp32"]["distance"].values()) < 1e-4
    for stage in STAGES:
        # LeRobot keeps the vision of pi0 and pi0.5 in fp32.
        assert found[stage] <= 2 * gap[stage] or gap[stage] == 0.0, stage
    assert gap["keys"] > 0
    assert gap["chunk"] > 0
