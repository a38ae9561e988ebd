"""The engine's calls: what they accept, what they refuse, and that a refusal leaves no trace."""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern.errors import InputError, Unsupported
from vlakern.flow.solver import Frozen
from vlakern.infer.engine import Engine, Prefix
from vlakern.models.sequence import Batch
from vlakern.testing import poison

Scene = Any
CHUNKS = 3  # of each observation, the most that the engines here are built for


def engine_for(lab: ModuleType, scene: Scene, dtype: str = "fp32", **changes: Any) -> Engine:
    """Room for exactly what the scene brings, full of NaN."""
    limits = scene.limits()
    sizes = {
        "max_batch": limits.observations,
        "max_views": 2,
        "max_prefix": -(-limits.tokens // limits.observations),
        "max_candidates": CHUNKS,
        "threads": 1,
    }
    engine = Engine(lab.packed(scene.name, dtype), **(sizes | changes))
    stages: Any = engine._stages
    for memory in (stages.buffers.kv, stages.buffers.x):
        poison(memory)
    stages.buffers.arena.fill_(255)
    return engine


def without_pixels(scene: Scene) -> Batch:
    """For images that the engine holds."""
    return dataclasses.replace(scene.batch(), pixels_V3SS=torch.empty(scene.views, 3, 0, 0))


@pytest.fixture
def scene(lab: ModuleType) -> Scene:
    return lab.Scene("tiny")


@pytest.fixture
def engine(lab: ModuleType, scene: Scene) -> Engine:
    return engine_for(lab, scene)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", ["tiny", "metaworld-small"])
def test_prefill_and_integrate_are_the_stages(lab: ModuleType, name: str, dtype: str) -> None:
    """The engine adds nothing to what its stages compute, for one chunk and for several."""
    scene = lab.Scene(name)
    engine = engine_for(lab, scene, dtype)
    prefix = engine.prefill(scene.batch())
    for n in (1, CHUNKS):
        expected = lab.run_native(scene.engine(dtype, n=n), scene, n, True)
        frozen, mask = scene.frozen(n), scene.slot_mask()
        found = engine.integrate(prefix, scene.noise(n), n=n, frozen=frozen, slot_mask=mask)
        assert torch.equal(found, expected.actions)
    assert torch.equal(prefix.clone().kv, expected.kv)
    assert (engine.dtype, len(prefix)) == (dtype, len(scene.asked))


def test_act_is_the_calls_it_consists_of(lab: ModuleType, scene: Scene, engine: Engine) -> None:
    """prepare, prefill and integrate one by one give the bits of act, from a network, too."""
    images, batch, noise = scene.images(), without_pixels(scene), scene.noise(2)
    found = engine.act(images, batch, noise, n=2)
    engine.prepare(images)
    assert torch.equal(engine.integrate(engine.prefill(batch), noise, n=2), found)
    network = Engine(lab.network("tiny"), max_batch=4, max_candidates=2, threads=1)
    assert torch.equal(network.act(images, batch, noise, n=2), found)


def test_a_prefix_serves_many_integrations(engine: Engine, scene: Scene) -> None:
    """Other noise in between; the slot mask may be one for all rows or one each."""
    prefix, noise, mask = engine.prefill(scene.batch()), scene.noise(), scene.slot_mask()
    found = engine.integrate(prefix, noise, slot_mask=mask)
    engine.integrate(prefix, scene.noise(2), n=2)
    each = mask.bool().expand(len(noise), -1)
    assert torch.equal(engine.integrate(prefix, noise, slot_mask=each), found)
    assert not torch.equal(engine.integrate(prefix, noise), found)


@pytest.mark.parametrize("one", [True, 1, 256, 0.25])
def test_a_slot_mask_is_zero_or_not(engine: Engine, scene: Scene, one: float) -> None:
    """Any number but 0 is a slot that is there, also one that 8 bits would make 0."""
    prefix, mask = engine.prefill(scene.batch()), scene.slot_mask()
    found = engine.integrate(prefix, scene.noise(), slot_mask=mask)
    other = torch.where(mask.bool(), torch.tensor(one), torch.zeros_like(torch.tensor(one)))
    assert torch.equal(engine.integrate(prefix, scene.noise(), slot_mask=other), found)


def test_what_is_not_frozen_of_frozen_actions_is_ignored(engine: Engine, scene: Scene) -> None:
    """Positions past the length may hold anything."""
    prefix, frozen = engine.prefill(scene.batch()), scene.frozen()
    found = engine.integrate(prefix, scene.noise(), frozen=frozen)
    done = torch.arange(scene.config.chunk) < frozen.length_R[:, None]
    spoilt = frozen.action_RHA.masked_fill(~done[..., None], float("nan"))
    again = engine.integrate(prefix, scene.noise(), frozen=Frozen(spoilt, frozen.length_R.long()))
    assert torch.equal(again, found)


def test_noise_is_not_changed(engine: Engine, scene: Scene) -> None:
    """The caller's tensors stay as they are, and results are the caller's own."""
    noise, frozen = scene.noise(), scene.frozen()
    kept = [one.clone() for one in (noise, frozen.action_RHA, frozen.length_R)]
    prefix = engine.prefill(scene.batch())
    first = engine.integrate(prefix, noise, frozen=frozen)
    copy = first.clone()
    engine.integrate(prefix, scene.noise(2), n=2)
    assert torch.equal(first, copy)
    for one, before in zip((noise, frozen.action_RHA, frozen.length_R), kept, strict=True):
        assert torch.equal(one, before)


def test_noise_may_lie_anyhow_in_memory(engine: Engine, scene: Scene) -> None:
    """Transposed noise is the same noise; nothing outside its rows is read."""
    prefix, noise = engine.prefill(scene.batch()), scene.noise()
    found = engine.integrate(prefix, noise)
    turned = noise.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(engine.integrate(prefix, turned), found)


def test_an_overwritten_prefix_is_refused_and_a_clone_lasts(engine: Engine, scene: Scene) -> None:
    """A prefill ends the prefix before it."""
    first = engine.prefill(scene.batch())
    found, kept = engine.integrate(first, scene.noise()), first.clone()
    engine.prefill(scene.only(1).batch())
    with pytest.raises(InputError, match=r"overwritten.*prefix\.clone\(\)"):
        engine.integrate(first, scene.noise())
    assert torch.equal(engine.integrate(kept, scene.noise()), found)


def test_a_prefix_of_another_engine_is_refused(
    lab: ModuleType, engine: Engine, scene: Scene
) -> None:
    """Whatever the number of prefills of both; its clone belongs to nobody."""
    other = engine_for(lab, scene)
    prefix, foreign = engine.prefill(scene.batch()), other.prefill(scene.batch())
    found = engine.integrate(prefix, scene.noise())
    with pytest.raises(InputError, match="or is of another engine"):
        engine.integrate(foreign, scene.noise())
    assert torch.equal(engine.integrate(foreign.clone(), scene.noise()), found)
    halves = engine_for(lab, scene, "bf16")
    with pytest.raises(InputError, match=r"kv.*bfloat16"):
        halves.integrate(foreign.clone(), scene.noise())


def test_two_engines_share_weights(lab: ModuleType, scene: Scene) -> None:
    """Of other sizes and steps, called in turn: each is as if it were alone."""
    model, batch, noise = lab.packed("tiny", "bf16"), scene.batch(), scene.noise()
    address = model.matrices["action.0.qkv"].data.data_ptr()
    one, other = Engine(model, max_batch=4, threads=1), Engine(model, max_batch=9, steps=2)
    prefix = one.prefill(batch)
    other_prefix = other.prefill(scene.only(3, 1).batch())
    found = one.integrate(prefix, noise)
    other_found = other.integrate(other_prefix, scene.only(3, 1).noise())
    assert torch.equal(one.integrate(prefix, noise), found)
    assert torch.equal(found, Engine(model, max_batch=4).integrate(prefix.clone(), noise))
    alone = Engine(model, max_batch=9, steps=2)
    again = alone.integrate(alone.prefill(scene.only(3, 1).batch()), scene.only(3, 1).noise())
    assert torch.equal(again, other_found)
    assert model.matrices["action.0.qkv"].data.data_ptr() == address


REFUSALS: dict[str, tuple[Callable[[Engine, Scene, Prefix], object], str]] = {
    "views": (
        lambda e, s, p: e.prepare([*s.images()] * 2),
        r"found 12 views, the engine is built for at most 8.*max_views or max_batch",
    ),
    "vision": (lambda e, s, p: e.vision(9), "found 9 views, the engine is built for at most 8"),
    "observations": (
        lambda e, s, p: e.prefix(_asking(s, ("a", 1), 5)),
        r"found 5 observations, the engine is built for at most 4.*larger max_batch",
    ),
    "tokens": (
        lambda e, s, p: e.prefix(_asking(s, ("a" * 300, 1), 1)),
        r"prefix tokens, the engine is built for at most \d+.*larger max_prefix",
    ),
    "candidates": (
        lambda e, s, p: e.integrate(p, s.noise(4), n=4),
        r"found 16 action chunks, the engine is built for at most 12.*larger max_candidates",
    ),
    "noise of another length": (
        lambda e, s, p: e.integrate(p, s.noise()[:, :5]),
        r"noise is torch.float32 \[4, 5, 5\], expected fp32 \[4, 6, 5\] for 4 prefixes and n = 1",
    ),
    "noise of other rows": (lambda e, s, p: e.integrate(p, s.noise(), n=2), r"expected fp32 \[8,"),
    "fp64 noise": (lambda e, s, p: e.integrate(p, s.noise().double()), "noise is torch.float64"),
    "NaN in noise": (
        lambda e, s, p: e.integrate(p, _spoilt(s.noise())),
        "noise holds a value that is not finite",
    ),
    "frozen of another shape": (
        lambda e, s, p: e.integrate(p, s.noise(2), n=2, frozen=s.frozen()),
        r"frozen actions are \[4, 6, 5\], expected the noise's \[8, 6, 5\]",
    ),
    "frozen of other rows": (
        lambda e, s, p: _freeze(e, s, p, lambda n: n[:2]),
        r"frozen lengths are torch.int32 \[2\], expected whole \[4\]",
    ),
    "frozen by halves": (
        lambda e, s, p: _freeze(e, s, p, lambda n: n / 2),
        r"frozen lengths are torch.float32 \[4\], expected whole \[4\]",
    ),
    "frozen too long": (
        lambda e, s, p: _freeze(e, s, p, lambda n: n + 1),
        r"frozen lengths are \[1, 7, 2, 4\], expected 0 to 6 each",
    ),
    "frozen below 0": (
        lambda e, s, p: _freeze(e, s, p, lambda n: n - 1),
        r"frozen lengths are \[-1, 5, 0, 2\], expected 0 to 6 each",
    ),
    "NaN in frozen actions": (
        lambda e, s, p: e.integrate(
            p, s.noise(), frozen=Frozen(s.noise() * float("nan"), s.frozen().length_R)
        ),
        "frozen actions hold a value that is not finite",
    ),
    "slot mask of another width": (
        lambda e, s, p: e.integrate(p, s.noise(), slot_mask=torch.ones(4)),
        r"slot_mask is \[4\], expected \[5\] or \[4, 5\]",
    ),
    "slot mask of other rows": (
        lambda e, s, p: e.integrate(p, s.noise(), slot_mask=torch.ones(3, 5)),
        r"slot_mask is \[3, 5\], expected \[5\] or \[4, 5\]",
    ),
    "NaN in an image": (
        lambda e, s, p: e.prefill(_with(s, pixels_V3SS=_spoilt(s.batch().pixels_V3SS))),
        "an image holds a value that is not finite",
    ),
    "infinity in an image": (
        lambda e, s, p: e.prefill(
            _with(s, pixels_V3SS=_spoilt(s.batch().pixels_V3SS, float("inf")))
        ),
        "an image holds a value that is not finite",
    ),
    "pixels of another size": (
        lambda e, s, p: e.prefill(_with(s, pixels_V3SS=s.batch().pixels_V3SS[:, :, :14])),
        r"pixels are \[6, 3, 14, 28\], expected \[V, 3, 28, 28\]",
    ),
    "NaN in a state": (
        lambda e, s, p: e.prefix(_with(s, state_RS=_spoilt(s.batch().state_RS))),
        "a state holds a value that is not finite",
    ),
    "a word that is not there": (
        lambda e, s, p: e.prefix(_with(s, tokens_L=s.batch().tokens_L + 500)),
        r"tokens must be in \[0, 512\)",
    ),
}


def _asking(scene: Scene, words: tuple[str, int], times: int) -> Batch:
    return dataclasses.replace(scene, asked=(words,) * times, ids=tuple(range(times))).batch()


def _with(scene: Scene, **changes: Tensor) -> Batch:
    return dataclasses.replace(scene.batch(), **changes)


def _spoilt(tensor: Tensor, value: float = float("nan")) -> Tensor:
    """One value in the middle."""
    tensor = tensor.clone()
    tensor.view(-1)[tensor.numel() // 2] = value
    return tensor


def _freeze(
    engine: Engine, scene: Scene, prefix: Prefix, change: Callable[[Tensor], Tensor]
) -> None:
    frozen = scene.frozen()
    frozen = Frozen(frozen.action_RHA, change(frozen.length_R))
    engine.integrate(prefix, scene.noise(), frozen=frozen)


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_call_leaves_no_trace(engine: Engine, scene: Scene, case: str) -> None:
    """One sentence, and the next good calls give the bits that they gave before."""
    call, message = REFUSALS[case]
    prefix = engine.prefill(scene.batch())
    found = engine.integrate(prefix, scene.noise())
    with pytest.raises(InputError, match=message) as error:
        call(engine, scene, prefix)
    assert "\n" not in str(error.value)
    assert torch.equal(engine.integrate(engine.prefill(scene.batch()), scene.noise()), found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_batch": 0}, "an engine for 0 observations"),
        ({"max_views": 0}, "an engine for 0 views"),
        ({"max_prefix": -2}, "an engine for -8 tokens"),
        ({"max_candidates": 0}, "an engine for 0 rows"),
        ({"steps": 0}, "steps = 0 and solver = 'euler'; expected at least one step"),
        ({"steps": 10**12}, "steps = 1000000000000 .* at most 65536"),
        ({"threads": 0}, "an engine of 0 threads; expected at least 1"),
        ({"backend": "gpu"}, "backend 'gpu' of an engine is not known; use auto, native, torch"),
        ({"solver": "rk4"}, "solver = 'rk4'; expected .* euler, midpoint, heun"),
        ({"backend": "torch"}, "packed weights are for the CPU engine; give the network to torch"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(
    lab: ModuleType, scene: Scene, changes: dict[str, Any], message: str
) -> None:
    """At construction, with what was found and what is expected."""
    with pytest.raises((InputError, Unsupported), match=message):
        engine_for(lab, scene, **changes)


def test_without_native_code_the_network_runs_through_torch(
    lab: ModuleType, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``auto`` takes torch; ``native`` and packed weights are refused with the reason."""
    monkeypatch.setenv("VLAKERN_NO_NATIVE", "1")
    network = lab.network("tiny")
    engine = Engine(network, max_batch=4)
    found = engine.integrate(engine.prefill(scene.batch()), scene.noise())
    expected = lab.run_network(scene, torch.float32).actions
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    reason = "the CPU engine cannot run: VLAKERN_NO_NATIVE=1"
    with pytest.raises(Unsupported, match=reason):
        Engine(network, backend="native")
    with pytest.raises(Unsupported, match=reason):
        Engine(lab.packed("tiny", "fp32"))


def test_images_of_an_earlier_call_are_not_seen(engine: Engine, scene: Scene) -> None:
    """Fewer images than the batch has views, a refused image, a vision of fewer views."""
    images, batch = scene.images(), without_pixels(scene)
    found = engine.act(images, batch, scene.noise())
    engine.prepare(images[:1])
    with pytest.raises(InputError, match="vision of 6 views, but 1 were prepared"):
        engine.prefill(batch)
    with pytest.raises(InputError, match=r"must be torch\.uint8"):
        engine.prepare([images[0], images[1] * 1.0, *images[2:]])
    with pytest.raises(InputError, match="vision of 6 views, but 0 were prepared"):
        engine.prefill(batch)
    engine.prepare(images[:5])
    engine.vision(5)
    with pytest.raises(InputError, match="a prefix of 6 views, but vision saw 5"):
        engine.prefix(batch)
    assert torch.equal(engine.act(images, batch, scene.noise()), found)
