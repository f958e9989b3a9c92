"""VaeImageProcessor against diffusers: same numbers for every option, clearer errors."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from langevin.media.images import VaeImageProcessor

oracle = pytest.importorskip("diffusers.image_processor")
RNG = np.random.default_rng(0)


def picture(width, height, mode="RGB"):
    noise = Image.fromarray(RNG.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    return noise.convert(mode)


def same(options, call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = call(oracle.VaeImageProcessor(**options))
        got = call(VaeImageProcessor(**options))
    assert type(got) is type(want)
    if isinstance(want, torch.Tensor):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert torch.equal(got, want)
    elif isinstance(want, np.ndarray):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    elif isinstance(want, Image.Image):
        assert got.mode == want.mode
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
    else:
        assert got == want


PICTURES = {
    "rgb": picture(37, 21),
    "grey": picture(37, 21, "L"),
    "alpha": picture(37, 21, "RGBA"),
    "two": [picture(37, 21), picture(37, 21)],
    "of-two-sizes": [picture(37, 21), picture(48, 30)],
    "array": RNG.random((37, 21, 3), dtype=np.float32),
    "arrays": RNG.random((2, 37, 21, 3), dtype=np.float32),
    "list-of-arrays": [RNG.random((37, 21, 3), dtype=np.float32)] * 2,
    "list-of-batches": [RNG.random((2, 37, 21, 3), dtype=np.float32)] * 2,
    "double-array": RNG.random((37, 21, 3)),
    "flat-array": RNG.random((37, 21), dtype=np.float32),
    "tensor": torch.rand(3, 37, 21),
    "tensors": torch.rand(2, 3, 37, 21),
    "list-of-tensors": [torch.rand(3, 37, 21)] * 2,
    "list-of-tensor-batches": [torch.rand(2, 3, 37, 21)] * 2,
    "half": torch.rand(1, 3, 37, 21).half(),
    "latents": torch.randn(2, 4, 5, 7),
    "one-latent": torch.randn(4, 5, 7),
    "signed": torch.rand(1, 3, 37, 21) * 2 - 1,
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(
    "options",
    [{}, {"do_normalize": False}, {"vae_scale_factor": 2}, {"do_binarize": True, "do_normalize": False}],
    ids=lambda o: "-".join(o) or "plain",
)
def test_preprocess_every_kind(name, options):
    same(options, lambda p: p.preprocess(PICTURES[name]))


@pytest.mark.parametrize(
    "options",
    [{"resample": r} for r in ("bilinear", "linear", "bicubic", "lanczos", "nearest")]
    + [
        {"reducing_gap": 2},
        {"do_convert_rgb": True},
        {"do_convert_grayscale": True},
        {"vae_scale_factor": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["rgb", "alpha", "grey"])
def test_preprocess_options(options, name):
    same(options, lambda p: p.preprocess(PICTURES[name], 19, 50))
    same(options, lambda p: p.preprocess(PICTURES[name], width=17))


@pytest.mark.parametrize("mode", ["fill", "crop", "default"])
@pytest.mark.parametrize("size", [(16, 16), (40, 24), (24, 48), (8, 64), (64, 8), (31, 57), (57, 31)])
@pytest.mark.parametrize("own", [(37, 21), (21, 37), (16, 16), (100, 13), (64, 96)])
def test_resize_modes(mode, size, own):
    image = picture(*own)
    same({"vae_scale_factor": 1}, lambda p: p.resize(image, *size, mode))
    same({}, lambda p: p.preprocess(image, 16, 24, mode))


@pytest.mark.parametrize("shape", [(24, 16), (1, 24, 16), (2, 24, 16), (1, 1, 24, 16), (1, 3, 24, 16)])
def test_grey_masks_as_tensors(shape):
    options = {"do_convert_grayscale": True, "do_normalize": False, "do_binarize": True}
    mask = torch.rand(shape)
    same(options, lambda p: p.preprocess(mask.clone()))
    if len(shape) < 4:
        same(options, lambda p: p.preprocess([mask.clone()] * 2))


@pytest.mark.parametrize("shape", [(24, 16), (2, 24, 16), (24, 16, 1), (1, 24, 16, 1), (1, 24, 16, 3)])
def test_grey_masks_as_arrays(shape):
    options = {"do_convert_grayscale": True, "do_normalize": False, "do_binarize": True}
    mask = RNG.random(shape, dtype=np.float32)
    same(options, lambda p: p.preprocess(mask.copy()))


def test_crops_coords():
    same({}, lambda p: p.preprocess(PICTURES["rgb"], 16, 16, crops_coords=(3, 4, 22, 20)))
    same({}, lambda p: p.preprocess(PICTURES["rgb"], 16, 16, "crop", (3, 4, 22, 20)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("options", [{}, {"do_normalize": False}], ids=str)
def test_postprocess(dtype, channels, output_type, options):
    x = (torch.rand(2, channels, 8, 9) * 2.4 - 1.2).to(dtype)
    if options:
        x = x.clamp(0, 1)
    same(options, lambda p: p.postprocess(x, output_type))
    same(options, lambda p: p.postprocess(x.clamp(0, 1), output_type, [True, False]))


def test_helpers():
    arrays = RNG.random((2, 5, 6, 3), dtype=np.float32)
    same({}, lambda p: p.numpy_to_pil(arrays))
    same({}, lambda p: p.numpy_to_pt(arrays))
    same({}, lambda p: p.pt_to_numpy(torch.from_numpy(arrays)))
    same({}, lambda p: p.pil_to_numpy(PICTURES["two"]))
    same({}, lambda p: p.blur(PICTURES["rgb"], 3))
    same({}, lambda p: p.normalize(arrays))
    same({}, lambda p: p.denormalize(torch.from_numpy(arrays * 3 - 1.5)))
    for name in ("rgb", "arrays", "tensors"):
        same({}, lambda p, name=name: p.get_default_height_width(PICTURES[name]))
        same({}, lambda p, name=name: p.get_default_height_width(PICTURES[name], 100, 43))


@pytest.mark.parametrize("box", [(20, 10, 30, 33), (0, 0, 3, 47), (60, 40, 64, 48), (0, 0, 64, 48), (5, 5, 60, 9)])
@pytest.mark.parametrize("target", [(32, 32), (64, 32), (32, 64), (10, 64)])
@pytest.mark.parametrize("pad", [0, 4, 40])
def test_crop_region(box, target, pad):
    mask = Image.new("L", (64, 48))
    mask.paste(255, box)
    same({}, lambda p: p.get_crop_region(mask, *target, pad))


def test_crop_region_of_an_empty_mask_is_the_whole_picture():
    assert VaeImageProcessor().get_crop_region(Image.new("L", (64, 48)), 32, 24) == (0, 0, 64, 48)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("crop", [None, (10, 8, 30, 40)])
def test_overlay(mode, crop):
    mask, original = picture(50, 60, "L"), picture(50, 60, mode)
    made = picture(50, 60) if crop is None else picture(16, 24)
    same({}, lambda p: p.apply_overlay(mask, original, made, crop))


def test_16_bit_grey_keeps_its_tones():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    image = Image.fromarray(np.tile(ramp, (16, 1)))
    got = VaeImageProcessor(do_normalize=False).preprocess(image)
    assert torch.allclose(got[0, 0, 3], torch.from_numpy(ramp / 65535).float(), atol=0.003)


def test_uint8_arrays_are_scaled():
    pixels = RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    processor = VaeImageProcessor()
    assert torch.equal(processor.preprocess(pixels), processor.preprocess(Image.fromarray(pixels)))
    assert torch.equal(processor.preprocess(torch.from_numpy(pixels).permute(2, 0, 1)), processor.preprocess(pixels))


def test_input_is_not_changed():
    mask = torch.rand(1, 1, 16, 16)
    before = mask.clone()
    VaeImageProcessor(do_binarize=True, do_normalize=False).preprocess(mask)
    assert torch.equal(mask, before)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: p.preprocess("cat.png"), "got str"),
        (lambda p: p.preprocess([]), "empty list"),
        (lambda p: p.preprocess([picture(8, 8), np.zeros((8, 8, 3))]), "Image, ndarray"),
        (lambda p: p.preprocess(picture(4, 4)), "at least 8 x 8"),
        (lambda p: p.preprocess(torch.rand(1, 3, 4, 4)), "at least 8 x 8"),
        (lambda p: p.preprocess(picture(16, 16), resize_mode="stretch"), "default, fill or crop"),
        (lambda p: p.preprocess(torch.rand(3, 16, 16), resize_mode="fill"), "for PIL images"),
        (lambda p: p.preprocess([torch.rand(3, 16, 16), torch.rand(3, 16, 24)]), "one shape"),
        (lambda p: p.postprocess(np.zeros((1, 8, 8, 3))), "takes a tensor"),
        (lambda p: p.postprocess(torch.rand(1, 3, 8, 8), "jpg"), "pil, np, pt or latent"),
        (lambda p: p.postprocess(torch.rand(2, 3, 8, 8), "pt", [True]), "1 entries"),
        (lambda p: VaeImageProcessor(resample="sinc"), "lanczos"),
        (lambda p: VaeImageProcessor(do_convert_rgb=True, do_convert_grayscale=True), "exclude"),
    ],
)
def test_errors_say_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call(VaeImageProcessor())
