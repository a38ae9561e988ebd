"""One slot map for the robots of a mixture, and the refusal of robots that do not share one."""

from collections.abc import Sequence
from dataclasses import replace

from vlakern.data.body import Body, in_map, resolve_body
from vlakern.data.mixture import Mixture
from vlakern.data.recording import Recording, naming, open_recording, robot_of
from vlakern.errors import ConfigError
from vlakern.space import Embodiment, slot_map
from vlakern.space.action_space import ActionFrame

__all__ = ["open_recordings"]


def open_recordings(
    mixture: Mixture, frame: ActionFrame, width: int, chunk: int
) -> list[Recording]:
    """Opens the datasets of weight above 0, their robots in one slot map.

    That is the mixture's, or else the robots' own: a single robot as
    :func:`vlakern.data.body.resolve_body` has it, several in the map that all of them name.

    Raises:
        VlakernError: a dataset or robot that is not as the mixture says, see
            :func:`open_recording`, or two datasets that give one slot different units.
    """
    entries = [e for e in mixture.datasets if e.weight > 0 and mixture.group(e.group).weight > 0]
    if not entries:
        raise ConfigError(f"mixture {mixture.name!r}: weight is 0 for every dataset or its group")
    among = len(entries) > 1
    whole = [open_recording(mixture, entry, frame, chunk, among) for entry in entries]
    if all(one.body.frame != frame for one in whole):
        with naming(mixture, whole[0].entry):
            replace(whole[0].body, frame=frame).plain_space()
    _check_units(mixture, whole)
    robots = {one.body.robot.name for one in whole}
    if mixture.slot_map:
        slots = slot_map(mixture.slot_map)
        for one in whole:
            with naming(mixture, one.entry):
                one.use(in_map(one.body, slots, f"robot {one.body.robot.name!r}"))
    elif len(robots) == 1:
        for one in whole:
            old, robot = one.body, robot_of(one.entry, one.dataset)
            body = resolve_body(one.dataset, width, frame, robot, old.stride)
            one.use(replace(body, robot=replace(body.robot, views=old.robot.views)))
    _check_maps(mixture, whole)
    return whole


def _check_maps(mixture: Mixture, recordings: Sequence[Recording]) -> None:
    first = recordings[0]
    for one in recordings[1:]:
        for mine, theirs in (
            (one.body.state_map, first.body.state_map),
            (one.body.action_map, first.body.action_map),
        ):
            if mine != theirs:
                raise ConfigError(
                    f"mixture {mixture.name!r}: dataset {first.name!r} fills slot map"
                    f" {theirs.name!r} and dataset {one.name!r} {mine.name!r}; name one map for"
                    " both with slot_map"
                )
    known: dict[str, Recording] = {}
    for one in recordings:
        first = known.setdefault(one.body.robot.name, one)
        if _plain(one) != _plain(first):
            raise ConfigError(
                f"mixture {mixture.name!r}: datasets {first.name!r} and {one.name!r} both name"
                f" robot {one.body.robot.name!r}, but their records differ; give one another name"
            )


def _plain(recording: Recording) -> Embodiment:
    """The robot without what belongs to the dataset."""
    return replace(recording.body.robot, views=("any",), control_rate=1.0)


def _check_units(mixture: Mixture, recordings: Sequence[Recording]) -> None:
    """Refuses two datasets that give one slot different units."""
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for one in recordings:
        for part, slot, meaning in _meanings(one.body):
            known, whose = seen.setdefault((part, slot), (meaning, one.name))
            if known != meaning:
                raise ConfigError(
                    f"mixture {mixture.name!r}: {part} slot {slot!r} is {known} in dataset"
                    f" {whose!r} and {meaning} in dataset {one.name!r}; a slot has one unit:"
                    " correct a robot's record, or choose a frame that makes both alike"
                )


def _meanings(body: Body) -> list[tuple[str, str, str]]:
    """Part, slot, and what its numbers are: their unit, or with native numbers their making."""
    robot = body.robot
    found: list[tuple[str, str, str]] = []
    for part, fields, slots in (
        ("state", robot.state, body.state_map),
        ("action", robot.action, body.action_map),
    ):
        for field in fields:
            slot = slots.slot(field.slot)
            meaning = f"in unit {slot.unit!r}"
            if part == "action" and body.frame == "native":
                if slot.kind == "position" or field.rotation:
                    meaning = _controlled(robot, field.rotation or "")
                elif field.affine != (1.0, 0.0):
                    made = f"{field.affine[0]:g} x + {field.affine[1]:g}"
                    meaning = f"native numbers x of which the slot is {made}"
            found.append((part, field.slot, meaning))
    return found


def _controlled(robot: Embodiment, rotation: str) -> str:
    """What the native numbers of a pose are."""
    one = robot.controller
    if one is None:
        return f"an absolute pose {rotation}".strip()
    scale = one.rotation_scale if rotation else one.position_scale
    kind = f"steps {one.frame}" if one.frame != "absolute" else "an absolute pose"
    return f"{kind} of {scale:g} per number {rotation}".strip()
