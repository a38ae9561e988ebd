"""The fallback renderer, in a process of its own: a renderer is chosen once per process."""

import ctypes.util
import os
import shutil
import subprocess
import sys

import pytest

TURNS = """
from vlakern.sim.metaworld import MetaWorldEnv

first, second = MetaWorldEnv("reach-v3"), MetaWorldEnv("drawer-open-v3")
for env in (first, second):
    env.reset(0)
    env.observe()
before = second.observe()
first.close()
after = second.observe()
for view, picture in before.images.items():
    assert (picture == after.images[view]).all(), view
print("drawn")
"""


@pytest.fixture
def osmesa() -> None:
    """Debian's library, installed if it is not there."""
    if ctypes.util.find_library("OSMesa"):
        return
    if shutil.which("apt-get"):
        prefix = [] if os.getuid() == 0 else ["sudo", "-n"]
        for words in (["apt-get", "update", "-qq"], ["apt-get", "install", "-yqq", "libosmesa6"]):
            subprocess.run([*prefix, *words], check=True, stdout=subprocess.DEVNULL)
    if not ctypes.util.find_library("OSMesa"):
        pytest.fail("libOSMesa is not installed; install libosmesa6")


@pytest.mark.ci
@pytest.mark.usefixtures("osmesa")
def test_closing_one_environment_leaves_the_other_its_pictures() -> None:
    """Under OSMesa too, where MuJoCo alone would delete the other renderer's buffers."""
    words = [sys.executable, "-c", TURNS]
    environment = {**os.environ, "MUJOCO_GL": "osmesa"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.stdout == "drawn\n", done.stderr
