"""A simulated operator, robot and judge: a whole study without a robot, by the same pages.

The operator reads the page, sets the simulator's scene, presses start and stop and uploads a
video. The robot asks the endpoint for actions. Judges go by the simulator's own verdict, which the
operator's simulator kept: judging is as good as that, and blind.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vlakern.blind._browser import Browser
from vlakern.errors import StudyError
from vlakern.serve.client import Client
from vlakern.sim.rollout import Environment, noise_seed

__all__ = ["Recording", "Robot", "SimulatedRobot", "judge_all", "run_trials"]

VIDEO_RATE = 10.0  # Hz


@dataclass(frozen=True)
class Recording:
    """How a trial went: the simulator's verdict, and the video's bytes."""

    success: bool
    video: bytes


class Robot(Protocol):
    """What runs one trial."""

    def trial(self, task: str, instruction: str, condition: str, seconds: float) -> Recording: ...


@dataclass
class SimulatedRobot:
    """Simulated arms that ask an endpoint for actions; a condition is the seed of a scene.

    Args:
        make_env: the simulator of a task.
        client: of the study's endpoint.
        execute: actions of each chunk that are run, the same for all models.
        control_rate: of the actions [Hz].
        view: that is recorded.
    """

    make_env: Callable[[str], Environment]
    client: Client
    execute: int
    control_rate: float
    view: str
    _envs: dict[str, Environment] = field(default_factory=dict)

    def trial(self, task: str, instruction: str, condition: str, seconds: float) -> Recording:
        """Runs until the simulator says success or time is over."""
        if task not in self._envs:
            self._envs[task] = self.make_env(task)
        env, scene = self._envs[task], _scene(condition)
        env.reset(scene)
        frames: list[np.ndarray] = []
        every = max(1, round(self.control_rate / VIDEO_RATE))
        steps = call = 0
        success = False
        while not success and steps < seconds * self.control_rate:
            seen = env.observe()
            message: dict[str, Any] = {
                "observation/state": seen.state,
                "prompt": instruction,
                "seed": noise_seed(0, task, scene, call),
            }
            message |= {f"observation/{view}": image for view, image in seen.images.items()}
            actions = self.client.infer(message)["actions"]
            call += 1
            for action in actions[: self.execute]:
                if steps % every == 0:
                    frames.append(env.render(self.view))
                success = bool(env.step(action).success)
                steps += 1
                if success:
                    break
        frames.append(env.render(self.view))
        return Recording(success, _encoded(frames, self.control_rate / every))

    def close(self) -> None:
        """Ends the simulators."""
        for env in self._envs.values():
            env.close()


def run_trials(
    browser: Browser,
    robot: Robot,
    seconds: Mapping[str, float],
    done: Callable[[int], None] = lambda count: None,
    guess: Callable[[str], str] = lambda code: "unknown",
) -> dict[str, bool]:
    """Runs all trials that are left, by the operator's page; returns code -> success.

    Args:
        seconds: task -> time of a trial [s] of simulated time.
        done: told how many trials were run.
        guess: what the operator answers when asked.
    """
    found: dict[str, bool] = {}
    while True:
        browser.read()
        forms = browser.page.forms
        if "/pause" in forms:
            browser.send("/pause")
        elif "/guess" in forms:
            browser.send("/guess", guess=guess(forms["/guess"].hidden["code"]))
        elif "/start" in forms:
            code, facts = browser.page.code, browser.page.facts
            browser.send("/start")
            task = facts["Task"]
            instruction = facts.get("Instruction", task)
            made = robot.trial(task, instruction, facts["Initial condition"], seconds[task])
            found[code] = made.success
            browser.send("/stop", made.video)
            done(len(found))
        elif "/stop" in forms:
            raise StudyError(
                f"trial {browser.page.code} was running before; abort or stop it first"
            )
        elif browser.page.code:
            time.sleep(0.2)  # a break that goes on
        else:
            return found


def judge_all(browser: Browser, verdicts: Mapping[str, bool], failure: str) -> int:
    """Judges all that waits as ``verdicts`` say; returns how many.

    Args:
        failure: the tag of every failure: a simulator does not say how.
    """
    count = 0
    browser.read()
    while "/judge" in browser.page.forms:
        code = browser.page.forms["/judge"].hidden["code"]
        steps = {name: "yes" for name in browser.page.forms["/judge"].names if "milestone" in name}
        if verdicts[code]:
            browser.send("/judge", None, outcome="success", failure="", **steps)
        else:
            browser.send("/judge", outcome="failure", failure=failure)
        count += 1
    return count


def _scene(condition: str) -> int:
    if not condition.isdigit():
        raise StudyError(
            f"condition {condition!r} is no scene of a simulator; expected a number such as '7'"
        )
    return int(condition)


def _encoded(frames: list[np.ndarray], rate: float) -> bytes:
    """The frames as MP4 with the same settings for everyone."""
    from vlakern.sim.report import write_video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.mp4"
        write_video(path, frames, rate)
        return path.read_bytes()
