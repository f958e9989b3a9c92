"""Safe Stable Diffusion against the reference."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import torch

import langevin
from langevin import SafeGuidance, SafetyConfig, StableDiffusionPipelineSafe
from tests.pipelines.family_checks import SCHEDULERS, assert_same, generator, images

NAME = "StableDiffusionPipelineSafe"
STEPS = dict(num_inference_steps=6)
STRONG = {**SafetyConfig.STRONG, "sld_warmup_steps": 2}


@pytest.fixture
def pair(twins):
    """Both pipelines, with a concept that fits the tiny text encoder's window of 16."""
    import diffusers

    def make(concept="ugly", **options):
        both = twins((NAME, diffusers.StableDiffusionPipelineSafe), **options)
        for pipe in both:
            pipe.safety_concept = concept
        return both

    return make


@contextlib.contextmanager
def in_double(pipes):
    """The session's pipelines in float64 for a while."""
    try:
        yield [pipe.to(torch.float64) for pipe in pipes]
    finally:
        for pipe in pipes:
            pipe.to(torch.float32)


@pytest.mark.filterwarnings("ignore:Safety checker disabled")
class TestNumbers:
    @pytest.mark.parametrize("scheduler", SCHEDULERS)
    @pytest.mark.parametrize("unet", ["sd1", "sd2"])
    def test_pictures_are_the_reference_ones(self, pair, unet, scheduler):
        both = pair(unet=unet, scheduler=scheduler)
        if SCHEDULERS[scheduler][1].get("prediction_type") == "v_prediction":
            # a scale of 2000 makes fp32's rounding show here, where prompt and concept hardly differ
            with in_double(both):
                assert_same(both, "a cat", atol=1e-6, **STEPS, **STRONG)
        else:
            assert_same(both, "a cat", **STEPS, **STRONG)

    @pytest.mark.parametrize("name", ["WEAK", "MEDIUM", "STRONG", "MAX"])
    def test_the_four_settings_are_the_reference_ones(self, pair, name):
        from diffusers.pipelines.deprecated.stable_diffusion_safe import SafetyConfig as Theirs

        assert getattr(SafetyConfig, name) == getattr(Theirs, name)
        assert_same(pair(), "a cat", num_inference_steps=17, **getattr(SafetyConfig, name))

    @pytest.mark.parametrize(
        "options",
        [
            dict(guidance_scale=1.0),
            dict(guidance_scale=3.0, sld_warmup_steps=0),
            dict(sld_guidance_scale=1.0),
            dict(sld_guidance_scale=0.0),
            dict(sld_guidance_scale=20.0),
            dict(sld_momentum_scale=0.0),
            dict(sld_mom_beta=0.0),
            dict(sld_threshold=0.5),
            dict(sld_warmup_steps=6),
            dict(negative_prompt="ugly"),
            dict(num_images_per_prompt=2, height=24),
            dict(eta=0.7),
            dict(latents=torch.randn(1, 4, 8, 8, generator=generator(3))),
        ],
        ids=lambda o: ",".join(k if torch.is_tensor(v) else f"{k}={v}" for k, v in o.items()),
    )
    def test_options_give_the_reference_numbers(self, pair, options):
        assert_same(pair(), "a cat", **{**STEPS, **STRONG, **options})

    def test_several_prompts_with_pictures_and_generators(self, pair):
        call = dict(num_images_per_prompt=2, negative_prompt=["x", "y"], **STEPS, **STRONG)
        generators = lambda: [generator(k) for k in range(4)]  # noqa: E731
        assert_same(pair(scheduler="euler a"), ["a", "b"], generator=generators, **call)

    def test_the_concept_that_pipelines_come_with(self, pair, twins):
        import diffusers

        ours, theirs = twins((NAME, diffusers.StableDiffusionPipelineSafe))
        assert ours.safety_concept == theirs.safety_concept == StableDiffusionPipelineSafe.safety_concept
        ours, theirs = pair(ours.safety_concept)
        call = dict(**STEPS, **STRONG)
        # the reference reads as much of it as fits into one window
        np.testing.assert_allclose(
            images(ours, "a cat", long_prompts="cut", **call), images(theirs, "a cat", **call), atol=1e-4
        )
        assert abs(images(ours, "a cat", **call) - images(theirs, "a cat", **call)).max() > 1e-4

    def test_old_callbacks(self, pair):
        seen: list[list] = [[], []]
        for pipe, log in zip(pair(scheduler="heun"), seen, strict=True):
            images(pipe, "a cat", callback=lambda i, t, x, log=log: log.append((i, float(t), x)), **STEPS, **STRONG)
        assert len(seen[0]) == len(seen[1])
        for ours, theirs in zip(*seen, strict=True):
            assert ours[:2] == theirs[:2]
            # latents, and a scale of 2000 that takes every rounding with it
            torch.testing.assert_close(ours[2], theirs[2], atol=1e-3, rtol=1e-4)


def test_the_arguments_and_defaults_are_the_reference_ones():
    import inspect

    import diffusers

    ours = inspect.signature(StableDiffusionPipelineSafe.__call__).parameters
    theirs = inspect.signature(diffusers.StableDiffusionPipelineSafe.__call__).parameters
    assert set(theirs) <= set(ours)
    for name in theirs:
        if name not in ("ip_adapter_image", "prompt", "guidance_scale", "callback_steps"):
            assert ours[name].default == theirs[name].default, name


def test_switched_off_it_is_text_to_image_and_says_so(pair, twins):
    ours, _ = pair()
    plain, _ = twins()
    expected = images(plain, "a cat", **STEPS)
    for off in (dict(sld_guidance_scale=0), dict(sld_warmup_steps=6)):
        np.testing.assert_array_equal(images(ours, "a cat", **STEPS, **off), expected)
    assert ours("a cat", **STEPS, sld_guidance_scale=0).applied_safety_concept is None
    assert ours("a cat", **STEPS, guidance_scale=1).applied_safety_concept is None
    assert ours("a cat", **STEPS).applied_safety_concept == "ugly"


def test_a_concept_for_one_call(pair):
    ours, _ = pair()
    named = ours("a cat", safety_concept="red", seed=1, **STEPS, **STRONG)
    assert named.applied_safety_concept == "red"
    assert named.images[0].settings["safety_concept"] == "red"
    assert ours.safety_concept == "ugly"
    ours, _ = pair("red")
    assert named.images[0] == ours("a cat", seed=1, **STEPS, **STRONG).images[0]


def checked(twins, pair):
    """Both pipelines with the same checker of random weights, ours from the reference's folder."""
    from diffusers.pipelines.deprecated.stable_diffusion_safe.safety_checker import SafeStableDiffusionSafetyChecker

    plain, usual = twins(safety=True)
    checker = SafeStableDiffusionSafetyChecker(usual.safety_checker.config).eval()
    checker.load_state_dict(usual.safety_checker.state_dict())
    parts = dict(safety_checker=(plain.safety_checker, checker))
    return plain, pair(safety=True, **parts)


def flag_as(pipes, flags):
    """Make checkers flag these pictures; through thresholds it would depend on random weights."""
    for pipe in pipes:
        checker = pipe.safety_checker
        checker.flag = lambda pixels: list(flags)
        checker.forward = lambda clip_input, images: (images, list(flags))


def unflagged(pipes):
    for pipe in pipes:
        for name in ("flag", "forward"):
            pipe.safety_checker.__dict__.pop(name, None)


@pytest.mark.parametrize("flags", [[True, False], [False, True], [True, True]])
def test_flagged_pictures_are_black_and_kept_aside(twins, pair, flags):
    _, both = checked(twins, pair)
    call = dict(num_images_per_prompt=2, **STEPS, **STRONG)
    try:
        flag_as(both, flags)
        for kind in ("np", "pil"):
            ours, theirs = (pipe("a cat", output_type=kind, generator=generator(), **call) for pipe in both)
            assert ours.nsfw_content_detected == flags
            assert theirs.nsfw_content_detected == flags[-1]  # a slip: its loop's variable has the list's name
            for mine, other in ((ours.images, theirs.images), (ours.unsafe_images, theirs.unsafe_images)):
                pixels = [np.stack([*map(np.asarray, made)]).astype(float) for made in (mine, other)]
                np.testing.assert_allclose(*pixels, atol=1e-4 if kind == "np" else 1)
            assert [not np.asarray(image).any() for image in ours.images] == flags
            assert [bool(np.asarray(image).any()) for image in ours.unsafe_images] == flags
        flagged = both[0]("a cat", output_type="pt", safety_action="flag", generator=generator(), **call)
        assert all(image.any() for image in flagged.images)
        assert ours.images[0].settings["safety_action"] == "blackout"
        images, said, concept, aside = both[0]("a cat", output_type="pt", return_dict=False, **call)
        assert (said, concept) == (flags, "ugly")
        assert [not image.any() for image in images] == flags
        assert [bool(image.any()) for image in aside] == flags
    finally:
        unflagged(both)


def test_what_nobody_flags_is_not_kept_aside(twins, pair):
    _, both = checked(twins, pair)
    try:
        flag_as(both[:1], [False, False])
        made = both[0](["a", "b"], **STEPS)
        assert made.nsfw_content_detected == [False, False]
        assert made.unsafe_images is None
    finally:
        unflagged(both[:1])
    assert pair()[0]("a", **STEPS).nsfw_content_detected is None


def test_each_side_loads_what_the_other_saves(pair, tmp_path):
    import diffusers

    ours, theirs = pair()
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = langevin.DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(back) is StableDiffusionPipelineSafe
    assert type(theirs).__name__ == NAME
    for pipe in (back, theirs):
        pipe.set_progress_bar_config(disable=True)
        pipe.safety_concept = "red"
    assert_same((back, theirs), "a cat", **STEPS, **STRONG)


def test_the_checker_loads_under_the_name_that_its_checkpoints_have(twins, pair, tmp_path):
    import diffusers

    _, (ours, _) = checked(twins, pair)
    ours.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
    assert diffusers.DiffusionPipeline.from_pretrained(tmp_path).safety_checker is not None
    index["safety_checker"] = ["stable_diffusion_safe", "SafeStableDiffusionSafetyChecker"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    back = langevin.DiffusionPipeline.from_pretrained(tmp_path)
    pixels = torch.randn(4, 3, 32, 32, generator=generator())
    assert back.safety_checker.flag(pixels) == ours.safety_checker.flag(pixels)


def test_the_guider_is_all_there_is_to_it(pair, twins):
    ours, _ = pair()
    plain, _ = twins()
    guider = SafeGuidance("ugly", 2000, 2, 0.025, 0.5, 0.7)
    alone = images(plain, "a cat", guiders=[guider], **STEPS)
    np.testing.assert_array_equal(alone, images(ours, "a cat", **STEPS, **STRONG))


def test_unknown_arguments_and_bad_numbers_are_refused(pair):
    ours, _ = pair()
    with pytest.raises(TypeError, match="sld_scale"):
        ours("a cat", sld_scale=3)
    with pytest.raises(ValueError, match="sld_warmup_steps is -1"):
        ours("a cat", sld_warmup_steps=-1)
