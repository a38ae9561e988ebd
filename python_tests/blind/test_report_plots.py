"""Plots are well-formed, put values where they belong, and escape what they are given."""

import xml.etree.ElementTree as ET

import pytest

from vlakern.blind.report_plots import Bar, curves, intervals, strips

EVIL = '<script>alert("x")</script>&'


def circles(svg: str) -> list[tuple[float, float, str]]:
    return [
        (float(c.attrib["cx"]), float(c.attrib["cy"]), c.attrib["class"])
        for c in ET.fromstring(svg).iter("circle")
    ]


def test_intervals_are_to_scale() -> None:
    """Equal steps of the value are equal steps on the page, and the whiskers end at the bounds."""
    bars = [Bar("a", v, 0.0, 1.0, "") for v in (0.0, 0.25, 0.5, 1.0)]
    svg = intervals("t", bars, (0, 1), [(0, "0"), (1, "1")], zero=0.5)
    xs = [x for x, _, _ in circles(svg)]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert xs[3] - xs[2] == pytest.approx(2 * (xs[1] - xs[0]), abs=0.2)
    lines = [e.attrib for e in ET.fromstring(svg).iter("line") if "whisker" in e.attrib["class"]]
    assert {float(lines[0]["x1"]), float(lines[0]["x2"])} == {xs[0], xs[3]}


def test_values_beyond_the_domain_stay_on_the_page() -> None:
    """A strength without a bound is drawn at the edge."""
    svg = intervals("t", [Bar("a", 5.0, float("-inf"), float("inf"), "")], (-2, 2), [])
    assert "inf" not in svg
    assert "nan" not in svg
    assert 0 < circles(svg)[0][0] < 760


def test_strips_show_every_outcome() -> None:
    """A mark for each trial, hollow where it failed."""
    svg = strips("t", [("a", [(0, True), (3, False)]), ("b", [(1, True)])])
    assert [kind for _, _, kind in circles(svg)] == ["mark", "hollow", "mark"]


def test_curves_rise_with_the_value() -> None:
    """Larger values are higher; a curve that met the threshold stands out; no pair is no crash."""
    svg = curves("t", [("up", [2.0, 50.0]), ("down", [0.5, 0.1])], 20.0, "pairs")
    lines = {
        e.attrib["class"]: [float(p.split(",")[1]) for p in e.attrib["points"].split()]
        for e in ET.fromstring(svg).iter("polyline")
    }
    assert lines["curve strong"] == sorted(lines["curve strong"], reverse=True)
    assert lines["curve"] == sorted(lines["curve"])
    ET.fromstring(curves("t", [("none", [])], 20.0, "pairs"))


@pytest.mark.parametrize(
    "svg",
    [
        intervals(EVIL, [Bar(EVIL, 0.5, 0, 1, EVIL)], (0, 1), [(0, EVIL)]),
        strips(EVIL, [(EVIL, [(0, True)])]),
        curves(EVIL, [(EVIL, [1.0])], 20.0, EVIL),
    ],
)
def test_names_are_escaped(svg: str) -> None:
    """A model named like a script is text."""
    assert "<script" not in svg
    assert any(EVIL in (e.text or "") for e in ET.fromstring(svg).iter())
