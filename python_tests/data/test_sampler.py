"""Samples are a pure function of seed and number; shares, passes and strides are what they say."""

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from vlakern.data.sampler import Leaf, Sample, Sampler
from vlakern.data.stride import Source, Stride, effective_frames
from vlakern.errors import ConfigError, InputError

LENGTHS = (9, 4, 30, 1)


def leaf(share: float, dataset: int = 0, stride: int = 1) -> Leaf:
    return Leaf(dataset, share, stride, range(len(LENGTHS)), LENGTHS)


def mixed(seed: int = 0) -> Sampler:
    """Four datasets of very different shares and strides."""
    parts = zip((0.5, 0.3, 0.1999, 0.0001), (1, 3, 7, 2), strict=True)
    return Sampler([leaf(share, i, stride) for i, (share, stride) in enumerate(parts)], seed)


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    """Not on what was asked before, nor on which object answers: any middle is a start."""
    whole = [mixed().sample(i) for i in range(500)]
    asked = mixed()
    backwards = [asked.sample(i) for i in reversed(range(500))]
    assert backwards[::-1] == whole
    assert [mixed().sample(i) for i in range(371, 400)] == whole[371:400]
    assert [mixed(1).sample(i) for i in range(500)] != whole
    far = mixed().sample(10**15)
    assert far == mixed().sample(10**15)


def test_shares_are_kept_within_a_few_samples_anywhere() -> None:
    """Counts of any run of samples differ from their expectation by less than 2 per level."""
    shares = (0.5, 0.3, 0.1999, 0.0001)
    sampler = mixed(5)
    drawn = [sampler.sample(i).dataset for i in range(3000)]
    for first, count in ((0, 3000), (137, 64), (1234, 500)):
        found = Counter(drawn[first : first + count])
        for dataset, share in enumerate(shares):
            assert abs(found[dataset] - share * count) < 4


def test_shares_are_exact_in_expectation() -> None:
    """Over seeds the dataset of one sample follows the shares: chi-square of 4,000 seeds."""
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    for number in (0, 12345):
        leaves = [leaf(share, i) for i, share in enumerate(shares)]
        found = Counter(Sampler(leaves, seed).sample(number).dataset for seed in range(4000))
        counts = [found[i] for i in range(4)]
        assert stats.chisquare(counts, 4000 * shares).pvalue > 1e-3


def test_a_rare_dataset_gets_its_share() -> None:
    """One in ten thousand: within 2 of 20 among 200,000."""
    sampler = mixed(3)
    assert sampler.passes(200_000)[3][0] == 3
    places = sum(-(-length // 2) for length in LENGTHS)
    assert abs(sampler.passes(200_000)[3][1] * places - 20) < 4


@pytest.mark.parametrize("stride", [1, 2, 7])
def test_a_pass_visits_every_start_once_in_a_new_order(stride: int) -> None:
    """Starts of an episode lie a stride apart, from an offset that changes from pass to pass."""
    lengths = (42, 14, 28)
    sampler = Sampler([Leaf(0, 1.0, stride, (4, 5, 6), lengths)], 0)
    places = sum(lengths) // stride
    orders, offsets = set(), set()
    for turn in range(12):
        drawn = [sampler.sample(turn * places + i) for i in range(places)]
        orders.add(tuple(drawn))
        for episode, length in zip((4, 5, 6), lengths, strict=True):
            frames = sorted(s.frame for s in drawn if s.episode == episode)
            assert frames == list(range(frames[0], length, stride))
            offsets.add((episode, frames[0]))
    assert len(orders) == 12
    assert stride == 1 or len(offsets) > stride


def test_a_place_past_the_end_is_filled_by_one_other_start() -> None:
    """Lengths that the stride does not divide: at most one start per episode is out of step."""
    lengths, stride = (23, 17, 40), 7
    sampler = Sampler([Leaf(0, 1.0, stride, range(3), lengths)], 0)
    places = sum(-(-length // stride) for length in lengths)
    for turn in range(30):
        drawn = [sampler.sample(turn * places + i) for i in range(places)]
        out = 0
        for episode in range(3):
            rests = Counter(s.frame % stride for s in drawn if s.episode == episode)
            out += sum(rests.values()) - max(rests.values())
        assert out <= len(lengths)


def test_every_frame_is_a_start_equally_often() -> None:
    """Chi-square over 60 passes of lengths that no stride divides; short episodes count as one."""
    lengths, stride = (10, 2, 23), 3
    sampler = Sampler([Leaf(0, 1.0, stride, range(3), lengths)], 1)
    count = 20_000
    found = Counter(sampler.sample(i) for i in range(count))
    weights = {
        Sample(0, e, f): max(n / stride, 1.0) / n for e, n in enumerate(lengths) for f in range(n)
    }
    assert set(found) == set(weights)
    total = sum(weights.values())
    report = effective_frames([Source("a", lengths, Stride(10.0, stride))], 4)
    assert round(total) == report.effective
    expected = [count * weight / total for weight in weights.values()]
    # Passes make counts more even than independent draws would: only too uneven is wrong.
    assert stats.chisquare([found[key] for key in weights], expected).pvalue > 1e-3


def test_a_replacement_comes_from_the_same_leaf_and_is_deterministic() -> None:
    """Attempts differ from each other and from the sample; shares stay what they are."""
    sampler = mixed()
    for number in (0, 7, 1003):
        again = [sampler.instead(number, attempt) for attempt in range(1, 40)]
        assert again == [mixed().instead(number, attempt) for attempt in range(1, 40)]
        assert {one.dataset for one in again} == {sampler.sample(number).dataset}
        assert len(set(again)) > 5


def test_it_holds_a_few_numbers_per_episode_however_long_they_are() -> None:
    """A billion frames in ten episodes answer at once."""
    sampler = Sampler([Leaf(0, 1.0, 3, range(10), [10**8] * 10)], 0)
    frames = [sampler.sample(i).frame for i in range(50)]
    assert len(set(frames)) == 50
    assert max(frames) > 5 * 10**7


def test_weights_may_be_any_numbers_and_0_is_never_drawn() -> None:
    """They need not add up to 1."""
    sampler = Sampler([leaf(3.0, 0), leaf(0.0, 1), leaf(1.0, 2)], 2)
    found = Counter(sampler.sample(i).dataset for i in range(400))
    assert abs(found[0] - 300) <= 2
    assert found.keys() == {0, 2}


def test_what_cannot_be_sampled_is_refused() -> None:
    """No weight, no episodes, an empty episode, a stride or number below its least."""
    with pytest.raises(ConfigError, match="the weight of every dataset is 0"):
        Sampler([leaf(0.0)], 0)
    with pytest.raises(InputError, match="expected at least one episode"):
        Sampler([Leaf(0, 1.0, 1, (), ())], 0)
    with pytest.raises(InputError, match="an episode has no frames"):
        Sampler([Leaf(0, 1.0, 1, (0,), (0,))], 0)
    with pytest.raises(InputError, match="stride from 1 up"):
        Sampler([leaf(1.0, stride=0)], 0)
    with pytest.raises(InputError, match="samples count from 0"):
        mixed().sample(-1)
