"""DanceDiffusionPipeline against the reference."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import langevin
from langevin import Guider, ImageStart, Inpaint, Sound, Windows
from tests.helpers import in_threads

UNET = dict(block_out_channels=(8, 32, 32), extra_in_channels=16, sample_size=256, sample_rate=64)
DEEP = dict(
    UNET, block_out_channels=(8, 32, 32, 64), in_channels=1, out_channels=1, sample_size=128, sample_rate=50,
    down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "DownBlock1D", "AttnDownBlock1D"),
    up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
)  # fmt: skip
CASES = {
    "as long as the network": (UNET, "IPNDMScheduler", {}),
    "a multiple": (UNET, "IPNDMScheduler", dict(audio_length_in_s=2)),
    "no multiple": (UNET, "IPNDMScheduler", dict(audio_length_in_s=1.1)),
    "no whole number of samples": (UNET, "IPNDMScheduler", dict(audio_length_in_s=2.01)),
    "several": (UNET, "IPNDMScheduler", dict(batch_size=2, audio_length_in_s=0.6)),
    "mono, deeper": (DEEP, "IPNDMScheduler", dict(audio_length_in_s=1.5)),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A function: (network's config, scheduler) -> (our pipeline, the reference's), on the same weights."""
    import diffusers

    made = {}

    def make(config=UNET, scheduler="IPNDMScheduler"):
        key = json.dumps(config)
        if key not in made:
            torch.manual_seed(0)
            theirs = diffusers.UNet1DModel(**config).eval()
            for name, weight in theirs.named_parameters():
                if not name.startswith("time_proj") and weight.ndim > 1:
                    weight.data *= 0.7  # so that not all samples are too loud
            ours = langevin.UNet1DModel(**config).eval()
            ours.load_state_dict(theirs.state_dict())
            made[key] = ours, theirs
        pipes = [
            library.DanceDiffusionPipeline(unet, getattr(library, scheduler)())
            for library, unet in zip((langevin, diffusers), made[key], strict=True)
        ]
        for pipe in pipes:
            pipe.set_progress_bar_config(disable=True)
        return pipes

    return make


@pytest.fixture
def pipe(both):
    return both()[0]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("case", CASES)
def test_sounds_are_the_reference_ones(both, case):
    config, scheduler, call = CASES[case]
    ours, theirs = (
        pipe(num_inference_steps=4, generator=generator(), **call).audios for pipe in both(config, scheduler)
    )
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert np.abs(theirs).min() < 0.9  # not all cut
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DDPMScheduler"])
def test_other_schedulers_do_what_they_are_told(both, name):
    """The reference gives whole timesteps as fractions, which fails, and does not scale the first noise."""
    import diffusers

    ours, theirs = both(scheduler=name)
    made = ours(num_inference_steps=4, generator=generator(), audio_length_in_s=1).audios
    scheduler, noise = getattr(diffusers, name)(), generator()
    scheduler.set_timesteps(4)
    x = torch.randn(1, 2, 64, generator=noise) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        with torch.no_grad():
            said = theirs.unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(said, t, x, **({} if name == "DDIMScheduler" else {"generator": noise})).prev_sample
    np.testing.assert_allclose(made, x.clamp(-1, 1).numpy(), atol=3e-4)  # x grows to 150 on the way


def test_tuples_and_generators_are_the_reference_ones(both):
    ours, theirs = (pipe(2, 3, [generator(1), generator(2)], 1.1, return_dict=False) for pipe in both())
    assert len(ours) == len(theirs) == 1
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-4)


def test_checkpoints_go_both_ways(both, tmp_path):
    import diffusers

    ours, theirs = both()
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    read = langevin.DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert type(read) is langevin.DanceDiffusionPipeline
    back = diffusers.DanceDiffusionPipeline.from_pretrained(tmp_path / "ours")
    made = []
    for pipe in (read, back):
        pipe.set_progress_bar_config(disable=True)
        made.append(pipe(num_inference_steps=3, generator=generator(), audio_length_in_s=1).audios)
    np.testing.assert_allclose(*made, atol=1e-4)


def test_a_folder_as_it_was_published_loads(both, tmp_path):
    """maestro-150k's time has as many channels as are joined, and no ``time_embedding_dim``, which is newer."""
    narrow = dict(UNET, block_out_channels=(16, 32, 32), time_embedding_dim=16)
    ours, theirs = both(narrow)
    ours.save_pretrained(tmp_path, safe_serialization=False)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    for newer in ("time_embedding_dim", "act_fn", "downsample_each_block", "layers_per_block", "out_block_type"):
        del config[newer]
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model_index.json").write_text(json.dumps({
        "_class_name": "DanceDiffusionPipeline", "_diffusers_version": "0.8.0.dev0",
        "scheduler": ["diffusers", "IPNDMScheduler"], "unet": ["diffusers", "UNet1DModel"],
    }))  # fmt: skip
    read = langevin.DiffusionPipeline.from_pretrained(tmp_path)
    read.set_progress_bar_config(disable=True)
    made = [pipe(num_inference_steps=3, generator=generator()).audios for pipe in (read, theirs)]
    np.testing.assert_allclose(*made, atol=1e-4)


def test_sounds_carry_their_settings_and_a_seed_makes_the_same_alone(pipe, tmp_path):
    batch = pipe(batch_size=3, num_inference_steps=3, seed=[5, 1, 9], audio_length_in_s=1.1)
    assert [type(sound) for sound in batch.sounds] == [Sound] * 3
    np.testing.assert_array_equal(batch.sounds[1].samples, batch.audios[1])
    batch.sounds[1].save(tmp_path / "sound.wav")
    settings = Sound.load(tmp_path / "sound.wav").settings
    assert settings["seed"] == 1
    assert settings["audio_length_in_s"] == 1.1
    assert settings["scheduler"] == "IPNDMScheduler"
    assert settings["num_inference_steps"] == 3
    assert batch.sounds[1].sample_rate == 64
    alone = pipe(num_inference_steps=3, seed=1, audio_length_in_s=1.1)
    np.testing.assert_allclose(alone.audios[0], batch.audios[1], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_near(both, dtype):
    full = both(UNET)[0]
    half = langevin.DanceDiffusionPipeline(langevin.UNet1DModel(**UNET).eval(), langevin.IPNDMScheduler())
    half.unet.load_state_dict(full.unet.state_dict())
    half.to(dtype)
    half.set_progress_bar_config(disable=True)
    one, other = (pipe(num_inference_steps=3, seed=2, audio_length_in_s=1).audios for pipe in (full, half))
    assert other.dtype == np.float32
    assert np.abs(one - other).mean() < 0.1 * np.abs(one).mean()


def test_one_pipeline_serves_many_threads(pipe):
    def make(seed):
        return pipe(num_inference_steps=3, seed=seed, audio_length_in_s=1).audios

    alone = [make(seed) for seed in range(4)]
    for got, expected in zip(in_threads(make, 4), alone, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_tensors_callbacks_interruption_and_guiders(pipe):
    seen = []

    def watch(call, i, t, tensors):
        seen.append((i, float(t), tuple(tensors["latents"].shape)))
        call._interrupt = i == 1

    made = pipe(num_inference_steps=5, seed=1, audio_length_in_s=1, output_type="pt", callback_on_step_end=watch)
    assert made.audios.shape == (1, 2, 64)
    assert torch.is_tensor(made.audios)
    assert len(seen) == 2
    assert seen[0] == (0, 1.0, (1, 2, 64))
    old = []
    pipe(num_inference_steps=4, seed=1, audio_length_in_s=1, callback=lambda i, t, x: old.append(i), callback_steps=2)
    assert old == [0, 2]

    class Quieter(Guider):
        def after(self, x, step):
            return x * 0.5

    loud, quiet = (
        pipe(num_inference_steps=2, seed=1, audio_length_in_s=1, guiders=guiders).audios
        for guiders in ([], [Quieter()])
    )
    assert np.abs(quiet).mean() < 0.7 * np.abs(loud).mean()


def test_a_sound_is_varied_and_guiders_of_pictures_say_that_they_are_not_for_it(pipe):
    given = torch.sin(torch.arange(128) / 3).expand(1, 2, -1) * 0.5

    def apart(strength):
        start = ImageStart(given, strength)
        made = pipe(num_inference_steps=10, seed=1, audio_length_in_s=2, guiders=[start], output_type="pt").audios
        return float((made - given).abs().mean())

    assert apart(0.0) < 1e-6
    assert 1e-3 < apart(0.2) < apart(1.0)
    with pytest.raises(ValueError, match=r"the pictures to be made are 64"):
        pipe(num_inference_steps=2, audio_length_in_s=1, guiders=[ImageStart(given)])
    with pytest.raises(ValueError, match="works on pictures"):
        pipe(num_inference_steps=1, guiders=[Windows(8, 4)])


def test_a_part_of_a_sound_is_made_anew(pipe):
    given = (torch.sin(torch.arange(136) / 3) * 0.5).expand(1, 2, -1)
    mask = (torch.arange(136) >= 80).float()[None, None]
    call = dict(num_inference_steps=4, seed=1, audio_length_in_s=2.01)  # 128 samples of 136
    made = pipe(**call, guiders=[Inpaint(given, mask)]).audios
    np.testing.assert_allclose(made[..., :80], given[..., :80], atol=1e-5)
    assert np.abs(made[..., 80:] - given[..., 80:128].numpy()).mean() > 0.05
    exact = pipe(**call, guiders=[Inpaint(given, mask, 0.5, keep_outside=True)]).audios
    np.testing.assert_array_equal(exact[..., :80], given[..., :80])
    with pytest.raises(ValueError, match=r"mask is \(1, 1, 8, 8\); \(masks, 1, samples\) is needed"):
        Inpaint(given, torch.ones(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"image is \(1, 2, 136\); the pictures to be made are 64"):
        pipe(num_inference_steps=1, audio_length_in_s=1, guiders=[Inpaint(given, mask)])


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            dict(audio_length_in_s=0.3),
            r"audio_length_in_s is 0.3; this network takes 0.375 .* \(24 samples at 64",
        ),
        (dict(audio_length_in_s=0), "audio_length_in_s is 0; this network takes"),
        (dict(audio_length_in_s=-1), "audio_length_in_s is -1; it must be"),
        (dict(audio_length_in_s=float("inf")), "audio_length_in_s is inf"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(output_type="pil"), "output_type is 'pil'; it must be 'np' or 'pt'"),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(pipe, call, line):
    with pytest.raises(ValueError, match=line) as caught:
        pipe(num_inference_steps=1, **call)
    assert "\n" not in str(caught.value)


def test_a_network_without_a_rate_is_told_of():
    unet = langevin.UNet1DModel(**{**UNET, "sample_rate": None})
    with pytest.raises(ValueError, match=r"names no sample_rate, .* load its unet with sample_rate="):
        langevin.DanceDiffusionPipeline(unet, langevin.IPNDMScheduler())()
