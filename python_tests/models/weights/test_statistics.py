"""Files beside a checkpoint are small JSON objects inside its directory."""

from pathlib import Path

import pytest

from vlakern.errors import CheckpointError
from vlakern.models.weights.statistics import inside, read_object, vector_stats


def test_what_is_no_object_is_refused(tmp_path: Path) -> None:
    """Missing, cut off, a list, nested beyond reason: the path is named."""
    path = tmp_path / "s.json"
    with pytest.raises(CheckpointError, match=r"s.json is missing"):
        read_object(path)
    for content, sentence in (
        ("{", "is not valid JSON"),
        ("[1]", r"holds '\[1\]', expected a JSON object"),
        ("[" * 100_000, "is not valid JSON"),
    ):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=f"s.json {sentence}"):
            read_object(path)


@pytest.mark.parametrize("name", ["", "..", "../s.json", "/etc/passwd", "a\0b", None, 3])
def test_names_stay_inside(name: object, tmp_path: Path) -> None:
    """A name that leads elsewhere, or is none."""
    with pytest.raises(CheckpointError, match=f"expected one inside {tmp_path}"):
        inside(tmp_path, name, "config")


def test_what_is_not_needed_may_be_anything() -> None:
    """Numbers of other normalisations are kept if they are finite, and replaced if not."""
    found = {"mean": [1.0], "std": [2.0], "min": [float("inf")], "max": [4.0], "q01": None}
    stats = vector_stats(found, ("a", "b"), "zscore", "file")
    assert (stats.mean, stats.min, stats.max) == ((1.0, 0.0), (-1.0, -1.0), (4.0, 1.0))
    assert stats.present == (True, False)
