"""Semantic guidance against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import langevin
from langevin import ImageStart, SemanticGuidance
from tests.pipelines.family_checks import assert_checkpoints_go_both_ways, assert_same, generator, images, picture

NAME = "SemanticStableDiffusionPipeline"
CALL = dict(
    num_inference_steps=6,
    editing_prompt=["dog", "red"],
    reverse_editing_direction=[False, True],
    edit_warmup_steps=[1, 2],
    edit_threshold=[0.5, 0.8],
    edit_guidance_scale=[4, 6],
)
ONE = dict(num_inference_steps=5, editing_prompt="dog", edit_warmup_steps=1)


@pytest.fixture
def pair(twins):
    import diffusers

    return lambda **options: twins((NAME, diffusers.SemanticStableDiffusionPipeline), **options)


@pytest.mark.filterwarnings("ignore:Safety checker disabled")
@pytest.mark.parametrize(
    ("unet", "scheduler"),
    [
        ("sd1", "ddim"),
        ("sd1", "ddim old config"),
        ("sd1", "pndm"),
        ("sd1", "euler a"),
        ("sd2", "ddim v trailing"),
        ("sd2", "dpm++ 2m karras"),
        ("sd2", "euler karras v"),
        ("sd2", "lms"),
    ],
)
def test_pictures_are_the_reference_ones(pair, unet, scheduler):
    steps = {"num_inference_steps": 4} if scheduler == "ddim old config" else {}
    assert_same(pair(unet=unet, scheduler=scheduler), "a cat", **{**CALL, **steps})


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0),
        dict(guidance_scale=3.0, negative_prompt="ugly"),
        dict(edit_warmup_steps=3, edit_threshold=0.9, edit_guidance_scale=5),
        dict(edit_warmup_steps=9),
        dict(edit_cooldown_steps=3),
        dict(edit_cooldown_steps=[2, 4]),
        dict(edit_momentum_scale=0.0),
        dict(edit_momentum_scale=0.9, edit_mom_beta=0.8),
        dict(edit_mom_beta=0.0),
        dict(edit_weights=[0.3, 2.0]),
        dict(edit_weights=[0.5, -1.0, 7.0]),
        dict(edit_threshold=0.0),
        dict(edit_threshold=1.0),
        dict(reverse_editing_direction=True),
        dict(eta=0.7),
        dict(height=24, num_images_per_prompt=2),
        dict(latents=torch.randn(1, 4, 8, 8, generator=generator(3))),
        dict(prompt=["a cat", "a dog"], generator=lambda: [generator(1), generator(2)]),
        dict(editing_prompt=None, editing_prompt_embeddings=torch.randn(2, 16, 24, generator=generator(5))),
        dict(editing_prompt=None),
        dict(sem_guidance=[torch.randn(1, 4, 8, 8, generator=generator(k)) for k in range(6)]),
    ],
    ids=lambda o: ",".join(k if torch.is_tensor(v) or callable(v) or "sem" in k else f"{k}={v}" for k, v in o.items()),
)
def test_options_give_the_reference_numbers(pair, options):
    assert_same(pair(), **{"prompt": "a cat", **CALL, **options})


def test_one_edit_and_the_defaults(pair):
    assert_same(pair(), "a cat", **ONE)
    assert_same(pair(), "a cat", num_inference_steps=12, editing_prompt=["dog"])


def test_the_old_callback_sees_what_the_reference_shows_it(pair):
    seen: list[list] = [[], []]
    for pipe, log in zip(pair(), seen, strict=True):
        images(pipe, "a cat", callback=lambda i, t, x, log=log: log.append((i, int(t), x.clone())), **CALL)
    assert [entry[:2] for entry in seen[0]] == [entry[:2] for entry in seen[1]]
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours[2], theirs[2], atol=1e-4, rtol=1e-4)


def test_what_was_added_is_what_the_reference_keeps(pair):
    ours, theirs = pair()
    out = ours("a cat", generator=generator(), **CALL)
    theirs("a cat", generator=generator(), **CALL)
    assert len(out.sem_guidance) == 6
    assert out.sem_guidance[0] is None
    for mine, other in zip(out.sem_guidance[1:], theirs.sem_guidance[1:6], strict=True):
        torch.testing.assert_close(mine, other.to(mine), atol=1e-4, rtol=1e-3)
    # a tuple has what the reference's has
    assert len(ours("a cat", return_dict=False, **CALL)) == 2


def test_solvers_with_several_calls_in_a_step_and_edits_that_weigh_nothing_work(pair):
    """The reference runs out of places to keep things in, and gets pictures of NaN."""
    ours, _ = pair(scheduler="heun")
    plain = images(ours, "a cat", num_inference_steps=6)
    assert abs(images(ours, "a cat", **CALL) - plain).max() > 1e-3
    weightless = images(ours, "a cat", **{**CALL, "edit_weights": [-1.0, 0.0]})
    np.testing.assert_allclose(weightless, plain, atol=1e-5)


def test_masks_leave_the_share_of_places_that_the_threshold_says(pair):
    ours, _ = pair()
    out = ours("a cat", seed=1, **{**CALL, "edit_cooldown_steps": [4, 5]})
    assert len(out.edit_masks) == 6
    assert out.edit_masks[2].shape == (2, 1, 4, 8, 8)
    for edit, share in enumerate((0.5, 0.2)):
        kept = out.edit_masks[2][edit].float().mean((-2, -1))
        torch.testing.assert_close(kept, torch.full_like(kept, share), atol=0.02, rtol=0)
    assert not out.edit_masks[4][0].any()
    assert not out.edit_masks[5].any()


def test_guidance_that_was_kept_can_be_given_to_another_call(pair):
    ours, _ = pair()
    made = ours("a cat", seed=1, output_type="np", **CALL)
    again = ours("a cat", seed=1, output_type="np", num_inference_steps=6, sem_guidance=made.sem_guidance)
    np.testing.assert_allclose(again.images, made.images, atol=1e-5)
    assert abs(made.images - ours("a cat", seed=1, output_type="np", num_inference_steps=6).images).max() > 1e-3


def test_embeddings_of_several_edits_go_to_every_prompt(pair):
    """The reference mixes up the rows here."""
    ours, _ = pair()
    call = dict(num_inference_steps=4, edit_warmup_steps=0, output_type="np", edit_threshold=0.5)
    embeds = torch.cat([ours.encode_prompt(text, do_classifier_free_guidance=False)[0] for text in ("dog", "red")])
    named = ours(["a", "b"], seed=3, editing_prompt=["dog", "red"], **call).images
    given = ours(["a", "b"], seed=3, editing_prompt_embeddings=embeds, **call).images
    np.testing.assert_allclose(given, named, atol=1e-5)


def test_a_picture_made_alone_is_the_same(pair):
    ours, _ = pair(scheduler="euler a")
    both = ours(["a cat", "a dog"], seed=[5, 9], output_type="np", **CALL).images
    alone = ours("a dog", seed=9, output_type="np", **CALL).images
    np.testing.assert_allclose(both[1], alone[0], atol=1e-5)


def test_the_guider_is_all_there_is_to_it_and_works_in_image_to_image(pair, twins):
    ours, _ = pair()
    guider = SemanticGuidance(["dog", "red"], [False, True], [4, 6], [1, 2], None, [0.5, 0.8])
    plain = twins()[0]
    np.testing.assert_array_equal(
        images(plain, "a cat", num_inference_steps=6, guiders=[guider]), images(ours, "a cat", **CALL)
    )
    start = ImageStart(picture()[None] * 2 - 1, 0.7)
    call = dict(image=picture(), strength=0.7, num_inference_steps=8)
    img2img = langevin.StableDiffusionImg2ImgPipeline.from_pipe(plain)
    img2img.set_progress_bar_config(disable=True)
    steered = images(img2img, "a cat", guiders=[guider], **call)
    assert abs(steered - images(img2img, "a cat", **call)).max() > 1e-3
    as_text = images(ours, "a cat", guiders=[start], **{**CALL, "num_inference_steps": 8})
    np.testing.assert_allclose(as_text, steered, atol=1e-6)


def test_edits_that_do_not_count_are_not_computed(pair):
    ours, _ = pair()
    rows = []
    handle = ours.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        ours("a cat", seed=1, **{**CALL, "edit_momentum_scale": 0.0, "edit_cooldown_steps": [3, 5]})
        assert rows == [2, 3, 4, 3, 3, 2]
        rows.clear()
        ours("a cat", seed=1, **CALL)
        assert rows == [4] * 6
    finally:
        handle.remove()


def test_checkpoints_go_both_ways(pair, tmp_path):
    assert_checkpoints_go_both_ways(pair(), tmp_path, **CALL)


def test_pictures_say_how_to_make_them_again(pair):
    from langevin.media.schema import check_settings

    ours, _ = pair()
    call = {**CALL, "edit_cooldown_steps": [3, 5], "edit_weights": [1.0, 0.5]}
    made = ours("a cat", seed=4, **call).images[0]
    settings = check_settings(made.settings)
    assert {name: settings[name] for name in call} == call
    again = ours("a cat", seed=4, **{name: settings[name] for name in call}).images[0]
    assert again.tobytes() == made.tobytes()
    with pytest.raises(ValueError, match="edit_warmup_steps is 'x'"):
        check_settings({**settings, "edit_warmup_steps": "x"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(edit_threshold=1.5), "edit_threshold is 1.5"),
        (dict(edit_threshold=[0.5]), "threshold has 1 entries for 2 edits"),
        (dict(edit_warmup_steps=-1), "edit_warmup_steps is -1"),
        (dict(reverse_editing_direction=[True]), "reverse has 1 entries for 2 edits"),
        (dict(edit_weights=[1.0]), "weights has 1 entries"),
        (dict(editing_prompt_embeddings=torch.zeros(1, 16, 24)), "both editing_prompt and"),
        (dict(editing_prompt=None, editing_prompt_embeddings=torch.zeros(16, 24)), r"\(edits, tokens, dim\)"),
        (dict(editing_prompt=3), "editing_prompt is 3"),
    ],
    ids=lambda o: str(o) if isinstance(o, dict) else "",
)
def test_bad_input_gets_one_clear_line(pair, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        pair()[0]("a cat", **{**CALL, **options})
    assert "\n" not in str(caught.value)


def test_pictures_show_what_was_asked_for_and_not_what_was_refused():
    from langevin.zoo.reader import read

    pipe = langevin.SemanticStableDiffusionPipeline.from_pretrained("langevin/shapes")
    pipe.set_progress_bar_config(disable=True)
    call = dict(seed=3, num_inference_steps=12, guidance_scale=4.0, edit_warmup_steps=2, edit_threshold=0.5)

    def colours(**edits):
        pictures = pipe(["a circle"] * 3, **call, **edits).images
        return [[(thing.colour, thing.shape) for thing in read(picture).things] for picture in pictures]

    assert colours() == [[("cyan", "circle")], [("cyan", "circle")], [("yellow", "circle")]]
    assert colours(editing_prompt="blue circle") == [[("blue", "circle")]] * 3
    without = colours(editing_prompt=["cyan", "yellow"], reverse_editing_direction=True)
    assert not [colour for things in without for colour, _ in things if colour in ("cyan", "yellow")]
