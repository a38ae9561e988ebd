"""The CPU engine computes what the network says, to the accuracy of its dtype and to the bit."""

import itertools
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern.flow.solver import evaluation_times
from vlakern.ops import _native, image_prep
from vlakern.testing import assert_accurate

FAMILIES = ("tiny-pi0", "tiny-pi05", "tiny-smolvla")
CONFIGS = (
    "tiny",
    "tiny, scales and full masks",
    "tiny, state block last",
    "metaworld-small",
    *FAMILIES,
)
PARTS = ("image_tokens", "kv", "velocity", "actions")
LOW = {"fp32": torch.float32, "bf16": torch.bfloat16}
DTYPES = ("fp32", "bf16", "int8")
F64 = torch.float64
ISAS = _native.native_info()["isas"]


def check(found: Any, exact: Any, plain: Any, parts: tuple[str, ...] = PARTS) -> None:
    """Each layer's keys and values and each evaluation's velocity on its own."""
    for part in parts:
        one, right, usual = (getattr(made, part) for made in (found, exact, plain))
        depth = {"kv": 2, "velocity": 1}.get(part, 0)
        for at in itertools.product(*map(range, one.shape[:depth])):
            assert_accurate(one[at], right[at], usual[at].to(one.dtype), f"{part}{list(at)}")


def assert_same_bits(one: Any, other: Any) -> None:
    for part in PARTS:
        assert torch.equal(getattr(one, part), getattr(other, part)), part


@pytest.mark.parametrize("restricted", [False, True], ids=["free", "frozen and masked"])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_stage_is_as_accurate_as_torch(
    lab: ModuleType, name: str, dtype: str, restricted: bool
) -> None:
    """Image tokens, keys and values of each layer, velocities and actions obey the 2x rule.

    The arena, keys and values were NaN before. Frozen positions have their own flow time.
    """
    scene = lab.Scene(name)
    found = lab.run_native(scene.engine(dtype, n=2), scene, 2, restricted)
    exact = lab.run_network(scene, F64, 2, restricted)
    check(found, exact, lab.run_network(scene, LOW[dtype], 2, restricted))


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
@pytest.mark.parametrize("name", ["tiny", "tiny-pi05"])
def test_every_solver_is_as_accurate_as_torch(
    lab: ModuleType, name: str, solver: str, steps: int
) -> None:
    """One step and an odd number of them, at every evaluation; with frozen positions."""
    scene = lab.Scene(name, steps=steps, solver=solver)
    found = lab.run_native(scene.engine("fp32"), scene, restricted=True)
    exact = lab.run_network(scene, F64, restricted=True)
    plain = lab.run_network(scene, torch.float32, restricted=True)
    assert len(found.velocity) == len(evaluation_times(steps, solver))
    check(found, exact, plain, ("velocity", "actions"))


@pytest.mark.parametrize("restricted", [False, True], ids=["free", "frozen and masked"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_engine_is_its_definition(
    lab: ModuleType, name: str, dtype: str, restricted: bool
) -> None:
    """Packed weights through the ops' references in fp64 are what the engine approximates.

    The yardstick rounds where the engine does, at random: the largest error is that of many chunks.
    int8 rounds activations to integers in all three.
    """
    scene, n = lab.Scene(name), 4
    found = lab.run_native(scene.engine(dtype, n=n), scene, n, restricted)
    exact = lab.run_reference(scene, dtype, F64, n, restricted)
    check(found, exact, lab.run_reference(scene, dtype, torch.float32, n, restricted))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_definition_is_the_network(lab: ModuleType, name: str) -> None:
    """In fp64 they differ by the one rounding of fp32 weights that are folded."""
    scene = lab.Scene(name)
    found = lab.run_reference(scene, "fp32", F64, 2, True)
    exact = lab.run_network(scene, F64, 2, True)
    for part in PARTS:
        one, right = getattr(found, part), getattr(exact, part)
        torch.testing.assert_close(one, right, rtol=0, atol=1e-5 * float(right.abs().max()))


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_cached_prefix_changes_nothing(lab: ModuleType, name: str, dtype: str) -> None:
    """The engine's velocity against one pass over whole documents."""
    scene = lab.Scene(name)
    found = lab.run_native(scene.engine(dtype), scene)
    times = evaluation_times(scene.config.steps, scene.config.solver)

    @torch.inference_mode()
    def uncached(kind: torch.dtype) -> Tensor:
        model, noise = lab.network_as(name, kind), scene.noise().to(kind)
        batch = scene.batch(kind)
        made = [model.velocity_uncached(batch, noise, t.expand(len(noise))) for t in times]
        return torch.stack(made)

    exact, plain = uncached(F64), uncached(LOW[dtype]).float()
    for i in range(len(times)):
        assert_accurate(found.velocity[i], exact[i], plain[i], f"velocity[{i}]")


@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_positions_and_absent_slots_keep_their_values(lab: ModuleType, dtype: str) -> None:
    """Bit for bit: decided actions where frozen, the noise where a slot is absent."""
    scene = lab.Scene("tiny")
    found = lab.run_native(scene.engine(dtype), scene, restricted=True).actions
    frozen, noise, absent = scene.frozen(), scene.noise(), scene.slot_mask() == 0
    free = lab.run_native(scene.engine(dtype), scene).actions
    for row, length in enumerate(frozen.length_R.tolist()):
        assert torch.equal(found[row, :length], frozen.action_RHA[row, :length])
        assert torch.equal(found[row, length:, absent], noise[row, length:, absent])
        assert not torch.equal(found[row, length:, ~absent], free[row, length:, ~absent]) or (
            length == scene.config.chunk
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_threads_do_not_change_the_bits(lab: ModuleType, name: str, dtype: str) -> None:
    """One, two and three threads, and again with the same."""
    scene = lab.Scene(name)
    one = lab.run_native(scene.engine(dtype), scene)
    for threads in (2, 3):
        engine = scene.engine(dtype, threads=threads)
        for _ in range(2):
            assert_same_bits(lab.run_native(engine, scene), one)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_does_not_depend_on_its_batch(lab: ModuleType, name: str, dtype: str) -> None:
    """Row i of a batch is that observation alone: vision, keys and values, actions, bit for bit."""
    scene = lab.Scene(name)
    engine = scene.engine(dtype, spare=2)
    together = lab.run_native(engine, scene)
    cu, tokens = scene.batch().cu_prefix.tolist(), scene.config.vision.tokens
    first = 0
    for row, (_, views) in enumerate(scene.asked):
        alone = lab.run_native(engine, scene.only(row))
        end = first + views * tokens
        assert torch.equal(alone.image_tokens, together.image_tokens[first:end])
        assert torch.equal(alone.kv, together.kv[:, :, cu[row] : cu[row + 1]])
        assert torch.equal(alone.velocity[:, 0], together.velocity[:, row])
        assert torch.equal(alone.actions[0], together.actions[row])
        first = end


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["metaworld-small", "tiny-pi05", "tiny-smolvla"])
def test_candidates_are_separate_calls(lab: ModuleType, name: str, dtype: str) -> None:
    """n chunks of one prefix in one call have the bits of n calls."""
    scene, n = lab.Scene(name), 5
    engine = scene.engine(dtype, n=n)
    together = lab.run_native(engine, scene, n)
    cu = scene.batch().cu_prefix.int()
    for row, noise in enumerate(scene.noise(n)):
        index = torch.tensor([row // n], dtype=torch.int32)
        alone = engine.integrate(noise[None], engine.kv, cu, index)
        assert torch.equal(alone[0], together.actions[row])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["metaworld-small", "tiny-pi05", "tiny-smolvla"])
def test_calls_in_between_leave_no_trace(lab: ModuleType, name: str, dtype: str) -> None:
    """Smaller and larger batches between, memory poisoned between, memory that is larger."""
    scene = lab.Scene(name)
    engine, small = scene.engine(dtype, n=3), scene.only(2)
    before, little = lab.run_native(engine, scene), lab.run_native(engine, small)
    assert_same_bits(lab.run_native(engine, scene), before)
    lab.run_native(engine, scene, 3, True)
    assert_same_bits(lab.run_native(engine, small), little)
    engine.buffers.arena.fill_(0x7F)
    engine.kv.zero_()
    assert_same_bits(lab.run_native(engine, scene), before)
    assert_same_bits(lab.run_native(scene.engine(dtype, spare=9), scene), before)


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_written_past_the_rows_there_are(lab: ModuleType, name: str) -> None:
    """Keys and values behind the last prefix token, and chunks behind the last, stay NaN."""
    scene = lab.Scene(name)
    engine = scene.engine("fp32", spare=3)
    lab.run_native(engine, scene, restricted=True)
    rows = int(scene.batch().cu_prefix[-1])
    assert bool(engine.kv[:, :, rows:].isnan().all())
    assert bool(engine.buffers.x[len(scene.asked) :].isnan().all())
    assert engine.kv.shape[2] > rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tiny", "metaworld-small"])
def test_camera_images_become_the_pixels_that_the_op_makes(
    lab: ModuleType, name: str, dtype: str
) -> None:
    """``prepare`` of uint8 images is ``take_pixels`` of image_prep's pixels, bit for bit."""
    scene = lab.Scene(name)
    engine, images = scene.engine(dtype), scene.images()
    engine.prepare(images)
    found = engine.patches(len(images)).clone()
    side = scene.config.vision.image_size
    pixels = [image_prep(image, size=side, dtype=engine.model.activation_dtype) for image in images]
    engine.take_pixels(torch.cat(pixels))
    assert torch.equal(found, engine.patches(len(images)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_is_accurate_and_repeats(
    lab: ModuleType, monkeypatch: pytest.MonkeyPatch, isa: str, dtype: str
) -> None:
    """Each that this machine has, forced: the 2x rule, and the same bits for any threads."""
    monkeypatch.setenv("VLAKERN_CPU_ISA", isa)
    for name in ("tiny", "metaworld-small", "tiny-pi05"):
        scene = lab.Scene(name).only(0, 1)
        found = lab.run_native(scene.engine(dtype), scene)
        exact = lab.run_reference(scene, dtype, F64)
        check(found, exact, lab.run_reference(scene, dtype, torch.float32))
        assert_same_bits(lab.run_native(scene.engine(dtype, threads=2), scene), found)


def test_the_instruction_set_matters(lab: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forced one is the one that runs: another order of sums gives other bits."""
    scene = lab.Scene("metaworld-small").only(0)
    made = []
    for isa in ISAS:
        monkeypatch.setenv("VLAKERN_CPU_ISA", isa)
        made.append(lab.run_native(scene.engine("bf16"), scene).actions)
    if len(made) > 1:
        assert not torch.equal(made[0], made[-1])
