"""Calls of several threads: which take turns, and which are refused."""

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
import torch

from vlakern.errors import InputError, VlakernError
from vlakern.infer.engine import Engine
from vlakern.models.sequence import Batch

Scene = Any


def engine_for(lab: ModuleType, threads: int = 1) -> Engine:
    return Engine(lab.packed("tiny", "fp32"), max_batch=4, max_views=2, threads=threads)


def without_pixels(scene: Scene) -> Batch:
    """For images that the engine holds."""
    return dataclasses.replace(scene.batch(), pixels_V3SS=torch.empty(scene.views, 3, 0, 0))


@pytest.fixture
def scene(lab: ModuleType) -> Scene:
    return lab.Scene("tiny")


@pytest.fixture
def engine(lab: ModuleType) -> Engine:
    return engine_for(lab)


def test_threads_take_turns(lab: ModuleType, scene: Scene) -> None:
    """Two threads integrate their own prefixes in one engine: the bits of calls one by one."""
    engine = engine_for(lab, threads=2)
    kept = engine.prefill(scene.batch()).clone()
    noises = [scene.noise(), -scene.noise()]
    expected = [engine.integrate(kept, noise) for noise in noises]
    wrong = run_together(
        lambda i: torch.equal(engine.integrate(kept, noises[i]), expected[i]), times=40
    )
    assert wrong == []


def test_act_is_one_turn(lab: ModuleType, scene: Scene) -> None:
    """Two threads act on their own images in one engine: neither sees the other's."""
    engine = engine_for(lab)
    scenes = [scene, scene.only(3, 1)]
    given = [(s.images()[::-1], without_pixels(s), s.noise()) for s in scenes]
    expected = [engine.act(*one) for one in given]
    assert run_together(lambda i: torch.equal(engine.act(*given[i]), expected[i]), times=30) == []


def in_another_thread(call: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(call).result()


def test_another_threads_images_in_between_are_refused(engine: Engine, scene: Scene) -> None:
    """Before vision and before the prefix; never computed with. Then one's own are, again."""
    images, batch = scene.images(), without_pixels(scene)
    noise, found = scene.noise(), engine.act(images, batch, scene.noise())
    other = [image[::-1] for image in images]
    engine.prepare(images)
    in_another_thread(lambda: engine.prepare(other))
    with pytest.raises(InputError, match=r"another thread's images came.*engine\.sequence\(\)"):
        engine.vision(len(images))
    engine.prepare(images)
    engine.vision(len(images))
    in_another_thread(lambda: engine.prepare(other))
    assert torch.equal(engine.integrate(engine.prefix(batch), noise), found)
    engine.prepare(images)
    engine.vision(len(images))
    in_another_thread(lambda: engine.act(other, batch, noise))
    with pytest.raises(InputError, match="another thread's images"):
        engine.prefix(batch)
    engine.prepare(images)
    assert torch.equal(engine.integrate(engine.prefill(batch), noise), found)


def test_a_sequence_of_calls_is_one_turn(lab: ModuleType, scene: Scene) -> None:
    """Two threads go through the stages of their own images: the bits of calls one by one."""
    engine = engine_for(lab)
    scenes = [scene, scene.only(3, 1)]
    given = [(s.images()[::-1], without_pixels(s), s.noise()) for s in scenes]
    expected = [engine.act(*one) for one in given]

    def right(i: int) -> bool:
        images, batch, noise = given[i]
        with engine.sequence():
            engine.prepare(images)
            engine.vision(len(images))
            return torch.equal(engine.integrate(engine.prefix(batch), noise), expected[i])

    assert run_together(right, times=30) == []


def run_together(right: Callable[[int], bool], times: int) -> list[object]:
    """Two threads call ``right(0)`` and ``right(1)`` often; returns what went wrong."""
    wrong: list[object] = []
    begin = threading.Barrier(2)

    def work(i: int) -> None:
        begin.wait()
        try:
            wrong.extend(i for _ in range(times) if not right(i))
        except VlakernError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong
