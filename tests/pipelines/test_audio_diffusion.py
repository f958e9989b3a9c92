"""AudioDiffusionPipeline against the reference: in pixels, in latents, and told an encoding."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import langevin
from langevin import Guider, KeptSound, Mel, Sound
from tests.helpers import in_threads

MEL = dict(x_res=32, y_res=32, sample_rate=4000, n_fft=256, hop_length=64, n_iter=8)
UNET = dict(
    sample_size=32, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
    attention_head_dim=4,
)  # fmt: skip
PLAIN = dict(UNET, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
TOLD = dict(
    UNET, cross_attention_dim=12, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
VAE = dict(
    in_channels=1, out_channels=1, latent_channels=1, block_out_channels=(8, 16), norm_num_groups=4, sample_size=32,
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
)  # fmt: skip
# kind: (network's class, its config, autoencoder's)
KINDS = {
    "pixels": ("UNet2DModel", PLAIN, None),
    "wide pixels": ("UNet2DModel", {**PLAIN, "sample_size": (16, 64)}, None),
    "latents": ("UNet2DModel", {**PLAIN, "sample_size": (16, 16)}, VAE),
    "latents to colours": ("UNet2DModel", {**PLAIN, "sample_size": 16}, {**VAE, "out_channels": 3}),
    "told": ("UNet2DConditionModel", TOLD, None),
}
T = np.arange(5000) / 4000
RAW = (0.4 * np.sin(2 * np.pi * 220 * T * (1 + 0.2 * T))).astype(np.float32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def encoding(rows=1):
    return torch.randn(rows, 3, 12, generator=generator(5))


@pytest.fixture(scope="module")
def both():
    """A function: (kind, scheduler, its config) -> (our pipeline, the reference's), on the same weights."""
    import diffusers

    pytest.importorskip("librosa")
    networks = {}

    def make(kind="pixels", scheduler="DDIMScheduler", **config):
        name, unet, vae = KINDS[kind]
        if kind not in networks:
            torch.manual_seed(0)
            theirs = getattr(diffusers, name)(**unet).eval(), None if vae is None else diffusers.AutoencoderKL(**vae)
            ours = getattr(langevin, name)(**unet).eval(), None if vae is None else langevin.AutoencoderKL(**vae)
            for mine, reference in zip(ours, theirs, strict=True):
                if mine is not None:
                    mine.load_state_dict(reference.state_dict())
            networks[kind] = ours, theirs
        size = dict(x_res=64, y_res=16) if kind == "wide pixels" else {}
        pipes = []
        for library, (network, autoencoder) in zip((langevin, diffusers), networks[kind], strict=True):
            parts = autoencoder, network, library.Mel(**{**MEL, **size}), getattr(library, scheduler)(**config)
            pipes.append(library.AudioDiffusionPipeline(*parts))
            pipes[-1].set_progress_bar_config(disable=True)
        return pipes

    return make


@pytest.fixture
def pipe(both):
    return both()[0]


# name: (kind, scheduler, its config, the call)
CASES = {
    "ddpm": ("pixels", "DDPMScheduler", {}, dict(steps=4, batch_size=2)),
    "ddim": ("pixels", "DDIMScheduler", {}, dict(steps=4, batch_size=2)),
    "ddim with noise": ("pixels", "DDIMScheduler", {}, dict(steps=4, eta=0.7)),
    "steps that draw by themselves": (
        "pixels", "DDIMScheduler", {}, lambda: dict(steps=4, eta=0.7, step_generator=generator(5))),
    "v-prediction": (
        "pixels", "DDIMScheduler", dict(prediction_type="v_prediction", clip_sample=False), dict(steps=4)),
    "another schedule": ("pixels", "DDPMScheduler", dict(beta_schedule="squaredcos_cap_v2"), dict(steps=4)),
    "wide": ("wide pixels", "DDIMScheduler", {}, dict(steps=4, raw_audio=RAW, start_step=1, mask_end_secs=0.3)),
    "from a sound": ("pixels", "DDIMScheduler", {}, dict(steps=6, start_step=3, raw_audio=RAW)),
    "from a sound's second slice": ("pixels", "DDPMScheduler", {}, dict(steps=6, start_step=3, raw_audio=RAW, slice=1)),
    "both ends kept": (
        "pixels", "DDIMScheduler", {}, dict(steps=6, raw_audio=RAW, mask_start_secs=0.2, mask_end_secs=0.13)),
    "the end kept, from a sound, with noise": (
        "pixels", "DDPMScheduler", {},
        lambda: dict(steps=6, raw_audio=RAW, mask_end_secs=0.2, start_step=2, step_generator=generator(3))),
    "nothing of a sound used": ("pixels", "DDIMScheduler", {}, dict(steps=3, raw_audio=RAW)),
    "no step left": ("pixels", "DDIMScheduler", {}, dict(steps=3, start_step=3, raw_audio=RAW)),
    "given noise": (
        "pixels", "DDIMScheduler", {}, lambda: dict(steps=4, noise=torch.randn(2, 1, 32, 32, generator=generator(9)))),
    "given noise, later": (
        "pixels", "DDIMScheduler", {},
        lambda: dict(steps=6, start_step=2, noise=torch.randn(1, 1, 32, 32, generator=generator(9)))),
    "latents": ("latents", "DDIMScheduler", {}, dict(steps=4, batch_size=2)),
    "latents from a sound": (
        "latents", "DDPMScheduler", {}, dict(steps=6, start_step=2, raw_audio=RAW, mask_start_secs=0.2)),
    "latents that become colours": ("latents to colours", "DDIMScheduler", {}, dict(steps=4)),
    "told": ("told", "DDIMScheduler", {}, lambda: dict(steps=4, batch_size=2, encoding=encoding(2))),
    "told, from a sound": (
        "told", "DDPMScheduler", {}, lambda: dict(steps=4, start_step=1, raw_audio=RAW, encoding=encoding())),
}  # fmt: skip


def bytes_of(pipe, **call):
    return np.stack([np.asarray(image) for image in pipe(generator=generator(), **call).images]).astype(int)


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_the_reference_ones(both, case):
    kind, scheduler, config, call = CASES[case]
    ours, theirs = (bytes_of(pipe, **(call() if callable(call) else call)) for pipe in both(kind, scheduler, **config))
    assert ours.shape == theirs.shape
    assert theirs.std() > 5
    apart = np.abs(ours - theirs)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.01


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_other_schedulers_do_what_they_are_told(both, name):
    """The reference neither scales the first noise for them nor what the network is shown."""
    import diffusers

    ours, theirs = both(scheduler=name)
    made = ours(steps=4, generator=generator(), output_type="np").images
    scheduler, noise = getattr(diffusers, name)(), generator()
    scheduler.set_timesteps(4)
    x = torch.randn(1, 1, 32, 32, generator=noise) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        with torch.no_grad():
            said = theirs.unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(said, t, x, generator=noise).prev_sample
    np.testing.assert_allclose(made[0, :, :, 0], (x / 2 + 0.5).clamp(0, 1).numpy()[0, 0], atol=1e-4)


def test_outputs_have_the_reference_form(both):
    ours, theirs = both("pixels", "DDPMScheduler")
    mine, reference = (pipe(steps=2, batch_size=2, generator=generator()) for pipe in (ours, theirs))
    assert set(reference.keys()) <= set(mine.keys())
    assert mine.audios.shape == reference.audios.shape
    assert mine.audios.dtype == reference.audios.dtype
    assert [image.mode for image in mine.images] == [image.mode for image in reference.images] == ["L", "L"]
    (images, (rate, audios)), (_, (their_rate, theirs)) = (
        pipe(steps=2, batch_size=2, generator=generator(), return_dict=False) for pipe in (ours, theirs)
    )
    assert rate == their_rate == 4000
    assert [audio.shape for audio in audios] == [audio.shape for audio in theirs]
    np.testing.assert_array_equal(audios[1], ours.mel.image_to_audio(images[1]))
    np.testing.assert_array_equal(audios[1], mine.sounds[1].samples[0])


@pytest.mark.parametrize("steps", [5, 7])
@pytest.mark.parametrize("config", [{}, dict(set_alpha_to_one=False, steps_offset=1, beta_schedule="scaled_linear")])
def test_the_noise_of_pictures_is_the_reference_ones_and_leads_back(both, steps, config):
    images = [Image.fromarray((np.random.default_rng(k).random((32, 32)) * 255).astype("uint8")) for k in range(2)]
    ours, theirs = (pipe.encode(images, steps) for pipe in both(**config))
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_noise_leads_back_to_its_picture_and_what_lies_between_is_as_loud(pipe, both):
    smooth = both(clip_sample=False, beta_end=0.002)[0]  # else small differences grow by 150
    smooth.unet = langevin.UNet2DModel(**PLAIN).eval()
    smooth.unet.load_state_dict(pipe.unet.state_dict())
    smooth.unet.conv_out.weight.data *= 0.1  # as trained ones do, it says nearly the same at neighbouring steps
    pipe.mel.load_audio(raw_audio=RAW)
    image = pipe.mel.audio_slice_to_image(0)
    made = smooth(steps=25, noise=smooth.encode([image], 25))
    apart = np.asarray(made.images[0]).astype(int) - np.asarray(image)
    assert np.abs(apart).mean() < 5 < np.asarray(image).std()
    a, b = torch.randn(2, 1, 1, 32, 32, generator=generator()).unbind()
    theirs = both()[1]
    for alpha in (0.0, 0.3, 1.0):
        torch.testing.assert_close(pipe.slerp(a, b, alpha), theirs.slerp(a, b, alpha), atol=1e-5, rtol=1e-5)
        assert abs(pipe.slerp(a, b, alpha).std() - 1) < 0.1
    torch.testing.assert_close(pipe.slerp(a, a, 0.5), a)  # where there is no arc


def test_default_steps_are_the_reference_ones(both):
    for scheduler in ("DDIMScheduler", "DDPMScheduler"):
        ours, theirs = both("pixels", scheduler)
        assert ours.get_default_steps() == theirs.get_default_steps()


# -- checkpoints


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_checkpoints_go_both_ways(both, kind, tmp_path):
    import diffusers

    ours, theirs = both(kind)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    read = langevin.DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert type(read) is langevin.AudioDiffusionPipeline
    back = diffusers.AudioDiffusionPipeline.from_pretrained(tmp_path / "ours")
    for pipe in (read, back):
        pipe.set_progress_bar_config(disable=True)
        assert pipe.mel.config.hop_length == 64
    assert np.abs(bytes_of(read, steps=3) - bytes_of(back, steps=3)).max() <= 1


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_folders_as_they_were_published_load(both, kind, tmp_path):
    """They say that ``Mel`` is to be found in the pipeline's own folder."""
    ours, _ = both(kind)
    ours.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index |= {"_diffusers_version": "0.12.0.dev0", "mel": ["audio_diffusion", "Mel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    read = langevin.DiffusionPipeline.from_pretrained(tmp_path)
    read.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(bytes_of(read, steps=3), bytes_of(ours, steps=3))


DEEP = ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"], ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4
PUBLISHED = {
    "teticio/audio-diffusion-256": (
        "UNet2DModel",
        dict(sample_size=[256, 256], in_channels=1, out_channels=1, layers_per_block=2, attention_head_dim=8,
             block_out_channels=[128, 128, 256, 256, 512, 512], down_block_types=DEEP[0], up_block_types=DEEP[1],
             act_fn="silu", center_input_sample=False, downsample_padding=1, flip_sin_to_cos=True, freq_shift=0,
             mid_block_scale_factor=1, norm_eps=1e-5, norm_num_groups=32, time_embedding_type="positional"),
        (1, 1, 256, 256),
    ),
    "teticio/latent-audio-diffusion-ddim-256": (
        "UNet2DModel",
        dict(sample_size=[32, 32], in_channels=1, out_channels=1, layers_per_block=2, attention_head_dim=8,
             block_out_channels=[128, 128, 256, 256, 512, 512], down_block_types=DEEP[0], up_block_types=DEEP[1]),
        (1, 1, 32, 32),
    ),
    "its vqvae": (
        "AutoencoderKL",
        dict(in_channels=1, out_channels=1, latent_channels=1, block_out_channels=[128, 256, 512, 512],
             down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
             layers_per_block=2, norm_num_groups=32, sample_size=256, act_fn="silu"),
        (1, 1, 256, 256),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_reference_weights(name):
    import diffusers

    kind, config, shape = PUBLISHED[name]
    with torch.device("meta"):
        ours, theirs = (getattr(library, kind)(**config) for library in (langevin, diffusers))
        mine, reference = ({k: tuple(v.shape) for k, v in one.state_dict().items()} for one in (ours, theirs))
        assert mine == reference
        x = torch.empty(shape)
        assert (ours(x, 3) if kind == "UNet2DModel" else ours(x)).sample.shape == shape


# -- where the reference breaks


def test_batches_keep_the_ends_of_a_sound(both):
    """The reference cannot: neither several, nor latents with several channels."""
    ours, theirs = both("pixels")
    call = dict(steps=4, raw_audio=RAW, mask_start_secs=0.2, start_step=1)
    with pytest.raises(RuntimeError):
        theirs(batch_size=2, **call)
    two = ours(batch_size=2, seed=[3, 8], **call).images
    for k, seed in enumerate((3, 8)):
        alone = ours(seed=seed, **call).images[0]
        assert np.abs(np.asarray(two[k]).astype(int) - np.asarray(alone)).max() <= 1


def test_given_noise_is_left_as_it_was(pipe):
    noise = torch.randn(1, 1, 32, 32, generator=generator())
    before = noise.clone()
    pipe(steps=3, start_step=1, noise=noise, raw_audio=RAW, mask_start_secs=0.2)
    assert torch.equal(noise, before)


def test_exact_levels_keep_the_sound_itself(pipe):
    """At the end what is kept is what was given; as the reference does it, there is noise in it still."""
    pipe.mel.load_audio(raw_audio=RAW)
    given = np.asarray(pipe.mel.audio_slice_to_image(0)).astype(int)
    columns = int(0.2 * 32 * 4000 / 32 / 64)
    left = {}
    for exact in (True, False):
        made = pipe(steps=4, raw_audio=RAW, mask_start_secs=0.2, seed=1, exact_levels=exact)
        left[exact] = np.abs(np.asarray(made.images[0]).astype(int) - given)[:, :columns]
        assert made.images[0].settings["exact_levels"] is exact
    assert left[True].max() <= 1
    assert left[False].max() > 2
    early, late = (
        pipe(steps=50, raw_audio=RAW, start_step=49, seed=1, exact_levels=exact, output_type="np").images
        for exact in (True, False)
    )
    assert not np.allclose(early, late, atol=1e-3)


def test_encoding_knows_latents_and_encodings(both):
    image = Image.fromarray((np.random.default_rng(0).random((32, 32)) * 255).astype("uint8"))
    assert both("latents")[0].encode([image], 3).shape == (1, 1, 16, 16)
    told = both("told")[0]
    one, other = (told.encode(image, 3, encoding=e) for e in (encoding(), 3 * encoding()))
    assert not torch.allclose(one, other, atol=1e-4)


# -- what every pipeline here promises


def test_sounds_and_pictures_carry_settings_and_a_seed_makes_the_same_alone(pipe, tmp_path):
    made = pipe(3, steps=3, seed=[5, 1, 9])
    assert [type(sound) for sound in made.sounds] == [Sound] * 3
    assert made.sounds[1].settings["seed"] == made.images[1].settings["seed"] == 1
    assert made.sounds[1].settings["steps"] == 3
    made.sounds[1].save(tmp_path / "a.wav")
    assert Sound.load(tmp_path / "a.wav").settings == made.sounds[1].settings
    alone = pipe(steps=3, seed=1)
    assert np.abs(np.asarray(alone.images[0]).astype(int) - np.asarray(made.images[1])).max() <= 1


def test_made_again_with_the_sound_that_it_began_from(both, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from langevin.cli.app import app

    monkeypatch.chdir(tmp_path)
    both("latents")[0].save_pretrained("model")
    Sound(RAW, 4000).save("began.wav")
    pipe = langevin.DiffusionPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    made = pipe(audio_file="began.wav", steps=4, start_step=1, mask_end_secs=0.1, seed=3)
    made.sounds[0].save("made.wav")
    made.images[0].save("made.png")
    assert made.sounds[0].settings["audio_file"]["sound"] == str(tmp_path / "began.wav")
    for name, parts in (("made.wav", "samples"), ("made.png", "pixels")):
        result = CliRunner().invoke(app, ["again", name, "--yes"])
        assert result.exit_code == 0, result.output
        assert "identical: all" in result.output
        assert parts in result.output
    Sound(RAW * 0.5, 4000).save("began.wav")
    result = CliRunner().invoke(app, ["again", "made.wav", "--yes"])
    assert result.exit_code == 1
    assert "began.wav has changed since" in result.stderr
    result = CliRunner().invoke(app, ["sound", "model", "--steps", "2", "--seed", "5", "--out", "new.wav"])
    assert result.exit_code == 0, result.output
    assert Sound.load("new.wav").settings["steps"] == 2
    result = CliRunner().invoke(app, ["sound", "model", "--seconds", "2"])
    assert result.exit_code == 2
    assert "takes no --seconds" in result.stderr
    made = pipe(raw_audio=RAW, steps=2, seed=1, mask_end_secs=0.1)
    assert "raw_audio" in made.sounds[0].settings["not_recorded"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_near(both, dtype):
    full = both("latents")[0]
    call = dict(steps=3, seed=2, raw_audio=RAW, mask_start_secs=0.2, start_step=1, output_type="np")
    half = langevin.AudioDiffusionPipeline(**{**full.components, "unet": None, "vqvae": None})
    half.unet = langevin.UNet2DModel(**KINDS["latents"][1]).eval()
    half.vqvae = langevin.AutoencoderKL(**VAE).eval()
    for part in ("unet", "vqvae"):
        getattr(half, part).load_state_dict(getattr(full, part).state_dict())
    half.to(dtype)
    half.set_progress_bar_config(disable=True)
    one, other = full(**call), half(**call)
    assert other.audios.dtype == np.float32
    assert np.abs(one.images - other.images).mean() < 0.1 * one.images.std()


def test_one_pipeline_serves_many_threads(both):
    pipe = both("latents")[0]

    def make(seed):
        return pipe(steps=3, seed=seed, raw_audio=RAW, slice=seed % 2, mask_start_secs=0.2, start_step=1).audios

    alone = [make(seed) for seed in range(4)]
    for got, expected in zip(in_threads(make, 4), alone, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_callbacks_interruption_and_guiders(pipe):
    seen = []

    def watch(call, i, t, tensors):
        seen.append(tuple(tensors["latents"].shape))
        call._interrupt = i == 1

    pipe(steps=5, seed=1, callback_on_step_end=watch)
    assert seen == [(1, 1, 32, 32)] * 2

    class Darker(Guider):
        def after(self, x, step):
            return x - 0.5

    plain, dark = (
        pipe(steps=2, seed=1, guiders=guiders, output_type="np").images.mean() for guiders in ([], [Darker()])
    )
    assert dark < plain - 0.05
    assert pipe(steps=1, output_type="pt").images.shape == (1, 1, 32, 32)


@pytest.mark.parametrize(
    ("kind", "call", "line"),
    [
        ("pixels", dict(mask_start_secs=1), "keep parts of a sound; give audio_file or raw_audio"),
        ("pixels", dict(raw_audio=RAW, slice=2), "slice is 2; this sound has 2, counted from 0"),
        ("pixels", dict(raw_audio=RAW, mask_start_secs=0.4, mask_end_secs=0.4), "25 and 25 columns are to be kept"),
        ("pixels", dict(raw_audio=RAW, start_step=4), "start_step is 4; this run has 3 steps"),
        ("pixels", dict(audio_file="none.wav"), "there is no file none.wav"),
        ("pixels", dict(audio_file="a.wav", raw_audio=RAW), "give either audio_file or raw_audio"),
        ("pixels", dict(encoding=encoding()), r"this network \(UNet2DModel\) is told no encoding; leave it out"),
        ("pixels", dict(start_step=-1), "start_step is -1"),
        ("pixels", dict(steps=0), "steps is 0"),
        ("pixels", dict(noise=torch.zeros(1, 2, 32, 32)), "this network takes 1 channels, where x has 2"),
        ("told", {}, r"this network \(UNet2DConditionModel\) needs an encoding; give encoding="),
        ("told", dict(encoding=encoding(3)), r"encoding is \(3, 3, 12\); \(1 or 1, tokens, dim\) is needed"),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(both, kind, call, line):
    with pytest.raises((ValueError, FileNotFoundError), match=line) as caught:
        both(kind)[0](**{"steps": 3, **call})
    assert "\n" not in str(caught.value)


def test_a_mel_of_another_size_is_told_of(both):
    pipe = both()[0]
    pipe.mel = Mel(**{**MEL, "x_res": 16})
    with pytest.raises(ValueError, match=r"picture becomes \(32, 16\), where the network makes \(32, 32\)"):
        pipe(raw_audio=RAW, steps=2)
    with pytest.raises(ValueError, match="the scheduler is a DDPMScheduler"):
        both("pixels", "DDPMScheduler")[0].encode([])
    assert KeptSound(torch.zeros(1, 1, 4, 4)).keep_start == 0
