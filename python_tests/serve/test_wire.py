"""Keys of every known client reach the policy's views, and nothing else does."""

import numpy as np
import pytest

from vlakern.errors import ConfigError, InputError
from vlakern.serve.wire import Keys, observation, parse_keys

IMAGE = np.zeros((2, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "key", ["observation/front", "images/front", "observation.images.front", "front"]
)
def test_a_view_is_known_by_any_clients_spelling(key: str) -> None:
    seen, seed = observation({key: IMAGE, "state": [0.5], "prompt": "go"}, Keys(("front", "side")))
    assert list(seen.images) == ["front"]  # the other camera has dropped out
    assert (seen.state.tolist(), seen.instruction, seed) == ([0.5], "go", None)


def test_a_view_may_be_given_a_key() -> None:
    keys = parse_keys(("front",), ["front=observation/exterior_image_1_left"], ())
    seen, _ = observation(
        {"observation/exterior_image_1_left": IMAGE, "state": [1], "prompt": "go"}, keys
    )
    assert list(seen.images) == ["front"]
    with pytest.raises(InputError, match="'front' is unknown"):
        observation({"front": IMAGE, "state": [1], "prompt": "go"}, keys)


def test_keys_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected VIEW=KEY"):
        parse_keys(("front",), ["front"], ())
    with pytest.raises(ConfigError, match="view 'back'"):
        parse_keys(("front",), ["back=x"], ())


def test_channels_first_become_last() -> None:
    planes = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    seen, _ = observation({"front": planes, "state": [1], "prompt": "go"}, Keys(("front",)))
    np.testing.assert_array_equal(seen.images["front"], planes.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ([], "is a list"),
        ({1: 2}, "no word"),
        ({"prompt": "go"}, "state is missing"),
        ({"state": [1]}, "prompt is a NoneType"),
        ({"state": [1], "prompt": "go", "seed": True}, "seed is 'True'"),
    ],
)
def test_messages_without_what_is_needed_are_refused(message: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        observation(message, Keys(("front",)))  # pyright: ignore[reportArgumentType]


def test_a_missing_part_of_the_state_is_named() -> None:
    with pytest.raises(InputError, match="'b' is missing"):
        observation({"a": [1], "prompt": "go"}, Keys((), {}, ("a", "b")))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"front": IMAGE.astype(np.float32)}, r"float32\[2, 4, 3\], expected uint8"),
        ({"front": IMAGE[0]}, r"uint8\[4, 3\], expected"),
        ({"front": np.zeros((2, 4, 4), np.uint8)}, "expected uint8"),
        ({"front": np.zeros((0, 4, 3), np.uint8)}, "sides of 1 to 4096"),
        ({"front": np.zeros((1, 4097, 3), np.uint8)}, "sides of 1 to 4096"),
        ({"state": [1, 2]}, "a state of 2 numbers, expected 1"),
        ({"state": [float("nan")]}, "not finite"),
        ({"state": [1e300]}, "not finite"),
        ({"state": ["1"]}, "no list of numbers"),
        ({"state": [b"1"]}, "no list of numbers"),
        ({"prompt": "x" * 1025}, "prompt of 1025 bytes"),
        ({"prompt": "🤖" * 257}, "prompt of 1028 bytes"),
    ],
)
def test_sizes_are_those_that_were_announced(change: dict[str, object], said: str) -> None:
    """Before the policy sees a message, so that it fails alone and not with a whole batch."""
    keys = parse_keys(("front",), [], (), 1)
    announced = keys.announced()
    assert (announced["state_width"], announced["image"]["most_side"]) == (1, 4096)
    assert (announced["image"]["dtype"], announced["prompt_most"]) == ("uint8", 1024)
    good = {"front": IMAGE, "state": [1], "prompt": "go"}
    observation(good, keys)
    with pytest.raises(InputError, match=said):
        observation({**good, **change}, keys)
