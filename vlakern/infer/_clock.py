"""Wall time of the stages of a call."""

import time
from contextlib import contextmanager

import torch

__all__ = ["Clock"]


class Clock:
    """Wall time per stage of ``STAGES``; on a GPU every stage ends with a synchronisation."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._begin = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str):
        begin = time.perf_counter()
        yield
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        took = (time.perf_counter() - begin) * 1e3
        self._stages[name] = self._stages.get(name, 0.0) + took

    def finish(self) -> dict[str, float]:
        return {**self._stages, "total": (time.perf_counter() - self._begin) * 1e3}
