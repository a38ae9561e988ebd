"""The engine where the machine fails: memory that is not there, a process that was forked."""

import dataclasses
import os
import re
import resource
import select
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vlakern.errors import InputError
from vlakern.infer.engine import Engine

PATIENCE = 60  # [s] of a child


def in_child(run: Callable[[], str]) -> str:
    """What ``run`` returns in a forked child, or its traceback; a child that hangs is ended."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        found = ""
        try:
            found = run()
        finally:
            os.write(write, (found or traceback.format_exc()).encode())
            os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], PATIENCE)
    found = os.read(read, 1 << 16).decode() if ready else "the child hangs"
    os.close(read)
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return found


def digest(tensor: torch.Tensor) -> str:
    return str(tensor.flatten().tolist())


def test_a_forked_child_has_an_engine_of_its_own(lab: ModuleType) -> None:
    """The parent's threads are not in the child: it computes the same bits, with threads again."""
    scene = lab.Scene("metaworld-small")
    engine = Engine(lab.packed(scene.name, "bf16"), max_batch=4, threads=2)
    before = engine.integrate(engine.prefill(scene.batch()), scene.noise())

    def again() -> str:
        return digest(engine.integrate(engine.prefill(scene.batch()), scene.noise()))

    assert in_child(again) == digest(before)
    assert in_child(lambda: in_child(again)) == digest(before)
    assert torch.equal(engine.integrate(engine.prefill(scene.batch()), scene.noise()), before)


@pytest.mark.parametrize("observations", [8_000_000, 12_000_000])
def test_absurd_limits_are_refused_at_once(lab: ModuleType, observations: int) -> None:
    """One sentence that says how much is needed and for what; the next engine works."""
    model = lab.packed("tiny", "bf16")
    with pytest.raises(InputError, match=r"the engine needs \d+ MB for keys and values of \d+"):
        Engine(model, max_batch=observations)
    with pytest.raises(InputError, match=r"the engine needs \d+ MB for \d+ action chunks"):
        Engine(model, max_candidates=100 * observations)
    with pytest.raises(InputError, match=r"an engine for \d+ tokens; expected 1 to 2147483647"):
        Engine(model, max_batch=2**24, max_views=1)
    Engine(model)


def memory_now() -> int:
    """Bytes of address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("spare", [0, 4, 30, 100, 250])
def test_a_process_with_little_memory_is_told(lab: ModuleType, spare: int) -> None:
    """Wherever it ends [MB]: keys and values, angles, what stages pass on."""
    model: Any = lab.packed("tiny", "fp32")

    def build() -> str:
        most = memory_now() + (spare << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            Engine(model, max_batch=3000, threads=1)
        except InputError as error:
            return str(error)
        return "it fits"

    found = in_child(build)
    assert found.startswith("the engine needs "), found
    assert found.endswith("build it for fewer observations, rows or tokens")
    assert "\n" not in found


def foreign(lab: ModuleType, name: str, change: Callable[[Any], Any] | None) -> Engine:
    """An engine of weights that are another's in one array; None leaves the array out."""
    model = lab.packed("tiny", "fp32")
    both = {"tensors": dict(model.tensors), "matrices": dict(model.matrices)}
    arrays: dict[str, Any] = next(one for one in both.values() if name in one)
    found = arrays.pop(name)
    if change is not None:
        arrays[name] = change(found)
    return Engine(dataclasses.replace(model, **both))


def test_weights_that_lack_an_array_are_named(lab: ModuleType) -> None:
    """Each array there is, left out in turn."""
    model = lab.packed("tiny", "fp32")
    for name in (*model.tensors, *model.matrices):
        with pytest.raises(InputError, match=re.escape(name)):
            foreign(lab, name, None)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("action_in.time_weight", lambda t: t[:-1]),
        ("action_in.time_bias", lambda t: t[:-1]),
        ("action_in.time_weight", lambda t: t.double()),
        ("vision.place", lambda t: t[:-1]),
        ("vision.place", lambda t: t[:, :-1]),
        ("vision.place", lambda t: t.double()),
        ("embed", lambda t: t[:, :-2]),
        ("embed", lambda t: t.half()),
        ("semantic.0.q_norm", lambda t: t[:-1]),
        ("action.1.qkv", lambda m: dataclasses.replace(m, n=m.n - 16)),
        ("action.1.qkv", lambda m: dataclasses.replace(m, k=m.k + 1)),
        ("action.1.qkv", lambda m: dataclasses.replace(m, data=m.data[: m.data.numel() // 2])),
        ("action.1.qkv", lambda m: dataclasses.replace(m, data=m.data.view(torch.float32))),
        ("action.1.qkv", lambda m: dataclasses.replace(m, kind="bf16")),
        ("action.1.qkv", lambda m: dataclasses.replace(m, has_bias=True)),
        ("state.0", lambda m: dataclasses.replace(m, has_bias=False)),
        ("action.1.qkv", lambda m: dataclasses.replace(m, kind="fp4")),
        ("action.1.qkv", lambda m: dataclasses.replace(m, gate=True)),
        ("action.1.gate_up", lambda m: dataclasses.replace(m, gate=False)),
        ("action.1.qkv", lambda m: dataclasses.replace(m, layout=7)),
        ("action.1.qkv", lambda m: dataclasses.replace(m, isa="n8")),
    ],
)
def test_weights_that_do_not_fit_are_named(
    lab: ModuleType, name: str, change: Callable[[Any], Any]
) -> None:
    """Another shape, dtype, kind or layout than the model's sizes and this build ask for."""
    with pytest.raises(InputError, match=re.escape(name)) as error:
        foreign(lab, name, change)
    assert "\n" not in str(error.value)
