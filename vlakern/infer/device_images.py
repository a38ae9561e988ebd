"""Camera images on a device: each has its memory there, and a kernel that resizes it.

Dimension letters: V views, S image side.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.infer.device_buffers import Inbox
from vlakern.infer.graph import Run
from vlakern.models.config import VisionConfig
from vlakern.models.processing import DEFAULT_IMAGES, ImageRule
from vlakern.ops.image_prep import image_prep_out
from vlakern.ops.image_prep.reference import rows_of_patches

__all__ = ["Cameras"]

MOST = 4  # sizes of images that a view keeps memory for, besides the one known from the start


class Camera:
    """Images of one size on their way to the pixels of one view."""

    def __init__(self, size: tuple[int, int], bind: Callable[[Tensor], Run], like: Tensor) -> None:
        self.size = size
        self._inbox = Inbox({"image": ((*size, 3), torch.uint8)}, like.device)
        self.prepare = bind(self._inbox.device["image"])

    def send(self, image: np.ndarray) -> None:
        np.copyto(self._inbox.open()["image"].numpy(), image)
        self._inbox.send()


class Cameras:
    """All views' images; sizes that are known from the start have programs that prepare them.

    Attributes:
        recorded: whether :meth:`program` prepares images.
    """

    def __init__(
        self,
        vision: VisionConfig,
        pixels: Tensor,
        sizes: Sequence[tuple[int, int]],
        backend: str,
        image: ImageRule = DEFAULT_IMAGES,
    ) -> None:
        """``sizes`` are height and width [px] of the images of one observation, in order."""
        if any(len(size) != 2 or min(size) < 1 for size in sizes):
            raise InputError(f"image_sizes are {list(sizes)}, expected pairs (height, width) [px]")
        self._pixels = pixels
        self._side = vision.image_size
        self._patch = 1 if vision.stem else vision.patch_size
        sides = {"size": self._side, "patch": self._patch, "backend": backend}
        self._settings: dict[str, Any] = sides | image.settings
        self.recorded = bool(sizes)
        self._known = [
            self._camera(i, (sizes[i % len(sizes)][0], sizes[i % len(sizes)][1]))
            for i in range(len(pixels) if sizes else 0)
        ]
        self._others: dict[int, list[Camera]] = {}  # of each view, the last used one last

    @torch.inference_mode(False)  # its memory serves later calls in any mode
    def _camera(self, view: int, size: tuple[int, int]) -> Camera:
        def bind(image: Tensor) -> Run:
            out = self._pixels[view : view + 1]
            return image_prep_out(image, out=out, **self._settings)

        return Camera(size, bind, self._pixels)

    def program(self, views: int) -> list[Run]:
        """The kernels that prepare images of the known sizes."""
        return [camera.prepare for camera in self._known[:views]]

    def knows(self, images: Sequence[np.ndarray]) -> bool:
        """Whether a program prepares images of these sizes."""
        return self.recorded and all(
            image.shape[:2] == self._known[i].size for i, image in enumerate(images)
        )

    def send(self, images: Sequence[np.ndarray]) -> None:
        """Copies images to the device.

        Raises:
            InputError: one is not uint8 ``[height, width, 3]``.
        """
        for image in images:
            fits = image.ndim == 3 and image.shape[2] == 3 and 0 not in image.shape
            if image.dtype != np.uint8 or not fits:
                raise InputError(
                    f"an image is {image.dtype} {list(image.shape)}, it must be torch.uint8"
                    " [height, width, 3]"
                )
        for i, image in enumerate(images):
            self._of(i, image).send(image)

    def prepare(self, images: Sequence[np.ndarray]) -> None:
        """Prepares the images that were sent, one kernel after the other."""
        for i, image in enumerate(images):
            self._of(i, image).prepare()

    def take(self, pixels_V3SS: Tensor) -> None:
        """Normalised pixels, as they are."""
        rows = rows_of_patches(pixels_V3SS, self._patch)
        self._pixels[: len(rows)].copy_(rows)

    def _of(self, view: int, image: np.ndarray) -> Camera:
        """The camera of a view for images of this size; one of another size is made if need be."""
        size = (image.shape[0], image.shape[1])
        if self.recorded and self._known[view].size == size:
            return self._known[view]
        others = self._others.setdefault(view, [])
        at = next((i for i, one in enumerate(others) if one.size == size), None)
        camera = self._camera(view, size) if at is None else others.pop(at)
        others.append(camera)
        if len(others) > MOST:
            _wait(self._pixels.device)  # a kernel may still read what is freed here
            del others[0]
        return camera


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
