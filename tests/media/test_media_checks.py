"""What comes in as a picture or a mask: every kind is understood, and whatever is wrong ends in one line."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from langevin.media.checks import masks, pictures
from langevin.media.crops import check_box, crop_to_box, scaled_box
from langevin.media.framing import framed
from langevin.media.images import VaeImageProcessor, load_image
from langevin.media.load import WrongPicture, opened
from tests.media.media_modes import COLOURS, MODES, of_mode

RNG = np.random.default_rng(0)
RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)  # those of COLOURS
GREY = RNG.integers(2, 256, (24, 32), dtype=np.uint8)


def saved(image, format="PNG", **how):
    image.save(data := io.BytesIO(), format, **how)
    return data.getvalue()


def reopened(data):
    return Image.open(io.BytesIO(data))


def one_line(error):
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


# ----------------------------------------------------------------------------------------------- PIL images


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [{}, {"do_convert_rgb": True}, {"do_convert_grayscale": True}], ids=str)
def test_every_mode_becomes_numbers_of_its_colours(mode, options):
    image = of_mode(mode)
    got = VaeImageProcessor(do_normalize=False, do_resize=False, **options).preprocess(image)
    assert got.shape[2:] == (24, 32)
    assert (got >= 0).all()
    assert (got <= 1).all()
    colourful = mode not in ("1", "L", "LA", "La", "I", "I;16", "F") and not options.get("do_convert_grayscale")
    want = COLOURS if colourful else np.asarray(Image.fromarray(COLOURS).convert("L"))[..., None]
    apart = np.abs(got[:, :3].numpy() * 255 - want.transpose(2, 0, 1)[None])
    close = 3 if mode not in ("P", "PA", "1", "YCbCr", "HSV", "LAB") else 128
    assert apart.mean() <= close


@pytest.mark.parametrize("mode", MODES)
def test_pictures_and_masks_take_every_mode(mode):
    image = of_mode(mode)
    assert pictures(image)[0].mode == "RGB"
    assert masks([image, image])[1].mode == "L"
    assert pictures(image)[0].size == (32, 24)


def test_one_bit_pictures_are_black_and_white():
    image = Image.new("1", (8, 8), 1)
    assert VaeImageProcessor(do_normalize=False).preprocess(image).unique().tolist() == [1.0]


def test_a_palette_shows_its_colours_not_its_numbers():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    got = VaeImageProcessor(do_normalize=False).preprocess(image)
    assert (got[0, :, 0, 0] * 255).round().tolist() == [200, 100, 50]


def test_floats_of_pil_in_0_to_1_are_told():
    image = Image.fromarray(GREY.astype(np.float32) / 255)
    with pytest.warns(UserWarning, match=r"was taken to be in \[0, 1\]"):
        got = VaeImageProcessor(do_normalize=False).preprocess(image)
    assert torch.allclose(got[0, 0], torch.from_numpy(GREY).float() / 255, atol=1e-6)
    quiet = Image.fromarray(GREY.astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(
            VaeImageProcessor(do_normalize=False).preprocess(quiet)[0, 0] * 255, torch.tensor(GREY) * 1.0
        )


def test_floats_of_pil_stay_in_range_when_they_are_resized():
    """Beyond black they were taken for a picture in [-1, 1], and came out twice as bright."""
    edge = np.zeros((16, 16), np.float32)
    edge[:, 8:] = 255
    got = VaeImageProcessor().preprocess(Image.fromarray(edge), 40, 40)
    assert got.min() == -1
    assert got.max() == 1


def test_of_an_animation_the_first_frame_is_used_and_said():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="animation of 3 frames; its first"):
        (shown,) = pictures(reopened(data))
    assert shown.getpixel((3, 3)) == (255, 0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = reopened(data)
        second.seek(1)
        assert pictures(second)[0].getpixel((3, 3)) == (0, 255, 0), "chosen by the caller"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_file_is_upright_however_it_comes_in(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(tmp_path / "turned.png", exif=exif.tobytes())
    upright = load_image(tmp_path / "turned.png")
    with Image.open(tmp_path / "turned.png") as image:
        assert pictures(image)[0].tobytes() == upright.tobytes()
        turned_by_hand = image.rotate(90, expand=True)
    assert pictures(turned_by_hand)[0].size == turned_by_hand.size, "what somebody turned stays as they left it"


def test_sizes_and_modes_may_be_mixed_in_a_list():
    mixed = [of_mode("L"), of_mode("RGBA").resize((40, 40)), of_mode("CMYK")]
    assert VaeImageProcessor().preprocess(mixed).shape == (3, 3, 24, 32)
    assert [one.size for one in pictures(mixed)] == [(32, 24), (40, 40), (32, 24)]
    with pytest.raises(ValueError, match="one size"):
        VaeImageProcessor(do_resize=False).preprocess(mixed)


def broken(kind, tmp_path):
    data = saved(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    if kind == "closed":
        image = reopened(data)
        image.close()
    elif kind == "closed before it was read":
        (tmp_path / "x.png").write_bytes(data)
        with Image.open(tmp_path / "x.png") as image:
            pass
    elif kind == "truncated":
        image = reopened(data[: len(data) // 2])
    elif kind == "damaged":
        image = reopened(data[:60] + b"\xff\x00" * 200 + data[460:])
    else:
        image = Image.new("RGB", (0, 5))
    return image


@pytest.mark.parametrize("kind", ["closed", "closed before it was read", "truncated", "damaged", "empty"])
def test_broken_pictures_are_refused_in_one_line(kind, tmp_path):
    for call in (VaeImageProcessor().preprocess, pictures, masks, opened):
        with pytest.raises(ValueError, match=r"cannot be read|0 x 5 pixels") as error:
            call(broken(kind, tmp_path))
        one_line(error)


def test_huge_files_are_refused_before_they_are_unpacked(monkeypatch, tmp_path):
    data = saved(Image.new("RGB", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match="too many to be opened") as error,
    ):
        pictures(reopened(data))
    assert "100 x 100" in one_line(error)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(ValueError, match="too large") as error:
        load_image(tmp_path / "bomb.png")
    assert "bomb.png" in one_line(error)


def test_a_truncated_file_is_refused_by_name(tmp_path):
    data = saved(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"half\.png cannot be read .*truncated") as error:
        load_image(tmp_path / "half.png")
    one_line(error)


# ------------------------------------------------------------------------------------------ arrays and tensors


@pytest.mark.parametrize(
    "same",
    [
        COLOURS.astype(np.uint16) * 257,
        COLOURS.astype(">u2") * 257,
        (COLOURS / 255).astype(np.float32),
        COLOURS / np.longdouble(255),
        np.flipud(np.flipud(COLOURS)),
        np.concatenate([COLOURS, COLOURS[..., :1]], axis=2),
        torch.from_numpy(COLOURS).permute(2, 0, 1),
        torch.from_numpy(np.concatenate([COLOURS, COLOURS[..., :1]], axis=2)).permute(2, 0, 1),
        [COLOURS],
        COLOURS[None],
    ],
    ids=lambda one: f"{type(one).__name__}-{getattr(one, 'dtype', '')}-{getattr(one, 'shape', '')}",
)
def test_every_kind_of_number_is_the_same_picture(same):
    want = VaeImageProcessor().preprocess(Image.fromarray(COLOURS))
    assert torch.allclose(VaeImageProcessor().preprocess(same).float(), want, atol=1e-6)
    assert torch.allclose(VaeImageProcessor().preprocess(pictures(same, latent_channels=4)).float(), want, atol=1e-6)


def test_only_floats_can_be_latents():
    """A picture with alpha as uint8 has as many channels as latents, and became one of 256 x 256 pixels."""
    rgba = torch.from_numpy(np.dstack([COLOURS, GREY])).permute(2, 0, 1)
    assert VaeImageProcessor().preprocess(rgba).shape == (1, 3, 24, 32)
    assert pictures(rgba, latent_channels=4).shape == (1, 3, 24, 32)
    assert pictures(np.dstack([COLOURS, GREY]), latent_channels=4).shape == (1, 3, 24, 32)
    latents = torch.randn(1, 4, 8, 8)
    assert VaeImageProcessor().preprocess(latents) is latents or torch.equal(
        VaeImageProcessor().preprocess(latents), latents
    )
    assert torch.equal(pictures(latents, latent_channels=4), latents)
    with pytest.raises(ValueError, match="some are latents"):
        VaeImageProcessor().preprocess([torch.randn(4, 24, 32), rgba])


@pytest.mark.parametrize("shape", [(24, 32), (24, 32, 1), (1, 24, 32, 1)])
def test_grey_arrays_become_rgb_where_that_is_asked_for(shape):
    got = VaeImageProcessor(do_convert_rgb=True, do_normalize=False).preprocess(GREY.reshape(shape))
    assert got.shape == (1, 3, 24, 32)
    assert torch.equal(got[0, 0], got[0, 2])
    assert pictures(GREY.reshape(shape)).shape == (1, 3, 24, 32)


WRONG = {
    "0..255": (np.full((16, 16, 3), 200.0), r"from 200 to 200; floats must be in \[0, 1\].*divide"),
    "-1000": (torch.full((3, 16, 16), -1000.0), "from -1000"),
    "nan": (np.full((16, 16, 3), np.nan), "NaN or infinity"),
    "infinity": (torch.full((3, 16, 16), float("inf")), "NaN or infinity"),
    "nan latents": (torch.full((4, 16, 16), float("nan")), "NaN or infinity"),
    "int64": (np.zeros((16, 16, 3), np.int64), "int64"),
    "complex": (np.zeros((16, 16, 3), complex), "complex128"),
    "complex tensor": (torch.zeros(3, 16, 16, dtype=torch.complex64), "complex64"),
    "text": (np.full((16, 16, 3), "a"), "<U1"),
    "objects": (np.full((16, 16, 3), None), "object"),
    "five channels": (np.zeros((16, 16, 5)), "expected 3 channels"),
    "no axes": (np.zeros(()), "2 to 4 axes"),
    "five axes": (torch.zeros(1, 1, 3, 16, 16), "2 to 4 axes"),
    "empty": (np.zeros((0, 16, 3)), "none of them empty"),
    "meta": (torch.zeros(3, 16, 16, device="meta"), "cannot be read"),
    "sparse": (torch.zeros(16, 16).to_sparse(), "cannot be read"),
    "nothing": (None, "got NoneType"),
    "a path": ("cat.png", "got str"),
    "no pictures": ([], "empty list"),
    "a list of lists": ([[Image.new("RGB", (16, 16))]], "got list"),
    "mixed kinds": ([Image.new("RGB", (16, 16)), np.zeros((16, 16, 3))], "all of one kind"),
    "mixed sizes": ([np.zeros((16, 16, 3)), np.zeros((16, 24, 3))], "one shape"),
    "F beyond": (Image.fromarray(np.full((16, 16), 300, np.float32)), "mode 'F'"),
    "F nan": (Image.fromarray(np.full((16, 16), np.nan, np.float32)), "mode 'F'"),
    "I beyond": (Image.fromarray(np.full((16, 16), 70000, np.int32)), "0..65535"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_ends_in_one_line(what):
    image, words = WRONG[what]
    for call in (VaeImageProcessor().preprocess, lambda one: pictures(one, latent_channels=4)):
        with pytest.raises(WrongPicture, match=words) as error:
            call(image)
        assert isinstance(error.value, ValueError)
        one_line(error)


# ------------------------------------------------------------------------------------------------------ masks

HALF = np.zeros((16, 16), np.uint8)
HALF[:, :8] = 1


def read(mask):
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    return processor.preprocess(masks(mask))


@pytest.mark.parametrize(
    "mask",
    [
        HALF,
        HALF * 255,
        HALF.astype(bool),
        HALF.astype(np.int64),
        HALF.astype(np.uint16) * 65535,
        HALF.astype(np.float32),
        HALF[..., None],
        HALF[None],
        np.dstack([HALF * 255] * 3),
        np.dstack([HALF * 0 + 255] * 3 + [HALF * 255]),
        torch.from_numpy(HALF),
        torch.from_numpy(HALF)[None, None],
        torch.from_numpy(HALF).long(),
        torch.from_numpy(HALF).bool(),
        [torch.from_numpy(HALF)],
        Image.fromarray(HALF),
        Image.fromarray(HALF * 255),
        Image.fromarray(HALF.astype(bool)),
        Image.fromarray(np.dstack([HALF * 255] * 3)),
        Image.fromarray(np.dstack([HALF * 0 + 255] * 3 + [HALF * 255])),
        Image.fromarray(np.dstack([HALF * 0 + 255, HALF * 255]), "LA"),
        Image.fromarray(HALF.astype(np.uint16) * 65535),
    ],
    ids=lambda one: (
        f"{type(one).__name__}-{getattr(one, 'dtype', getattr(one, 'mode', ''))}-{getattr(one, 'shape', '')}"
    ),
)
def test_one_mask_in_many_forms(mask):
    got = read(mask)
    assert got.shape == (1, 1, 16, 16)
    assert torch.equal(got[0, 0], torch.from_numpy(HALF).float())


def test_the_processor_alone_masks_with_zeros_and_ones_too():
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    for mask in (HALF, torch.from_numpy(HALF), Image.fromarray(HALF), HALF.astype(bool), HALF.astype(np.int64)):
        assert torch.equal(processor.preprocess(mask)[0, 0], torch.from_numpy(HALF).float())


def test_a_transparent_palette_counts_its_alpha():
    image = Image.new("P", (16, 16), 0)
    image.putpalette([255, 255, 255, 255, 255, 254])
    image.paste(1, (0, 0, 8, 16))
    (got,) = masks(reopened(saved(image, transparency=0)))
    assert np.array_equal(np.asarray(got) > 127, HALF.astype(bool))


def test_the_box_around_a_mask_and_the_overlay_count_its_alpha_too():
    layer = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    layer.paste("white", (2, 3, 6, 7))
    processor = VaeImageProcessor()
    assert processor.get_crop_region(layer, 16, 16) == (2, 3, 6, 7)
    laid = processor.apply_overlay(layer, Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue"))
    assert (laid.getpixel((3, 4)), laid.getpixel((10, 10))) == ((0, 0, 255), (255, 0, 0))


@pytest.mark.parametrize("size", [(8.5, None), (None, "8"), (-8, 8)])
def test_sizes_are_whole_numbers(size):
    with pytest.raises(ValueError, match=r"whole number|too small"):
        VaeImageProcessor().preprocess(COLOURS, *size)
    assert VaeImageProcessor().preprocess(COLOURS, np.int64(8), np.uint8(16)).shape == (1, 3, 8, 16)


def test_stacks_are_several_masks():
    stack = np.stack([HALF, 1 - HALF])
    for several in (stack, torch.from_numpy(stack), [HALF, 1 - HALF], [torch.from_numpy(stack)]):
        assert read(several).shape == (2, 1, 16, 16)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.full((16, 16), 7, np.int64), "zeros and ones"),
        (np.full((16, 16), -0.5), "from -0.5"),
        (np.full((16, 16), 255.0), "divide"),
        (torch.full((16, 16), float("nan")), "NaN"),
        (None, "got NoneType"),
    ],
)
def test_wrong_masks_are_refused_by_name(mask, words):
    with pytest.raises(WrongPicture, match=words) as error:
        masks(mask)
    assert one_line(error).startswith("mask_image")


# ------------------------------------------------------------------------------------------------------ crops


@pytest.mark.parametrize("own", [(64, 48), (128, 96), (32, 24), (100, 48)])
@pytest.mark.parametrize("box", [(8, 8, 40, 40), (0, 0, 64, 20), (30, 4, 44, 46)])
def test_a_further_map_is_cut_as_the_picture_is(own, box):
    """Of a map that shows the same scene in whatever size, the same part comes to lie on the same place."""
    columns, rows = np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 48))
    scene = Image.fromarray(np.dstack([columns, rows, columns * 0]).astype(np.uint8))
    processor = VaeImageProcessor(do_normalize=False)
    want = processor.preprocess(scene, 32, 32, "fill", crops_coords=box)
    map_ = scene.resize(own)
    for kind in (map_, np.asarray(map_), torch.from_numpy(np.array(map_)).permute(2, 0, 1), [map_]):
        got = framed(kind, box, scene.size, 32, 32)
        assert got.shape == (1, 3, 32, 32)
        inner = (got - want).abs()[:, :, 2:-2, 2:-2]
        assert inner.mean() < 0.03
    assert torch.equal(framed(scene, box, scene.size, 32, 32), want)


def test_boxes_are_scaled_and_checked():
    assert scaled_box((0, 0, 32, 24), (64, 48), (128, 96)) == (0, 0, 64, 48)
    assert scaled_box((63, 47, 64, 48), (64, 48), (8, 8)) == (7, 7, 8, 8)
    assert check_box([np.int64(1), 2, 3, 4]) == (1, 2, 3, 4)
    for wrong in ((1, 2, 3), (4, 0, 4, 5), (0.5, 0, 4, 4), "abcd", None):
        with pytest.raises(ValueError, match="the box is"):
            check_box(wrong)
    with pytest.raises(ValueError, match="inside the picture, which is 8 x 8"):
        crop_to_box(Image.new("L", (8, 8)), (0, 0, 9, 8))


def test_arrays_and_tensors_are_cropped_too():
    box = (3, 4, 27, 20)
    want = VaeImageProcessor(do_resize=False).preprocess(Image.fromarray(COLOURS), crops_coords=box)
    assert torch.equal(VaeImageProcessor(do_resize=False).preprocess(COLOURS, crops_coords=box), want)
