"""Inputs repeat, and unwritten memory shows."""

import torch

from vlakern.testing.inputs import generator, poison, poisoned_allocations


def test_the_name_is_the_seed() -> None:
    """The same name draws the same numbers, another name others."""
    one, again, other = (torch.randn(4, generator=generator(n)) for n in ("a", "a", "b"))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_poison() -> None:
    """Floats become NaN, integers their smallest value."""
    assert bool(poison(torch.zeros(3)).isnan().all())
    assert poison(torch.zeros(2, dtype=torch.int32)).tolist() == [-(2**31)] * 2


def test_poisoned_allocations() -> None:
    """Inside, fresh memory is NaN; afterwards torch is as before."""
    with poisoned_allocations():
        assert bool(torch.empty(1000).isnan().all())
        assert bool(torch.empty_like(torch.zeros(9)).isnan().all())
        assert bool(torch.zeros(9).new_empty(9).isnan().all())
    assert not torch.are_deterministic_algorithms_enabled()
