"""The report is one self-contained page that shows every episode and trusts no string."""

import re
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest

from vlakern.errors import InputError
from vlakern.sim.report import PAGE, check_folder, keep_video, page, write_page, write_video
from vlakern.sim.rollout import Call, EpisodeResult, Plan, RolloutResult

NASTY = '<script>alert("x")</script>&\'"'


class Outline(HTMLParser):
    """Collects tags with their attributes, and the visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _result(task: str = "reach-v3", policy: str = "small") -> RolloutResult:
    rows = (
        EpisodeResult(task, 0, 0, True, 40, 0.5, "videos/a b-0000.mp4"),
        EpisodeResult(task, 1, 1, False, 300, 3.75),
    )
    calls = (Call(2, {"total": 80.0}), Call(2, {"total": 10.0}), Call(2, {"total": 20.0}))
    return RolloutResult(Plan((task,), 2), policy, rows, calls, 12.0)


def _outline(text: str) -> Outline:
    outline = Outline()
    outline.feed(text)
    return outline


def test_every_string_is_escaped() -> None:
    """A hostile task, policy or setting is shown as text and adds no element."""
    text = page(_result(NASTY, NASTY), {NASTY: NASTY})
    assert "<script>alert" not in text
    assert NASTY in _outline(text).text
    plain = [tag for tag, _ in _outline(page(_result("x", "x"), {"x": "x"})).tags]
    assert [tag for tag, _ in _outline(text).tags] == plain


def test_page_needs_nothing_from_elsewhere() -> None:
    """Every address is relative, so the page works from a file and without a network."""
    tags = _outline(page(_result(), {})).tags
    addresses = [
        value
        for _, attributes in tags
        for name, value in attributes.items()
        if name in {"src", "href", "poster"} and value is not None
    ]
    assert addresses == ["videos/a%20b-0000.jpg", "videos/a%20b-0000.mp4"]
    assert not re.search(r"https?:|url\(|@import", page(_result(), {}))


def test_page_states_the_result() -> None:
    """The counts, the interval, the percentiles and the cold start are on the page."""
    text = _outline(page(_result(), {"device": "cpu"})).text.replace("\u00a0", " ")
    for fact in ("1/2", "50 %", "9–91 %", "15.0", "80.0 ms", "device cpu", "seed 1 · 300 steps"):
        assert fact in text, fact


def test_each_episode_has_its_outcome() -> None:
    """One tile per episode, marked in words and not only in colour."""
    tiles = [
        attributes for tag, attributes in _outline(page(_result(), {})).tags if tag == "figure"
    ]
    assert [tile["data-outcome"] for tile in tiles] == ["success", "failure"]
    assert "✓ success" in page(_result(), {})
    assert "✕ failure" in page(_result(), {})


def _ramp(count: int, height: int, width: int) -> list[np.ndarray]:
    rows = np.linspace(0, 200, height)[:, None, None]
    picture = np.broadcast_to(rows, (height, width, 3))
    return [(picture + 2 * k).astype(np.uint8) for k in range(count)]


@pytest.mark.parametrize(("height", "width"), [(96, 96), (33, 67), (240, 321)])
def test_video_plays_in_browsers(tmp_path: Path, height: int, width: int) -> None:
    """H.264 in yuv420p with even sides, all frames in order, the last one held."""
    frames = _ramp(12, height, width)
    write_video(tmp_path / "a.mp4", frames, rate=10.0)
    with av.open(str(tmp_path / "a.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.width % 2 == stream.height % 2 == 0
        assert stream.height >= height
        shown = [frame.to_ndarray(format="rgb24").mean() for frame in video.decode(stream)]
    assert len(shown) == 12 + 6
    expected = [frame.mean() for frame in frames] + [frames[-1].mean()] * 6
    np.testing.assert_allclose(shown, expected, atol=3)


def test_poster_is_the_last_frame(tmp_path: Path) -> None:
    """The picture shown before playing tells how the episode ended."""
    frames = _ramp(10, 96, 96)
    write_video(tmp_path / "a.mp4", frames, rate=10.0)
    with av.open(str(tmp_path / "a.jpg")) as poster:
        picture = next(poster.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape == (192, 192, 3)
    assert abs(picture.mean() - frames[-1].mean()) < 3


def test_keep_video_names_the_file(tmp_path: Path) -> None:
    """A task's name cannot lead out of the folder; an episode without frames has no video."""
    row = EpisodeResult("../../etc x", 3, 3, True, 1, 0.1)
    kept = keep_video(tmp_path, Plan(("x",)), row, _ramp(1, 16, 16))
    assert kept.video == "videos/.._.._etc_x-0003.mp4"
    assert (tmp_path / kept.video).is_file()
    assert keep_video(tmp_path, Plan(("x",)), row, []) == row


def test_folder_of_an_earlier_report_may_be_replaced(tmp_path: Path) -> None:
    """Missing, empty and earlier report folders are free; anything else is refused untouched."""
    check_folder(tmp_path / "missing")
    check_folder(tmp_path)
    write_page(tmp_path, _result(), {})
    check_folder(tmp_path)
    (tmp_path / PAGE).write_text("<html>someone's page</html>")
    with pytest.raises(InputError, match="not empty and holds no earlier rollout report"):
        check_folder(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        check_folder(tmp_path / PAGE)
