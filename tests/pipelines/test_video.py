"""TextToVideoSDPipeline and VideoToVideoSDPipeline against the reference, and what they do beyond it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import langevin
from langevin import SelfAttentionGuidance, Windows
from tests.pipelines.family_checks import SCHEDULERS, assert_checkpoints_go_both_ways, generator
from tests.pipelines.video_checks import VideoTwins, assert_same_frames, clip, clip_pil, frames

SHORT = dict(num_inference_steps=3, num_frames=3)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    return VideoTwins(tmp_path_factory.mktemp("video"))


# ------------------------------------------------------------------------------------------------------ the reference


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_videos_are_the_reference_ones_with_every_scheduler(twins, scheduler):
    assert_same_frames(
        twins(scheduler=scheduler), "a cat", num_inference_steps=4, num_frames=3, negative_prompt="a dog"
    )


@pytest.mark.parametrize(
    "call",
    [
        dict(guidance_scale=1.0),
        dict(num_frames=1),
        dict(eta=1.0),
        dict(height=24, width=32, num_frames=2),
        dict(clip_skip=1, guidance_scale=4.0),
        dict(output_type="pt"),
        dict(output_type="latent", num_frames=5),
        dict(latents=torch.randn(1, 4, 3, 8, 8, generator=generator(5))),
        dict(cross_attention_kwargs={"scale": 1.0}),
    ],
    ids=lambda call: " ".join(call),
)
def test_options_are_the_reference_ones(twins, call):
    assert_same_frames(twins(), "a cat", **{**SHORT, **call})


def test_another_network(twins):
    assert_same_frames(twins(unet="wide", scheduler="euler a"), "a cat", **SHORT)


def test_batches_and_embeddings(twins):
    both = twins()
    assert_same_frames(both, ["a cat", "a dog"], negative_prompt=["x", "y"], eta=0.5, **SHORT)
    embeds = twins.parts()[0]["text_encoder"](torch.arange(16)[None]).last_hidden_state
    assert_same_frames(both, prompt_embeds=embeds, negative_prompt_embeds=embeds.flip(1), **SHORT)


def test_freeu_is_the_reference_one(twins):
    both = twins()
    plain = frames(both[0], "a cat", **SHORT)
    for pipe in both:
        pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    try:
        assert_same_frames(both, "a cat", **SHORT)
        assert abs(frames(both[0], "a cat", **SHORT) - plain).max() > 1e-3
    finally:
        for pipe in both:
            pipe.disable_freeu()


@pytest.mark.parametrize("scheduler", ["ddim", "euler a", "dpm++ 2m karras", "pndm", "ddpm", "heun"])
def test_videos_from_videos_are_the_reference_ones(twins, scheduler):
    both = twins("VideoToVideoSDPipeline", scheduler)
    assert_same_frames(both, "a cat", video=clip(), num_inference_steps=5)


@pytest.mark.parametrize(
    "call",
    [
        dict(strength=1.0),
        dict(strength=0.3, eta=1.0),
        dict(guidance_scale=1.0),
        dict(video=clip()[None]),
        dict(video=2 * clip() - 1),
        dict(video=clip().permute(0, 2, 3, 1).numpy()),
        dict(video=list(clip().permute(0, 2, 3, 1).numpy())),
        dict(video=clip_pil(2, 24, 20)),
        dict(output_type="latent"),
    ],
    ids=lambda call: " ".join(call),
)
def test_options_of_videos_from_videos_are_the_reference_ones(twins, call):
    call = {"video": clip(), "num_inference_steps": 5, "negative_prompt": "a dog", **call}
    assert_same_frames(twins("VideoToVideoSDPipeline"), "a cat", **call)


@pytest.mark.parametrize("name", ["TextToVideoSDPipeline", "VideoToVideoSDPipeline"])
def test_checkpoints_go_both_ways(twins, name, tmp_path):
    ours, theirs = twins(name, "euler")
    call = {"num_inference_steps": 3, **({"video": clip()} if name[0] == "V" else {"num_frames": 3})}
    assert_checkpoints_go_both_ways((ours, theirs), tmp_path, assert_same_frames, **call)
    # the other way of naming libraries: by the room of pipelines
    index = tmp_path / "ours" / "model_index.json"
    entries = json.loads(index.read_text())
    entries["unet"][0] = "text_to_video_synthesis"
    index.write_text(json.dumps(entries))
    assert type(langevin.DiffusionPipeline.from_pretrained(tmp_path / "ours")) is type(ours)


def test_one_model_serves_both_tasks(twins):
    pipe = langevin.VideoToVideoSDPipeline.from_pipe(twins()[0])
    assert pipe.unet is twins.parts()[0]["unet"]
    assert pipe("a cat", clip(), num_inference_steps=2).frames.shape == (1, 3, 16, 16, 3)


# ----------------------------------------------------------------------------------------------------- what is handed


def test_forms_of_output(twins):
    pipe = twins()[0]
    call = dict(num_inference_steps=2, num_frames=3, height=24, seed=[1, 2])
    np_, pt, pil = (pipe(["a", "b"], **call, output_type=form).frames for form in ("np", "pt", "pil"))
    assert np_.shape == (2, 3, 24, 16, 3)
    assert pt.shape == (2, 3, 3, 24, 16)
    np.testing.assert_allclose(pt.permute(0, 1, 3, 4, 2).numpy(), np_, atol=1e-6)
    assert [type(one) for one in pil] == [langevin.Video] * 2
    assert [len(one) for one in pil] == [3, 3]
    np.testing.assert_allclose(np.asarray(pil[1][2]) / 255, np_[1, 2], atol=0.5 / 255 + 1e-6)
    assert pipe("a", num_frames=2, num_inference_steps=1, return_dict=False)[0].shape == (1, 2, 16, 16, 3)
    assert (pil[1].settings["seed"], pil[1].settings["prompt"], pil[1].settings["num_frames"]) == (2, "b", 3)
    assert (pil[0].settings["height"], pil[0].settings["width"]) == (24, 16)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_video_is_what_it_is_alone(twins, eta):
    """Also where the reference raises: noise on the way, with a generator for each video."""
    call = dict(**SHORT, output_type="pt", eta=eta)
    for name, more in (("TextToVideoSDPipeline", {}), ("VideoToVideoSDPipeline", {"video": clip()})):
        pipe = twins(name)[0]
        call = {k: v for k, v in {**call, **more}.items() if k != "num_frames" or not more}
        together = pipe(["a cat", "a dog"], seed=[5, 9], **call).frames
        torch.testing.assert_close(pipe("a dog", seed=9, **call).frames[0], together[1], atol=1e-4, rtol=0)
        assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_several_videos_of_a_prompt(twins):
    pipe = twins()[0]
    two = pipe("a cat", num_images_per_prompt=2, seed=3, **SHORT).frames
    np.testing.assert_allclose(pipe("a cat", seed=4, **SHORT).frames[0], two[1], atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 2])
def test_decoding_a_few_frames_at_a_time_changes_nothing(twins, chunk):
    pipe = twins("VideoToVideoSDPipeline")[0]
    call = dict(video=clip(5), num_inference_steps=2, seed=[1, 2])
    whole = pipe(["a cat", "a dog"], **call).frames
    seen = []
    watch = pipe.vae.decoder.register_forward_hook(lambda part, given, out: seen.append(len(out)))
    encoded = pipe.vae.encoder.register_forward_hook(lambda part, given, out: seen.append(len(out)))
    np.testing.assert_allclose(pipe(["a cat", "a dog"], **call, decode_chunk_size=chunk).frames, whole, atol=1e-5)
    for hook in (watch, encoded):
        hook.remove()
    assert max(seen) == chunk
    assert sum(seen) == 10 + 10  # each draws its own latents of the one video, and two come out


def test_a_network_that_moves_nothing_gives_the_video_as_the_autoencoder_sees_it(twins):
    pipe = twins("VideoToVideoSDPipeline")[0]
    same = pipe("a cat", video=clip(), strength=0.0, seed=1, output_type="pt").frames[0]
    latents = pipe("a cat", video=clip(), strength=0.0, seed=1, output_type="latent").frames
    again = pipe("a cat", video=torch.cat([latents, latents[:, :, :1]], dim=2), strength=0.0, seed=1).frames
    assert again.shape == (1, 4, 16, 16, 3)
    torch.testing.assert_close(torch.from_numpy(again[0, :3]).permute(0, 3, 1, 2), same, atol=1e-4, rtol=0)


def test_frames_are_cut_to_the_multiple_or_brought_to_a_size(twins):
    pipe = twins("VideoToVideoSDPipeline")[0]
    odd = clip(2, 17, 19)
    cut = frames(pipe, "a cat", video=odd, num_inference_steps=2)
    assert cut.shape == (1, 2, 16, 18, 3)
    np.testing.assert_allclose(cut, frames(pipe, "a cat", video=odd[..., :16, :18], num_inference_steps=2), atol=1e-5)
    assert frames(pipe, "a cat", video=odd, num_inference_steps=2, height=12, width=10).shape == (1, 2, 12, 10, 3)


def test_whole_numbers_count_to_255(twins):
    """Where the reference takes them for floats."""
    pipe = twins("VideoToVideoSDPipeline")[0]
    arrays = [np.asarray(one) for one in clip_pil()]
    call = dict(num_inference_steps=2)
    as_pil = frames(pipe, "a cat", video=clip_pil(), **call)
    np.testing.assert_allclose(frames(pipe, "a cat", video=arrays, **call), as_pil, atol=1e-5)


def test_prompts_one_video_each(twins):
    pipe = twins("VideoToVideoSDPipeline")[0]
    call = dict(num_inference_steps=3, output_type="pt")
    other = clip(seed=7)
    both = pipe(["a cat", "a dog"], video=[clip_pil(), clip_pil(seed=7)], seed=[1, 2], **call).frames
    alone = pipe("a dog", video=clip_pil(seed=7), seed=2, **call).frames
    torch.testing.assert_close(both[1], alone[0], atol=1e-4, rtol=0)
    stacked = pipe(["a cat", "a dog"], video=torch.stack([clip(), other]), seed=[1, 2], **call).frames
    torch.testing.assert_close(stacked, both, atol=0.02, rtol=0)  # but for 8 bits
    noise = torch.randn(1, 4, 3, 8, 8, generator=generator(3))
    given = [pipe("a cat", video=clip(), latents=noise, seed=s, strength=1.0, **call).frames for s in (1, 2)]
    assert not torch.equal(given[0], pipe("a cat", video=clip(), seed=1, strength=1.0, **call).frames)


# ------------------------------------------------------------------------------------------------- prompts and guiders


def test_weights_and_long_prompts(twins):
    pipe = twins()[0]
    plain, heavy = (pipe(text, **SHORT, seed=1).frames for text in ("a red cat", "a (red)1.8 cat"))
    assert abs(plain - heavy).max() > 1e-3
    text = "a cat that walks and walks and walks"
    chunked, cut = (pipe(text, **SHORT, seed=1, long_prompts=how).frames for how in ("chunk", "cut"))
    assert abs(chunked - cut).max() > 1e-4
    assert frames(pipe, ["a cat", text], **SHORT).shape == (2, 3, 16, 16, 3)


def test_windows_work_on_videos_and_what_looks_at_one_picture_says_so(twins):
    pipe = twins()[0]
    call = dict(num_inference_steps=2, num_frames=2, height=24, width=32, seed=1)
    whole = pipe("a cat", **call).frames
    parts = pipe("a cat", **call, guiders=[Windows(8, 4)]).frames
    assert parts.shape == whole.shape
    assert abs(parts - whole).max() > 1e-4
    one = pipe("a cat", **call, guiders=[Windows(16, 16)]).frames
    np.testing.assert_allclose(one, whole, atol=1e-5)  # one window
    depth = langevin.DepthChannel(torch.rand(1, 24, 32))
    with pytest.raises(ValueError, match="DepthChannel works on pictures; what is made here is a video"):
        pipe("a cat", **call, guiders=[depth])


GUIDERS = {
    "safe": lambda: [langevin.SafeGuidance("a dog", warmup_steps=0, threshold=1.0)],
    "semantic": lambda: [langevin.SemanticGuidance(["a dog"], warmup_steps=0)],
    "cfg++": lambda: [langevin.CFGPlusPlus(0.6)],
    "rescale": lambda: [langevin.GuidanceRescale(0.7)],
    "cycle": lambda: [langevin.CycleNoise(2 * clip().transpose(0, 1)[None] - 1, 0.8, "a dog")],
    "self-attention": lambda: [SelfAttentionGuidance(0.75)],
    "self-attention in windows": lambda: [SelfAttentionGuidance(0.75), Windows(6, 4)],
    "start": lambda: [langevin.ImageStart(2 * clip().transpose(0, 1)[None] - 1, 0.8)],
}


@pytest.mark.parametrize("name", GUIDERS)
def test_guiders_work_on_videos_and_frames_stay_their_own(twins, name):
    """Each changes the video, and each video of a batch is what it is alone."""
    pipe = twins()[0]
    call = dict(**SHORT, eta=0.5, output_type="pt")
    plain = pipe("a cat", **call, seed=2).frames
    made = pipe(["a house", "a cat"], **call, seed=[1, 2], guiders=GUIDERS[name]()).frames
    assert (made[1] - plain[0]).abs().max() > 1e-3
    alone = pipe("a cat", **call, seed=2, guiders=GUIDERS[name]()).frames
    torch.testing.assert_close(made[1], alone[0], atol=1e-4, rtol=0)


def test_a_part_of_a_video_is_made_anew(twins):
    pipe = twins(scheduler="ddim")[0]
    given = 2 * clip().transpose(0, 1)[None] - 1
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    call = dict(**SHORT, output_type="pt", seed=1)
    plain = pipe("a cat", **call).frames[0]
    kept = pipe("a cat", **call, guiders=[langevin.Inpaint(given, mask, keep_outside=True)]).frames[0]
    torch.testing.assert_close(kept[..., :8], clip()[..., :8], atol=1e-5, rtol=0)
    assert (kept[..., 8:] - plain[..., 8:]).abs().max() > 1e-3  # what is around it has been seen
    assert (kept[..., 8:] - clip()[..., 8:]).abs().mean() > 0.05
    latents = pipe("a cat", **{**call, "output_type": "latent"}, guiders=[langevin.Inpaint(given, mask)]).frames
    start = langevin.ImageStart(given, 0.0)  # draws the same latents of the video
    video = pipe("a cat", **{**call, "output_type": "latent"}, guiders=[start]).frames
    torch.testing.assert_close(latents[..., :4], video[..., :4], atol=1e-5, rtol=0)
    both = langevin.Inpaint(torch.cat([given, -given]), mask)
    together = pipe(["a dog", "a cat"], **{**call, "seed": [3, 1]}, guiders=[both]).frames
    alone = pipe("a cat", **call, guiders=[langevin.Inpaint(-given, mask)]).frames
    torch.testing.assert_close(together[1], alone[0], atol=1e-4, rtol=0)


def test_noise_frame_after_frame_is_for_videos(tiny_sd_folder):
    pipe = langevin.DiffusionPipeline.from_pretrained(tiny_sd_folder)
    with pytest.raises(ValueError, match="FrameNoise is for videos; what is made here is"):
        pipe("a cat", num_inference_steps=1, guiders=[langevin.FrameNoise()])


def test_a_prompt_may_change_on_the_way(twins):
    pipe = twins()[0]
    first, then, both = (pipe(text, **SHORT, seed=1).frames for text in ("a cat", "a dog", "a [cat:dog:0.4]"))
    assert min(abs(both - first).max(), abs(both - then).max()) > 1e-3


def test_callbacks_interruption_and_progress(twins):
    ours, theirs = twins(scheduler="ddim")
    old = [[], []]
    for pipe, seen in zip((ours, theirs), old, strict=True):
        pipe("a cat", generator=generator(), num_inference_steps=5, num_frames=2, callback_steps=2,
             callback=lambda i, t, x, seen=seen: seen.append((i, int(t), x.clone())))  # fmt: skip
    assert [one[:2] for one in old[0]] == [one[:2] for one in old[1]]
    for mine, its in zip(*old, strict=True):
        torch.testing.assert_close(mine[2], its[2], atol=1e-4, rtol=1e-4)
    steps = []

    def stop(call, i, t, tensors):
        assert tensors["latents"].shape == (1, 4, 2, 8, 8)
        steps.append(i)
        call._interrupt = i == 1

    assert ours("a cat", num_inference_steps=5, num_frames=2, callback_on_step_end=stop).frames.shape[1] == 2
    assert steps == [0, 1]


MISTAKES = {
    "no video": (dict(video=None), "video is a NoneType; give its frames in a list"),
    "a path": (dict(video="cat.mp4"), r"load_video\(path\) reads a file"),
    "one picture": (dict(video=torch.rand(3, 16, 16)), r"video is a Tensor of shape \(3, 16, 16\)"),
    "an empty list": (dict(video=[]), "video is a list"),
    "lengths": (dict(video=[clip_pil(2), clip_pil(3)]), "all must have one length and size"),
    "number of videos": (dict(video=[clip_pil(), clip_pil()]), "2 images for a batch of 1"),
    "strength": (dict(video=clip(), strength=1.5), "strength is 1.5"),
    "range": (dict(video=clip() * 255), "video"),
    "chunk": (dict(video=clip(), decode_chunk_size=0), "decode_chunk_size is 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_in_one_line(twins, name):
    given, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message) as caught:
        twins("VideoToVideoSDPipeline")[0]("a cat", **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [dict(num_frames=0), dict(height=15), dict(latents=torch.zeros(1, 4, 8, 8))])
def test_a_mistake_in_what_is_to_be_made(twins, given):
    with pytest.raises(ValueError, match=next(iter(given))):
        twins()[0]("a cat", **{**SHORT, **given})
