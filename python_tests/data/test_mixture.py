"""Mixtures are read strictly, extend each other, and share weights as they say."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from vlakern.data.mixture import DatasetEntry, Group, Mixture, read_mixture, shares, single
from vlakern.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples/mixtures"


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def dataset(name: str, **more: str) -> str:
    lines = [f'name = "{name}"', f'path = "{name}"', *(f"{k} = {v}" for k, v in more.items())]
    return "\n[[datasets]]\n" + "\n".join(lines)


def test_the_papers_mixtures_are_cumulative() -> None:
    """D1 to D4 hold what the one before holds, and more; one key moves all of them."""
    read = [read_mixture(EXAMPLES / f"d{i}.toml", Path("/mnt/sets")) for i in (1, 2, 3, 4)]
    names = [[entry.name for entry in one.datasets] for one in read]
    for less, more in itertools.pairwise(names):
        assert more[: len(less)] == less
        assert len(more) > len(less)
    assert [len(one) for one in names] == [6, 11, 12, 15]
    groups = [[group.name for group in one.groups] for one in read]
    assert groups[3] == ["real-eef", "simulated-eef", "joint"]
    assert {one.slot_map for one in read} == {"unified-200"}
    entries = {entry.name: entry for entry in read[3].datasets}
    assert (entries["droid"].stride, entries["agibot-gripper"].stride) == (1, 7)
    assert entries["droid"].path == "/mnt/sets/oxe/droid"
    assert read_mixture(EXAMPLES / "d4.toml").datasets[0].path == "/data/oxe/droid"


def test_paths_are_relative_to_the_root_or_to_the_file_that_names_them(tmp_path: Path) -> None:
    """The outer file's root holds for what it extends; robots and maps lie beside their file."""
    robot = dataset("a", embodiment='"arm.toml"')
    write(tmp_path, "base/one.toml", 'name = "one"\nslot_map = "map.toml"' + robot)
    outer = write(tmp_path, "two.toml", 'name = "two"\nextends = ["base/one.toml"]' + dataset("b"))
    found = read_mixture(outer)
    assert [e.path for e in found.datasets] == [f"{tmp_path}/base/a", f"{tmp_path}/b"]
    assert found.datasets[0].embodiment == f"{tmp_path}/base/arm.toml"
    assert found.slot_map == f"{tmp_path}/base/map.toml"
    write(tmp_path, "two.toml", 'name = "t"\nroot="x"\nextends=["base/one.toml"]' + dataset("b"))
    found = read_mixture(outer)
    assert [e.path for e in found.datasets] == [f"{tmp_path}/x/a", f"{tmp_path}/x/b"]


def test_what_is_left_out_is_inherited_and_what_is_said_replaces(tmp_path: Path) -> None:
    """Keys of the mixture, a dataset and a group by their names."""
    groups = '\n[[groups]]\nname = "all"\nweight = 2.0'
    base = 'name = "one"\nweights = "explicit"\ntarget_rate = 5\nstatistics = "all"'
    write(tmp_path, "one.toml", base + dataset("a") + dataset("b") + groups)
    more = 'name = "two"\nextends = ["one.toml"]\nstatistics = "embodiment"'
    found = read_mixture(write(tmp_path, "two.toml", more + dataset("a", weight="0.0")))
    assert (found.weights, found.target_rate, found.statistics) == ("explicit", 5.0, "embodiment")
    assert [(e.name, e.weight) for e in found.datasets] == [("a", 0.0), ("b", 1.0)]
    assert found.group("all").weight == 2.0


def test_a_mixture_that_is_reached_twice_counts_once(tmp_path: Path) -> None:
    """A diamond is no cycle."""
    write(tmp_path, "base.toml", 'name = "base"' + dataset("a"))
    for side in ("left", "right"):
        text = f'name = "{side}"\nextends = ["base.toml"]' + dataset(side)
        write(tmp_path, f"{side}.toml", text)
    top = write(tmp_path, "top.toml", 'name = "top"\nextends = ["left.toml", "right.toml"]')
    assert [e.name for e in read_mixture(top).datasets] == ["a", "left", "right"]


WRONG: dict[str, tuple[str, str]] = {
    "no dataset": ('name = "m"', r"m.toml: datasets is empty"),
    "unknown key": ('name = "m"' + dataset("a", strid="2"), r"datasets\[0\]: unknown key 'strid'"),
    "no path": ('name = "m"\n[[datasets]]\nname = "a"', r"datasets\[0\]: key 'path' .* missing"),
    "twice": ('name = "m"' + dataset("a") * 2, "two datasets are called 'a'"),
    "itself": ('name = "m"\nextends = ["m.toml"]' + dataset("a"), r"m.toml -> m.toml"),
    "a circle": ('name = "m"\nextends = ["n.toml"]', r"m.toml -> n.toml -> m.toml"),
    "not there": ('name = "m"\nextends = ["gone.toml"]', r"gone.toml is missing"),
    "weight 0": ('name = "m"' + dataset("a", weight="0"), r"m.toml: weight is 0 for every"),
    "group 0": (
        'name = "m"' + dataset("a") + '\n[[groups]]\nname = "all"\nweight = 0.0',
        r"m.toml: weight is 0 for every",
    ),
    "empty group": (
        'name = "m"' + dataset("a") + '\n[[groups]]\nname = "none"',
        r"group 'none' has no dataset; the datasets' groups are all",
    ),
    "stride 0": ('name = "m"' + dataset("a", stride="0"), r"dataset 'a': stride is 0"),
    "two rates": (
        'name = "m"' + dataset("a", stride="2", target_rate="5.0"),
        "dataset 'a': stride and target_rate say the same",
    ),
    "rate 0": ('name = "m"' + dataset("a", rate="0.0"), r"dataset 'a': rate is 0.0"),
    "minus": ('name = "m"' + dataset("a", weight="-1.0"), r"dataset 'a': weight is -1.0"),
    "one view for two": (
        'name = "m"' + dataset("a", views='{ x = "v", y = "v" }'),
        "views: two views are called 'v'",
    ),
    "balance": ('name = "m"' + dataset("a", balance='"x"'), r"balance: expected one of"),
    "no TOML": ("name = ", "is not valid TOML"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_mixture_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    """By file and key."""
    text, sentence = WRONG[name]
    write(tmp_path, "n.toml", 'name = "n"\nextends = ["m.toml"]')
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_mixture(write(tmp_path, "m.toml", text))
    assert "\n" not in str(caught.value)


def entry(name: str, group: str = "all", **more: Any) -> DatasetEntry:
    return DatasetEntry(name, name, group=group, **more)


def test_without_weights_every_effective_frame_counts_the_same() -> None:
    """Whatever the groups."""
    mixture = Mixture("m", (entry("a", "x"), entry("b", "x"), entry("c", "y")))
    assert shares(mixture, [100, 700, 50], [100, 100, 50]) == pytest.approx((0.4, 0.4, 0.2))


def test_weights_by_number_size_and_power_at_both_levels() -> None:
    """Groups 3 to 1; inside one by the root of the raw frames, inside the other 1 to 2."""
    groups = (Group("x", "size", 0.5, weight=3.0), Group("y", "explicit"))
    entries = (entry("a", "x"), entry("b", "x"), entry("c", "y"), entry("d", "y", weight=2.0))
    mixture = Mixture("m", entries, groups, weights="explicit")
    found = shares(mixture, [400, 100, 9, 9], [1, 1, 1, 1])
    assert found == pytest.approx((0.75 * 2 / 3, 0.75 / 3, 0.25 / 3, 0.25 * 2 / 3))
    assert sum(found) == pytest.approx(1)


def test_a_dataset_of_weight_0_has_no_share_and_no_size() -> None:
    """Its frames do not make its group larger."""
    mixture = Mixture("m", (entry("a", "x", weight=0.0), entry("b", "x"), entry("c", "y")))
    assert shares(mixture, [900, 50, 50], [900, 50, 50]) == pytest.approx((0, 0.5, 0.5))


def test_a_power_beyond_numbers_is_refused() -> None:
    """Instead of an overflow."""
    with pytest.raises(ConfigError, match=r"power is 200\.0, which is too much for 356 frames"):
        shares(Mixture("m", (entry("a"),), power=200.0), [356], [356])


def test_one_dataset_is_a_mixture_that_balances_tasks(tmp_path: Path) -> None:
    """What training on a directory always did."""
    found = single(tmp_path / "set", stride=3)
    assert found.datasets == (
        DatasetEntry("set", str(tmp_path / "set"), stride=3, balance="tasks"),
    )
