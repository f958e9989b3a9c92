"""Thousands of random pictures, and settings read from random files: each is taken, or refused in one documented line.

``LANGEVIN_FUZZ=20 pytest tests/media/test_media_fuzz.py`` tries twenty times as many. A case may take ten seconds, and
all together one gigabyte more than before.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

import langevin
from langevin.checkpoints import folders
from langevin.cli import again
from langevin.cli.errors import Failure, harmless
from langevin.cli.trust import Trust
from langevin.media.checks import masks, pictures
from langevin.media.framing import framed
from langevin.media.images import Picture, VaeImageProcessor, to_tensor
from langevin.media.recording import recorded, recorded_row, reread
from langevin.media.schema import TABLE, WrongSettings, check_settings
from langevin.media.settings import read_settings, settings_to_json, settings_to_text, text_to_settings
from tests.media.media_modes import MODES, of_mode

TIMES = float(os.environ.get("LANGEVIN_FUZZ", "1"))


def fuzz(examples, start=0):
    """Settings of one test: seeded, and so many cases times ``LANGEVIN_FUZZ``."""

    def decorated(test):
        how = settings(
            max_examples=max(1, round(examples * TIMES)),
            deadline=10_000,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        return seed(start)(how(test))

    return decorated


@pytest.fixture(autouse=True)
def within_a_gigabyte():
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before < 2**30


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def taken(call, *allowed):
    """What a call gives, or None where it refuses in one line with a documented kind of error."""
    kinds = allowed or (ValueError,)
    try:
        with quiet():
            return call()
    except kinds as error:
        said = str(error)
    assert said.strip(), "it says something"
    assert "\n" not in said
    return None


# ------------------------------------------------------------------------------------------------- pictures

SIDES = st.sampled_from([1, 2, 7, 8, 9, 16, 17, 24, 33])
DTYPES = "bool uint8 uint16 int8 int16 int32 int64 uint32 uint64 float16 float32 float64 longdouble complex64 >u2 >f4"
TORCH = "bool uint8 uint16 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 float8_e4m3fn"
RANGES = st.sampled_from([(0, 1), (0, 255), (0, 65535), (-1, 1), (-3, 3), (0, 1.005), (0, 0), (1, 1), (-1e30, 1e30)])


@st.composite
def arrays(draw):
    """A numpy array of some shape, kind of number, range and layout."""
    channels = draw(st.sampled_from([(), (1,), (2,), (3,), (4,), (5,), (0,)]))
    batch = draw(st.sampled_from([(), (), (1,), (2,), (0,), (1, 1)]))
    shape = (*batch, draw(SIDES), draw(SIDES), *channels)
    low, high = draw(RANGES)
    values = np.random.default_rng(draw(st.integers(0, 2**32))).uniform(low, high, shape)
    if values.size and draw(st.integers(0, 9)) == 0:
        values.flat[0] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    kind = draw(st.sampled_from([*DTYPES.split(), "O", "U", "M8[s]"]))
    with quiet():
        array = np.round(values).astype(np.int64).astype(kind) if kind == "M8[s]" else values.astype(kind)
    return draw(st.sampled_from([lambda a: a, lambda a: a[..., ::-1], lambda a: a.T, np.asfortranarray]))(array)


@st.composite
def tensors(draw):
    """A tensor of some shape, kind of number and range."""
    shape = (*draw(st.sampled_from([(), (1,), (2,), (3,), (4,), (5,), (1, 3), (2, 4), (1, 4), (0, 3), (1, 1, 3)])),)
    low, high = draw(RANGES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = (
        torch.rand((*shape, draw(SIDES), draw(SIDES)), generator=generator, dtype=torch.float64) * (high - low) + low
    )
    if values.numel() and draw(st.integers(0, 9)) == 0:
        values.view(-1)[0] = draw(st.sampled_from([float("nan"), float("inf")]))
    kind = draw(st.sampled_from(TORCH.split()))
    values = values.nan_to_num(0, 0, 0).clamp(-1e9, 1e9) if "int" in kind else values
    tensor = values.to(getattr(torch, kind))
    return (
        draw(st.sampled_from([lambda t: t, lambda t: t.requires_grad_(t.is_floating_point()), lambda t: t.to("meta")]))(
            tensor
        )
        if draw(st.integers(0, 9)) == 0
        else tensor
    )


@st.composite
def files(draw):
    """Bytes of a picture's file, whole or not."""
    noise = np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, 256, (draw(SIDES), draw(SIDES), 3), np.uint8)
    image = of_mode(draw(st.sampled_from(MODES)), Image.fromarray(noise))
    kind = draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "TGA", "ICO", "JPEG2000"]))
    how = {}
    if draw(st.booleans()):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(0, 9))
        how["exif"] = exif.tobytes()
    if draw(st.integers(0, 4)) == 0:
        how["transparency"] = draw(st.integers(0, 255))
    if draw(st.integers(0, 4)) == 0:
        how |= {"save_all": True, "append_images": [image.copy()]}
    data = io.BytesIO()
    try:
        with quiet():
            image.save(data, kind, **how)
    except Exception:  # not every format holds every mode
        data = io.BytesIO()
        Image.fromarray(noise).save(data, "PNG")
    return draw(damaged(data.getvalue()))


@st.composite
def damaged(draw, data):
    """Bytes as they are, cut off, or with a few of them changed."""
    how = draw(st.sampled_from(["whole", "whole", "cut", "changed"]))
    if how == "cut":
        return data[: draw(st.integers(0, len(data)))]
    if how == "changed":
        changed = bytearray(data)
        for _ in range(draw(st.integers(1, 8))):
            changed[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        return bytes(changed)
    return data


@st.composite
def images(draw):
    """A PIL image: made here, with values of any size, or opened from a file that may be broken."""
    how = draw(st.sampled_from(["made", "floats", "whole numbers", "empty", "file", "file", "closed"]))
    size = (draw(SIDES), draw(SIDES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    low, high = draw(RANGES)
    if how == "floats":
        return Image.fromarray(rng.uniform(low, high, size).astype(np.float32))
    if how == "whole numbers":
        return Image.fromarray(np.clip(rng.uniform(low, high, size), -(2**31), 2**31 - 1).astype(np.int32))
    if how == "empty":
        return Image.new(draw(st.sampled_from(["L", "RGB", "F"])), (0, size[1]))
    if how in ("file", "closed"):
        with contextlib.suppress(Exception), quiet():  # Pillow's own refusal to open it
            image = Image.open(io.BytesIO(draw(files())))
            if how == "closed":
                image.close()
            return image
    return of_mode(draw(st.sampled_from(MODES)), Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)))


ODD = st.sampled_from([None, "cat.png", b"x", 3, [], [[]], {}, object(), [None], iter(())])
ONE = st.one_of(arrays(), tensors(), images())
ANY = st.one_of(ONE, ONE, ONE, st.lists(ONE, min_size=1, max_size=3), st.lists(images(), min_size=2, max_size=3), ODD)
SIZE = st.sampled_from([None, None, 8, 16, 17, 40])


@fuzz(300)
@given(
    ANY,
    st.fixed_dictionaries(
        {
            "vae_scale_factor": st.sampled_from([1, 2, 8]),
            "vae_latent_channels": st.sampled_from([0, 4, 4, 16]),
            "do_resize": st.booleans(),
            "do_normalize": st.booleans(),
            "do_binarize": st.booleans(),
            "do_convert_rgb": st.booleans(),
        }
    ),
    st.booleans(),
    SIZE,
    SIZE,
    st.sampled_from(["default", "default", "fill", "crop"]),
    st.sampled_from([None, None, (0, 0, 8, 8), (3, 2, 12, 9), (-5, -5, 90, 90), (4, 4, 4, 4), (0, 0, 1, 1), "x"]),
)
def test_any_picture_becomes_numbers_in_range_or_one_line(image, options, grey, height, width, mode, box):
    options = {**options, "do_convert_rgb": False, "do_convert_grayscale": True} if grey else options
    processor = VaeImageProcessor(**options)
    got = taken(lambda: processor.preprocess(image, height, width, mode, box))
    if got is None:
        return
    assert got.ndim == 4
    assert torch.isfinite(got).all()
    if got.shape[1] != options["vae_latent_channels"]:
        assert got.abs().max() <= 1.03
        assert got.shape[1] in ((1, 2, 3, 4) if grey else (1, 3, 4))


@fuzz(300, 1)
@given(ANY, st.sampled_from([(0, 0, 8, 8), (1, 0, 8, 5), (0, 0, 1, 1)]))
def test_any_picture_mask_and_map_comes_into_one_form_or_one_line(image, box):
    shown = taken(lambda: pictures(image, latent_channels=4))
    if isinstance(shown, list):
        assert {one.mode for one in shown} == {"RGB"}
    elif shown is not None:
        assert shown.shape[1] in (3, 4)
        assert shown.shape[1] == 4 or shown.abs().max() <= 1.03
    hidden = taken(lambda: masks(image))
    if isinstance(hidden, list):
        assert {one.mode for one in hidden} == {"L"}
    elif hidden is not None:
        assert hidden.shape[1] == 1
        assert hidden.min() >= -0.02
        assert hidden.max() <= 1.03
    cut = taken(lambda: framed(image, box, (8, 8), 16, 24))
    assert cut is None or (cut.shape[1:] == (3, 16, 24) and cut.max() <= 1.03)
    numbers = taken(lambda: to_tensor(image))
    assert numbers is None or (numbers.dtype == torch.float32 and numbers.abs().max() <= 1.03)


@fuzz(300, 2)
@given(st.one_of(ANY, files(), files()), st.integers(0, 3))
def test_recording_never_raises_and_reads_back_what_a_pipeline_sees(tmp_path_factory, image, k):
    with quiet():
        if isinstance(image, bytes):
            path = tmp_path_factory.getbasetemp() / "recorded.bin"
            path.write_bytes(image)
            image = taken(lambda: Image.open(path), Exception)
        recorded_row(image, k, 4)
        record = recorded(image)
        json.loads(settings_to_json({"image": image, "record": record}))
        if isinstance(image, Image.Image) and record is not None:
            again = reread(json.loads(json.dumps(record)))
            assert pictures(again)[0].tobytes() == pictures(image)[0].tobytes()
            assert masks(again)[0].tobytes() == masks(image)[0].tobytes()
            assert recorded(again) == record


# ------------------------------------------------------------------------------------------------- settings

PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([0, 1, 7, 20, 64, 2**31, 2**63, 2**64, -1, 10**40]),
        st.floats(),
        st.text(max_size=12),
        st.text(st.characters(codec=None, categories=["Cc", "Cf", "Cs", "Zl"]), max_size=5),
        st.sampled_from(
            ["langevin/shapes", "evil/model", "/dev/zero", "..", "~", "Control", "ControlNetModel", "AAAA"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=6), inner, max_size=4),
        st.fixed_dictionaries({"file": inner, "sha256": inner}),
        st.fixed_dictionaries({"png": inner}),
        st.fixed_dictionaries({"network": inner, "from": inner}),
        st.fixed_dictionaries({"items": inner}),
        st.fixed_dictionaries({"class": inner}),
    ),
    max_leaves=12,
)
NAMES = st.one_of(st.sampled_from([*TABLE, "image", "mask_image", "thresholds"]), st.text(max_size=8))
GOOD = {
    "langevin": langevin.__version__,
    "pipeline": "StableDiffusionPipeline",
    "model": "langevin/shapes",
    "scheduler": "DDIMScheduler",
    "seed": 7,
    "prompt": "a",
}
SETTINGS = st.dictionaries(NAMES, PLAIN, max_size=6)
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            ["Steps: 20", "Seed: -1", "Size: 9x9", "\n", ", ", "Sampler: Euler a", '"', "{", "Hashes: {", ":"]
        )
    ).map("".join),
)


def call(
    prompt=None,
    image=None,
    mask_image=None,
    num_inference_steps=50,
    guidance_scale=7.5,
    thresholds=None,
    guiders=(),
    control=(),
):
    """Takes what a pipeline takes."""


PIPELINE = SimpleNamespace(__call__=call)


@pytest.fixture(scope="module")
def shelf():
    """A shelf that is looked at in no time."""
    before = folders.local_models
    folders.local_models = lambda cache_dir=None: [folders.Found("good/model", folders.BOX / "shapes", "x", 1)]
    yield
    folders.local_models = before


@fuzz(300, 3)
@given(SETTINGS, st.booleans())
def test_any_settings_are_followed_or_refused_in_one_line(shelf, given_, ours):
    given_ = {**(GOOD if ours else {}), **given_}
    checked = taken(lambda: check_settings(given_), WrongSettings)
    if checked is None:
        return
    steps = checked.get("num_inference_steps") or 1
    assert 1 <= steps <= 10_000

    def follow():
        trust = Trust(checked, None, False)
        with again._fitting():
            return again._arguments(PIPELINE, {"seed": 0, **checked}, trust)

    taken(follow, Failure, ValueError)  # among them a guider's own refusals of its numbers


@fuzz(300, 4)
@given(
    st.one_of(
        SETTINGS.map(lambda one: (settings_to_json(one), settings_to_text(one))),
        st.tuples(TEXTS, TEXTS),
        SETTINGS.map(lambda one: (json.dumps(one)[:-1], "")),
    ),
    st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]),
    st.data(),
)
def test_any_file_gives_settings_or_one_line(tmp_path_factory, texts, kind, data):
    from PIL.PngImagePlugin import PngInfo

    from langevin.media.picture import _writable, exif_text

    info, how = PngInfo(), {}
    if kind == "PNG":
        for name, text in zip(("langevin", "parameters"), texts, strict=True):
            info.add_text(name, _writable(text), zip=data.draw(st.booleans()))
        how["pnginfo"] = info
    elif kind == "GIF":
        how["comment"] = _writable(texts[1]).encode()[:200]
    else:
        with quiet():
            how["exif"] = exif_text({"x": texts[0], "prompt": texts[1]})
    image = io.BytesIO()
    Image.new("RGB", (9, 9)).save(image, kind, **how)
    path = tmp_path_factory.getbasetemp() / "fuzz.bin"
    path.write_bytes(data.draw(damaged(image.getvalue())))
    found = taken(lambda: read_settings(path), ValueError, Image.UnidentifiedImageError)
    assert found is None or isinstance(found, dict)
    if found:
        shown = harmless(json.dumps(found, ensure_ascii=False))
        assert all(c.isprintable() or c in "\n\t" or ord(c) >= 0xA0 for c in shown)
        assert json.loads(shown, parse_int=str) == json.loads(json.dumps(found), parse_int=str)
        taken(lambda: check_settings(found), WrongSettings)


@fuzz(300, 5)
@given(SETTINGS)
def test_any_settings_can_be_saved(given_):
    image = io.BytesIO()
    with quiet():
        Picture(Image.new("RGB", (4, 4)), given_).save(image, "PNG")
    image.seek(0)
    assert isinstance(read_settings(image), dict)
    assert isinstance(text_to_settings(settings_to_text(given_)), dict)
