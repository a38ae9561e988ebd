"""The table of environment variables and its readers."""

import os
import runpy

import pytest

from vlakern import env
from vlakern.errors import ConfigError


def test_names_are_unique_and_described() -> None:
    """Every row has its own name and says something in every column."""
    names = [variable.name for variable in env.VARIABLES]
    assert len(set(names)) == len(names)
    assert all(v.values and v.default and v.meaning for v in env.VARIABLES)


@pytest.mark.parametrize(
    ("name", "read", "unset", "value", "expected"),
    [
        ("VLAKERN_BACKEND", env.backend, "auto", "reference", "reference"),
        ("VLAKERN_CPU_ISA", env.cpu_isa, "", "avx2", "avx2"),
        ("VLAKERN_NO_NATIVE", env.no_native, False, "1", True),
        ("MUJOCO_GL", env.renderer, "", "osmesa", "osmesa"),
    ],
)
def test_reader(name, read, unset, value, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader gives the default when the variable is unset or empty, else its value."""
    monkeypatch.delenv(name, raising=False)
    assert read() == unset
    monkeypatch.setenv(name, "")
    assert read() == unset
    monkeypatch.setenv(name, value)
    assert read() == expected


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("VLAKERN_BACKEND", env.backend),
        ("VLAKERN_CPU_ISA", env.cpu_isa),
        ("VLAKERN_NO_NATIVE", env.no_native),
        ("MUJOCO_GL", env.renderer),
    ],
)
def test_unknown_value_names_variable_value_and_choices(
    name, read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value outside the table is an error that names the variable, the value and the choices."""
    monkeypatch.setenv(name, "warp")
    values = next(variable.values for variable in env.VARIABLES if variable.name == name)
    with pytest.raises(ConfigError, match=rf"{name}='warp' is not known; use one of {values}"):
        read()


def test_default_renderer_yields_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is set for the libraries that read it, and a user's choice is kept."""
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert env.default_renderer("egl") == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    assert env.default_renderer("egl") == "egl"
    assert os.environ["MUJOCO_GL"] == "egl"


def test_current_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """``current`` reads variables of the table only."""
    monkeypatch.setenv("VLAKERN_BACKEND", "cpu")
    assert env.current("VLAKERN_BACKEND") == "cpu"
    monkeypatch.delenv("VLAKERN_BACKEND")
    assert env.current("VLAKERN_BACKEND") == ""
    with pytest.raises(ConfigError, match="HOME is not in the table"):
        env.current("HOME")


def test_no_variable_is_read_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong value hurts where it is used, not where the module is imported."""
    for variable in env.VARIABLES:
        monkeypatch.setenv(variable.name, "warp")
    again = runpy.run_path(env.__file__)
    with pytest.raises(ConfigError, match="warp"):
        again["backend"]()
