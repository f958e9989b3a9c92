"""What pictures say they were made from: read back as it was recorded, for one of a batch too, and never raising."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import langevin
from langevin.media.checks import masks, pictures
from langevin.media.images import Picture, load_image
from langevin.media.recording import (
    LOST,
    SMALL,
    describe_guider,
    fingerprint,
    parts_state,
    recorded,
    recorded_row,
    recorded_rows,
    reread,
    stamp_parts,
)
from langevin.media.settings import read_settings, settings_to_json
from tests.media.media_modes import MODES, of_mode

RNG = np.random.default_rng(1)
NOISE = RNG.integers(0, 256, (80, 100, 4), dtype=np.uint8)  # too large to be written whole


def seen(image):
    """What a pipeline sees of it, as a picture and as a mask."""
    return pictures(image)[0].tobytes(), masks(image)[0].tobytes()


FILES = {
    "RGB.png": lambda path: Image.fromarray(NOISE[..., :3]).save(path),
    "L.png": lambda path: Image.fromarray(NOISE[..., 0]).save(path),
    "RGBA.png": lambda path: Image.fromarray(NOISE).save(path),
    "LA.png": lambda path: Image.fromarray(NOISE[..., :2], "LA").save(path),
    "P.png": lambda path: Image.fromarray(NOISE[..., :3]).convert("P").save(path),
    "P with transparency.png": lambda path: Image.fromarray(NOISE[..., :3]).convert("P").save(path, transparency=3),
    "1.png": lambda path: Image.fromarray(NOISE[..., 0]).convert("1").save(path),
    "16 bit.png": lambda path: Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257).save(path),
    "RGB with a colour key.png": lambda path: Image.fromarray(NOISE[..., :3]).save(path, transparency=(1, 2, 3)),
    "turned.jpg": lambda path: Image.fromarray(NOISE[..., :3]).save(path, exif=turned()),
    "turned.webp": lambda path: Image.fromarray(NOISE[..., :3]).save(path, exif=turned()),
    "CMYK.jpg": lambda path: Image.fromarray(NOISE[..., :3]).convert("CMYK").save(path),
    "F.tiff": lambda path: Image.fromarray(NOISE[..., 0].astype(np.float32)).save(path),
    "turned.tiff": lambda path: Image.fromarray(NOISE[..., :3]).save(path, exif=turned()),
    "P.gif": lambda path: Image.fromarray(NOISE[..., :3]).convert("P").save(path),
}


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", [Image.open, load_image, lambda path: load_image(path, background="white")])
def test_an_untouched_file_is_read_back_in_the_form_in_which_it_was_recorded(tmp_path, name, how):
    FILES[name](path := tmp_path / name)
    image = how(path)
    record = recorded(image)
    assert set(record) == {"file", "sha256"}
    assert record["file"] == str(path)
    again = reread(json.loads(json.dumps(record)))
    assert seen(again) == seen(image)
    assert recorded(again) == record


def test_a_changed_or_missing_file_is_told(tmp_path):
    FILES["RGB.png"](path := tmp_path / "a.png")
    record = recorded(Image.open(path))
    Image.fromarray(NOISE[::-1, :, :3]).save(path)
    with pytest.raises(ValueError, match="has changed since"):
        reread(record)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        reread(record)
    with pytest.raises(ValueError, match="no regular file"):
        reread({"file": "/dev/null", "sha256": ""})


def test_a_palette_counts():
    one, two = Image.new("P", (4, 4)), Image.new("P", (4, 4))
    one.putpalette([255, 0, 0])
    two.putpalette([0, 0, 255])
    assert fingerprint(one) != fingerprint(two)


def test_a_picture_that_was_changed_in_memory_is_not_taken_for_its_file(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    image.paste("blue", (0, 0, 4, 4))
    assert set(record := recorded(image)) == {"png"}
    assert seen(reread(record)) == seen(image)
    FILES["RGB.png"](tmp_path / "large.png")
    large = Image.open(tmp_path / "large.png")
    large.paste("blue", (0, 0, 4, 4))
    assert recorded(large) is None


def test_a_bomb_among_settings_is_refused():
    import base64
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="too large"):
        reread({"png": base64.b64encode(data).decode()})
    for wrong in ("", "AAAA", "not base64!", base64.b64encode(data[:40]).decode()):
        with pytest.raises((ValueError, OSError)):
            reread({"png": wrong})


@pytest.mark.parametrize("mode", MODES)
def test_small_pictures_of_every_mode_are_written_whole(mode):
    image = of_mode(mode, Image.fromarray(NOISE[:16, :16, :3]))
    record = recorded(image)
    if mode == "F":  # no PNG holds it
        assert record is None
        return
    again = reread(json.loads(json.dumps(record)))
    assert seen(again) == seen(image)
    assert recorded(again) == record


def test_settings_and_colour_profiles_do_not_make_a_small_picture_large(tmp_path):
    small = Picture(Image.new("L", (8, 8), 255), {"prompt": "x" * 100_000})
    small.info["icc_profile"] = b"x" * SMALL
    assert len(recorded(small)["png"]) < 300


def closed():
    image = Image.open(FILES_DATA)
    image.close()
    return image


FILES_DATA = Path(__file__).parents[2] / "docs" / "images" / "tasks.png"


class Angry:
    @property
    def config(self):
        raise RuntimeError("no")


def loop():
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(3),
        np.zeros(3),
        object(),
        Angry(),
        loop(),
        closed(),
        Image.new("RGB", (0, 3)),
        Image.fromarray(np.full((4, 4), np.nan, np.float32)),
        Image.fromarray(np.full((4, 4), 1e6, np.float32)),
        [1, None],
        {"a": object()},
        lambda: 0,
    ],
    ids=lambda value: type(value).__name__,
)
def test_recording_never_raises(value):
    assert recorded(value) is None
    assert recorded_row([value], 0, 2) is None
    assert recorded_row(value, 0, 2) is None

    @dataclasses.dataclass
    class Guide:
        x: Any = None

    assert describe_guider(Guide(value))[LOST] == ["x"]
    json.loads(settings_to_json({"x": value, "y": {(1, 2): 3}, "z": 4}))


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (np.int64(7), 7),
        (np.uint8(7), 7),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.bool_(True), True),
        (np.array(7), 7),
        (torch.tensor(0.5), 0.5),
        (np.str_("a"), "a"),
        ([np.int64(1), np.float32(2)], [1, 2.0]),
    ],
)
def test_numbers_of_numpy_are_recorded_as_plain_ones(tmp_path, value, number):
    kept = recorded(value)
    assert kept == number
    for one in kept if isinstance(kept, list) else [kept]:
        assert type(one).__module__ == "builtins"
    assert json.loads(settings_to_json({"x": value})) == {"x": number}
    Picture(Image.new("RGB", (4, 4)), {"seed": np.int64(7), "guidance_scale": np.float32(1.5)}).save(tmp_path / "a.png")
    settings = read_settings(tmp_path / "a.png")
    assert (settings["seed"], settings["guidance_scale"]) == (7, 1.5)
    assert "CFG scale: 1.5, Seed: 7" in Image.open(tmp_path / "a.png").info["parameters"]


# ------------------------------------------------------------------------------------------- one of a batch


def plain_one(shade):
    return Image.new("L", (8, 8), shade)


def shade(record):
    return reread(record).getpixel((0, 0))


def test_each_picture_of_a_batch_carries_its_own():
    two = [plain_one(10), plain_one(20)]
    assert [shade(recorded_row(two, k, 4)) for k in range(4)] == [10, 10, 20, 20]
    assert [shade(recorded_row(two, k, 4, paired=False)) for k in range(4)] == [10, 20, 10, 20]
    assert [shade(recorded_row(two, k, 2)) for k in range(2)] == [10, 20]
    assert [shade(one) for one in recorded_rows(two, 4)] == [10, 10, 20, 20]
    assert [shade(one) for one in recorded_rows(two, 4, paired=False)] == [10, 20, 10, 20]
    assert recorded_rows(np.float32(0.5), 3) == [0.5] * 3
    assert [shade(recorded_row(plain_one(5), k, 2)) for k in range(2)] == [5, 5]
    lists = [[plain_one(1), plain_one(2)], [plain_one(3), plain_one(4)]]
    assert [[shade(one) for one in recorded_row(lists, k, 2)] for k in range(2)] == [[1, 2], [3, 4]]
    assert recorded_row([0.5, 1.0], 1, 2) == [0.5, 1.0], "numbers are not one for each picture"
    large = Image.fromarray(NOISE)
    assert recorded_row([plain_one(1), large], 0, 2) is not None
    assert recorded_row([plain_one(1), large], 1, 2) is None, "named as not recorded where it matters only"


def test_a_guiders_pictures_are_recorded_for_one_of_a_batch():
    @dataclasses.dataclass
    class Guide:
        image: Any
        scale: float = 1.0

    described = describe_guider(Guide([plain_one(10), plain_one(20)], np.float32(0.5)), 1, 2)
    assert (described["class"], described["scale"], shade(described["image"])) == ("Guide", 0.5, 20)


# ---------------------------------------------------------------------------------------------------- parts


@pytest.fixture
def pipe(tiny_sd_folder):
    pipe = langevin.StableDiffusionPipeline.from_pretrained(tiny_sd_folder)
    stamp_parts(pipe)
    return pipe


def test_untouched_parts_have_nothing_to_say(pipe):
    pipe.set_progress_bar_config(disable=True)
    assert parts_state(pipe) == ({}, [])
    pipe("a", num_inference_steps=1, seed=1)
    pipe.to(torch.float16).to(torch.float32)
    assert parts_state(pipe) == ({}, [])
    assert parts_state(langevin.StableDiffusionImg2ImgPipeline.from_pipe(pipe)) == ({}, [])


def test_freeu_is_recorded_and_can_be_turned_on_again(pipe):
    numbers = dict(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
    pipe.enable_freeu(**numbers)
    assert parts_state(pipe) == ({"freeu": numbers}, [])
    pipe.disable_freeu()
    assert parts_state(pipe) == ({}, [])


def test_learned_words_are_named(pipe):
    width = pipe.text_encoder.config.hidden_size
    pipe.load_textual_inversion(torch.zeros(2, width), token="<cat>")
    (named, *_) = parts_state(pipe)[1]
    assert named == "the learned words <cat> <cat>_1"
    pipe.unload_textual_inversion()
    assert "learned" not in " ".join(parts_state(pipe)[1])


def test_replaced_and_edited_parts_are_recorded_or_named(pipe, tiny_sd_folder):
    pipe.vae = langevin.AutoencoderKL.from_pretrained(tiny_sd_folder, subfolder="vae")
    state, lost = parts_state(pipe)
    assert state == {"parts": {"vae": {"network": "AutoencoderKL", "from": str(tiny_sd_folder / "vae")}}}
    assert lost == []
    pipe.vae = langevin.AutoencoderKL.from_config(pipe.vae.config)
    pipe.vae.register_to_config(_name_or_path=None)
    with torch.no_grad():
        next(pipe.unet.parameters()).mul_(1.1)
    assert parts_state(pipe)[1] == ["another vae", "an edited unet"]


def test_describing_parts_never_raises():
    class Odd:
        name_or_path = None
        components = {"unet": Angry(), "tokenizer": 3, "vae": None}

    assert parts_state(Odd()) == ({}, [])
    assert parts_state(object())[1] == ["parts that could not be looked at (AttributeError)"]


# --------------------------------------------------------------------------------------------- killed saves


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_what_a_killed_save_left_is_cleared_away(tmp_path):
    code = """
import sys
from PIL import Image
from langevin.media.picture import Picture
def slow(self, file, *a, **k):
    file.write(b"half"); file.flush(); print("started", flush=True); sys.stdin.read()
Image.Image.save = slow
Picture(Image.new("RGB", (4, 4)), {}).save("a.png")
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(langevin.__file__).parents[1])}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, **pipes)
    assert process.stdout.readline().strip() == b"started"
    (left,) = tmp_path.iterdir()
    Picture(Image.new("RGB", (4, 4)), {}).save(tmp_path / "b.png")
    assert left.exists(), "its process still writes"
    process.send_signal(signal.SIGKILL)
    process.wait()
    from langevin.media import picture

    picture._cleared.clear()  # as the next process would begin
    (tmp_path / ".c.png.saving-another-machine-1-0123abcd").touch()
    Picture(Image.new("RGB", (4, 4)), {}).save(tmp_path / "b.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c.png.saving-another-machine-1-0123abcd", "b.png"]
