"""Mel: pictures of sounds as the reference and librosa make them, and a way back that is as good as librosa's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import langevin
from langevin import Mel, Sound
from langevin.codecs.mel import mel_filters

SMALL = dict(x_res=32, y_res=32, sample_rate=4000, n_fft=256, hop_length=64, n_iter=8)
OTHER = dict(x_res=48, y_res=40, sample_rate=8000, n_fft=512, hop_length=128, n_iter=16, top_db=60)


def tones(mel, slices=2.3, seed=0):
    """Three falling tones, one that rises, and a little noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(mel.slice_size * slices)) / mel.sr
    rising = 0.3 * np.sin(2 * np.pi * 200 * t * (1 + t))
    plucked = sum(0.2 * np.sin(2 * np.pi * f * t) * np.exp(-((t * 8) % 1) * 3) for f in (220, 330, 660))
    return (rising + plucked + 0.002 * rng.standard_normal(t.size)).astype(np.float32)


def both(**config):
    import diffusers

    pytest.importorskip("librosa")
    return Mel(**config), diffusers.Mel(**config)


@pytest.mark.parametrize("config", [SMALL, OTHER], ids=["small", "other"])
def test_pictures_are_the_reference_ones(config):
    ours, theirs = both(**config)
    for mel in (ours, theirs):
        mel.load_audio(raw_audio=tones(ours))
    assert ours.get_number_of_slices() == theirs.get_number_of_slices() == 2
    assert ours.get_sample_rate() == theirs.get_sample_rate()
    for k in range(2):
        np.testing.assert_array_equal(ours.get_audio_slice(k), theirs.get_audio_slice(k))
        mine, reference = ours.audio_slice_to_image(k), theirs.audio_slice_to_image(k)
        assert mine.mode == reference.mode == "L"
        assert mine.size == reference.size
        assert np.asarray(reference).std() > 20
        apart = np.abs(np.asarray(mine).astype(int) - np.asarray(reference).astype(int))
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.01


def test_silence_and_short_sounds_are_the_reference_ones(tmp_path):
    ours, theirs = both(**SMALL)
    for audio in (np.zeros(5000, np.float32), np.ones(10, np.float32)):
        for mel in (ours, theirs):
            mel.load_audio(raw_audio=audio)
        assert len(ours.audio) == len(theirs.audio)
        np.testing.assert_array_equal(np.asarray(ours.audio_slice_to_image(0)), theirs.audio_slice_to_image(0))
    Sound(tones(ours), 8000).save(tmp_path / "a.wav")
    for mel in (ours, theirs):
        mel.load_audio(str(tmp_path / "a.wav"))  # of another rate
    np.testing.assert_allclose(ours.audio, theirs.audio, atol=1e-5)
    for mel in (ours, theirs):
        mel.set_resolution(16, 24)
    assert (ours.slice_size, ours.get_number_of_slices()) == (theirs.slice_size, theirs.get_number_of_slices())
    apart = np.asarray(ours.audio_slice_to_image(1)).astype(int) - np.asarray(theirs.audio_slice_to_image(1))
    assert apart.shape == (24, 16)
    assert np.abs(apart).max() <= 1


@pytest.mark.parametrize(("rate", "n_fft", "tones"), [(4000, 256, 32), (22050, 2048, 256), (1600, 128, 20)])
def test_filters_are_librosas(rate, n_fft, tones):
    librosa = pytest.importorskip("librosa")
    expected = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=tones)
    np.testing.assert_allclose(mel_filters(rate, n_fft, tones), expected, atol=1e-6 * expected.max())


@pytest.mark.parametrize("config", [SMALL, OTHER], ids=["small", "other"])
def test_the_way_back_is_better_than_librosas(config):
    """A sound made of a picture gives that picture again; librosa's gives one further away. Both are as loud."""
    ours, theirs = both(**config)
    ours.load_audio(raw_audio=tones(ours))
    image = ours.audio_slice_to_image(0)
    mine, reference = ours.image_to_audio(image), theirs.image_to_audio(image)
    assert mine.shape == reference.shape
    assert mine.dtype == reference.dtype

    def missed(audio):
        again = (ours.encode(torch.from_numpy(audio)[None, None])[0, 0].numpy() + 1) * 127.5
        return np.abs(again - np.asarray(image)[:, : again.shape[1]]).mean()

    assert missed(mine) < 0.6 * missed(reference)
    assert missed(mine) < 16
    assert 0.7 < np.sqrt((mine**2).mean() / (reference**2).mean()) < 1.4


def test_a_tone_keeps_its_pitch_there_and_back():
    mel = Mel(x_res=64, y_res=128, sample_rate=8000, n_fft=1024, hop_length=128)
    t = np.arange(mel.slice_size) / 8000
    mel.load_audio(raw_audio=np.sin(2 * np.pi * 440 * t).astype(np.float32))
    made = mel.image_to_audio(mel.audio_slice_to_image(0))[1000:-1000]
    lags = np.correlate(made, made, "full")[len(made) - 1 :]
    best = 10 + int(np.argmax(lags[10:40]))
    assert abs(8000 / best - 440) < 15


def test_a_picture_always_sounds_alike_and_as_a_codec_too():
    mel = Mel(**SMALL)
    mel.load_audio(raw_audio=tones(mel))
    images = [mel.audio_slice_to_image(k) for k in range(2)]
    torch.manual_seed(1)
    first = mel.image_to_audio(images[0])
    torch.manual_seed(2)
    np.testing.assert_array_equal(mel.image_to_audio(images[0]), first)
    slices = torch.from_numpy(np.stack([mel.get_audio_slice(k) for k in range(2)]))[:, None]
    pixels = mel.encode(slices)
    assert pixels.shape == mel.shape(2, (mel.slice_size,)) == (2, 1, 32, 32)
    np.testing.assert_array_equal(((pixels + 1) * 127.5).round()[1, 0], np.asarray(images[1]))
    np.testing.assert_array_equal(mel.decode(pixels)[0, 0], first)


def test_folders_load_on_both_sides(tmp_path):
    ours, theirs = both(**OTHER)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "ours" / "mel_config.json").is_file()
    for read in (Mel.from_pretrained(tmp_path / "theirs"), type(theirs).from_pretrained(tmp_path / "ours")):
        assert {name: read.config[name] for name in OTHER} == OTHER
        assert read.slice_size == 48 * 128 - 1
    (tmp_path / "ours" / "mel_config.json").write_text('{"hop_length": "x"}')
    with pytest.raises(langevin.checkpoints.errors.CheckpointError, match="hop_length") as caught:
        Mel.from_pretrained(tmp_path / "ours")
    assert "\n" not in str(caught.value)


def loaded(**config):
    mel = Mel(**{**SMALL, **config})
    mel.load_audio(raw_audio=np.zeros(5000, np.float32))
    return mel


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda: Mel(**SMALL).get_number_of_slices(), "there is no sound yet; call load_audio first"),
        (lambda: Mel(**SMALL).audio_slice_to_image(0), "there is no sound yet"),
        (lambda: Mel(**SMALL).load_audio(), "give either audio_file or raw_audio"),
        (lambda: Mel(**SMALL).load_audio("a.wav", np.zeros(3)), "give either"),
        (lambda: Mel(**SMALL).load_audio("none.wav"), "there is no file none.wav"),
        (lambda: Mel(**SMALL).load_audio(raw_audio=np.zeros((2, 9))), r"raw_audio is float64 of \(2, 9\)"),
        (lambda: Mel(**SMALL).load_audio(raw_audio=np.zeros(9, int)), "raw_audio is int64"),
        (lambda: Mel(**SMALL).load_audio(raw_audio=np.array([np.nan])), "finite floats is needed"),
        (lambda: loaded().get_audio_slice(2), "slice is 2; this sound has 2, counted from 0"),
        (lambda: loaded().audio_slice_to_image(-1), "slice is -1"),
        (lambda: Mel(x_res=0), "x_res of Mel is 0; it must be a number above 0"),
        (lambda: Mel(n_iter=-1), "n_iter of Mel is -1"),
        (lambda: Mel(hop_length=2048), "hop_length of Mel is 2048, and n_fft 2048; moments must overlap"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(ask, line):
    with pytest.raises((ValueError, FileNotFoundError), match=line) as caught:
        ask()
    assert "\n" not in str(caught.value)
