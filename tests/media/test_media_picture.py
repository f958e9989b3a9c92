"""Picture: a PIL image in every respect, that knows what made it and never leaves half a file."""

import copy
import io
import os
import pickle
import socket
import stat
import threading

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from langevin.media.picture import Picture, atomic_file
from langevin.media.settings import read_settings, settings_to_text

ITS = {"prompt": "a red circle 🔴, naïve", "seed": 7, "langevin": "0.1.0"}
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.fixture
def picture():
    return Picture.from_array(PIXELS, dict(ITS))


def test_is_a_pil_image(picture):
    plain = Image.fromarray(PIXELS)
    assert isinstance(picture, Image.Image)
    assert (picture.size, picture.mode) == ((8, 6), "RGB")
    assert picture == plain
    assert plain == picture
    assert picture != plain.transpose(Image.Transpose.ROTATE_180)
    assert picture != "a picture"
    assert picture != Image.new("RGB", (8, 7))
    np.testing.assert_array_equal(np.asarray(picture), PIXELS)
    small = picture.resize((4, 3))
    assert small == plain.resize((4, 3))
    assert type(small) is Image.Image
    assert picture.convert("L") == plain.convert("L")
    assert picture.crop((1, 1, 3, 3)).size == (2, 2)
    paper = Image.new("RGB", (20, 20))
    paper.paste(picture, (2, 3))
    picture.putpixel((0, 0), (1, 2, 3))
    assert picture.getpixel((0, 0)) == (1, 2, 3)


def test_copies_and_pickles_keep_the_settings(picture):
    others = [picture.copy(), copy.copy(picture), copy.deepcopy(picture), pickle.loads(pickle.dumps(picture))]
    others += [Picture(picture, picture.settings)]
    for other in others:
        assert type(other) is Picture
        assert other == picture
        assert other.settings == ITS
        other.putpixel((0, 0), (0, 0, 0))
    others[0].settings["seed"] = 8
    assert picture.settings == ITS
    np.testing.assert_array_equal(np.asarray(picture), PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "RGB", "I;16"])
def test_wraps_an_image_of_any_mode(mode, tmp_path):
    plain = Image.fromarray(PIXELS).convert("L" if mode == "I;16" else mode).convert(mode)
    picture = Picture(plain, {"seed": 1})
    assert picture == plain
    assert pickle.loads(pickle.dumps(picture)) == plain
    plain.save(tmp_path / "plain.png")
    assert Picture(Image.open(tmp_path / "plain.png")).tobytes() == plain.tobytes()


def test_from_array_takes_pixels_only():
    for shape, mode in (((4, 5), "L"), ((4, 5, 1), "L"), ((4, 5, 3), "RGB"), ((4, 5, 4), "RGBA")):
        pixels = np.zeros(shape, np.uint8)
        one = Picture.from_array(pixels)
        pixels += 9
        assert (one.mode, one.size, one.settings) == (mode, (5, 4), None)
        assert np.asarray(one).max() == 0, "later changes of the array do not reach the picture"
    for bad in (np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((1, 4, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8 pixels"):
            Picture.from_array(bad)
    flipped = PIXELS[:, ::-1]
    np.testing.assert_array_equal(np.asarray(Picture.from_array(flipped)), flipped)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.jpeg", "x.webp", "X.PNG", "x.tiff", "x.avif"])
def test_saved_files_say_what_made_them(picture, tmp_path, name):
    from PIL import features

    if name.endswith("avif") and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    picture.save(tmp_path / name)
    picture.save(str(tmp_path / ("s" + name)))
    assert read_settings(tmp_path / name) == read_settings(tmp_path / ("s" + name)) == ITS
    if name.endswith("png"):
        assert Image.open(tmp_path / name).tobytes() == picture.tobytes()


def test_saved_to_an_open_file(picture, tmp_path):
    data = io.BytesIO()
    picture.save(data, format="png")
    assert read_settings(data) == ITS
    with open(tmp_path / "x.webp", "wb") as file:
        picture.save(file)
    assert read_settings(tmp_path / "x.webp") == ITS
    assert picture._repr_png_().startswith(b"\x89PNG")


def test_formats_without_room_for_settings_still_save(picture, tmp_path):
    for name in ("x.bmp", "x.gif", "x.ppm"):
        picture.save(tmp_path / name)
        assert read_settings(tmp_path / name) is None


def test_without_settings_nothing_is_added(tmp_path):
    Picture.from_array(PIXELS).save(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").info == {}


def test_given_text_is_merged_and_wins(picture, tmp_path):
    mine = PngInfo()
    mine.add_text("Artist", "me")
    mine.add_text("parameters", "my own")
    picture.save(tmp_path / "x.png", pnginfo=mine)
    info = Image.open(tmp_path / "x.png").info
    assert info["Artist"] == "me"
    assert info["parameters"] == "my own"
    assert "langevin" in info
    assert len(mine.chunks) == 2, "the caller's object is not changed"

    exif = Image.Exif()
    exif[0x013B] = "me"
    for given in (exif, exif.tobytes()):
        picture.save(tmp_path / "x.jpg", exif=given)
        assert Image.open(tmp_path / "x.jpg").getexif()[0x013B] == "me"
        assert read_settings(tmp_path / "x.jpg") == ITS


def test_too_long_for_jpeg_keeps_what_fits_and_says_so(tmp_path):
    long = Picture.from_array(PIXELS, {"prompt": "x" * 40_000})
    with pytest.warns(UserWarning, match="too long"):
        long.save(tmp_path / "x.jpg")
    assert read_settings(tmp_path / "x.jpg") == long.settings
    longer = Picture.from_array(PIXELS, {"prompt": "x" * 400_000})
    with pytest.warns(UserWarning, match="too long"):
        longer.save(tmp_path / "x.jpg")
    longer.save(tmp_path / "x.png")
    assert read_settings(tmp_path / "x.png") == longer.settings


def test_png_text_is_what_a1111_reads(picture, tmp_path):
    picture.save(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").text["parameters"] == settings_to_text(ITS)


# ----------------------------------------------------------------------------------------- atomic saving


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_crash_leaves_the_old_file_and_no_half_one(picture, tmp_path, monkeypatch, error):
    target = tmp_path / "x.png"
    picture.save(target)
    before = target.read_bytes()

    def crash(self, file, *args, **kwargs):
        file.write(b"half of a pict")
        raise error

    monkeypatch.setattr(Image.Image, "save", crash)
    with pytest.raises(type(error)):
        picture.save(target)
    with pytest.raises(type(error)):
        picture.save(tmp_path / "new.png")
    assert target.read_bytes() == before
    assert names(tmp_path) == ["x.png"]


def test_unknown_extensions_and_missing_folders(picture, tmp_path):
    for name, words in (("x.unknown", "unknown extension '.unknown'"), ("x", "no extension")):
        with pytest.raises(ValueError, match=words):
            picture.save(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        picture.save(tmp_path / "none" / "x.png")
    (tmp_path / "x.png").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        picture.save(tmp_path / "x.png")
    picture.save(tmp_path / "noname", format="PNG")
    assert names(tmp_path) == ["noname", "x.png"]


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_permissions_and_links_stay(picture, tmp_path):
    target, link = tmp_path / "x.png", tmp_path / "link.png"
    picture.save(target)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
    target.chmod(0o600)
    link.symlink_to(target)
    target.write_bytes(b"")
    picture.save(link)
    assert link.is_symlink()
    assert read_settings(target) == ITS
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_two_threads_saving_one_file_leave_one_whole_file(picture, tmp_path):
    target = tmp_path / "x.png"
    threads = [threading.Thread(target=picture.copy().save, args=(target,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["x.png"]
    assert read_settings(target) == ITS


def test_atomic_file_with_a_very_long_name(tmp_path):
    with atomic_file(tmp_path / ("x" * 250 + ".png")) as file:
        file.write(b"whole")
    assert len(names(tmp_path)) == 1


def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_writes_is_not(tmp_path):
    host = socket.gethostname()
    dead = tmp_path / f".old.png.saving-{host}-999999999-0123abcd"
    alive = tmp_path / f".new.png.saving-{host}-{os.getpid()}-0123abcd"
    for path in (dead, alive):
        path.write_bytes(b"half")
    with atomic_file(tmp_path / "x.png") as file:
        file.write(b"whole")
    assert names(tmp_path) == sorted([alive.name, "x.png"])
