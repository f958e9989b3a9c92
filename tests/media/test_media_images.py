"""PIL, numpy and tensors into each other; loading; grids and contact sheets."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from langevin.media.images import (
    Picture,
    contact_sheet,
    denormalize,
    load_image,
    make_image_grid,
    normalize,
    numpy_to_pil,
    numpy_to_pt,
    pil_to_numpy,
    pt_to_numpy,
    pt_to_pil,
    to_pictures,
    to_rgb,
    to_tensor,
)


@st.composite
def pixels(draw, channels=(1, 3, 4), batch=False):
    shape = (draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.sampled_from(channels)))
    shape = (draw(st.integers(1, 3)), *shape) if batch else shape
    seed = draw(st.integers(0, 2**31))
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@given(pixels(channels=(3,), batch=True), st.booleans())
def test_pil_to_tensor_to_pil_is_exact(batch, signed):
    images = [Image.fromarray(one) for one in batch]
    tensor = to_tensor(images, signed=signed)
    assert tensor.shape == (len(batch), 3, *batch.shape[1:3])
    assert tensor.dtype == torch.float32
    back = pt_to_pil(tensor, signed=signed)
    assert [np.array_equal(a, b) for a, b in zip(back, images, strict=True)] == [True] * len(images)
    assert to_pictures(tensor, signed=signed) == images


@given(pixels(batch=True))
def test_numpy_and_tensors_are_exact_both_ways(batch):
    floats = (batch / 255).astype(np.float32)
    np.testing.assert_array_equal(pt_to_numpy(numpy_to_pt(floats)), floats)
    np.testing.assert_array_equal(pil_to_numpy(numpy_to_pil(floats)).reshape(floats.shape), floats)
    np.testing.assert_array_equal(pil_to_numpy(numpy_to_pil(batch)).reshape(floats.shape), floats)
    assert torch.equal(denormalize(normalize(numpy_to_pt(floats))).mul(255).round().byte(), numpy_to_pt(batch))


@given(pixels(channels=(3,)))
def test_every_kind_of_input_gives_the_same_tensor(array):
    want = to_tensor(Image.fromarray(array))
    chw = torch.from_numpy(array).permute(2, 0, 1)
    for same in (array, array[None], [array], chw, chw[None], (array / 255).astype(np.float32), chw / 255):
        assert torch.equal(to_tensor(same), want)
    assert torch.equal(to_tensor([array, Image.fromarray(array)]), torch.cat([want, want]))


def test_the_ends_of_the_range():
    ends = Image.fromarray(np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8))
    assert to_tensor(ends).aminmax() == (-1.0, 1.0)
    assert to_tensor(ends, signed=False).aminmax() == (0.0, 1.0)
    assert pt_to_numpy(torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16)).dtype == np.float32
    beyond = torch.tensor([-3.0, 3.0]).expand(1, 3, 1, 2)
    assert np.array_equal(np.asarray(pt_to_pil(beyond)[0])[0, :, 0], [0, 255])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_every_mode_becomes_three_channels(mode):
    grey = np.full((4, 5), 51, dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 5), 51 * 257, dtype=np.uint16))
    else:
        image = Image.fromarray(grey).convert("RGB").convert("L" if mode == "I" else mode).convert(mode)
    tensor = to_tensor(image, signed=False)
    assert tensor.shape == (1, 3, 4, 5)
    if mode != "1":
        assert (tensor - 0.2).abs().max() < 0.01
        assert np.abs(np.asarray(to_rgb(image)).astype(int) - 51).max() <= 2


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.array([[[-0.5, 0.0, 1.0]]]), "must be in \\[0, 1\\]"),
        (torch.full((3, 2, 2), 1.5), "must be in \\[0, 1\\]"),
        (torch.full((3, 2, 2), float("nan")), "must be in \\[0, 1\\]"),
        (np.zeros((4, 4, 5)), "expected 3 channels"),
        ([np.zeros((4, 4, 3)), np.zeros((4, 5, 3))], "one size"),
        ([], "no images"),
        (np.zeros(3), "axes"),
    ],
)
def test_wrong_pictures_are_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        to_tensor(bad)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="got str"):
        to_tensor("cat.png")
    with pytest.raises(TypeError, match="int64"):
        to_tensor(torch.zeros(3, 2, 2, dtype=torch.int64))


# ------------------------------------------------------------------------------------------- loading


def marked():
    image = Image.new("RGB", (8, 6), "black")
    image.putpixel((0, 0), (255, 0, 0))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_loading_turns_the_picture_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    marked().save(tmp_path / "turned.png", exif=exif.tobytes())
    image = load_image(tmp_path / "turned.png")
    assert image.size == ((8, 6) if orientation < 5 else (6, 8))
    corner = {1: (0, 0), 2: (7, 0), 3: (7, 5), 4: (0, 5), 5: (0, 0), 6: (5, 0), 7: (5, 7), 8: (0, 7)}
    assert image.getpixel(corner[orientation]) == (255, 0, 0)


def test_transparent_parts_show_the_background(tmp_path):
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    image.save(tmp_path / "clear.png")
    shown = load_image(tmp_path / "clear.png")
    assert (shown.getpixel((0, 0)), shown.getpixel((1, 0))) == ((255, 255, 255), (10, 20, 30))
    assert load_image(tmp_path / "clear.png", background="blue").getpixel((0, 0)) == (0, 0, 255)
    assert load_image(tmp_path / "clear.png", background=None).getpixel((0, 0)) == (10, 20, 30)


def test_a_transparent_palette_is_flattened(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=0)
    shown = load_image(tmp_path / "p.png")
    assert (shown.getpixel((0, 0)), shown.getpixel((1, 0))) == ((255, 255, 255), (200, 0, 0))


def test_loading_from_files_and_images(tmp_path):
    data = io.BytesIO()
    marked().save(data, "PNG")
    data.seek(0)
    assert load_image(data) == load_image(marked()) == marked()


def test_a_url_is_only_fetched_when_asked(monkeypatch):
    with pytest.raises(ValueError, match="allow_url=True"):
        load_image("https://example.com/cat.png")
    with pytest.raises(ValueError, match="only http"):
        load_image("file:///etc/passwd", allow_url=True)

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(ConnectionError, match=r"could not fetch https://example\.com/cat\.png: no network"):
        load_image("https://example.com/cat.png", allow_url=True)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(OSError):
        load_image(tmp_path / "text.png")


# --------------------------------------------------------------------------------- grids and sheets


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([None, 5]))
@settings(max_examples=20)
def test_grid_is_row_by_row_as_the_reference(rows, cols, resize):
    reference = pytest.importorskip("diffusers.utils")
    images = [Image.new("RGB", (7, 4), (i, 2 * i, 3 * i)) for i in range(rows * cols)]
    grid = make_image_grid(images, rows, cols, resize)
    assert grid == reference.make_image_grid(images, rows, cols, resize)
    w, h = (resize, resize) if resize else (7, 4)
    assert grid.getpixel(((cols - 1) * w, (rows - 1) * h)) == images[-1].getpixel((0, 0))


def test_grid_that_is_not_full_is_refused():
    with pytest.raises(ValueError, match="3 pictures do not fill a grid of 2 rows and 2 columns"):
        make_image_grid([Image.new("RGB", (4, 4))] * 3, 2, 2)


@given(st.lists(st.text(max_size=60), min_size=1, max_size=6), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_contact_sheet_takes_any_captions(captions, cols):
    images = [Image.new("RGB", (40, 30 + i), "red") for i in range(len(captions))]
    sheet = contact_sheet(images, captions, cols)
    assert sheet.mode == "RGB"
    assert sheet.width == 8 + min(cols, len(images)) * 48
    assert sheet.getpixel((9, 8 + max(im.height for im in images[:cols]) - 1)) == (255, 0, 0)


def test_contact_sheet_wraps_long_prompts_and_scales_cells():
    images = [Image.new("RGB", (64, 64), "blue")] * 3
    short = contact_sheet(images, ["a circle"] * 3)
    long = contact_sheet(images, ["a red circle left of a blue square on a black background"] * 3)
    assert long.width == short.width
    assert long.height > short.height + 2 * 40
    assert contact_sheet(images, cell=128, columns=3).width == 8 + 3 * 136
    ink = np.asarray(long)[:, :, 0]
    assert (ink[8 + 64 + 8 :, -8:] == 255).all(), "no caption runs out of its cell"


def test_contact_sheet_errors():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
    with pytest.raises(ValueError, match="2 pictures, but 1 captions"):
        contact_sheet([Image.new("RGB", (4, 4))] * 2, ["x"])


def test_pictures_from_tensors_carry_their_settings():
    made = to_pictures(torch.zeros(2, 3, 4, 5), [{"seed": 7}, {"seed": 8}])
    assert all(isinstance(one, Picture) for one in made)
    assert [one.settings["seed"] for one in made] == [7, 8]
    with pytest.raises(ValueError, match="2 images, but settings for 1"):
        to_pictures(torch.zeros(2, 3, 4, 5), [{}])
