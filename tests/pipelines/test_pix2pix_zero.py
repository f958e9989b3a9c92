"""Pix2pix-zero against the reference."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import langevin
from langevin import AttentionMaps, CrossAttentionGuidance, KeepAttention, SelfAttentionGuidance, Whitening, Windows
from langevin.guiders.whitening import auto_correlation, divergence
from tests.pipelines.control_checks import controlnets
from tests.pipelines.family_checks import (
    SCHEDULERS,
    assert_checkpoints_go_both_ways,
    assert_same,
    generator,
    images,
    picture,
    pil,
)

NAME = "StableDiffusionPix2PixZeroPipeline"


def ends(count=3, tokens=16):
    return [0.3 * torch.randn(count, tokens, 24, generator=generator(k)) for k in (1, 2)]


SOURCE, TARGET = ends()
# random networks look everywhere alike: this much guidance changes pictures by 0.03 to 0.1
CALL = dict(num_inference_steps=4, source_embeds=SOURCE, target_embeds=TARGET, cross_attention_guidance_amount=100.0)


@pytest.fixture
def pair(twins):
    import diffusers

    def make(scheduler="ddim", unet="sd1"):
        kind = SCHEDULERS[scheduler][1].get("prediction_type", "epsilon")
        inverse = [cls(clip_sample=False, prediction_type=kind) for cls in
                   (langevin.DDIMInverseScheduler, diffusers.DDIMInverseScheduler)]  # fmt: skip
        parts = dict(inverse_scheduler=inverse, caption_generator=(None, None), caption_processor=(None, None))
        ours, theirs = twins(NAME, unet=unet, scheduler=scheduler, **parts)
        theirs.unet = copy.deepcopy(theirs.unet)  # it leaves other attention in the network that it edits with
        return ours, theirs

    return make


# -- the call


@pytest.mark.parametrize(
    ("unet", "scheduler"),
    [
        ("sd1", "ddim"),
        ("sd1", "ddpm"),
        ("sd1", "euler a"),
        ("sd1", "lms"),
        ("sd2", "ddim v trailing"),
        ("sd2", "ddim"),
    ],
)
def test_pictures_are_the_reference_ones(pair, unet, scheduler):
    assert_same(pair(scheduler, unet), "a cat", **CALL)


@pytest.mark.parametrize(
    "options",
    [
        dict(cross_attention_guidance_amount=0.0),
        dict(cross_attention_guidance_amount=0.1),
        dict(guidance_scale=3.0, negative_prompt="ugly"),
        dict(guidance_scale=1.0, source_embeds=TARGET),
        dict(eta=0.7),
        dict(clip_skip=1),
        dict(height=24, width=16),
        dict(latents=torch.randn(1, 4, 8, 8, generator=generator(3))),
        dict(prompt=None, prompt_embeds=SOURCE[:1], negative_prompt_embeds=TARGET[:1]),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_reference_numbers(pair, options):
    assert_same(pair(), **{"prompt": "a cat", **CALL, **options})


@pytest.mark.parametrize("scheduler", ["lms", "euler a"])
def test_no_guidance_is_the_reference_ones_too_scale_and_all(pair, scheduler):
    assert_same(pair(scheduler), "a cat", **{**CALL, "cross_attention_guidance_amount": 0.0})


def test_the_edit_and_the_guidance_have_their_effect(pair):
    ours, _ = pair()
    edited = images(ours, "a cat", **CALL)
    for other in (dict(target_embeds=SOURCE), dict(cross_attention_guidance_amount=0.0)):
        changed = images(ours, "a cat", **{**CALL, **other})
        assert abs(changed - edited).max() > 1e-2
    without = images(ours, "a cat", **{**CALL, "target_embeds": SOURCE, "cross_attention_guidance_amount": 0.0})
    plain = langevin.StableDiffusionPipeline.from_pipe(ours)
    plain.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(without, images(plain, "a cat", num_inference_steps=4), atol=1e-5)


def test_the_network_looks_more_where_it_looked_before(pair):
    """What the guidance is for: attention in the edit is nearer to that before it."""
    ours, _ = pair()
    plain = langevin.StableDiffusionPipeline.from_pipe(ours)
    plain.set_progress_bar_config(disable=True)
    x, call = torch.randn(1, 4, 8, 8, generator=generator(3)), dict(num_inference_steps=3, output_type="np")
    before = AttentionMaps()
    plain("a cat", latents=x, guiders=[KeepAttention(before)], **call)

    def far(amount):
        after = AttentionMaps()
        guiders = [CrossAttentionGuidance(before, amount), KeepAttention(after)]
        plain("a dog and a house", latents=x, guiders=guiders, **call)
        return sum(((one - other) ** 2).sum() for key in before.kept
                   for one, other in zip(before.kept[key], after.kept[key], strict=True))  # fmt: skip

    assert before.kept.keys() == {(i, name) for i in range(3) for name in ("positive", "negative")}
    assert far(100.0) < far(20.0) < far(0.0)


def test_schedulers_that_count_in_sigma_can_keep_their_scale(pair):
    ours, _ = pair("lms")
    call = {**CALL, "cross_attention_guidance_amount": 1e-9, "target_embeds": SOURCE}
    plain = langevin.StableDiffusionPipeline.from_pipe(ours)
    plain.set_progress_bar_config(disable=True)
    expected = images(plain, "a cat", num_inference_steps=4)
    np.testing.assert_allclose(images(ours, "a cat", unscaled=True, **call), expected, atol=1e-4)
    assert abs(images(ours, "a cat", **call) - expected).max() > 1e-2


def test_without_guidance_there_is_an_edit_too(pair):
    """The reference adds the direction to a row that is not there."""
    ours, theirs = pair()
    call = {**CALL, "guidance_scale": 1.0}
    unedited = {**call, "target_embeds": SOURCE}
    np.testing.assert_allclose(images(theirs, "a cat", **call), images(theirs, "a cat", **unedited), atol=1e-5)
    assert abs(images(ours, "a cat", **call) - images(ours, "a cat", **unedited)).max() > 1e-4


def test_a_picture_made_alone_is_the_same(pair):
    """The reference edits the first picture only, and moves each less for every one beside it."""
    ours, _ = pair("euler a")
    call = dict(CALL)
    both = images(ours, ["a cat", "a dog"], seed=[5, 9], **call)
    np.testing.assert_allclose(both[1], images(ours, "a dog", seed=9, **call)[0], atol=1e-5)
    long = ["a cat", " ".join("abcdefghijklmnopqrstu")]  # two windows of tokens
    call |= dict(source_embeds=ends(tokens=1)[0], target_embeds=ends(tokens=1)[1])
    with pytest.raises(ValueError, match=r"edits of \(1, 24\) do not fit a prompt of \(32, 24\)"):
        images(ours, long, seed=[5, 9], **call)


def test_sentences_in_the_place_of_embeddings(pair):
    ours, theirs = pair()
    sides = ["a cat", "the cat", "cat"], ["a dog", "the dog", "dog"]
    for side in sides:
        mine, other = ours.get_embeds(side, batch_size=2), theirs.get_embeds(side)
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    embeds = [ours.get_embeds(side) for side in sides]
    torch.testing.assert_close(ours.construct_direction(*embeds), theirs.construct_direction(*embeds))
    named = ours("a cat", source_prompts=sides[0], target_prompts=sides[1], num_inference_steps=3, seed=4).images[0]
    given = ours("a cat", *embeds, num_inference_steps=3, seed=4).images[0]
    assert named.tobytes() == given.tobytes()
    assert named.settings["target_prompts"] == sides[1]
    assert named.settings["scheduler"] == "DDIMScheduler"
    lost = [set(made.settings["not_recorded"]) for made in (named, given)]
    assert lost[1] - lost[0] == {"source_embeds", "target_embeds"}


def test_callbacks_see_the_reference_ones_and_then_the_edit(pair):
    seen: list[list] = [[], []]
    for pipe, log in zip(pair(), seen, strict=True):
        images(pipe, "a cat", callback=lambda i, t, x, log=log: log.append((i, int(t), x.clone())), **CALL)
    assert [entry[:2] for entry in seen[0]] == [entry[:2] for entry in seen[1]] * 2
    for ours, theirs in zip(seen[0], seen[1], strict=False):
        torch.testing.assert_close(ours[2], theirs[2], atol=1e-4, rtol=1e-4)


def test_it_goes_with_control_and_other_guiders(pair, twins, tmp_path_factory):
    ours, _ = pair()
    net = controlnets(twins, tmp_path_factory)[0]
    plain = images(ours, "a cat", **CALL)
    for more in (
        dict(control=[langevin.Control(net, picture(), 0.8)]),
        dict(guiders=[SelfAttentionGuidance(0.8)]),
        dict(guiders=[Windows(4, 2, batch=2)]),
    ):
        made = images(ours, "a cat", **CALL, **more)
        assert np.isfinite(made).all()
        assert abs(made - plain).max() > 1e-4


# -- inversion


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        ("ddim", {}),
        ("ddim v trailing", {}),
        ("ddim", dict(lambda_kl=0.0)),
        ("ddim", dict(lambda_auto_corr=0.0)),
        ("ddim", dict(num_reg_steps=0)),
        ("ddim", dict(num_reg_steps=2, num_auto_corr_rolls=3, lambda_auto_corr=5.0, lambda_kl=3.0)),
        ("ddim", dict(guidance_scale=2.0)),
        ("ddim", dict(image=pil(32, 32))),
        ("ddim", dict(image=torch.randn(1, 4, 8, 8, generator=generator(3)))),
    ],
)
def test_inversions_are_the_reference_ones(pair, scheduler, options):
    call = {"prompt": "a cat", "image": picture(32, 32), "num_inference_steps": 3, "output_type": "np", **options}
    ours, theirs = (pipe.invert(generator=generator(), **call) for pipe in pair(scheduler))
    torch.testing.assert_close(ours.latents, theirs.latents, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(ours.images, theirs.images, atol=1e-4)


def test_losses_are_the_reference_ones(pair):
    _, theirs = pair()
    noise = torch.randn(1, 4, 32, 24, generator=generator(1))
    shifts = generator(2)
    mine = auto_correlation(noise[0], lambda n: int(torch.randint(n, (1,), generator=shifts)))
    torch.testing.assert_close(mine, theirs.auto_corr_loss(noise, generator=generator(2)))
    torch.testing.assert_close(divergence(noise), theirs.kl_divergence(noise))


def test_each_of_several_is_inverted_by_itself(pair):
    ours, _ = pair()
    two = [picture(32, 32, seed=1), picture(32, 32, seed=2)]
    call = dict(num_inference_steps=2, output_type="latent")
    both = ours.invert(["a cat", "a dog"], two, seed=[5, 9], **call).latents
    torch.testing.assert_close(both[1:], ours.invert("a dog", two[1], seed=9, **call).latents, atol=1e-4, rtol=1e-4)


def test_without_an_inverse_scheduler_the_own_one_is_walked_back(twins):
    plain, _ = twins(scheduler="ddim")
    ours = langevin.StableDiffusionPix2PixZeroPipeline.from_pipe(plain)
    assert ours.unet is plain.unet
    ours.set_progress_bar_config(disable=True)
    call = dict(num_inference_steps=3, num_reg_steps=0, output_type="latent", seed=1)
    found = ours.invert("a cat", picture(), **call).latents
    ours.inverse_scheduler = langevin.DDIMInverseScheduler.from_config(plain.scheduler.config)
    torch.testing.assert_close(found, ours.invert("a cat", picture(), **call).latents)


def test_whitening_is_a_guider_for_any_call(twins):
    plain, _ = twins()
    made = images(plain, "a cat", num_inference_steps=3, guiders=[Whitening(steps=1, rolls=1)])
    assert abs(made - images(plain, "a cat", num_inference_steps=3)).max() > 1e-4
    for off in (Whitening(steps=0), Whitening(0.0, 0.0)):
        np.testing.assert_array_equal(
            images(plain, "a cat", num_inference_steps=3, guiders=[off]),
            images(plain, "a cat", num_inference_steps=3),
        )


# -- the rest


def test_checkpoints_go_both_ways(pair, tmp_path):
    assert_checkpoints_go_both_ways(pair(), tmp_path, **CALL)


def test_pictures_are_described_by_blip_as_in_the_reference(pair, tmp_path):
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photography", "of", "cat", "dog", "red"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))
    torch.manual_seed(0)
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = dict(vocab_size=len(words), bos_token_id=2, eos_token_id=3, sep_token_id=3, pad_token_id=0,
                encoder_hidden_size=16, max_position_embeddings=200)  # fmt: skip
    config = transformers.BlipConfig(
        text_config={**small, **text}, vision_config={**small, "image_size": 16, "patch_size": 8}
    )
    processor = transformers.BlipProcessor(transformers.BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer)
    network = transformers.BlipForConditionalGeneration(config).eval()
    said = []
    both = pair()
    for pipe in both:
        pipe.register_modules(caption_generator=network, caption_processor=processor)
        said.append(pipe.generate_caption(pil()))
    assert said[0] == said[1]
    assert said[0].startswith("a photography of")
    for k, (saver, loader) in enumerate(zip(both, reversed(both), strict=True)):
        saver.save_pretrained(tmp_path / str(k))
        assert type(loader).from_pretrained(tmp_path / str(k)).generate_caption(pil()) == said[0]
    with pytest.raises(ValueError, match="give caption_generator and caption_processor"):
        pair()[0].generate_caption(pil())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(source_embeds=None), "neither of source_embeds and source_prompts"),
        (dict(target_prompts=["a"]), "both of target_embeds and target_prompts"),
        (dict(target_embeds=TARGET[0]), r"target_embeds is \(16, 24\)"),
        (dict(target_embeds=TARGET[:, :9]), "both need as many tokens"),
        (dict(prompt="a [red:blue:0.5] cat"), "prompts that change on the way"),
        (dict(cross_attention_guidance_amount="x"), "cross_attention_guidance_amount is 'x'"),
    ],
    ids=lambda o: ",".join(o) if isinstance(o, dict) else "",
)
def test_bad_input_gets_one_clear_line(pair, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        pair()[0](**{"prompt": "a cat", **CALL, **options})
    assert "\n" not in str(caught.value)


def test_more_bad_input(pair):
    ours, _ = pair()
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode forbids"):
        ours("a cat", **CALL)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode forbids"):
        ours.invert("a cat", picture())
    with pytest.raises(ValueError, match="image is missing"):
        ours.invert("a cat")
    with pytest.raises(ValueError, match="lambda_kl is -1"):
        ours.invert("a cat", picture(), lambda_kl=-1)
    with pytest.raises(ValueError, match="saw nothing like this at step 0"):
        images(ours, "a cat", guiders=[CrossAttentionGuidance(AttentionMaps())], **CALL)


def test_the_thing_takes_its_new_colour_and_keeps_its_place():
    from langevin.zoo.reader import STAYS, read

    pipe = langevin.StableDiffusionPix2PixZeroPipeline.from_pretrained("langevin/shapes")
    pipe.scheduler = langevin.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    plain = langevin.StableDiffusionPipeline.from_pipe(pipe)
    plain.set_progress_bar_config(disable=True)
    source = plain("a red circle", seed=1, num_inference_steps=12, guidance_scale=4.0).images[0]
    noise = pipe.invert("a red circle", source, num_inference_steps=12, num_reg_steps=0, seed=2).latents
    sides = dict(source_prompts=["a red circle"], target_prompts=["a blue circle"])
    call = dict(num_inference_steps=12, guidance_scale=3.0, cross_attention_guidance_amount=0.01)
    made = pipe("a red circle", **sides, latents=noise, **call).images[0]
    [before], [after] = read(source).things, read(made).things
    assert (before.colour, after.colour, after.shape) == ("red", "blue", "circle")
    assert abs(before.x - after.x) <= STAYS
    assert abs(before.y - after.y) <= STAYS
