"""Whether recorded motion is what its robot's record and the frame say: poses, or steps.

Two criteria, each on positions of end-effectors alone.

*Recorded numbers.* Positions p of an episode are fitted by least squares, three axes from three
numbers and a constant, once from the recorded numbers x themselves, which fits absolute poses and
poses relative to the episode's start, and once from their running sum, plain and turned by the
measured rotation, which fits steps (deltas) along fixed axes and along the hand's. Over all
episodes each leaves a part of the variance of p. If one leaves below 20 % and less than a quarter
of what the other leaves, the numbers look like it. Steps in proportion to the way that is left, as
of a P controller, fit positions too, but turned round: where no direction of the fit over all
episodes points forward, the numbers are not called poses.

*Growth.* After the frame transform the root mean square of step k of a chunk, over its starts,
goes as k ** g. What is relative to the chunk's start moves away from it: g is 1 for steady motion
and 1/2 for a random walk. Deltas are as large at every step: g is 0. A relative frame with g below
0.1 looks like deltas; a delta frame with g above 0.3 looks relative.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from vlakern.data.collate import chunks_at
from vlakern.data.episode import Episode
from vlakern.data.recording import Recording
from vlakern.errors import DatasetError
from vlakern.space.hands import Hand, hands

__all__ = ["growth", "looks_like", "motion_flags"]

# Shares of the variance of the positions that a fit may leave, alone and beside the other.
LEFT, BESIDE = 0.2, 0.25
FORWARD = 0.1  # least eigenvalue that points forward, as a part of the largest magnitude
RELATIVE_LEAST, DELTA_MOST = 0.1, 0.3
# A fit has four numbers per axis; shorter episodes fit anything.
SHORTEST, EPISODES = 12, 50
STILL = 1e-6  # [m]


def motion_flags(recording: Recording, chunk: int) -> list[str]:
    """A sentence for every end-effector of a dataset that moves unlike what is declared."""
    body = recording.body
    measured = hands(body.robot.state, body.state_map)
    pairs = [
        (hand, base)
        for hand in hands(body.robot.action, body.action_map)
        if (base := hand.state_of(measured)) is not None
    ]
    every = max(1, len(recording.lengths) // EPISODES)
    episodes = []
    for i in range(0, len(recording.lengths), every):
        try:
            episodes.append(recording.episode(i))
        except DatasetError:
            continue  # measure() has named it
    found = []
    for hand, base in pairs:
        found += _recorded_flags(recording, hand, base, episodes)
        found += _growth_flags(recording, hand, episodes, chunk)
    return found


def looks_like(
    numbers: Sequence[np.ndarray],
    positions: Sequence[np.ndarray],
    rotations: Sequence[np.ndarray] | None = None,
) -> Literal["poses", "steps"] | None:
    """What recorded numbers are, None if neither fits well enough; see the module.

    Args:
        numbers, positions: of each episode ``[T, 3]``; row t leads to position t + 1.
        rotations: measured, ``[T, 3, 3]`` from the hand's axes to the fixed ones.
    """
    left = {"poses": 0.0, "steps": 0.0}
    total = own = 0.0
    gram, cross = np.zeros((3, 3)), np.zeros((3, 3))
    for i, (x, p) in enumerate(zip(numbers, positions, strict=True)):
        if len(p) < SHORTEST:
            continue
        reached, x = p[1:].astype(float), x[:-1].astype(float)
        total += float(((reached - reached.mean(0)) ** 2).sum())
        left["poses"] += _left(x, reached)
        centred = x - x.mean(0)
        gram, cross = gram + centred.T @ centred, cross + centred.T @ (reached - reached.mean(0))
        left["steps"] += _left(x.cumsum(0), reached)
        if rotations is not None:
            turned = np.einsum("tij,tj->ti", rotations[i][:-1], x)
            own += _left(turned.cumsum(0), reached)
    if total <= STILL**2:
        return None
    if rotations is not None:
        left["steps"] = min(left["steps"], own)
    poses, steps = left["poses"] / total, left["steps"] / total
    if min(poses, steps) > LEFT or max(poses, steps) * BESIDE < min(poses, steps):
        return None
    if poses > steps:
        return "steps"
    turns = np.linalg.eigvals(np.linalg.pinv(gram, rcond=1e-9) @ cross)
    return "poses" if turns.real.max() > FORWARD * np.abs(turns).max() else None


def growth(chunks_NH3: np.ndarray, valid_NH: np.ndarray) -> float | None:
    """g of the module's second criterion; None where nothing moves or a chunk has below 4 steps."""
    squares = (chunks_NH3.astype(float) ** 2).sum(-1) * valid_NH
    count = valid_NH.sum(0)
    steps = np.flatnonzero(count)
    rms = np.sqrt(squares.sum(0)[steps] / count[steps])
    if len(steps) < 4 or rms.max() <= STILL:
        return None
    return float(np.polyfit(np.log(steps + 1.0), np.log(np.maximum(rms, STILL)), 1)[0])


def _recorded_flags(
    recording: Recording, hand: Hand, base: Hand, episodes: Sequence[Episode]
) -> list[str]:
    controller = recording.body.robot.controller
    declared = "poses" if controller is None or controller.frame == "absolute" else "steps"
    numbers, positions, rotations = [], [], []
    for episode in episodes:
        pose = base.read(torch.from_numpy(episode.states.astype(np.float64)))
        positions.append(pose.position.numpy())
        axes = torch.eye(3, dtype=torch.float64)
        columns = [pose.rotation.apply(axis.expand(pose.position.shape)) for axis in axes]
        rotations.append(torch.stack(columns, -1).numpy())
        numbers.append(episode.actions[:, slice(*hand.position.native)])
    found = looks_like(numbers, positions, rotations if base.rotation else None)
    if found is None or found == declared:
        return []
    says = {"poses": "absolute poses", "steps": "steps (deltas)"}
    return [
        f"{recording.name}: the actions of {hand.name} are declared as {says[declared]} by robot"
        f" {recording.body.robot.name!r}, but look like {says[found]}: they fit the measured"
        f" positions {'themselves' if found == 'poses' else 'by their running sum'}; correct"
        " the robot's controller"
    ]


def _growth_flags(
    recording: Recording, hand: Hand, episodes: Sequence[Episode], chunk: int
) -> list[str]:
    body = recording.body
    if body.frame == "native" or not episodes:
        return []
    space, slot = body.plain_space(), hand.position_slot
    unified, inside = [], []
    for one in episodes:
        starts = range(0, len(one.actions), max(1, len(one.actions) // 64))
        vectors = one.states, one.actions
        chunks, valid = chunks_at(*vectors, starts, chunk, recording.control, body.stride)
        positions = space.unify(chunks, one.states[list(starts)])[..., slot.start : slot.stop]
        unified.append(positions)
        inside.append(valid)
    found = growth(np.concatenate(unified), np.concatenate(inside))
    if found is None:
        return []
    relative = body.frame.endswith("relative")
    if relative and found < RELATIVE_LEAST:
        return [
            f"{recording.name}: {hand.name} is declared {body.frame}, but looks like deltas: over a"
            f" chunk its spread grows as step ** {found:.2f}, expected 0.5 to 1"
        ]
    if not relative and found > DELTA_MOST:
        return [
            f"{recording.name}: {hand.name} is declared {body.frame}, but looks relative: over a"
            f" chunk its spread grows as step ** {found:.2f}, expected about 0"
        ]
    return []


def _left(x: np.ndarray, y: np.ndarray) -> float:
    """The sum of squares of y that a linear fit from x and a constant leaves."""
    design = np.concatenate([x - x.mean(0), np.ones((len(x), 1))], 1)
    answer = np.linalg.lstsq(design, y, rcond=None)[0]
    return float(((y - design @ answer) ** 2).sum())
