"""Writes golden/processing: what the peers' own code does around their networks.

    pip install --target LIBS --no-deps lerobot==0.4.4 transformers==4.57.1 tokenizers==0.22.2 \
        "huggingface_hub<1" draccus mergedeep pyyaml_include toml typing_inspect mypy_extensions \
        einops sentencepiece pyyaml filelock packaging requests regex tqdm fsspec certifi idna \
        typing_extensions urllib3 charset_normalizer
    PYTHONPATH=LIBS python python_tests/models/weights/make_golden_processing.py \
        LIBS OPENPI LEROBOT_06 BEINGH

OPENPI, LEROBOT_06 and BEINGH are sources: of openpi (2026-06), of lerobot 0.6 and of Being-H0.5.
LeRobot's processors run as they are; functions of files that need more are taken out of them.
"""

import ast
import importlib
import importlib.abc
import importlib.util
import io
import json
import logging
import sys
import tempfile
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers

HERE = Path(__file__).parent / "golden" / "processing"
TASKS = [
    "Pick_up the\nred block ",
    "  press the button\n",
    "open the drawer",
    "put the puck on the shelf and then " * 4 + "stop",
]
NAMES = ("observation.state", "action")


class Anything:
    """Stands for whatever a peer imports and does not use here."""

    def __init__(self, *_: Any, **__: Any) -> None:
        return

    def __call__(self, *_: Any, **__: Any) -> "Anything":
        return self

    def __getattr__(self, name: str) -> "Anything":
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()


def stub(name: str, **content: Any) -> None:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    module.__dict__.update(content)
    module.__dict__.setdefault("__getattr__", Anything().__getattr__)
    sys.modules[name] = module


class Missing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds packages that LeRobot imports beside what is used here."""

    roots = (
        "serial",
        "torchvision",
        "datasets",
        "deepdiff",
        "gymnasium",
        "imageio",
        "av",
        "jsonlines",
        "cv2",
    )

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.roots:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["__getattr__"] = Anything().__getattr__


def taken(path: Path, names: tuple[str, ...], **known: Any) -> dict[str, Any]:
    """Functions and classes of a file, run without the rest of it."""
    tree = ast.parse(path.read_text())
    future = ast.parse("from __future__ import annotations").body
    kept = [one for one in tree.body if getattr(one, "name", None) in names]
    source = ast.unparse(ast.Module(body=[*future, *kept], type_ignores=[]))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "taken.py"
        copy.write_text(source)
        spec = importlib.util.spec_from_file_location("taken", copy)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        module.__dict__.update({"np": np, "torch": torch, **known})
        sys.modules["taken"] = module
        spec.loader.exec_module(module)
    return module.__dict__


def tokenizer() -> Tokenizer:
    """A small BPE in the manner of Gemma's: bytes where nothing fits, and a first token."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    texts = [text.replace("\n", " ") for text in TASKS[:3]]
    texts += ["Task: , State: ;", "Action: ", *(f" {i}" for i in range(-1, 256))]
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=620, special_tokens=specials, show_progress=False)
    )
    made.add_tokens([AddedToken("\n", normalized=False)])
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    return made


def lerobot(libs: Path) -> Any:
    sys.path.insert(0, str(libs))
    sys.meta_path.append(Missing())
    stub("accelerate", Accelerator=object)
    stub("lerobot.datasets")
    stub("lerobot.datasets.lerobot_dataset", LeRobotDataset=object)
    stub("lerobot.datasets.utils")
    for family in ("", ".pi0", ".pi05", ".smolvla"):
        stub(f"lerobot.policies{family}")
        folder = libs / "lerobot" / "policies" / family.strip(".")
        sys.modules[f"lerobot.policies{family}"].__path__ = [str(folder)]
    for family in ("pi0", "pi05", "smolvla"):
        stub(f"lerobot.policies.{family}.configuration_{family}")
        stub(f"lerobot.policies.{family}.modeling_{family}", pad_vector=pad_vector(libs))
    return importlib.import_module("lerobot.processor")


def pad_vector(libs: Path) -> Any:
    path = libs / "lerobot/policies/pi05/modeling_pi05.py"
    return taken(path, ("pad_vector",), F=torch.nn.functional)["pad_vector"]


def lerobot_case(family: str, modes: dict[str, str], widths: tuple[int, int]) -> dict[str, Any]:
    """The files that LeRobot saves, and what its pipelines make of random numbers."""
    types_ = importlib.import_module("lerobot.configs.types")
    FeatureType, NormalizationMode, PolicyFeature = (
        getattr(types_, name) for name in ("FeatureType", "NormalizationMode", "PolicyFeature")
    )

    rng = np.random.default_rng(len(family))
    stats = {}
    for name, width in zip(NAMES, widths, strict=True):
        rows = rng.normal(2, 3, (50, width)) * rng.uniform(0.01, 5, width)
        rows[:, -1] = 0.25  # a number that never moves
        stats[name] = {
            "mean": rows.mean(0),
            "std": rows.std(0),
            "min": rows.min(0),
            "max": rows.max(0),
            "q01": np.quantile(rows, 0.01, 0),
            "q99": np.quantile(rows, 0.99, 0),
        }
    config = types.SimpleNamespace(
        input_features={NAMES[0]: PolicyFeature(FeatureType.STATE, (widths[0],))},
        output_features={NAMES[1]: PolicyFeature(FeatureType.ACTION, (widths[1],))},
        normalization_mapping={FeatureType(k): NormalizationMode(v) for k, v in modes.items()},
        device="cpu",
        max_state_dim=32,
        tokenizer_max_length=200 if family == "pi05" else 48,
        vlm_model_name="smolvlm",
        pad_language_to="longest",
    )
    module = importlib.import_module(f"lerobot.policies.{family}.processor_{family}")
    pre, post = getattr(module, f"make_{family}_pre_post_processors")(config, stats)
    folder = HERE / f"lerobot_{family}"
    pre.save_pretrained(folder, config_filename="policy_preprocessor.json")
    post.save_pretrained(folder, config_filename="policy_postprocessor.json")
    state = torch.tensor(rng.normal(2, 3, (4, widths[0])), dtype=torch.float32)
    actions = torch.tensor(rng.normal(0, 1, (4, 5, widths[1])), dtype=torch.float32)
    given = [{NAMES[0]: s, "task": t} for s, t in zip(state, TASKS, strict=True)]
    seen = [pre(one) for one in given]
    tokens = [
        one["observation.language.tokens"][one["observation.language.attention_mask"]].tolist()
        for one in seen
    ]
    return {
        "state": state.tolist(),
        "normalised": [one[NAMES[0]][0].tolist() for one in seen],
        "tokens": tokens,
        "chunks": actions.tolist(),
        "commands": post(actions).tolist(),
    }


def relative_case(lerobot_06: Path) -> dict[str, Any]:
    path = lerobot_06 / "src/lerobot/processor/relative_action_processor.py"
    names = ("to_relative_actions", "to_absolute_actions")
    functions = taken(path, names)
    rng = np.random.default_rng(3)
    actions, state = (
        torch.tensor(rng.normal(0, 2, s), dtype=torch.float32) for s in ((2, 4, 7), (2, 8))
    )
    mask = [True] * 6 + [False]
    relative = functions["to_relative_actions"](actions, state, mask)
    back = functions["to_absolute_actions"](relative, state, mask)
    found = {"commands": actions, "state": state, "relative": relative, "back": back}
    return {name: value.tolist() for name, value in found.items()}


def openpi_case(openpi: Path, pieces: bytes) -> dict[str, Any]:
    path = openpi / "src/openpi/transforms.py"
    import dataclasses

    def apply_tree(tree: Any, selector: Any, fn: Any, strict: bool = False) -> Any:
        return {k: fn(v, selector[k]) if k in selector else v for k, v in tree.items()}

    names = (
        "Normalize",
        "Unnormalize",
        "DeltaActions",
        "AbsoluteActions",
        "pad_to_dim",
        "make_bool_mask",
    )
    names += ("_assert_quantile_stats",)
    space = {"dataclasses": dataclasses, "DataTransformFn": object, "apply_tree": apply_tree}
    space["flatten_dict"] = lambda tree: tree
    t = taken(path, names, **space)
    rng = np.random.default_rng(5)
    stats = {}
    for name in ("state", "actions"):
        rows = rng.normal(1, 2, (60, 7)) * rng.uniform(0.01, 3, 7)
        rows[:, 5] = -1.5
        q01, q99 = np.quantile(rows, [0.01, 0.99], axis=0)
        stats[name] = {"mean": rows.mean(0), "std": rows.std(0), "q01": q01, "q99": q99}
    folder = HERE / "openpi" / "assets" / "lab" / "arm"
    folder.mkdir(parents=True, exist_ok=True)
    plain = {k: {n: v.tolist() for n, v in one.items()} for k, one in stats.items()}
    (folder / "norm_stats.json").write_text(json.dumps({"norm_stats": plain}) + "\n")
    records = {k: types.SimpleNamespace(**one) for k, one in stats.items()}
    state, x = rng.normal(1, 2, (3, 7)), rng.normal(0, 1, (3, 4, 32))
    found: dict[str, Any] = {"state": state.tolist(), "chunks": x.tolist()}
    for mode, quantiles in (("zscore", False), ("quantile", True)):
        seen = t["Normalize"](records, use_quantiles=quantiles)({"state": state})["state"]
        out = t["Unnormalize"](records, use_quantiles=quantiles)({"actions": x.copy()})["actions"]
        mask = t["make_bool_mask"](6, -1)
        absolute = t["AbsoluteActions"](mask)({"state": state, "actions": out[..., :7].copy()})
        found[mode] = {
            "normalised": seen.tolist(),
            "commands": out[..., :7].tolist(),
            "absolute": absolute["actions"].tolist(),
        }
    sentencepiece = importlib.import_module("sentencepiece")

    class Download:
        @staticmethod
        def maybe_download(*_: Any, **__: Any) -> Any:
            return types.SimpleNamespace(open=lambda _: io.BytesIO(pieces))

    tokenizer_path = openpi / "src/openpi/models/tokenizer.py"
    known = {"sentencepiece": sentencepiece, "download": Download, "logging": logging}
    make = taken(tokenizer_path, ("PaligemmaTokenizer",), **known)["PaligemmaTokenizer"]
    seen = np.array(found["quantile"]["normalised"])
    found["tokens_pi0"], found["tokens_pi05"] = [], []
    for i, task in enumerate(TASKS):
        ids, mask = make(48).tokenize(task)
        found["tokens_pi0"].append(ids[mask].tolist())
        ids, mask = make(200).tokenize(task, seen[i % 3])
        found["tokens_pi05"].append(ids[mask].tolist())
    ids, mask = make(20).tokenize(TASKS[3])
    found["tokens_cut"] = ids[mask].tolist()
    return found


def pieces() -> bytes:
    """A small SentencePiece model in the manner of Gemma's."""
    sentencepiece = importlib.import_module("sentencepiece")

    out = io.BytesIO()
    texts = [text.replace("\n", " ").strip() for text in TASKS[:3]] + [
        "Task: , State: ;",
        "Action: ",
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts + [str(i) for i in range(256)]),
        model_writer=out,
        vocab_size=380,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        bos_piece="<bos>",
        eos_piece="<eos>",
        user_defined_symbols=["\n"],
        minloglevel=2,
    )
    return out.getvalue()


def beingh_case(beingh: Path) -> dict[str, Any]:
    path = beingh / "BeingH/dataset/transform/state_action.py"
    make = taken(path, ("Normalizer",))["Normalizer"]
    rng = np.random.default_rng(9)
    x = rng.normal(0, 1.5, (6, 3))
    stats = {
        "mean": [0.1, -0.2, 0.3],
        "std": [0.5, 0.0, 2.0],
        "min": [-1.0, 0.4, -2.0],
        "max": [1.5, 0.4, 3.0],
        "q01": [-0.9, 0.4, -1.5],
        "q99": [1.1, 0.4, 2.5],
    }
    found: dict[str, Any] = {"statistics": stats, "x": x.tolist()}
    for mode in ("q99", "mean_std", "min_max", "binary"):
        rule = make(mode, dict(stats))
        encoded = rule.forward(torch.tensor(x, dtype=torch.float64))
        decoded = rule.inverse(torch.tensor(x, dtype=torch.float64))
        found[mode] = {"encoded": encoded.tolist(), "decoded": decoded.tolist()}
    return found


def images(libs: Path, openpi: Path) -> dict[str, np.ndarray]:
    functional = {"F": torch.nn.functional, "Image": importlib.import_module("PIL.Image")}
    root = libs / "lerobot/policies"
    pi0 = taken(root / "pi0/modeling_pi0.py", ("resize_with_pad_torch",), **functional)
    smol = taken(root / "smolvla/modeling_smolvla.py", ("resize_with_pad",), **functional)
    tools = openpi / "packages/openpi-client/src/openpi_client/image_tools.py"
    names = ("resize_with_pad", "_resize_with_pad_pil")
    tools_functions = taken(tools, names, **functional)
    rng, found = np.random.default_rng(1), {}
    for name, (h, w) in {"wide": (30, 41), "tall": (50, 33), "narrow": (28, 17)}.items():
        image = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        planes = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        lerobot_pi = pi0["resize_with_pad_torch"](planes.permute(0, 2, 3, 1), 28, 28) * 2 - 1
        if lerobot_pi.shape[-1] == 3:
            lerobot_pi = lerobot_pi.permute(0, 3, 1, 2)
        found[f"{name}_image"] = image
        found[f"{name}_lerobot"] = lerobot_pi[0].numpy()
        found[f"{name}_smolvla"] = (smol["resize_with_pad"](planes, 28, 28, 0) * 2 - 1)[0].numpy()
        found[f"{name}_openpi"] = tools_functions["resize_with_pad"](image[None], 28, 28)[0]
    return found


def main(libs: Path, openpi: Path, lerobot_06: Path, beingh: Path) -> None:
    PreTrainedTokenizerFast = importlib.import_module("transformers").PreTrainedTokenizerFast

    lerobot(libs)
    HERE.mkdir(parents=True, exist_ok=True)
    gemma = tokenizer()
    gemma.save(str(HERE / "tokenizer.json"), pretty=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=gemma, pad_token="<pad>", bos_token="<bos>")
    module: Any = importlib.import_module("lerobot.processor.tokenizer_processor")
    module.AutoTokenizer = types.SimpleNamespace(from_pretrained=lambda name: fast)
    content = pieces()
    (HERE / "tokenizer.model").write_bytes(content)
    plain = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    cases = {
        "tasks": TASKS,
        "pi0": lerobot_case("pi0", plain | {"ACTION": "MIN_MAX"}, (8, 7)),
        "pi05": lerobot_case("pi05", plain | {"STATE": "QUANTILES", "ACTION": "QUANTILES"}, (8, 7)),
        "smolvla": lerobot_case("smolvla", plain, (6, 6)),
        "relative": relative_case(lerobot_06),
        "openpi": openpi_case(openpi, content),
        "beingh": beingh_case(beingh),
    }
    (HERE / "cases.json").write_text(json.dumps(cases) + "\n")
    made: dict[str, Any] = images(libs, openpi)
    np.savez_compressed(HERE / "images.npz", **made)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    main(*map(Path, sys.argv[1:5]))
