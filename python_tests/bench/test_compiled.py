"""The baseline's stages handed over to a runtime, here to plain Python."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlakern.bench.accuracy import check, reference
from vlakern.bench.compiled import Compiled, CompiledContender
from vlakern.bench.contenders import VARIANTS
from vlakern.bench.workload import PresetSource, Workload


def test_three_stages_are_compiled_and_give_the_networks_actions() -> None:
    """For a batch with candidates; every stage is given inputs of the shapes that it sees later."""
    work = Workload(PresetSource("tiny", 0), views=2, prompt_tokens=5, batch=2, candidates=2)
    shapes: list[list[tuple[int, ...]]] = []

    def compile(module: nn.Module, inputs: Sequence[Tensor]) -> Compiled:
        expected = [tuple(one.shape) for one in inputs]
        shapes.append(expected)

        # The contender takes the layers away again once a runtime has them.
        traced: Any = torch.jit.trace(module, tuple(inputs), check_trace=False)

        @torch.no_grad()
        def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
            assert [one.shape for one in arrays] == expected
            out = traced(*map(torch.from_numpy, arrays))
            return [one.numpy() for one in (out if isinstance(out, tuple) else (out,))]

        return call

    contender = CompiledContender(work, compile)
    assert check(VARIANTS["torch-eager-fp32"], contender, work, reference(work)) < 1e-5
    assert len(shapes) == 3
