"""The independent implementations that golden files come from, imported for the scripts beside.

They are tools of the tests, not dependencies. Where their packages lie is an argument:

    pip install --target LIBS --no-deps --ignore-requires-python lerobot==0.6.1 \
        transformers==5.5.4 tokenizers==0.22.2 huggingface_hub==1.6.0 regex pyyaml packaging \
        filelock httpx httpcore h11 anyio idna certifi sniffio draccus==0.11.6 mergedeep \
        pyyaml_include toml typing_inspect mypy_extensions typing_extensions
    python python_tests/models/weights/make_golden_pi.py LIBS

lerobot 0.6.1 asks for Python 3.12 and many packages. Its modelling files run on 3.11 without what
surrounds them, so :func:`lerobot` leaves those packages of it out; :func:`whole_lerobot` imports
all of it, with empty modules for drivers and data set tools, and reads its newer syntax on 3.11.
"""

import enum
import importlib
import re
import sys
import types
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any, TypeVar

import torch

__all__ = ["lerobot", "whole_lerobot"]


class _Config:
    @classmethod
    def register_subclass(cls, name: str):
        return lambda one: one


class _Nothing:
    def __init__(self, *_: Any, **__: Any) -> None:
        return


def _stub(name: str, folder: Path | None = None, **content: Any) -> None:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=folder is not None)
    if folder is not None:
        module.__path__ = [str(folder)]
    for key, value in content.items():
        setattr(module, key, value)
    sys.modules[name] = module


def lerobot(libs: Path, module: str) -> Any:
    """A modelling file of lerobot, such as ``policies.pi0.modeling_pi0``."""
    if str(libs) not in sys.path:
        sys.path.insert(0, str(libs))
    if "lerobot" not in sys.modules:
        root = libs / "lerobot"
        for part in ("", "policies", "policies.pi0", "policies.pi05", "policies.smolvla"):
            _stub(f"lerobot.{part}".rstrip("."), root / part.replace(".", "/"))
        _stub("lerobot.policies.rtc", root / "policies/rtc")
        _stub(
            "lerobot.configs",
            PreTrainedConfig=_Config,
            FeatureType=_Nothing,
            PolicyFeature=_Nothing,
            NormalizationMode=enum.Enum("N", "MEAN_STD IDENTITY QUANTILES MIN_MAX"),
            RTCAttentionSchedule=enum.Enum("R", "ZEROS LINEAR ONES EXP"),
        )
        optimisers = ("AdamWConfig", "CosineDecayWithWarmupSchedulerConfig")
        _stub("lerobot.optim", **dict.fromkeys(optimisers, _Nothing))
        base = {"PreTrainedPolicy": torch.nn.Module, "T": TypeVar("T")}
        _stub("lerobot.policies.pretrained", **base)
    return importlib.import_module(f"lerobot.{module}")


ABSENT = {"torchvision", "diffusers", "accelerate", "cv2", "datasets", "pandas", "serial"}
ABSENT |= {
    "deepdiff",
    "jsonlines",
    "gymnasium",
    "imageio",
    "av",
    "einops",
    "termcolor",
    "wandb",
    "requests",
}
NEWER = (  # what 3.11 cannot parse, and what says the same there
    (r"^type (\w+) = ", r"\1 = "),
    (r"^class (\w+)\[T\]:", r"class \1:"),
    (
        r"^class (\w+)\[(\w+), (\w+)\]\((\w+)\):",
        r"class \1(\4, __import__('typing').Generic[\2, \3]):",
    ),
    (r"^def (\w+)\[T: \w+\]", r"def \1"),
)


class _Older(SourceFileLoader):
    def source_to_code(self, data: Any, path: Any, **_: Any) -> Any:  # pyright: ignore
        text = bytes(data).decode()
        for pattern, replacement in NEWER:
            text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        if "obj: T" in text or "Backtrackable" in text:
            first = "from __future__ import annotations\n"
            text = first + text.replace(first, "")
        return super().source_to_code(text.encode(), path)


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        root = fullname.partition(".")[0]
        if root in ABSENT and PathFinder.find_spec(root) is None:
            return ModuleSpec(fullname, self, is_package=True)
        spec = PathFinder.find_spec(fullname, path) if root == "lerobot" else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Older(spec.loader.name, spec.loader.path)
        return spec

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__dict__.update(__path__=[], __version__="0", __getattr__=_attribute)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        return


def _attribute(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (_Nothing,), {})


def whole_lerobot(*libs: Path) -> None:
    """Makes all of lerobot importable, from the first of these folders that has it."""
    sys.path[:0] = map(str, libs)
    importlib.import_module("transformers.image_utils")  # which asks once for torchvision
    sys.meta_path.insert(0, _Finder())
