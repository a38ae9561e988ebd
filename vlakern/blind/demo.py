"""A whole study in the simulator: four ways to run the shipped policy, blind, in two groups."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vlakern.blind._browser import Browser
from vlakern.blind.opened import open_study
from vlakern.blind.operator import SimulatedRobot, judge_all, run_trials
from vlakern.blind.results import ClosedStudy
from vlakern.blind.seal import lock
from vlakern.blind.site import Addresses, SiteConfig, serve_study
from vlakern.blind.tokens import draw_tokens
from vlakern.errors import StudyError
from vlakern.serve.client import Client

__all__ = ["DEMO", "play", "running", "study_text"]

VIEWS, SIDE = ("left", "right"), 96
EXECUTE = 8  # of the actions of a chunk
SECONDS = 3.75  # of simulated time: 300 steps at 80 Hz

DEMO = """\
# Four ways to run the policy that ships, compared blind in the simulator.
title = "Ablations of metaworld-small"
group_size = 2
trials = {trials}
deadline_ms = 100.0
failure_tags = ["not done in time"]

[breaks]
every = 1000
minutes = 0.0
between_groups = 0.0

[[models]]
name = "as shipped"
policy = "metaworld-small"

[[models]]
name = "one step"
policy = "metaworld-small"
steps = 1

[[models]]
name = "int8"
policy = "metaworld-small"
dtype = "int8"

[[models]]
name = "one camera"
policy = "metaworld-small"
drop_views = ["right"]
"""
TASK = """
[[tasks]]
name = "{name}"
instruction = "{words}"
criterion = "the simulator says that the task is done"
conditions = [{scenes}]
seconds = {seconds}
"""


def study_text(tasks: tuple[str, ...], trials: int) -> str:
    """The demonstration's study file.

    Args:
        tasks: of Meta-World; trials: of each model and task, each on a scene of its own.
    """
    from vlakern.sim.metaworld_tasks import TASKS

    scenes = ", ".join(f'"{scene}"' for scene in range(trials))
    parts = [
        TASK.format(name=name, words=TASKS[name].instruction, scenes=scenes, seconds=SECONDS)
        for name in tasks
    ]
    return DEMO.format(trials=trials) + "".join(parts)


@dataclass
class _Running:
    """A study served from a thread."""

    addresses: Addresses | None = None
    error: BaseException | None = None


@contextmanager
def running(folder: Path) -> Iterator[Addresses]:
    """Serves a locked study on free ports of this machine, from a thread, inside the block.

    Raises:
        StudyError: it cannot be served.
    """
    found, up, loop = _Running(), threading.Event(), asyncio.new_event_loop()
    ending = asyncio.Event()

    def ready(addresses: Addresses) -> None:
        found.addresses = addresses
        up.set()

    def serve() -> None:
        try:
            loop.run_until_complete(
                serve_study(folder, SiteConfig(port=0, web_port=0), ready, ending)
            )
        except (StudyError, OSError) as error:
            found.error = error
        finally:
            up.set()

    thread = threading.Thread(target=serve, name="vlakern-study")
    thread.start()
    try:
        up.wait()
        if found.addresses is None:
            raise StudyError(f"the study cannot be served: {found.error}") from found.error
        yield found.addresses
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()


def play(file: Path, folder: Path, done: Callable[[int], None] = lambda count: None) -> ClosedStudy:
    """Locks the study of ``file``, runs it in Meta-World, judges, closes and opens it.

    Args:
        folder: of the study, which must not be there.
        done: told after each trial how many were run.
    """
    from vlakern.sim.metaworld import CONTROL_RATE, MetaWorldEnv

    public = lock(file, folder)
    tokens = draw_tokens(folder, public.judges, 30.0)
    seconds = {task.name: task.seconds for task in public.tasks}
    with running(folder) as there:
        operator = Browser(there.pages, tokens["operator"])
        with Client(there.robot) as client:
            robot = SimulatedRobot(
                lambda task: MetaWorldEnv(task, views=VIEWS, image_size=SIDE),
                client,
                EXECUTE,
                CONTROL_RATE,
                VIEWS[0],
            )
            try:
                verdicts = run_trials(operator, robot, seconds, done)
            finally:
                robot.close()
        for role in (name for name in tokens if name.startswith("judge")):
            judge_all(Browser(there.pages, tokens[role]), verdicts, public.failure_tags[0])
        analyst = Browser(there.pages, tokens["analyst"])
        analyst.send("/close", incomplete="")
        analyst.send("/request")
        analyst.send("/unblind", commitment=public.commitment)
    return open_study(folder)
