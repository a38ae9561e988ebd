"""What golden files leave out: weights that follow from their names, and lists of names.

The bits of a weight come from PCG64, whose raw stream numpy promises to keep; in a list of names
layers that are alike stand once.
"""

import hashlib
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = [
    "EXPORTS",
    "GOLDEN",
    "beingh_observation",
    "contents",
    "drawn",
    "exported_observation",
    "lerobot_directory",
    "read_names",
    "state_dict",
    "write_names",
]

GOLDEN = Path(__file__).parent / "golden"
Shapes = dict[str, tuple[int, ...]]


def write_names(path: Path, shapes: Shapes) -> None:
    """One line per name, with ``{n}`` and the numbers it stands for."""
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for name, shape in shapes.items():
        number = re.search(r"(?<=layers\.)\d+", name)
        pattern = name if number is None else re.sub(r"(?<=layers\.)\d+", "{n}", name, count=1)
        groups.setdefault((pattern, tuple(shape)), [])
        if number is not None:
            groups[pattern, tuple(shape)].append(int(number[0]))
    lines = [
        json.dumps([pattern, list(shape), layers]) for (pattern, shape), layers in groups.items()
    ]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def read_names(path: Path) -> Shapes:
    """The inverse of :func:`write_names`."""
    shapes: Shapes = {}
    for pattern, shape, layers in json.loads(path.read_text()):
        for n in layers or [None]:
            shapes[pattern.replace("{n}", str(n))] = tuple(shape)
    return shapes


def drawn(name: str, shape: tuple[int, ...], least: float = -1.0, most: float = 1.0) -> Tensor:
    """Uniform fp32 numbers that bf16 can hold, the same for a name and shape on every machine."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    raw = np.random.PCG64(seed).random_raw(math.prod(shape)) >> np.uint64(40)
    unit = raw.astype(np.float64) / (1 << 24)
    values = least + (most - least) * unit
    return torch.from_numpy(values.astype(np.float32)).view(shape).bfloat16().float()


def state_dict(shapes: dict[str, tuple[int, ...]], ones: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Weights that pass a signal on: products of unit gain, small biases.

    Args:
        ones: parts of the names of norms whose weights lie around 1, not 0.
    """
    return {name: _weight(name, shape, ones) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...], ones: tuple[str, ...]) -> Tensor:
    if len(shape) > 1 and "embed" not in name:
        gain = math.sqrt(3.0 / math.prod(shape[1:]))
        return drawn(name, shape, -gain, gain)
    if name.endswith("bias"):
        return drawn(name, shape, -0.1, 0.1)
    if len(shape) > 1:
        return drawn(name, shape)
    middle = 1.0 if any(part in name for part in ones) else 0.0
    return drawn(name, shape, middle - 0.3, middle + 0.3)


ONES = {
    "pi0": ("layer_norm", "post_layernorm"),
    "pi05": ("layer_norm", "post_layernorm"),
    "smolvla": ("layer_norm", "layernorm", "norm.weight"),
}
SIDES = {"pi0": 56, "pi05": 56, "smolvla": 64}
EXPORTS: dict[str, tuple[str, tuple[int, ...]]] = {  # by name: the family, relative actions
    "pi0": ("pi0", ()),
    "pi05": ("pi05", ()),
    "pi05_relative": ("pi05", (0, 1, 4)),
    "smolvla": ("smolvla", ()),
}
RELATIVE = {  # by file: the step, and the one that it is before
    "preprocessor": ("relative_actions_processor", "normalizer_processor"),
    "postprocessor": ("absolute_actions_processor", "device_processor"),
}
WIDTHS = {"pi0": (8, 7), "pi05": (8, 7), "smolvla": (6, 6)}  # of the processing's files


def lerobot_directory(
    directory: Path,
    kind: str,
    dtype: torch.dtype = torch.float32,
    prefix: str = "model.",
    recent: bool = False,
    relative: tuple[int, ...] = (),
) -> Path:
    """The reduced network of a golden run as LeRobot stores it, with the processing's own files.

    Args:
        recent: with the step that LeRobot's pi policies have from 0.5.1 on.
        relative: actions that this step makes relative to the state.
    """
    directory.mkdir(parents=True)
    shapes = read_names(GOLDEN / f"{kind}_names.json")
    weights = {f"{prefix}{k}": w.to(dtype) for k, w in state_dict(shapes, ONES[kind]).items()}
    both = f"{prefix}paligemma_with_expert.paligemma."
    if kind != "smolvla":  # whose words are not tied
        words = weights[f"{both}model.language_model.embed_tokens.weight"]
        weights[f"{both}lm_head.weight"] = words.clone()
    save_file(weights, directory / "model.safetensors")
    for path in (GOLDEN / "processing" / f"lerobot_{kind}").iterdir():
        shutil.copy(path, directory)
    shutil.copy(GOLDEN / "processing" / "tokenizer.json", directory)
    if recent and kind != "smolvla":
        for name, before in RELATIVE.items():
            path = directory / f"policy_{name}.json"
            pipeline = json.loads(path.read_text())
            names = [step["registry_name"] for step in pipeline["steps"]]
            step = {"registry_name": before[0], "config": {"enabled": bool(relative)}}
            if name == "preprocessor" and relative:
                called = ["joint" if i in relative else "grip" for i in range(WIDTHS[kind][1])]
                step["config"] |= {"exclude_joints": ["grip"], "action_names": called}
            pipeline["steps"].insert(names.index(before[1]), step)
            path.write_text(json.dumps(pipeline))
    steps = "num_steps" if kind == "smolvla" else "num_inference_steps"
    side = SIDES[kind]
    image = {"type": "VISUAL", "shape": [3, 48, 64]}
    config = {
        "type": kind,
        "input_features": {
            "observation.images.top": image,
            "observation.state": {"type": "STATE", "shape": [WIDTHS[kind][0]]},
            "observation.images.wrist": image,
            "observation.images.empty_camera_0": image,
        },
        "output_features": {"action": {"type": "ACTION", "shape": [WIDTHS[kind][1]]}},
        "chunk_size": 6,
        "n_action_steps": 5,
        "max_state_dim": 9,
        "max_action_dim": 7,
        steps: 10,
        "min_period": 4e-3,
        "max_period": 4.0,
        "device": "cpu",
    }
    key = "resize_imgs_with_padding" if kind == "smolvla" else "image_resolution"
    (directory / "config.json").write_text(json.dumps(config | {key: [side, side]}))
    return directory


def exported_observation(kind: str) -> tuple[dict[str, Any], Tensor]:
    """What the exported policies are run on: camera images, state, words; and noise ``[H, A]``."""
    levels = [drawn(f"camera {view}", (48, 64, 3), 0.0, 255.9) for view in ("top", "wrist")]
    images = [level.to(torch.uint8).numpy() for level in levels]
    observation = {
        "images": dict(zip(("top", "wrist"), images, strict=True)),
        # The last number of the statistics never moves.
        "state": np.append(drawn("robot", (WIDTHS[kind][0] - 1,), 0.2, 0.8), np.float32(0.25)),
        "instruction": "press the button",
    }
    return observation, drawn("exported noise", (6, 7), -1.7, 1.7)


def beingh_observation() -> tuple[dict[str, Any], Tensor]:
    """What Being-H0.5 is run on in LeRobot's port, of which one camera is missing; and noise."""
    views = {"robot0_agentview_left": (48, 64), "robot0_eye_in_hand": (260, 230)}
    images = {
        view: drawn(f"camera {view}", (*size, 3), 0.0, 255.9).to(torch.uint8).numpy()
        for view, size in views.items()
    }
    state = drawn("robocasa", (14,)).numpy()
    observation = {"images": images, "state": state, "instruction": "open the door"}
    return observation, drawn("unified noise", (16, 200), -1.7, 1.7)


def contents(directory: Path) -> str:
    """A hash of what a reader finds: the objects of JSON files, and tensors by name."""
    found = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        found.update(path.name.encode())
        if path.suffix == ".json":
            found.update(json.dumps(json.loads(path.read_text()), sort_keys=True).encode())
            continue
        for name, tensor in sorted(load_file(path).items()):
            found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
