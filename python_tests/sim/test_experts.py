"""Demonstrations: labels without noise, varied starts, repeatable, seeds apart from evaluation."""

import numpy as np
import pytest

from vlakern.errors import InputError
from vlakern.sim import experts
from vlakern.sim.experts import Recipe, collect_episode, demonstrate, episode_seed
from vlakern.sim.metaworld import SUITES, MetaWorldEnv

PLAIN = Recipe(noise=0.0, drift=0.0)


@pytest.fixture(scope="module")
def reach() -> MetaWorldEnv:
    return MetaWorldEnv("reach-v3", image_size=16)


def test_demonstration_is_complete(reach: MetaWorldEnv):
    """Pictures, states and actions are of one length, which ends after the first success."""
    found = demonstrate(reach, PLAIN, 5)
    assert found is not None
    length = len(found.states)
    assert found.actions.shape == (length, 4)
    assert {f.shape for f in found.images.values()} == {(length, 16, 16, 3)}
    reach.reset(5)
    first = next(k for k in range(300) if reach.step(reach.expert_action()).success)
    assert length == first + 1 + PLAIN.tail


def test_same_seed_same_demonstration(reach: MetaWorldEnv):
    """A seed determines pictures, states and actions to the bit."""
    one, two = (demonstrate(reach, Recipe(), 7) for _ in range(2))
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.states, two.states)
    np.testing.assert_array_equal(one.actions, two.actions)
    np.testing.assert_array_equal(one.images["left"], two.images["left"])


def test_pictures_belong_to_states(reach: MetaWorldEnv):
    """Row t of the pictures shows the scene at which row t of the states was read."""
    found = demonstrate(reach, PLAIN, 5)
    assert found is not None
    reach.reset(5)
    for t in range(10):
        np.testing.assert_array_equal(found.states[t], reach.state())
        np.testing.assert_array_equal(found.images["left"][t], reach.render("left"))
        np.testing.assert_array_equal(found.actions[t], reach.expert_action())
        reach.step(found.actions[t])


def test_labels_are_clean(reach: MetaWorldEnv, monkeypatch: pytest.MonkeyPatch):
    """Noise changes what is executed, never what is recorded as the expert's wish."""
    executed, wanted = [], []
    step, expert = reach.step, reach.expert_action
    monkeypatch.setattr(reach, "step", lambda a: (executed.append(a), step(a))[1])
    monkeypatch.setattr(reach, "expert_action", lambda: (wanted.append(expert()), wanted[-1])[1])
    vectors = experts._episode(reach, Recipe(noise=0.5, calm=1.0, drift=0.0), 3, None)
    assert vectors is not None
    np.testing.assert_array_equal(vectors[1], wanted)
    added = np.array(executed) - np.array(wanted)
    assert np.abs(added[:, :3]).max() > 0.3
    assert not added[:, 3].any()


def test_drift_varies_starts(reach: MetaWorldEnv):
    """With drift the recorded start is elsewhere than the simulator's."""
    reach.reset(1)
    home = reach.state()
    starts = []
    for number in range(6):
        vectors = experts._episode(reach, Recipe(noise=0.0, drift=1.0), number, None)
        if vectors is not None:
            starts.append(vectors[0][0, :3])
    assert len(starts) >= 4
    assert min(np.linalg.norm(start - home[:3]) for start in starts) > 0.01
    assert np.ptp(starts, axis=0).max() > 0.1


def test_noise_has_its_deviation(seed: int):
    """Within bursts the stationary deviation is the recipe's; outside the noise is zero."""
    recipe = Recipe(noise=0.3, burst=1e9, calm=1.0)
    steady = experts.Noise(recipe, np.random.default_rng(seed))
    values = np.array([steady.next() for _ in range(20_000)])
    assert values[200:].std() == pytest.approx(0.3, rel=0.1)
    shifted = (values[201:] * values[200:-1]).mean() / values[200:].var()
    assert shifted == pytest.approx(recipe.correlation, abs=0.03)
    still = experts.Noise(Recipe(noise=0.3, calm=1e12), np.random.default_rng(seed))
    assert not np.array([still.next() for _ in range(100)]).any()


def test_seeds_are_apart():
    """No two episodes share a seed, and none is an evaluation seed."""
    cases = [
        (seed, task, episode, attempt)
        for seed in (0, 1)
        for task in SUITES["mw5"]
        for episode in (0, 1, 99_999)
        for attempt in (0, 1, 99)
    ]
    numbers = [episode_seed(*case) for case in cases]
    assert len(set(numbers)) == len(cases)
    assert min(numbers) >= 1_000_000
    for seed, episode in ((-1, 0), (0, -1), (0, 100_000)):
        with pytest.raises(InputError, match="expected seed"):
            episode_seed(seed, "push-v3", episode, 0)


def test_failed_attempts_are_retried(reach: MetaWorldEnv, monkeypatch: pytest.MonkeyPatch):
    """A failed attempt is followed by the next seed, is counted, and has an end."""
    real = demonstrate

    def fails_twice(env: MetaWorldEnv, recipe: Recipe, seed: int, *, failures: int):
        return None if failures < 2 else real(env, recipe, seed, failures=failures)

    monkeypatch.setattr(experts, "demonstrate", fails_twice)
    found = collect_episode(reach, PLAIN, 0, 4)
    assert found.failures == 2
    assert found.seed == episode_seed(0, "reach-v3", 4, 2)
    monkeypatch.setattr(experts, "demonstrate", lambda *_, **__: None)
    with pytest.raises(InputError, match=r"failed 20 times.*lower the noise"):
        collect_episode(reach, PLAIN, 0, 4)


def test_unsolved_is_none(reach: MetaWorldEnv):
    """An episode cut short before success is no demonstration."""
    assert demonstrate(reach, Recipe(noise=0.0, drift=0.0, limit=10), 5) is None


def test_bad_noise():
    """A negative deviation is refused."""
    with pytest.raises(InputError, match="noise is -1"):
        Recipe(noise=-1)
