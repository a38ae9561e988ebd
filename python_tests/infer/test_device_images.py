"""Camera images on their way to a device."""

import numpy as np
import pytest
import torch

from vlakern.errors import InputError
from vlakern.infer import device_images
from vlakern.infer.device_images import Cameras
from vlakern.models import preset
from vlakern.ops import image_prep

SIZES = ((30, 40), (28, 28))


def cameras(sizes: object = SIZES, name: str = "tiny") -> tuple[Cameras, torch.Tensor]:
    """For four views of a 28 px tower in patches of 7, or of the 96 px one behind a stem."""
    vision = preset(name).vision
    shape = (4, 16, 147) if name == "tiny" else (4, 96 * 96, 3)
    pixels = torch.full(shape, float("nan"))
    return Cameras(vision, pixels, sizes, "reference"), pixels  # type: ignore[arg-type]


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    draw = np.random.default_rng(3)
    return [draw.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize(("name", "patch"), [("tiny", 7), ("metaworld-small", 1)])
def test_known_and_other_sizes(name: str, patch: int) -> None:
    """Each becomes what ``image_prep`` makes of it, in its own place, again and again."""
    made, pixels = cameras(name=name)
    size = preset(name).vision.image_size
    for sizes in (SIZES, ((28, 28), (5, 9), (30, 40)), SIZES, ((5, 9), (5, 9))):
        images = pictures(*sizes)
        pixels.fill_(float("nan"))
        made.send(images)
        made.prepare(images)
        for i, image in enumerate(images):
            expected = image_prep(image, size=size, patch=patch, backend="reference")[0]
            assert torch.equal(pixels[i], expected)
        assert bool(pixels[len(images) :].isnan().all())


def test_a_program_prepares_what_was_sent() -> None:
    """Of known sizes, repeated from observation to observation; without any there is none."""
    made, pixels = cameras()
    images = pictures(*SIZES, *SIZES)
    made.send(images)
    for run in made.program(4):
        run()
    expected = [image_prep(one, size=28, patch=7, backend="reference")[0] for one in images]
    assert torch.equal(pixels, torch.stack(expected))
    assert (len(made.program(3)), made.recorded) == (3, True)
    none, _ = cameras(())
    assert (none.program(4), none.recorded, none.knows(images)) == ([], False, False)


def test_other_sizes_keep_their_memory_up_to_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two robots whose cameras differ are served in turn without new memory; many sizes end it."""
    made, pixels = cameras()
    waited: list[object] = []
    monkeypatch.setattr(device_images, "_wait", waited.append)
    bound: list[tuple[int, int]] = []
    camera = made._camera
    monkeypatch.setattr(made, "_camera", lambda v, size: bound.append(size) or camera(v, size))
    sizes = [(5, 5 + i) for i in range(device_images.MOST)]
    for size in (*sizes, *sizes, (30, 40)):
        images = pictures(size)
        made.send(images)
        made.prepare(images)
        expected = image_prep(images[0], size=28, patch=7, backend="reference")[0]
        assert torch.equal(pixels[0], expected)
    assert (bound, waited) == (sizes, [])
    made.send(pictures(sizes[0]))
    made.send(pictures((9, 9)))
    assert len(waited) == 1
    made.send(pictures(sizes[0]))  # was used after the others
    assert bound == [*sizes, (9, 9)]
    made.send(pictures(sizes[1]))
    assert bound == [*sizes, (9, 9), sizes[1]]


def test_a_size_first_seen_in_inference_mode_serves_outside_of_it() -> None:
    """Its memory is written again by calls in any mode."""
    made, pixels = cameras(())
    first, second = pictures((5, 9), (5, 9))
    with torch.inference_mode():
        made.send([first])
        made.prepare([first])
    made.send([second])
    made.prepare([second])
    size = preset("tiny").vision.image_size
    assert torch.equal(pixels[0], image_prep(second, size=size, patch=7, backend="reference")[0])


def test_which_images_are_known() -> None:
    """All of their sizes, in order."""
    made, _ = cameras()
    assert made.knows(pictures(*SIZES, *SIZES))
    assert made.knows(pictures(SIZES[0]))
    assert not made.knows(pictures(*SIZES[::-1]))


def test_images_may_lie_anyhow_in_memory() -> None:
    """Mirrored, and locked against writing: the pixels of a copy, without a warning."""
    made, pixels = cameras()
    mirrored = pictures((30, 40))[0][:, ::-1]
    mirrored.flags.writeable = False
    made.send([mirrored])
    made.prepare([mirrored])
    expected = image_prep(mirrored.copy(), size=28, patch=7, backend="reference")[0]
    assert torch.equal(pixels[0], expected)


def test_pixels_as_they_are() -> None:
    """Planes become rows of patches."""
    made, pixels = cameras(())
    planes = torch.randn(2, 3, 28, 28)
    made.take(planes)
    assert torch.equal(pixels[0, 1], planes[0, :, :7, 7:14].flatten())
    assert bool(pixels[2:].isnan().all())


@pytest.mark.parametrize(
    "image",
    [np.zeros((3, 4, 3)), np.zeros((3, 4), np.uint8), np.zeros((3, 4, 4), np.uint8),
     np.zeros((0, 4, 3), np.uint8)],
    ids=["floats", "grey", "four channels", "empty"],
)  # fmt: skip
def test_what_is_no_image_is_refused(image: np.ndarray) -> None:
    """Before anything is copied."""
    made, _ = cameras()
    with pytest.raises(InputError, match=r"it must be torch\.uint8 \[height, width, 3\]"):
        made.send([*pictures((30, 40)), image])


def test_sizes_that_are_none_are_refused() -> None:
    """Pairs of at least 1."""
    for sizes in (((0, 3),), ((3, 4, 3),)):
        with pytest.raises(InputError, match="expected pairs"):
            cameras(sizes)
