"""Loading large weights: they are mapped and packed piece by piece, never copied as a whole."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlakern.models.presets import preset
from vlakern.models.vla import VLA
from vlakern.records import to_dict

CHILD = """
import json, sys, threading
from pathlib import Path
import torch
from vlakern.infer.packed_file import cached_model
from vlakern.models.config import VLAConfig
from vlakern.models.weights.native import open_weights
from vlakern.records import from_dict

torch.set_num_threads(1)
config = from_dict(VLAConfig, json.loads(sys.stdin.read()), "config")
directory, kept = Path(sys.argv[1]), sys.argv[2] == "keep"

def now():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))

most, end = [now()], threading.Event()
first = most[0]
def watch():
    while not end.wait(0.002):
        most.append(now())
thread = threading.Thread(target=watch)
thread.start()
weights = open_weights(config, directory / "model.safetensors")
held = [weights(name).clone() for name in weights.shapes] if kept else []
packed = cached_model(directory, config, "bf16", directory / "model.safetensors", weights)
end.set()
thread.join()
print(json.dumps([max(most) - first, packed.nbytes]))
"""


@pytest.mark.ci
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kept", [False, True])
def test_packing_holds_no_second_copy(kept: bool, tmp_path: Path) -> None:
    """Memory that no file is behind stays below half of the weights: one layer's folds.

    A copy on purpose shows that the measurement sees one.
    """
    small = preset("tiny-pi0")
    trunk = replace(small.mot.semantic, hidden=512, mlp=2048)
    wide = replace(small.mot, layers=32, semantic=trunk)
    config = replace(small, mot=wide)
    with torch.device("meta"):
        shapes = {name: one.shape for name, one in VLA(config).state_dict().items()}
    weights = {name: torch.full(shape, 0.01).bfloat16() for name, shape in shapes.items()}
    save_file(weights, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", CHILD, str(tmp_path), "keep" if kept else "drop"]
    text = json.dumps(to_dict(config))
    run = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    anonymous, size = json.loads(run.stdout)
    assert size > 150 << 20
    assert (anonymous < size / 2) != kept, (anonymous, size)
