"""The stages through torch compute what the network's own calls compute."""

from types import ModuleType

import pytest
import torch

from vlakern.infer.engine import Engine
from vlakern.testing import poison


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["tiny", "tiny-pi0", "tiny-pi05", "tiny-smolvla"])
def test_the_torch_engine_is_the_network(lab: ModuleType, name: str, dtype: torch.dtype) -> None:
    """The same modules on the same rows: the same bits as the network's calls one by one."""
    scene = lab.Scene(name)
    engine = torch_engine(lab, scene, dtype)
    prefix = engine.prefill(scene.batch(dtype))
    frozen, mask = scene.frozen(), scene.slot_mask()
    found = engine.integrate(prefix, scene.noise(), frozen=frozen, slot_mask=mask)
    expected = lab.run_network(scene, dtype, restricted=True)
    assert torch.equal(prefix.clone().kv, expected.kv)
    assert torch.equal(found, expected.actions)


def torch_engine(lab: ModuleType, scene, dtype: torch.dtype) -> Engine:
    limits = scene.limits()
    engine = Engine(
        lab.network_as(scene.name, dtype),
        max_batch=limits.observations,
        max_views=2,
        max_prefix=limits.tokens // limits.observations + 1,
        backend="torch",
    )
    poison(engine._stages.kv)
    return engine


def test_its_memory_may_be_larger_than_a_call(lab: ModuleType) -> None:
    """Two of four observations: the poisoned rest of the memory is not read."""
    scene = lab.Scene("tiny")
    engine = torch_engine(lab, scene, torch.float32)
    few = scene.only(2, 0)
    prefix = engine.prefill(few.batch())
    found = engine.integrate(prefix, few.noise(2), n=2)
    assert torch.equal(found, lab.run_network(few, torch.float32, n=2).actions)


def test_images_are_prepared_as_the_native_engine_prepares_them(lab: ModuleType) -> None:
    """The same pictures through both engines: image tokens differ by rounding alone."""
    scene = lab.Scene("tiny")
    engine, native = torch_engine(lab, scene, torch.float32), scene.engine("fp32")
    images = scene.images()
    engine.prepare(images)
    native.prepare(images)
    views = len(images)
    found = engine.vision(views)
    torch.testing.assert_close(found, native.vision(views), rtol=1e-4, atol=1e-4)
    assert engine.dtype == native.dtype == "fp32"
