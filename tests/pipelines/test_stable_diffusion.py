"""StableDiffusionPipeline against the reference: same weights, inputs and seed, same pictures."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from langevin import ClassifierFreeGuidance, Guider, StableDiffusionPipeline
from langevin.media.picture import Picture
from tests.helpers import in_threads
from tests.pipelines.family_checks import ATOL, SCHEDULERS, assert_same, generator, images


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("unet", ["sd1", "sd2"])
def test_pictures_are_the_reference_ones(both, unet, scheduler):
    assert_same(both(unet, scheduler), "a cat", num_inference_steps=6)


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0),
        dict(guidance_scale=3.0, guidance_rescale=0.7),
        dict(negative_prompt="ugly"),
        dict(num_images_per_prompt=3),
        dict(height=24, width=40),
        dict(clip_skip=1),
        dict(eta=0.5),
        dict(eta=1.0, num_images_per_prompt=2),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_reference_numbers(both, options):
    assert_same(both(), "a cat", num_inference_steps=4, **options)


def test_several_prompts_with_negatives_and_pictures_keep_the_reference_order(both):
    options = dict(negative_prompt=["x", "y"], num_images_per_prompt=2, num_inference_steps=3)
    assert_same(both(), ["a cat", "a dog"], **options)


def test_custom_timesteps_and_sigmas(both):
    assert_same(both(scheduler="ddpm"), "a cat", timesteps=[900, 500, 100])
    assert_same(both(scheduler="euler"), "a cat", sigmas=[10.0, 3.0, 1.0, 0.2, 0.0])


def test_a_guidance_distilled_network(both):
    for scale in (1.0, 4.0):
        assert_same(both("distilled"), "a cat", num_inference_steps=3, guidance_scale=scale)


def test_given_latents_and_embeddings(both):
    latents = torch.randn(2, 4, 8, 8, generator=generator(3))
    embeds, negative = torch.randn(2, 2, 16, 24, generator=generator(4))
    pipes = both(scheduler="euler")
    assert_same(pipes, ["a", "b"], latents=latents, num_inference_steps=3)
    assert_same(pipes, prompt_embeds=embeds, negative_prompt_embeds=negative, num_inference_steps=3)


def test_a_list_of_generators(both):
    ours, theirs = (
        pipe(
            "a cat",
            num_images_per_prompt=2,
            num_inference_steps=3,
            eta=1.0,
            generator=[generator(1), generator(2)],
            output_type="np",
        ).images
        for pipe in both()
    )
    np.testing.assert_allclose(ours, theirs, atol=ATOL)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_output_types_and_tuples(both, output_type):
    ours, theirs = (
        pipe("a cat", num_inference_steps=2, generator=generator(), output_type=output_type, return_dict=False)
        for pipe in both()
    )
    assert len(ours) == len(theirs) == 2
    assert ours[1] is None
    a, b = (np.stack([np.asarray(i, dtype=np.float32) for i in out[0]]) for out in (ours, theirs))
    np.testing.assert_allclose(a, b, atol=1 if output_type == "pil" else 5e-4)
    if output_type == "pil":
        assert isinstance(ours[0][0], Picture)


def test_the_safety_checker_flags_what_the_reference_flags_and_need_not_black_out(both):
    import logging

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    ours, theirs = both(safety=True)
    # thresholds at the middle of what these pictures score, so that some are flagged and some are not
    prompts, options = ["a cat", "a dog", "x", "!!!"], dict(num_inference_steps=2, output_type="np")
    plain = images(both()[0], prompts, num_inference_steps=2)
    checkers = ours.safety_checker, theirs.safety_checker
    pixels = ours.feature_extractor(ours.image_processor.numpy_to_pil(plain), return_tensors="pt").pixel_values
    with torch.no_grad():
        score = torch.nn.functional.cosine_similarity(
            checkers[0].visual_projection(checkers[0].vision_model(pixels)[1])[:, None],
            checkers[0].concept_embeds[None],
            dim=-1,
        )
    concept = int(score.std(0).argmax())
    for checker in checkers:
        checker.concept_embeds_weights.data.fill_(2.0)
        checker.special_care_embeds_weights.data.fill_(2.0)
        checker.concept_embeds_weights.data[concept] = score[:, concept].sort().values[1:3].mean()
    a = ours(prompts, generator=generator(), **options)
    b = theirs(prompts, generator=generator(), **options)
    assert a.nsfw_content_detected == b.nsfw_content_detected
    assert sum(a.nsfw_content_detected) == 2
    np.testing.assert_allclose(a.images, b.images, atol=ATOL)
    for image, flagged in zip(a.images, a.nsfw_content_detected, strict=True):
        assert (image.max() == 0) == flagged
    shown = ours(prompts, generator=generator(), safety_action="flag", **options)
    assert shown.nsfw_content_detected == a.nsfw_content_detected
    np.testing.assert_allclose(shown.images, plain, atol=ATOL)


def test_the_current_callback_sees_and_changes_what_the_reference_lets_it(both):
    logs = []

    def make(log):
        def callback(pipe, i, t, tensors):
            log.append((i, int(t), sorted(tensors), tensors["prompt_embeds"].shape[0], pipe.guidance_scale))
            changed = {"latents": tensors["latents"] * 0.9}
            if i == 1:  # guidance off from here on, as the reference's documentation shows
                pipe._guidance_scale = 0.0
                changed["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
            return changed

        return callback

    outputs = []
    for pipe in both():
        logs.append([])
        names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
        outputs.append(
            images(
                pipe,
                "a cat",
                num_inference_steps=4,
                callback_on_step_end=make(logs[-1]),
                callback_on_step_end_tensor_inputs=names,
            )
        )
    assert logs[0] == logs[1]
    np.testing.assert_allclose(*outputs, atol=ATOL)


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "pndm prk"])
@pytest.mark.parametrize("every", [1, 2])
def test_the_older_callback_is_called_when_the_reference_calls_it(both, scheduler, every):
    logs = [[], []]
    for pipe, log in zip(both(scheduler=scheduler), logs, strict=True):
        pipe(
            "a cat",
            num_inference_steps=5,
            generator=generator(),
            output_type="latent",
            callback=lambda i, t, x, log=log: log.append((int(i), int(t), round(float(x.sum()), 2))),
            callback_steps=every,
        )
    assert [entry[:2] for entry in logs[0]] == [entry[:2] for entry in logs[1]]
    np.testing.assert_allclose([e[2] for e in logs[0]], [e[2] for e in logs[1]], atol=0.02)


def test_interrupting_a_call_ends_it_where_the_reference_ends_it(both):
    def callback(pipe, i, t, tensors):
        if i == 1:
            pipe._interrupt = True
        return tensors

    assert_same(both(), "a cat", num_inference_steps=5, callback_on_step_end=callback)


def test_a_callback_object_names_its_own_tensors(both):
    class Half:
        tensor_inputs = ["latents", "prompt_embeds"]
        seen = None

        def __call__(self, pipe, i, t, tensors):
            self.seen = sorted(tensors)
            return tensors

    half = Half()
    both()[0]("a cat", num_inference_steps=1, callback_on_step_end=half, output_type="latent")
    assert half.seen == ["latents", "prompt_embeds"]


def test_picture_k_of_a_batch_made_alone_is_the_same_picture(both):
    pipe = both(scheduler="ddpm")[0]
    batch = pipe("a cat", num_images_per_prompt=3, num_inference_steps=4, seed=7).images
    alone = pipe("a cat", num_inference_steps=4, seed=9).images[0]
    assert np.abs(np.asarray(batch[2], dtype=int) - np.asarray(alone, dtype=int)).max() <= 1
    assert np.abs(np.asarray(batch[1], dtype=int) - np.asarray(alone, dtype=int)).max() > 1


def test_pictures_carry_the_settings_that_made_them(both):
    pipe = both(scheduler="euler")[0]
    pictures = pipe(["a cat", "a dog"], negative_prompt="x", num_inference_steps=3, seed=5, guidance_scale=2.5).images
    settings = pictures[1].settings
    assert settings["prompt"] == "a dog"
    assert settings["negative_prompt"] == "x"
    assert (settings["seed"], settings["num_inference_steps"], settings["guidance_scale"]) == (6, 3, 2.5)
    assert (settings["height"], settings["width"]) == (16, 16)
    assert settings["scheduler"] == "EulerDiscreteScheduler"
    assert settings["pipeline"] == "StableDiffusionPipeline"


def test_eight_threads_on_one_pipeline_give_the_same_pictures_as_one_after_another(both):
    pipe = both(scheduler="pndm")[0]

    def make(k):
        return pipe("a cat", num_inference_steps=4, seed=k, guidance_scale=1.0 + k, output_type="np").images

    serial = [make(k) for k in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(serial, in_threads(make), strict=True))


def test_a_checkpoint_may_name_its_own_guidance_and_the_reference_still_loads_it(tiny_sd_folder, tmp_path):
    import diffusers

    folder = tmp_path / "copy"
    shutil.copytree(tiny_sd_folder, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_call_defaults": {"guidance_scale": 2.0}}))
    for _ in range(2):  # as written by hand, and as saved again
        pipe = StableDiffusionPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        assert pipe("a", num_inference_steps=1).images[0].settings["guidance_scale"] == 2.0
        assert pipe("a", num_inference_steps=1, guidance_scale=5.0).images[0].settings["guidance_scale"] == 5.0
        diffusers.StableDiffusionPipeline.from_pretrained(folder)
        folder = tmp_path / "again"
        pipe.save_pretrained(folder)
    plain = StableDiffusionPipeline.from_pretrained(tiny_sd_folder)
    assert plain("a", num_inference_steps=1).images[0].settings["guidance_scale"] == 7.5


def test_a_guider_of_ones_own_and_an_own_guidance_replace_or_stack(both):
    pipe = both()[0]

    class Still(Guider):
        """Keeps the network's word to a tenth."""

        def combine(self, prediction, predictions, x, step):
            return prediction * 0.1

    plain = images(pipe, "a cat", num_inference_steps=3)
    assert np.abs(images(pipe, "a cat", num_inference_steps=3, guiders=[Still()]) - plain).max() > 0.01
    own = images(pipe, "a cat", num_inference_steps=3, guiders=[ClassifierFreeGuidance(7.5)], guidance_scale=1.0)
    np.testing.assert_allclose(own, plain, atol=1e-6)


def test_network_calls_are_counted(both):
    pipe = both()[0]
    rows = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    try:
        pipe("a cat", num_inference_steps=3, guidance_scale=1.0, output_type="latent")
        pipe("a cat", num_inference_steps=3, guidance_scale=2.0, output_type="latent")
        half = ClassifierFreeGuidance(2.0, stop=0.5)
        pipe("a cat", num_inference_steps=4, guiders=[half], output_type="latent")
    finally:
        handle.remove()
    assert rows == [1, 1, 1, 2, 2, 2, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(), "neither of prompt"),
        (dict(prompt="a", prompt_embeds=torch.zeros(1, 16, 24)), "both of prompt"),
        (dict(prompt=3), "a text or a list"),
        (dict(prompt=[]), "empty list"),
        (dict(prompt="a", height=17), "multiples of 2"),
        (dict(prompt="a", num_inference_steps=0), "step"),
        (dict(prompt="a", output_type="jpeg"), "'latent'|latent"),
        (dict(prompt="a", seed=1, generator=torch.Generator()), "both seed and generator"),
        (dict(prompt="a", latents=torch.zeros(1, 4, 3, 3)), r"\(1, 4, 8, 8\)"),
        (dict(prompt="a", negative_prompt=["x", "y"]), "2 negative prompts for 1"),
        (dict(prompt="a", callback_steps=0), "callback_steps"),
        (dict(prompt="a", callback_on_step_end=print, callback_on_step_end_tensor_inputs=["nope"]), "nope"),
        (dict(prompt="a", safety_action="burn"), "safety_action"),
        (dict(prompt="a", num_images_per_prompt=0), "num_images_per_prompt"),
    ],
    ids=lambda v: ",".join(v) if isinstance(v, dict) else "",
)
def test_bad_input_gets_one_clear_line(both, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        both()[0](**{"num_inference_steps": 1, **options})
    assert "\n" not in str(caught.value)


def test_unknown_arguments_are_refused(both):
    with pytest.raises(TypeError, match="guidance_scales"):
        both()[0]("a", guidance_scales=3)


def test_a_checker_without_an_extractor_is_refused(both):
    parts = both()[0].components
    with pytest.raises(ValueError, match="feature_extractor"):
        StableDiffusionPipeline(**{**parts, "safety_checker": torch.nn.Linear(1, 1), "feature_extractor": None})
