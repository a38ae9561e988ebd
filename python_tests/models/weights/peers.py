"""The independent implementations that golden files come from, imported for the scripts beside.

They are tools of the tests, not dependencies. Where their packages lie is an argument:

    pip install --target LIBS --no-deps --ignore-requires-python lerobot==0.6.1 \
        transformers==5.5.4 tokenizers==0.22.2 huggingface_hub==1.6.0 regex pyyaml packaging \
        filelock httpx httpcore h11 anyio idna certifi sniffio draccus==0.11.6 mergedeep \
        pyyaml_include toml typing_inspect mypy_extensions typing_extensions
    python python_tests/models/weights/make_golden_pi.py LIBS

lerobot 0.6.1 asks for Python 3.12 and many packages; its modelling files run on 3.11 without what
surrounds them, so those packages of it are left out here.
"""

import enum
import importlib
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, TypeVar

import torch

__all__ = ["lerobot"]


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
