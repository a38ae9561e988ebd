"""image_prep: every backend and instruction set against the definition and independent peers."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlakern import env, ops
from vlakern.errors import InputError, Unsupported
from vlakern.ops import _native
from vlakern.ops.image_prep.cases import BENCH, CASES, Case, draw, make_inputs, plain_image_prep
from vlakern.ops.image_prep.reference import image_prep_reference, place
from vlakern.testing import assert_accurate, generator, poison, poisoned_allocations

INTERPRETED = env.triton_interpret()
ISAS: list[str] = _native.native_info()["isas"]
# (backend, instruction set); the interpreter has a process of its own, see test_in_interpreter
WAYS = [("reference", ""), *(("cpu", isa) for isa in ISAS)]
WAYS += [("triton", "")] if INTERPRETED else []
ids = [f"{backend}{isa and '-'}{isa}" for backend, isa in WAYS]
every_way = pytest.mark.parametrize(("backend", "isa"), WAYS, ids=ids)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
PEERS = {
    "bilinear_antialias": Image.Resampling.BILINEAR,
    "bicubic_antialias": Image.Resampling.BICUBIC,
}
# (level / 255 - 0) / (1 / 255) is the level again, but for rounding.
LEVELS: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}


@pytest.fixture(autouse=True)
def forced_isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forces the instruction set that the test's parameter names."""
    call = getattr(request.node, "callspec", None)
    if call is not None and call.params.get("isa"):
        monkeypatch.setenv("VLAKERN_CPU_ISA", call.params["isa"])


def check_values(case: Case, images: Tensor, backend: str) -> None:
    settings: dict[str, Any] = case.settings
    with poisoned_allocations():
        found = ops.image_prep(images, **settings, backend=backend)
    if case.filter != "bilinear":
        assert torch.equal(found, image_prep_reference(images, **settings))
        return
    settings["dtype"] = torch.float64
    exact = image_prep_reference(images, **settings)
    assert_accurate(found, exact, plain_image_prep(images, **case.settings), str(case))


@every_case
@every_way
def test_values(backend: str, isa: str, case: Case, rng: torch.Generator) -> None:
    """Whole levels give the definition's bits, the rest obeys the accuracy rule."""
    check_values(case, make_inputs(case, rng), backend)


@every_way
def test_fuzz(backend: str, isa: str, fuzz: range) -> None:
    """Random cases, each named by the seed that draws it again."""
    for seed in fuzz[:: 40 if backend == "triton" else 1]:
        rng = generator(f"image_prep {seed}")
        case = draw(rng)
        # The interpreter takes a millisecond per input of an output.
        if backend == "triton" and case.height * case.width > 10 * case.size[0] * case.size[1]:
            continue
        try:
            check_values(case, make_inputs(case, rng), backend)
        except AssertionError as error:
            raise AssertionError(f"draw(generator('image_prep {seed}')) = {case!r}") from error


def pillow(image: np.ndarray, height: int, width: int, filter: str) -> np.ndarray:
    """Along rows, then along columns, which Pillow 13 does not always do by itself."""
    rows = Image.fromarray(image).resize((width, len(image)), PEERS[filter])
    return np.asarray(rows.resize((width, height), PEERS[filter]))


def levels(images: np.ndarray, **settings: Any) -> np.ndarray:
    """One resized image ``[S, T, 3]``."""
    found = ops.image_prep(images, **settings, **LEVELS)[0].permute(1, 2, 0)
    return found.round().to(torch.uint8).numpy()


@pytest.mark.parametrize("filter", PEERS)
def test_is_pillows_resize(filter: str) -> None:
    """Every level is Pillow's, for any sizes and the hardest content."""
    random = np.random.default_rng(5)
    for _ in range(150):
        h, w, s, t = (int(n) for n in random.integers(1, random.choice([3, 30, 200]), 4))
        image = random.integers(0, 256, (h, w, 3), dtype=np.uint8)
        found = levels(image, size=(s, t), fit="stretch", filter=filter)
        assert (found == pillow(image, s, t, filter)).all(), (h, w, s, t)


@pytest.mark.parametrize("filter", PEERS)
@pytest.mark.parametrize(
    "shape", [(480, 640, 224), (720, 1280, 224), (480, 640, 512), (96, 128, 256)]
)
def test_is_pillows_resize_of_a_camera(filter: str, shape: tuple[int, int, int]) -> None:
    """A letterboxed camera is one call of Pillow's resize, pasted into the middle."""
    h, w, side = shape
    image = np.random.default_rng(7).integers(0, 256, (h, w, 3), dtype=np.uint8)
    height = round(h * side / w)
    resized = Image.fromarray(image).resize((side, height), PEERS[filter])
    canvas = Image.new("RGB", (side, side), (9, 9, 9))
    canvas.paste(resized, (0, (side - height) // 2))
    assert (levels(image, size=side, filter=filter, pad=9) == np.asarray(canvas)).all()


def test_is_torchs_interpolate() -> None:
    """Without antialiasing it is torch's two-point rule on floating-point pixels."""
    for h, w, s, t in ((48, 64, 17, 23), (5, 9, 31, 40), (1, 7, 3, 3), (33, 20, 33, 9)):
        image = torch.randint(256, (2, h, w, 3), dtype=torch.uint8)
        pixels = image.permute(0, 3, 1, 2).double() / 127.5 - 1.0
        expected = F.interpolate(pixels, (s, t), mode="bilinear", align_corners=False)
        found = ops.image_prep(image, size=(s, t), fit="stretch", filter="bilinear")
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def openpi_place(h: int, w: int, side: int) -> tuple[int, int, int, int]:
    """The arithmetic of resize_with_pad as openpi writes it: ratio, then truncation."""
    ratio = max(w / side, h / side)
    height, width = int(h / ratio), int(w / ratio)
    return (side - height) // 2, (side - width) // 2, height, width


@pytest.mark.parametrize(("h", "w"), [(480, 640), (640, 480), (256, 256), (97, 211), (720, 1280)])
def test_places(h: int, w: int) -> None:
    """Where images go: openpi's and LeRobot's sizes are truncated, letterbox's rounded."""
    top, left, height, width = openpi_place(h, w, 224)
    assert place((h, w), (224, 224), "openpi")[:4] == (top, left, height, width)
    expected = (224 - height, 224 - width, height, width)
    assert place((h, w), (224, 224), "lerobot")[:4] == expected
    rounded = place((h, w), (224, 224), "letterbox")
    assert abs(rounded.height - 224 * h / max(h, w)) <= 0.5
    assert abs(rounded.width - 224 * w / max(h, w)) <= 0.5
    assert place((h, w), (224, 224), "stretch")[:4] == (0, 0, 224, 224)


def test_extreme_aspect_ratio_keeps_a_pixel() -> None:
    """A line becomes a line, not nothing."""
    # 5000 / (5000 / 224) is a little less than 224 in floating point, and openpi truncates.
    assert place((1, 5000), (224, 224), "openpi")[:4] == (111, 0, 1, 223)
    assert place((1, 5000), (224, 224), "letterbox")[:4] == (111, 0, 1, 224)
    found = ops.image_prep(np.full((1, 5000, 3), 255, np.uint8), size=224)
    assert bool((found[0, :, 111] == 1.0).all())
    assert bool((found[0, :, :111] == -1.0).all())


@every_way
@pytest.mark.parametrize("filter", [*PEERS, "bilinear"])
def test_right_size_is_exact(backend: str, isa: str, filter: str, rng: torch.Generator) -> None:
    """An image of the output's size is only normalised, by the formula's very bits."""
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    found = ops.image_prep(images, size=16, filter=filter, backend=backend)
    assert torch.equal(found, images.permute(0, 3, 1, 2).float() / 127.5 - 1.0)
    mean, std = torch.rand(2, 3, generator=rng) + 0.1
    found = ops.image_prep(
        images, size=16, filter=filter, mean=mean.tolist(), std=std.tolist(), backend=backend
    )
    levels = images.permute(0, 3, 1, 2).float()
    assert torch.equal(found, (levels / 255 - mean[:, None, None]) / std[:, None, None])


@every_way
def test_patches_are_a_convolutions(backend: str, isa: str, rng: torch.Generator) -> None:
    """Patch rows times the flattened weight of a patch embedding is the convolution."""
    images = torch.randint(256, (2, 20, 30, 3), generator=rng).to(torch.uint8)
    weight = torch.randn(8, 3, 7, 7, generator=rng)
    rows = ops.image_prep(images, size=(28, 21), patch=7, backend=backend)
    planes = ops.image_prep(images, size=(28, 21), backend=backend)
    expected = F.conv2d(planes, weight, stride=7).flatten(2).transpose(1, 2)
    torch.testing.assert_close(rows @ weight.flatten(1).T, expected, rtol=1e-4, atol=1e-4)


def test_threads_do_not_change_bits(rng: torch.Generator) -> None:
    """Calls large enough for several threads give the bits of one thread."""
    before = torch.get_num_threads()
    for case in (BENCH[0], BENCH[1], BENCH[3]):
        images, found = make_inputs(case, rng), []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(ops.image_prep(images, **case.settings, backend="cpu"))
        torch.set_num_threads(before)
        assert all(torch.equal(one, found[0]) for one in found)


@every_way
def test_bound_call_repeats(backend: str, isa: str, rng: torch.Generator) -> None:
    """The bound call prepares what the memory holds now, views of several sizes included."""
    images = [torch.zeros(h, 20, 3, dtype=torch.uint8) for h in (20, 15, 30)]
    out = poison(torch.empty(3, 3, 12, 12))
    again = ops.image_prep_out(images, size=12, out=out, backend=backend)
    assert bool((out == -1.0).all())
    for image in images:
        image.copy_(torch.randint(256, image.shape, generator=rng))
    again()
    single = [ops.image_prep(image, size=12, backend=backend) for image in images]
    assert torch.equal(out, torch.cat(single))


@every_way
@pytest.mark.parametrize("patch", [0, 4])
def test_writes_nothing_else(backend: str, isa: str, patch: int, rng: torch.Generator) -> None:
    """Views of the output may lie apart; what is between them stays."""
    images = torch.randint(256, (2, 9, 13, 3), generator=rng).to(torch.uint8)
    expected = ops.image_prep(images, size=8, patch=patch, backend=backend)
    full = torch.full((4, *expected.shape[1:]), 7.0)
    ops.image_prep_out(images, size=8, patch=patch, out=poison(full[::2]), backend=backend)
    assert torch.equal(full[::2], expected)
    assert bool((full[1::2] == 7.0).all())


def test_numpy_views(rng: torch.Generator) -> None:
    """Arrays that run backwards, are locked, or hold their channels the other way are taken."""
    image = torch.randint(256, (10, 14, 3), generator=rng).to(torch.uint8).numpy()
    for view in (image[::-1, ::-1], image[..., ::-1], image[:, ::2], image.transpose(1, 0, 2)):
        expected = ops.image_prep(np.ascontiguousarray(view), size=8)
        assert torch.equal(ops.image_prep(view, size=8), expected)
    locked = image.copy()
    locked.flags.writeable = False
    assert torch.equal(ops.image_prep([locked], size=8), ops.image_prep(image, size=8))
    for view in (image[::-1], locked):
        with pytest.raises(InputError, match="images to be bound must be writeable"):
            ops.image_prep_out(view, size=8, out=torch.empty(1, 3, 8, 8))


@pytest.mark.parametrize("case", [CASES[3], CASES[6], CASES[9]], ids=str)
def test_opcheck(case: Case, rng: torch.Generator) -> None:
    """Schema and fake agree with the op."""
    given = [list(v) if isinstance(v, tuple) else v for v in case.settings.values()]
    images = [make_inputs(case, rng), make_inputs(CASES[0], rng)]
    torch.library.opcheck(torch.ops.vlakern.image_prep.default, (images, *given, "auto"))


def test_compiles_without_a_graph_break(rng: torch.Generator) -> None:
    """torch.compile(fullgraph=True) traces the op."""
    images = make_inputs(CASES[3], rng)

    def rows(images: Tensor) -> Tensor:
        return ops.image_prep(images, **CASES[3].settings).float().square().sum(-1)

    compiled = torch.compile(rows, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images), rows(images))


def bad(**changes: Any) -> dict[str, Any]:
    images = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    return {"images": images, "size": 8} | changes


BAD = {
    "dtype of images": (bad(images=torch.zeros(2, 4, 5, 3)), r"images\[0\] must be torch.uint8"),
    "channels": (bad(images=torch.zeros(3, 8, 8).byte()), r"images\[0\] must be \[V, H, W, 3\]"),
    "no pixel": (bad(images=torch.zeros(0, 8, 3).byte()), "with at least one pixel"),
    "no images": (bad(images=[]), "found no images"),
    "size": (bad(size=0), "size must be height and width of at least 1"),
    "fit": (bad(fit="crop"), "fit must be one of stretch, cover, letterbox, .*, got 'crop'"),
    "filter": (bad(filter="nearest"), "filter must be one of bilinear_antialias"),
    "pad": (bad(pad=256), "pad must be a level of 0 to 255"),
    "pad below": (bad(pad=-1), "pad must be a level of 0 to 255"),
    "pad far below": (bad(pad=-256, filter="bilinear"), "pad must be a level of -255 to 255"),
    "mean alone": (bad(mean=(0.5,) * 3), "mean and std must be given together"),
    "std": (bad(mean=(0.5,) * 3, std=(1.0, 0.0, 1.0)), "std must be positive"),
    "patch": (bad(patch=3), r"patch must be 0 or a divisor of both sides of size \(8, 8\), got 3"),
    "dtype": (bad(dtype=torch.int32), "dtype must be torch.float32 or"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    """An argument that does not fit is one sentence: name, expected, found."""
    with pytest.raises(InputError, match=message):
        ops.image_prep(**arguments)


def test_bad_outputs() -> None:
    """Outputs of another shape, device or layout are refused."""
    with pytest.raises(InputError, match=r"out must be \[2, 3, 8, 8\], got \[2, 3, 8, 9\]"):
        ops.image_prep_out(**bad(), out=torch.empty(2, 3, 8, 9))
    with pytest.raises(InputError, match="out must be on images' device cpu, got one on meta"):
        ops.image_prep_out(**bad(), out=torch.empty(2, 3, 8, 8, device="meta"))
    with pytest.raises(InputError, match="out must be contiguous within a view"):
        ops.image_prep_out(**bad(), out=torch.empty(2, 8, 8, 3).permute(0, 3, 1, 2))
    shared = torch.empty(1, 3, 8, 8).expand(2, 3, 8, 8)
    with pytest.raises(InputError, match="views of out may not share memory"):
        ops.image_prep_out(**bad(), out=shared, backend="cpu")


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_refuses_fp64(backend: str) -> None:
    """Only the definition computes in fp64; auto finds it, a name is refused."""
    assert ops.image_prep(**bad(), dtype=torch.float64).dtype == torch.float64
    with pytest.raises(Unsupported, match=f"{backend} of image_prep refuses: "):
        ops.image_prep(**bad(), dtype=torch.float64, backend=backend)


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
def test_in_interpreter(run_interpreted: Any) -> None:
    """The Triton kernel passes this file's tests in Triton's interpreter."""
    assert run_interpreted(__file__) > len(CASES)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "reference"])
@every_case
def test_gpu_values(backend: str, case: Case, request: pytest.FixtureRequest) -> None:
    """On the GPU, too, whole levels give the definition's bits."""
    check_values(case, make_inputs(case, generator(request.node.name, "cuda")), backend)
