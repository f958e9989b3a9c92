"""Sounds: in and out of WAV files, with the settings that made them."""

from __future__ import annotations

import struct
import wave

import numpy as np
import pytest

from langevin import Sound
from langevin.media.settings import read_settings
from langevin.media.sound import WrongSound, is_wav

SETTINGS = {"langevin": "0.1.0", "seed": 7, "pipeline": "DanceDiffusionPipeline", "model": "sön\u2028", "sigmas": [1.5]}


def tone(length=500, rate=8000, channels=2):
    t = np.arange(length) / rate
    return Sound([0.9 * np.sin(2 * np.pi * 440 * (k + 1) * t) for k in range(channels)], rate, SETTINGS)


@pytest.mark.parametrize(("channels", "length"), [(1, 500), (2, 501), (5, 3), (2, 0)])
def test_a_sound_comes_back_from_its_file_with_its_settings(channels, length, tmp_path):
    sound = tone(length, channels=channels)
    sound.save(tmp_path / "tone.wav")
    read = Sound.load(tmp_path / "tone.wav")
    assert read.sample_rate == 8000
    assert read.settings == SETTINGS == read_settings(tmp_path / "tone.wav")
    np.testing.assert_allclose(read.samples, sound.samples, atol=0.5 / 32768 + 1e-7)
    np.testing.assert_array_equal(read.pcm(), sound.pcm())  # again and again


def test_the_standard_library_and_soundfile_read_what_is_saved(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    sound = tone()
    sound.save(tmp_path / "tone.wav")
    with wave.open(str(tmp_path / "tone.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (2, 8000, 2)
        np.testing.assert_array_equal(np.frombuffer(file.readframes(500), "<i2").reshape(-1, 2), sound.pcm())
    samples, rate = soundfile.read(tmp_path / "tone.wav", dtype="float32")
    np.testing.assert_array_equal(samples.T, Sound.load(tmp_path / "tone.wav").samples)
    with soundfile.SoundFile(tmp_path / "tone.wav") as file:
        assert '"seed": 7' in file.comment
        assert file.software == "langevin 0.1.0"
    assert rate == 8000


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("kind", ["WAV", "WAVEX"])
def test_plain_files_are_read_as_soundfile_reads_them(subtype, kind, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", tone().samples.T, 8000, subtype=subtype, format=kind)
    read = Sound.load(tmp_path / "a.wav")
    expected, _ = soundfile.read(tmp_path / "a.wav", dtype="float32", always_2d=True)
    np.testing.assert_allclose(read.samples, expected.T, atol=1e-7)
    assert read.settings is None


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.wav"])
def test_files_of_other_kinds_are_read_with_soundfile(name, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    how = {"subtype": "ULAW"} if name == "a.wav" else {}
    soundfile.write(tmp_path / name, tone().samples.T, 8000, **how)
    read = Sound.load(tmp_path / name)
    assert read.samples.shape == (2, 500)
    assert np.abs(read.samples - tone().samples).mean() < 0.05


def test_what_soundfile_is_needed_for_is_said_where_it_is_missing(tmp_path, monkeypatch):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.flac", tone().samples.T, 8000)
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    monkeypatch.setitem(__import__("sys").modules, "soxr", None)
    with pytest.raises(WrongSound, match=r"reading others needs: pip install 'langevin\[audio\]'"):
        Sound.load(tmp_path / "a.flac")
    with pytest.raises(WrongSound, match=r"8000 Hz to 4000 Hz needs: pip install 'langevin\[audio\]'"):
        tone().mono(4000)
    assert tone().mono(8000).shape == (500,)


@pytest.mark.parametrize("rate", [4000, 8000, 11025])
def test_mono_at_another_rate_is_as_librosa_loads_it(rate, tmp_path):
    librosa = pytest.importorskip("librosa")
    tone(1001).save(tmp_path / "tone.wav")
    expected, _ = librosa.load(tmp_path / "tone.wav", sr=rate, mono=True)
    np.testing.assert_allclose(Sound.load(tmp_path / "tone.wav").mono(rate), expected, atol=1e-6)


def test_numpy_takes_a_sound_for_its_samples_and_what_is_too_loud_is_cut():
    sound = Sound([2.0, -2.0, np.nan, 0.5], 4)
    assert np.asarray(sound).shape == (1, 4)
    assert sound.pcm()[:, 0].tolist() == [32767, -32768, 0, 16384]
    assert sound.seconds == 1.0
    assert repr(sound) == "Sound(1 x 4 samples at 4 Hz, 1.00 s)"


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    tone().save(tmp_path / "tone.wav")
    before = (tmp_path / "tone.wav").read_bytes()
    broken = tone(600)
    monkeypatch.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        broken.save(tmp_path / "tone.wav")
    assert (tmp_path / "tone.wav").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["tone.wav"]


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Sound(np.zeros((2, 3, 4)), 8000), r"samples are \(2, 3, 4\); they must be"),
        (lambda: Sound(np.zeros((500, 2)), 8000), r"samples are \(500, 2\)"),
        (lambda: Sound(np.zeros(3), 0), "sample_rate is 0; it must be a whole number"),
        (lambda: Sound(np.zeros(3), 2.5), "sample_rate is 2.5"),
        (lambda: Sound(np.zeros(3), True), "sample_rate is True"),
        (lambda: tone().save("tone.mp3"), "cannot save 'tone.mp3': sounds are saved as .wav"),
        (lambda: tone().save("tone"), "cannot save 'tone'"),
    ],
)
def test_what_is_no_sound_is_refused_in_one_line(make, line):
    with pytest.raises(ValueError, match=line) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused_and_their_settings_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Sound.load(tmp_path / "none.wav")
    tone().save(tmp_path / "tone.wav")
    whole = (tmp_path / "tone.wav").read_bytes()
    odd = tmp_path / "odd.wav"
    for bad in (whole[:12], whole[:30], whole[:12] + b"fmt " + struct.pack("<IHHIIHH", 16, 1, 0, 8000, 0, 0, 16)):
        odd.write_bytes(bad)
        assert is_wav(odd)
        with pytest.raises(WrongSound, match=r"odd\.wav") as caught:
            Sound.load(odd)
        assert "\n" not in str(caught.value)
        assert read_settings(odd) is None
    for cut in range(60, len(whole), 97):  # a sound that ends too early is as long as it is
        odd.write_bytes(whole[:cut])
        read_settings(odd)
        assert Sound.load(odd).samples.shape[1] <= 500
    odd.write_bytes(whole.replace(b'{"langevin"', b'["langevin"'))
    assert read_settings(odd) is None


def test_any_damage_gives_a_sound_or_one_line(tmp_path):
    tone(40).save(tmp_path / "tone.wav")
    whole, odd, rng = (tmp_path / "tone.wav").read_bytes(), tmp_path / "odd.wav", np.random.default_rng(0)
    read, refused = 0, []
    for _ in range(300):
        bad = bytearray(whole)
        for at in rng.integers(12, len(whole), 3):
            bad[at if rng.random() < 0.5 else 12 + at % 30] = rng.integers(256)
        odd.write_bytes(bad)
        assert isinstance(read_settings(odd), dict | None)
        try:
            read += Sound.load(odd).samples.ndim == 2
        except WrongSound as error:
            refused.append(str(error))
    assert read > 20
    assert len(refused) > 20
    assert not [line for line in refused if "\n" in line]
