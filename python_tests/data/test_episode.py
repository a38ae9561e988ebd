"""The record of one demonstration."""

import dataclasses

import numpy as np
import pytest

from vlakern.data.episode import Episode


def test_fields_stay():
    """An episode's fields cannot be replaced by accident."""
    episode = Episode(0, "reach", np.zeros((2, 4)), np.zeros((2, 4)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        episode.task = "push"  # pyright: ignore[reportAttributeAccessIssue]
