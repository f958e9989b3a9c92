"""Settings as text both ways, in files both ways, and whatever other programs (or nobody) wrote."""

import io
import json

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from langevin.media.picture import Picture
from langevin.media.settings import (
    LABELS,
    SAMPLERS,
    SCHEDULE_TYPES,
    decode_user_comment,
    encode_user_comment,
    json_to_settings,
    read_settings,
    sampler_of,
    scheduler_of,
    settings_to_json,
    settings_to_text,
    text_to_settings,
)

FULL = {
    "langevin": "0.1.0",
    "pipeline": "StableDiffusionPipeline",
    "model": "langevin/shapes",
    "prompt": 'a red circle, left of: a "blue" square\nsecond line 🎨 é',
    "negative_prompt": "blurry, ugly\n\nbad: hands",
    "num_inference_steps": 20,
    "guidance_scale": 7.5,
    "guidance_rescale": 0.0,
    "eta": 0.0,
    "clip_skip": 1,
    "seed": 7,
    "height": 64,
    "width": 96,
    "scheduler": "DPMSolverMultistepScheduler",
    "scheduler_config": {"use_karras_sigmas": True},
    "dtype": "float32",
    "device": "cpu",
}

# What A1111 1.9 wrote for real pictures (prompts shortened).
A1111 = """masterpiece, (best quality:1.2), girl with cat, <lora:soft:0.6>
walking in rain
Negative prompt: lowres, bad anatomy, [text]
Steps: 28, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 6.5, Seed: 2930462571, Size: 512x768, \
Model hash: 4199bcdd14, Model: revAnimated_v122, Denoising strength: 0.45, Clip skip: 2, Hires upscale: 2, \
Hires upscaler: 4x_NMKD-Superscale, Lora hashes: "soft: 7e8f3d2c1b0a, hard: 0011", TI hashes: "a: b", \
Version: v1.9.4"""


def test_text_is_laid_out_as_a1111_writes_it():
    assert settings_to_text(FULL) == (
        'a red circle, left of: a "blue" square\nsecond line 🎨 é\n'
        "Negative prompt: blurry, ugly\n\nbad: hands\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 7, Size: 96x64, "
        "Model: langevin/shapes, Eta: 0.0, Clip skip: 2, pipeline: StableDiffusionPipeline, "
        "guidance_rescale: 0.0, dtype: float32, device: cpu, Version: langevin 0.1.0"
    )
    assert text_to_settings(settings_to_text(FULL)) == FULL


def test_text_of_a1111_is_understood():
    got = text_to_settings(A1111)
    assert got["prompt"].endswith("<lora:soft:0.6>\nwalking in rain")
    assert got["negative_prompt"] == "lowres, bad anatomy, [text]"
    wanted = {
        "num_inference_steps": 28,
        "guidance_scale": 6.5,
        "seed": 2930462571,
        "width": 512,
        "height": 768,
        "model": "revAnimated_v122",
        "strength": 0.45,
        "clip_skip": 1,
        "scheduler": "DPMSolverMultistepScheduler",
        "scheduler_config": {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
        "Model hash": "4199bcdd14",
        "Lora hashes": "soft: 7e8f3d2c1b0a, hard: 0011",
        "Hires upscale": 2,
        "Version": "v1.9.4",
    }
    assert {key: got.get(key) for key in wanted} == wanted
    assert text_to_settings(settings_to_text(got)) == got


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Steps: 20, Sampler: Euler a, CFG scale: 7", {"scheduler": "EulerAncestralDiscreteScheduler"}),
        ("Negative prompt: x\nSteps: 20, Sampler: DDIM, Seed: 1", {"prompt": "", "negative_prompt": "x"}),
        ("just a prompt, nothing: else", {"prompt": "just a prompt, nothing: else"}),
        ("x\nSteps: 1, Sampler: LMS Karras, Seed: 3", {"scheduler_config": {"use_karras_sigmas": True}}),
        ("x\nSteps: 1, Sampler: DPM slow, Seed: 3", {"scheduler": "DPM slow"}),
        (
            'x\nSteps: 1, Seed: 3, Hashes: {"vae": "a, b", "m": "1"}, B b: 2',
            {"Hashes": {"vae": "a, b", "m": "1"}},
        ),
        ('x\nSteps: 1, Seed: 3, Hashes: {"vae": "a, b", "m": "1"}, B b: 2', {"B b": 2}),
        (
            "x\nSteps: 1, Seed: 3, Size: 5x6\nTemplate: a {b|c}, d: e",
            {"Template": "a {b|c}, d: e", "height": 6},
        ),
        ("x\r\nSteps: 1, Seed: 3, Size: 5x6\r\n", {"prompt": "x", "width": 5}),
        ("", {"prompt": ""}),
    ],
)
def test_text_in_other_shapes(text, wanted):
    got = text_to_settings(text)
    assert {key: got.get(key) for key in wanted} == wanted


# ------------------------------------------------------------------------------------------- round trips

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
prompts = text.filter(lambda t: not any(line.startswith("Negative prompt:") for line in t.split("\n")))
number = st.integers(-(10**12), 10**12) | st.floats(allow_nan=False)
RESERVED = {*LABELS.values(), "Sampler", "Schedule type", "Size", "Clip skip", "Version", "Eta DDIM", *FULL}
other_keys = st.from_regex(r"[A-Za-z_][A-Za-z_0-9 \-/]{1,12}", fullmatch=True).filter(
    lambda k: k not in RESERVED and k not in LABELS
)


@st.composite
def any_settings(draw):
    sampler = draw(st.sampled_from(list(SAMPLERS)))
    cls, config = SAMPLERS[sampler]
    schedule = draw(st.sampled_from([None, *SCHEDULE_TYPES]))
    config = dict(config, **({SCHEDULE_TYPES[schedule][0]: SCHEDULE_TYPES[schedule][1]} if schedule else {}))
    some = draw(
        st.fixed_dictionaries(
            {"prompt": prompts},
            optional={
                "negative_prompt": text.filter(bool),
                "num_inference_steps": st.integers(1, 1000),
                "guidance_scale": st.floats(0, 30),
                "seed": st.integers(0, 2**63),
                "eta": st.floats(0, 1),
                "strength": st.floats(0, 1),
                "clip_skip": st.integers(0, 12),
                "model": text,
                "dtype": st.sampled_from(["float16", "float32"]),
            },
        )
    )
    if draw(st.booleans()):
        some |= {"width": draw(st.integers(1, 9999)), "height": draw(st.integers(1, 9999))}
    if draw(st.booleans()):
        some |= {"scheduler": cls, **({"scheduler_config": config} if config else {})}
    some |= draw(st.dictionaries(other_keys, number | text | st.booleans(), max_size=3))
    return {**some, "langevin": "0.1.0"}


@given(any_settings())
@settings(max_examples=300, deadline=None)
def test_settings_to_text_and_back(its):
    assert text_to_settings(settings_to_text(its)) == its


@given(any_settings())
@settings(max_examples=50, deadline=None)
def test_settings_through_a_png_and_back(its):
    file = io.BytesIO()
    Picture.from_array(np.zeros((2, 3, 3), np.uint8), its).save(file, "PNG")
    assert read_settings(file) == its
    image = Image.open(file)
    assert image.info["parameters"] == settings_to_text(its).replace("\0", "")
    del image.info["langevin"]
    if "\0" not in settings_to_text(its):
        assert read_settings(image) == its


json_values = st.recursive(
    st.none() | st.booleans() | number | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=10), json_values, max_size=5))
@example({"prompt": "\ud800 lone surrogate \0 nul", "langevin": "x"})
@settings(max_examples=100, deadline=None)
def test_any_plain_dict_survives_as_json_in_every_format(its):
    assume(its)
    assert json_to_settings(settings_to_json(its)) == its
    for kind in ("PNG", "JPEG", "WEBP"):
        file = io.BytesIO()
        Picture.from_array(np.zeros((2, 3, 3), np.uint8), its).save(file, kind)
        assert read_settings(file) == its, kind


@given(text)
@settings(max_examples=200)
@example("Ā" * 100)
@example("猫" * 100)
def test_user_comments_come_back(prompt):
    comment = f"a{prompt}\nSteps: 20, Sampler: Euler"
    assert decode_user_comment(encode_user_comment(comment)) == comment
    assert decode_user_comment(b"UNICODE\0" + comment.encode("utf-16-le")) == comment


def test_user_comments_of_other_programs():
    for encoded in (
        b"UNICODE\0" + "a circle".encode("utf-16-le"),
        b"UNICODE\0" + "a circle".encode("utf-16"),
        b"ASCII\0\0\0a circle",
        b"\0" * 8 + b"a circle",
        b"a circle",
        "a circle",
    ):
        assert decode_user_comment(encoded) == "a circle"


# ------------------------------------------------------------------------------------------- no crashes


@given(st.text(max_size=300) | st.text('Steps: 120,x"\\{}[]\n\r\0Sampler:Size \ud800é', max_size=200))
@example("Steps: 1, a b: " + "{" * 100_000)
@example("Steps: 1, a b: " + '{"a":' * 100_000)
@example("a" * 200_000)
@example('x y: "' * 20_000)
@example("x: " * 50_000)
@example("x\nSteps: " + "9" * 5_000 + ", Size: 1x" + "9" * 5000 + ", Seed: 1e999, Clip skip: x")
@settings(max_examples=500, deadline=2000)
def test_no_text_makes_the_reader_fail(anything):
    got = text_to_settings(anything)
    assert isinstance(got["prompt"], str)
    json_to_settings(anything)
    settings_to_text(got)


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_no_bytes_make_the_comment_decoder_fail(raw):
    for head in (b"", b"UNICODE\0", b"ASCII\0\0\0"):
        assert isinstance(decode_user_comment(head + raw), str)


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.binary(max_size=40), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_damaged_files_give_none_or_settings(junk, where):
    for kind in ("PNG", "JPEG", "WEBP"):
        file = io.BytesIO()
        Picture.from_array(np.zeros((4, 4, 3), np.uint8), FULL).save(file, kind)
        raw = bytearray(file.getvalue())
        at = 40 + where % max(1, len(raw) - 40)
        raw[at : at + len(junk)] = junk
        try:
            got = read_settings(io.BytesIO(bytes(raw)))
        except OSError:  # Pillow says that it is no picture any more
            continue
        assert got is None or isinstance(got, dict)


# ------------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [None, *SCHEDULE_TYPES])
def test_samplers_have_one_scheduler_each_and_back(sampler, schedule):
    cls, config = scheduler_of(sampler, schedule)
    assert sampler_of(cls, config) == (sampler, schedule)
    if schedule:
        assert scheduler_of(f"{sampler} {schedule}") == (cls, config)


def test_a_scheduler_without_a_sampler_keeps_its_name():
    assert sampler_of("KarrasVeScheduler", None) == ("KarrasVeScheduler", None)
    assert scheduler_of("KarrasVeScheduler") == ("KarrasVeScheduler", {})


def test_values_without_a_json_form_are_written_as_text():
    import torch

    its = {"dtype": torch.float16, "n": np.int64(3), "x": torch.tensor(0.5), "p": {1, 2}, "q": (1, 2)}
    assert json.loads(settings_to_json(its)) == {
        "dtype": "float16",
        "n": 3,
        "x": 0.5,
        "p": [1, 2],
        "q": [1, 2],
    }
    assert json_to_settings(settings_to_json({"latents": torch.zeros(1, 4)}))["latents"] == "<Tensor of shape (1, 4)>"


def test_pictures_without_settings_give_none(tmp_path):
    for name in ("x.png", "x.jpg", "x.bmp", "x.gif"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
        assert read_settings(tmp_path / name) is None
    with pytest.raises(FileNotFoundError):
        read_settings(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(OSError):
        read_settings(tmp_path / "text.png")


def test_text_behind_the_pixels_is_found(tmp_path):
    info = PngInfo()
    info.add(b"tEXt", b"parameters\0" + A1111.encode("latin-1"), after_idat=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png", pnginfo=info)
    assert read_settings(tmp_path / "x.png")["seed"] == 2930462571


def test_a_jpeg_as_a1111_saves_it_is_read(tmp_path):
    exif = Image.Exif()
    exif[0x8769] = {0x9286: b"UNICODE\0" + A1111.encode("utf-16-be")}
    for name in ("x.jpg", "x.webp"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, exif=exif.tobytes())
        assert read_settings(tmp_path / name)["model"] == "revAnimated_v122"


def test_a_picture_in_memory_says_its_own_settings():
    its = {"seed": 3}
    assert read_settings(Picture.from_array(np.zeros((2, 2, 3), np.uint8), its)) == its
