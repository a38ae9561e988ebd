"""Statistics know their names, and those of another slot map are refused."""

import pytest

from vlakern.errors import ConfigError
from vlakern.space.vector_stats import FIELDS, VectorStats, check_names


def test_units_are_statistics_of_nothing() -> None:
    """Mean 0, deviation 1, everything from -1 to 1; written and read they are the same."""
    units = VectorStats.units(("x", "y"))
    assert units.width == 2
    assert [getattr(units, key)[1] for key in FIELDS] == [0.0, 1.0, -1.0, 1.0, -1.0, 1.0]
    assert VectorStats.from_json(units.to_json(), "stats") == units


def test_the_first_name_that_differs_is_named() -> None:
    """By index, with what was expected."""
    with pytest.raises(ConfigError, match="slot 1 of the statistics is 'y', expected 'z'"):
        check_names(("x", "y"), ("x", "z"), "stats")
